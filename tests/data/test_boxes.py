"""Regions as text and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.core.errors import ConfigError
from weft.data.boxes import BinnedBoxes, BracketedBoxes, FractionBoxes, ThousandthBoxes
from weft.recipes.catalogue import recipe

fractions = st.floats(0.0, 1.0)
sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))


def test_fractions_are_written_as_llava_1_5_writes_them():
    assert FractionBoxes().render((0.123, 0.3, 1.0, 0.786)) == "[0.12, 0.3, 1.0, 0.79]"


def test_the_padded_square_frame_of_llava_1_5():
    # 640 x 480 with 80 pixels of padding above and below; the pixel box (64, 48, 320, 240)
    box = (64 / 640, 48 / 480, 320 / 640, 240 / 480)
    assert FractionBoxes(square=True).render(box, (640, 480)) == "[0.1, 0.2, 0.5, 0.5]"


@given(box=st.tuples(fractions, fractions, fractions, fractions), size=sizes)
def test_square_boxes_come_back_within_half_a_hundredth_of_the_longer_side(box, size):
    boxes = FractionBoxes(square=True)
    found = boxes.parse(boxes.render(box, size), size)
    longer = max(size)
    for number, (told, read) in enumerate(zip(box, found, strict=True)):
        # half of the last decimal, in units of the longer side; float rounding below 1e-9
        assert abs(told - read) * size[number % 2] <= 0.005 * longer + 1e-9 * longer


@given(box=st.tuples(fractions, fractions, fractions, fractions))
def test_fractions_come_back_within_half_of_the_last_decimal(box):
    found = FractionBoxes(decimals=3).parse("It is at " + FractionBoxes(decimals=3).render(box) + ".")
    assert max(abs(a - b) for a, b in zip(box, found, strict=True)) <= 0.0005 + 1e-9  # float rounding


@given(box=st.tuples(fractions, fractions, fractions, fractions), bins=st.integers(2, 1000))
def test_bins_come_back_within_half_a_bin(box, bins):
    boxes = BinnedBoxes(bins=bins)
    found = boxes.parse(boxes.render(box))
    assert max(abs(a - b) for a, b in zip(box, found, strict=True)) <= 0.5 / bins + 1e-9  # float rounding


def test_bins_are_the_tokens_that_the_tokenizer_is_given():
    boxes = BinnedBoxes()
    assert boxes.special_tokens[0] == "<b00>" and boxes.special_tokens[-1] == "<b31>" and len(boxes.special_tokens) == 32
    assert boxes.render((0.0, 0.5, 0.999, 1.0)) == "<b00><b16><b31><b31>"
    assert BinnedBoxes(bins=1000).special_tokens[7] == "<b007>"


def test_thousandths_are_written_as_qwen_vl_writes_them():
    assert ThousandthBoxes().render((0.1239, 0.3, 1.0, 0.786)) == "<box>(123,300),(999,786)</box>"
    assert ThousandthBoxes().special_tokens == ("<ref>", "</ref>", "<box>", "</box>")
    assert ThousandthBoxes(edge=1000).parse("<ref>a cat</ref><box>(120,340),(560,780)</box><box>(1,2),(3,4)</box>") == (
        0.12,
        0.34,
        0.56,
        0.78,
    )


def test_the_published_evaluation_of_qwen_vl_reads_999_as_the_edge():
    """Numbers over 999, then times the picture's size in pixels; the data is written in thousandths."""
    assert ThousandthBoxes().parse("<box>(0,333),(666,999)</box>") == (0.0, 1 / 3, 2 / 3, 1.0)
    assert recipe("qwen-vl").processor.boxes == ThousandthBoxes(edge=999)
    with pytest.raises(ConfigError, match="999 or as 1000, got 1024"):
        ThousandthBoxes(edge=1024)


def test_brackets_are_written_as_cogvlm_writes_them():
    assert BracketedBoxes().render((0.0129, 0.3, 1.0, 0.786)) == "[[012,300,999,786]]"
    assert BracketedBoxes().parse("a cat [[120,340,560,780;001,002,003,004]] and [[1,2,3,4]]") == (0.12, 0.34, 0.56, 0.78)
    assert BracketedBoxes().parse("at [[250,500]]") == (0.25, 0.5)
    assert recipe("cogvlm").processor.boxes == BracketedBoxes()


WHOLE_PICTURES = [ThousandthBoxes(), ThousandthBoxes(edge=1000), BracketedBoxes()]


@pytest.mark.parametrize("boxes", WHOLE_PICTURES, ids=str)
@given(box=st.tuples(fractions, fractions, fractions, fractions), size=sizes)
def test_thousandths_come_back_within_one_thousandth(boxes, box, size):
    found = boxes.parse("It is at " + boxes.render(box, size) + ".", size)
    assert max(abs(a - b) for a, b in zip(box, found, strict=True)) <= 0.001 + 1e-9  # float rounding


@pytest.mark.parametrize("text", ["[[1,2,3,4]]", "[120,340,560,780]", "[[120,340,560]]", "[[0.1,0.2,0.3,0.4]]", "[["])
def test_text_without_a_box_of_cogvlm_gives_none(text):
    assert BracketedBoxes().parse(text) is None


@pytest.mark.parametrize(
    "text", ["(1,2),(3,4)", "<box>(1,2),(3)</box>", "<box>1,2,3,4</box>", "<box>(1,2),(3,4),(5,6)</box>", "<box>"]
)
def test_text_without_a_box_of_qwen_vl_gives_none(text):
    assert ThousandthBoxes().parse(text) is None


@pytest.mark.parametrize("text", ["", "no box", "[0.1]", "[0.1, 0.2, 0.3]", "[a, b]", "<b01><b02><b03>", "[0.1 0.2]", "<b>"])
def test_text_without_a_box_gives_none(text):
    assert FractionBoxes().parse(text) is None
    assert BinnedBoxes().parse(text) is None


def test_points_and_later_boxes_are_found():
    assert FractionBoxes().parse("[1] see [0.25, 0.5]") == (0.25, 0.5)
    assert BinnedBoxes(bins=4).parse("at <b00><b03>") == (0.125, 0.875)
    assert BinnedBoxes(bins=4).parse("<b09><b00><b00><b00>") is None, "a bin that does not exist"


def test_one_bin_is_no_position():
    with pytest.raises(ConfigError, match="at least 2 bins"):
        BinnedBoxes(bins=1)
