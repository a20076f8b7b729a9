"""Figures as people read them, and the verdict in a sentence."""

from __future__ import annotations

from weft.evaluation.evaluation import BLIND, MOST_FREQUENT, RUN_TITLES, TEXT_ONLY, Evaluation
from weft.evaluation.statistics import Estimate

_CLEAR_GAIN, _SOME_GAIN = 0.10, 0.02  # lower ends of the 95% interval of the paired gain

BASELINE_MEANINGS = {
    TEXT_ONLY: "a model trained alike that was never given a picture: what words alone teach",
    BLIND: "this model with the pictures shuffled between questions: what it answers without looking",
    MOST_FREQUENT: "always the most frequent training answer of the question type: chance, at its best",
}


_BY_NAME = {
    BLIND: "the same model with shuffled pictures",
    TEXT_ONLY: "the text-only model",
    MOST_FREQUENT: "the most frequent answer",
}


def run_title(run: str) -> str:
    """A run's name for people."""
    return RUN_TITLES.get(run, run.replace("_", " "))


def run_name(run: str) -> str:
    """A run's name within a sentence."""
    return _BY_NAME.get(run, run_title(run))


def percent(value: float) -> str:
    """For example `83.1%`."""
    return f"{100 * value:.1f}%"


def interval(estimate: Estimate) -> str:
    """For example `81.2 – 84.9`."""
    return f"{100 * estimate.low:.1f} – {100 * estimate.high:.1f}"


def count(number: float) -> str:
    """A number of parameters: `7.06 B`, `1.66 M`, `790 k`, `64`."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """For example `7 min 42 s`, `3 h 5 min`, `0.8 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(number: float) -> str:
    """For example `2.91 GB` (powers of ten)."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def headline(evaluation: Evaluation) -> str:
    """The verdict in one sentence: does the model use the picture, and how much of the exam does it pass."""
    mean = evaluation.mean()
    assert mean is not None  # the model answers every type by definition
    against = BLIND if BLIND in evaluation.runs else next((b for b in evaluation.baselines if evaluation.mean(b)), None)
    baseline = evaluation.mean(against) if against else None
    gain = evaluation.gain(against) if against else None
    if against is None or baseline is None or gain is None:
        return f"It answers {percent(mean.value)} of questions about pictures it never saw."
    other = f"{percent(baseline.value)} {'with shuffled pictures' if against == BLIND else 'for ' + run_name(against)}"
    if gain.low > _CLEAR_GAIN:
        return f"It sees. {percent(mean.value)} of questions about pictures it never saw are answered right, against {other}."
    if gain.low > _SOME_GAIN:
        return f"It sees a little. {percent(mean.value)} of questions about new pictures are answered right, against {other}."
    return f"It does not see yet. {percent(mean.value)} of questions are answered right, no clear gain over {other}."
