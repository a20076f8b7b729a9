"""The sections below the header, each with a sentence or two that say what its figure means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weft.evaluation.evaluation import MODEL, Evaluation
from weft.evaluation.report.content import Curve, Exhibit, Gaze, ReportContent
from weft.evaluation.report.curves import curve_chart
from weft.evaluation.report.drawing import escape, shorten
from weft.evaluation.report.pictures import exhibit_picture, gaze_picture, shares, verdict_of
from weft.evaluation.report.scores import accuracy_chart
from weft.evaluation.report.weave import weave_drawing
from weft.evaluation.report.words import BASELINE_MEANINGS, interval, percent, run_title
from weft.evaluation.statistics import Estimate, median

_LONGEST_REPLY = 220
_MOST_WORDS = 12
_SHORT_ANSWER = 2


def weave_section(content: ReportContent) -> str:
    weave = content.weave
    if weave is None:
        return _section(
            "weave", "What was built", "How a picture and a question become an answer.", _absent("no description of the parts")
        )
    wide, phone = weave_drawing(weave).svg("wide"), weave_drawing(weave, narrow=True).svg("phone")
    told = (
        "A picture and a question on their way to an answer. The encoder turns patches of the picture into features, the "
        "projector turns features into tokens of the language model's width, and the language model reads "
        f"<strong>{weave.num_media_tokens:,} image tokens beside {weave.num_question_tokens:,} text tokens</strong> "
        "and writes the answer."
    )
    if weave.stages:
        told += " Below, each row is a stage of training; a part is solid where the stage changed its weights."
    return _section("weave", "What was built", told, f'<div class="panel">{wide}{phone}</div>')


def curves_section(curves: Sequence[Curve]) -> str:
    told = (
        "Loss is the surprise at the right answer; lower is better. The <strong>blue</strong> line is the training loss, "
        "averaged over neighbouring steps; <strong>orange</strong> diamonds are the loss on validation data, which training "
        "never uses. Lines that part would mean learning by heart. Stages learn different tasks: their losses do not compare."
    )
    if not curves:
        return _section("curves", "How it learned", told, _absent("no metrics of a training run"))
    even = len(curves) in (1, 2, 4)
    panels = "".join(
        f'<div class="panel"><h3><small>{escape(curve.stage.replace("_", " "))}</small>{escape(curve.title)}</h3>'
        f"{_curve(curve, 478 if even else 344)}</div>"
        for curve in curves
    )
    return _section("curves", "How it learned", told, f'<div class="grid curves{" even" if even else ""}">{panels}</div>')


def _curve(curve: Curve, width: float) -> str:
    return curve_chart(curve, width).svg("wide") + curve_chart(curve).svg("phone")


def accuracy_section(evaluation: Evaluation) -> str:
    told = (
        "Each row is a kind of question. The dot is the share of right answers, the bar around it the 95% interval: where the "
        "truth plausibly lies, given how many questions were asked. The other marks show how far one gets "
        "<strong>without the picture</strong>; a dot close to them has learned words, not sight."
    )
    charts = accuracy_chart(evaluation).svg("wide") + accuracy_chart(evaluation, narrow=True).svg("phone")
    return _section("accuracy", "What it can do", told, f'<div class="panel">{charts}</div>{_table(evaluation)}')


def _table(evaluation: Evaluation) -> str:
    runs = (MODEL, *evaluation.baselines)
    head = "".join(f"<th>{escape(run_title(run))}</th>" for run in runs)
    rows = "".join(
        f"<tr><td>{escape(evaluation.title(type))}</td><td>{_num(evaluation.by_type(type))}</td>"
        + "".join(f"<td>{_cell(evaluation.by_type(type, run))}</td>" for run in runs)
        + "</tr>"
        for type in evaluation.types
    )
    total = "".join(f"<td>{_cell(evaluation.mean(run))}</td>" for run in runs)
    return (
        "<details><summary>All figures with their intervals</summary>"
        f'<div class="scroll"><table><thead><tr><th>Question type</th><th>questions</th>{head}</tr></thead><tbody>{rows}'
        f'<tr class="total"><td>Mean over types</td><td>{_num(evaluation.mean())}</td>{total}</tr>'
        "</tbody></table></div></details>"
    )


def gallery_section(exhibits: Sequence[Exhibit], evaluation: Evaluation) -> str:
    told = (
        "Held-out pictures, pixel by pixel as they were given. They are picked by rule and not by hand: of every type the "
        "first right and the first wrong answer in the benchmark's order. <strong>Wrong answers carry an orange edge.</strong>"
    )
    if not exhibits:
        return _section("gallery", "Questions and answers", told, _absent("no answers to show"))
    key = (
        '<div class="key"><span><i style="color:var(--blue)"></i>box answered, right</span>'
        '<span><i style="color:var(--orange)"></i>box answered, wrong</span>'
        '<span><i style="color:var(--green);border-style:dashed"></i>true box</span>'
        '<span><i style="color:var(--ink)"></i>box asked about</span></div>'
    )
    cards = "".join(_card(exhibit, evaluation) for exhibit in exhibits)
    return _section("gallery", "Questions and answers", told, f'{key}<div class="grid cards">{cards}</div>')


def _card(exhibit: Exhibit, evaluation: Evaluation) -> str:
    word, _ = verdict_of(exhibit.score)
    kind, sign = ("right", "✓") if exhibit.score >= 1.0 else ("wrong", "✗" if exhibit.score <= 0.0 else "")
    reply = escape(shorten(exhibit.reply, _LONGEST_REPLY)) if exhibit.reply.strip() else "<em>(empty)</em>"
    return (
        f'<figure class="card {kind}"><div class="shot">{exhibit_picture(exhibit).svg()}</div><figcaption>'
        f'<div class="ask">{escape(exhibit.question)}</div>'
        f"<dl><dt>Answer</dt><dd><b>{reply}</b></dd><dt>Truth</dt><dd>{escape(exhibit.truth)}</dd></dl>"
        f'<div class="mark {kind}"><span>{escape(evaluation.title(exhibit.type))}</span><b>{sign} {word}</b></div>'
        "</figcaption></figure>"
    )


def attention_section(gazes: Sequence[Gaze]) -> str:
    told = (
        "Each tile is a piece of an answer over the greyed picture: the deeper the colour of a cell, the more the language "
        "model attended to it in the step that wrote the piece, averaged over layers and heads. Where all cells are pale, it "
        "looked everywhere alike. The frame marks the strongest "
        "cell and the figure its share of the attention on the picture. Attention is a <strong>trace</strong> of what was "
        "read, not a proof of why the answer was given."
    )
    if not gazes:
        return _section("attention", "Where it looked", told, _absent("no attention maps"))
    ordered = sorted(gazes, key=lambda gaze: len(gaze.words) > _SHORT_ANSWER)
    rows = "".join(_gaze(gaze) for gaze in ordered)
    return _section("attention", "Where it looked", told, f'<div class="panel gazes">{rows}</div>{_proof(gazes)}')


def _gaze(gaze: Gaze) -> str:
    words = "".join(
        f"<figure>{gaze_picture(gaze, number).svg()}<figcaption><b>{escape(gaze.words[number].strip()) or '␣'}</b>"
        f"<span>{shares(gaze.maps[number]).max():.0%} in frame</span></figcaption></figure>"
        for number in range(min(_MOST_WORDS, len(gaze.words)))
    )
    whole = exhibit_picture(Exhibit(gaze.picture, "", gaze.question, gaze.truth, "", 1.0), 132).svg()
    answer = shorten("".join(gaze.words), _LONGEST_REPLY)
    truth = f" <span>truth</span> {escape(gaze.truth)}" if gaze.truth and gaze.truth.strip() != answer.strip() else ""
    short = " short" if len(gaze.words) <= _SHORT_ANSWER else ""
    return (
        f'<div class="gaze{short}"><div class="ask">{escape(gaze.question)}<br>'
        f"<span>answer</span> <b>{escape(answer)}</b>{truth}</div>"
        f'<div class="words"><figure>{whole}<figcaption><span>the picture</span></figcaption></figure>{words}</div></div>'
    )


def _proof(gazes: Sequence[Gaze]) -> str:
    measured = [gaze.difference for gaze in gazes if gaze.difference is not None]
    if not measured:
        return ""
    return (
        '<p class="proof">These maps come from the weights that answered: each row was run again through the dense reference '
        f"path, whose logits differ from the fast path's by at most <strong>{max(measured):.1e}</strong>. A row whose logits "
        "differ by more than 1e-5 of the largest logit (at least 1) gets no map.</p>"
    )


def method_section(content: ReportContent) -> str:
    evaluation, facts = content.evaluation, content.facts
    runs = [(run_title(run), BASELINE_MEANINGS.get(run) or evaluation.notes.get(run, "")) for run in evaluation.baselines]
    baselines = "<br>".join(
        f"<b>{escape(title.capitalize())}</b>{': ' + escape(text) if text else ''}." for title, text in runs
    )
    empty = sum(not record.reply.strip() for record in evaluation.runs[MODEL])
    blocks = [
        *([("Held out", escape(evaluation.notes["held_out"]))] if "held_out" in evaluation.notes else []),
        (
            "Intervals",
            "By type: Wilson's score interval, or a bootstrap over pictures where several questions share one. "
            "Mean over types: a bootstrap within each type, Jeffreys' posterior where a type is all right or all wrong. "
            "Gains over a baseline are paired by question.",
        ),
        ("Baselines", baselines or "None was measured."),
        ("Answers", f"{len(evaluation.runs[MODEL]):,} answers, of which {empty:,} were empty; an empty answer is wrong."),
    ]
    protocol = "; ".join(
        f"{escape(key.replace('_', ' '))} <code>{escape(_plainly(value))}</code>" for key, value in evaluation.protocol.items()
    )
    if protocol:
        blocks.append(("Protocol", protocol + "."))
    body = "".join(f"<div><h3>{title}</h3><p>{text}</p></div>" for title, text in blocks)
    command = f"<h3 class=repeat>To repeat it</h3><pre><code>{escape(facts.command)}</code></pre>" if facts.command else ""
    return _section("method", "How it was measured", "", f'{_seeds(content)}<div class="method">{body}</div>{command}')


def _plainly(value: object) -> str:
    """A saved config in a line: its values without types, long lists by their length."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plainly(v)}" for name, v in value.items() if name != "type" and v not in (None, [], ()))
    if isinstance(value, list | tuple):
        return f"{len(value)} values" if len(value) > 4 else " ".join(map(_plainly, value))
    return str(value)


def _seeds(content: ReportContent) -> str:
    if len(content.by_seed) < 2:
        return ""
    runs = (MODEL, *(run for run in content.evaluation.baselines if content.evaluation.mean(run) is not None))
    head = "".join(f"<th>{escape(run_title(run))}</th>" for run in runs)
    rows = "".join(
        f"<tr><td>{seed}</td>" + "".join(f"<td>{_cell(e.mean(run) if run in e.runs else None)}</td>" for run in runs) + "</tr>"
        for seed, e in sorted(content.by_seed.items())
    )
    middle = "".join(f"<td>{_median(content, run)}</td>" for run in runs)
    return (
        f'<div class="scroll"><table><thead><tr><th>Seed</th>{head}</tr></thead><tbody>{rows}'
        f'<tr class="total"><td>Median</td>{middle}</tr></tbody></table></div>'
    )


def _median(content: ReportContent, run: str) -> str:
    means = [e.mean(run) for e in content.by_seed.values() if run in e.runs]
    values = [mean.value for mean in means if mean is not None]
    return percent(median(values)) if values else "–"


def _section(name: str, title: str, told: str, body: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{f"<p>{told}</p>" if told else ""}{body}</section>'


def _absent(what: str) -> str:
    return f'<div class="empty">This report was given {what}.</div>'


def _cell(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{100 * estimate.value:.1f} <small>{interval(estimate)}</small>"


def _num(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.num:,}"
