"""Experts for visual tokens inside the language model: CogVLM and Mono-InternVL."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.core.interfaces import Fusion, LanguageModel
from weft.core.media import MediaTokens
from weft.core.routing import Routing
from weft.core.sequence import TokenSequence
from weft.layers.attention import Attention
from weft.layers.routes import VISUAL

PROJECTIONS = ("query", "key", "value", "output")


class VisualExpert(Fusion):
    """In every block a second feed-forward for the tokens of media and, with `attention`, second attention projections.

    It reads no stream: another fusion puts the tokens into the text. Each token goes through one expert, chosen by its
    modality, and all attend to each other as before. Experts start as copies of the language model's own layers, so that at
    first nothing changes; where a checkpoint fills the language model later, its weights fill them too.

    With `closing="text"` the last token of every medium goes through the text's layers, as in CogVLM, where a token is visual
    iff it and its successor stand for media. CogVLM reads one picture a conversation; of several side by side each closes so
    here, and a cached conversation may be cut between them.

    Shapes: `fuse` leaves the embeddings as they are and adds the routing [B, T] of the batch. Tokens that are generated are
    text and have none.
    Source: CogVLM, arXiv:2311.03079; Mono-InternVL, arXiv:2410.08202 (without attention).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Fusion.Config):
        """`streams` is empty: which tokens are visual is their modality, written by the processor."""

        streams: tuple[str, ...] = ()
        attention: bool = True
        closing: Literal["visual", "text"] = "visual"

        def __post_init__(self) -> None:
            if self.streams:
                raise ConfigError(f"VisualExpert reads no stream, got {self.streams}; TokenConcatenation beside it does")

        def build(self) -> VisualExpert:
            return VisualExpert(self)

        def num_positions(self, num_tokens: int) -> int:
            return num_tokens

        @classmethod
        def tiny(cls) -> Self:
            return cls(closing="text")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def install(self, language_model: LanguageModel) -> None:
        """Raises: ConfigError for a language model whose layers have no place for experts, or have some already."""
        name = type(language_model).__name__
        for block in language_model.blocks:
            _add(block, "feed_forward", copy.deepcopy(block.get_submodule("feed_forward")), name)
            if self.config.attention:
                attention = block.attention
                if not isinstance(attention, Attention):
                    raise ConfigError(f"{name} has no attention with projections of its own; set attention=False")
                copies = {part: copy.deepcopy(getattr(attention, part)) for part in PROJECTIONS}
                _add(block, "attention", nn.ModuleDict(copies), name)

    def fuse(self, sequence: TokenSequence, media: Mapping[str, MediaTokens]) -> TokenSequence:
        visual = sequence.modality != 0
        if self.config.closing == "text":
            for items in media.values():
                row, column = closing_tokens(items)
                visual[row, column] = False
        routing = Routing(visual)
        if not torch.is_grad_enabled() and not len(routing.places.visual):
            return sequence  # with a gradient to come, idle experts still have to join the graph
        return replace(sequence, routing=routing)


def closing_tokens(items: MediaTokens) -> tuple[Tensor, Tensor]:
    """Row and column of the last token of every medium, wherever it stands."""
    assert items.spans is not None
    item, offset, row, start, length = items.spans.unbind(1)
    count = torch.bincount(items.item, minlength=int(item.amax()) + 1 if len(item) else 0)
    last = offset + length == count[item]
    return row[last], (start + length - 1)[last]


def _add(block: nn.Module, layer: str, expert: nn.Module, name: str) -> None:
    """Raises: ConfigError for a layer without routes, or with an expert."""
    routes = getattr(getattr(block, layer), "routes", None)
    if routes is None:
        raise ConfigError(f"the {layer} of {name} has no routes; experts need the layers of weft.layers")
    if VISUAL in routes:
        raise ConfigError(f"the {layer} of {name} has a visual expert already; list VisualExpert once")
    routes[VISUAL] = expert
