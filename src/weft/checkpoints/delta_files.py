"""Weights published as their difference from a base's: LLaVA v1 and the first Vicunas, on LLaMA-1.

Source: LLaVA, arXiv:2304.08485, and the script released with it, which adds every tensor of the base to the one of its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.weight_files import WeightFiles
from weft.core.errors import CheckpointError

_FINAL_NORM = "model.norm.weight"
_NOTHING = 0.05  # a trained final norm is near one or larger, what fine-tuning changed of it is far smaller
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def is_delta(files: Mapping[str, Tensor]) -> bool:
    """Whether the tensors, by Llama's names, are a difference, whatever their folder is called: the last norm's scale says so.

    With a whole model's last norm near nothing, no token would be likelier than another.
    """
    return _FINAL_NORM in files and files[_FINAL_NORM].float().abs().mean().item() < _NOTHING


class DeltaFiles(Mapping[str, Tensor]):
    """The sums of a delta and its base, by the delta's names, each made when it is asked for, in the delta's precision.

    What only the delta holds beside the base's kind of model (a projector) is whole there, and so are the rows of added tokens,
    which stand behind the base's in the token tables. `table` is the base's, and says which keys are a model's.

    Raises: CheckpointError listing what the base lacks, and what differs in shape.
    """

    def __init__(self, delta: WeightFiles, base: WeightFiles, table: KeyMap) -> None:
        self.path: Path = delta.path
        self._delta, self._base = delta, base
        ours, theirs = ({key for step in table.plan(files).steps for key in step.inputs} for files in (delta, base))
        wrong = [f"{key} is in the delta only" for key in sorted(ours - theirs)]  # what it lacks the model misses itself
        for key in sorted(ours & theirs):
            here, there = delta.shape(key), base.shape(key)
            rows = 1 if key in _TABLES and here[0] > there[0] else 0
            if here[rows:] != there[rows:]:
                wrong.append(f"{key} is {here} in the delta and {there} in the base")
        if wrong:
            raise CheckpointError(
                f"{delta.path} is no delta of {base.path}: {'; '.join(wrong)}; give the folder of the model that it was "
                "taken from"
            )
        self._summed = ours

    def __getitem__(self, key: str) -> Tensor:
        delta = self._delta[key]
        if key not in self._summed:
            return delta
        base = self._base[key].to(delta.dtype)
        return torch.cat((delta[: len(base)] + base, delta[len(base) :]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._delta)

    def __len__(self) -> int:
        return len(self._delta)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._delta.shape(key)
