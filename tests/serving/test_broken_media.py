"""`weft train` and `weft eval` on files of which one is broken, as people meet them."""

import json

import pytest
import torch
from broken_media import FileQuestions, cut_jpeg, film, picture, pictures, wav
from test_cli import fails, says
from tiny_model import tiny_model

from weft.evaluation import catalogue
from weft.inference.embedder import Embedder
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.loading import save_model
from weft.recipes.shrinking import tiny_tokenizer
from weft.serving.cli import run
from weft.training.data_stream import SampleOrder
from weft.training.logging import read_metrics
from weft.training.model_folder import write_model_folder

BATCH = 4
SETTINGS = (f"stages.align.batch_size={BATCH}", "stages.align.steps=3", "stages.instruct.steps=1")
SHORT = ("--no-tensorboard", *(argument for text in SETTINGS for argument in ("--set", text)))


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("NO_COLOR", "1")


def images(folder):
    for index in range(11):
        picture(index).save(folder / f"{index}.png")
    return [f"{index}.png" for index in range(11)], cut_jpeg(folder / "cut.jpg").name


def sounds(folder):
    return [wav(folder / f"{index}.wav", 8000 + index).name for index in range(11)], wav(folder / "empty.wav", 0).name


def films(folder):
    return [film(folder / f"{index}.avi", 2 + index).name for index in range(11)], film(folder / "empty.avi", 0).name


def own_data(folder, stream, files):
    """LLaVA JSON of the files, a record each."""
    turns = [{"from": "human", "value": f"<{stream}>\nWhat is it?"}, {"from": "gpt", "value": "a red 7"}]
    path = folder / "mine.json"
    path.write_text(json.dumps([{"id": name, stream: name, "conversations": turns} for name in files]))
    return path


@pytest.mark.parametrize(
    ("recipe", "stream", "kind"),
    [("llava", "image", images), ("llava-audio", "audio", sounds), ("llava-video", "video", films)],
)
def test_training_stops_at_a_broken_file_and_goes_on_without_it(capsys, tmp_path, recipe, stream, kind):
    files, broken = kind(tmp_path)
    files.insert(SampleOrder(len(files) + 1, BATCH, 0, "align").indices(2)[0], broken)  # the third step meets it
    arguments = ("train", recipe, "--tiny", "--data", own_data(tmp_path, stream, files), "-o", tmp_path / "run", *SHORT)
    line = fails(capsys, *arguments)
    assert f"sample mine.json:{broken}, {stream} 1: {tmp_path / broken}" in line
    assert line.endswith("mend it, or leave such samples out with --skip-broken")
    strict = read_metrics(tmp_path / "run")
    assert [record["step"] for record in strict] == [1, 2]

    assert str(tmp_path / "run" / "model") in says(capsys, *arguments, "--resume", "--skip-broken")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(f"stage align data: left out: sample mine.json:{broken}, {stream} 1: {tmp_path / broken}") == 1
    assert "samples were left out, others stood in" in log

    whole = [tmp_path / "whole" if argument == tmp_path / "run" else argument for argument in arguments]
    says(capsys, *whole, "--skip-broken")
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in ("run", "whole")]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_eval_names_a_broken_picture_and_goes_on(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "benchmarks", lambda: {"files": FileQuestions})
    save_model(tiny_model(), tmp_path / "model")
    cut_jpeg(pictures(tmp_path / "files") / "3.png")
    arguments = ("eval", tmp_path / "model", "-b", "files", "--set", f"folder={tmp_path / 'files'}")
    out = says(capsys, *arguments, "-o", tmp_path / "scores")
    lines = [line for line in out.splitlines() if "could not be asked" in line]
    for title, line in zip(("with the picture", "pictures shuffled"), lines, strict=True):
        assert line.startswith(f"{title}: 1 of 24 questions could not be asked and count as wrong; the first: sample ")
        assert str(tmp_path / "files" / "3.png") in line
    saved = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert saved["failed"] == {"model": 1, "blind": 1} and saved["types"]["colour"]["model"]["num"] == 24

    assert run([*map(str, arguments[:-1]), f"folder={tmp_path / 'elsewhere'}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # below the bar
    assert "none of the 24 questions of 'files' could be asked" in line and str(tmp_path / "elsewhere" / "0.png") in line


def test_a_search_with_a_broken_picture_goes_on(capsys, tmp_path):
    recipe = tiny_recipe("clip")
    torch.manual_seed(0)
    clip = Embedder(recipe.system.build().eval(), recipe.processor.build(tiny_tokenizer(20), recipe.system))
    write_model_folder(tmp_path / "clip", clip.system, clip.processor)
    sound, broken = images(tmp_path)
    path = own_data(tmp_path, "image", [*sound, broken])
    records = json.loads(path.read_text())
    for number, record in enumerate(records):
        record["conversations"][1]["value"] = f"picture {number}"
    path.write_text(json.dumps(records))
    arguments = ("eval", tmp_path / "clip", "-b", "pair-retrieval", "--set", f"path={path}", "--set", "ranks=1,5")
    scores = json.loads(says(capsys, *arguments, "--json"))
    assert scores["failed"]["model"] == 2 and scores["questions"] == 48, "once for each rank"
    assert f"{tmp_path / broken} cannot be read as an image" in says(capsys, *arguments)
