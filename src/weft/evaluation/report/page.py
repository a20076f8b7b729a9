"""The page: a header with the verdict, then the sections."""

from __future__ import annotations

from collections.abc import Sequence

from weft.evaluation.report.content import ReportContent
from weft.evaluation.report.drawing import escape
from weft.evaluation.report.scores import verdict_chart
from weft.evaluation.report.sections import (
    accuracy_section,
    attention_section,
    curves_section,
    gallery_section,
    method_section,
    weave_section,
)
from weft.evaluation.report.style import style_sheet
from weft.evaluation.report.words import count, duration, headline, interval, memory, percent, run_name
from weft.evaluation.statistics import median


def page(content: ReportContent) -> str:
    """The whole document; it refers to nothing outside itself."""
    sections = (
        _header(content),
        weave_section(content),
        curves_section(content.curves),
        accuracy_section(content.evaluation),
        gallery_section(content.exhibits, content.evaluation),
        attention_section(content.gazes),
        method_section(content),
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(content.facts.title)} · Weft report</title><style>{style_sheet()}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _header(content: ReportContent) -> str:
    facts, evaluation = content.facts, content.evaluation
    mast = f'<div class="mast">{_EMBLEM}<b>Weft</b><span>{escape(facts.title)}</span><span>{escape(facts.date)}</span></div>'
    text = "".join(f"<p>{sentence}</p>" for sentence in _lead(content))
    chart = f"<div>{verdict_chart(evaluation).svg('wide')}{verdict_chart(evaluation, 360).svg('phone')}</div>"
    return (
        f'<header id="verdict">{mast}<div class="lead"><div><h1>{escape(headline(evaluation))}</h1>{text}</div>{chart}</div>'
        f"{_fact_list(content)}</header>"
    )


def _lead(content: ReportContent) -> list[str]:
    evaluation = content.evaluation
    mean = evaluation.mean()
    assert mean is not None
    what = f"{mean.num:,} held-out questions of {len(evaluation.types)} types"
    sentences = [
        f"Measured on <strong>{what}</strong>, about pictures that training never saw. The score is the mean over types, "
        f"<strong>{percent(mean.value)}</strong> with a 95% interval of {interval(mean)}."
    ]
    if failed := evaluation.failed():
        sentences.append(f"{len(failed):,} of them could not be asked, as a medium cannot be read, and count as wrong.")
    gains = [(run, evaluation.gain(run)) for run in evaluation.baselines]
    told = [f"<strong>{100 * g.value:.1f}</strong> points above {escape(run_name(run))}" for run, g in gains if g is not None]
    if told:
        sentences.append("That is " + _listed(told) + ".")
    if len(content.by_seed) > 1:
        values = [e.mean() for e in content.by_seed.values()]
        scores = [v.value for v in values if v is not None]
        sentences.append(
            f"Over {len(scores)} seeds: median <strong>{percent(median(scores))}</strong>, "
            f"lowest {percent(min(scores))}, highest {percent(max(scores))}."
        )
    return sentences


def _fact_list(content: ReportContent) -> str:
    facts, evaluation = content.facts, content.evaluation
    rows: list[tuple[str, str, bool]] = []
    if facts.training_seconds is not None:
        rows.append(("Training", duration(facts.training_seconds), False))
    seconds = facts.evaluation_seconds if facts.evaluation_seconds is not None else evaluation.seconds
    rows.append(("Evaluation", duration(seconds), False))
    if facts.peak_memory_bytes is not None:
        rows.append(("Peak memory", memory(facts.peak_memory_bytes), False))
    if content.weave is not None:
        rows.append(("Parameters", count(content.weave.parameters), False))
    if facts.seeds:
        rows.append(("Seeds" if len(facts.seeds) > 1 else "Seed", ", ".join(map(str, facts.seeds)), False))
    if facts.recipe:
        rows.append(("Recipe", facts.recipe, False))
    if facts.commit:
        rows.append(("Commit", facts.commit[:12], False))
    if facts.hardware:
        rows.append(("Hardware", facts.hardware, True))
    if facts.versions:
        rows.append(("Versions", ", ".join(f"{k} {v}" for k, v in facts.versions.items()), True))
    cells = "".join(
        f"<div{' class=long' if long else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value, long in rows
    )
    return f'<dl class="facts">{cells}</dl>'


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


_STRIPS = (
    ("blue", 4, 0, 6, 30),
    ("blue", 20, 0, 6, 30),
    ("orange", 0, 4, 30, 6),
    ("orange", 0, 20, 30, 6),
    ("blue", 4, 2, 6, 10),
    ("blue", 20, 18, 6, 10),
)
_EMBLEM = (
    '<svg viewBox="0 0 30 30" aria-hidden="true">'
    + "".join(f'<rect class="f-{c}" x="{x}" y="{y}" width="{w}" height="{h}" rx="2"/>' for c, x, y, w, h in _STRIPS)
    + "</svg>"
)
