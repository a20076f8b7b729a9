"""Write a LLaVA JSON file with its pictures, train the tiny LLaVA on it, and talk to what comes out."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image

import weft
from weft.data.tokenizers import Tokenizer
from weft.inference.chat import ChatSession
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.shrinking import TINY_SPECIAL, TINY_VOCABULARY
from weft.recipes.training_run import TrainingRun
from weft.serving.chosen_recipe import with_overrides

INKS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 200), "yellow": (220, 200, 50)}
QUESTION = "Which colour is it?"


def write_data(folder: Path) -> Path:
    """Four pictures, and the file that asks about each of them: the layout of LLaVA's own data."""
    records = []
    for name, ink in INKS.items():
        Image.new("RGB", (64, 64), ink).save(folder / f"{name}.png")
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": f"It is {name}."}]
        records.append({"id": name, "image": f"{name}.png", "conversations": turns})
    data = folder / "mine.json"
    data.write_text(json.dumps(records, indent=2))
    return data


def train(steps: int, folder: Path) -> weft.Model:
    """What `weft train llava --tiny --data mine.json --images . --set stages.instruct.steps=...` does."""
    data = write_data(folder)

    # On published weights the tokenizer comes with --from; a model from nothing gets one trained on its own texts.
    texts = [QUESTION, *(f"It is {name}." for name in INKS)]
    Tokenizer.train(texts * 4, TINY_VOCABULARY, TINY_SPECIAL).save(folder)

    settings = [f"stages.align.steps={max(1, steps // 10)}", f"stages.instruct.steps={steps}", "stages.instruct.train=*"]
    recipe = with_overrides(tiny_recipe("llava"), settings)
    run = TrainingRun(recipe=recipe, data=(str(data),), images=folder, tokenizer=folder / "tokenizer.json")
    return weft.load_model(run.trainer(folder / "run").fit())


def main(steps: int, folder: Path) -> int:
    model = train(steps, folder)
    right = 0
    for name in INKS:
        session = ChatSession(model, weft.Sampling(max_new_tokens=12))
        answer = session.ask(weft.Media(str(folder / f"{name}.png")), QUESTION).text
        right += answer == f"It is {name}."
        print(f"{name}: {answer}")
    print(f"{right} of {len(INKS)} right after {steps} steps")
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    with tempfile.TemporaryDirectory() as folder:
        main(parser.parse_args().steps, Path(folder))
