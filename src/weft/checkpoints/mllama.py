"""Llama 3.2 Vision in `transformers` layout: the tower over tiles, a linear map, Llama with gated blocks among its layers.

The file counts gated blocks as layers: the 11B's 32 and 8 are 40, its layers 3, 8, .. 38 the gated ones. Its token table has 8
rows more than its head, for ids that are read and never said. Files are written in the spelling of the published ones (4.x),
which 5.x reads too; both are read.

Two rules stand in no file: which states of the local blocks are features, and what a token before the first picture sees. Read
here are Meta's, for which the published weights were trained; `transformers` 5 has others, whichever folder it opens:
`TRANSFORMERS_RULES` are the fields that give a system those.

Source: `MllamaForConditionalGeneration`; The Llama 3 Herd of Models, arXiv:2407.21783.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints import gated_cross_attention, llama
from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import Index, split
from weft.core.config import override_all
from weft.core.errors import CheckpointError
from weft.core.layout import tile_grids
from weft.encoders.mllama import Mllama
from weft.fusion.cross_attention import CrossAttention, GatedSwiGLU
from weft.language_models.decoder import Decoder
from weft.layers.added_tokens import AddedTokens
from weft.layers.rotary import Llama3Scaling
from weft.projectors.linear import Linear
from weft.systems.multimodal_lm import MultimodalLM, Stream

STREAM = "image"
ADDED = AddedTokens.Config(num_inputs=8, num_outputs=0)
TRANSFORMERS_RULES = (
    (f"streams.{STREAM}.encoder.kept_states", "outputs"),
    (f"streams.{STREAM}.encoder.blank_tiles", "true"),
    ("fusions.0.block.reference", "hf"),
)
"""Fields of a system under which it computes what the library does, for `weft convert --set`."""

_BLOCK = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
}
_GATES = {"gate_attn": "attention_scale.gate", "gate_ffn": "feed_forward_scale.gate"}
_TABLES = {"pre_tile_positional_embedding": "tiles_before_local", "post_tile_positional_embedding": "tiles_before_global"}

VISION = KeyMap(
    rename={
        "patch_embedding.weight": "patch_embedding.projection.weight",
        "class_embedding": "class_embedding",
        "gated_positional_embedding.embedding": "position_embedding",
        "gated_positional_embedding.tile_embedding.weight": "tile_positions.embedding.weight",
        "gated_positional_embedding.gate": "tile_positions.gate",
        **{f"{theirs}.gate": f"{ours}.gate" for theirs, ours in _TABLES.items()},
        **{f"{theirs}.embedding.weight": f"{ours}.embedding.weight" for theirs, ours in _TABLES.items()},
        "layernorm_pre": "norm_before_local",
        "layernorm_post": "norm_before_global",
        **{f"transformer.layers.{{i}}.{theirs}": f"local_blocks.{{i}}.{ours}" for theirs, ours in _BLOCK.items()},
        **{
            f"global_transformer.layers.{{i}}.{theirs}": f"global_blocks.{{i}}.{ours}"
            for theirs, ours in (_BLOCK | _GATES).items()
        },
    },
    spellings=[("vision_model.", "")],
)


def key_map(config: MultimodalLM.Config) -> KeyMap:
    """The table of a system; its gated blocks are layers of the file and stand in slots here."""
    decoder, _, fused = _parts(config)
    own, gated = _file_layers(decoder.num_layers, fused)
    slots = gated_cross_attention.MLLAMA.under("model.layers.{i}.", "blocks.{i}.before_attention.")
    text = KeyMap(
        [
            *(replace(r, index=_index(own)) for r in llama.LLAMA.rules if r.sources != ("model.embed_tokens",)),
            *(replace(rule, index=_index(gated)) for rule in slots.rules),
        ],
        drop=llama.LLAMA.drop,
    )
    tables = ("language_model.embedding.weight", "added_tokens.inputs.weight")
    sizes = (decoder.vocabulary, ADDED.num_inputs)
    return KeyMap.join(
        VISION.under("vision_model.", f"streams.{STREAM}.encoder."),
        text.under("language_model.", "language_model."),
        KeyMap(
            [split("language_model.model.embed_tokens.weight", tables, sizes=sizes)],
            rename={"multi_modal_projector": f"streams.{STREAM}.projector.linear"},
        ),
        spellings=[
            ("model.vision_model.", "vision_model."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
        ],
    )


def _file_layers(num_layers: int, fused: CrossAttention.Config) -> tuple[dict[int, int], dict[int, int]]:
    """By block of the language model its layer in the file, and that of the gated block in front of it."""
    slots = fused.layers(num_layers)
    own = {block: block + sum(slot <= block for slot in slots) for block in range(num_layers)}
    return own, {slot: own[slot] - 1 for slot in slots}


def _index(file_layers: Mapping[int, int]) -> Index:
    blocks = {layer: block for block, layer in file_layers.items()}
    return Index(lambda layer: blocks.get(layer, -1), lambda block: file_layers.get(block, -1))


def read_vision(saved: Mapping[str, Any], where: str = "config.json") -> Mllama.Config:
    """The tower of a `mllama_vision_model` config. Raises: CheckpointError naming what Weft's tower does not have."""
    default = Mllama.Config()
    max_tiles = saved.get("max_num_tiles", default.max_tiles)
    grids = [list(grid) for grid in tile_grids(max_tiles)]
    config = Mllama.Config(
        image_size=saved.get("image_size", default.image_size),
        patch_size=saved.get("patch_size", default.patch_size),
        width=saved.get("hidden_size", default.width),
        num_layers=saved.get("num_hidden_layers", default.num_layers),
        num_global_layers=saved.get("num_global_layers", default.num_global_layers),
        num_heads=saved.get("attention_heads", saved.get("num_attention_heads", default.num_heads)),
        feed_forward_width=saved.get("intermediate_size", default.feed_forward_width),
        activation=from_transformers(saved.get("hidden_act", "gelu")),
        max_tiles=max_tiles,
        kept_layers=tuple(saved.get("intermediate_layers_indices") or default.kept_layers),
        norm_eps=saved.get("norm_eps", default.norm_eps),
    )
    wanted = {
        "supported_aspect_ratios": (saved.get("supported_aspect_ratios") or grids) == grids,
        "vision_output_dim": saved.get("vision_output_dim", config.output_width) == config.output_width,
        "num_channels": saved.get("num_channels", 3) == 3,
    }
    if unfit := [f"{name}={saved.get(name)!r}" for name, fits in wanted.items() if not fits]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which Weft's Llama 3.2 tower does not have")
    return config


def write_vision(config: Mllama.Config) -> dict[str, Any]:
    """The `transformers` config of a tower."""
    return {
        "model_type": "mllama_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_global_layers": config.num_global_layers,
        "attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "hidden_act": to_transformers(config.activation),
        "max_num_tiles": config.max_tiles,
        "supported_aspect_ratios": [list(grid) for grid in tile_grids(config.max_tiles)],
        "intermediate_layers_indices": list(config.kept_layers),
        "vision_output_dim": config.output_width,
        "norm_eps": config.norm_eps,
    }


_TEXT_DEFAULT: dict[str, Any] = {
    "vocab_size": 128_256, "hidden_size": 4096, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14_336, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}  # fmt: skip


def read_config(config: Mapping[str, Any], where: str = "config.json") -> MultimodalLM.Config:
    """The system that a `transformers` Mllama config describes, with Meta's rules.

    Raises: CheckpointError naming what Weft's Llama 3.2 Vision does not have.
    """
    text = {**_TEXT_DEFAULT, **(config.get("text_config") or {})}
    gated = text["cross_attention_layers"] or _TEXT_DEFAULT["cross_attention_layers"]
    num_layers = text["num_hidden_layers"] - len(gated)
    decoder = llama.read_config({**text, "model_type": "llama", "num_hidden_layers": num_layers}, f"{where}, text_config")
    first, every = gated[0], gated[1] - gated[0] - 1 if len(gated) > 1 else num_layers
    fused = fusion(decoder, every, first) if every > 0 else None
    if fused is None or list(_file_layers(num_layers, fused)[1].values()) != list(gated):
        raise CheckpointError(
            f"{where} has its gated blocks at layers {gated} of {text['num_hidden_layers']}; Weft has them at equal distances, "
            "the last of them in front of another layer"
        )
    if decoder.tied_head or decoder.head_width is not None:
        raise CheckpointError(f"{where} asks for tied tables or heads of a width of their own, which this layout does not have")
    encoder = read_vision(config.get("vision_config") or {}, f"{where}, vision_config")
    return MultimodalLM.Config(
        language_model=decoder,
        streams={STREAM: Stream.Config(encoder=encoder, projector=Linear.Config())},
        fusions=(fused,),
        added_tokens=ADDED,
    )


def fusion(decoder: Decoder.Config, every: int, first: int) -> CrossAttention.Config:
    """The gated blocks of Llama 3.2 Vision for a decoder, in front of its blocks `first`, `first` + `every` and so on."""
    block = GatedSwiGLU(num_key_value_heads=decoder.num_key_value_heads, blind_feed_forward=False)
    return CrossAttention.Config(streams=(STREAM,), block=block, every=every, first=first, visibility="run")


def write_config(config: MultimodalLM.Config, image_token: int | None = None) -> dict[str, Any]:
    """The `transformers` config of a system; `image_token` is the id of a picture (by default the first that is added).

    Raises: CheckpointError for a system that is not of Llama 3.2 Vision's parts.
    """
    decoder, encoder, fused = _parts(config)
    gated = _file_layers(decoder.num_layers, fused)[1]
    unknown = ("architectures", "head_dim", "attention_bias")
    text = {name: value for name, value in llama.write_config(decoder).items() if name not in unknown}
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": decoder.vocabulary if image_token is None else image_token,
        "vision_config": write_vision(encoder),
        "text_config": {
            **text,
            "model_type": "mllama_text_model",
            "num_hidden_layers": decoder.num_layers + len(gated),
            "cross_attention_layers": list(gated.values()),
            "bos_token_id": 0,  # the ids of a tokenizer are its folder's affair
            "eos_token_id": None,
            "pad_token_id": None,
        },
    }


def as_transformers(config: MultimodalLM.Config) -> MultimodalLM.Config:
    """The same system with the rules of `transformers` 5: features are what leaves the local blocks, and a token before the
    first picture of a row sees all of them, blank tiles too.

    The library also shows such a token the pictures that fill up a row with fewer than another of its batch; here rows do not
    depend on each other.
    """
    _parts(config)
    changed: MultimodalLM.Config = override_all(config, TRANSFORMERS_RULES)
    return changed


def _parts(config: MultimodalLM.Config) -> tuple[Decoder.Config, Mllama.Config, CrossAttention.Config]:
    """The parts of a system that this layout can hold. Raises: CheckpointError for any other."""
    stream = config.streams.get(STREAM)
    decoder, encoder = config.language_model, stream.encoder if stream is not None else None
    fused = config.fusions[0] if len(config.fusions) == 1 else None
    if (
        isinstance(decoder, Decoder.Config)
        and (decoder.head_width, decoder.tied_head) == (None, False)
        and stream is not None
        and isinstance(encoder, Mllama.Config)
        and stream.projector == Linear.Config()
        and isinstance(fused, CrossAttention.Config)
        and isinstance(fused.block, GatedSwiGLU)
        and replace(fused, block=replace(fused.block, reference="meta")) == fusion(decoder, fused.every, fused.first)
        and config.added_tokens == ADDED
    ):
        return decoder, encoder, fused
    raise CheckpointError(
        "the Llama 3.2 Vision layout holds its tower over tiles, a linear projector, a decoder with two tables of its own, "
        "gated blocks that leave alone what sees no picture, and 8 added tokens that are read only; this system is something "
        "else"
    )


def _tiny() -> tuple[MultimodalLM.Config, ...]:
    decoder = Decoder.Config.tiny()
    one = MultimodalLM.Config(
        language_model=decoder,
        streams={STREAM: Stream.Config(encoder=Mllama.Config.tiny(), projector=Linear.Config())},
        fusions=(fusion(decoder, every=2, first=1),),
        added_tokens=ADDED,
    )
    scaled = replace(decoder, rope_scaling=Llama3Scaling(original_context=64))
    return one, replace(one, language_model=scaled, fusions=(fusion(scaled, every=1, first=0),))


FORMAT = CheckpointFormat(
    name="mllama",
    model_types=("mllama",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)

VISION_FORMAT = CheckpointFormat(
    name="mllama_vision",
    model_types=("mllama_vision_model",),
    key_map=lambda config: VISION,
    read_config=read_vision,
    write_config=write_vision,
    tiny=lambda: (Mllama.Config.tiny(),),
)
