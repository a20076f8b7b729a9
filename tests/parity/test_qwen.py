"""Qwen 1, which no library has: the decoder against a forward written from its description, over a state in its own names."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from weft.checkpoints.qwen import FORMAT, QWEN, read_config
from weft.core.attention_rule import AttentionRule
from weft.core.errors import CheckpointError
from weft.core.sequence import TokenSequence
from weft.inference.cache import KeyValueCache
from weft.language_models.decoder import Decoder
from weft.layers.rotary import QwenScaling

WIDTH, HEADS, LAYERS, INNER, VOCABULARY, TRAINED = 48, 4, 3, 80, 97, 64
SAVED = {
    "model_type": "qwen", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "kv_channels": WIDTH // HEADS, "intermediate_size": 2 * INNER, "seq_length": TRAINED,
    "max_position_embeddings": 256,
}  # fmt: skip
TOKENS = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A file's tensors: matrices of unit variance, biases and norms that matter."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    def vector(size: int, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(size, generator=generator) * 0.2 + mean

    made = {"transformer.wte.weight": matrix(VOCABULARY, WIDTH) * WIDTH**0.5, "lm_head.weight": matrix(VOCABULARY, WIDTH)}
    made["transformer.ln_f.weight"] = vector(WIDTH, 1.0)
    for layer in range(LAYERS):
        made |= {
            f"transformer.h.{layer}.{name}": tensor
            for name, tensor in {
                "ln_1.weight": vector(WIDTH, 1.0), "ln_2.weight": vector(WIDTH, 1.0),
                "attn.c_attn.weight": matrix(3 * WIDTH, WIDTH), "attn.c_attn.bias": vector(3 * WIDTH),
                "attn.c_proj.weight": matrix(WIDTH, WIDTH), "mlp.w1.weight": matrix(INNER, WIDTH),
                "mlp.w2.weight": matrix(INNER, WIDTH), "mlp.c_proj.weight": matrix(WIDTH, INNER),
            }.items()
        }  # fmt: skip
    return made


def reference(state: dict[str, torch.Tensor], tokens: list[int], trained: int = TRAINED) -> torch.Tensor:
    """Logits [T, V] of one text read at once, head by head, both means for long texts on."""
    length, size = len(tokens), WIDTH // HEADS
    growth = max(2 ** math.ceil(math.log2(length / trained) + 1) - 1, 1)
    base = 10_000.0 * growth ** (size / (size - 2))
    angle = torch.tensor([[place / base ** (2 * (k % (size // 2)) / size) for k in range(size)] for place in range(length)])

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = size // 2
        return x * angle.cos() + torch.stack([*(-x.T[half:]), *x.T[:half]], 1) * angle.sin()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * state[f"transformer.{name}.weight"]

    sharper = torch.tensor([math.log(place, trained) if place > trained else 1.0 for place in range(1, length + 1)])
    x = state["transformer.wte.weight"][tokens]
    for layer in range(LAYERS):
        own = {key.removeprefix(f"transformer.h.{layer}."): value for key, value in state.items()}
        fused = norm(x, f"h.{layer}.ln_1") @ own["attn.c_attn.weight"].T + own["attn.c_attn.bias"]
        mixed = []
        for head in range(HEADS):
            q, k, v = (fused[:, WIDTH * part + size * head :][:, :size] for part in range(3))
            scores = (turned(q) * sharper[:, None]) @ turned(k).T / size**0.5
            later = torch.ones(length, length).triu(1).bool()
            mixed.append(scores.masked_fill(later, -1e9).softmax(1) @ v)
        x = x + torch.cat(mixed, 1) @ own["attn.c_proj.weight"].T
        y = norm(x, f"h.{layer}.ln_2")
        x = x + ((y @ own["mlp.w1.weight"].T) * F.silu(y @ own["mlp.w2.weight"].T)) @ own["mlp.c_proj.weight"].T
    return norm(x, "ln_f") @ state["lm_head.weight"].T


def decoder(saved: dict, **changes: object) -> Decoder:
    model = replace(read_config(saved), **changes).build().eval()
    QWEN.load(model, state(), "qwen")
    return model


def logits(model: Decoder, cuts: tuple[int, ...] = ()) -> torch.Tensor:
    cache, pieces = KeyValueCache.of(model), []
    for start, stop in zip((0, *cuts), (*cuts, TOKENS.shape[1]), strict=True):
        positions = torch.arange(start, stop).expand(len(TOKENS), -1)
        side = AttentionRule(positions, torch.ones_like(positions)).queries
        rule = cache.extend(side) if cuts else AttentionRule(*side)
        sequence = TokenSequence(model.embed(TOKENS[:, start:stop]), positions, rule, torch.zeros_like(positions))
        pieces.append(model.head(model(sequence, cache if cuts else None)[0]))
    return torch.cat(pieces, 1)


@torch.no_grad()
@pytest.mark.parametrize("trained", [TRAINED, 40, 16, 9], ids="trained on {} tokens".format)
def test_logits_equal_the_description_with_and_without_a_cache(trained):
    """40 tokens: within the trained length, at its end, and 2.5 and 4.4 times as long."""
    model = decoder(SAVED | {"seq_length": trained}, context=max(40, trained))
    expected = torch.stack([reference(state(), row, trained) for row in TOKENS.tolist()])
    bound = 1e-4 * max(1.0, expected.abs().max().item())  # float32 rounding over three layers
    assert (logits(model) - expected).abs().max() <= bound
    assert (logits(model, (7, 8, 9, 30)) - expected).abs().max() <= bound
    assert expected.std() > 0.3  # weights under which every layer matters
    if trained < 40:
        plain = torch.stack([reference(state(), row, TRAINED) for row in TOKENS.tolist()])
        assert (plain - expected).abs().max() > 100 * bound, "neither means for long texts is in force"


@torch.no_grad()
def test_greedy_continuations_are_those_of_the_description():
    model, prompt, steps = decoder(SAVED), TOKENS[0, :9].tolist(), 24
    written = list(prompt)
    for _ in range(steps):
        written.append(int(reference(state(), written)[-1].argmax()))
    cache, ours, piece = KeyValueCache.of(model), list(prompt), prompt
    for _ in range(steps):
        positions = torch.arange(len(ours) - len(piece), len(ours))[None]
        rule = cache.extend(AttentionRule(positions, torch.ones_like(positions)).queries)
        sequence = TokenSequence(model.embed(torch.tensor([piece])), positions, rule, torch.zeros_like(positions))
        piece = [int(model.head(model(sequence, cache)[0][0, -1]).argmax())]
        ours += piece
    assert ours == written


@torch.no_grad()
def test_without_the_means_for_long_texts_it_is_qwen2(tmp_path):
    """The fused matrix cut by hand and given to the library's class of the next generation."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    theirs, own = transformers.Qwen2ForCausalLM(config).eval(), state()
    names = {"model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f", "lm_head": "lm_head"}
    filled = {f"{new}.weight": own[f"{old}.weight"] for new, old in names.items()}
    for layer in range(LAYERS):
        new, old = f"model.layers.{layer}.", f"transformer.h.{layer}."
        inside = {
            "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "self_attn.o_proj": "attn.c_proj",
            "mlp.up_proj": "mlp.w1", "mlp.gate_proj": "mlp.w2", "mlp.down_proj": "mlp.c_proj",
        }  # fmt: skip
        filled |= {f"{new}{theirs_}.weight": own[f"{old}{ours}.weight"] for theirs_, ours in inside.items()}
        for part, name in enumerate("qkv"):
            for kind in ("weight", "bias"):
                fused = own[f"{old}attn.c_attn.{kind}"]
                filled[f"{new}self_attn.{name}_proj.{kind}"] = fused[part * WIDTH : (part + 1) * WIDTH]
    theirs.load_state_dict(filled)
    expected = theirs(TOKENS).logits
    ours = logits(decoder(SAVED | {"use_dynamic_ntk": False, "use_logn_attn": False}))
    assert (ours - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())


def test_the_published_config_is_the_named_size():
    published = {
        "architectures": ["QWenLMHeadModel"], "attn_dropout_prob": 0.0, "bf16": False, "emb_dropout_prob": 0.0, "fp16": False,
        "fp32": False, "hidden_size": 4096, "intermediate_size": 22_016, "initializer_range": 0.02, "kv_channels": 128,
        "layer_norm_epsilon": 1e-06, "max_position_embeddings": 32_768, "model_type": "qwen", "no_bias": True,
        "num_attention_heads": 32, "num_hidden_layers": 32, "rotary_emb_base": 10_000, "rotary_pct": 1.0,
        "scale_attn_weights": True, "seq_length": 8192, "tie_word_embeddings": False, "use_dynamic_ntk": True,
        "use_flash_attn": "auto", "use_logn_attn": True, "vocab_size": 151_936,
    }  # fmt: skip
    assert read_config(published) == Decoder.Config.sizes()["qwen-7b"]
    first = {"n_embd": 4096, "n_head": 32, "n_layer": 32, "ffn_hidden_size": 22_016, "seq_length": 2048, "model_type": "qwen"}
    assert read_config(first) == replace(
        Decoder.Config.sizes()["qwen-7b"], context=2048, log_scaling_context=2048,
        rope_scaling=QwenScaling(original_context=2048),
    )  # fmt: skip


def test_what_the_decoder_cannot_follow_is_named():
    with pytest.raises(CheckpointError, match=r"rotary_pct=0\.25, no_bias=False"):
        read_config(SAVED | {"rotary_pct": 0.25, "no_bias": False})
    with pytest.raises(CheckpointError, match="lacks seq_length"):
        read_config({"model_type": "qwen"})
    with pytest.raises(CheckpointError, match="Qwen-VL"):
        read_config(SAVED | {"visual": {}})
    with pytest.raises(CheckpointError, match=r"Qwen 1 has no attention_bias=False, num_key_value_heads=2"):
        FORMAT.write_config(Decoder.Config.tiny())
