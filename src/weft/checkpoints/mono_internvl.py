"""Mono-InternVL in the layout of its own code, whose class is InternVL's with InternLM2 that has visual experts.

Source: the `InternVLChatModel` files of Mono-InternVL, arXiv:2410.08202. They hold a class token and its place, of which no
feature is made: they are left out on reading and written as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weft.checkpoints import internlm2
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.position_table import resized
from weft.checkpoints.rules import Rule
from weft.core.errors import CheckpointError
from weft.encoders.patch_vision import PatchVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.fusion.visual_expert import VisualExpert
from weft.language_models.decoder import Decoder
from weft.layers.patch_embedding import patches_per_side
from weft.projectors.pixel_shuffle import PixelShuffle
from weft.systems.multimodal_lm import MultimodalLM, Stream

STREAM = "image"
FUSIONS = (TokenConcatenation.Config(), VisualExpert.Config(attention=False))
_ORDERS = {"v1": "columns", "v2": "rows"}
_EXPERT = {"w1": "gate", "w3": "up", "w2": "down"}


def key_map(config: MultimodalLM.Config) -> KeyMap:
    """The whole model's table."""
    encoder, _, decoder = expressible_parts(config)
    side = patches_per_side(encoder.image_size, encoder.patch_size)
    theirs, ours = "language_model.model.layers.{i}.feed_forward_ve.", "language_model.blocks.{i}.feed_forward.routes.visual."
    own = KeyMap(
        [places("vision_model.embeddings.", f"streams.{STREAM}.encoder.position_embedding", side)],
        rename={
            "vision_model.embeddings.patch_embedding": f"streams.{STREAM}.encoder.patch_embedding.projection",
            "mlp1.0": f"streams.{STREAM}.projector.norm",
            "mlp1.1": f"streams.{STREAM}.projector.up",
            "mlp1.3": f"streams.{STREAM}.projector.down",
            **{theirs + a: ours + b for a, b in _EXPERT.items()},
        },
    )
    return KeyMap.join(own, internlm2.key_map(decoder).under("language_model.", "language_model."))


def places(source: str, target: str, side: int) -> Rule:
    """A class token and a table [1, 1 + G * G, C] become the patches' own places [side * side, C], bicubically."""

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        _, table = tensors
        if table.dim() != 3 or len(table) != 1:
            raise ValueError(f"expected a table [1, places, width], got {tuple(table.shape)}")
        return (resized(table[0], side)[1:],)

    def backward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (table,) = tensors
        none = torch.zeros_like(table[:1])
        return none[None], torch.cat((none, table))[None]

    return Rule((f"{source}class_embedding", f"{source}position_embedding"), (target,), forward, backward)


def read_config(config: Mapping[str, Any], where: str = "config.json") -> MultimodalLM.Config:
    """The system that a Mono-InternVL config describes.

    Raises: CheckpointError for another InternVL, and for what Mono-InternVL does not have.
    """
    vision, text = config.get("vision_config") or {}, config.get("llm_config") or {}
    kind, language = vision.get("model_type", "intern_vit_patch"), (text.get("architectures") or [None])[0]
    ratio, version = config.get("downsample_ratio", 0.5), config.get("ps_version", "v1")
    wanted = {
        "vision_config.model_type": (kind, "intern_vit_patch" in kind),
        "llm_config.architectures": (language, language == "InternLM2VEForCausalLM"),
        "downsample_ratio": (ratio, ratio > 0 and (1 / ratio).is_integer()),
        "ps_version": (version, version in _ORDERS),
    }
    if unfit := [f"{name}={value!r}" for name, (value, fits) in wanted.items() if not fits]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which Mono-InternVL's layout does not have")
    encoder = PatchVision.Config(
        image_size=config.get("force_image_size") or vision.get("image_size", 448),
        patch_size=vision.get("patch_size", 14),
        width=vision.get("hidden_size", 1024),
    )
    projector = PixelShuffle.Config(ratio=int(1 / ratio), order=_ORDERS[version])  # type: ignore[arg-type]  # one of two
    return MultimodalLM.Config(
        language_model=internlm2.read_config(text, f"{where}, llm_config"),
        streams={STREAM: Stream.Config(encoder=encoder, projector=projector)},
        fusions=FUSIONS,
    )


def write_config(config: MultimodalLM.Config) -> dict[str, Any]:
    """The published config of a system.

    Raises: CheckpointError for a system that is not Mono-InternVL's.
    """
    encoder, projector, decoder = expressible_parts(config)
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 1 / projector.ratio,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "force_image_size": encoder.image_size,
        "ps_version": next(version for version, order in _ORDERS.items() if order == projector.order),
        "select_layer": -1,
        "template": "internlm2-chat",
        "vision_config": {
            "model_type": "intern_vit_patch",
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "hidden_size": encoder.width,
        },
        "llm_config": {**internlm2.write_config(decoder), "architectures": ["InternLM2VEForCausalLM"]},
    }


def expressible_parts(config: MultimodalLM.Config) -> tuple[PatchVision.Config, PixelShuffle.Config, Decoder.Config]:
    """The parts of a system that this layout can hold. Raises: CheckpointError for another system."""
    stream, decoder = config.streams.get(STREAM), config.language_model
    encoder, projector = (None, None) if stream is None else (stream.encoder, stream.projector)
    fits = isinstance(encoder, PatchVision.Config) and isinstance(projector, PixelShuffle.Config)
    if not fits or len(config.streams) != 1 or not isinstance(decoder, Decoder.Config) or config.fusions != FUSIONS:
        raise CheckpointError(
            f"the Mono-InternVL layout holds one stream {STREAM!r} of PatchVision and PixelShuffle, a Decoder, and the fusions "
            "TokenConcatenation and VisualExpert(attention=False); this system has other parts"
        )
    assert isinstance(encoder, PatchVision.Config) and isinstance(projector, PixelShuffle.Config)
    return encoder, projector, decoder


def _tiny() -> tuple[MultimodalLM.Config, ...]:
    rows = Stream.Config(encoder=PatchVision.Config.tiny(), projector=PixelShuffle.Config())
    columns = replace(rows, projector=PixelShuffle.Config(order="columns"))
    return tuple(
        MultimodalLM.Config(language_model=Decoder.Config.tiny(), streams={STREAM: stream}, fusions=FUSIONS)
        for stream in (rows, columns)
    )


FORMAT = CheckpointFormat(
    name="mono_internvl",
    model_types=("internvl_chat",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
