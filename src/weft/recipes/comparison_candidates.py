"""Who takes part in a comparison: the catalogue's parts at the desk's size, and why the others stay out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from weft.core.catalogue import parts
from weft.core.errors import WeftError, unknown_name
from weft.core.interfaces import InputProjector, ModalityEncoder
from weft.projectors.positioned import Positioned
from weft.recipes.comparison_fusions import FusionForm, fused, fusion_forms
from weft.systems.accounting import num_parameters
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM
from weft.training.stage import Recipe, Stage

STREAM = "image"
FUSIONS = "fusions"
PLACES = {"projectors": f"streams.{STREAM}.projector", "encoders": f"streams.{STREAM}.encoder", FUSIONS: ""}
"""The rooms whose parts are compared, and the module that they are; fusions are spread over the whole system."""
NUM_SEEDS = 3
_EACH_FAMILY = ("token_concatenation", "flamingo", "cogvlm")
SEVERAL_SEEDS = ("linear", "mlp", "q_former", "perceiver", "c_abstractor", "ldpv2", *_EACH_FAMILY)
"""What most published systems use: their rows are worth `NUM_SEEDS` seeds, the rest one."""
QUICK = {
    "projectors": ("mlp", "ldpv2", "perceiver"),
    "encoders": ("siglip_vision", "clip_vision"),
    FUSIONS: _EACH_FAMILY,
}

# The desk's tower gives an 8x8 grid of width 128 and its language model is 128 wide, with two heads of 64.
DESK_SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "projectors": {
        "linear": {},
        "mlp": {},
        "pixel_shuffle": {},
        "mlp_downsample": {},
        "ldp": {},
        "ldpv2": {"side": 4},
        "average_pooling": {"side": 4},
        "attention_pooling": {"num_queries": 16, "head_width": 64},
        "qwen_resampler": {"grid": 4, "head_width": 64},
        "c_abstractor": {"grid_side": 8, "side": 4, "depth": 2},
        "d_abstractor": {"grid_side": 8, "side": 4, "num_layers": 2, "num_heads": 2, "feed_forward_width": 384},
        "perceiver": {"num_latents": 16, "num_layers": 2, "num_heads": 2},
        "q_former": {
            "num_queries": 16,
            "width": 128,
            "num_layers": 4,
            "num_heads": 2,
            "feed_forward_width": 384,
            "dropout": 0.0,
        },
    },
    "encoders": {
        "clip_vision": {
            "image_size": 64,
            "patch_size": 8,
            "width": 128,
            "num_layers": 4,
            "num_heads": 2,
            "feed_forward_width": 384,
            "activation": "gelu",
            "feature_layer": -1,
        },
        "dinov2": {
            "image_size": 64,
            "position_image_size": 64,
            "patch_size": 8,
            "width": 128,
            "num_layers": 4,
            "num_heads": 2,
            "feed_forward_ratio": 3,
            "feature_layer": "normed",
            "mask_token": False,
            "initial_scale": 0.1,  # at 1e-5 the few steps of the desk's first stage would go by before a block speaks
        },
        "eva_clip_vision": {
            "image_size": 64,
            "patch_size": 8,
            "width": 128,
            "num_layers": 4,
            "num_heads": 2,
            "feed_forward_width": 384,
            "embedding_width": None,
            "feature_layer": -1,
            "feature_norm_eps": 1e-5,
        },
        "resnet": {
            "image_size": 64,
            "depths": (2, 2),
            "stem_width": 32,
            "widths": (64, 128),
            "frozen_statistics": False,  # they are frozen to published weights, and there are none here
        },
    },
}
_LEFT_OUT = {
    "projectors": {
        "positioned": "wraps every candidate",
        "interleaved": "needs the features of two encoders, a mixture",
        "tiles": "needs pictures that were cut into tiles",
        "global_local_tiles": "needs pictures that were cut into tiles",
        "region_embedding": "reads boxes beside the features",
        "stacked_frames": "joins neighbours in time, which a picture has none of",
    },
    "encoders": {
        "mixture": "joins two encoders that are candidates themselves",
        "video": "reads frames of a video",
        "regions": "reads boxes beside the picture",
        "detected_regions": "reads a detector's features instead of pictures",
        "nfnet": "leaves a 2x2 grid of a 64-pixel picture",
    },
}


Compared = InputProjector.Config | ModalityEncoder.Config | FusionForm


@dataclass(frozen=True)
class Part:
    """A part that takes part, at the desk's size, with the seeds that its row is worth."""

    name: str
    config: Compared
    seeds: tuple[int, ...]


def parts_of_room(room: str, recipe: Recipe, only: Sequence[str] | None = None) -> tuple[tuple[Part, ...], dict[str, str]]:
    """The parts of a room that are compared, and those that stay out with their reasons.

    Raises: ConfigError for a room or a name in `only` that is unknown, and for a part that cannot be compared.
    """
    if room not in PLACES:
        raise unknown_name("room to compare", room, PLACES)
    found: dict[str, Compared] = {}
    left_out: dict[str, str] = {}
    if room == FUSIONS:
        forms, left_out = fusion_forms()
        found |= forms
    else:
        for name in parts(room):
            sized = _desk_sized(room, name, recipe)
            if isinstance(sized, str):
                left_out[name] = sized
            else:
                found[name] = sized
    names = chosen(room.rstrip("s"), found, left_out, only)
    return tuple(Part(name, found[name], seeds_of(name, SEVERAL_SEEDS)) for name in names), left_out


def chosen(kind: str, found: Iterable[str], left_out: Mapping[str, str], only: Sequence[str] | None) -> tuple[str, ...]:
    """The names in `only`, each once, or all that were found. Raises: ConfigError for one that is left out or unknown."""
    names = tuple(found)
    for name in only or ():
        if name in left_out:
            raise WeftError(f"{name} cannot be compared on the desk: {left_out[name]}; choose among {', '.join(names)}")
        if name not in names:
            raise unknown_name(kind, name, names)
    return tuple(dict.fromkeys(only)) if only else names


def seeds_of(name: str, several: Sequence[str]) -> tuple[int, ...]:
    """The seeds that a row is worth."""
    return tuple(range(NUM_SEEDS if name in several else 1))


def placed(stage: Stage, config: Compared) -> Stage:
    """The stage with a candidate in its place; a stage that has no such place stays as it is.

    Projectors stand in a `Positioned` with one vector a token. A candidate with more tokens than the recipe's own gets as much
    more room in a sample, so that the same words are trained.
    """
    system = stage.system
    if isinstance(system, DualEncoder.Config) and isinstance(config, ModalityEncoder.Config):
        return replace(stage, system=replace(system, media=config))
    if not isinstance(system, MultimodalLM.Config) or STREAM not in system.streams:
        return stage
    if isinstance(config, FusionForm):
        stage = fused(stage, config)
    else:
        stream = system.streams[STREAM]
        encoder = config if isinstance(config, ModalityEncoder.Config) else stream.encoder
        projector = config if isinstance(config, InputProjector.Config) else stream.projector
        inner = projector.inner if isinstance(projector, Positioned.Config) else projector
        wrapper = stream.projector if isinstance(stream.projector, Positioned.Config) else Positioned.Config()
        wrapped = replace(wrapper, inner=inner, capacity=inner.num_tokens(encoder.layout()))
        streams = {**system.streams, STREAM: replace(stream, encoder=encoder, projector=wrapped)}
        stage = replace(stage, system=replace(system, streams=streams))
    more = stage.system.num_positions(STREAM) - system.num_positions(STREAM)
    return replace(stage, max_tokens=stage.max_tokens + max(0, more))


def seeing(recipe: Recipe) -> MultimodalLM.Config:
    """The recipe's last system, which has the place of every candidate."""
    system = recipe.system
    assert isinstance(system, MultimodalLM.Config) and STREAM in system.streams
    return system


def _desk_sized(room: str, name: str, recipe: Recipe) -> InputProjector.Config | ModalityEncoder.Config | str:
    """A part's config for the desk, or why it has none."""
    cls: Any = parts(room)[name]
    if name in _LEFT_OUT[room]:
        return _LEFT_OUT[room][name]
    if name in DESK_SIZES[room]:
        return cls.Config(**DESK_SIZES[room][name])  # type: ignore[no-any-return]
    stream = seeing(recipe).streams[STREAM]
    if room == "encoders":
        if not issubclass(cls, ModalityEncoder):
            return "reads text"
        if cls.Config.modality != STREAM:
            return f"reads {cls.Config.modality}"
        if cls.Config is type(stream.encoder):
            return stream.encoder
        return "has no size for the desk yet"
    return _smallest_fitting(cls, stream.encoder, seeing(recipe))


def _smallest_fitting(cls: Any, encoder: ModalityEncoder.Config, system: MultimodalLM.Config) -> InputProjector.Config | str:
    """A projector's own default where it is in proportion to the desk, else its smallest form; or why neither works."""
    layout, reason = encoder.layout(), ""
    with torch.device("meta"):
        largest = num_parameters(system.language_model.build())
    for make in (cls.Config, cls.Config.tiny):
        try:
            config: InputProjector.Config = make()
            tokens = config.num_tokens(layout)
            with torch.device("meta"):
                size = num_parameters(config.build(encoder.output_width, system.language_model.output_width))
        except (WeftError, RuntimeError, ValueError) as error:
            reason = f"cannot be built for the desk: {error}"
            continue
        if 0 < tokens <= layout.positions and size <= largest:
            return config
        reason = f"is out of proportion to the desk: {tokens} tokens a picture, {size:,} parameters"
    return reason
