"""Each command in process: what it prints, and one line with exit code 2 for every mistake."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_model

from weft.core import config
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.loading import load_model, save_model
from weft.serving.cli import run


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Wide enough that no table wraps, and no colours, whatever runs the tests."""
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("WEFT_DEBUG", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(tiny_model(), folder)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    return path


def says(capsys, *arguments):
    """The output of a command that succeeds."""
    code = run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def fails(capsys, *arguments, code=2):
    """The one line of a command that does not."""
    found = run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert found == code, out + err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("weft: ")
    return lines[0]


# list and show


def test_list_shows_every_room(capsys):
    out = says(capsys, "list")
    for name in ("clip_vision", "303,507,456", "mlp", "20,979,712", "decoder", "6,738,415,616", "token_concatenation"):
        assert name in out
    for name in ("multimodal_lm", "next_token", "desk", "llava-1.5", "2310.03744", "so400m-14-384"):
        assert name in out


def test_list_shows_one_room_in_either_spelling(capsys):
    assert says(capsys, "list", "language-models") == says(capsys, "list", "language_models")
    assert "clip_vision" not in says(capsys, "list", "projectors")


def test_list_offers_the_nearest_room(capsys):
    assert "did you mean 'encoders'" in fails(capsys, "list", "encodrs")


def test_show_takes_llava_1_5_apart(capsys):
    out = says(capsys, "show", "llava-1.5", "--size", "7b")
    for fact in ("7,062,902,784", "6,738,415,616", "303,507,456", "20,979,712", "576 tokens per medium", "TokenConcatenation"):
        assert fact in out
    for fact in ("align", "instruct", "0.30%", "95.7%", "TFLOP", "GiB", "arXiv:2310.03744", "vicuna_v1", "0.001", "2e-05"):
        assert fact in out


def test_show_follows_overrides_and_the_text(capsys):
    small, large = (says(capsys, "show", "llava", "--tiny", "--text-tokens", n) for n in (8, 80))
    assert small != large
    assert "4,321" in says(capsys, "show", "llava", "--tiny", "--set", "stages.align.steps=4321")


def test_show_prints_the_recipe_as_it_is_saved(capsys):
    assert config.loads(says(capsys, "show", "llava", "--tiny", "--json")) == tiny_recipe("llava")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("show", "lava"), "unknown recipe or part 'lava'; did you mean 'llava'"),
        (("show", "llava", "--size", "7c"), "unknown size of llava '7c'; did you mean '7b'"),
        (("show", "llava", "--set", "stages.aling.steps=3"), "did you mean align"),
        (("show", "llava", "--set", "stages.align.step=3"), "did you mean steps"),
        (("show", "llava", "--set", "stages.align.steps=many"), "stages.align.steps"),
        (("show", "llava", "--set", "stages.align.steps"), "--set takes PATH=VALUE"),
        (("show", "llava", "--tiny", "--size", "7b"), "--tiny"),
        (("show", "llava", "--tiny", "--set", "stages.align.system.language_model.num_heads=0"), "num_heads=0"),
        (("show", "llava", "--tiny", "--set", "stages.align.system.language_model.num_heads=3"), "cannot share 2 heads"),
        (("show", "llava", "--tiny", "--set", "stages.align.system.language_model.width=30"), "heads of 7.5"),
        (
            ("train", "llava", "--tiny", "-o", "run", "--set", "stages.align.system.streams.image.encoder.patch_size=0"),
            "no patch of 0",
        ),
        (("show", "llava", "--text-tokens", "0"), "--text-tokens"),
        (("show",), "RECIPE"),
        (("shwo", "llava"), "No such command 'shwo'"),
        (("show", "llava", "--sise", "7b"), "--sise"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(capsys, arguments, line):
    assert line in fails(capsys, *arguments)


def test_debug_shows_where_an_error_came_from(capsys, monkeypatch):
    monkeypatch.setenv("WEFT_DEBUG", "1")
    with pytest.raises(Exception, match="unknown recipe"):
        run(["show", "lava"])


# train


def test_train_tiny_then_resume_a_finished_run(capsys, tmp_path):
    folder = tmp_path / "run"
    short = ("--set", "stages.align.steps=3", "--set", "stages.instruct.steps=2", "--no-tensorboard")
    out = says(capsys, "train", "llava", "--tiny", "-o", folder, *short)
    assert f"weft chat {folder / 'model'} --image FILE" in " ".join(out.split())
    assert load_model(folder).system.config == tiny_recipe("llava").system
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 1, 2]
    assert "already holds a run" in fails(capsys, "train", "llava", "--tiny", "-o", folder, *short)
    assert str(folder / "model") in says(capsys, "train", "llava", "--tiny", "-o", folder, *short, "--resume")
    changed = ("--set", "stages.align.steps=4", "--no-tensorboard", "--resume")
    assert "another recipe" in fails(capsys, "train", "llava", "--tiny", "-o", folder, *changed)


def test_train_on_a_file_of_conversations(capsys, tmp_path, picture):
    record = {
        "id": "a",
        "image": picture.name,
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "noise"}],
    }
    data = tmp_path / "mine.json"
    data.write_text(json.dumps([record] * 4))
    steps = ("--set", "stages.align.steps=1", "--set", "stages.instruct.steps=1", "--no-tensorboard")
    arguments = ("train", "llava", "--tiny", "--data", data, "--images", picture.parent, *steps)
    assert str(tmp_path / "run" / "model") in says(capsys, *arguments, "-o", tmp_path / "run")

    record["conversations"][0]["value"] = "What is it?"
    data.write_text(json.dumps([record]))
    line = fails(capsys, *arguments, "-o", tmp_path / "other")
    assert "record 0" in line and "0 <image> in the text for 1 images" in line


def test_train_with_a_picture_that_is_cut_short_leaves_no_model(capsys, tmp_path, picture):
    whole = picture.read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "noise"}]
    data = tmp_path / "mine.json"
    data.write_text(json.dumps([{"id": "a", "image": "cut.png", "conversations": turns}]))
    line = fails(capsys, "train", "llava", "--tiny", "--data", data, "-o", tmp_path / "run", "--no-tensorboard")
    assert "cut.png" in line
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("train", "llava-1.5"), "--output"),
        (("train", "llava-1.5", "-o", "{tmp}/run"), "give --data align=FILE"),
        (("train", "llava-1.5", "-o", "{tmp}/run", "--data", "{tmp}/none.json"), "none.json, which is not there"),
        (("train", "llava", "--tiny", "-o", "{tmp}/run", "--data", "nostage=x.json"), "unknown stage 'nostage'"),
        (("train", "llava", "--tiny", "-o", "{tmp}/run", "--resume"), "holds no run to resume"),
        (("train", "llava", "--tiny", "-o", "{tmp}/run", "--device", "gpu"), "no device 'gpu' here for torch"),
        (("train", "llava", "--tiny", "-o", "{tmp}/run", "--set", "stages.align.processor.template=vicuna"), "'vicuna_v1'"),
        (("train", "llava", "--tiny", "-o", "{tmp}/run", "--set", "stages.align.max_tokens=10"), "media are never cut"),
        (("train", "llava", "--tiny", "-o", "{tmp}/run", "--from", "eyes={tmp}/none"), "unknown part 'eyes'"),
        (("train", "llava", "--tiny", "-o", "{tmp}/run", "--tokenizer", "{tmp}/t.json"), "no tokenizer file"),
        (
            ("train", "clip", "--tiny", "-o", "{tmp}/run", "--set", "stages.contrastive.packing=true"),
            "compares the samples",
        ),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(capsys, tmp_path, arguments, line):
    assert line in fails(capsys, *(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert not (tmp_path / "run").exists()


# eval


def test_eval_prints_types_baselines_and_the_mean(capsys, model_folder, tmp_path):
    arguments = ("eval", model_folder, "--set", "num_per_type=2", "--set", "types=count,presence", "-o", tmp_path / "scores")
    out = says(capsys, *arguments)
    for words in ("Count the digits", "Is a digit there?", "pictures shuffled", "most frequent answer", "mean over types"):
        assert words in out
    saved = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert saved["questions"] == 4
    printed = json.loads(says(capsys, *arguments, "--json"))
    assert printed["types"] == saved["types"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--benchmark", "desc"), "unknown benchmark 'desc'; did you mean 'desk'"),
        (("--set", "num_per_typ=3"), "did you mean num_per_type"),
        (("--set", "types=cuont"), "did you mean 'count'"),
        (("--precision", "fp8"), "unknown precision 'fp8'"),
    ],
)
def test_eval_offers_the_nearest(capsys, model_folder, arguments, line):
    assert line in fails(capsys, "eval", model_folder, *arguments)


def test_eval_leaves_the_answers_of_another_evaluation(capsys, model_folder, tmp_path):
    arguments = ("eval", model_folder, "--no-blind", "--set", "types=count", "-o", tmp_path)
    says(capsys, *arguments, "--set", "num_per_type=2")
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = run([str(a) for a in (*arguments, "--set", "num_per_type=3")])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1, error  # nothing of a progress bar around it
    assert "holds the answers of another evaluation (different: benchmark_config)" in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


# chat


def test_chat_answers_once_and_the_same_as_the_library(capsys, model_folder, picture):
    from weft.core.conversation import Conversation, Media, user
    from weft.inference.sampling import Sampling

    out = says(capsys, "chat", model_folder, "--image", picture, "--prompt", "which colour is it?", "--max-new-tokens", 12)
    conversation = Conversation((user(Media(str(picture)), "which colour is it?"),))
    reply = load_model(model_folder).generate([conversation], Sampling(max_new_tokens=12))[0]
    assert out.strip() == reply.text.strip()


@pytest.mark.parametrize("content", [None, b"", b"not a picture", "cut"], ids=["missing", "empty", "text", "cut short"])
def test_chat_names_a_file_that_is_no_picture(capsys, model_folder, picture, tmp_path, content):
    path = tmp_path / "wrong.png"
    if content is not None:
        path.write_bytes(picture.read_bytes()[:200] if content == "cut" else content)
    assert "wrong.png" in fails(capsys, "chat", model_folder, "--image", path, "--prompt", "what?")


def test_a_wrong_picture_is_told_before_a_model_is_looked_for(capsys, tmp_path):
    assert "no image file" in fails(capsys, "chat", tmp_path / "no-model", "--image", tmp_path / "none.png")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "0"), "top_p"),
        (("--max-new-tokens", "0"), "max_new_tokens"),
    ],
)
def test_chat_checks_its_settings(capsys, model_folder, arguments, line):
    assert line in fails(capsys, "chat", model_folder, "--prompt", "what?", *arguments)


def test_a_model_that_is_none(capsys, tmp_path):
    assert "does not exist" in fails(capsys, "chat", tmp_path / "none", "--prompt", "what?")
    assert "holds no model" in fails(capsys, "chat", tmp_path, "--prompt", "what?")


def test_a_weight_file_that_is_cut_short(capsys, model_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_folder.iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    assert "model.safetensors" in fails(capsys, "chat", folder, "--prompt", "what?")


def in_copy(model_folder, tmp_path, file, old, new):
    """A copy of a model folder with something else in one of its files."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    return folder


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [
        ("config.json", '"context": 512', '"context": "many"', "cannot hold context='many'"),
        ("config.json", '"num_heads": 4', '"num_heads": 0', "num_heads=0"),
        ("processor.json", '"weft.data.processor.Processor.Config"', '"weft.layers.rotary.Llama3Scaling"', "has no field"),
        ("processor.json", '"size": 32', '"size": "large"', "cannot hold size='large'"),
        ("processor.json", '"size": 32', '"size": 0', "a size and deviations above 0"),
    ],
)
def test_a_model_folder_with_a_wrong_figure(capsys, model_folder, tmp_path, file, old, new, line):
    assert line in fails(capsys, "chat", in_copy(model_folder, tmp_path, file, old, new), "--prompt", "what?")


def test_a_system_where_the_processor_should_be(capsys, model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    shutil.copy(folder / "config.json", folder / "processor.json")
    assert "processor.json describes a MultimodalLM.Config" in fails(capsys, "chat", folder, "--prompt", "what?")


def test_a_pickle_is_refused_and_does_not_run(capsys, model_folder, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))
    assert "could run code; refused" in fails(capsys, "chat", folder, "--prompt", "what?")
    shutil.copy(folder / "pytorch_model.bin", folder / "model.safetensors")
    assert "a pickle under the name of a safetensors file" in fails(capsys, "chat", folder, "--prompt", "what?")
    assert not (tmp_path / "ran").exists()


def test_no_memory_is_one_line(capsys, monkeypatch):
    from weft.serving.commands import show

    def greedy(*_, **__):
        torch.empty(1 << 50)  # four petabytes

    monkeypatch.setattr(show.typer, "echo", greedy)
    assert "out of memory" in fails(capsys, "show", "llava", "--tiny", "--json")


def test_a_text_without_room_for_it(capsys, model_folder):
    assert "the prompt takes" in fails(capsys, "chat", model_folder, "--prompt", "and now? " * 400)


# convert, data


def test_convert_there_and_back_keeps_every_weight(capsys, model_folder, tmp_path):
    says(capsys, "convert", model_folder, tmp_path / "theirs", "--to", "transformers")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == "llava"
    says(capsys, "convert", tmp_path / "theirs", tmp_path / "ours", "--to", "weft")
    before, after = load_model(model_folder).system, load_model(tmp_path / "ours").system
    ours = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        rows = len(parameter)
        assert torch.equal(ours[name][:rows], parameter), name  # the layout may pad the vocabulary


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(("--to", "gguf"), "unknown layout 'gguf'"), (("--precision", "int3"), "unknown precision 'int3'")],
)
def test_convert_offers_what_it_knows(capsys, model_folder, tmp_path, arguments, line):
    assert line in fails(capsys, "convert", model_folder, tmp_path / "target", *arguments)
    assert not (tmp_path / "target").exists()


def test_convert_overwrites_nothing(capsys, model_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "not empty" in fails(capsys, "convert", model_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_data_desk_draws_a_sheet(capsys, tmp_path):
    path = tmp_path / "sheet.png"
    assert str(path) in says(capsys, "data", "desk", "--preview", path, "-n", 2)
    assert Image.open(path).width > 500


@pytest.mark.parametrize("of", ["speech", "speech_and_picture", "films"])
def test_data_desk_draws_sounds_and_films(capsys, tmp_path, of):
    path = tmp_path / "sheet.png"
    assert f"2 {of} of desk/test" in says(capsys, "data", "desk", "--preview", path, "-n", 2, "--of", of, "--split", "test")
    assert Image.open(path).convert("L").crop((0, 8, 128, 72)).getextrema() != (255, 255)
    assert "did you mean 'films'" in fails(capsys, "data", "desk", "--preview", path, "--of", "fillms")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no file that is always full")
def test_a_full_disk_is_one_line(capsys, tmp_path):
    (tmp_path / "full.png").write_bytes(b"an older sheet")
    (tmp_path / ".partial-full.png").symlink_to("/dev/full")  # where a sheet is written before it takes its place
    assert "no space left" in fails(capsys, "data", "desk", "--preview", tmp_path / "full.png", "-n", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["full.png"]
    assert (tmp_path / "full.png").read_bytes() == b"an older sheet"


def test_data_desk_names_a_wrong_split_and_a_wrong_place(capsys, tmp_path):
    assert "unknown desk split" in fails(capsys, "data", "desk", "--preview", tmp_path / "a.png", "--split", "tset")
    assert "No such file" in fails(capsys, "data", "desk", "--preview", tmp_path / "none" / "a.png")
    assert "ends in .png" in fails(capsys, "data", "desk", "--preview", tmp_path / "a.bmp")


def test_version(capsys):
    from weft import __version__

    assert says(capsys, "--version").strip() == f"weft {__version__}"


# demo


def test_demo_passes_on_what_it_is_told(capsys, monkeypatch, tmp_path):
    from weft.recipes import demo

    told = []

    def run_demo(folder, minutes, seed, console, processes):
        told.append((folder, minutes, seed, processes))

    monkeypatch.setattr(demo, "run_demo", run_demo)
    says(capsys, "demo", "--minutes", 0.5, "--seed", 3, "--processes", 2, "--output", tmp_path / "here")
    assert told == [(tmp_path / "here", 0.5, 3, 2)]
    assert "--minutes" in fails(capsys, "demo", "--minutes", 0)


def test_a_stopped_demo_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    from weft.recipes import demo
    from weft.training.interrupts import TrainingInterrupted

    def stopped(*_, **__):
        raise TrainingInterrupted("stopped after step 3")

    monkeypatch.setattr(demo, "run_demo", stopped)
    line = fails(capsys, "demo", "-o", tmp_path / "here", code=130)
    assert line.endswith("stopped after step 3; the same command goes on")


def test_demo_leaves_another_run_alone(capsys, tmp_path):
    step = ("--set", "stages.contrastive.steps=1", "--no-tensorboard")
    told = says(capsys, "train", "siglip", "--tiny", "-o", tmp_path / "run", *step)
    assert "The model is in" in told and "weft chat" not in told, "two towers have nothing to say"
    assert "another recipe" in fails(capsys, "demo", "--minutes", 0.05, "-o", tmp_path / "run")


def test_train_with_a_tokenizer_that_the_tables_cannot_hold(capsys, tmp_path):
    from tiny_model import tokenizer

    tokenizer().save(tmp_path / "large")
    small = [f"stages.{stage}.system.language_model.vocabulary=100" for stage in ("align", "instruct")]
    arguments = ("--tokenizer", tmp_path / "large", "--no-tensorboard", "--set", small[0], "--set", small[1])
    line = fails(capsys, "train", "llava", "--tiny", "-o", tmp_path / "run", *arguments)
    assert "300 ids" in line and "100 rows" in line


@pytest.mark.parametrize("name", ["clip", "siglip", "llava", "llava-1.5"])
def test_every_recipe_is_shown_at_each_size_and_tiny(capsys, name):
    from weft.recipes.catalogue import sizes_of

    for size in sizes_of(name)[:1]:
        assert f"{name} {size}" in says(capsys, "show", name, "--size", size)
    assert f"{name} tiny" in says(capsys, "show", name, "--tiny")
