"""AdamW, LAMB, and Muon on the matrices of hidden layers with AdamW on the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError, RunError
from weft.training.adamw import AdamW
from weft.training.freezing import select_names
from weft.training.gradient_clipping import AdaptiveClipping
from weft.training.lamb import Lamb
from weft.training.muon import Muon
from weft.training.stage import Optimizer


class StageOptimizer:
    """Everything that updates the parameters of one stage, driven by one rate factor a step."""

    def __init__(
        self, config: Optimizer, trained: Mapping[str, nn.Parameter], matrices: Sequence[str], dtype: torch.dtype
    ) -> None:
        self.config = config
        self.trained = dict(trained)
        self.parameters = list(self.trained.values())
        self.adaptive = (
            None
            if config.adaptive_clip is None
            else AdaptiveClipping(self.trained, config.adaptive_clip, config.adaptive_clip_except)
        )
        factors = _rate_factors(config, self.trained)
        undecayed = set(select_names(self.trained, config.weight_decay_except, "optimizer.weight_decay_except"))
        chosen = set(matrices)
        self.muon = (
            Muon(
                {n: p for n, p in self.trained.items() if n in chosen},
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                undecayed=undecayed,
                factors=factors,
                dtype=dtype,
            )
            if chosen
            else None
        )
        rest = {n: p for n, p in self.trained.items() if n not in chosen}
        settings: dict[str, Any] = {
            "betas": config.betas,
            "epsilon": config.epsilon,
            "weight_decay": config.weight_decay,
            "undecayed": undecayed,
            "factors": factors,
        }
        self.adamw = AdamW(rest, **settings) if rest and config.name != "lamb" else None
        self.lamb = Lamb(rest, **settings) if rest and config.name == "lamb" else None

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak rates."""
        if self.adamw is not None:
            self.adamw.step(self.config.learning_rate * factor)
        if self.lamb is not None:
            self.lamb.step(self.config.learning_rate * factor)
        if self.muon is not None:
            self.muon.step(self.config.matrix_rate * factor)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self) -> Tensor:
        """Scale the gradients down, each unit's first if `adaptive_clip` is set, then all together; returns the norm before."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if self.adaptive is not None:
            self.adaptive.clip()
        if self.config.clip_norm is not None:
            remaining = norm if self.adaptive is None else torch.nn.utils.get_total_norm(gradients, foreach=True)
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, remaining, foreach=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The state of every optimizer; loading it resumes bit for bit."""
        return {name: None if optimizer is None else optimizer.state_dict() for name, optimizer in self._by_name().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: RunError for the state of another set of parameters."""
        pairs = [(optimizer, state.get(name)) for name, optimizer in self._by_name().items()]
        if any((optimizer is None) != (saved is None) for optimizer, saved in pairs):
            raise RunError(f"the checkpoint was written by another optimizer than {self.config.name!r}; resume with its recipe")
        for optimizer, saved in pairs:
            if optimizer is not None and saved is not None:
                optimizer.load_state_dict(saved)

    def _by_name(self) -> dict[str, AdamW | Lamb | Muon | None]:
        return {"adamw": self.adamw, "lamb": self.lamb, "muon": self.muon}


def build_optimizer(
    config: Optimizer, system: nn.Module, trained: Mapping[str, nn.Parameter], dtype: torch.dtype = torch.float32
) -> StageOptimizer:
    """The optimizer of a stage over the parameters that it trains; `dtype` is the precision of Muon's iteration."""
    return StageOptimizer(config, trained, muon_names(config, system, trained), dtype)


def muon_names(config: Optimizer, system: nn.Module, trained: Mapping[str, nn.Parameter]) -> list[str]:
    """The parameters that Muon takes: weights of linear layers that match `matrices`; none without Muon."""
    if config.name != "muon":
        return []
    linear = {f"{name}.weight" for name, module in system.named_modules() if isinstance(module, nn.Linear)}
    return [n for n in trained if n in linear and any(fnmatchcase(n, pattern) for pattern in config.matrices)]


def _rate_factors(config: Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, float]:
    factors = dict.fromkeys(trained, 1.0)
    for pattern, factor in config.rates.items():
        matched = [n for n in trained if fnmatchcase(n, pattern)]
        if not matched:
            raise ConfigError(f"optimizer.rates: pattern {pattern!r} matches no trained parameter")
        for name in matched:
            factors[name] *= factor
    for tower, decay in config.layer_decay.items():
        for name, depth in _depths(tower, trained).items():
            factors[name] *= decay**depth
    return factors


def _depths(tower: str, trained: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """How far below the tower's end each of its parameters stands: 0 behind the last block, 1 in it, embeddings deepest.

    Source: BEiT's layer-wise decay, arXiv:2106.08254, which EVA-CLIP trains both towers with, arXiv:2303.15389.
    """
    inside = [name for name in trained if name.startswith(f"{tower}.")]
    blocks = {name: int(found[1]) for name in inside if (found := re.match(rf"{re.escape(tower)}\.blocks\.(\d+)\.", name))}
    if not blocks:
        raise ConfigError(f"optimizer.layer_decay: {tower!r} has no trained blocks")
    end = max(blocks.values()) + 1
    below = {name: end + 1 for name in inside if name not in blocks and "embedding" in name}
    return {name: end - block for name, block in blocks.items()} | below
