"""The desk: held-out means held out, the same stream everywhere, balanced questions, exact scoring."""

from __future__ import annotations

import builtins
import hashlib
import time
from collections import Counter

import numpy as np
import pytest

from weft.core.conversation import Media, Region, Text
from weft.core.errors import ConfigError, DataError, WeftError
from weft.data.desk import Desk, DigitObject
from weft.data.desk.blind import blind
from weft.data.desk.draw import draw
from weft.data.desk.preview import preview
from weft.data.desk.questions import QUESTIONS
from weft.data.desk.scans import NUM_SCANS, SPLITS, all_scans, scans_by_value
from weft.data.desk.scene import layout_class
from weft.data.desk.scoring import (
    accuracy,
    constant_accuracy,
    extract,
    fact_share,
    iou,
    most_frequent_answers,
    normalise,
    random_colour_present,
)


def render(box: tuple[float, ...]) -> str:
    return "<" + " ".join(str(c) for c in box) + ">"


def parse(text: str) -> tuple[float, ...] | None:
    return tuple(float(c) for c in text.strip("<>").split()) if text.startswith("<") else None


def digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


def oracle(desk: Desk, num: int = 20) -> tuple[list, list[str]]:
    items = desk.items(num)
    return items, [render(i.truth) if isinstance(i.truth, tuple) else i.truth for i in items]


def test_splits_partition_the_scans():
    parts = [{i for ids in scans_by_value(split) for i in ids} for split in SPLITS]
    assert sum(map(len, parts)) == NUM_SCANS == len(set.union(*parts))
    assert all(len(ids) >= 15 for split in SPLITS for ids in scans_by_value(split))


def test_no_scan_layout_picture_or_draw_is_shared_between_splits():
    hashes: dict[str, dict[str, set[str]]] = {}
    for split in SPLITS:
        found: dict[str, set[str]] = {"scan": set(), "layout": set(), "picture": set(), "draws": set()}
        for seed in (0, 1):
            desk = Desk(split, seed)
            scenes = [desk.scene(i) for i in range(1500)] + [item.scene for item in desk.items(20)]
            for scene in scenes:
                found["scan"] |= {digest(d.scan) for d in scene.digits}
                found["layout"].add(digest(scene.layout))
            found["picture"] |= {hashlib.sha256(draw(scene).tobytes()).hexdigest() for scene in scenes[:300]}
            found["draws"] |= {digest([desk._dice(p, i).uniform() for _ in range(4)]) for p in (0, 1, 2) for i in range(300)}
        hashes[split] = found
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for kind in ("scan", "layout", "picture", "draws"):
            assert hashes[first][kind] and not hashes[first][kind] & hashes[second][kind], (first, second, kind)


def test_every_layout_is_of_a_class_that_its_split_owns():
    owned = {"train": {0, 1}, "validation": {2}, "test": {3}}
    for split in SPLITS:
        assert {layout_class(Desk(split).scene(i).layout) for i in range(300)} == owned[split]


def test_the_stream_is_the_same_on_every_machine():
    desk = Desk("train", seed=5)
    pixels = hashlib.sha256(b"".join(desk.picture(i).tobytes() for i in range(20))).hexdigest()
    words = digest([[q.prompt for q in desk.questions(i)] for i in range(20)])
    assert (pixels[:16], words[:16]) == ("dbce49e515504100", "3f01a9438bce83fd")


def test_pictures_are_rgb_of_the_canvas_asked_for():
    assert Desk("train").picture(0).shape == (64, 64, 3)
    large = Desk("train", canvas=128).picture(0)
    assert large.shape == (128, 128, 3) and large.dtype == np.uint8


def test_things_lie_apart_inside_the_desk_and_inks_tell_digits_apart():
    for i in range(400):
        scene = Desk("train").scene(i)
        assert len({d.ink for d in scene.digits}) == len(scene.digits)
        for number, thing in enumerate(scene.things):
            assert min(thing.box) >= 0.0 and max(thing.box) <= 1.0
            assert all(iou(thing.box, other.box) == 0.0 for other in scene.things[number + 1 :])


def test_a_digit_is_drawn_where_its_box_says():
    desk = Desk("test")
    for i in range(50):
        scene = desk.scene(i)
        picture = draw(scene).astype(int)
        without = draw(type(scene)(scene.digits[1:], scene.shapes, scene.tint, scene.texture)).astype(int)
        changed = np.abs(picture - without).sum(-1) > 40
        ys, xs = np.nonzero(changed)
        seen = (xs.min() / 64, ys.min() / 64, (xs.max() + 1) / 64, (ys.max() + 1) / 64)
        assert iou(seen, scene.digits[0].box) > 0.6


def test_conversations_of_every_kind():
    dialogue = Desk("train", num_turns=6)[3]
    assert isinstance(dialogue.messages[0].parts[0], Media)
    assert all(m.train == (m.role == "assistant") for m in dialogue.messages)
    text = Desk("train", num_turns=6, kind="text", render=render)[3]
    assert all(isinstance(p, Text) for m in text.messages for p in m.parts)
    assert len(text.messages) == len(dialogue.messages)
    caption = Desk("train", kind="caption")[3]
    assert [m.role for m in caption.messages] == ["user", "assistant"]


def test_questions_are_unambiguous_and_boxes_are_regions():
    seen = set()
    for i in range(600):
        desk = Desk("train", 1)
        scene = desk.scene(i)
        for question in desk.questions(i):
            seen.add(question.type)
            if question.type == "box":
                assert isinstance(question.answer[0], Region)
            if question.type == "colour_of_digit":
                assert sum(d.ink == question.truth for d in scene.digits) == 1
            if question.type == "largest":
                heights = sorted(d.box[3] - d.box[1] for d in scene.digits)
                assert heights[-1] - heights[-2] >= 4 / 64
    assert seen == set(QUESTIONS)


def test_constant_answers_do_not_win_where_it_matters():
    items = Desk("test", 3).items(400, ("presence", "left_of", "count", "name_single"))
    shares = {
        type: Counter(i.truth for i in items if i.type == type).most_common(1)[0][1] / 400
        for type in ("presence", "left_of", "count", "name_single")
    }
    assert shares["left_of"] == 0.5
    assert shares["presence"] < 0.56 and shares["count"] < 0.32 and shares["name_single"] < 0.17


def test_the_oracle_gets_full_marks_and_constants_get_little():
    items, truths = oracle(Desk("test"))
    marks = accuracy(items, truths, parse)
    assert set(marks) == {*QUESTIONS, "mean"} and all(mark == 100.0 for mark in marks.values())
    assert accuracy(items, [""] * len(items), parse)["mean"] == 0.0
    assert constant_accuracy(items, most_frequent_answers(100))["mean"] < 25.0
    assert 25.0 < random_colour_present(items) < 75.0


def test_scoring_normalises_and_reads_the_last_number():
    assert normalise("  Yes . ") == "yes" == normalise("yes")
    assert extract("sum_reasoning", "3 7 : 3 + 7 = 10. The sum is 10.") == "10"
    assert extract("sum_reasoning", "I cannot say") == ""
    assert iou((0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0)) == pytest.approx(1 / 3)
    assert iou((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 0.2, 0.1)) == 0.0
    assert fact_share("a red 7 top, a blue 3 left", "a red 7 top, a blue 4 left") == 0.5
    assert fact_share("a red 7 top", "a red 7 top, a red 7 top") == 0.5


def test_blind_items_keep_the_question_and_change_the_picture():
    items = Desk("test").items(6)
    for item, other in zip(items, blind(items), strict=True):
        assert item.truth == other.truth
        assert item.conversation.messages[0].parts[1:] == other.conversation.messages[0].parts[1:]
        pictures = [next(i.conversation.media()).source for i in (item, other)]
        assert not np.array_equal(*pictures)


def test_a_preview_is_a_picture(tmp_path):
    assert preview(Desk("train"), tmp_path / "sheet.png", 2).stat().st_size > 1000


def test_streams_keep_up_with_training():
    desk = Desk("train", 9)
    start = time.perf_counter()
    for i in range(500):
        desk[i]
    assert 500 / (time.perf_counter() - start) > 300  # about 6,000 a second on a quiet core


def test_errors_name_the_way_out(monkeypatch):
    with pytest.raises(ConfigError, match="train, validation, test"):
        Desk("dev")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="render="):
        Desk("train", kind="text")
    with pytest.raises(ConfigError, match="colour_of_digit"):
        Desk("train", mix={"color_of_digit": 1.0})
    with pytest.raises(IndexError):
        Desk("train")[-1]
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    all_scans.cache_clear()
    with pytest.raises(WeftError, match=r"weft\[demo\]"):
        all_scans()
    monkeypatch.undo()
    assert isinstance(Desk("train").scene(0).digits[0], DigitObject)


def test_a_mix_that_a_scene_does_not_allow_is_refused_and_not_tried_forever():
    alone = Desk("train", mix={"leftmost": 1.0}, max_digits=1)
    with pytest.raises(DataError, match="allows no question of leftmost"):
        alone[0]


def test_neighbours_share_one_picture_that_nobody_can_draw_on():
    desk = Desk("train", conversations_per_scene=2)
    first, second = (next(m for m in desk[i].media()).source for i in (0, 1))
    assert first is second and not first.flags.writeable
