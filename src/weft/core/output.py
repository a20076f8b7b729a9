"""What a system's forward returns, and what an objective makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class SystemOutput:
    """The result of `System.forward`.

    Shapes: `hidden` [B, T, D] after the final norm; `embeddings` by name: of a tower [N, E] in systems that compare media,
    of an encoder's convolutions [N, L, E] where an objective keeps them small.
    """

    hidden: Tensor | None = None
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def logits(self, head: str = "text", positions: Tensor | None = None) -> Tensor:
        """Logits of a head, [B, T, V], or [P, V] at the flat `positions` (indices or mask over B*T) only."""
        assert self.hidden is not None
        if positions is None:
            return self.heads[head](self.hidden)
        return self.heads[head](self.hidden.flatten(0, 1)[positions])


@dataclass(frozen=True)
class LossTerms:
    """Loss by name, as a sum and the weight that normalises it; the trainer divides by the global weight."""

    sums: dict[str, Tensor]
    weights: dict[str, Tensor]

    def mean(self) -> Tensor:
        """The loss of this batch alone: the sum over names of sum / weight."""
        return sum(total / self.weights[name].clamp_min(1e-12) for name, total in self.sums.items())  # type: ignore[return-value]
