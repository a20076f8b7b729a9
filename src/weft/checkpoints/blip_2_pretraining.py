"""BLIP-2's first stage in the layouts of LAVIS, the published code, and of the `transformers` library, encoder left out.

`transformers` holds what retrieval needs, without the head over words and the temperature. The stage starts from a BERT, whose
blocks become the text's: queries share their attention and get copies of their feed-forwards.
Source: LAVIS' `blip2_qformer`; `Blip2ForImageTextRetrieval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from weft.checkpoints.bert import BERT
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.qformer import BLIP_2, LAVIS, Layout
from weft.checkpoints.rules import Rule, pad_rows, rename
from weft.core.errors import CheckpointError
from weft.language_models.bert import Bert
from weft.projectors.qformer import QFormer
from weft.systems.fusion_encoder import FusionEncoder

_PREDICTIONS = "Qformer.cls.predictions"
_WORDS = KeyMap(
    rename={
        f"{_PREDICTIONS}.transform.dense": "word_head.transform",
        f"{_PREDICTIONS}.transform.LayerNorm": "word_head.norm",
        f"{_PREDICTIONS}.bias": "word_head.bias",
        "temp": "temperature",
    },
    drop={
        f"{_PREDICTIONS}.decoder.weight": "the token table once more",
        f"{_PREDICTIONS}.decoder.bias": "the same numbers under the name that the head had first",
    },
)


def lavis_map(config: FusionEncoder.Config) -> KeyMap:
    """All but the encoder of a LAVIS file of the first stage."""
    heads = {"vision_proj": "media_projection", "text_proj": "text_projection", "itm_head": "matching_head"}
    return KeyMap.join(_transformer(LAVIS, config), KeyMap(rename=heads), _WORDS)


def transformers_map(config: FusionEncoder.Config) -> KeyMap:
    """All but the encoder of a `Blip2ForImageTextRetrieval`, which has no `word_head` and no `temperature`."""
    heads = {"vision_projection": "media_projection", "text_projection": "text_projection", "itm_head": "matching_head"}
    return KeyMap.join(_transformer(BLIP_2, config), KeyMap(rename=heads))


def _transformer(layout: Layout, config: FusionEncoder.Config) -> KeyMap:
    stream = config.streams[config.stream]
    return layout.transformer(stream.projector).under(target=f"streams.{config.stream}.projector.transformer.")  # type: ignore[arg-type]


def read_bert(system: FusionEncoder, tensors: Mapping[str, Tensor], bert: Bert.Config, where: str) -> None:
    """Fill what a BERT has of the first stage's system: tables, input norm, self-attention, both feed-forwards, word head.

    Queries, cross-attention, the heads of pairs and the rows of tokens that BERT does not know stay as they were drawn.

    Raises: CheckpointError for a BERT of another form, and for keys that are missing or unknown.
    """
    reader = system.config.reader
    if not isinstance(reader, QFormer.Config):
        raise CheckpointError(f"a BERT becomes a Q-Former, this system reads with {reader.part_name}")
    ours = (reader.width, reader.num_heads, reader.activation, reader.norm_eps, reader.num_layers, reader.context)
    theirs = (bert.width, bert.num_heads, bert.activation, bert.norm_eps, bert.num_layers, bert.context)
    if ours != theirs or bert.vocabulary > (reader.vocabulary or 0):
        raise CheckpointError(
            f"{where} has width, heads, activation, eps, layers, positions {theirs} and {bert.vocabulary} ids, the Q-Former "
            f"{ours} and {reader.vocabulary}; give a BERT of its form, such as bert-base-uncased for the published one"
        )
    table = system.transformer.token_embedding
    assert table is not None
    drawn = table.weight[bert.vocabulary :].detach().clone()
    _bert_map(bert.vocabulary, table.num_embeddings).load(_known_to_bert(system), BERT.to_weft(tensors, where), where)
    with torch.no_grad():
        table.weight[bert.vocabulary :] = drawn


def _bert_map(rows: int, of: int) -> KeyMap:
    """From the parameters of a BERT with `rows` ids to those of `_known_to_bert` with `of` ids; this table only reads."""

    def to_both(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (tensors[0], tensors[0])

    text, query = "blocks.{i}.feed_forward.text", "blocks.{i}.feed_forward.query"
    attention = [f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value", "output")]
    same = ("position_embedding", "input_norm", "blocks.{i}.attention_norm", *attention)
    padded = {"token_embedding.weight": "token_embedding.weight", "output.bias": "word_head.bias"}
    return KeyMap(
        [
            *(rename(s, t) if rows == of else pad_rows(s, t, rows, of) for s, t in padded.items()),
            *(
                Rule((f"blocks.{{i}}.feed_forward.{part}",), (f"{text}.{part}", f"{query}.{part}"), to_both)
                for part in ("up", "down", "norm")
            ),
        ],
        rename={**dict(zip(same, same, strict=True)), "head_transform": "word_head.transform", "head_norm": "word_head.norm"},
        drop={"type_embedding.weight": "a Q-Former's text has no types"},
    )


def _known_to_bert(system: FusionEncoder) -> nn.Module:
    """The modules of a system that a BERT has too."""
    transformer, known = system.transformer, nn.Module()
    for name in ("token_embedding", "position_embedding", "input_norm"):
        setattr(known, name, getattr(transformer, name))
    known.word_head = system.word_head
    known.blocks = nn.ModuleList(
        nn.ModuleDict({name: getattr(block, name) for name in ("attention", "attention_norm", "feed_forward")})
        for block in transformer.blocks
    )
    return known
