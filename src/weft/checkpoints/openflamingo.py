"""What OpenFlamingo's files hold: resampler, gated blocks and token table. Image tower and language model have their own files.

Such a file fills a part of a system, so `to_weft` is joined with what the maps of CLIP and of the language model give.
Source: OpenFlamingo, arXiv:2308.01390.
"""

from __future__ import annotations

from weft.checkpoints import gated_cross_attention, perceiver
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import take_rows

STREAM = "image"


def key_map(vocabulary: int, num_added: int = 2, table: str = "lang_encoder.transformer.wte.weight") -> KeyMap:
    """The table of a file; the rows behind `vocabulary` of the file's token table `table` are those that were trained."""
    rows = range(vocabulary, vocabulary + num_added)
    return KeyMap.join(
        perceiver.OPENFLAMINGO.under("perceiver.", f"streams.{STREAM}.projector."),
        gated_cross_attention.OPENFLAMINGO.under(
            "lang_encoder.gated_cross_attn_layers.{i}.", "language_model.blocks.{i}.before_attention."
        ),
        KeyMap([take_rows(table, "added_tokens.inputs.weight", rows, vocabulary + num_added)]),
    )
