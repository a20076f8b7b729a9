"""BLIP-2 and InstructBLIP whole: vision tower, Q-Former, language model, in `transformers` layout; LAVIS' files of a stream.

The keys are the same in 4.x and 5.x. LAVIS, the published code, keeps no language model in its files: `lavis_stream` reads
tower, Q-Former and the map to the language model. Source: `Blip2ForConditionalGeneration`,
`InstructBlipForConditionalGeneration`; BLIP-2, arXiv:2301.12597; InstructBLIP, arXiv:2305.06500.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints import blip_2_vision, llama, opt, qformer, t5
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.core.errors import CheckpointError
from weft.core.interfaces import EncoderDecoder, LanguageModel
from weft.encoders.eva_clip import EvaClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.language_models.opt import Opt
from weft.language_models.t5 import T5
from weft.projectors.qformer import QFormer
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem, Stream
from weft.systems.multimodal_seq2seq import MultimodalSeq2Seq

STREAM = "image"
_FORMATS: dict[type[LanguageModel.Config], CheckpointFormat] = {
    Opt.Config: opt.FORMAT,
    T5.Config: t5.FORMAT,
    Decoder.Config: llama.FORMAT,
}
_NAMES = {"blip-2": ("Blip2", "blip_2"), "instructblip": ("InstructBlip", "instructblip")}
_NO_PART = "a head of the first stage, or a language model, which this stream does not hold"
_LAVIS_REST = {
    **dict.fromkeys(("vision_proj", "text_proj", "itm_head", "temp", "Qformer.cls.*"), _NO_PART),
    **dict.fromkeys(("opt_model.*", "t5_model.*", "llm_model.*"), _NO_PART),
}


def key_map(config: MultimodalSystem.Config) -> KeyMap:
    """The table of a whole model; whether its Q-Former reads instructions decides on the layout."""
    encoder, projector, language_model = expressible_parts(config)
    layout = qformer.BLIP_2 if projector.vocabulary is None else qformer.INSTRUCT_BLIP
    return KeyMap.join(
        blip_2_vision.transformers_tower(encoder).under("vision_model.", f"streams.{STREAM}.encoder."),
        layout.projector(projector).under(target=f"streams.{STREAM}.projector."),
        _FORMATS[type(language_model)].key_map(language_model).under("language_model.", "language_model."),
    )


def lavis_stream(config: Stream.Config) -> KeyMap:
    """The table of a stream in LAVIS' file of BLIP-2 or InstructBLIP.

    Raises: CheckpointError for a stream of other parts.
    """
    encoder, projector = _stream_parts(config)
    return KeyMap.join(
        blip_2_vision.lavis_tower(encoder).under(target="encoder."),
        qformer.LAVIS.projector(projector).under(target="projector."),
        KeyMap(drop=_LAVIS_REST),
    )


def read_config(saved: Mapping[str, Any], where: str = "config.json") -> MultimodalSystem.Config:
    """The system that a `blip-2` or `instructblip` config describes.

    Raises: CheckpointError for a language model or a Q-Former that Weft does not have in it.
    """
    text = {"model_type": "opt", **(saved.get("text_config") or {})}
    formats = {kind: layout for layout in _FORMATS.values() for kind in layout.model_types}
    if text["model_type"] not in formats:
        raise CheckpointError(f"{where} has a language model of type {text['model_type']!r}; known are {', '.join(formats)}")
    if saved["model_type"] == "blip-2" and (saved.get("qformer_config") or {}).get("use_qformer_text_input"):
        raise CheckpointError(f"{where} describes BLIP-2's first stage, whose Q-Former reads texts and writes none")
    stream = Stream.Config(
        encoder=blip_2_vision.read_transformers(saved.get("vision_config") or {}), projector=qformer.read_config(saved)
    )
    return system_of(formats[text["model_type"]].read_config(text), stream)


def system_of(language_model: LanguageModel.Config, stream: Stream.Config) -> MultimodalSystem.Config:
    """The system of a language model, with or without an encoder of its own, that reads the tokens of one stream."""
    streams, fusions = {STREAM: stream}, (TokenConcatenation.Config(streams=(STREAM,)),)
    if isinstance(language_model, EncoderDecoder.Config):
        return MultimodalSeq2Seq.Config(language_model=language_model, streams=streams, fusions=fusions)
    return MultimodalLM.Config(language_model=language_model, streams=streams, fusions=fusions)


def write_config(config: MultimodalSystem.Config, image_token: int | None = None) -> dict[str, Any]:
    """The `transformers` config of a system; `image_token` is the id that stands for image positions (by default the last).

    Raises: CheckpointError for a system that the layouts cannot hold.
    """
    encoder, projector, language_model = expressible_parts(config)
    kind: qformer.ModelType = "blip-2" if projector.vocabulary is None else "instructblip"
    family, prefix = _NAMES[kind]
    vision = blip_2_vision.write_transformers(encoder) | {"model_type": f"{prefix}_vision_model"}
    return {
        "architectures": [f"{family}ForConditionalGeneration"],
        "model_type": kind,
        "image_token_index": language_model.vocabulary - 1 if image_token is None else image_token,
        "is_encoder_decoder": isinstance(language_model, EncoderDecoder.Config),
        "vision_config": {name: value for name, value in vision.items() if name != "architectures"},
        **qformer.write_config(projector, encoder.output_width, kind),
        "text_config": _FORMATS[type(language_model)].write_config(language_model),
    }


def expressible_parts(
    config: MultimodalSystem.Config,
) -> tuple[EvaClipVision.Config, QFormer.Config, LanguageModel.Config]:
    """Tower, Q-Former and language model of a system. Raises: CheckpointError for a system of other parts."""
    problems = []
    if list(config.streams) != [STREAM]:
        problems.append(f"its streams are {sorted(config.streams)}, not one named {STREAM!r}")
    if [type(fusion) for fusion in config.fusions] != [TokenConcatenation.Config]:
        problems.append("its fusion is not TokenConcatenation alone")
    if type(config.language_model) not in _FORMATS:
        problems.append(f"the language model is {config.language_model.part_name}, not OPT, T5 or Decoder")
    if problems:
        raise CheckpointError(f"the BLIP-2 layout cannot hold this system: {'; '.join(problems)}")
    return *_stream_parts(config.streams[STREAM]), config.language_model


def _stream_parts(stream: Stream.Config) -> tuple[EvaClipVision.Config, QFormer.Config]:
    encoder, projector = stream.encoder, stream.projector
    if not isinstance(encoder, EvaClipVision.Config) or not isinstance(projector, QFormer.Config):
        raise CheckpointError(
            f"the BLIP-2 layout holds EvaClipVision and QFormer, not {encoder.part_name} and {projector.part_name}"
        )
    return encoder, projector


def _tiny(vocabulary: int | None, *language_models: LanguageModel.Config) -> tuple[MultimodalSystem.Config, ...]:
    stream = Stream.Config(
        encoder=blip_2_vision.tiny_tower(1e-6), projector=replace(QFormer.Config.tiny(), vocabulary=vocabulary, context=64)
    )
    return tuple(system_of(model, stream) for model in language_models)


BLIP_2 = CheckpointFormat(
    name="blip-2",
    model_types=("blip-2",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=lambda: _tiny(None, Opt.Config.tiny(), replace(T5.Config.tiny(), activation="gelu")),
)

INSTRUCT_BLIP = CheckpointFormat(
    name="instructblip",
    model_types=("instructblip",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=lambda: _tiny(61, Decoder.Config.tiny(), replace(T5.Config.tiny(), activation="gelu")),
)
