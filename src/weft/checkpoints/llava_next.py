"""LLaVA-NeXT in `transformers` layout: LLaVA-1.5's parts with the tiles of a picture merged around the projector.

Which grids a picture may be cut into stands in the config and again in the image processor's; the second decides here.
Source: `LlavaNextForConditionalGeneration`, LLaVA-1.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints import llava
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.core.errors import CheckpointError
from weft.core.interfaces import InputProjector
from weft.projectors.tiles import Tiles
from weft.systems.multimodal_lm import MultimodalLM

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""The published grids as (rows, columns), in the order in which `transformers` reads them."""

LLAVA_NEXT = llava.key_map_around(
    KeyMap.join(
        llava.PROJECTOR.under("multi_modal_projector.", "projector.inner."),
        KeyMap(rename={"image_newline": "projector.newline"}, spellings=[("model.image_newline", "image_newline")]),
    )
)


def read_config(config: Mapping[str, Any], where: str = "config.json") -> MultimodalLM.Config:
    """The system that a `transformers` LLaVA-NeXT config describes.

    Raises: CheckpointError naming what Weft's LLaVA-NeXT does not have.
    """
    if config.get("vision_feature_select_strategy", "default") != "default":
        raise CheckpointError(f"{where} keeps the class token, of which tiles make no map; only 'default' features are read")
    plain = llava.read_config(config, where)
    return _with_projector(plain, Tiles.Config(inner=plain.streams[llava.STREAM].projector))


def write_config(config: MultimodalLM.Config, image_token: int | None = None) -> dict[str, Any]:
    """The `transformers` config of a system; `image_token` is the id that stands for image positions (by default the last).

    Raises: CheckpointError for a system that is not LLaVA-1.5's with tiles around its projector.
    """
    plain = without_tiles(config)
    encoder, _ = llava.expressible_parts(plain)
    return {
        **llava.write_config(plain, image_token),
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": [[rows * encoder.image_size, columns * encoder.image_size] for rows, columns in GRIDS],
    }


def without_tiles(config: MultimodalLM.Config) -> MultimodalLM.Config:
    """The same system with the inner projector alone. Raises: CheckpointError for one that has no tiles."""
    stream = config.streams.get(llava.STREAM)
    if stream is None or not isinstance(stream.projector, Tiles.Config):
        raise CheckpointError("the LLaVA-NeXT layout holds a projector with Tiles around it; LLaVA's holds one without")
    return _with_projector(config, stream.projector.inner)


def _with_projector(config: MultimodalLM.Config, projector: InputProjector.Config) -> MultimodalLM.Config:
    return replace(config, streams={llava.STREAM: replace(config.streams[llava.STREAM], projector=projector)})


def _tiny() -> tuple[MultimodalLM.Config, ...]:
    return tuple(
        _with_projector(config, Tiles.Config(inner=config.streams[llava.STREAM].projector)) for config in llava.FORMAT.tiny()
    )


FORMAT = CheckpointFormat(
    name="llava_next",
    model_types=("llava_next",),
    key_map=lambda config: LLAVA_NEXT,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
