"""OpenFlamingo's files, which hold what was trained: resampler, gated blocks and token table.

Image tower and language model stay in their own folders. The language model is cut to the tokens of its tokenizer, as
`resize_token_embeddings` does; behind them the file's table has `<|endofchunk|>`, `<image>` and, where the tokenizer had no
padding token, `<PAD>`. Gated blocks are listed by the layer that they stand in front of, apart (the published files) or inside
the language model's layers (what its training code writes today); both are read. Nothing else of a system is in such a file,
which has no config either: sizes are read off the shapes.

Source: OpenFlamingo, arXiv:2308.01390.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from weft.checkpoints import gated_cross_attention, perceiver
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import Rule, read_only, take_rows
from weft.core.errors import CheckpointError
from weft.encoders.clip import ClipVision
from weft.fusion.cross_attention import CrossAttention, GatedDense
from weft.language_models.gpt_neox import GptNeox
from weft.language_models.mpt import Mpt
from weft.layers.added_tokens import AddedTokens
from weft.projectors.perceiver import Perceiver
from weft.systems.multimodal_lm import MultimodalLM, Stream

STREAM = "image"
ADDED = ("<|endofchunk|>", "<image>")
HEADS = 8  # of resampler and gated blocks
TABLES = {"lang_encoder.transformer.wte.weight": Mpt.Config, "lang_encoder.gpt_neox.embed_in.weight": GptNeox.Config}
HEAD = "lang_encoder.embed_out.weight"

_APART = "lang_encoder.gated_cross_attn_layers."
_INSIDE = ("lang_encoder.transformer.blocks.", "lang_encoder.gpt_neox.layers.")
_TWICE = "the gated blocks a second time, under the layers that they stand in"
_QUERY = re.compile(
    rf"(?:{'|'.join(map(re.escape, (_APART, *_INSIDE)))})(\d+)\.(?:gated_cross_attn_layer\.)?attn\.to_q\.weight"
)


def key_map(
    vocabulary: int, num_added: int = 2, table: str = "lang_encoder.transformer.wte.weight", apart: bool = True
) -> KeyMap:
    """The table of a file. Of its token table `table` the rows behind `vocabulary` are those that were trained, and the first
    two of them are read; `apart`: gated blocks are listed by themselves, and a second copy of them inside is left out."""
    rows = range(vocabulary, vocabulary + len(ADDED))
    blocks = [_APART + "{i}."] if apart else [f"{inside}{{i}}.gated_cross_attn_layer." for inside in _INSIDE]
    ours = "language_model.blocks.{i}.before_attention."
    written, *others = (gated_cross_attention.OPENFLAMINGO.under(theirs, ours) for theirs in blocks)
    return KeyMap.join(
        perceiver.OPENFLAMINGO.under("perceiver.", f"streams.{STREAM}.projector."),
        written,
        *(KeyMap(read_only(*other.rules)) for other in others),
        KeyMap(
            [take_rows(table, "added_tokens.inputs.weight", rows, vocabulary + num_added)],
            drop={f"{inside}{{i}}.gated_cross_attn_layer.*": _TWICE for inside in _INSIDE} if apart else {},
        ),
        spellings=[("module.", "")],
    )


def language_model_table(table: KeyMap, config: Any, vocabulary: int, head_in_file: bool) -> KeyMap:
    """From the language model's own file to a system, in which it is cut to `vocabulary` tokens.

    Where the head is not the token table, its rows of the two added tokens are those that the cut leaves: those of
    OpenFlamingo's file (`head_in_file`), which nobody trained, or the language model's.
    """
    whole = _tied(config) or head_in_file
    cut = {
        "embedding": ["language_model.embedding.weight"],
        "output": ["language_model.output.weight", *([] if whole else ["added_tokens.outputs.weight"])],
    }
    rules = [
        _first_rows(f"{rule.sources[0]}.weight", targets, (vocabulary, len(ADDED))[: len(targets)])
        for rule in table.rules
        if (targets := cut.get(rule.targets[0]))
    ]
    rest = KeyMap((r for r in table.rules if r.targets[0] not in cut), drop=table.drop, spellings=table.spellings)
    return KeyMap.join(rest.under(target="language_model."), KeyMap(rules))


def head_rule(vocabulary: int, rows: int) -> KeyMap:
    """The head that a file holds besides, whose added rows nobody trained."""
    taken = range(vocabulary, vocabulary + len(ADDED))
    return KeyMap(read_only(take_rows(HEAD, "added_tokens.outputs.weight", taken, rows)))


def _tied(config: Any) -> bool:
    """Whether a language model says with the table that it reads with; an MPT always does."""
    return getattr(config, "tied_head", True)


def _first_rows(source: str, targets: Sequence[str], sizes: Sequence[int]) -> Rule:
    """The first rows of a table, cut into parts of `sizes`; those behind them are for no token."""

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (table,) = tensors
        if len(table) < sum(sizes):
            raise ValueError(f"expected at least {sum(sizes)} rows, got {tuple(table.shape)}")
        return tuple(table[: sum(sizes)].split(list(sizes)))

    return Rule((source,), tuple(targets), forward, read_only=True)


def read_shapes(
    shapes: Mapping[str, tuple[int, ...]], language_model: Any, encoder: ClipVision.Config, vocabulary: int, where: str
) -> MultimodalLM.Config:
    """The system that the shapes of a file describe, around a tower and a language model whose tokenizer has `vocabulary` ids.

    Raises: CheckpointError for a file that is not OpenFlamingo's, or of another language model.
    """
    shapes = {name.removeprefix("module."): shape for name, shape in shapes.items()}
    places = sorted({int(found[1]) for name in shapes if (found := _QUERY.fullmatch(name))})
    table = next((name for name, kind in TABLES.items() if isinstance(language_model, kind)), None)
    needed = (
        "perceiver.latents",
        "perceiver.layers.0.0.to_q.weight",
        "perceiver.layers.0.1.1.weight",
        table or "a token table",
    )
    lost = [name for name in needed if name not in shapes] + ([] if places else [f"{_APART}{{i}}.attn.to_q.weight"])
    if lost or table is None:
        known = " or ".join(kind.__qualname__.removesuffix(".Config") for kind in TABLES.values())
        raise CheckpointError(
            f"{where} lacks {', '.join(lost)}; OpenFlamingo's file holds perceiver, gated blocks and the token table of a "
            f"{known}, the language model given is {language_model.part_name}"
        )
    every = places[0] + 1
    if places != list(range(every - 1, language_model.num_layers, every)):
        raise CheckpointError(
            f"{where} has gated blocks in front of layers {places} of {language_model.num_layers}, not of every {every}. from "
            f"{every - 1} on; is it for another language model?"
        )
    if shapes[table][0] < vocabulary + len(ADDED):
        raise CheckpointError(
            f"{where} has {table} of {shapes[table][0]} rows, the language model's tokenizer {vocabulary} ids, behind which "
            f"the file has {' and '.join(ADDED)}; give the tokenizer that it was trained with"
        )
    (latents, width), inner = shapes["perceiver.latents"], shapes["perceiver.layers.0.0.to_q.weight"][0]
    query = next(shape for name, shape in shapes.items() if _QUERY.fullmatch(name))
    resampler = Perceiver.Config(
        num_latents=latents,
        num_layers=len({name.split(".")[2] for name in shapes if name.startswith("perceiver.layers.")}),
        num_heads=HEADS,
        head_width=inner // HEADS,
        expansion=shapes["perceiver.layers.0.1.1.weight"][0] // width,
        num_frames=shapes["perceiver.frame_embs"][0] if "perceiver.frame_embs" in shapes else None,
        num_media=shapes["perceiver.media_time_embs"][0] if "perceiver.media_time_embs" in shapes else None,
    )
    block = GatedDense(num_heads=HEADS, head_width=query[0] // HEADS, activation="gelu")
    return MultimodalLM.Config(
        language_model=replace(language_model, vocabulary=vocabulary),
        streams={
            STREAM: Stream.Config(encoder=replace(encoder, feature_layer=-1, keep_class_token=False), projector=resampler)
        },
        fusions=(CrossAttention.Config(block=block, every=every, first=every - 1, memory_width=width),),
        added_tokens=AddedTokens.Config(tied=_tied(language_model)),
    )
