"""Attention to a few learned places of a feature map, and the decoder block around it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.layers.cross_attention import CrossAttention
from weft.layers.feed_forward import FeedForward


class DeformableAttention(nn.Module):
    """Every head reads `num_points` places near a query's reference point, bilinearly, and weighs them by the query alone.

    Outside of the map there are zeros. Places are computed in float32: with 8 bits of mantissa a place of a 24 x 24 map would
    be off by a twentieth of a feature.

    Shapes: queries [N, M, C], reference points [N, M, 2] as (x, y) in (0, 1), features [N, C, H, W] -> [N, M, C].
    Source: Deformable DETR, arXiv:2010.04159, with one level.
    """

    def __init__(self, width: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"width {width} does not split into {num_heads} heads; choose a number of heads that divides it")
        self.num_heads = num_heads
        self.num_points = num_points
        self.offsets = nn.Linear(width, num_heads * num_points * 2)
        self.weights = nn.Linear(width, num_heads * num_points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.initialise()

    def initialise(self) -> None:
        """The published start: head h looks in the direction h, point p at p + 1 features' distance, all weighed alike."""
        angle = torch.arange(self.num_heads, device=self.offsets.weight.device) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1, device=direction.device)
        with torch.no_grad():
            self.offsets.bias.copy_((direction[:, None] * distance[:, None]).flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias, self.value.bias, self.output.bias):
            nn.init.zeros_(zero)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, queries: Tensor, reference_points: Tensor, features: Tensor) -> Tensor:
        batch, tokens, width = queries.shape
        height, columns = features.shape[2:]
        value = self.value(features.flatten(2).transpose(1, 2)).transpose(1, 2)
        value = value.reshape(batch * self.num_heads, width // self.num_heads, height, columns)
        offsets = self.offsets(queries).float().view(batch, tokens, self.num_heads, self.num_points, 2)
        scale = torch.tensor([columns, height], device=offsets.device)
        places = reference_points.float()[:, :, None, None] + offsets / scale
        places = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # grid_sample's map goes from -1 to 1
        read = F.grid_sample(value.float(), places, mode="bilinear", padding_mode="zeros", align_corners=False)
        weights = self.weights(queries).float().view(batch, tokens, self.num_heads, self.num_points).softmax(-1)
        mixed = (read * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)  # [N * heads, C / heads, M]
        return self.output(mixed.view(batch, width, tokens).transpose(1, 2).to(value.dtype))


class DeformableBlock(nn.Module):
    """Self-attention among the queries, deformable attention to the map, a feed-forward; a norm behind each sum.

    The queries' positions are added to what asks and to what is asked, never to what is answered.

    Shapes: queries and positions [N, M, C], reference points [N, M, 2], features [N, C, H, W] -> [N, M, C].
    Source: the decoder layer of Deformable DETR, arXiv:2010.04159.
    """

    def __init__(self, width: int, num_heads: int, num_points: int, feed_forward_width: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = CrossAttention(width, num_heads)
        self.self_attention_norm = nn.LayerNorm(width)
        self.deformable_attention = DeformableAttention(width, num_heads, num_points)
        self.deformable_attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, feed_forward_width, "relu")
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, position: Tensor, reference_points: Tensor, features: Tensor) -> Tensor:
        mixed = self.self_attention(queries + position, queries, memory_position=position)
        queries = self.self_attention_norm(queries + self.dropout(mixed))
        read = self.deformable_attention(queries + position, reference_points, features)
        queries = self.deformable_attention_norm(queries + self.dropout(read))
        return self.feed_forward_norm(queries + self.dropout(self.feed_forward(queries)))
