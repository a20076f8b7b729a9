"""The image tower of Llama 3.2 Vision: a local and a global stack over all tiles of a picture, arXiv:2407.21783."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule, RuleSide
from weft.core.errors import ConfigError, DataError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout, tile_grids
from weft.core.media import MediaFeatures
from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.feed_forward import FeedForward
from weft.layers.layer_scale import LayerScaleBlock, scaled_sum
from weft.layers.patch_embedding import PatchEmbedding, patches_per_side
from weft.layers.precision import working_precision
from weft.layers.slots import BlockContext

PADDED_TO = 8  # the features of a tile are filled up to a multiple of it, as the published kernels wanted them


class TanhGate(nn.Module):
    """x + tanh(gate) * branch, the gate one learned number. Shapes: x and branch [..., D] -> [..., D]."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((1,), initial))

    def forward(self, hidden: Tensor, branch: Tensor) -> Tensor:
        return scaled_sum(hidden, branch, torch.tanh(self.gate))


class TileTable(nn.Module):
    """What is learned for each tile of each grid, behind a gate that starts shut; row 0 stands for no picture.

    Shapes: grid [M] -> [M, num_tiles, length, width].
    """

    def __init__(self, num_grids: int, num_tiles: int, length: int, width: int) -> None:
        super().__init__()
        self.shape = (num_tiles, length, width)
        self.embedding = nn.Embedding(num_grids + 1, num_tiles * length * width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, grid: Tensor) -> Tensor:
        return torch.tanh(self.gate) * self.embedding(grid).view(-1, *self.shape)


class Mllama(ModalityEncoder):
    """Two vision transformers in a row over all tiles of a picture together; the blocks of the second are gated.

    A picture is filled up with blank tiles to `max_tiles`, and every tile to a multiple of 8 features, as the published weights
    were trained: what is real attends to what fills up, which itself attends to what is real only. Features are the last state
    and, channel by channel side by side, the states around some local blocks, so C = width * (1 + those).

    Shapes: units [N, 3, S, S], tiles row by row -> values [N, 1 + G * G, C] with G = S // patch_size, class token first.
    Raises: DataError for a picture of a grid that has no row in the tables.
    Source: The Llama 3 Herd of Models, arXiv:2407.21783, and the code that Meta released.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`kept_states`: of the local blocks in `kept_layers`, the inputs, as in Meta's code and for its weights, or the
        outputs, as in `transformers` since 5. `blank_tiles`: the features of what fills a picture up are given too, marked as
        not valid; in `transformers` they are seen by tokens that see no picture."""

        image_size: int = 448
        patch_size: int = 14
        width: int = 1280
        num_layers: int = 32
        num_global_layers: int = 8
        num_heads: int = 16
        feed_forward_width: int = 5120
        activation: str = "gelu"
        max_tiles: int = 4
        kept_layers: tuple[int, ...] = (3, 7, 15, 23, 30)
        kept_states: Literal["inputs", "outputs"] = "inputs"
        blank_tiles: bool = False
        norm_eps: float = 1e-5

        def __post_init__(self) -> None:
            patches_per_side(self.image_size, self.patch_size)
            if self.width % self.num_heads:
                raise ConfigError(
                    f"width {self.width} does not split into {self.num_heads} heads; choose a number of heads that divides it"
                )
            if self.max_tiles < 1:
                raise ConfigError(f"a picture has at least one tile, got max_tiles={self.max_tiles}")
            if any(not 0 <= layer < self.num_layers for layer in self.kept_layers):
                raise ConfigError(f"kept_layers are local blocks, from 0 to {self.num_layers - 1}, got {self.kept_layers}")
            if list(self.kept_layers) != sorted(set(self.kept_layers)):
                raise ConfigError(f"kept_layers go up, each once, got {self.kept_layers}")

        def build(self) -> Mllama:
            return Mllama(self)

        @property
        def output_width(self) -> int:
            return self.width * (1 + len(self.kept_layers))

        @property
        def num_positions(self) -> int:
            """Features of one tile, its class token included."""
            return patches_per_side(self.image_size, self.patch_size) ** 2 + 1

        def layout(self) -> MediaLayout:
            """One tile; with the class token kept there is no grid but one row of features."""
            return MediaLayout(1, self.num_positions)

        def grid_number(self, layout: MediaLayout) -> int:
            """The row of the tables for a picture's grid of tiles, from 1. Raises: DataError where there is none."""
            grids, grid = tile_grids(self.max_tiles), (layout.tile_rows, layout.tile_columns)
            if grid not in grids or layout.num_units != layout.num_tiles:
                raise DataError(
                    f"a picture of {grid[0]}x{grid[1]} tiles and {layout.num_units} units; the encoder takes up to "
                    f"{self.max_tiles} tiles and no thumbnail, so cut pictures with FittedCanvas(max_tiles={self.max_tiles})"
                )
            return grids.index(grid) + 1

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                image_size=32, patch_size=8, width=32, num_layers=2, num_global_layers=1, num_heads=2, feed_forward_width=64,
                kept_layers=(0, 1),
            )  # fmt: skip

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {"h-14-448": cls(), "h-14-560": cls(image_size=560)}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c, grids = config, len(tile_grids(config.max_tiles))
        self.patch_embedding = PatchEmbedding(c.image_size, c.patch_size, c.width, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(c.width))
        self.position_embedding = nn.Parameter(torch.empty(c.num_positions, c.width))
        self.tile_positions = TileTable(grids, c.max_tiles, c.num_positions, c.width)
        self.tiles_before_local = TileTable(grids, c.max_tiles, 1, c.width)
        self.tiles_before_global = TileTable(grids, c.max_tiles, 1, c.width)
        self.norm_before_local = nn.LayerNorm(c.width)
        self.norm_before_global = nn.LayerNorm(c.width)
        self.local_blocks = nn.ModuleList(self._block(layer, gated=False) for layer in range(c.num_layers))
        self.global_blocks = nn.ModuleList(self._block(layer, gated=True) for layer in range(c.num_global_layers))
        self.initialise()

    def _block(self, layer: int, gated: bool) -> nn.Module:
        c = self.config
        attention = Attention(c.width, c.num_heads, layer=layer, input_bias=False, output_bias=False)
        feed_forward = FeedForward(c.width, c.feed_forward_width, c.activation)
        norms = nn.LayerNorm(c.width, eps=c.norm_eps), nn.LayerNorm(c.width, eps=c.norm_eps)
        if not gated:
            return PreNormBlock(norms[0], attention, norms[1], feed_forward)
        gates = TanhGate(math.pi / 4), TanhGate(math.pi / 4)
        return LayerScaleBlock(norms[0], attention, gates[0], norms[1], feed_forward, gates[1])

    def initialise(self) -> None:
        """The start of the published code: vectors of length about one, matrices and tables small."""
        nn.init.normal_(self.class_embedding, std=self.config.width**-0.5)
        nn.init.normal_(self.position_embedding, std=self.config.width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        c, positions = self.config, self.config.num_positions
        numbers = [c.grid_number(each) for each in layout]
        grid = torch.tensor(numbers, device=unit_item.device)
        place = (unit_item, MediaFeatures(units, unit_item, layout).unit_place())
        patches = self.patch_embedding(units)
        blank = patches.new_zeros(len(layout), c.max_tiles, *patches.shape[1:])
        hidden = self._embedded(blank.index_put(place, patches), grid)
        real = torch.zeros(hidden.shape[:3], dtype=torch.bool, device=hidden.device)
        real[..., :positions] = real[..., :positions].index_put(place, real.new_ones(()))
        context = BlockContext(real_see_all(real.flatten(1)))

        local, kept = self._local(working_precision(hidden.flatten(1, 2)), context)
        state = self.norm_before_global(local).view_as(hidden) + self.tiles_before_global(grid)
        state = working_precision(state.flatten(1, 2))
        for block in self.global_blocks:
            state, _ = block(state, {}, context)
        interleaved = torch.stack(kept, -1).flatten(-2) if kept else state[..., :0]
        values = torch.cat((state, interleaved), -1).view(*hidden.shape[:3], -1)
        values, real = values[:, :, :positions], real[..., :positions]
        if not c.blank_tiles:
            return MediaFeatures(values[place], unit_item, layout)
        item = torch.arange(len(layout), device=unit_item.device).repeat_interleave(c.max_tiles)
        filled = tuple(replace(each, tile_rows=c.max_tiles, tile_columns=1) for each in layout)
        return MediaFeatures(values.flatten(0, 1), item, filled, real.flatten(0, 1))

    def _embedded(self, patches: Tensor, grid: Tensor) -> Tensor:
        """What enters the local blocks: class token, positions, tables, norm, padding.

        Shapes: patches [M, max_tiles, G * G, width] -> [M, max_tiles, L, width] with L a multiple of 8.
        """
        first = self.class_embedding.to(patches.dtype).expand(*patches.shape[:2], 1, -1)
        hidden = torch.cat((first, patches + self.tiles_before_local(grid)), 2)
        whole = (1 - torch.tanh(self.tile_positions.gate)) * self.position_embedding
        hidden = self.norm_before_local(hidden + whole + self.tile_positions(grid))
        return F.pad(hidden, (0, 0, 0, -hidden.shape[2] % PADDED_TO))

    def _local(self, hidden: Tensor, context: BlockContext) -> tuple[Tensor, list[Tensor]]:
        """The state after the local blocks, and those that are features."""
        later = self.config.kept_states == "outputs"
        kept = []
        for layer, block in enumerate(self.local_blocks):
            before = hidden
            hidden, _ = block(hidden, {}, context)
            if layer in self.config.kept_layers:
                kept.append(hidden if later else before)
        return hidden, kept


def real_see_all(real: Tensor) -> AttentionRule:
    """The real features see everything, what fills up sees the real ones. Shapes: real [M, L] bool."""
    fills = (~real).long()
    place = torch.arange(real.shape[1], device=real.device).expand_as(real)
    segment = torch.ones_like(fills)
    rule = AttentionRule(1 - fills, segment, place, keys=RuleSide(fills, segment, place))
    return rule.assume(pattern="general", everyone_sees=True)
