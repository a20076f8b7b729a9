"""LLaVA-1.5 in `transformers` layout: CLIP's image tower, the projector, a Llama-type language model.

Files are written in the spelling of the published ones (4.x), which 5.x reads too; both spellings are read, and the one that
5.x writes. Source: `LlavaForConditionalGeneration`; LLaVA-1.5, arXiv:2310.03744.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints import clip, llama
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.core.errors import CheckpointError
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.mlp import MLP
from weft.systems.multimodal_lm import MultimodalLM, Stream

STREAM = "image"

PROJECTOR = KeyMap(rename={"linear_1": "layers.0", "linear_2": "layers.1"})


def key_map_around(projector: KeyMap) -> KeyMap:
    """The table of a whole model whose projector has the table `projector`, from file names to those within the stream."""
    return KeyMap.join(
        clip.VISION.under("vision_tower.vision_model.", f"streams.{STREAM}.encoder."),
        projector.under(target=f"streams.{STREAM}."),
        llama.LLAMA.under("language_model.", "language_model."),
        spellings=[
            ("model.vision_tower.", "vision_tower."),
            ("vision_tower.", "vision_tower.vision_model."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
        ],
    )


LLAVA = key_map_around(PROJECTOR.under("multi_modal_projector.", "projector."))

_VISION_DEFAULT = clip.write_vision(ClipVision.Config.sizes()["l-14-336"])


def read_config(config: Mapping[str, Any], where: str = "config.json") -> MultimodalLM.Config:
    """The system that a `transformers` LLaVA config describes.

    Raises: CheckpointError naming what Weft's LLaVA does not have.
    """
    vision = config.get("vision_config") or _VISION_DEFAULT
    text = config.get("text_config") or {"model_type": "llama"}
    layer, select = config.get("vision_feature_layer", -2), config.get("vision_feature_select_strategy", "default")
    wanted = {
        "vision_config.model_type": (vision.get("model_type"), vision.get("model_type") == "clip_vision_model"),
        "vision_feature_layer": (layer, isinstance(layer, int)),
        "vision_feature_select_strategy": (select, select in ("default", "full")),
        "projector_hidden_act": (config.get("projector_hidden_act"), config.get("projector_hidden_act", "gelu") == "gelu"),
        "multimodal_projector_bias": (False, config.get("multimodal_projector_bias", True)),
    }
    if unfit := [f"{name}={value!r}" for name, (value, fits) in wanted.items() if not fits]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which Weft's LLaVA layout does not have")
    decoder = llama.read_config({"model_type": "llama", **text}, f"{where}, text_config")
    tied = bool(config.get("tie_word_embeddings") or decoder.tied_head)
    encoder = replace(clip.read_vision(vision), feature_layer=layer, keep_class_token=select == "full")
    return MultimodalLM.Config(
        language_model=replace(decoder, tied_head=tied),
        streams={STREAM: Stream.Config(encoder=encoder, projector=MLP.Config(depth=2))},
        fusions=(TokenConcatenation.Config(streams=(STREAM,)),),
    )


def write_config(config: MultimodalLM.Config, image_token: int | None = None) -> dict[str, Any]:
    """The `transformers` config of a system; `image_token` is the id that stands for image positions (by default the last).

    Raises: CheckpointError for a system that is not one CLIP tower, a projector of two layers and a decoder.
    """
    encoder, decoder = expressible_parts(config)
    vision = {**clip.write_vision(encoder), "projection_dim": encoder.width}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": decoder.vocabulary - 1 if image_token is None else image_token,
        "image_seq_length": config.streams[STREAM].num_tokens,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": encoder.feature_layer,
        "vision_feature_select_strategy": "full" if encoder.keep_class_token else "default",
        "tie_word_embeddings": decoder.tied_head,
        "vision_config": vision,
        "text_config": llama.write_config(decoder),
    }


def expressible_parts(config: MultimodalLM.Config) -> tuple[ClipVision.Config, Decoder.Config]:
    """The image tower and the language model of a system that this layout can hold.

    Raises: CheckpointError naming every part that it cannot.
    """
    problems = []
    if not isinstance(config.language_model, Decoder.Config):
        problems.append(f"the language model is {config.language_model.part_name}, not Decoder")
    if list(config.streams) != [STREAM]:
        problems.append(f"its streams are {sorted(config.streams)}, not one named {STREAM!r}")
    if [type(fusion) for fusion in config.fusions] != [TokenConcatenation.Config]:
        problems.append("its fusion is not TokenConcatenation alone")
    stream = config.streams.get(STREAM)
    encoder = stream.encoder if stream is not None else None
    if stream is not None and not isinstance(encoder, ClipVision.Config):
        problems.append(f"the encoder is {stream.encoder.part_name}, not ClipVision")
    if stream is not None and stream.projector != MLP.Config(depth=2):
        problems.append(f"the projector is {stream.projector}, not MLP of depth 2")
    if problems:
        raise CheckpointError(f"the LLaVA layout cannot hold this system: {'; '.join(problems)}")
    assert isinstance(encoder, ClipVision.Config) and isinstance(config.language_model, Decoder.Config)
    return encoder, config.language_model


def _tiny() -> tuple[MultimodalLM.Config, ...]:
    stream = Stream.Config(encoder=ClipVision.Config.tiny(), projector=MLP.Config(depth=2))
    return tuple(
        MultimodalLM.Config(language_model=decoder, streams={STREAM: stream}, fusions=(TokenConcatenation.Config(),))
        for decoder in llama.FORMAT.tiny()
    )


FORMAT = CheckpointFormat(
    name="llava",
    model_types=("llava",),
    key_map=lambda config: LLAVA,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
