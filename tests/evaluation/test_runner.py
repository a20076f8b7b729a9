"""Evaluation: the oracle gets full marks, batches and resumption change no answer, baselines are what they say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from weft.core.conversation import Media, Region, Text
from weft.core.errors import ConfigError, RunError
from weft.data.boxes import FractionBoxes
from weft.data.desk.questions import QUESTIONS
from weft.data.processor import Processor
from weft.evaluation.benchmark import Item, question_text, shuffled, without_media
from weft.evaluation.benchmarks.desk import RANDOM_COLOUR, DeskBenchmark
from weft.evaluation.evaluation import BLIND, MODEL, MOST_FREQUENT, TEXT_ONLY, Evaluation, load_evaluation
from weft.evaluation.runner import EvaluationSettings, evaluate, fingerprint
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.recipes.desk import BOXES, CHAT, SEEING, tokenizer

BENCHMARK = DeskBenchmark.Config(num_per_type=10).build()
FULL = DeskBenchmark.Config().build()


@dataclass
class Answers:
    """A stand-in for a model: it knows answers by conversation id, and counts what it was asked."""

    by_id: dict[str, str]
    asked: list[str] = field(default_factory=list)
    stop_after: int | None = None
    boxes: FractionBoxes = FractionBoxes(decimals=4)

    @property
    def processor(self) -> SimpleNamespace:
        return SimpleNamespace(config=Processor.Config(boxes=self.boxes))

    @property
    def system(self) -> torch.nn.Module:
        return torch.nn.Linear(2, 2).requires_grad_(False).apply(lambda m: torch.nn.init.ones_(m.weight) + m.bias.zero_().sum())

    def generate(self, conversations, settings, *, batch_size):
        assert batch_size > 0 and settings.greedy
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += [c.id for c in conversations]
        return [SimpleNamespace(text=self.by_id.get(c.id, "")) for c in conversations]


def truths(items: tuple[Item, ...]) -> dict[str, str]:
    boxes = FractionBoxes(decimals=4)
    return {i.conversation.id: i.truth if isinstance(i.truth, str) else boxes.render(i.truth) for i in items}


def oracle(benchmark: DeskBenchmark = BENCHMARK, **more) -> Answers:
    return Answers(truths(benchmark.items()), **more)


def scores(evaluation: Evaluation, run: str = MODEL) -> dict[str, float]:
    return {type: evaluation.by_type(type, run).value for type in evaluation.types if evaluation.by_type(type, run)}


def test_the_desk_exam_has_1600_questions_of_16_types_and_one_picture_per_group():
    items = FULL.items()
    assert len(items) == 1600 and len({item.id for item in items}) == 1600
    assert {item.type for item in items} == set(QUESTIONS) == set(FULL.titles)
    pictures: dict[str, bytes] = {}
    for item in items:
        picture = next(item.conversation.media()).source.tobytes()
        assert pictures.setdefault(item.group, picture) == picture
    mirrored = [item for item in items if item.type == "left_of"]
    assert len({item.group for item in mirrored}) == len(mirrored) / 2


def test_the_oracle_gets_full_marks_and_an_empty_answer_none():
    evaluation = evaluate(oracle(), BENCHMARK, EvaluationSettings(blind=False))
    assert set(scores(evaluation).values()) == {1.0}
    assert evaluation.mean().value == 1.0 and evaluation.mean().low < 1.0
    silent = evaluate(Answers({}), BENCHMARK, EvaluationSettings(blind=False))
    assert silent.mean().value == 0.0


def test_constant_answers_get_the_value_that_the_exam_was_made_for():
    yes = evaluate(Answers(dict.fromkeys(truths(FULL.items()), "Yes.")), FULL, EvaluationSettings(blind=False))
    assert scores(yes)["left_of"] == 0.5  # mirrored pairs: exactly one of the two
    asked = [item for item in FULL.items() if item.type == "presence"]
    assert scores(yes)["presence"] == sum(item.truth == "yes" for item in asked) / 100
    assert scores(yes)["name_single"] == scores(yes)["box"] == 0.0


def test_answers_one_pixel_beside_the_box_count_and_boxes_elsewhere_do_not():
    box = next(item for item in BENCHMARK.items() if item.type == "box")
    read = FractionBoxes(decimals=4).parse
    x1, y1, x2, y2 = box.truth
    write = FractionBoxes(decimals=4).render
    assert BENCHMARK.score(box, write((x1, y1, x2 - 1 / 64, y2)), read) == 1.0
    half = (x1, y1, x1 + 0.49 * (x2 - x1), y2)
    assert BENCHMARK.score(box, write(half), read) == 0.0
    assert BENCHMARK.score(box, "it is on the left", read) == 0.0
    assert BENCHMARK.score(box, "[0.2, 0.3]", read) == 0.0  # a point is no box


def test_baselines_stand_beside_the_model_on_the_same_questions():
    evaluation = evaluate(oracle(), BENCHMARK, text_only=Answers({}))
    assert evaluation.baselines == (TEXT_ONLY, BLIND, MOST_FREQUENT, RANDOM_COLOUR)
    ids = [record.id for record in evaluation.runs[MODEL]]
    assert all([r.id for r in evaluation.runs[run]] == ids for run in (TEXT_ONLY, BLIND, MOST_FREQUENT))
    assert evaluation.mean(TEXT_ONLY).value == 0.0 and evaluation.gain(TEXT_ONLY).value == 1.0
    assert 0.0 < evaluation.mean(MOST_FREQUENT).value < 0.3
    assert evaluation.mean(RANDOM_COLOUR) is None and evaluation.gain(RANDOM_COLOUR) is None
    assert 0.25 <= evaluation.by_type("colour_of_digit", RANDOM_COLOUR).value <= 1.0
    assert evaluation.by_type("count", RANDOM_COLOUR) is None


def test_shuffling_gives_every_question_a_picture_of_its_own_type_and_not_its_own():
    items = FULL.items()
    by_picture = {next(item.conversation.media()).source.tobytes(): item.type for item in items}
    for item, other in zip(items, shuffled(items), strict=True):
        assert (item.id, item.truth) == (other.id, other.truth)
        assert question_text(item.conversation) == question_text(other.conversation)
        picture = next(other.conversation.media()).source
        assert not np.array_equal(picture, next(item.conversation.media()).source)
        assert by_picture[picture.tobytes()] == item.type
    used = [next(other.conversation.media()).source.tobytes() for other in shuffled(items)]
    assert sorted(used) == sorted(next(item.conversation.media()).source.tobytes() for item in items)


def test_a_text_only_model_is_asked_without_pictures_and_with_regions_in_words():
    asked = without_media(BENCHMARK.items(), BOXES.render)
    parts = [part for item in asked for message in item.conversation.messages for part in message.parts]
    assert all(isinstance(part, Text) for part in parts)
    refer = next(item for item in asked if item.type == "refer")
    assert "<b" in question_text(refer.conversation)
    before = [p for i in BENCHMARK.items() for m in i.conversation.messages for p in m.parts]
    assert any(isinstance(p, Media) for p in before) and any(isinstance(p, Region) for p in before)


def test_an_interrupted_evaluation_goes_on_and_equals_a_straight_one(tmp_path):
    straight = evaluate(oracle(), BENCHMARK, EvaluationSettings(folder=tmp_path / "straight"))
    cut = oracle(stop_after=128)
    with pytest.raises(KeyboardInterrupt):
        evaluate(cut, BENCHMARK, EvaluationSettings(folder=tmp_path / "cut"))
    path = tmp_path / "cut" / "model.jsonl"
    path.write_bytes(path.read_bytes()[:-7])  # and the kill tore the last line
    again = oracle()
    resumed = evaluate(again, BENCHMARK, EvaluationSettings(folder=tmp_path / "cut"))
    for run in straight.runs:
        assert [replace(r, seconds=0.0) for r in resumed.runs[run]] == [replace(r, seconds=0.0) for r in straight.runs[run]]
    assert len(again.asked) == 160 - 128 + 64 + 160  # the torn portion once more, then the blind run
    finished = Answers({})
    evaluate(finished, BENCHMARK, EvaluationSettings(folder=tmp_path / "cut"))
    assert finished.asked == []


def test_a_saved_evaluation_is_read_back(tmp_path):
    evaluation = evaluate(oracle(), BENCHMARK, EvaluationSettings(folder=tmp_path))
    again = load_evaluation(tmp_path)
    assert again.runs == dict(evaluation.runs)
    assert again.summary() == evaluation.summary()


def test_answers_of_other_settings_are_refused(tmp_path):
    evaluate(oracle(), BENCHMARK, EvaluationSettings(folder=tmp_path, blind=False))
    with pytest.raises(RunError, match="different: sampling"):
        evaluate(oracle(), BENCHMARK, EvaluationSettings(folder=tmp_path, sampling=Sampling(max_new_tokens=3)))
    other = DeskBenchmark.Config(num_per_type=12).build()
    with pytest.raises(RunError, match="different: benchmark_config"):
        evaluate(oracle(other), other, EvaluationSettings(folder=tmp_path))


def test_progress_counts_every_run_to_its_end():
    told: list[tuple[str, int, int]] = []
    evaluate(oracle(), BENCHMARK, progress=lambda *step: told.append(step))
    assert told[0] == (MODEL, 0, 160) and (MODEL, 160, 160) in told and told[-1] == (BLIND, 160, 160)


def test_a_fingerprint_tells_weights_apart():
    torch.manual_seed(0)
    first, second = torch.nn.Linear(70, 70), torch.nn.Linear(70, 70)
    assert fingerprint(first) != fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(second)


def test_an_exam_of_one_question_is_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        DeskBenchmark.Config(num_per_type=1)


@pytest.fixture(scope="module")
def tiny_model() -> Model:
    torch.manual_seed(0)
    small = replace(SEEING, language_model=replace(SEEING.language_model, num_layers=1))
    system = small.build()
    with torch.no_grad():  # a random head is nearly flat: spread the logits, so that rounding cannot turn a choice
        for parameter in system.language_model.parameters():
            parameter.mul_(3.0)
    return Model(system, CHAT.build(tokenizer(60), small))


def test_the_batch_size_changes_no_answer(tiny_model):
    benchmark = DeskBenchmark.Config(num_per_type=3, types=("count", "box", "refer", "read", "left_of")).build()
    replies = {}
    for batch_size in (1, 7, 32):
        settings = EvaluationSettings(batch_size=batch_size, sampling=Sampling(max_new_tokens=6), blind=False)
        evaluation = evaluate(tiny_model, benchmark, settings)
        replies[batch_size] = [(r.id, r.reply, r.score) for r in evaluation.runs[MODEL]]
    assert replies[1] == replies[7] == replies[32]
    assert len({reply for _, reply, _ in replies[1]}) > 3  # and it does not say the same to everything
