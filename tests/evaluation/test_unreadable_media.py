"""A question whose medium cannot be read is recorded with its file and counts as wrong; every other one is answered as ever."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from broken_media import SAMPLES, FileQuestions, cut_jpeg, film, pictures, wav
from tiny_model import tiny_model

from weft.core.conversation import Conversation, Media, user
from weft.core.errors import DataError, UnreadableMedium
from weft.evaluation.benchmark import Item, shuffled
from weft.evaluation.classes import Classes
from weft.evaluation.evaluation import BLIND, MODEL, TEXT_ONLY, load_evaluation
from weft.evaluation.pairs import Pairs
from weft.evaluation.report.content import ReportContent, RunFacts
from weft.evaluation.report.exhibits import choose_exhibits
from weft.evaluation.report.page import page
from weft.evaluation.retrieval import TO_MEDIA, TO_TEXT, RetrievalModel
from weft.evaluation.runner import EvaluationSettings, evaluate
from weft.evaluation.unreadable import made_or_refused
from weft.evaluation.zero_shot import ZeroShotModel
from weft.inference.embedder import Embedder
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.recipes import llava_audio, llava_video
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.shrinking import tiny_tokenizer

BROKEN = ("3", "11")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("files") / "whole")


@pytest.fixture
def files(tmp_path):
    """The squares as files, two of them broken."""
    folder = pictures(tmp_path / "files")
    cut_jpeg(folder / "3.png")
    (folder / "11.png").unlink()
    return folder


def asked(place, **settings):
    return evaluate(tiny_model(), FileQuestions.Config(folder=str(place)).build(), EvaluationSettings(**settings))


def replies(records):
    return {record.id: (record.reply, record.score) for record in records}


@pytest.mark.parametrize("broken", [(), (0,), (63,), (5, 6, 40), range(64)])
def test_what_is_sound_is_answered_in_its_order_and_what_is_not_says_why(broken):
    calls = []

    def doubled(items):
        calls.append(len(items))
        if wrong := [item for item in items if item in broken]:
            raise UnreadableMedium(f"{wrong[0]} is broken")
        return [2 * item for item in items]

    found = made_or_refused(doubled, range(64))
    assert [str(f) if isinstance(f, UnreadableMedium) else f for f in found] == [
        f"{item} is broken" if item in broken else 2 * item for item in range(64)
    ]
    assert len(calls) <= 1 + 2 * 6 * len(broken), "halves, six times"


def test_a_broken_picture_is_recorded_counts_as_wrong_and_changes_no_other_answer(files, whole):
    broken, sound = asked(files), asked(whole)
    assert [record.id for record in broken.failed()] == list(BROKEN)
    for record in broken.failed():
        assert (record.reply, record.score) == ("", 0.0) and f"{record.id}.png" in record.error
    assert "cannot be read as an image" in broken.failed()[0].error and "no image file" in broken.failed()[1].error
    assert broken.mean().num == sound.mean().num == SAMPLES, "none is left out of what is divided by"
    expected = replies(sound.runs[MODEL]) | dict.fromkeys(BROKEN, ("", 0.0))
    assert replies(broken.runs[MODEL]) == expected


def test_the_question_that_is_shown_the_broken_picture_of_another_fails_in_the_shuffled_run(files):
    evaluation = asked(files)
    items = FileQuestions.Config(folder=str(files)).build().items()
    shown = {item.id: next(item.conversation.media()).source for item in shuffled(items)}
    assert {shown[record.id] for record in evaluation.failed(BLIND)} == {f"{files}/{number}.png" for number in BROKEN}
    assert evaluation.summary()["failed"] == {MODEL: 2, BLIND: 2}


def test_a_text_only_model_is_asked_all(files):
    benchmark = FileQuestions.Config(folder=str(files)).build()
    evaluation = evaluate(tiny_model(), benchmark, EvaluationSettings(blind=False), text_only=tiny_model(1))
    assert evaluation.summary()["failed"] == {MODEL: 2, TEXT_ONLY: 0}


def test_failures_are_kept_and_asked_again_once_the_file_is_mended(files, whole, tmp_path):
    folder = tmp_path / "answers"
    first = asked(files, folder=folder)
    lines = (folder / "model.jsonl").read_text()
    again = load_evaluation(folder)
    assert again.runs == dict(first.runs) and again.summary() == first.summary()
    assert asked(files, folder=folder).runs == first.runs
    assert (folder / "model.jsonl").read_text() == lines, "nothing new, nothing written"

    for number in BROKEN:
        (files / f"{number}.png").write_bytes((whole / f"{number}.png").read_bytes())
    mended, sound = asked(files, folder=folder), asked(whole)
    assert mended.failed() == mended.failed(BLIND) == ()
    for run in (MODEL, BLIND):
        assert replies(mended.runs[run]) == replies(sound.runs[run])
    assert load_evaluation(folder).runs == dict(mended.runs), "in the order of the questions, each once"


def test_answers_of_before_there_were_failures_are_read(whole, tmp_path):
    asked(whole, folder=tmp_path, blind=False)
    path = tmp_path / "model.jsonl"
    header, *records = map(json.loads, path.read_text().splitlines())
    older = [{name: value for name, value in record.items() if name != "error"} for record in records]
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *older)))
    assert load_evaluation(tmp_path).failed() == ()


def test_a_folder_with_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match="none of the 24 questions of 'files' could be asked: sample 0, image 1: no image file"):
        asked(tmp_path / "no-such-folder", folder=tmp_path / "answers")


def test_a_report_says_how_many_and_shows_none_of_them(files):
    evaluation = asked(files, blind=False)
    written = page(ReportContent(facts=RunFacts(title="files"), evaluation=evaluation))
    assert "2 of them could not be asked, as a medium cannot be read, and count as wrong." in written
    items = FileQuestions.Config(folder=str(files)).build().items()
    broken = [item for item in items if item.id in BROKEN]
    records = [record for record in evaluation.runs[MODEL] if record.id in BROKEN]
    assert choose_exhibits(broken, records, lambda text: None) == []


def recording(folder):
    return llava_audio.tiny(), "audio", wav(folder / "sound.wav"), wav(folder / "empty.wav", 0)


def moving(folder):
    return llava_video.tiny(), "video", film(folder / "film.avi"), film(folder / "empty.avi", 0)


@pytest.mark.parametrize("kind", [recording, moving])
def test_recordings_and_films_fail_alike(tmp_path, kind):
    recipe, stream, sound, broken = kind(tmp_path)
    stage = recipe.stages[-1]
    torch.manual_seed(0)
    model = Model(stage.system.build().eval(), stage.processor.build(tiny_tokenizer(50), stage.system))

    class Heard(FileQuestions):
        def items(self):
            ask = [Conversation((user(Media(str(path), stream), "what?"),), id=path.name) for path in (sound, broken)]
            return tuple(Item(a.id, "kind", a.id, a, "yes") for a in ask)

    evaluation = evaluate(model, Heard(FileQuestions.Config()), EvaluationSettings(sampling=Sampling(max_new_tokens=2)))
    assert [(record.id, broken.name in record.error) for record in evaluation.failed()] == [(broken.name, True)]
    assert [record.id for record in evaluation.failed(BLIND)] == [sound.name]


# dual encoders


@pytest.fixture(scope="module")
def embedder():
    recipe = tiny_recipe("clip")
    torch.manual_seed(0)
    return Embedder(recipe.system.build().eval(), recipe.processor.build(tiny_tokenizer(20), recipe.system))


def test_a_dual_encoder_classifies_what_it_can_read(embedder, files):
    class Classified(FileQuestions):
        classes: ClassVar = {"colour": Classes(("red", "green", "blue", "white"))}

        def items(self):
            return tuple(replace(i, conversation=replace(i.conversation, meta={"classes": "colour"})) for i in super().items())

    benchmark = Classified(FileQuestions.Config(folder=str(files)))
    evaluation = evaluate(ZeroShotModel(embedder, benchmark.classes), benchmark)
    assert [record.id for record in evaluation.failed()] == list(BROKEN)
    assert all(record.reply for record in evaluation.runs[MODEL] if record.id not in BROKEN)


def test_a_search_goes_on_among_what_can_be_read(embedder, files):
    media = [Media(str(files / f"{number}.png")) for number in range(5)]
    model = RetrievalModel(embedder, Pairs.of((medium, f"text {number}") for number, medium in enumerate(media)))

    def search(way, number):
        (found,) = model.generate([Conversation((user("?"),), meta={"query": (way, number)})], Sampling())
        return sorted(found.text.replace(" = ", " > ").split(" > "))

    assert search(TO_MEDIA, 3) == ["0", "1", "2", "4"] and search(TO_TEXT, 4) == ["0", "1", "2", "3", "4"]
    with pytest.raises(UnreadableMedium, match=r"3\.png"):
        search(TO_TEXT, 3)
