"""Attention over time: the frames of a video look at each other, place by place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.layer_scale import Sum
from weft.layers.slots import BlockContext, PassThrough
from weft.layers.temporal_embedding import TemporalEmbedding

SLOT = "before_attention"

_videos: ContextVar[tuple[Tensor, ...]] = ContextVar("videos", default=())


class TemporalAttention(nn.Module):
    """A slot: x + a learned vector of its frame, then x + attention(norm(x)) over what a video's frames have at one place.

    Norm and attention start as copies of the block's own, and so does the scale where its branch has one. A picture, which is a
    video of one frame, has nothing to look at and passes as it is; the published code, where all videos have the same number of
    frames, lets a lone one look at itself. An image encoder knows pictures only: which of them are frames of one video the
    slots hear from `frames_of_videos`.

    Shapes: hidden [N, L, D] -> [N, L, D], one row a unit. Source: LanguageBind, arXiv:2310.01852.
    """

    def __init__(self, block: PreNormBlock, num_frames: int) -> None:
        super().__init__()
        width = cast(Attention, block.attention).query.in_features
        self.embedding = TemporalEmbedding(num_frames, width, std=width**-0.5)
        self.start_as(block)

    def start_as(self, block: PreNormBlock) -> None:
        """Norm, attention and scale become copies of the block's own."""
        self.norm, self.attention = deepcopy(block.attention_norm), deepcopy(block.attention)
        self.scale = deepcopy(getattr(block, "attention_scale", Sum()))

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        videos = _videos.get()
        if not videos and torch.is_grad_enabled():
            hidden = hidden + 0.0 * self.attended(hidden[:1, None, :1])[0]  # trained parts join every graph
        for units in videos:
            index = units.flatten().to(hidden.device)  # what is counted without values has its layouts elsewhere
            frames = self.attended(hidden.index_select(0, index).unflatten(0, units.shape))
            hidden = hidden.index_copy(0, index, frames.flatten(0, 1).to(hidden.dtype))
        return hidden, memory

    def attended(self, frames: Tensor) -> Tensor:
        """Frames that have seen each other. Shapes: [V, T, L, D], of V videos -> [V, T, L, D]."""
        num_videos, num_frames, places, _ = frames.shape
        frames = frames + self.embedding.vectors(num_frames)[:, None].to(frames.dtype)
        rows = self.norm(frames).transpose(1, 2).flatten(0, 1)  # one for each place of each video
        rule = AttentionRule.bidirectional(len(rows), num_frames, rows.device)
        seen = self.attention(rows, BlockContext(rule))
        return self.scale(frames, seen.unflatten(0, (num_videos, places)).transpose(1, 2))


def attend_over_time(encoder: nn.Module, num_frames: int) -> None:
    """Put attention over time in front of every block's own attention, with vectors for `num_frames` frames.

    Raises: ConfigError for an encoder whose blocks do not have this slot.
    """
    blocks = getattr(encoder, "blocks", ())
    if not blocks or not all(isinstance(getattr(block, SLOT, None), PassThrough) for block in blocks):
        raise ConfigError(
            f"attention over time stands in the slot {SLOT!r} of an image encoder's blocks, which {type(encoder).__name__} has "
            "not; take another image encoder, or temporal='embedding'"
        )
    for block in blocks:
        setattr(block, SLOT, TemporalAttention(block, num_frames))


@contextmanager
def frames_of_videos(unit_item: Tensor, layout: Sequence[MediaLayout]) -> Iterator[None]:
    """While the block runs an image encoder on these units, the frames of a medium see each other."""
    token = _videos.set(_by_length(unit_item, layout))
    try:
        yield
    finally:
        _videos.reset(token)


@contextmanager
def without_time(encoder: nn.Module) -> Iterator[None]:
    """Inside the block an image encoder is without its attention over time, if it has any; that then starts anew as a copy."""
    attending = [block for block in getattr(encoder, "blocks", ()) if isinstance(getattr(block, SLOT, None), TemporalAttention)]
    taken = [getattr(block, SLOT) for block in attending]
    for block in attending:
        setattr(block, SLOT, PassThrough())
    try:
        yield
    finally:
        for block, slot in zip(attending, taken, strict=True):
            slot.start_as(block)
            setattr(block, SLOT, slot)


def _by_length(unit_item: Tensor, layout: Sequence[MediaLayout]) -> tuple[Tensor, ...]:
    """The units of videos, those with equally many frames in one tensor [V, T]; a frame's tiles are videos of their own."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for item, each in enumerate(layout):
        if each.frames > 1:
            kinds.setdefault((each.frames, each.num_units // each.frames), []).append(item)

    def units(frames: int, tiles: int, items: list[int]) -> Tensor:
        begin = torch.searchsorted(unit_item, torch.tensor(items, device=unit_item.device))
        place = torch.arange(frames * tiles, device=unit_item.device).view(frames, tiles)
        return (begin[:, None, None] + place.T).flatten(0, 1)

    return tuple(units(*kind, items) for kind, items in kinds.items())
