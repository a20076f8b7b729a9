"""`weft chat` and `weft eval` with recordings and films: the answers of the library, and mistakes in one line."""

import json
import wave

import numpy as np
import pytest
import torch
from test_cli import fails, says
from tiny_model import scatter

from weft.core.conversation import Conversation, Media, user
from weft.data.desk.clips import sample_clip
from weft.data.desk.dice import Dice
from weft.data.desk.listening import DeskListening
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.recipes import llava_audio, llava_video
from weft.recipes.loading import load_model, save_model
from weft.recipes.shrinking import tiny_tokenizer

ASKED = ("--prompt", "Which digits are said?", "--max-new-tokens", 6)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("NO_COLOR", "1")


def folder_of(recipe, folder):
    """A model folder of a recipe's system with random weights."""
    stage = recipe.stages[-1]
    torch.manual_seed(0)
    system = stage.system.build().eval()
    scatter(system.language_model)
    save_model(Model(system, stage.processor.build(tiny_tokenizer(50), stage.system)), folder)
    return folder


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    return folder_of(llava_audio.tiny(), tmp_path_factory.mktemp("hearing") / "model")


@pytest.fixture(scope="module")
def watching(tmp_path_factory):
    return folder_of(llava_video.tiny(), tmp_path_factory.mktemp("watching") / "model")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "said.wav"
    (medium,) = DeskListening.Config().build()[0].media()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((medium.source.samples * 32_767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("films") / "film.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=8)
        stream.height = stream.width = 64
        stream.pix_fmt = "bgr0"
        for frame in sample_clip(Dice(0), "train").frames():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


def test_a_recording_is_answered_as_by_the_library(capsys, hearing, recording):
    out = says(capsys, "chat", hearing, "--audio", recording, *ASKED)
    asked = Conversation((user(Media(str(recording), "audio"), "Which digits are said?"),))
    (reply,) = load_model(hearing).generate([asked], Sampling(max_new_tokens=6))
    assert out.strip() == reply.text.strip()
    assert out != says(capsys, "chat", hearing, *ASKED), "the recording is heard"


def test_a_film_is_answered_as_by_the_library(capsys, watching, film):
    out = says(capsys, "chat", watching, "--video", film, *ASKED)
    asked = Conversation((user(Media(str(film), "video"), "Which digits are said?"),))
    (reply,) = load_model(watching).generate([asked], Sampling(max_new_tokens=6))
    assert out.strip() == reply.text.strip()


def test_what_a_model_does_not_take_is_said_in_one_line(capsys, hearing, watching, recording, film):
    line = fails(capsys, "chat", hearing, "--video", film, *ASKED)
    assert "takes no video, only audio, image; leave --video out" in line
    assert "takes no audio, only video" in fails(capsys, "chat", watching, "--audio", recording, *ASKED)


@pytest.mark.parametrize("option", ["--audio", "--video"])
@pytest.mark.parametrize("content", [None, b"", b"neither seen nor heard"], ids=["missing", "empty", "text"])
def test_a_wrong_file_is_told_before_a_model_is_looked_for(capsys, tmp_path, option, content):
    path = tmp_path / "wrong.bin"
    if content is not None:
        path.write_bytes(content)
    assert "wrong.bin" in fails(capsys, "chat", tmp_path / "no-model", option, path, "--prompt", "what?")


@pytest.mark.parametrize(("kind", "benchmark", "run"), [("hearing", "desk-listening", "sounds shuffled"),
                                                        ("watching", "desk-watching", "films shuffled")])  # fmt: skip
def test_eval_asks_about_sounds_and_films(capsys, request, tmp_path, kind, benchmark, run):
    folder = request.getfixturevalue(kind)
    arguments = ("eval", folder, "-b", benchmark, "--set", "num_per_type=2", "-o", tmp_path / "scores")
    out = says(capsys, *arguments)
    assert run in out and "most frequent answer" in out and "Count the digits" in out and "picture" not in out
    saved = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert saved["questions"] == 2 * len(saved["types"]) and saved["benchmark"] == benchmark
    assert np.isfinite(saved["mean"]["model"]["value"])


def test_eval_refuses_a_type_that_is_unknown(capsys, watching):
    assert "did you mean 'direction'" in fails(capsys, "eval", watching, "-b", "desk-watching", "--set", "types=diretcion")
