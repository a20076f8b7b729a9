"""The audio tower of Microsoft's CLAP of 2022 alone, out of the file of the whole model, and the sizes of that file.

The published file comes without a config: its sizes are told from the tensors' shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.clap_microsoft import CNN14, HEAD, read_model, write_model
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.two_towers import tower_alone
from weft.core.errors import CheckpointError
from weft.encoders.cnn14 import Cnn14

AUDIO, TEXT = "audio_encoder.base.", "caption_encoder.base."
_TEXT_HEAD_WIDTH = 64  # of BERT; no shape shows it


def audio_map(config: Cnn14.Config) -> KeyMap:
    """The audio tower with its head."""
    tower = KeyMap.join(CNN14.under(AUDIO), HEAD.under("audio_encoder.projection.", "head."))
    return tower_alone(tower, "caption_encoder.*", "logit_scale")


def read_shapes(shapes: Mapping[str, Sequence[int]], where: str) -> dict[str, Any]:
    """The config of a whole model's file.

    Raises: CheckpointError where a tensor that shows a size is missing.
    """

    def shape(name: str) -> Sequence[int]:
        if name not in shapes:
            raise CheckpointError(
                f"{where} has no {name}, which shows a size; it is no file of Microsoft's CLAP of 2022, CNN14 with BERT"
            )
        return shapes[name]

    convolutions = takewhile(shapes.__contains__, (f"{AUDIO}conv_block{number}.conv1.weight" for number in count(1)))
    layers = takewhile(shapes.__contains__, (f"{TEXT}encoder.layer.{i}.output.dense.weight" for i in count()))
    vocabulary, width = shape(f"{TEXT}embeddings.word_embeddings.weight")
    return {
        "model_type": "clap_microsoft",
        "mel_bins": shape(f"{AUDIO}bn0.weight")[0],
        "widths": [shapes[name][0] for name in convolutions],
        "d_proj": shape("audio_encoder.projection.linear1.weight")[0],
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "num_hidden_layers": len(list(layers)),
            "num_attention_heads": max(1, width // _TEXT_HEAD_WIDTH),
            "intermediate_size": shape(f"{TEXT}encoder.layer.0.intermediate.dense.weight")[0],
            "max_position_embeddings": shape(f"{TEXT}embeddings.position_embeddings.weight")[0],
            "type_vocab_size": shape(f"{TEXT}embeddings.token_type_embeddings.weight")[0],
        },
    }


def read_audio(saved: Mapping[str, Any]) -> Cnn14.Config:
    """The audio tower's config from a whole model's."""
    media = read_model(saved).media
    assert isinstance(media, Cnn14.Config)
    return media


def write_audio(config: Cnn14.Config) -> dict[str, Any]:
    """A config that `read_audio` reads. Raises: CheckpointError for a tower without the head of the layout."""
    whole = read_model({"d_proj": config.embedding_width, "head_dropout": config.head_dropout})
    written = write_model(dataclasses.replace(whole, media=config))
    return {**written, "model_type": "clap_microsoft_audio"}


CLAP_MICROSOFT_AUDIO = CheckpointFormat(
    name="clap_microsoft_audio",
    model_types=("clap_microsoft_audio",),
    key_map=audio_map,
    read_config=read_audio,
    write_config=write_audio,
    tiny=lambda: (Cnn14.Config.tiny(),),
)
