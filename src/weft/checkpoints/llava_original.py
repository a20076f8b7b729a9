"""LLaVA 1 to 1.6 in the layout of its own code: Llama's keys, with `mm_projector` and `vision_tower` among them.

The tower is in the files where it was trained (1.6), and in a folder of its own where it was not (1, 1.5), whose config then is
given as `vision_config`; without it, a tower is known by its name. What the first stage writes (`mm_projector.bin`) holds the
projector alone. With `mm_use_im_start_end` texts hold two tokens around every picture, which are rows of the table like any
other.

Source: the `LlavaLlamaForCausalLM` files of LLaVA, arXiv:2304.08485 and 2310.03744, and of LLaVA-1.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints import clip, llama
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.core.errors import CheckpointError
from weft.core.interfaces import InputProjector
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.linear import Linear
from weft.projectors.mlp import MLP
from weft.projectors.tiles import Tiles
from weft.systems.multimodal_lm import MultimodalLM, Stream

STREAM = "image"
TOWERS = {"openai/clip-vit-large-patch14": "l-14", "openai/clip-vit-large-patch14-336": "l-14-336"}
_CLASSES = {"llama": ("llava_llama", "LlavaLlamaForCausalLM"), "mistral": ("llava_mistral", "LlavaMistralForCausalLM")}
_PROJECTORS = {"linear": Linear.Config(), "mlp2x_gelu": MLP.Config(depth=2)}
_ENCODER, _PROJECTOR = f"streams.{STREAM}.encoder.", f"streams.{STREAM}.projector."
_VISION = "model.vision_tower.vision_tower.vision_model."


def key_map(config: MultimodalLM.Config) -> KeyMap:
    """The table of a whole model; a file without the tower is joined with the tower's own."""
    projector = config.streams[STREAM].projector
    tiled = isinstance(projector, Tiles.Config)
    inner = projector.inner if isinstance(projector, Tiles.Config) else projector
    under = _PROJECTOR + ("inner." if tiled else "")
    names = (
        {"0": "layers.0", "2": "layers.1"}
        if isinstance(inner, MLP.Config)
        else {"weight": "linear.weight", "bias": "linear.bias"}
    )
    return KeyMap.join(
        llama.LLAMA.under(target="language_model."),
        clip.VISION.under(_VISION, _ENCODER),
        KeyMap(
            rename={
                **{f"model.mm_projector.{theirs}": under + ours for theirs, ours in names.items()},
                **({"model.image_newline": f"{_PROJECTOR}newline"} if tiled else {}),
            }
        ),
    )


def read_config(config: Mapping[str, Any], where: str = "config.json") -> MultimodalLM.Config:
    """The system that a config of LLaVA's own code describes.

    Raises: CheckpointError naming what Weft's LLaVA does not have, and for a tower of which nothing is known.
    """
    tower, kind = config["mm_vision_tower"], config.get("mm_projector_type", "linear")
    merge, select = config.get("mm_patch_merge_type", "flat"), config.get("mm_vision_select_feature", "patch")
    tiled = config.get("image_aspect_ratio") == "anyres"
    wanted = {
        "mm_projector_type": kind in _PROJECTORS,
        "mm_vision_select_feature": select in ("patch", "cls_patch"),
        "mm_patch_merge_type": merge == ("spatial_unpad" if tiled else "flat") and not (tiled and select != "patch"),
        "mm_resampler_type": config.get("mm_resampler_type") is None,
    }
    if unfit := [f"{name}={config.get(name)!r}" for name, fits in wanted.items() if not fits]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which Weft's LLaVA does not have")
    if "vision_config" not in config and tower not in TOWERS:
        raise CheckpointError(
            f"{where} looks with {tower}, of which nothing is known here; give its folder as streams.image.encoder"
        )
    vision = config.get("vision_config")
    encoder = clip.read_vision(vision) if vision is not None else ClipVision.Config.sizes()[TOWERS[tower]]
    language = "mistral" if config.get("model_type") == "llava_mistral" else "llama"
    projector: InputProjector.Config = _PROJECTORS[kind]
    stream = Stream.Config(
        encoder=replace(
            encoder, feature_layer=config.get("mm_vision_select_layer", -2), keep_class_token=select == "cls_patch"
        ),
        projector=Tiles.Config(inner=projector) if tiled else projector,
    )
    return MultimodalLM.Config(
        language_model=llama.read_config({**config, "model_type": language}, where),
        streams={STREAM: stream},
        fusions=(TokenConcatenation.Config(streams=(STREAM,)),),
    )


def write_config(config: MultimodalLM.Config) -> dict[str, Any]:
    """The config of a system as LLaVA's own code has it, with the tower's config besides.

    Raises: CheckpointError for a system that is not LLaVA's.
    """
    stream, decoder = config.streams.get(STREAM), config.language_model
    encoder = None if stream is None else stream.encoder
    refused = CheckpointError(
        f"LLaVA's own layout holds one stream {STREAM!r} of CLIP's tower, a projector that is Linear or an MLP of depth 2, "
        "alone or inside Tiles, a decoder of Llama or Mistral, and the fusion TokenConcatenation; this system has other parts"
    )
    if stream is None or not isinstance(encoder, ClipVision.Config) or not isinstance(decoder, Decoder.Config):
        raise refused
    projector = stream.projector
    tiled, inner = isinstance(projector, Tiles.Config), getattr(projector, "inner", projector)
    kind = next((name for name, known in _PROJECTORS.items() if known == inner), None)
    text = llama.write_config(decoder)
    if kind is None or text["model_type"] not in _CLASSES:
        raise refused
    model_type, name = _CLASSES[text["model_type"]]
    side = encoder.image_size
    grids = {
        "image_grid_pinpoints": [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    }
    saved = {
        **text,
        "architectures": [name],
        "model_type": model_type,
        "mm_vision_tower": "clip",
        "mm_hidden_size": encoder.width,
        "mm_projector_type": kind,
        "mm_vision_select_layer": encoder.feature_layer,
        "mm_vision_select_feature": "cls_patch" if encoder.keep_class_token else "patch",
        "mm_patch_merge_type": "spatial_unpad" if tiled else "flat",
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "anyres" if tiled else "pad",
        **(grids if tiled else {}),
        "vision_config": clip.write_vision(encoder),
    }
    if read_config(saved) != config:
        raise refused
    return saved


def _tiny() -> tuple[MultimodalLM.Config, ...]:
    decoder = replace(Decoder.Config.tiny(), num_key_value_heads=4)
    projectors = (Linear.Config(), MLP.Config(depth=2), Tiles.Config(inner=MLP.Config(depth=2)))
    return tuple(
        MultimodalLM.Config(
            language_model=replace(decoder, window=8) if isinstance(projector, Tiles.Config) else decoder,
            streams={STREAM: Stream.Config(encoder=replace(ClipVision.Config.tiny(), feature_layer=-2), projector=projector)},
            fusions=(TokenConcatenation.Config(streams=(STREAM,)),),
        )
        for projector in projectors
    )


FORMAT = CheckpointFormat(
    name="llava_original",
    model_types=("llava", "llava_llama", "llava_mistral"),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
    fields=("mm_vision_tower",),
)
