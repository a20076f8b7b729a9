"""The report: self-contained, well-formed, complete, honest about what is missing, and safe whatever a model replied."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from weft.core.conversation import Conversation, Media, Region, user
from weft.core.errors import DataError
from weft.evaluation.benchmark import Item
from weft.evaluation.evaluation import BLIND, MODEL, MOST_FREQUENT, TEXT_ONLY, Evaluation
from weft.evaluation.records import Record
from weft.evaluation.report import (
    Curve,
    Exhibit,
    Gaze,
    Part,
    ReportContent,
    RunFacts,
    StageFacts,
    Weave,
    read_curves,
    write_report,
)
from weft.evaluation.report.curves import averaged, nice_ticks
from weft.evaluation.report.drawing import DARK, LIGHT, Drawing, _font
from weft.evaluation.report.exhibits import choose_exhibits
from weft.evaluation.report.page import page
from weft.evaluation.report.pictures import heat_map, shares
from weft.evaluation.report.words import count, duration, headline, memory

HOSTILE = "<script>alert(1)</script>\"'&\x00\x1b <img src=http://evil.example/x onerror=y>"
PICTURE = np.arange(64 * 64 * 3, dtype=np.int64).reshape(64, 64, 3).astype(np.uint8)
SECTIONS = ("verdict", "weave", "curves", "accuracy", "gallery", "attention", "method")
VOID = {"meta", "br", "img", "link", "input", "hr"}


def run(share: float, types: tuple[str, ...] = ("count", "box"), num: int = 40) -> tuple[Record, ...]:
    return tuple(
        Record(f"{t}-{i}", t, f"{t}-{i}", "How many?", "7", HOSTILE if i == 0 else "7", float(i < share * num))
        for t in types
        for i in range(num)
    )


def evaluation(model: float = 0.9, blind: float = 0.2) -> Evaluation:
    runs = {MODEL: run(model), BLIND: run(blind), TEXT_ONLY: run(0.15), MOST_FREQUENT: run(0.1), "a rule": run(0.5, ("count",))}
    return Evaluation("desk", runs, {"count": "Count & name"}, {"model": "abc"}, {"held_out": "Nothing is shared."})


def full(text: str = "a red 7") -> ReportContent:
    part = Part("image encoder", text, 790_000)
    weave = Weave(
        picture=PICTURE,
        grid=(8, 8),
        encoder=part,
        projector=replace(part, name="projector"),
        language_model=replace(part, name="language model"),
        num_media_tokens=576,
        question=text,
        num_question_tokens=9,
        answer=text,
        stages=(
            StageFacts(
                "align", text, {"image encoder": "frozen", "projector": "trained", "text tower": "trained"}, 100, 3200, 44.0
            ),
        ),
    )
    exhibit = Exhibit(PICTURE, "count", text, text, text, 0.0, (0.1, 0.1, 0.5, 0.5), (0.2, 0.2, 0.1, 0.9), (0.0, 0.0, 1.0, 1.0))
    return ReportContent(
        facts=RunFacts(text, text, 462.0, 120.0, 2_900_000_000, (0, 1), text, "abc", {"torch": text}, text, text),
        evaluation=evaluation(),
        by_seed={0: evaluation(), 1: evaluation(0.8)},
        weave=weave,
        curves=[Curve("align", text, ((1, 3.0), (2, 2.0), (3, 1.0)), ((3, 1.2),)), Curve("empty", text, ())],
        exhibits=[exhibit, replace(exhibit, score=1.0), replace(exhibit, score=0.5, reply="")],
        gazes=[Gaze(PICTURE, text, (text, "7"), np.ones((2, 4, 4)), text, 1.0, 3.1e-6)],
    )


class Outline(HTMLParser):
    """Reads a page as a browser's parser would and keeps its elements; fails on what is not closed or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def test_the_page_refers_to_nothing_outside_itself():
    text = page(full())
    outline = Outline(text)
    assert {tag for tag, _ in outline.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in outline.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,"), (tag, name)
        assert not [name for name in attributes if name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert "http://" not in text and "https://" not in text


def test_every_section_is_there_and_tells_what_its_figure_means():
    outline = Outline(page(full()))
    ids = [attributes["id"] for tag, attributes in outline.elements if tag in ("section", "header")]
    assert tuple(ids) == SECTIONS
    words = " ".join(outline.words)
    for told in (
        "90.0%",
        "20.0%",
        "7 min 42 s",
        "2.90 GB",
        "0, 1",
        "576 image tokens",
        "95% interval",
        "3.1e-06",
        "Nothing is shared.",
    ):
        assert told in words, told
    assert words.count("wrong") >= 1 and words.count("right") >= 1 and "50% right" in words and "(empty)" in words


def test_the_page_follows_the_readers_colours_and_fits_a_phone():
    text = page(full())
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text and "max-width:820px" in text
    assert set(LIGHT) == set(DARK)
    used = set(re.findall(r'[" ][fs]-([a-z]+)', text)) - {"none"}
    assert used <= set(LIGHT)


def test_drawings_are_well_formed_and_told_to_those_who_cannot_see_them():
    drawings = re.findall(r"<svg.*?</svg>", page(full(HOSTILE)), re.DOTALL)
    assert len(drawings) > 12
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("aria-label") or root.get("aria-hidden") == "true"


def test_hostile_text_stays_text_wherever_it_comes_from():
    text = page(full(HOSTILE))
    outline = Outline(text)
    assert {tag for tag, _ in outline.elements}.isdisjoint({"script", "img"})
    assert "&lt;script&gt;" in text and "\x00" not in text and "\x1b" not in text
    assert any("<script>alert(1)</script>" in words for words in outline.words)


def test_what_is_absent_is_said_and_not_drawn():
    bare = ReportContent(RunFacts("x"), Evaluation("desk", {MODEL: run(0.5)}))
    outline = Outline(page(bare))
    words = " ".join(outline.words)
    for told in ("no description of the parts", "no metrics", "no answers to show", "no attention maps", "None was measured"):
        assert told in words, told
    assert "nan" not in words.lower().split()


@pytest.mark.parametrize(
    ("model", "blind", "verdict"), [(0.9, 0.2, "It sees."), (0.3, 0.2, "It sees a little."), (0.2, 0.2, "It does not see yet.")]
)
def test_the_verdict_follows_the_paired_gain_over_shuffled_pictures(model, blind, verdict):
    told = headline(evaluation(model, blind))
    assert told.startswith(verdict) and f"{100 * model:.1f}%" in told and f"{100 * blind:.1f}%" in told


def test_the_report_writes_its_page_and_a_picture_of_every_figure(tmp_path):
    path = write_report(full(), tmp_path / "deep" / "report")
    names = {file.name for file in path.parent.iterdir()}
    figures = {"verdict", "accuracy", "weave", "loss-align", "loss-empty", "gallery", "attention"}
    assert names == {"report.html", *(f"{name}.png" for name in figures)}
    for name in figures:
        with Image.open(path.parent / f"{name}.png") as picture:
            assert min(picture.size) > 100
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 3  # something was drawn


def test_a_stage_name_cannot_leave_the_folder(tmp_path):
    content = replace(full(), curves=[Curve("../../up", "x", ((1, 1.0),))])
    write_report(content, tmp_path / "report")
    assert not (tmp_path / "up.png").exists() and (tmp_path / "report" / "loss-------up.png").exists()


def test_curves_take_the_later_of_repeated_steps_and_forgive_a_torn_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"stage": "align", "kind": "train", "step": 1, "loss": 3.0}\n'
        '{"stage": "align", "kind": "train", "step": 2, "loss": 9.0}\n'
        '{"stage": "align", "kind": "validation", "step": 2, "loss": 2.5}\n'
        '{"stage": "align", "kind": "train", "step": 2, "loss": 2.0}\n'
        '{"stage": "tune", "kind": "train", "step": 1, "loss": NaN}\n'
        '{"stage": "tune", "ki'
    )
    align, tune = read_curves(path, {"align": "Stage 1"})
    assert (align.title, align.train, align.validation) == ("Stage 1", ((1, 3.0), (2, 2.0)), ((2, 2.5),))
    assert tune.train == ()
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_curves(tmp_path / "absent")


def test_averages_keep_the_mean_and_ticks_are_round():
    points = tuple((float(i), float(i % 5)) for i in range(1, 1001))
    means = averaged(points, 100)
    assert len(means) == 100 and means[-1][0] == 1000.0 and all(loss == 2.0 for _, loss in means)
    assert (
        nice_ticks(4.2) == [0, 1, 2, 3, 4, 5] and nice_ticks(0.9) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and nice_ticks(0.0) == [0, 1]
    )


def test_the_gallery_takes_the_first_right_and_the_first_wrong_of_each_type():
    conversation = Conversation((user(Media(PICTURE), "What is at ", Region((0.1, 0.2, 0.3, 0.4)), "?"),))
    items = [Item(f"{t}{i}", t, f"{t}{i}", conversation, (0.0, 0.0, 0.5, 0.5)) for t in ("a", "b") for i in range(4)]
    marks = {"a0": 0.0, "a1": 0.5, "a2": 1.0, "a3": 1.0, "b0": 1.0, "b1": 1.0, "b2": 1.0, "b3": 1.0}
    records = [Record(i.id, i.type, i.group, i.id, "", "reply", marks[i.id]) for i in items]
    chosen = choose_exhibits(items, records, lambda text: (0.25, 0.25, 0.5, 0.5))
    assert [exhibit.question for exhibit in chosen] == ["a2", "a0", "b0"]
    assert chosen[0].reply == "[0.25, 0.25, 0.50, 0.50]" and chosen[0].asked_box == (0.1, 0.2, 0.3, 0.4)


def test_a_heat_map_is_deepest_where_the_model_looked_and_ink_shows_through():
    attention = np.zeros((4, 4))
    attention[1, 2] = 1.0
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    tinted = heat_map(white, shares(attention))
    assert (tinted[:16] == 255).all() and (tinted[16:32, 32:48, 2] < 60).all()
    white[20, 36] = 0
    assert heat_map(white, shares(attention))[20, 36].max() < tinted[20, 36].max() / 2


def test_shares_sum_to_one_and_survive_what_is_no_attention():
    assert shares(np.array([[1.0, 3.0]])).tolist() == [[0.25, 0.75]]
    for broken in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.full((2, 2), -1.0)):
        assert shares(broken).tolist() == [[0.25, 0.25], [0.25, 0.25]]
    with pytest.raises(DataError, match="attention maps"):
        Gaze(PICTURE, "?", ("a", "b"), np.ones((1, 4, 4)))


def test_a_png_has_the_colours_of_its_drawing(tmp_path):
    drawing = Drawing(40, 20, "a blue card")
    drawing.rectangle(0, 0, 40, 20, "blue")
    with Image.open(drawing.png(tmp_path / "card.png", scale=1, colours=DARK)) as picture:
        assert picture.size == (40 + 48, 20 + 48)
        assert picture.getpixel((44, 34)) == tuple(bytes.fromhex(DARK["blue"][1:]))


def test_figures_are_drawn_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _font.cache_clear()
    drawing = Drawing(120, 40, "a word")
    drawing.text(10, 30, "weft – 95%", 20, bold=True)
    with Image.open(drawing.png(tmp_path / "word.png")) as picture:
        assert len(picture.convert("L").getcolors(256)) > 10  # letters with soft edges
    _font.cache_clear()


def test_figures_read_as_people_write_them():
    assert [count(n) for n in (7_062_902_784, 1_660_000, 98_000, 64)] == ["7.06 B", "1.66 M", "98.0 k", "64"]
    assert [duration(s) for s in (0.81, 59.6, 462, 11_100)] == ["0.8 s", "1 min 0 s", "7 min 42 s", "3 h 5 min"]
    assert [memory(b) for b in (2.91e9, 3.2e8)] == ["2.91 GB", "320 MB"]
