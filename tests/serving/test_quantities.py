"""Counts as people read them."""

import pytest

from weft.serving.quantities import count, percent, short, size_of_memory


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 FLOP"), (999, "999 FLOP"), (15_400_000, "15.4 MFLOP"), (9.8e12, "9.8 TFLOP"), (2e21, "2e+03 EFLOP")],
)
def test_a_decimal_prefix_and_three_digits(number, text):
    assert short(number, "FLOP") == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.00 KiB"),
        (700, "0.68 KiB"),
        (2**20, "1.00 MiB"),
        (83_918_848, "80.0 MiB"),
        (167_837_696, "0.16 GiB"),
        (42_377_416_704, "39.5 GiB"),
        (18_312 * 2**30, "17.9 TiB"),
    ],
)
def test_memory_in_the_unit_that_tells(number, text):
    assert size_of_memory(number) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1, "100%"), (0.957, "95.7%"), (0.00297, "0.30%"), (0.9999, "100.0%"), (2e-6, "2.0e-06")]
)
def test_a_share_keeps_what_tells(share, text):
    assert percent(share) == text


def test_counts_keep_every_digit():
    assert count(7_062_902_784) == "7,062,902,784"
