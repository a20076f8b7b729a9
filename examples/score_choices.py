"""Rank given answers by likelihood instead of writing one: multiple choice, yes or no, any benchmark with fixed options."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from train_on_your_data import INKS, QUESTION, train

import weft
from weft.inference.score_choices import score_choices


def main(steps: int, folder: Path) -> int:
    model = train(steps, folder)
    choices = [f"It is {name}." for name in INKS]
    print(f"{QUESTION}  log-likelihood of each answer")
    print(f"{'picture':10}" + "".join(f"{choice:>16}" for choice in choices))
    right = 0
    for name in INKS:
        picture = weft.Media(str(folder / f"{name}.png"))
        # Picture and question are read once; the candidates share their cache. A score sums over an answer's tokens, its
        # end included, so divide by `num_tokens` where answers differ much in length.
        scores = score_choices(model, weft.Conversation((weft.user(picture, QUESTION),)), choices)
        best = max(range(len(choices)), key=lambda i: scores[i].log_likelihood)
        right += choices[best] == f"It is {name}."
        shown = (f"{score.log_likelihood:>15.2f}{'*' if i == best else ' '}" for i, score in enumerate(scores))
        print(f"{name:10}" + "".join(shown))
    print(f"{right} of {len(INKS)} right after {steps} steps")
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    with tempfile.TemporaryDirectory() as folder:
        main(parser.parse_args().steps, Path(folder))
