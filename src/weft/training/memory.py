"""The memory that a stage takes, estimated before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weft.core.interfaces import System
from weft.systems.accounting import Cost, SampleShape, cost, num_parameters
from weft.training.freezing import freeze
from weft.training.optimizers import muon_names
from weft.training.stage import Stage

_FULL = 4  # bytes of a float32: parameters, gradients and optimizer state, whatever precision the arithmetic has
_HALF = 2  # bytes of a bfloat16: the copy of a parameter that the arithmetic reads


@dataclass(frozen=True)
class StageCost:
    """What one stage trains and takes.

    Units: parameters; bytes (`activation_bytes` of one sample); `sample` the arithmetic of one sample.
    """

    trained_parameters: int
    all_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    sample: Cost

    def total_bytes(self, samples: int) -> int:
        """Weights, gradients, optimizer and the activations of `samples` at a time."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + samples * self.activation_bytes

    @property
    def share(self) -> float:
        """Of the parameters, what trains."""
        return self.trained_parameters / self.all_parameters


def stage_cost(stage: Stage, system: System, sample: SampleShape) -> StageCost:
    """The cost of a stage whose system stands on the meta device; freezes it as the stage does.

    Parameters, gradients and optimizer state are held in float32; with bf16 each parameter has a copy in that precision while a
    step runs. This is what the trainer does on one device. Activations are those of one sample with a memory-saving attention
    kernel and nothing recomputed.

    Raises: ConfigError where a pattern of the stage matches nothing.
    """
    trained = freeze(system, stage.train, f"stage {stage.name!r}")
    num_trained, num_all = num_parameters(trained.values()), num_parameters(system)
    by_muon = num_parameters(trained[name] for name in muon_names(stage.optimizer, system, trained))
    moments = by_muon + 2 * (num_trained - by_muon)  # Muon keeps one buffer a parameter, AdamW and LAMB two
    reduced = torch.bfloat16 if stage.precision == "bf16" else torch.float32
    one = cost(system, sample, reduced)
    return StageCost(
        trained_parameters=num_trained,
        all_parameters=num_all,
        weight_bytes=(_FULL + (_HALF if stage.precision == "bf16" else 0)) * num_all,
        gradient_bytes=_FULL * num_trained,
        optimizer_bytes=_FULL * moments,
        activation_bytes=one.activation_bytes,
        sample=one,
    )
