"""Qwen-VL, which no library has: the whole model against a reference written from its description, over a file's own names."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from published_configs import QWEN_VL_CHAT as PUBLISHED
from reference_models import assert_close, randomise

from weft.checkpoints import qwen, qwen_vl
from weft.checkpoints.checkpoint_format import format_of
from weft.checkpoints.weight_files import weights
from weft.core.batch import MediaBatch, MultimodalBatch, TextSide
from weft.core.conversation import Conversation, Media, user
from weft.core.errors import CheckpointError
from weft.core.layout import MediaLayout
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.projectors.qwen_resampler import QwenResampler
from weft.recipes.catalogue import recipe
from weft.systems.accounting import num_parameters, num_table_values, on_meta

IMG, IMG_END = 90, 91  # what stands for <img> and </img> among the tiny model's 96 tokens
TOKENS = [1, 7, IMG, *[0] * 9, IMG_END, 30, 31, IMG, *[0] * 9, IMG_END, 8, 9]


@pytest.fixture(scope="module")
def model():
    return randomise(qwen_vl.FORMAT.tiny()[0].build())


@pytest.fixture(scope="module")
def state(model):
    return {name: value.clone() for name, value in qwen_vl.key_map(model.config).from_weft(weights(model)).items()}


def attention(q, k, v, mask=None):
    """One head: [Q, d], [K, d], [K, d]."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    return (scores if mask is None else scores.masked_fill(mask, -math.inf)).softmax(1) @ v


def tower(state, picture, heads, patch):
    """[G * G, C] of one picture [3, S, S]."""
    own = {name.removeprefix("transformer.visual."): value for name, value in state.items()}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    side = picture.shape[1] // patch
    cut = (picture[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] for r in range(side) for c in range(side))
    x = torch.stack([own["conv1.weight"].flatten(1) @ each.flatten() for each in cut])
    table = own["positional_embedding"]
    known = math.isqrt(len(table))
    grid = F.interpolate(table.T.view(1, -1, known, known), (side, side), mode="bicubic", align_corners=False)
    x = norm(x + grid[0].flatten(1).T, "ln_pre")
    width = x.shape[1] // heads
    for layer in range(2):
        block = f"transformer.resblocks.{layer}."
        fused = linear(norm(x, f"{block}ln_1"), f"{block}attn.in_proj")
        mixed = []
        for head in range(heads):  # of each head the query, then the key, then the value
            q, k, v = fused[:, 3 * width * head : 3 * width * (head + 1)].split(width, 1)
            mixed.append(attention(q, k, v))
        x = x + linear(torch.cat(mixed, 1), f"{block}attn.out_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}ln_2"), f"{block}mlp.c_fc")), f"{block}mlp.c_proj")
    return x


def visual(state, picture, heads, patch):
    """The visual tokens of a picture: [queries, D]."""
    own = {name.removeprefix("transformer.visual."): value for name, value in state.items()}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)

    x = tower(state, picture, heads, patch)
    table = own["attn_pool.pos_embed"]
    side, known = math.isqrt(len(x)), math.isqrt(len(table))
    places = F.interpolate(table.T.view(1, -1, known, known), (side, side), mode="bicubic", align_corners=False)
    memory = norm(x @ own["attn_pool.kv_proj.weight"].T, "attn_pool.ln_kv")
    reading = torch.nn.MultiheadAttention(table.shape[1], table.shape[1] // 128, batch_first=True)
    reading.load_state_dict({name.removeprefix("attn_pool.attn."): v for name, v in own.items() if ".attn." in name[:15]})
    query = norm(own["attn_pool.query"], "attn_pool.ln_q") + table
    x, _ = reading(query[None], (memory + places[0].flatten(1).T)[None], memory[None])
    return norm(x[0], "ln_post") @ own["proj"]


def reference(state, config, tokens, pictures):
    """Logits [T, V]: what stands between <img> and </img> is replaced, then Qwen reads, head by head."""
    encoder, decoder = config.streams["image"].encoder, config.language_model
    x = state["transformer.wte.weight"][tokens]
    begins = [place for place, token in enumerate(tokens) if token == IMG]
    ends = [place for place, token in enumerate(tokens) if token == IMG_END]
    for begin, end, picture in zip(begins, ends, pictures, strict=True):
        x[begin + 1 : end] = visual(state, picture, encoder.num_heads, encoder.patch_size)
    length, size = len(tokens), decoder.width // decoder.num_heads
    angle = torch.tensor([[t / 10_000 ** (2 * (c % (size // 2)) / size) for c in range(size)] for t in range(length)])

    def turned(x):
        return x * angle.cos() + torch.cat((-x[:, size // 2 :], x[:, : size // 2]), 1) * angle.sin()

    def norm(x, name):
        return x / (x.square().mean(1, keepdim=True) + decoder.norm_eps).sqrt() * state[f"transformer.{name}.weight"]

    later = torch.ones(length, length).triu(1).bool()
    for layer in range(decoder.num_layers):
        own = {name.removeprefix(f"transformer.h.{layer}."): value for name, value in state.items()}
        q, k, v = (norm(x, f"h.{layer}.ln_1") @ own["attn.c_attn.weight"].T + own["attn.c_attn.bias"]).chunk(3, 1)
        heads = [slice(size * head, size * (head + 1)) for head in range(decoder.num_heads)]
        mixed = [attention(turned(q[:, part]), turned(k[:, part]), v[:, part], later) for part in heads]
        x = x + torch.cat(mixed, 1) @ own["attn.c_proj.weight"].T
        y = norm(x, f"h.{layer}.ln_2")
        x = x + ((y @ own["mlp.w1.weight"].T) * F.silu(y @ own["mlp.w2.weight"].T)) @ own["mlp.c_proj.weight"].T
    return norm(x, "ln_f") @ state["lm_head.weight"].T


def batch_of(pictures):
    """One row of TOKENS with two pictures."""
    tokens = torch.tensor([TOKENS])
    order = torch.arange(len(TOKENS))[None]
    starts = [place + 1 for place, token in enumerate(TOKENS) if token == IMG]
    modality = torch.zeros_like(tokens)
    for start in starts:
        modality[0, start : start + 9] = 1
    spans = torch.tensor([[item, 0, 0, start, 9] for item, start in enumerate(starts)])
    media = MediaBatch(pictures, torch.arange(2), (MediaLayout(20, 20),) * 2, spans, torch.zeros(2, dtype=torch.long))
    return MultimodalBatch(TextSide(tokens, order, torch.ones_like(order), order, modality), {"image": media})


@torch.no_grad()
def test_logits_equal_the_description(model, state):
    pictures = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    logits = model(batch_of(pictures)).logits()[0]
    expected = reference(state, model.config, TOKENS, pictures)
    assert (logits - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())  # float32, four attentions deep
    other = model(batch_of(pictures.flip(0))).logits()[0]
    assert (other[3:] - logits[3:]).abs().max() > 1e-2, "the pictures' order matters"
    assert torch.equal(other[:3], logits[:3])


@torch.no_grad()
def test_the_tower_alone_equals_the_description(model, state):
    encoder = model.stream("image").encoder
    picture = torch.randn(3, 160, 160, generator=torch.Generator().manual_seed(2))
    features = encoder(picture[None], torch.zeros(1, dtype=torch.long), (MediaLayout(20, 20),)).values[0]
    assert_close(features, tower(state, picture, encoder.config.num_heads, encoder.config.patch_size))


def test_the_file_has_the_published_names(state):
    visual_names = {"positional_embedding", "proj", "conv1.weight"}
    visual_names |= {f"{name}.{leaf}" for name in ("ln_pre", "ln_post") for leaf in ("weight", "bias")}
    visual_names |= {"attn_pool.query", "attn_pool.pos_embed", "attn_pool.kv_proj.weight"}
    visual_names |= {
        f"attn_pool.attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    }
    visual_names |= {f"attn_pool.{name}.{leaf}" for name in ("ln_q", "ln_kv") for leaf in ("weight", "bias")}
    expected = {"transformer.wte.weight", "transformer.ln_f.weight", "lm_head.weight"}
    for i in range(2):
        parts = ("ln_1", "ln_2", "attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
        visual_names |= {f"transformer.resblocks.{i}.{part}.{leaf}" for part in parts for leaf in ("weight", "bias")}
        matrices = ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
        expected |= {f"transformer.h.{i}.{part}.weight" for part in matrices} | {f"transformer.h.{i}.attn.c_attn.bias"}
    assert set(state) == expected | {f"transformer.visual.{name}" for name in visual_names}
    assert state["transformer.visual.positional_embedding"].shape == (256, 64), "learned at 16 x 16 patches, whatever the size"


def test_the_published_config_is_the_recipes_system_with_the_published_parameters():
    config = format_of(PUBLISHED, "config.json").read_config(PUBLISHED)
    assert config == recipe("qwen-vl").system
    system = on_meta(config)
    stream = system.stream("image")
    assert num_parameters(system) + num_table_values(stream.projector) == 9_656_935_168
    assert num_parameters(stream.encoder) == 1_842_770_688
    assert num_parameters(stream.projector.resampler) + num_table_values(stream.projector) == 76_054_528
    assert num_parameters(stream.projector.final_norm) == 8192 and num_parameters(stream.projector.output) == 16_777_216
    assert num_parameters(system.language_model) == 7_721_324_544
    assert qwen_vl.write_config(config)["visual"] == PUBLISHED["visual"]


def test_a_config_tells_qwen_from_qwen_vl():
    alone = {name: value for name, value in PUBLISHED.items() if name != "visual"}
    assert format_of(alone, "config.json") is qwen.FORMAT
    assert format_of(PUBLISHED, "config.json") is qwen_vl.FORMAT


def test_other_systems_are_refused():
    with pytest.raises(CheckpointError, match=r"visual\.output_dim"):
        qwen_vl.read_config(PUBLISHED | {"visual": PUBLISHED["visual"] | {"output_dim": 1024}})
    config = qwen_vl.FORMAT.tiny()[0]
    stream = replace(config.streams["image"], projector=QwenResampler.Config(grid=3, head_width=64))
    with pytest.raises(CheckpointError, match="heads of 128"):
        qwen_vl.write_config(replace(config, streams={"image": stream}))


def test_the_processor_puts_a_picture_between_its_tags_where_the_tokenizer_has_no_token_for_it():
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<ref>", "</ref>", "<box>", "</box>", "<img>", "</img>")
    tokenizer = Tokenizer.train(["Picture 1: What is it?"] * 4, 300, special)
    system = replace(recipe("qwen-vl").system, language_model=replace(recipe("qwen-vl").system.language_model, vocabulary=300))
    config = recipe("qwen-vl").processor
    small = replace(config, transforms={"image": ImageTransform(size=448, resize="direct")})
    pictures = [Media(Image.new("RGB", (60, 40), color)) for color in ("red", "blue")]
    sample = Processor(small, tokenizer, system).encode(Conversation((user(*pictures, "Which?"),)), reply=True)
    assert sample.text.endswith(
        "<|im_start|>user\nPicture 1: <img></img>\nPicture 2: <img></img>\nWhich?<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = sample.tokens.tolist()
    begins = [place for place, token in enumerate(tokens) if token == tokenizer.special["<img>"]]
    ends = [place for place, token in enumerate(tokens) if token == tokenizer.special["</img>"]]
    assert [medium.spans for medium in sample.media["image"]] == [((0, begin + 1, 256),) for begin in begins]
    assert [end - begin for begin, end in zip(begins, ends, strict=True)] == [257, 257]
