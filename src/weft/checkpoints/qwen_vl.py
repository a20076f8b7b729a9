"""Qwen-VL in its own layout: Qwen 1, with the image tower and the resampler under `transformer.visual`.

The tower's query, key and value lie side by side head by head in one matrix; what follows the resampler is the tower's end in
the files and the projector's in Weft. Source: the `QWenLMHeadModel` files of Qwen-VL, arXiv:2308.12966.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints import qwen
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.internlm2 import grouped
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.qwen_resampler import QWEN_RESAMPLER
from weft.core.errors import CheckpointError
from weft.encoders.qwen_vl_vision import QwenVLVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.layers.rotary import QwenScaling
from weft.projectors.qwen_resampler import QwenResampler
from weft.systems.multimodal_lm import MultimodalLM, Stream

STREAM = "image"
FUSIONS = (TokenConcatenation.Config(),)
IMAGE_START = 151_857  # the id of <img> in the published tokenizer
HEAD_WIDTH = 128  # of the resampler
POSITIONS_PER_SIDE = 16
QUERIES = 256

_LAYER = {
    "ln_1": "attention_norm",
    "attn.out_proj": "attention.output",
    "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
}


def vision(config: QwenVLVision.Config) -> KeyMap:
    """The table of the tower, whose heads say how the fused matrix is cut."""
    theirs, ours, heads = "transformer.resblocks.{i}.", "blocks.{i}.", config.num_heads
    fused = [
        grouped(
            f"{theirs}attn.in_proj.{leaf}",
            (f"{ours}attention.query.{leaf}", f"{ours}attention.key.{leaf}", f"{ours}attention.value.{leaf}"),
            heads,
            heads,
            config.width // heads,
        )
        for leaf in ("weight", "bias")
    ]
    return KeyMap(
        fused,
        rename={
            "conv1": "patch_embedding.projection",
            "positional_embedding": "position_embedding",
            "ln_pre": "input_norm",
            **{theirs + name: ours + other for name, other in _LAYER.items()},
        },
    )


def key_map(config: MultimodalLM.Config) -> KeyMap:
    """The table of a whole model."""
    encoder = config.streams[STREAM].encoder
    assert isinstance(encoder, QwenVLVision.Config)
    return KeyMap.join(
        vision(encoder).under("transformer.visual.", f"streams.{STREAM}.encoder."),
        QWEN_RESAMPLER.under("transformer.visual.", f"streams.{STREAM}.projector."),
        qwen.QWEN.under(target="language_model."),
    )


def read_config(config: Mapping[str, Any], where: str = "config.json") -> MultimodalLM.Config:
    """The system that a Qwen-VL config describes.

    Raises: CheckpointError for what Qwen-VL does not have.
    """
    text = {name: value for name, value in config.items() if name != "visual"}
    decoder = qwen.read_config(text, where)
    v = config["visual"]
    queries = v.get("n_queries", QUERIES)
    wanted = {
        "visual.output_dim": v["output_dim"] == decoder.width and decoder.width % HEAD_WIDTH == 0,
        "visual.n_queries": math.isqrt(queries) ** 2 == queries,
    }
    if unfit := [name for name, fits in wanted.items() if not fits]:
        raise CheckpointError(
            f"{where}: {', '.join(unfit)} is not as Qwen-VL has it: visual tokens as wide as the language model, in heads of "
            f"{HEAD_WIDTH}, and a square of queries"
        )
    encoder = QwenVLVision.Config(
        image_size=v["image_size"],
        position_image_size=POSITIONS_PER_SIDE * v["patch_size"],
        patch_size=v["patch_size"],
        width=v["width"],
        num_layers=v["layers"],
        num_heads=v["heads"],
        feed_forward_width=int(v["width"] * v["mlp_ratio"]),
    )
    projector = QwenResampler.Config(grid=math.isqrt(queries), head_width=HEAD_WIDTH)
    return MultimodalLM.Config(
        language_model=decoder, streams={STREAM: Stream.Config(encoder=encoder, projector=projector)}, fusions=FUSIONS
    )


def write_config(config: MultimodalLM.Config) -> dict[str, Any]:
    """The published config of a system.

    Raises: CheckpointError for a system that is not Qwen-VL's.
    """
    stream, decoder = config.streams.get(STREAM), config.language_model
    encoder = None if stream is None else stream.encoder
    projector = None if stream is None else stream.projector
    refused = CheckpointError(
        f"the Qwen-VL layout holds one stream {STREAM!r} of Qwen-VL's tower with {POSITIONS_PER_SIDE}x{POSITIONS_PER_SIDE} "
        f"positions and its resampler in heads of {HEAD_WIDTH}, a decoder of Qwen 1, and the fusion TokenConcatenation; this "
        "system has other parts"
    )
    if not (isinstance(encoder, QwenVLVision.Config) and isinstance(projector, QwenResampler.Config)):
        raise refused
    if not isinstance(decoder, Decoder.Config):
        raise refused
    saved = {
        **qwen.write_config(decoder),
        "visual": {
            "heads": encoder.num_heads,
            "image_size": encoder.image_size,
            "image_start_id": IMAGE_START,
            "layers": encoder.num_layers,
            "mlp_ratio": math.ceil(encoder.feed_forward_width / encoder.width * 10_000) / 10_000,
            "output_dim": decoder.width,
            "patch_size": encoder.patch_size,
            "width": encoder.width,
            **({} if projector.grid**2 == QUERIES else {"n_queries": projector.grid**2}),
        },
    }
    if read_config(saved) != config:
        raise refused
    return saved


def _tiny() -> tuple[MultimodalLM.Config, ...]:
    decoder = replace(
        Decoder.Config.tiny(), width=2 * HEAD_WIDTH, num_key_value_heads=4, attention_bias=True, log_scaling_context=256,
        rope_scaling=QwenScaling(original_context=256),
    )  # fmt: skip
    encoder = replace(QwenVLVision.Config.tiny(), image_size=160, position_image_size=128)
    stream = Stream.Config(encoder=encoder, projector=QwenResampler.Config(grid=3))
    return (MultimodalLM.Config(language_model=decoder, streams={STREAM: stream}, fusions=FUSIONS),)


FORMAT = CheckpointFormat(
    name="qwen_vl",
    model_types=("qwen",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
    fields=("visual",),
)
