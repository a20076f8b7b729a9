"""The gated blocks against `transformers`, from random weights through the key maps, with gates shut and half open."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from reference_models import assert_close, randomise

from weft.checkpoints.gated_cross_attention import MLLAMA, idefics
from weft.core.memory import Memory
from weft.fusion.cross_attention import CrossAttention, GatedSwiGLU
from weft.language_models.decoder import Decoder
from weft.layers.slots import BlockContext

transformers = pytest.importorskip("transformers")

WIDTH, FEATURES = 64, 5
# by row, the picture that each of nine tokens sees: none, one, two
SEES = torch.tensor([[-1, -1, 0, 0, 0, 1, 1, 2, 2], [-1, 0, 0, 0, 0, 0, 0, 0, 0]])
PICTURES = torch.tensor([3, 1])
HIDDEN = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0))


def pictures(width):
    return torch.randn(2, 3, FEATURES, width, generator=torch.Generator().manual_seed(1))


def memory(values, first=None):
    """Row 1 has one picture: what stands in the places of the others is nothing to our memory."""
    item = torch.arange(3).repeat_interleave(FEATURES).expand(2, -1)
    first = SEES if first is None else first
    visible = torch.stack((first.clamp_min(0), SEES), -1)
    return Memory(values.flatten(1, 2), torch.where(item < PICTURES[:, None], item, -1), visible)


def installed(block, memory_width=None):
    language_model = Decoder.Config(
        vocabulary=8, width=WIDTH, num_layers=1, num_heads=4, num_key_value_heads=2, feed_forward_width=96, norm_eps=1e-6
    ).build()
    CrossAttention.Config(block=block, memory_width=memory_width).build().install(language_model)
    return language_model.blocks[0].before_attention.eval()


def with_gates(module, value):
    for name, parameter in module.named_parameters():
        if ("gate" in name and parameter.dim() != 2) or "alpha" in name:
            parameter.data.fill_(value)


def run(block, hidden, seen):
    with torch.no_grad():
        return block(hidden, {"image": seen}, BlockContext(rule=None))[0]


class Idefics:
    """`IdeficsGatedCrossAttentionLayer`, whose mask is one of pictures."""

    memory_width: ClassVar = 48

    def __init__(self, gates):
        from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer

        config = transformers.IdeficsConfig(
            hidden_size=WIDTH, num_attention_heads=4, intermediate_size=96, qk_layer_norms=True, dropout=0.0, rms_norm_eps=1e-6,
            alpha_type={"scalar": "float", "vector": "vector"}[gates], vision_config={"embed_dim": self.memory_width},
        )  # fmt: skip
        config._attn_implementation = "eager"
        self.layer = randomise(IdeficsGatedCrossAttentionLayer(config, layer_idx=0))
        self.key_map = idefics(gates)
        self.block = GatedSwiGLU(gates=gates)

    def __call__(self, hidden, values):
        shown = (SEES[:, :, None] == torch.arange(3)) & (torch.arange(3) < PICTURES[:, None])[:, None]
        mask = torch.where(shown.repeat_interleave(FEATURES, -1), 0.0, torch.finfo(torch.float32).min)[:, None]
        gate = shown.any(-1).float()
        with torch.no_grad():
            return self.layer(hidden, None, values.flatten(1, 2), image_attention_mask=mask, cross_attention_gate=gate)


class Mllama:
    """`MllamaCrossAttentionDecoderLayer` with the masks that its model makes; "meta" zeroes the attention of blind rows."""

    memory_width: ClassVar = WIDTH

    def __init__(self, reference):
        from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

        config = transformers.models.mllama.configuration_mllama.MllamaTextConfig(
            hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, num_hidden_layers=1,
            cross_attention_layers=[0], dropout=0.0, rms_norm_eps=1e-6,
        )  # fmt: skip
        config._attn_implementation = "eager"
        self.layer = randomise(MllamaCrossAttentionDecoderLayer(config, 0))
        self.key_map = MLLAMA
        self.reference = reference
        self.block = GatedSwiGLU(num_key_value_heads=2, blind_feed_forward=False, reference=reference)

    def __call__(self, hidden, values):
        from transformers.models.mllama.modeling_mllama import _prepare_cross_attention_mask

        shown = (SEES[:, :, None] == torch.arange(3)).float()
        mask, sighted = _prepare_cross_attention_mask(shown[..., None], FEATURES, torch.float32)
        if self.reference == "meta":
            kept = self.layer.cross_attn.forward
            self.layer.cross_attn.forward = lambda **kw: (kept(**kw)[0] * sighted[:, 0], None)
        with torch.no_grad():
            return self.layer(
                hidden, cross_attention_states=values.flatten(1, 2), cross_attention_mask=mask, attention_mask=None,
                full_text_row_masked_out_mask=sighted,
            )  # fmt: skip


CASES = {
    "IDEFICS, scalar gates": lambda: Idefics("scalar"),
    "IDEFICS, gates by channel": lambda: Idefics("vector"),
    "Llama 3.2, Meta's rule": lambda: Mllama("meta"),
    "Llama 3.2, transformers' rule": lambda: Mllama("hf"),
}


@pytest.mark.parametrize("gate", [0.0, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_a_block_is_that_of_the_reference(case, gate):
    theirs = CASES[case]()
    with_gates(theirs.layer, gate)
    ours = installed(theirs.block, theirs.memory_width)
    assert theirs.key_map.load(ours, {k: v for k, v in theirs.layer.state_dict().items() if "rotary" not in k}) == {}
    values = pictures(theirs.memory_width)
    rows = slice(0, 1 if getattr(theirs, "reference", "") == "hf" else 2)  # beside a row with more pictures, "hf" sees padding
    found, expected = run(ours, HIDDEN, memory(values)), theirs(HIDDEN, values)
    assert_close(found[rows], expected[rows])
    if gate == 0.0:
        assert torch.equal(found, HIDDEN), "shut gates let exactly nothing through"
    else:
        other = run(ours, HIDDEN, memory(pictures(theirs.memory_width).flip(2) * 0.5))
        assert (other - found).abs().max() > 1e-3, "pictures matter"


def test_a_blind_token_of_the_two_references_differs():
    blind = SEES < 0
    found = {}
    for reference in ("meta", "hf"):
        theirs = Mllama(reference)
        with_gates(theirs.layer, 0.5)
        ours = installed(replace(theirs.block))
        theirs.key_map.load(ours, theirs.layer.state_dict())
        found[reference] = run(ours, HIDDEN, memory(pictures(WIDTH)))
    assert torch.equal(found["meta"][blind], HIDDEN[blind])
    assert (found["hf"][blind] - HIDDEN[blind]).abs().max() > 1e-3
    assert_close(found["hf"][~blind], found["meta"][~blind])


def test_the_way_to_the_reference_and_back_changes_no_bit():
    for case in CASES:
        theirs = CASES[case]()
        state = {k: v for k, v in theirs.layer.state_dict().items() if "rotary" not in k}
        again = theirs.key_map.from_weft(theirs.key_map.to_weft(state))
        assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
