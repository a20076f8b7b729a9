"""The desk's benchmarks of sounds and films: the truth gets full marks, other answers none, and shuffling swaps the media."""

import pytest

from weft.core.errors import ConfigError
from weft.evaluation.benchmark import shuffled
from weft.evaluation.benchmarks.desk_listening import DeskListeningBenchmark
from weft.evaluation.benchmarks.desk_watching import DeskWatchingBenchmark

BENCHMARKS = {
    "speech": DeskListeningBenchmark.Config(num_per_type=3),
    "speech and picture": DeskListeningBenchmark.Config(num_per_type=3, kind="speech_and_picture"),
    "films": DeskWatchingBenchmark.Config(num_per_type=3),
}
each = pytest.mark.parametrize("name", BENCHMARKS)


def read_box(text):
    return None


@each
def test_the_truth_has_full_marks_and_everything_else_none(name):
    benchmark = BENCHMARKS[name].build()
    for item in benchmark.items():
        truth = str(item.truth)
        assert benchmark.score(item, f" {truth.upper()}. ", read_box) == 1.0
        for wrong in ("", f"{truth} {truth}", f"not {truth}", "yes" if truth == "no" else "no", "I cannot hear or see."):
            assert benchmark.score(item, wrong, read_box) == 0.0


@each
def test_items_are_the_same_on_every_call_and_titled(name):
    first, second = (BENCHMARKS[name].build() for _ in range(2))
    assert [(item.id, item.truth) for item in first.items()] == [(item.id, item.truth) for item in second.items()]
    types = {item.type for item in first.items()}
    assert types <= set(first.titles) and len(first.items()) == 3 * len(types)
    assert set(first.most_frequent()) == types


@each
def test_shuffled_every_question_has_the_media_of_another_in_its_own_order(name):
    items = BENCHMARKS[name].build().items()
    for item, other in zip(items, shuffled(items), strict=True):
        ours, theirs = (list(each.conversation.media()) for each in (item, other))
        assert [medium.stream for medium in ours] == [medium.stream for medium in theirs]
        assert all(mine.source is not swapped.source for mine, swapped in zip(ours, theirs, strict=True))
        assert item.truth == other.truth and item.id == other.id


@each
def test_the_commonest_answer_is_one_that_training_gives(name):
    answers = BENCHMARKS[name].build().most_frequent()
    for type in {"presence", "order", "shown"} & set(answers):
        assert answers[type] in ("yes", "no")
    for type in {"count"} & set(answers):
        assert answers[type] in ("1", "2", "3")


def test_too_few_questions_and_unknown_types_are_refused():
    with pytest.raises(ConfigError, match="at least 2 questions"):
        DeskListeningBenchmark.Config(num_per_type=1)
    with pytest.raises(ConfigError, match="at least 2 questions"):
        DeskWatchingBenchmark.Config(num_per_type=1)
    with pytest.raises(ConfigError, match="did you mean 'transcript'"):
        DeskListeningBenchmark.Config(types=("transcirpt",)).build().items()
