"""The Q-Former in the layouts of the `transformers` library (BLIP-2, InstructBLIP) and of LAVIS, the published code.

These are parts of whole files: a system's map joins them under its stream, `projector_alone` reads a Q-Former from such a file.
Source: `Blip2Model`, `Blip2ForImageTextRetrieval`, `InstructBlipForConditionalGeneration`; LAVIS' `blip2_models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import squeeze
from weft.core.errors import CheckpointError
from weft.projectors.qformer import QFormer

ModelType = Literal["blip-2", "instructblip"]


@dataclass(frozen=True)
class Layout:
    """How one family of files names a Q-Former: `bert` the blocks' prefix, `inner` the attention proper, `norm` the input norm,
    `embeddings` the text's tables, `projection` what maps to the language model, first the name that is written."""

    bert: str
    inner: str
    norm: str
    embeddings: str
    projection: tuple[str, ...]

    def transformer(self, config: QFormer.Config) -> KeyMap:
        """The map of `QFormer.transformer`, which BLIP-2's first stage also trains; text that the config lacks is dropped."""
        text = {
            f"{self.embeddings}.word_embeddings.weight": "token_embedding.weight",
            f"{self.embeddings}.position_embeddings.weight": "position_embedding.weight",
            **_feed_forward(self.bert, "", "text"),
        }
        drop = {f"{self.embeddings}.position_ids": "a buffer that counts positions, not needed"}
        if config.vocabulary is None:
            drop |= dict.fromkeys(text, "the config has no vocabulary, its queries read no text")
            text = {}
        rename = {self.norm: "input_norm", **_attention(self.bert, self.inner), **_feed_forward(self.bert, "_query", "query")}
        return KeyMap([squeeze("query_tokens", "queries", axes=(0,))], rename={**rename, **text}, drop=drop)

    def projector(self, config: QFormer.Config) -> KeyMap:
        """The map of a whole `QFormer`."""
        written, *others = self.projection
        output = KeyMap(rename={written: "output"}, spellings=[(f"{other}.", f"{written}.") for other in others])
        return KeyMap.join(self.transformer(config).under(target="transformer."), output)


BLIP_2 = Layout("qformer", "attention", "qformer.layernorm", "embeddings", ("language_projection",))
INSTRUCT_BLIP = Layout("qformer", "attention", "qformer.embeddings.layernorm", "qformer.embeddings", ("language_projection",))
LAVIS = Layout(
    "Qformer.bert", "self", "Qformer.bert.embeddings.LayerNorm", "Qformer.bert.embeddings", ("opt_proj", "t5_proj", "llm_proj")
)

_STAGE_ONE = "a head of the first stage, which belongs to its system and not to the Q-Former"
_OTHER_PART = "another part of the system, the Q-Former alone is loaded"
ELSEWHERE = {
    **dict.fromkeys(("vision_model.*", "visual_encoder.*", "ln_vision.*"), _OTHER_PART),
    **dict.fromkeys(("language_model.*", "opt_model.*", "t5_model.*", "llm_model.*"), _OTHER_PART),
    **dict.fromkeys(("vision_projection", "vision_proj", "text_projection", "text_proj"), _STAGE_ONE),
    **dict.fromkeys(("itm_head", "temp", "Qformer.cls.*"), _STAGE_ONE),
}


def projector_alone(part: KeyMap) -> KeyMap:
    """A layout's map that also reads the file of the whole system and drops the rest of it."""
    return KeyMap.join(part, KeyMap(drop=ELSEWHERE))


def lavis_transformer(config: QFormer.Config) -> KeyMap:
    """The map of `QFormer.transformer` out of LAVIS' file of any stage, whatever language model it was trained for."""
    reason = "maps to the file's language model, the transformer alone is loaded"
    return projector_alone(KeyMap.join(LAVIS.transformer(config), KeyMap(drop=dict.fromkeys(LAVIS.projection, reason))))


def read_config(saved: Mapping[str, Any]) -> QFormer.Config:
    """The Q-Former that a `blip-2` or `instructblip` config describes; what a file leaves out has the published default.

    Raises: CheckpointError for positions that Weft's Q-Former does not have.
    """
    inner: Mapping[str, Any] = saved.get("qformer_config") or {}
    if (positions := inner.get("position_embedding_type", "absolute")) != "absolute":
        raise CheckpointError(f"the Q-Former's text has absolute positions, the config asks for {positions!r}")
    default = QFormer.Config()
    reads_text = saved.get("model_type") == "instructblip" or inner.get("use_qformer_text_input", False)
    return QFormer.Config(
        num_queries=saved.get("num_query_tokens", default.num_queries),
        width=inner.get("hidden_size", default.width),
        num_layers=inner.get("num_hidden_layers", default.num_layers),
        num_heads=inner.get("num_attention_heads", default.num_heads),
        feed_forward_width=inner.get("intermediate_size", default.feed_forward_width),
        cross_attention_every=inner.get("cross_attention_frequency", default.cross_attention_every),
        vocabulary=inner.get("vocab_size", 30_522) if reads_text else None,
        context=inner.get("max_position_embeddings", default.context),
        activation=from_transformers(inner.get("hidden_act", "gelu")),
        norm_eps=inner.get("layer_norm_eps", default.norm_eps),
        dropout=inner.get("hidden_dropout_prob", default.dropout),
    )


def write_config(config: QFormer.Config, input_width: int, model_type: ModelType) -> dict[str, Any]:
    """What a `blip-2` or `instructblip` config says of its Q-Former; `input_width` is the encoder's.

    Raises: CheckpointError for an InstructBLIP Q-Former without a vocabulary.
    """
    if model_type == "instructblip" and config.vocabulary is None:
        raise CheckpointError("the instructblip layout holds a Q-Former that reads instructions; set its vocabulary")
    inner: dict[str, Any] = {
        "model_type": "blip_2_qformer" if model_type == "blip-2" else "instructblip_qformer",
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "cross_attention_frequency": config.cross_attention_every,
        "encoder_hidden_size": input_width,
        "max_position_embeddings": config.context,
        "hidden_act": to_transformers(config.activation),
        "layer_norm_eps": config.norm_eps,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout),
    }
    if config.vocabulary is not None:
        inner["vocab_size"] = config.vocabulary
    if model_type == "blip-2":
        inner["use_qformer_text_input"] = config.vocabulary is not None
    return {"num_query_tokens": config.num_queries, "qformer_config": inner}


def _attention(bert: str, inner: str) -> dict[str, str]:
    """Self-attention and cross-attention of every block, each with the norm behind it."""
    names: dict[str, str] = {}
    for theirs, attention, norm in (
        ("attention", "attention", "attention_norm"),
        ("crossattention", "before_feed_forward.attention", "before_feed_forward.norm"),
    ):
        source, block = f"{bert}.encoder.layer.{{i}}.{theirs}", "blocks.{i}"
        names |= {f"{source}.{inner}.{name}": f"{block}.{attention}.{name}" for name in ("query", "key", "value")}
        names[f"{source}.output.dense"] = f"{block}.{attention}.output"
        names[f"{source}.output.LayerNorm"] = f"{block}.{norm}"
    return names


def _feed_forward(bert: str, suffix: str, route: str) -> dict[str, str]:
    """The feed-forward of one route through every block, with the norm behind it."""
    source, target = f"{bert}.encoder.layer.{{i}}", f"blocks.{{i}}.feed_forward.{route}"
    return {
        f"{source}.intermediate{suffix}.dense": f"{target}.up",
        f"{source}.output{suffix}.dense": f"{target}.down",
        f"{source}.output{suffix}.LayerNorm": f"{target}.norm",
    }
