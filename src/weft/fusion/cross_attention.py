"""Media stand beside the text, and gated blocks between the language model's own look at them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from weft.core import config
from weft.core.errors import ConfigError, MediaTokenMismatch
from weft.core.interfaces import Fusion, LanguageModel
from weft.core.media import MediaTokens
from weft.core.memory import FILLING, Memory, Visibility
from weft.core.sequence import TokenSequence
from weft.layers.feed_forward import FeedForward, GatedFeedForward
from weft.layers.gated_cross_attention import GatedCrossAttention
from weft.layers.memory_attention import MemoryAttention
from weft.layers.norms import RMSNorm
from weft.layers.slots import PassThrough

SLOT = "before_attention"


class BlockForm(config.Config, ABC):
    """What the inserted blocks are made of."""

    @abstractmethod
    def block(self, language_model: LanguageModel, memory_width: int, layer: int, stream: str) -> GatedCrossAttention:
        """The block in front of the language model's block `layer`."""


@dataclass(frozen=True, kw_only=True)
class GatedDense(BlockForm):
    """Flamingo's GATED XATTN-DENSE: layer norms, heads of their own width, a plain feed-forward; no linear layer has a bias.

    `num_heads` None: the language model's. `head_width` None: such that the heads together have the model's width.
    Source: Flamingo, arXiv:2204.14198; OpenFlamingo, arXiv:2308.01390 (8 heads of 64, GELU).
    """

    num_heads: int | None = None
    head_width: int | None = None
    expansion: int = 4
    activation: str = "squared_relu"

    def block(self, language_model: LanguageModel, memory_width: int, layer: int, stream: str) -> GatedCrossAttention:
        width = language_model.config.output_width
        heads = self.num_heads or _own(language_model, "num_heads")
        attention = MemoryAttention(
            width, heads, head_width=self.head_width, memory_width=memory_width, layer=layer, memory_name=stream
        )
        feed_forward = FeedForward(width, self.expansion * width, self.activation, bias=False)
        return GatedCrossAttention(nn.LayerNorm(width), attention, nn.LayerNorm(width), feed_forward)


@dataclass(frozen=True, kw_only=True)
class GatedSwiGLU(BlockForm):
    """The language model's own kind of block: RMS norms, also of each head's queries and keys, and a SwiGLU feed-forward.

    Sizes that are None are the language model's. `gates`: one number for a branch, or one for each channel. With
    `blind_feed_forward` False the feed-forward leaves out the tokens that see no medium, and a text without media is not
    changed at all. `reference` says what attention gives such a token where its row has media: nothing, as in the code that
    Meta released ("meta"), or what it finds in all of them and in what fills them up, as in `transformers` ("hf").
    Source: IDEFICS, arXiv:2306.16527; Llama 3.2 Vision, arXiv:2407.21783.
    """

    num_key_value_heads: int | None = None
    feed_forward_width: int | None = None
    norm_eps: float | None = None
    head_norms: bool = True
    gates: Literal["scalar", "vector"] = "scalar"
    blind_feed_forward: bool = True
    reference: Literal["meta", "hf"] = "meta"

    def block(self, language_model: LanguageModel, memory_width: int, layer: int, stream: str) -> GatedCrossAttention:
        width = language_model.config.output_width
        heads = _own(language_model, "num_heads")
        eps = self.norm_eps or _own(language_model, "norm_eps")
        attention = MemoryAttention(
            width,
            heads,
            self.num_key_value_heads or heads,
            memory_width=memory_width,
            layer=layer,
            memory_name=stream,
            head_norm=(lambda size: RMSNorm(size, eps)) if self.head_norms else None,
        )
        made = GatedCrossAttention(
            RMSNorm(width, eps),
            attention,
            RMSNorm(width, eps),
            GatedFeedForward(width, self.feed_forward_width or _own(language_model, "feed_forward_width")),
            gate_per_channel=width if self.gates == "vector" else None,
            blind_feed_forward=self.blind_feed_forward,
            blind_attention=self.reference == "hf",
        )
        for module in made.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)  # as the language models of this kind start
        return made


class CrossAttention(Fusion):
    """Put gated blocks in front of some of the language model's, which read a stream's tokens; the text keeps a tag of each.

    Block i gets one where i >= `first` and `every` divides i - `first`: Flamingo and IDEFICS begin at 0, OpenFlamingo and Llama
    3.2 at `every` - 1. `visibility` says which media a token sees; `memory_width` is the width of the media tokens (None: the
    language model's).

    Shapes: `MediaTokens` [P, C] -> `memory[stream]` with values [B, M, C].
    Source: Flamingo, arXiv:2204.14198.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Fusion.Config):
        block: GatedDense | GatedSwiGLU = GatedDense()
        every: int = 1
        first: int = 0
        visibility: Visibility = "preceding"  # type: ignore[assignment]  # a field in the place of a property
        memory_width: int | None = None

        def __post_init__(self) -> None:
            if len(self.streams) != 1:
                raise ConfigError(f"cross-attention reads one stream, got {self.streams}; give each stream a fusion of its own")
            if self.every < 1 or self.first < 0:
                raise ConfigError(f"blocks stand every 1 or more, from 0 on; got every={self.every}, first={self.first}")

        def build(self) -> CrossAttention:
            return CrossAttention(self)

        def num_positions(self, num_tokens: int) -> int:
            return 1

        def media_width(self, language_width: int) -> int:
            return self.memory_width or language_width

        def layers(self, num_layers: int) -> range:
            """The language model's blocks that have one in front of them."""
            return range(self.first, num_layers, self.every)

        @classmethod
        def tiny(cls) -> Self:
            return cls()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def install(self, language_model: LanguageModel) -> None:
        c, (stream,) = self.config, self.config.streams
        layers = c.layers(len(language_model.blocks))
        if not layers:
            raise ConfigError(
                f"no block of {len(language_model.blocks)} gets cross-attention with every={c.every}, first={c.first}"
            )
        memory_width = c.media_width(language_model.config.output_width)
        for layer in layers:
            block = language_model.blocks[layer]
            if not isinstance(getattr(block, SLOT, None), PassThrough):
                raise ConfigError(f"block {layer} of {type(language_model).__name__} has no free slot {SLOT!r}")
            setattr(block, SLOT, c.block.block(language_model, memory_width, layer, stream))

    def fuse(self, sequence: TokenSequence, media: Mapping[str, MediaTokens]) -> TokenSequence:
        (stream,) = self.config.streams
        visible = sequence.visible.get(stream)
        if visible is None:
            if stream in media:
                raise MediaTokenMismatch(
                    f"stream {stream!r}: the batch has media and does not say which token sees which; build processor and "
                    "system from one config"
                )
            return sequence
        if stream in media:
            check_places(stream, media[stream])
        memory = beside(media[stream], visible) if stream in media else nothing_beside(visible, sequence.embeddings)
        return replace(sequence, memory={**sequence.memory, stream: memory})


def check_places(stream: str, items: MediaTokens) -> None:
    """Raises: MediaTokenMismatch for a medium that stands nowhere in the text, which no token would see."""
    assert items.spans is not None
    num_media, places = int(items.item[-1]) + 1 if len(items.item) else 0, len(items.spans[:, 0].unique())
    if places < num_media:
        raise MediaTokenMismatch(
            f"stream {stream!r}: the batch has {num_media} media and tags of {places} in its text; build processor and system "
            "from one config"
        )


def beside(items: MediaTokens, visible: Tensor) -> Memory:
    """Media tokens [P, C] laid beside the rows in which they stand, in the order of the text."""
    assert items.spans is not None
    rows, tokens = visible.shape[:2]
    spans = items.spans[items.spans[:, 1] == 0]
    spans = spans[(spans[:, 2] * tokens + spans[:, 3]).argsort()]
    row = spans[:, 2].contiguous()
    span = torch.arange(len(spans), device=spans.device)
    number = span - torch.searchsorted(row, row)  # of the item within its row
    counts = items.item.bincount(minlength=int(spans[:, 0].max()) + 1 if len(spans) else 0)
    length = counts[spans[:, 0]]
    begin = length.cumsum(0) - length  # where a span's tokens begin if all rows stood in one line
    column = begin - begin[torch.searchsorted(row, row)]
    owner = span.repeat_interleave(length)
    inside = torch.arange(len(owner), device=spans.device) - begin[owner]
    source = torch.searchsorted(items.item.contiguous(), spans[:, 0].contiguous())[owner] + inside
    width = int((column + length).max()) if len(spans) else 0
    at = row[owner] * width + column[owner] + inside
    item, place = (torch.full((rows * width,), -1, device=spans.device) for _ in range(2))
    item[at], place[at] = number[owner], spans[owner, 3]
    if items.filling is not None:
        item[at] = torch.where(items.filling[source], FILLING, item[at])
    values = items.values.new_zeros(rows * width, items.values.shape[1]).index_copy(0, at, items.values[source])
    return Memory(values.view(rows, width, -1), item.view(rows, width), visible, place.view(rows, width))


def nothing_beside(visible: Tensor, embeddings: Tensor) -> Memory:
    """The memory of a text without media; a cache may put what was there before in front of it."""
    rows = len(visible)
    none = visible.new_zeros(rows, 0)
    return Memory(embeddings.new_zeros(rows, 0, 0), none, visible, none)


def _own(language_model: LanguageModel, name: str) -> Any:
    """A size of the language model. Raises: ConfigError where its config has none of that name."""
    found = getattr(language_model.config, name, None)
    if found is None:
        raise ConfigError(f"{type(language_model.config).__qualname__} has no {name}; say the block's own")
    return found
