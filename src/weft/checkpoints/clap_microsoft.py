"""Microsoft's CLAP of 2022 in the layout of its own code: CNN14, BERT and their heads in one torch file, under the key `model`.

LAION's system of the same name is in `clap`. A config is what that code keeps in a YAML file, as JSON, with a `model_type`
besides, which it does not have; `widths`, `num_frames`, `text_config` and the rates of dropout stand for what it leaves to the
names of the towers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from weft.checkpoints.bert_text import bert_map, read_sizes, write_sizes
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import rename, shift
from weft.core.errors import CheckpointError
from weft.encoders.bert_text import BertText
from weft.encoders.cnn14 import Cnn14
from weft.systems.dual_encoder import DualEncoder

_PARTS = {"conv1": "first", "bn1": "first_norm", "conv2": "second", "bn2": "second_norm"}
_FRONT_END = "turns samples into a spectrogram, which the audio transform does"

CNN14 = KeyMap(
    [rename(f"conv_block{{i}}.{theirs}", f"blocks.{{i}}.{ours}", index=shift(-1)) for theirs, ours in _PARTS.items()],
    rename={"bn0": "input_norm", "fc1": "pooled_linear"},
    drop={
        "spectrogram_extractor.*": _FRONT_END,
        "logmel_extractor.*": _FRONT_END,
        "fc_audioset.*": "the head of a classifier of sounds, the encoder serves features",
    },
)
HEAD = KeyMap(rename={"linear1": "first", "linear2": "second", "layer_norm": "norm"})


def model_map(config: DualEncoder.Config) -> KeyMap:
    """The whole model."""
    assert isinstance(config.text, BertText.Config)
    return KeyMap.join(
        CNN14.under("audio_encoder.base.", "media."),
        HEAD.under("audio_encoder.projection.", "media.head."),
        bert_map(config.text).under("caption_encoder.base.", "text."),
        HEAD.under("caption_encoder.projection.", "text.head."),
        KeyMap(rename={"logit_scale": "logit_scale"}),
    )


TOWERS = {"audioenc_name": "Cnn14", "text_model": "bert-base-uncased"}


def read_model(saved: Mapping[str, Any]) -> DualEncoder.Config:
    """The whole model's config.

    Raises: CheckpointError for the towers of another year.
    """
    if odd := {name: saved[name] for name, tower in TOWERS.items() if saved.get(name, tower) != tower}:
        raise CheckpointError(f"Weft reads the clap_microsoft layout with {TOWERS}, the config says {odd}")
    audio, text = Cnn14.Config.sizes()["clap-microsoft"], BertText.Config.sizes()["clap-microsoft"]
    width = saved.get("d_proj", audio.embedding_width)
    sizes = read_sizes(saved.get("text_config") or {}, text, 0)
    return DualEncoder.Config(
        media=dataclasses.replace(
            audio,
            num_mels=saved.get("mel_bins", audio.num_mels),
            num_frames=saved.get("num_frames", audio.num_frames),
            widths=tuple(saved.get("widths", audio.widths)),
            embedding_width=width,
            dropout=saved.get("dropout", audio.dropout),
            pooled_dropout=saved.get("pooled_dropout", audio.pooled_dropout),
            head_dropout=saved.get("head_dropout", audio.head_dropout),
        ),
        text=dataclasses.replace(
            text, **sizes, embedding_width=width, head_dropout=saved.get("head_dropout", text.head_dropout)
        ),
        stream="audio",
    )


def write_model(config: DualEncoder.Config) -> dict[str, Any]:
    """The config of a dual encoder of Microsoft's towers.

    Raises: CheckpointError for a dual encoder that the layout cannot hold.
    """
    media, text = config.media, config.text
    if not (isinstance(media, Cnn14.Config) and isinstance(text, BertText.Config)):
        raise CheckpointError(
            f"the clap_microsoft layout holds Cnn14 and BertText, this dual encoder has {media.part_name} and {text.part_name}"
        )
    written = {
        "model_type": "clap_microsoft",
        **TOWERS,
        "mel_bins": media.num_mels,
        "num_frames": media.num_frames,
        "widths": list(media.widths),
        "out_emb": media.output_width,
        "transformer_embed_dim": text.width,
        "d_proj": media.embedding_width,
        "dropout": media.dropout,
        "pooled_dropout": media.pooled_dropout,
        "head_dropout": media.head_dropout,
        "text_config": write_sizes(text),
    }
    if media.embedding_width is None or read_model(written) != config:
        raise CheckpointError(
            "the clap_microsoft layout holds towers with residual heads of one dropout, a text tower without a pooler and one "
            "scale that begins at 1 / 0.07; build the dual encoder from the sizes 'clap-microsoft'"
        )
    return written


def tiny_models() -> tuple[DualEncoder.Config, ...]:
    """A small whole model."""
    text = dataclasses.replace(BertText.Config.tiny(), pooler=False, embedding_width=24, head="residual")
    return (DualEncoder.Config(media=Cnn14.Config.tiny(), text=text, stream="audio"),)


CLAP_MICROSOFT = CheckpointFormat(
    name="clap_microsoft",
    model_types=("clap_microsoft",),
    key_map=model_map,
    read_config=read_model,
    write_config=write_model,
    tiny=tiny_models,
)
