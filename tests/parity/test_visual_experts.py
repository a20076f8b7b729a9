"""CogVLM and Mono-InternVL through their published layouts, against references written out from the papers: loops over layers
and tokens, dense masks, the files' own names."""

import math
from dataclasses import replace

import published_configs
import pytest
import torch
import torch.nn.functional as F
from reference_models import assert_close, randomise

from weft.checkpoints import cogvlm, mono_internvl
from weft.checkpoints.weight_files import weights
from weft.core.batch import MediaBatch, MultimodalBatch, TextSide
from weft.core.errors import CheckpointError
from weft.core.layout import MediaLayout
from weft.systems.accounting import num_parameters, on_meta

BEFORE, AFTER = (1, 7), (30, 31, 8, 9)


def built(layout, number=0):
    """A tiny system with random weights, experts unlike the layers beside them, and its file."""
    config = layout.FORMAT.tiny()[number]
    model = randomise(config.build())
    state = layout.FORMAT.key_map(config).from_weft(weights(model))
    return model, {name: value.clone() for name, value in state.items()}


def one_row(config, units, layout):
    """Text, one picture, text; positions as the system's processor writes them."""
    count = config.num_positions("image", layout)
    tokens = torch.tensor([[*BEFORE, *[0] * count, *AFTER]])
    order = torch.arange(tokens.shape[1])[None]
    modality = torch.zeros_like(tokens)
    modality[:, 2 : 2 + count] = 1
    positions = order.clone()
    if config.shares_positions("image"):
        positions = torch.tensor([[0, 1, 2, *[3] * (count - 2), 4, *range(5, 5 + len(AFTER))]])
    spans = torch.tensor([[0, 0, 0, 2, count]])
    media = MediaBatch(units, torch.zeros(len(units), dtype=torch.long), (layout,), spans, torch.zeros(1, dtype=torch.long))
    return MultimodalBatch(TextSide(tokens, order, torch.ones_like(tokens), positions, modality), {"image": media})


def attention(q, k, v, heads, causal):
    """Heads one by one, [T, heads * d] each; keys of fewer heads serve groups of queries."""
    width = q.shape[1] // heads
    group = heads // (k.shape[1] // width)
    out = []
    for h in range(heads):
        keys, values = (x[:, h // group * width : (h // group + 1) * width] for x in (k, v))
        scores = q[:, h * width : (h + 1) * width] @ keys.T / math.sqrt(width)
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1) == 1, -math.inf)
        out.append(scores.softmax(-1) @ values)
    return torch.cat(out, 1)


def turned(x, positions, width, theta):
    """Rotary positions, one pair of channels (c, c + width / 2) of one head at a time."""
    out = x.clone()
    for first in range(0, x.shape[1], width):
        for c in range(width // 2):
            angle = positions * theta ** (-2 * c / width)
            a, b = x[:, first + c], x[:, first + c + width // 2]
            out[:, first + c] = a * angle.cos() - b * angle.sin()
            out[:, first + c + width // 2] = b * angle.cos() + a * angle.sin()
    return out


def rms(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def patches(state, name, picture, size):
    """The patch convolution as a product of each patch's pixels with the kernels."""
    kernel, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    side = picture.shape[1] // size
    cut = (picture[:, r * size : (r + 1) * size, c * size : (c + 1) * size] for r in range(side) for c in range(side))
    return torch.stack([kernel.flatten(1) @ patch.flatten() + bias for patch in cut])


def cogvlm_reference(state, config, picture):
    encoder, decoder = config.streams["image"].encoder, config.language_model
    vision = "model.vision."

    def linear(x, name):
        bias = state.get(f"{name}.bias")
        return x @ state[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    x = patches(state, f"{vision}patch_embedding.proj", picture, encoder.patch_size)
    x = torch.cat((state[f"{vision}patch_embedding.cls_embedding"], x))
    x = x + state[f"{vision}patch_embedding.position_embedding.weight"]
    for i in range(encoder.num_layers):
        layer = f"{vision}transformer.layers.{i}."
        q, k, v = linear(x, f"{layer}attention.query_key_value").chunk(3, 1)
        mixed = linear(attention(q, k, v, encoder.num_heads, causal=False), f"{layer}attention.dense")
        x = x + norm(mixed, f"{layer}input_layernorm", 1e-6)
        up = F.gelu(linear(x, f"{layer}mlp.fc1"))
        x = x + norm(linear(up, f"{layer}mlp.fc2"), f"{layer}post_attention_layernorm", 1e-6)
    glu = f"{vision}linear_proj."
    x = F.gelu(norm(linear(x[1:], f"{glu}linear_proj"), f"{glu}norm1", 1e-5))
    x = linear(F.silu(linear(x, f"{glu}gate_proj")) * linear(x, f"{glu}dense_h_to_4h"), f"{glu}dense_4h_to_h")
    x = torch.cat((state[f"{vision}boi"][0], x, state[f"{vision}eoi"][0]))

    table = state["model.embed_tokens.weight"]
    kinds = ["language"] * len(BEFORE) + ["vision"] * len(x) + ["language"] * len(AFTER)
    x = torch.cat((table[list(BEFORE)], x, table[list(AFTER)]))
    follows = [*kinds[1:], "language"]
    experts = ["vision" if a == b == "vision" else "language" for a, b in zip(kinds, follows, strict=True)]
    assert experts.count("vision") == kinds.count("vision") - 1
    inside = [kind == "vision" and kinds[t - 1] == "vision" and follows[t] == "vision" for t, kind in enumerate(kinds)]
    steps = [0] + [0 if inside[t] and inside[t - 1] else 1 for t in range(1, len(kinds))]
    positions = [sum(steps[: t + 1]) for t in range(len(kinds))]
    positions = torch.tensor(positions, dtype=torch.float32)

    def by_expert(x, name):
        return torch.cat([linear(row[None], name.replace("EXPERT", expert)) for row, expert in zip(x, experts, strict=True)])

    width = decoder.width // decoder.num_heads
    for i in range(decoder.num_layers):
        layer = f"model.layers.{i}."
        normed = rms(x, state[f"{layer}input_layernorm.weight"], decoder.norm_eps)
        q, k, v = by_expert(normed, f"{layer}self_attn.EXPERT_expert_query_key_value").chunk(3, 1)
        q, k = (turned(part, positions, width, 10_000.0) for part in (q, k))
        x = x + by_expert(attention(q, k, v, decoder.num_heads, causal=True), f"{layer}self_attn.EXPERT_expert_dense")
        normed = rms(x, state[f"{layer}post_attention_layernorm.weight"], decoder.norm_eps)
        mlp = f"{layer}mlp.EXPERT_mlp."
        gated = F.silu(by_expert(normed, f"{mlp}gate_proj")) * by_expert(normed, f"{mlp}up_proj")
        x = x + by_expert(gated, f"{mlp}down_proj")
    return linear(rms(x, state["model.norm.weight"], decoder.norm_eps), "lm_head")


def mono_internvl_reference(state, config, units):
    encoder, decoder = config.streams["image"].encoder, config.language_model

    def linear(x, name):
        bias = state.get(f"{name}.bias")
        return x @ state[f"{name}.weight"].T + (0 if bias is None else bias)

    side = encoder.image_size // encoder.patch_size
    tokens = []
    for picture in units:
        x = patches(state, "vision_model.embeddings.patch_embedding", picture, encoder.patch_size)
        x = x + state["vision_model.embeddings.position_embedding"][0, 1:]
        blocks = [(r, c) for r in range(0, side, 2) for c in range(0, side, 2)]
        if config.streams["image"].projector.order == "columns":
            blocks.sort(key=lambda block: block[::-1])
        x = torch.stack([torch.cat([x[(r + a) * side + c + b] for a in (0, 1) for b in (0, 1)]) for r, c in blocks])
        x = F.layer_norm(x, x.shape[-1:], state["mlp1.0.weight"], state["mlp1.0.bias"])
        tokens.append(linear(F.gelu(linear(x, "mlp1.1")), "mlp1.3"))
    x = torch.cat(tokens)

    model = "language_model.model."
    table = state[f"{model}tok_embeddings.weight"]
    mask = torch.tensor([0.0] * len(BEFORE) + [1.0] * len(x) + [0.0] * len(AFTER))[:, None]
    x = torch.cat((table[list(BEFORE)], x, table[list(AFTER)]))
    positions = torch.arange(len(x), dtype=torch.float32)
    width, group = decoder.width // decoder.num_heads, decoder.num_heads // decoder.num_key_value_heads
    for i in range(decoder.num_layers):
        layer = f"{model}layers.{i}."
        normed = rms(x, state[f"{layer}attention_norm.weight"], decoder.norm_eps)
        fused = linear(normed, f"{layer}attention.wqkv").unflatten(1, (-1, group + 2, width))
        q, k, v = fused[:, :, :group].flatten(1), fused[:, :, -2].flatten(1), fused[:, :, -1].flatten(1)
        q, k = (turned(part, positions, width, decoder.rope_theta) for part in (q, k))
        x = x + linear(attention(q, k, v, decoder.num_heads, causal=True), f"{layer}attention.wo")
        normed = rms(x, state[f"{layer}ffn_norm.weight"], decoder.norm_eps)
        out = []
        for ffn in ("feed_forward", "feed_forward_ve"):
            gated = F.silu(linear(normed, f"{layer}{ffn}.w1")) * linear(normed, f"{layer}{ffn}.w3")
            out.append(linear(gated, f"{layer}{ffn}.w2"))
        x = x + out[0] * (1 - mask) + out[1] * mask
    return linear(rms(x, state[f"{model}norm.weight"], decoder.norm_eps), "language_model.output")


def assert_matters(model, batch, logits):
    """Another picture gives other logits, so the path that was compared is no dead end."""
    units = batch.media["image"].units
    other = replace(batch, media={"image": replace(batch.media["image"], units=units.flip(-1))})
    with torch.no_grad():
        assert (model(other).logits() - logits).abs().max() > 1e-3


def test_cogvlm_equals_its_reference():
    model, state = built(cogvlm)
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = one_row(model.config, picture, MediaLayout(4, 4))
    with torch.no_grad():
        logits = model(batch).logits()
        assert_close(logits[0], cogvlm_reference(state, model.config, picture[0]))
    assert_matters(model, batch, logits)


@pytest.mark.parametrize("number", [0, 1], ids=["rows", "columns"])
def test_mono_internvl_equals_its_reference(number):
    model, state = built(mono_internvl, number)
    units = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))  # two tiles and their thumbnail
    batch = one_row(model.config, units, MediaLayout(4, 4, tile_columns=2, thumbnail="last"))
    with torch.no_grad():
        logits = model(batch).logits()
        assert_close(logits[0], mono_internvl_reference(state, model.config, units))
    assert_matters(model, batch, logits)


def test_cogvlm_file_has_the_published_names():
    _, state = built(cogvlm)
    vision = "model.vision."
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", f"{vision}boi", f"{vision}eoi"}
    expected |= {
        f"{vision}linear_proj.{n}.weight" for n in ("linear_proj", "norm1", "gate_proj", "dense_h_to_4h", "dense_4h_to_h")
    }
    expected |= {
        f"{vision}patch_embedding.{n}" for n in ("proj.weight", "proj.bias", "cls_embedding", "position_embedding.weight")
    }
    expected |= {f"{vision}linear_proj.norm1.bias"}
    for i in range(2):
        tower = f"{vision}transformer.layers.{i}."
        names = (
            "attention.query_key_value",
            "attention.dense",
            "mlp.fc1",
            "mlp.fc2",
            "input_layernorm",
            "post_attention_layernorm",
        )
        expected |= {f"{tower}{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
        layer = f"model.layers.{i}."
        expected |= {f"{layer}{n}.weight" for n in ("input_layernorm", "post_attention_layernorm")}
        for kind in ("language", "vision"):
            expected |= {f"{layer}self_attn.{kind}_expert_{n}.weight" for n in ("query_key_value", "dense")}
            expected |= {f"{layer}mlp.{kind}_mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    assert set(state) == expected
    assert state[f"{vision}boi"].shape == (1, 1, 64) and state[f"{vision}patch_embedding.cls_embedding"].shape == (1, 64)


def test_mono_internvl_file_has_the_published_names():
    _, state = built(mono_internvl)
    vision, language = "vision_model.embeddings.", "language_model.model."
    expected = {
        f"{vision}{n}" for n in ("class_embedding", "position_embedding", "patch_embedding.weight", "patch_embedding.bias")
    }
    expected |= {f"mlp1.{n}.{leaf}" for n in (0, 1, 3) for leaf in ("weight", "bias")}
    expected |= {f"{language}tok_embeddings.weight", f"{language}norm.weight", "language_model.output.weight"}
    for i in range(2):
        layer = f"{language}layers.{i}."
        expected |= {f"{layer}{n}.weight" for n in ("attention.wqkv", "attention.wo", "attention_norm", "ffn_norm")}
        expected |= {f"{layer}{ffn}.{n}.weight" for ffn in ("feed_forward", "feed_forward_ve") for n in ("w1", "w2", "w3")}
    assert set(state) == expected
    assert state[f"{vision}position_embedding"].shape == (1, 17, 48) and state[f"{vision}class_embedding"].shape == (1, 1, 48)


def test_mono_internvl_reads_places_of_another_grid_and_leaves_the_class_token_out():
    model, state = built(mono_internvl)
    table = state["vision_model.embeddings.position_embedding"]
    grid = table[0, 1:].T.reshape(1, -1, 4, 4)
    finer = F.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)[0].flatten(1).T
    wide = torch.cat((table[:, :1] + 5.0, finer[None]), 1)
    encoder = replace(model.config.streams["image"].encoder, image_size=64)
    config = replace(model.config, streams={"image": replace(model.config.streams["image"], encoder=encoder)})
    large = config.build()
    mono_internvl.FORMAT.key_map(config).load(large, state | {"vision_model.embeddings.position_embedding": wide})
    assert torch.equal(large.stream("image").encoder.position_embedding, finer)
    again = config.build()
    mono_internvl.FORMAT.key_map(config).load(again, state)
    assert torch.allclose(again.stream("image").encoder.position_embedding, finer)


def test_other_systems_are_refused():
    with pytest.raises(CheckpointError, match="num_multi_query_heads"):
        cogvlm.FORMAT.read_config({"num_multi_query_heads": 8})
    with pytest.raises(CheckpointError, match=r"vision_config\.model_type='intern_vit_6b'"):
        mono_internvl.FORMAT.read_config({"vision_config": {"model_type": "intern_vit_6b"}})
    with pytest.raises(CheckpointError, match="other parts"):
        cogvlm.FORMAT.write_config(mono_internvl.FORMAT.tiny()[0])
    with pytest.raises(CheckpointError, match="other parts"):
        mono_internvl.FORMAT.write_config(cogvlm.FORMAT.tiny()[0])


def experts(system):
    return sum(p.numel() for name, p in system.named_parameters() if ".routes." in name)


def test_cogvlm_17b_has_the_published_parameters():
    system = on_meta(cogvlm.FORMAT.read_config(published_configs.COGVLM_CHAT))
    stream = system.stream("image")
    assert num_parameters(system) == 17_639_685_376
    assert num_parameters(system.language_model) == 13_214_420_992 and experts(system) == 6_476_005_376
    assert num_parameters(stream.encoder) == 4_282_641_664
    assert num_parameters(stream.projector) == 142_614_528 + 8192
    assert system.config.num_positions("image") == 1227


def test_mono_internvl_2b_has_the_published_parameters():
    system = on_meta(mono_internvl.FORMAT.read_config(published_configs.MONO_INTERNVL_2B))
    assert experts(system) == 1_207_959_552
    assert num_parameters(system.stream("image").projector) == 12_595_200
    in_the_file = num_parameters(system) + 2 * 1024  # with the class token and its place
    assert in_the_file == 3_111_355_392
    assert system.config.num_positions("image") == 256
