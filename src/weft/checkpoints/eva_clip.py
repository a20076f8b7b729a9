"""EVA-CLIP in the layout of its own code: the whole model and the vision tower alone.

A config is what that code calls one, `embed_dim`, `vision_cfg` and `text_cfg`, with a `model_type` besides, which it does not
have. The models are published in two other layouts, which are read: `open_clip` keeps such a config as `model_cfg` of its
`open_clip_config.json`, names a model of the `timm` library in place of sizes, and writes the tower in that library's names
under `visual.trunk.`; `timm` writes the tower alone, without a prefix, with a config of its own kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.eva_clip_timm import TIMM_SIZES, TIMM_TOWERS, read_timm
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.open_clip_text import OPEN_CLIP_TEXT
from weft.checkpoints.position_table import position_table
from weft.checkpoints.rules import Rule, permute_rows, read_only, rename, split, squeeze, transpose
from weft.checkpoints.two_towers import tower_alone
from weft.core.errors import CheckpointError
from weft.encoders.clip import ClipText
from weft.encoders.eva_clip import EvaClipVision
from weft.layers.patch_embedding import patches_per_side
from weft.systems.dual_encoder import DualEncoder

INPUTS = ("query", "key", "value")
BLOCK = "blocks.{i}."
NOT_WEIGHTS = {
    "mask_token": "stood for hidden patches while images were modelled, not used since",
    "rope.*": "tables, computed from the config",
    f"{BLOCK}attn.rope.*": "tables, computed from the config",
}

FUSED: tuple[Rule, ...] = (
    split("attn.qkv.weight", [f"attention.{name}.weight" for name in INPUTS]),
    rename("attn.q_bias", "attention.query.bias"),
    rename("attn.v_bias", "attention.value.bias"),
    rename("attn.proj", "attention.output"),
    rename("mlp.fc1", "feed_forward.up"),
    rename("mlp.fc2", "feed_forward.down"),
)


def halves_of_pairs(head_width: int) -> Callable[[int], Tensor]:
    """The order of rows that turns heads whose neighbouring channels rotate together into heads of two halves."""

    def order(rows: int) -> Tensor:
        return torch.arange(rows).view(-1, head_width // 2, 2).transpose(1, 2).flatten()

    return order


def separate(head_width: int) -> tuple[Rule, ...]:
    """The rules of a block with sub-norms; the names of `timm` are read besides."""
    order = halves_of_pairs(head_width)
    return (
        permute_rows("attn.q_proj.weight", "attention.query.weight", order),
        permute_rows("attn.k_proj.weight", "attention.key.weight", order),
        permute_rows("attn.q_bias", "attention.query.bias", order),
        rename("attn.v_proj.weight", "attention.value.weight"),
        rename("attn.v_bias", "attention.value.bias"),
        rename("attn.inner_attn_ln", "attention.output.norm"),
        rename("attn.proj", "attention.output.linear"),
        rename("mlp.w1", "feed_forward.gate"),
        rename("mlp.w2", "feed_forward.up"),
        rename("mlp.ffn_ln", "feed_forward.down.norm"),
        rename("mlp.w3", "feed_forward.down.linear"),
        *read_only(
            permute_rows("attn.q_proj.bias", "attention.query.bias", order),
            rename("attn.v_proj.bias", "attention.value.bias"),
            rename("attn.norm", "attention.output.norm"),
            rename("mlp.fc1_g", "feed_forward.gate"),
            rename("mlp.fc1_x", "feed_forward.up"),
            rename("mlp.norm", "feed_forward.down.norm"),
            rename("mlp.fc2", "feed_forward.down.linear"),
        ),
    )


def trunk_map(config: EvaClipVision.Config) -> KeyMap:
    """The tower in the layout of the EVA code, without a prefix; what a tower without a head leaves out is dropped.

    Raises: CheckpointError for a combination that the layout does not hold.
    """
    if (config.block == "sub_norm") != (config.rotary_side is not None):
        raise CheckpointError(
            f"the EVA-CLIP layout has rotary positions in blocks with sub-norms and nowhere else, the config has block="
            f"{config.block!r} and rotary_side={config.rotary_side}"
        )
    side = patches_per_side(config.image_size, config.patch_size)
    rules = separate(config.width // config.num_heads) if config.block == "sub_norm" else FUSED
    block = KeyMap([*rules, rename("norm1", "attention_norm"), rename("norm2", "feed_forward_norm")])
    ends = {"norm": "final_norm", "head": "head"}
    drop = dict(NOT_WEIGHTS)
    if config.embedding_width is None:
        reason = "behind the last hidden state of this tower, which only serves features"
        drop |= {"norm.*": reason, "head.*": reason, f"blocks.{config.num_layers}.*": reason}
    return KeyMap.join(
        KeyMap(
            [squeeze("cls_token", "class_embedding", axes=(0, 1)), position_table("pos_embed", "position_embedding", side)],
            rename={"patch_embed.proj": "patch_embedding.projection", **(ends if config.embedding_width else {})},
            drop=drop,
        ),
        block.under(BLOCK, BLOCK),
    )


MEETING = KeyMap([transpose("text.text_projection", "text_projection.weight"), rename("logit_scale", "logit_scale")])


def model_map(config: DualEncoder.Config) -> KeyMap:
    """The whole model's map."""
    assert isinstance(config.media, EvaClipVision.Config)
    vision = trunk_map(config.media).under("visual.", "media.")
    return KeyMap.join(vision, OPEN_CLIP_TEXT.under("text.", "text."), MEETING, spellings=[("visual.trunk.", "visual.")])


def vision_map(config: EvaClipVision.Config) -> KeyMap:
    """The vision tower's map, from its own file or from that of the whole model."""
    alone = tower_alone(trunk_map(config).under("visual."), "text.*", "logit_scale")
    return KeyMap.join(alone, spellings=[("visual.trunk.", "visual."), ("", "visual.")])


def read_vision(saved: Mapping[str, Any]) -> EvaClipVision.Config:
    """The vision tower's config from a whole model's; its text part is not looked at.

    Raises: CheckpointError for what no published size has and Weft does not build.
    """
    if "architecture" in saved:
        return read_timm(saved)
    vision = saved.get("vision_cfg") or {}
    if (name := vision.get("timm_model_name")) in TIMM_SIZES:
        size = EvaClipVision.Config.sizes()[TIMM_SIZES[name]]
        side = vision.get("image_size", size.image_size)
        return dataclasses.replace(size, image_size=side, embedding_width=saved["embed_dim"], **_regularisation(vision))
    odd = {"qkv_bias": True, "ls_init_value": None, "global_average_pool": False, "timm_model_name": None}
    if strange := [f"{name}={vision[name]!r}" for name, usual in odd.items() if vision.get(name, usual) != usual]:
        raise CheckpointError(f"vision_cfg has {', '.join(strange)}, which Weft's EVA-CLIP towers do not")
    together = {bool(vision.get(name, False)) for name in ("subln", "naiveswiglu", "rope")}
    if len(together) > 1 or (vision.get("postnorm") and together == {True}):
        raise CheckpointError(
            "vision_cfg mixes the block types of EVA-CLIP; subln, naiveswiglu and rope go together, postnorm alone"
        )
    (is_sub_norm,) = together
    image_size, patch_size, width = vision.get("image_size", 224), vision.get("patch_size", 16), vision.get("width", 768)
    trained_side = vision.get("pt_hw_seq_len", 16) if vision.get("intp_freq") else patches_per_side(image_size, patch_size)
    return EvaClipVision.Config(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        num_layers=vision.get("layers", 12),
        num_heads=width // vision.get("head_width", 64),
        feed_forward_width=int(width * vision.get("mlp_ratio", 4.0)),
        block="sub_norm" if is_sub_norm else "residual_post_norm" if vision.get("postnorm") else "pre_norm",
        rotary_side=trained_side if is_sub_norm else None,
        embedding_width=saved["embed_dim"],
        **_regularisation(vision),
    )


def _regularisation(vision: Mapping[str, Any]) -> dict[str, Any]:
    depth = vision.get("drop_path_rate", vision.get("timm_drop_path")) or 0.0  # `open_clip` has its own name for it
    return {"patch_dropout": vision.get("patch_dropout", 0.0), "stochastic_depth": depth}


def write_vision(config: EvaClipVision.Config) -> dict[str, Any]:
    """The `embed_dim` and `vision_cfg` of a tower.

    Raises: CheckpointError for a tower that the layout cannot hold.
    """
    if config.embedding_width is None or config.feature_norm_eps is not None or config.norm_eps != 1e-6:
        raise CheckpointError(
            "the EVA-CLIP layout holds towers with a head, without a norm of the features, with norm_eps=1e-6; "
            "write a tower of features in the layout of BLIP-2"
        )
    is_sub_norm = config.block == "sub_norm"
    return {
        "embed_dim": config.embedding_width,
        "vision_cfg": {
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "width": config.width,
            "layers": config.num_layers,
            "head_width": config.width // config.num_heads,
            "mlp_ratio": (config.feed_forward_width + 0.5) / config.width,  # read as int(width * ratio)
            "patch_dropout": config.patch_dropout,
            "drop_path_rate": config.stochastic_depth,
            "postnorm": config.block == "residual_post_norm",
            **dict.fromkeys(("subln", "naiveswiglu", "rope", "intp_freq"), is_sub_norm),
            "pt_hw_seq_len": config.rotary_side or 16,
        },
    }


def read_model(saved: Mapping[str, Any]) -> DualEncoder.Config:
    """The whole model's config."""
    text = saved.get("text_cfg") or {}
    width = text.get("width", 512)
    return DualEncoder.Config(
        media=read_vision(saved),
        text=ClipText.Config(
            vocabulary=text.get("vocab_size", 49_408),
            context=text.get("context_length", 77),
            width=width,
            num_layers=text.get("layers", 12),
            num_heads=text.get("heads", 8),
            feed_forward_width=4 * width,
            activation="quick_gelu" if saved.get("quick_gelu") else "gelu",
        ),
        embedding_width=saved["embed_dim"],
        projected=("text",),
    )


def write_model(config: DualEncoder.Config) -> dict[str, Any]:
    """The whole model's config.

    Raises: CheckpointError for a dual encoder that the layout cannot hold.
    """
    media, text = config.media, config.text
    if not (isinstance(media, EvaClipVision.Config) and isinstance(text, ClipText.Config)):
        raise CheckpointError(
            f"the EVA-CLIP layout holds EvaClipVision and ClipText, got {media.part_name} and {text.part_name}"
        )
    if config.embedding_width is None or config.projected != ("text",) or config.initial_bias is not None:
        raise CheckpointError('the EVA-CLIP layout projects the text alone and has no logit bias; set projected=("text",)')
    if text.feed_forward_width != 4 * text.width or text.activation not in ("gelu", "quick_gelu") or text.norm_eps != 1e-5:
        raise CheckpointError("the EVA-CLIP layout holds texts with a feed-forward of four widths, GELU and norm_eps=1e-5")
    return {
        "model_type": "eva_clip",
        **write_vision(media),
        "text_cfg": {
            "vocab_size": text.vocabulary,
            "context_length": text.context,
            "width": text.width,
            "heads": text.num_heads,
            "layers": text.num_layers,
        },
        "quick_gelu": text.activation == "quick_gelu",
    }


def tiny_towers() -> tuple[EvaClipVision.Config, ...]:
    """A small tower of each block type."""
    tiny = EvaClipVision.Config.tiny()
    plain = dataclasses.replace(tiny, block="pre_norm", rotary_side=None, feed_forward_width=80, stochastic_depth=0.4)
    return (tiny, plain, dataclasses.replace(plain, block="residual_post_norm", patch_dropout=0.5))


def tiny_models() -> tuple[DualEncoder.Config, ...]:
    """A small whole model for each block type."""
    text = dataclasses.replace(ClipText.Config.tiny(), feed_forward_width=256, activation="gelu")
    return tuple(
        DualEncoder.Config(media=tower, text=text, embedding_width=tower.embedding_width, projected=("text",))
        for tower in tiny_towers()
    )


EVA_CLIP = CheckpointFormat(
    name="eva_clip",
    model_types=("eva_clip",),
    key_map=model_map,
    read_config=read_model,
    write_config=write_model,
    tiny=tiny_models,
)

EVA_CLIP_VISION = CheckpointFormat(
    name="eva_clip_vision",
    model_types=("eva_clip_vision", *TIMM_TOWERS),
    key_map=vision_map,
    read_config=read_vision,
    write_config=lambda config: {"model_type": "eva_clip_vision", **write_vision(config)},
    tiny=tiny_towers,
)
