"""BERT as a language model in `transformers` layout.

Source: the `BertForMaskedLM` and `BertForPreTraining` files of `transformers` 4.x and 5.x. The first published ones call what
a norm multiplies with and adds `gamma` and `beta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints.bert_text import COUNTS, TRUNK, read_sizes, write_sizes
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import read_only, rename
from weft.core.errors import CheckpointError
from weft.language_models.bert import Bert

_SECOND_NAME = "the same numbers under the name that the head had first"
_SENTENCES = "the head for the order of sentences, which no token needs"

_NAMES = {
    **{f"bert.{theirs}": ours for theirs, ours in TRUNK.items()},
    "cls.predictions.transform.dense": "head_transform",
    "cls.predictions.transform.LayerNorm": "head_norm",
    "cls.predictions.bias": "output.bias",
}
_FIRST_FILES = [
    rename(f"{theirs}.{old}", f"{ours}.{new}")
    for theirs, ours in _NAMES.items()
    if theirs.endswith("LayerNorm")
    for old, new in (("gamma", "weight"), ("beta", "bias"))
]

BERT = KeyMap(
    read_only(*_FIRST_FILES),
    rename=_NAMES,
    drop={
        "bert.embeddings.position_ids": COUNTS,
        "bert.embeddings.token_type_ids": COUNTS,
        "cls.predictions.decoder.weight": "the token table once more",
        "cls.predictions.decoder.bias": _SECOND_NAME,
        "bert.pooler.*": _SENTENCES,
        "cls.seq_relationship.*": _SENTENCES,
    },
)


def read_config(saved: Mapping[str, Any]) -> Bert.Config:
    """The BERT that a `transformers` config describes.

    Raises: CheckpointError for what Weft's BERT does not have.
    """
    wanted = {
        "position_embedding_type": saved.get("position_embedding_type", "absolute") == "absolute",
        "is_decoder": not saved.get("is_decoder", False),
        "tie_word_embeddings": saved.get("tie_word_embeddings", True),
    }
    if unfit := [f"{name}={saved.get(name)!r}" for name, fits in wanted.items() if not fits]:
        raise CheckpointError(f"the config asks for {', '.join(unfit)}, which Weft's BERT does not have")
    sizes = read_sizes(saved, Bert.Config(), first_position=0)
    del sizes["first_position"]
    return Bert.Config(**sizes)


def write_config(config: Bert.Config) -> dict[str, Any]:
    """The `transformers` config of a BERT, in the spelling that 4.x and 5.x read."""
    return {"architectures": ["BertForMaskedLM"], "model_type": "bert", **write_sizes(config)}


def _tiny() -> tuple[Bert.Config, ...]:
    tiny = Bert.Config.tiny()
    return tiny, replace(tiny, activation="relu", num_text_types=1)


FORMAT = CheckpointFormat(
    name="bert",
    model_types=("bert",),
    key_map=lambda config: BERT,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
