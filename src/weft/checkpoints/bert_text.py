"""BERT and RoBERTa in the layout of the `transformers` library: text towers, which are parts of the files of whole models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.key_map import KeyMap
from weft.encoders.bert_text import BertText
from weft.language_models.bert import Bert

COUNTS = "a buffer that counts positions or types, not needed"
TRUNK = {
    "embeddings.word_embeddings": "token_embedding",
    "embeddings.position_embeddings": "position_embedding",
    "embeddings.token_type_embeddings": "type_embedding",
    "embeddings.LayerNorm": "input_norm",
    "encoder.layer.{i}.attention.self.query": "blocks.{i}.attention.query",
    "encoder.layer.{i}.attention.self.key": "blocks.{i}.attention.key",
    "encoder.layer.{i}.attention.self.value": "blocks.{i}.attention.value",
    "encoder.layer.{i}.attention.output.dense": "blocks.{i}.attention.output",
    "encoder.layer.{i}.attention.output.LayerNorm": "blocks.{i}.attention_norm",
    "encoder.layer.{i}.intermediate.dense": "blocks.{i}.feed_forward.up",
    "encoder.layer.{i}.output.dense": "blocks.{i}.feed_forward.down",
    "encoder.layer.{i}.output.LayerNorm": "blocks.{i}.feed_forward.norm",
}


def bert_map(config: BertText.Config) -> KeyMap:
    """The tower without its head; a pooler that the config has not is dropped."""
    drop = dict.fromkeys(("embeddings.position_ids", "embeddings.token_type_ids"), COUNTS)
    if config.pooler:
        return KeyMap(rename={**TRUNK, "pooler.dense": "pooler"}, drop=drop)
    return KeyMap(rename=TRUNK, drop={**drop, "pooler.*": "this tower takes the first token as it is"})


def read_sizes(saved: Mapping[str, Any], default: BertText.Config | Bert.Config, first_position: int) -> dict[str, Any]:
    """The fields that the tower takes from a `bert` or `roberta` kind of config; what it leaves out has `default`'s value."""
    activation = saved.get("hidden_act")
    positions = saved.get("max_position_embeddings", first_position + default.context)
    dropout = {"dropout": saved.get("hidden_dropout_prob", default.dropout)} if isinstance(default, BertText.Config) else {}
    return {
        "vocabulary": saved.get("vocab_size", default.vocabulary),
        "context": positions - first_position,
        "first_position": first_position,
        "num_text_types": saved.get("type_vocab_size", default.num_text_types),
        "width": saved.get("hidden_size", default.width),
        "num_layers": saved.get("num_hidden_layers", default.num_layers),
        "num_heads": saved.get("num_attention_heads", default.num_heads),
        "feed_forward_width": saved.get("intermediate_size", default.feed_forward_width),
        "activation": default.activation if activation is None else from_transformers(activation),
        "norm_eps": saved.get("layer_norm_eps", default.norm_eps),
        **dropout,
    }


def write_sizes(config: BertText.Config | Bert.Config) -> dict[str, Any]:
    """The fields that `read_sizes` reads."""
    first_position, dropout = 0, {}
    if isinstance(config, BertText.Config):
        first_position = config.first_position
        dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout)
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": first_position + config.context,
        "type_vocab_size": config.num_text_types,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "hidden_act": to_transformers(config.activation),
        "layer_norm_eps": config.norm_eps,
        **dropout,
    }
