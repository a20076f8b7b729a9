"""OpenFlamingo's blocks against the definition in its own keys: times counted from tags, one dense mask, plain products."""

import pytest
import torch
import torch.nn.functional as F
from reference_models import assert_close

from weft.checkpoints.openflamingo import key_map
from weft.core.memory import Memory
from weft.data.visibility import visible_media
from weft.layers.slots import BlockContext
from weft.recipes.catalogue import tiny_recipe

VOCABULARY, HEADS, FEATURES = 510, 2, 4
TAGS = [[1, 4], [0, 3]]
TOKENS = 7


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return tiny_recipe("openflamingo").system.build().eval()


@pytest.fixture(scope="module")
def file(system):
    """A file in the published layout, all values drawn at random."""
    trained = ("streams.image.projector.", "added_tokens.inputs.")
    own = {k: v for k, v in system.state_dict().items() if k.startswith(trained) or "before_attention" in k}
    generator = torch.Generator().manual_seed(1)
    keys = key_map(VOCABULARY).from_weft(own)
    return {key: torch.randn(value.shape, generator=generator) * 0.2 for key, value in keys.items()}


def block_of_the_paper(file, prefix, x, media, gate):
    """`media` [B, 2, n, C]; a token sees the picture whose time is its own, none where its time is 0."""
    batch, tokens, width = x.shape
    is_tag = torch.zeros(batch, tokens, dtype=torch.bool)
    for row, places in enumerate(TAGS):
        is_tag[row, places] = True
    text_time = is_tag.cumsum(-1)
    media_time = torch.arange(1, 3).repeat_interleave(FEATURES)
    normed = F.layer_norm(x, (width,), file[f"{prefix}attn.norm.weight"], file[f"{prefix}attn.norm.bias"])
    q = normed @ file[f"{prefix}attn.to_q.weight"].T
    k, v = (media.flatten(1, 2) @ file[f"{prefix}attn.to_kv.weight"].T).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores.masked_fill((text_time[..., None] != media_time)[:, None], torch.finfo(torch.float32).min)
    weights = scores.softmax(-1).masked_fill((text_time == 0)[:, None, :, None], 0.0)
    attended = (weights @ v).transpose(1, 2).flatten(2) @ file[f"{prefix}attn.to_out.weight"].T
    x = x + attended * torch.full((1,), gate).tanh()
    inner = F.layer_norm(x, (width,), file[f"{prefix}ff.0.weight"], file[f"{prefix}ff.0.bias"])
    inner = F.gelu(inner @ file[f"{prefix}ff.1.weight"].T) @ file[f"{prefix}ff.3.weight"].T
    return x + inner * torch.full((1,), gate).tanh()


@torch.no_grad()
@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_a_block_is_that_of_the_paper(system, file, gate):
    file = {key: torch.full_like(value, gate) if key.endswith("_gate") else value for key, value in file.items()}
    system.load_state_dict(system.state_dict() | key_map(VOCABULARY).to_weft(file))
    block = system.language_model.blocks[1].before_attention
    width, media_width = block.attention.query.in_features, block.attention.key.in_features
    x = torch.randn(2, TOKENS, width, generator=torch.Generator().manual_seed(2))
    media = torch.randn(2, 2, FEATURES, media_width, generator=torch.Generator().manual_seed(3))
    item = torch.arange(2).repeat_interleave(FEATURES).expand(2, -1)
    visible = torch.stack([torch.from_numpy(visible_media("preceding", tags, TOKENS)) for tags in TAGS])
    found, _ = block(x, {"image": Memory(media.flatten(1, 2), item, visible)}, BlockContext(rule=None))
    expected = block_of_the_paper(file, "lang_encoder.gated_cross_attn_layers.1.", x, media, gate)
    assert_close(found, expected)
    assert torch.equal(found, x) == (gate == 0.0)


def test_the_file_fills_exactly_what_is_trained(system, file):
    stage = tiny_recipe("openflamingo").stages[0]
    filled = key_map(VOCABULARY).to_weft(file)
    prefixes = tuple(pattern.removesuffix("*") for pattern in stage.train if "before_attention" not in pattern)
    trained = {n for n, _ in system.named_parameters() if n.startswith(prefixes) or "before_attention" in n}
    assert set(filled) == trained
    assert torch.equal(filled["added_tokens.inputs.weight"], file["lang_encoder.transformer.wte.weight"][VOCABULARY:])
