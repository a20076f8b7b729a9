import errno
import os
from dataclasses import replace

import pytest
import torch
from tiny_training import Strike, losses, recipe, tokenizer

import weft.training.checkpointing as checkpointing
import weft.training.model_folder as model_folder
from weft.core.errors import CheckpointError, ContextTooShort, RunError
from weft.data.tokenizers import Tokenizer
from weft.training.checkpointing import Checkpoints
from weft.training.logging import RunLog
from weft.training.model_folder import load_weights, read_weights, write_weights
from weft.training.run_folder import RunFolder
from weft.training.trainer import Trainer


class Crash(Exception):
    pass


def crash():
    raise Crash


def trainer(folder, changed=None, **options):
    return Trainer(changed or recipe(), folder, tokenizer=tokenizer(), **options)


@pytest.fixture
def crashed(tmp_path):
    """A run that died after its fifth step with a checkpoint at its fourth."""
    with pytest.raises(Crash):
        trainer(tmp_path / "run", checkpoint_every=2, callbacks=[Strike(5, crash)]).fit()
    return tmp_path / "run"


def test_a_finished_run_leaves_what_others_read(tmp_path):
    model = trainer(tmp_path / "run").fit()
    assert model == tmp_path / "run" / "model"
    files = {"config.json", "model.safetensors", "processor.json", "tokenizer.json"}
    for folder in (model, tmp_path / "run/stages/align", tmp_path / "run/stages/tune"):
        assert {p.name for p in folder.iterdir()} == files
    assert not list((tmp_path / "run" / "checkpoints").glob("*")), "finished stages need no checkpoints"
    trained = read_weights(model / "model.safetensors")
    assert all(torch.equal(t, trained[n]) for n, t in read_weights(tmp_path / "run/stages/tune/model.safetensors").items())


def test_a_folder_that_holds_a_run_is_refused(crashed):
    before = losses(crashed)
    with pytest.raises(RunError, match="already holds a run; resume it with --resume, or give another folder"):
        trainer(crashed).fit()
    assert losses(crashed) == before


@pytest.mark.parametrize("standing", [False, True], ids=["new", "with a file of the user's"])
def test_a_run_that_fails_before_its_first_step_leaves_the_folder_free(tmp_path, standing):
    folder = tmp_path / "run"
    if standing:
        folder.mkdir()
        (folder / "log.txt").write_text("mine\n")
    wrong = replace(recipe().stages[0], max_tokens=1)
    with pytest.raises(ContextTooShort):
        trainer(folder, replace(recipe(), stages=(wrong, *recipe().stages[1:])), tensorboard=True).fit()
    if standing:
        assert [file.name for file in folder.iterdir()] == ["log.txt"]
        assert (folder / "log.txt").read_text().startswith("mine\n")
    else:
        assert not folder.exists()
    assert trainer(folder).fit() == folder / "model"


def test_a_run_that_fails_later_stands(tmp_path):
    with pytest.raises(Crash):
        trainer(tmp_path / "run", callbacks=[Strike(1, crash)]).fit()
    assert trainer(tmp_path / "run").fit(resume=True).exists()


def test_a_run_that_another_one_keeps_out_takes_nothing_back(tmp_path):
    first = RunFolder(tmp_path / "run")
    first.path.mkdir()
    first._lock()
    with pytest.raises(RunError, match="another process trains in"):
        trainer(tmp_path / "run").fit()
    assert [file.name for file in first.path.iterdir()] == [".lock"]
    first.release()


def test_a_folder_where_another_process_trains_is_refused(crashed):
    first, second = RunFolder(crashed), trainer(crashed)
    first.resume(recipe(), 0, tokenizer().backend.to_str())
    with pytest.raises(RunError, match="another process trains in"):
        second.fit(resume=True)
    first.release()
    second.fit(resume=True)
    assert len(losses(crashed)) == 12


def test_resume_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no run to resume; leave out --resume"):
        trainer(tmp_path / "empty").fit(resume=True)


def test_resume_shows_what_changed_in_the_recipe(crashed):
    stages = recipe().stages
    optimizer = replace(stages[1].optimizer, learning_rate=5e-4)
    changed = replace(recipe(), stages=(stages[0], replace(stages[1], optimizer=optimizer)))
    with pytest.raises(RunError, match=r"stages\.tune\.optimizer\.learning_rate: 0\.001 -> 0\.0005"):
        trainer(crashed, changed).fit(resume=True)
    with pytest.raises(RunError, match="seed: 0 -> 1"):
        trainer(crashed, seed=1).fit(resume=True)
    other = Tokenizer.train(["other words"], 300, ("<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|end|>"))
    with pytest.raises(RunError, match="tokenizer: another vocabulary"):
        Trainer(recipe(), crashed, tokenizer=other).fit(resume=True)


def full_after(num_bytes):
    """A weight writer on a disk that fills half-way."""

    def write(path, module):
        path.write_bytes(b"\0" * num_bytes)
        raise OSError(errno.ENOSPC, "No space left on device")

    return write


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    filled = Strike(3, lambda: monkeypatch.setattr(checkpointing, "write_weights", full_after(1000)))
    with pytest.raises(RunError, match=r"the disk is full: .*align-4 was not written; what stood there before is untouched"):
        trainer(folder, checkpoint_every=2, callbacks=[filled]).fit()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["align-2"]
    monkeypatch.undo()
    trainer(folder).fit(resume=True)
    assert len(losses(folder)) == 12


def test_a_full_disk_leaves_no_half_model_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "write_weights", full_after(1000))
    with pytest.raises(RunError, match="the disk is full"):
        trainer(tmp_path / "run").fit()
    assert list((tmp_path / "run" / "stages").iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no file that is always full")
def test_a_full_disk_under_the_logs_says_so_too(tmp_path, monkeypatch):
    def on_a_full_disk(log, folder, tensorboard=False):
        opened(log, folder, tensorboard)
        log.close()
        log._metrics, log._text = (open("/dev/full", "a") for _ in range(2))  # noqa: SIM115 - the log closes them

    opened = RunLog.__init__
    monkeypatch.setattr(RunLog, "__init__", on_a_full_disk)
    with pytest.raises(RunError, match="the disk is full: /dev/full was not written"):
        trainer(tmp_path / "run").fit()


def test_too_small_a_disk_is_refused_before_the_first_step(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(RunError, match=r"stage 'align' needs about \d+ MiB .* and the disk has 1 MiB left"):
        trainer(tmp_path / "run").fit()


def test_only_the_last_checkpoints_stay(tmp_path):
    with pytest.raises(Crash):
        trainer(tmp_path / "run", checkpoint_every=1, keep_checkpoints=3, callbacks=[Strike(6, crash)]).fit()
    kept = [place.step for place in Checkpoints(tmp_path / "run" / "checkpoints").all("align")]
    assert kept == [3, 4, 5]


def test_a_hostile_checkpoint_is_refused_in_one_line(crashed):
    class Hostile:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran code from a file')",))

    torch.save(Hostile(), crashed / "checkpoints" / "align-4" / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read .*; delete .*align-4 to resume earlier") as caught:
        trainer(crashed).fit(resume=True)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_refused(crashed):
    weights = crashed / "checkpoints" / "align-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        trainer(crashed).fit(resume=True)


def test_a_checkpoint_of_another_run_is_refused(crashed, tmp_path):
    with pytest.raises(Crash):
        trainer(tmp_path / "other", checkpoint_every=2, callbacks=[Strike(3, crash)]).fit()
    (crashed / "checkpoints" / "align-4").rename(tmp_path / "other" / "checkpoints" / "align-4")
    with pytest.raises(CheckpointError, match="belongs to another run"):
        trainer(tmp_path / "other").fit(resume=True)


def test_tied_weights_are_stored_once_and_fill_both_names(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(5, 3)
            self.output = torch.nn.Linear(3, 5, bias=False)
            self.output.weight = self.embedding.weight

    one, other = Tied(), Tied()
    write_weights(tmp_path / "model.safetensors", one)
    tensors = read_weights(tmp_path / "model.safetensors")
    assert list(tensors) == ["embedding.weight"]
    load_weights(other, tensors, "file")
    assert torch.equal(other.output.weight, one.embedding.weight)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_written():
    module = torch.nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(CheckpointError, match=r"bias is missing; extra has no place.*; weight is \(3, 2\) in the file"):
        load_weights(module, {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}, "file")
    assert torch.equal(module.weight, before)
