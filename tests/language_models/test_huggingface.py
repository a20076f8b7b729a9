"""Families of `transformers` behind Weft's interface: the library's own logits, under any rule, packed and with a cache."""

import json

import pytest
import torch
from tiny_model import text_batch

from weft.core.attention_rule import AttentionRule, RuleSide
from weft.core.catalogue import parts
from weft.core.errors import AttentionError, CheckpointError, ConfigError
from weft.core.sequence import TokenSequence
from weft.fusion.token_concatenation import TokenConcatenation
from weft.inference.cache import KeyValueCache
from weft.inference.generate import Decoding
from weft.language_models.huggingface import HFWrapper
from weft.systems.accounting import num_parameters, without_values
from weft.systems.multimodal_lm import MultimodalLM

transformers = pytest.importorskip("transformers")

GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
FAMILIES = {
    "gpt2": {"n_head": 4},  # learned positions, matrices the other way round
    "phi": {"num_attention_heads": 4, "intermediate_size": 64},  # attention beside the feed-forward, half-turned heads
    "starcoder2": {**GROUPED, "sliding_window": 5},
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 5},  # scaled embeddings, windows in some blocks only
    "qwen2_moe": {**GROUPED, "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
}
TOKENS = torch.randint(1, 96, (2, 18), generator=torch.Generator().manual_seed(1))
TOLERANCE = 1e-5  # fp32, 2 layers: the same products summed in another order, times max(1, largest value)


def config(family: str, **settings: object) -> HFWrapper.Config:
    made = {**FAMILIES.get(family, {}), **settings}
    return HFWrapper.Config(family=family, vocabulary=96, width=32, num_layers=2, context=64, settings=json.dumps(made))


def built(family: str) -> HFWrapper:
    model, generator = config(family).build().eval(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def logits(model: HFWrapper, side: RuleSide, cuts: tuple[int, ...] = ()) -> torch.Tensor:
    cache, pieces = KeyValueCache.of(model) if cuts else None, []
    for start, stop in zip((0, *cuts), (*cuts, TOKENS.shape[1]), strict=True):
        here = RuleSide(*(x[:, start:stop] for x in side))
        rule = AttentionRule(*here) if cache is None else cache.extend(here)
        sequence = TokenSequence(model.embed(TOKENS[:, start:stop]), here.position, rule, torch.zeros_like(here.order))
        pieces.append(model.head(model(sequence, cache)[0]))
    return torch.cat(pieces, 1)


def by_the_library(model: HFWrapper, **inputs: torch.Tensor) -> torch.Tensor:
    """The same weights through the library's own attention."""
    model.model.set_attn_implementation("eager")
    result = model.model(TOKENS, use_cache=False, **inputs).logits
    model.model.set_attn_implementation("weft")
    return result


def causal() -> RuleSide:
    order = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    return RuleSide(order, torch.ones_like(order), order)


def assert_close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert float((ours - reference).detach().abs().amax()) <= TOLERANCE * max(1.0, float(reference.detach().abs().amax()))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_library_s_with_and_without_a_cache(family):
    model = built(family)
    expected = by_the_library(model)
    assert_close(logits(model, causal()), expected)
    assert_close(logits(model, causal(), (7, 8, 9, 14)), expected)
    assert expected.std() > 0.3  # weights under which every layer matters


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "phi", "qwen2_moe"])
def test_any_rule_holds_exactly(family):
    """A prefix whose tokens see each other, samples packed behind it, padding: against the rule as the library's dense mask."""
    model = built(family)
    order = torch.tensor([[0, 0, 0, 0, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 0, 1, 0, 0], [*range(10), *range(8)]])
    segment = torch.tensor([[1] * 8 + [2] * 6 + [3] * 2 + [0] * 2, [1] * 10 + [2] * 8])
    position = torch.tensor([[*range(8), *range(6), *range(2), 0, 0], [*range(10), *range(8)]])
    side = RuleSide(order, segment, position)
    seen = AttentionRule(*side).allowed[:, None]
    expected = by_the_library(
        model, position_ids=position, attention_mask=torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min)
    )
    real = segment > 0
    assert_close(logits(model, side)[real], expected[real])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_sample_is_what_it_is_alone(family):
    """Its logits, and the gradients of all of them."""
    model = built(family)
    position = torch.tensor([[*range(11), *range(7)]]).expand_as(TOKENS)
    segment = torch.tensor([[1] * 11 + [2] * 7]).expand_as(TOKENS)
    packed = logits(model, RuleSide(position, segment, position))
    packed.square().mean().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = []
    for part in (slice(0, 11), slice(11, 18)):
        order = position[:, part]
        rule = AttentionRule(order, torch.ones_like(order))
        sequence = TokenSequence(model.embed(TOKENS[:, part]), order, rule, torch.zeros_like(order))
        alone.append(model.head(model(sequence)[0]))
    apart = torch.cat(alone, 1)
    assert_close(packed, apart)
    apart.square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_close(together[name], parameter.grad)


@torch.no_grad()
def test_greedy_continuations_are_the_library_s():
    model, steps = built("starcoder2"), 24
    prompt = TOKENS[:1, :9]
    model.model.set_attn_implementation("eager")
    expected = model.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=steps, min_new_tokens=steps, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    model.model.set_attn_implementation("weft")
    system = MultimodalLM.Config(language_model=model.config).build().eval()
    system.language_model.load_state_dict(model.state_dict())
    decoding, written = Decoding(system), prompt[0].tolist()
    following = decoding.prefill(text_batch([written]))
    for _ in range(steps):
        written.append(int(following.argmax()))
        following = decoding.step(torch.tensor(written[-1:]))
    assert written == expected[0].tolist()


def test_a_block_cannot_be_entered_and_the_error_names_who_can():
    model = built("gpt2")
    able = [name for name, part in parts("language_models").items() if part.slots]
    assert "decoder" in able and "hf_wrapper" not in able
    for name in ("before_attention", "before_feed_forward", "after_block", "attention", "routes"):
        with pytest.raises(ConfigError, match=rf"needs '{name}' of a block, and gpt2 .* no slots .*{', '.join(able)}"):
            getattr(model.blocks[0], name, None)
    with pytest.raises(ConfigError, match="'after_block'"):
        model.blocks[1].after_block = torch.nn.Identity()
    TokenConcatenation(TokenConcatenation.Config()).install(model)  # tokens need no slot


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bloom", {}, "BloomForCausalLM does not attend through the attention interface"),
        ("mamba", {}, "MambaForCausalLM does not attend"),
        ("cohere", GROUPED, r"changes its logits behind the output layer \(logit_scale\)"),
        ("bert", {**GROUPED, "is_decoder": True}, "BertLMHeadModel is not one stack of blocks with one table of 96 times 32"),
        ("gtp2", {}, "unknown family of causal language models in transformers 'gtp2'; did you mean 'gpt2'"),
        ("gpt2", {"n_layers_": 3, "n_head": "four"}, "transformers takes no such config of gpt2"),
    ],
)
def test_families_that_the_rule_would_not_reach_are_refused(family, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(family, **settings).build()


def test_what_shows_in_the_forward_only_is_refused_there():
    sequence_of = lambda model: TokenSequence(  # noqa: E731
        model.embed(TOKENS), causal().position, AttentionRule(*causal()), torch.zeros_like(TOKENS)
    )
    hybrid = config("lfm2", **GROUPED, layer_types=["conv", "full_attention"]).build().eval()
    with pytest.raises(ConfigError, match="reached 1 of 2 blocks of lfm2"):
        hybrid(sequence_of(hybrid))
    sinks = config(
        "gpt_oss", **GROUPED, head_dim=8, num_local_experts=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    model = sinks.build().eval()
    with pytest.raises(AttentionError, match="gpt_oss asks for s_aux"):
        model(sequence_of(model))
    model = built("gpt2")
    with pytest.raises(ConfigError, match="runs whole, not from block 1"):
        model(sequence_of(model), start=1)


def test_a_published_config_is_read_by_its_own_names():
    saved = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50_257, "n_embd": 768, "n_layer": 12,
        "n_head": 12, "n_positions": 1024, "n_ctx": 1024, "attn_pdrop": 0.1, "bos_token_id": 50_256,
    }  # fmt: skip
    read = HFWrapper.Config.read(saved)
    assert (read.family, read.vocabulary, read.width, read.num_layers, read.context) == ("gpt2", 50_257, 768, 12, 1024)
    assert json.loads(read.settings) == {"attn_pdrop": 0.1, "bos_token_id": 50_256, "n_ctx": 1024, "n_head": 12}
    with pytest.raises(ConfigError, match="gemma3 of transformers states no vocab_size"):
        HFWrapper.Config.read({"model_type": "gemma3"})
    with torch.device("meta"), without_values():
        assert num_parameters(read.build()) == num_parameters(HFWrapper.Config().build()) == 124_439_808


@torch.no_grad()
def test_a_published_folder_is_opened_whole_or_not_at_all(tmp_path):
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    )
    theirs.eval().save_pretrained(tmp_path)
    ours = HFWrapper.from_folder(tmp_path)
    assert_close(logits(ours, causal()), theirs(TOKENS).logits)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in state.items() if "h.1.mlp.c_fc" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"does not fit gpt2; missing keys: .*h\.1\.mlp\.c_fc\.bias"):
        HFWrapper.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        HFWrapper.from_folder(tmp_path / "gone")
