"""EVA-CLIP: BLIP-2's tower against `transformers`, each block type against equations written out from the published names."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from reference_models import assert_close, randomise, to_transformers, to_weft

from weft.checkpoints.blip_2_vision import BLIP_2_VISION, LAVIS_EVA_VIT
from weft.checkpoints.eva_clip import EVA_CLIP, EVA_CLIP_VISION
from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.errors import CheckpointError
from weft.core.layout import MediaLayout
from weft.encoders.clip import ClipText
from weft.encoders.eva_clip import EvaClipVision
from weft.systems.dual_encoder import DualEncoder

transformers = pytest.importorskip("transformers")

WIDTH, HEADS, LAYERS, SIDE, PATCH, JOINT = 48, 3, 3, 4, 7, 20
VISION = {
    "hidden_size": WIDTH, "intermediate_size": 80, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "image_size": 30, "patch_size": PATCH, "initializer_range": 0.02,
}  # fmt: skip
PIXELS = torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(7))


def features(encoder: EvaClipVision, pixels: torch.Tensor = PIXELS, **changes) -> torch.Tensor:
    before, encoder.config = encoder.config, dataclasses.replace(encoder.config, **changes)
    values = encoder(pixels, torch.arange(len(pixels)), (encoder.config.layout(),) * len(pixels)).values
    encoder.config = before
    return values


# BLIP-2's tower, against transformers


@pytest.mark.parametrize("family", ["Blip2", "InstructBlip"])
@pytest.mark.parametrize("spelling", ["", "vision_model."], ids=["alone", "in the whole model"])
def test_blip_2_tower_equals_the_reference_whatever_the_bias_of_its_keys(tmp_path, family, spelling):
    config = getattr(transformers, f"{family}VisionConfig")(**VISION)
    theirs = randomise(getattr(transformers, f"{family}VisionModel")(config))
    assert theirs.encoder.layers[0].self_attn.qkv.bias[WIDTH : 2 * WIDTH].abs().min() > 0  # the key's, which Weft leaves out
    ours = to_weft(theirs, tmp_path, rename=lambda key: spelling + key)
    assert ours.config.layout() == MediaLayout(1, SIDE**2 + 1)
    with torch.no_grad():
        expected = theirs(PIXELS, output_hidden_states=True)
        assert_close(features(ours), expected.last_hidden_state)
        assert_close(ours.hidden_state(PIXELS, LAYERS - 1), expected.hidden_states[-2])


def test_what_weft_writes_the_reference_loads_without_a_word_about_keys(tmp_path):
    theirs = randomise(transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**VISION)))
    for layer in theirs.encoder.layers:
        layer.self_attn.qkv.bias.data[WIDTH : 2 * WIDTH] = 0  # as published
    again = to_transformers(to_weft(theirs, tmp_path / "theirs"), transformers.Blip2VisionModel, tmp_path / "ours")
    expected = theirs.state_dict()
    assert expected.keys() == again.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def test_positions_go_to_another_resolution_as_in_the_reference():
    theirs = randomise(transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**VISION)))
    config = dataclasses.replace(BLIP_2_VISION.read_config(theirs.config.to_dict()), image_size=44)
    ours = config.build().eval()
    BLIP_2_VISION.key_map(config).load(ours, {key: value.detach() for key, value in theirs.state_dict().items()})
    pixels = torch.randn(1, 3, 44, 44, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        assert_close(features(ours, pixels), theirs(pixels, interpolate_pos_encoding=True).last_hidden_state)


def in_lavis_names(theirs) -> dict[str, torch.Tensor]:
    """A reference's weights as LAVIS names them, with parts of BLIP-2 beside the tower."""
    state = {"query_tokens": torch.zeros(1), "Qformer.bert.embeddings.LayerNorm.weight": torch.zeros(1)}
    for key, value in theirs.state_dict().items():
        if key.endswith("qkv.bias"):
            stem = key.replace("encoder.layers.", "visual_encoder.blocks.").replace("self_attn.qkv.bias", "attn.")
            state[stem + "q_bias"], _, state[stem + "v_bias"] = value.chunk(3)
            continue
        for old, new in (
            ("embeddings.class_embedding", "visual_encoder.cls_token"),
            ("embeddings.position_embedding", "visual_encoder.pos_embed"),
            ("embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
            ("encoder.layers.", "visual_encoder.blocks."),
            ("self_attn.projection", "attn.proj"), ("self_attn.", "attn."),
            ("layer_norm", "norm"), ("post_layernorm", "ln_vision"),
        ):  # fmt: skip
            key = key.replace(old, new)
        state[key] = value
    return state


def test_lavis_file_gives_the_same_tower_with_the_eps_of_its_own_norm():
    theirs = randomise(transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**VISION)))
    theirs.post_layernorm.eps = 1e-5  # what LAVIS's ln_vision has; transformers' class takes the 1e-6 of the other norms
    config = LAVIS_EVA_VIT.read_config(
        {"img_size": 30, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS, "mlp_ratio": 1.6667}
    )
    assert (config.feature_norm_eps, config.norm_eps) == (1e-5, 1e-6)
    ours = config.build().eval()
    dropped = LAVIS_EVA_VIT.key_map(config).load(ours, in_lavis_names(theirs))
    assert dropped.keys() == {"query_tokens", "Qformer.bert.embeddings.LayerNorm.weight"}
    with torch.no_grad():
        assert_close(features(ours), theirs(PIXELS).last_hidden_state)


def test_one_eps_is_all_that_transformers_can_say():
    published = EvaClipVision.Config.sizes()["g-14-blip-2"]
    with pytest.raises(CheckpointError, match="feature_norm_eps=1e-06"):
        BLIP_2_VISION.write_config(published)
    hub = BLIP_2_VISION.read_config(transformers.Blip2VisionConfig().to_dict())
    assert hub == dataclasses.replace(published, feature_norm_eps=1e-6)
    assert LAVIS_EVA_VIT.read_config({}) == published


# The three block types, against the equations


def published_weights(block: str, layers: int = LAYERS, hidden: int = 64) -> dict[str, torch.Tensor]:
    """Random weights under the names and in the shapes of EVA-CLIP's own files."""
    generator = torch.Generator().manual_seed(3)

    def matrix(*shape):
        return torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5

    def bias(width=WIDTH):
        return torch.randn(width, generator=generator) * 0.2

    def norm(name, width=WIDTH):
        return {f"{name}.weight": 1 + bias(width), f"{name}.bias": bias(width)}

    def linear(name, out, into):
        return {f"{name}.weight": matrix(out, into), f"{name}.bias": bias(out)}

    state = {"cls_token": bias()[None, None], "pos_embed": torch.randn(1, SIDE**2 + 1, WIDTH, generator=generator) * 0.5}
    state |= {"patch_embed.proj.weight": matrix(WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": bias()}
    state |= norm("norm") | linear("head", JOINT, WIDTH)
    for i in range(layers):
        names = norm("norm1") | norm("norm2") | linear("attn.proj", WIDTH, WIDTH)
        names |= {"attn.q_bias": bias(), "attn.v_bias": bias()}
        if block == "sub_norm":
            names |= {f"attn.{n}_proj.weight": matrix(WIDTH, WIDTH) for n in "qkv"} | norm("attn.inner_attn_ln")
            names |= linear("mlp.w1", hidden, WIDTH) | linear("mlp.w2", hidden, WIDTH) | linear("mlp.w3", WIDTH, hidden)
            names |= norm("mlp.ffn_ln", hidden)
            names |= {f"attn.rope.freqs_{n}": torch.zeros(SIDE**2, WIDTH // HEADS) for n in ("cos", "sin")}
        else:
            names |= {"attn.qkv.weight": matrix(3 * WIDTH, WIDTH)}
            names |= linear("mlp.fc1", hidden, WIDTH) | linear("mlp.fc2", WIDTH, hidden)
        state |= {f"blocks.{i}.{key}": value for key, value in names.items()}
    return state


def equations(state: dict[str, torch.Tensor], pixels: torch.Tensor, block: str, trained_side: int) -> list[torch.Tensor]:
    """Every hidden state and the head's vector, one picture at a time, straight from the papers."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def turned(heads):
        """Neighbouring channels are one complex number: the first half turns with the row, the second with the column."""
        d = heads.shape[-1]
        out = torch.view_as_complex(heads.double().reshape(*heads.shape[:-1], d // 2, 2)).clone()
        for patch in range(SIDE**2):
            for axis, place in enumerate(divmod(patch, SIDE)):
                for k in range(d // 4):
                    angle = place / SIDE * trained_side * 10_000 ** (-2 * k / (d / 2))
                    out[:, patch + 1, axis * d // 4 + k] *= complex(math.cos(angle), math.sin(angle))
        return torch.view_as_real(out).flatten(-2).float()

    def attention(x, at):
        if block == "sub_norm":
            q, k, v = (x @ state[f"{at}{n}_proj.weight"].T for n in "qkv")
        else:
            q, k, v = (x @ weight.T for weight in state[f"{at}qkv.weight"].chunk(3))
        q, v = q + state[f"{at}q_bias"], v + state[f"{at}v_bias"]
        q, k, v = (t.reshape(len(x), HEADS, -1).transpose(0, 1) for t in (q, k, v))
        if block == "sub_norm":
            q, k = turned(q), turned(k)
        mixed = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v
        mixed = mixed.transpose(0, 1).reshape(len(x), -1)
        return linear(norm(mixed, f"{at}inner_attn_ln") if block == "sub_norm" else mixed, f"{at}proj")

    def feed_forward(x, at):
        if block == "sub_norm":
            return linear(norm(F.silu(linear(x, f"{at}w1")) * linear(x, f"{at}w2"), f"{at}ffn_ln"), f"{at}w3")
        return linear(F.gelu(linear(x, f"{at}fc1")), f"{at}fc2")

    pictures = []
    for picture in pixels:
        kernel = state["patch_embed.proj.weight"].flatten(1)
        rows = [state["cls_token"][0, 0]]
        for row in range(SIDE):
            for column in range(SIDE):
                patch = picture[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                rows.append(kernel @ patch.flatten() + state["patch_embed.proj.bias"])
        x = torch.stack(rows) + state["pos_embed"][0]
        states = [x]
        for i in range(LAYERS):
            at = f"blocks.{i}."
            for name, part in (("norm1", lambda y, at=at: attention(y, f"{at}attn.")),
                               ("norm2", lambda y, at=at: feed_forward(y, f"{at}mlp."))):  # fmt: skip
                x = x + (norm(part(x), at + name) if block == "residual_post_norm" else part(norm(x, at + name)))
            states.append(x)
        pictures.append([*states, linear(norm(x[0], "norm"), "head")])
    return [torch.stack(same) for same in zip(*pictures, strict=True)]


def tower(block: str, trained_side: int = SIDE, **changes) -> EvaClipVision.Config:
    return EvaClipVision.Config(
        image_size=30, patch_size=PATCH, width=WIDTH, num_layers=LAYERS, num_heads=HEADS, feed_forward_width=64, block=block,
        rotary_side=trained_side if block == "sub_norm" else None, embedding_width=JOINT, **changes,
    )  # fmt: skip


def in_timm_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as `open_clip` saves them."""
    if any("mlp.w1" in key for key in state):
        for old, new in (
            ("attn.q_bias", "attn.q_proj.bias"), ("attn.v_bias", "attn.v_proj.bias"), ("attn.inner_attn_ln", "attn.norm"),
            ("mlp.w1", "mlp.fc1_g"), ("mlp.w2", "mlp.fc1_x"), ("mlp.ffn_ln", "mlp.norm"), ("mlp.w3", "mlp.fc2"),
        ):  # fmt: skip
            state = {key.replace(old, new): value for key, value in state.items() if "rope" not in key}
    return {f"visual.trunk.{key}": value for key, value in state.items()}


CASES = [("pre_norm", SIDE), ("sub_norm", SIDE), ("sub_norm", 3), ("residual_post_norm", SIDE)]


@pytest.mark.parametrize(("block", "trained_side"), CASES, ids=lambda value: str(value))
def test_every_block_type_equals_its_equations_in_all_spellings(block, trained_side):
    state = published_weights(block)
    config = tower(block, trained_side)
    key_map = EVA_CLIP_VISION.key_map(config)
    *hidden, pooled = equations(state, PIXELS, block, trained_side)
    whole = {f"visual.{key}": value for key, value in state.items()} | {"text.ln_final.weight": torch.ones(1)}
    for spelled in (state, whole, in_timm_names(state)):
        ours = config.build().eval()
        dropped = key_map.load(ours, spelled)
        assert all("rope" in key or key.startswith("text.") for key in dropped)
        with torch.no_grad():
            assert_close(ours.pool(PIXELS), pooled)
    with torch.no_grad():
        for layer in (0, 1, -2, -1):
            assert_close(features(ours, feature_layer=layer), hidden[layer][:, 1:])
            assert_close(features(ours, feature_layer=layer, keep_class_token=True), hidden[layer])


def test_blip_2_tower_is_read_from_the_file_of_eva_clip_g_without_what_lies_behind_it():
    state = published_weights("pre_norm", layers=LAYERS + 1) | {"mask_token": torch.zeros(1, 1, WIDTH)}
    hidden = equations(state, PIXELS, "pre_norm", SIDE)[LAYERS]
    config = dataclasses.replace(tower("pre_norm"), embedding_width=None, feature_layer=-1, keep_class_token=True)
    ours = config.build().eval()
    dropped = LAVIS_EVA_VIT.key_map(config).load(ours, state)
    assert {key.split(".")[0] for key in dropped} == {"mask_token", "norm", "head", "blocks"}
    assert {key.split(".")[1] for key in dropped if key.startswith("blocks")} == {str(LAYERS)}
    with torch.no_grad():
        assert_close(features(ours), hidden)


def test_another_block_type_is_one_error_and_not_a_wrong_model():
    with pytest.raises(CheckpointError, match=r"missing.*unknown"):
        EVA_CLIP_VISION.key_map(tower("pre_norm")).load(tower("pre_norm").build(), published_weights("sub_norm"))
    with pytest.raises(CheckpointError, match="nowhere else"):
        EVA_CLIP_VISION.key_map(dataclasses.replace(tower("pre_norm"), rotary_side=16))


# The whole model


def in_open_clip_names(theirs) -> dict[str, torch.Tensor]:
    """A text tower of `transformers` and its projection as `open_clip` names them."""
    state = {}
    for key, value in theirs.state_dict().items():
        for old, new in (
            ("text_model.embeddings.token_embedding", "token_embedding"),
            ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
            ("text_model.final_layer_norm", "ln_final"), ("text_model.encoder.layers.", "transformer.resblocks."),
            ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("self_attn.out", "attn.out"),
        ):  # fmt: skip
            key = key.replace(old, new)
        state[f"text.{key}"] = value
    for i in range(2):
        at = f"text.transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{at}self_attn.{n}_proj.{kind}") for n in "qkv"]
            state[f"{at}attn.in_proj_{kind}"] = torch.cat(parts)
    state["text.text_projection"] = state.pop("text.text_projection.weight").T
    return state


def test_whole_model_compares_the_heads_vector_with_the_projected_text():
    config = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=50, projection_dim=JOINT,
        max_position_embeddings=9, hidden_act="gelu", bos_token_id=48, eos_token_id=49,
    )  # fmt: skip
    theirs = randomise(transformers.CLIPTextModelWithProjection(config))
    published = published_weights("sub_norm")
    described = EVA_CLIP.read_config(
        {
            "embed_dim": JOINT,
            "vision_cfg": {
                "image_size": 30, "layers": LAYERS, "width": WIDTH, "head_width": WIDTH // HEADS, "mlp_ratio": 1.3334,
                "patch_size": PATCH, "eva_model_name": "eva-clip-l-14", "drop_path_rate": 0, "xattn": True, "fusedLN": True,
                "rope": True, "pt_hw_seq_len": 3, "intp_freq": True, "naiveswiglu": True, "subln": True,
            },
            "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
        }
    )  # fmt: skip
    assert described.media == tower("sub_norm", 3)
    ours = described.build().eval()
    visual = {f"visual.{key}": value for key, value in published.items()}
    EVA_CLIP.key_map(described).load(ours, visual | in_open_clip_names(theirs) | {"logit_scale": torch.tensor(3.0)})
    tokens = torch.randint(1, 48, (2, 6), generator=torch.Generator().manual_seed(8))
    tokens[:, -1] = 49
    place = torch.arange(6).expand(2, 6)
    text = TextSide(tokens, place, torch.ones_like(place), place, torch.zeros_like(place))
    media = MediaBatch(PIXELS, torch.arange(2), (MediaLayout(4, 4),) * 2, torch.empty(0, 5, dtype=torch.long), torch.arange(2))
    samples = tuple(SampleRef(row, 1, "test", str(row)) for row in range(2))
    with torch.no_grad():
        found = ours(MultimodalBatch(text, {"image": media}, samples)).embeddings
        assert_close(found["text"], F.normalize(theirs(input_ids=tokens).text_embeds, dim=-1))
        assert_close(found["media"], F.normalize(equations(published, PIXELS, "sub_norm", 3)[-1], dim=-1))
    assert ours.logit_scale == 3.0


# Published sizes


@pytest.mark.parametrize(
    ("size", "text_sizes", "vision", "whole"),
    [
        ("g-14", (768, 12, 12), 1_012_588_928, 1_136_435_841),
        ("g-14-plus", (1024, 16, 24), 1_012_588_928, 1_366_621_569),
        ("b-16", (512, 8, 12), 86_263_040, 149_691_137),
        ("l-14", (768, 12, 12), 304_105_152, 427_755_457),
        ("l-14-336", (768, 12, 12), 304_432_832, 428_083_137),
        ("e-14", (1024, 16, 24), 4_350_556_928, 4_704_589_569),
        ("e-14-plus", (1280, 20, 32), 4_350_556_928, 5_044_889_089),
    ],
)
def test_published_sizes_have_the_published_parameters(size, text_sizes, vision, whole):
    media = EvaClipVision.Config.sizes()[size]
    width, heads, layers = text_sizes
    text = ClipText.Config(width=width, num_heads=heads, num_layers=layers, feed_forward_width=4 * width, activation="gelu")
    config = DualEncoder.Config(media=media, text=text, embedding_width=media.embedding_width, projected=("text",))
    with torch.device("meta"):
        system = config.build()
    assert sum(p.numel() for p in system.media.parameters()) == vision
    assert sum(p.numel() for p in system.parameters()) == whole
    assert EVA_CLIP.read_config(EVA_CLIP.write_config(config)) == config


def test_blip_2_tower_has_39_blocks_and_the_published_parameters():
    with torch.device("meta"):
        encoder = EvaClipVision.Config.sizes()["g-14-blip-2"].build()
    assert len(encoder.blocks) == 39
    assert sum(p.numel() for p in encoder.parameters()) == 985_894_528 + 2 * 1408  # the trunk, and ln_vision


def test_an_open_clip_config_names_a_published_size():
    vision = {"image_size": 336, "timm_model_name": "eva02_large_patch14_clip_336", "timm_pool": "token", "timm_proj": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12}
    config = EVA_CLIP.read_config({"embed_dim": 768, "vision_cfg": vision, "text_cfg": text, "custom_text": True})
    assert config.media == EvaClipVision.Config.sizes()["l-14-336"]
    assert (config.text.activation, config.projected) == ("gelu", ("text",))
