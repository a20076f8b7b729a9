"""The drawing of the weave: picture to answer through the parts, and below it what each stage trained."""

from __future__ import annotations

from weft.evaluation.report.content import FROZEN, TRAINED, Part, StageFacts, Weave
from weft.evaluation.report.drawing import Drawing, shorten
from weft.evaluation.report.words import count, duration

_SHOWN_TOKENS, _SHOWN_TEXT, _ACROSS = 40, 16, 8


def weave_drawing(weave: Weave, narrow: bool = False) -> Drawing:
    """The parts in the order in which a picture and a question run through them."""
    return _upright(weave) if narrow else _wide(weave)


def _wide(weave: Weave) -> Drawing:
    matrix_top = 282.0
    row = 52.0
    height = matrix_top + (34 + row * len(weave.stages) + 2 if weave.stages else 0)
    drawing = Drawing(1080, height, _told(weave))
    y, middle = 34.0, 104.0
    drawing.image(0, y, 140, 140, weave.picture)
    _patches(drawing, weave, 0, y, 140)
    _caption(
        drawing,
        70,
        y + 158,
        f"{weave.picture.shape[1]} × {weave.picture.shape[0]} pixels",
        f"{weave.grid[0]} × {weave.grid[1]} patches",
    )
    drawing.arrow((146, middle), (182, middle))
    _part(drawing, weave.encoder, 186, y, 160, 140, layers=4)
    drawing.arrow((350, middle), (384, middle))
    _part(drawing, weave.projector, 388, y, 150, 140, layers=0)
    drawing.arrow((542, middle), (574, middle))
    bottom = _tokens(drawing, weave, 580, y, 132)
    drawing.arrow((716, middle), (748, middle))
    _part(drawing, weave.language_model, 752, y, 190, 140, layers=6)
    drawing.arrow((946, middle), (974, middle))
    lines = _wrapped(weave.answer, 13)
    lines = [shorten(line, 13) for line in lines[:4]] + (["…"] if len(lines) > 4 else []) or ["(empty)"]
    tall = 24 + 17 * len(lines)
    drawing.text(1029, middle - tall / 2 - 10, "the answer", 12, "muted", "middle")
    drawing.rectangle(979, middle - tall / 2, 100, tall, "bluewash", "blue", 1.4, radius=6)
    for number, line in enumerate(lines):
        drawing.text(1029, middle - tall / 2 + 25 + 17 * number, line, 14, "ink", "middle", bold=True)
    drawing.text(388, y + 176, "the question", 12, "muted")
    drawing.text(388, y + 194, f"“{shorten(weave.question, 26)}”", 14, "ink")
    if bottom < y + 186:
        drawing.line([(560, y + 189), (646, y + 189)], "muted", 1.5)
    drawing.arrow((646, y + 189), (646, bottom + 24))
    if weave.stages:
        columns = {weave.encoder.name: 266.0, weave.projector.name: 463.0, weave.language_model.name: 847.0}
        columns.update((name, 646.0) for name in _elsewhere(weave))
        tops = {weave.encoder.name: y + 146, weave.projector.name: y + 216, weave.language_model.name: y + 146}
        _stages(drawing, weave, columns, tops, matrix_top, row, label_x=0.0, label_width=190)
    return drawing


def _upright(weave: Weave) -> Drawing:
    row = 66.0
    flow = 396.0 + 18.75 * num_token_lines(weave) + 218
    height = flow + (34 + row * len(weave.stages) + 12 if weave.stages else 0)
    drawing = Drawing(360, height, _told(weave))
    drawing.image(0, 8, 120, 120, weave.picture)
    _patches(drawing, weave, 0, 8, 120)
    drawing.text(136, 30, "the picture", 12, "muted")
    drawing.text(136, 50, f"{weave.picture.shape[1]} × {weave.picture.shape[0]} pixels", 14)
    drawing.text(136, 70, f"{weave.grid[0]} × {weave.grid[1]} patches", 14)
    drawing.arrow((60, 132), (60, 153))
    _part(drawing, weave.encoder, 0, 156, 360, 84, layers=0)
    drawing.arrow((60, 243), (60, 262))
    _part(drawing, weave.projector, 0, 266, 360, 84, layers=0)
    drawing.arrow((60, 353), (60, 374))
    bottom = _tokens(drawing, weave, 0, 396, 150)
    drawing.text(176, 408, "the question", 12, "muted")
    drawing.text(176, 428, f"“{shorten(weave.question, 22)}”", 14)
    top = bottom + 46
    drawing.arrow((60, top - 22), (60, top))
    _part(drawing, weave.language_model, 0, top + 4, 360, 84, layers=0)
    drawing.arrow((60, top + 91), (60, top + 110))
    drawing.rectangle(0, top + 114, 270, 36, "bluewash", "blue", 1.4, radius=6)
    drawing.text(14, top + 137, shorten(weave.answer, 30) or "(empty)", 15, "ink", bold=True)
    drawing.text(282, top + 137, "the answer", 12, "muted")
    if weave.stages:
        names = [weave.encoder.name, weave.projector.name, weave.language_model.name, *_elsewhere(weave)]
        step = 360 / len(names)
        columns = {name: step * (i + 0.5) for i, name in enumerate(names)}
        _stages(drawing, weave, columns, {}, flow + 10, row, label_x=0.0, label_width=360, cell=step * 0.8)
    return drawing


def _part(drawing: Drawing, part: Part, x: float, y: float, width: float, height: float, layers: int) -> None:
    for layer in range(layers, 0, -1):  # a stack behind the card: a part of many layers
        shift = 2.2 * layer
        drawing.rectangle(x + shift, y - shift, width - shift, height, "card", "line", 1, radius=7)
    drawing.rectangle(x, y, width - 2.2 * layers, height, "card", "ink", 1.6, radius=7)
    drawing.text(x + 14, y + 28, _capital(part.name), 15, bold=True)
    for number, line in enumerate(_wrapped(part.about, int((width - 28) / 6.6))[:3]):
        drawing.text(x + 14, y + 48 + 17 * number, line, 12.5, "muted")
    if height > 100:
        drawing.text(x + 14, y + height - 16, count(part.parameters), 19, "blue", bold=True)
        drawing.text(x + width - 2.2 * layers - 12, y + height - 16, "parameters", 12, "muted", "end")
    else:
        drawing.text(x + width - 14, y + 29, count(part.parameters), 16, "blue", "end", bold=True)


def _patches(drawing: Drawing, weave: Weave, x: float, y: float, size: float) -> None:
    rows, columns = weave.grid
    for i in range(1, rows):
        drawing.line([(x, y + size * i / rows), (x + size, y + size * i / rows)], "card", 0.8, opacity=0.8)
    for i in range(1, columns):
        drawing.line([(x + size * i / columns, y), (x + size * i / columns, y + size)], "card", 0.8, opacity=0.8)
    drawing.rectangle(x, y, size, size, None, "ink", 1.2)


def _elsewhere(weave: Weave) -> list[str]:
    """The part, if any, that stages trained and that is no part of the model that answers, such as a text tower."""
    flow = {weave.encoder.name, weave.projector.name, weave.language_model.name}
    return list(dict.fromkeys(name for stage in weave.stages for name in stage.parts if name not in flow))[:1]


def num_token_lines(weave: Weave) -> int:
    """Lines of eight that the drawn sequence takes."""
    return -(-(min(weave.num_media_tokens, _SHOWN_TOKENS) + min(weave.num_question_tokens, _SHOWN_TEXT)) // _ACROSS)


def _tokens(drawing: Drawing, weave: Weave, x: float, y: float, width: float) -> float:
    """The sequence that the language model reads: image tokens, then text tokens. Returns its lower edge."""
    across, size = _ACROSS, width / _ACROSS
    media, text = min(weave.num_media_tokens, _SHOWN_TOKENS), min(weave.num_question_tokens, _SHOWN_TEXT)
    drawing.text(x, y - 10, f"{weave.num_media_tokens:,} image tokens", 12.5, "blue", bold=True)
    number = 0
    for kind, shown in (("media", media), ("text", text)):
        for _ in range(shown):
            column, line = number % across, number // across
            fill, stroke = ("blue", None) if kind == "media" else ("card", "orange")
            inset = 1.4
            drawing.rectangle(
                x + column * size + inset,
                y + line * size + inset,
                size - 2 * inset,
                size - 2 * inset,
                fill,
                stroke,
                1.6,
                radius=2,
            )
            number += 1
    bottom = y + num_token_lines(weave) * size
    drawing.text(x, bottom + 17, f"{weave.num_question_tokens:,} text tokens", 12.5, "orange", bold=True)
    return bottom


def _stages(
    drawing: Drawing,
    weave: Weave,
    columns: dict[str, float],
    tops: dict[str, float],
    top: float,
    row: float,
    label_x: float,
    label_width: float,
    cell: float = 150.0,
) -> None:
    """Warp and weft: a thread down from every part, a thread across for every stage; solid where the stage trained."""
    narrow = label_width > 300
    first = top + 34
    drawing.text(label_x, top + 12, "What each stage trained", 14, bold=True)
    end = first + row * len(weave.stages)
    for name, x in columns.items():
        drawing.line([(x, tops.get(name, first)), (x, end)], "line", 3)
        if narrow or name not in tops:
            drawing.text(x, first - 4, shorten(_capital(name), 14), 11.5, "muted", "middle")
    for number, stage in enumerate(weave.stages):
        y = first + row * number + (row - 30)
        _stage_label(drawing, stage, number, label_x, y, narrow)
        begin = 0.0 if narrow else label_width - 6
        middle = y + 11
        drawing.line([(begin, middle), (drawing.width, middle)], "line", 3)
        for name, x in columns.items():
            state = stage.parts.get(name)
            box = (x - cell / 2, y, cell, 22.0)
            if state == TRAINED:
                drawing.rectangle(*box, "blue", radius=4, tip=f"{stage.title}: {name} trained{_extent(stage)}")
                drawing.text(x, y + 15.5, "trained", 12, "card", "middle", bold=True)
            elif state == FROZEN:
                drawing.rectangle(*box, "card", "faint", 1.4, radius=4, tip=f"{stage.title}: {name} frozen")
                drawing.text(x, y + 15.5, "frozen", 12, "muted", "middle")
            else:
                drawing.rectangle(x - 22, y, 44, 22, "card")
                drawing.text(x, y + 15.5, "—", 12, "faint", "middle")


def _stage_label(drawing: Drawing, stage: StageFacts, number: int, x: float, y: float, narrow: bool) -> None:
    facts = [f"{stage.steps:,} steps", *([duration(stage.seconds)] if stage.seconds is not None else [])]
    if narrow:
        drawing.rectangle(x, y - 22, 360, 20, "card")
        drawing.text(x, y - 8, f"{number + 1}  {shorten(_capital(stage.name), 26)}", 13, bold=True)
        drawing.text(360, y - 8, " · ".join(facts), 11.5, "muted", "end")
    else:
        drawing.text(x, y + 6, f"{number + 1}  {shorten(_capital(stage.name), 22)}", 13.5, bold=True)
        drawing.text(x, y + 24, " · ".join(facts), 12, "muted")


def _extent(stage: StageFacts) -> str:
    """How much a stage trained, and on how much."""
    facts = [f"{count(stage.trained_parameters)} parameters in all"] if stage.trained_parameters is not None else []
    facts += [f"{stage.samples:,} samples"] if stage.samples is not None else []
    return f" ({', '.join(facts)})" if facts else ""


def _caption(drawing: Drawing, x: float, y: float, *lines: str) -> None:
    for number, line in enumerate(lines):
        drawing.text(x, y + 17 * number, line, 12, "muted", "middle")


def _capital(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _wrapped(text: str, limit: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= limit:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _told(weave: Weave) -> str:
    return (
        f"A picture in {weave.grid[0]} by {weave.grid[1]} patches goes through {weave.encoder.name} and "
        f"{weave.projector.name}, becomes {weave.num_media_tokens} tokens beside {weave.num_question_tokens} text tokens, and "
        f"{weave.language_model.name} writes the answer"
    )
