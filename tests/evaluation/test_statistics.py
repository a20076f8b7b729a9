"""Intervals against cases worked by hand or taken from the literature."""

from __future__ import annotations

import math

import pytest

from weft.core.errors import DataError
from weft.evaluation.statistics import Marks, median, of_type, over_types, wilson

Z2 = 1.959963984540054**2


def marks(*values: float, groups: list[str] | None = None) -> Marks:
    return Marks(values, tuple(groups or map(str, range(len(values)))))


def test_wilson_equals_the_published_case():
    # 81 of 263: the score interval without correction of Newcombe, 1998, table I, doi:10.1002/(SICI)1097-0258
    low, high = wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_wilson_at_the_ends_follows_the_closed_form():
    assert wilson(0, 10) == (0.0, pytest.approx(Z2 / (10 + Z2)))
    assert wilson(10, 10) == (pytest.approx(10 / (10 + Z2)), 1.0)
    with pytest.raises(DataError):
        wilson(0, 0)


def test_a_type_of_independent_answers_gets_wilson():
    estimate = of_type(marks(*[1.0] * 81, *[0.0] * 182))
    assert (estimate.value, estimate.num) == (81 / 263, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)


def test_questions_about_one_picture_count_as_one():
    """Pairs that are right or wrong together carry half the evidence: the interval is that of half as many answers."""
    values = [1.0] * 100 + [0.0] * 100
    paired = of_type(marks(*values, groups=[str(i // 2) for i in range(200)]))
    alone = of_type(marks(*values))
    ratio = (paired.high - paired.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(2), rel=0.05)  # 4,000 resamples give the width to about 2%


def test_mirrored_pairs_with_one_right_each_leave_no_doubt():
    values = [1.0, 0.0] * 50
    estimate = of_type(marks(*values, groups=[str(i // 2) for i in range(100)]))
    assert (estimate.low, estimate.value, estimate.high) == (0.5, 0.5, 0.5)


def test_equal_marks_do_not_claim_certainty():
    estimate = of_type(marks(0.5, 0.5, 0.5, 0.5))
    assert estimate.value == 0.5 and estimate.low < 0.3 and estimate.high > 0.7
    perfect = of_type(marks(*[1.0] * 20, groups=[str(i // 2) for i in range(20)]))
    assert perfect.low == pytest.approx(10 / (10 + Z2))  # ten pictures, not twenty


def test_fractional_marks_get_the_normal_width():
    values = [i / 99 for i in range(100)]
    estimate = of_type(marks(*values))
    deviation = math.sqrt(sum((v - 0.5) ** 2 for v in values) / 100)
    assert estimate.value == pytest.approx(0.5)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * deviation / 10, rel=0.05)


def test_the_mean_over_types_weighs_types_and_not_answers():
    estimate = over_types({"easy": marks(*[1.0] * 90), "hard": marks(*[0.0] * 10)})
    assert (estimate.value, estimate.num) == (0.5, 100)


def test_the_mean_over_types_has_the_width_of_its_strata():
    first = [1.0] * 50 + [0.0] * 50
    second = [1.0] * 80 + [0.0] * 20
    estimate = over_types({"a": marks(*first), "b": marks(*second, groups=[f"other {i}" for i in range(100)])})
    variance = (0.25 / 100 + 0.16 / 100) / 4
    assert estimate.value == pytest.approx(0.65)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.06)


@pytest.mark.parametrize("right", [50, 100])
def test_the_same_pictures_asked_twice_alike_tell_no_more_than_once(right):
    values = marks(*[1.0] * right, *[0.0] * (100 - right))
    once, twice = over_types({"a": values}), over_types({"a": values, "b": values})
    assert (once.low, once.value, once.high) == (twice.low, twice.value, twice.high)


def test_a_perfect_exam_leaves_doubt_and_a_difference_of_nothing_leaves_none():
    other = [f"other {i}" for i in range(100)]
    perfect = over_types({"a": marks(*[1.0] * 100), "b": marks(*[1.0] * 100, groups=other)})
    assert perfect.value == perfect.high == 1.0 and 0.96 < perfect.low < 0.99
    same = over_types({"a": marks(*[0.0] * 100)}, differences=True)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)


def test_intervals_are_the_same_every_time():
    values = marks(*[0.1 * (i % 7) for i in range(40)])
    assert of_type(values) == of_type(values)
    assert over_types({"a": values}) == over_types({"a": values})


def test_marks_need_a_group_each():
    with pytest.raises(DataError, match="2 marks and 1 groups"):
        Marks((1.0, 0.0), ("a",))
    with pytest.raises(DataError):
        over_types({})


def test_median():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([1.0, 2.0]) == 1.5
