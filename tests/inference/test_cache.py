import pytest
import torch
from tiny_model import text_batch, text_system

from weft.core.attention_rule import AttentionRule, RuleSide
from weft.core.errors import AttentionError
from weft.inference.cache import KeyValueCache
from weft.inference.generate import Decoding
from weft.language_models.decoder import Decoder


def side(order, segment) -> RuleSide:
    order, segment = torch.tensor(order), torch.tensor(segment)
    return RuleSide(order, segment, order)


def token(order, segment) -> torch.Tensor:
    return torch.tensor([order, segment, order])[..., None]


@pytest.mark.parametrize(
    ("order", "segment"),
    [
        ([[0, 1, 2], [0, 1, 2]], [[1, 1, 1], [1, 1, 1]]),
        ([[0, 1, 2], [0, 1, 0]], [[1, 1, 1], [1, 1, 0]]),
        ([[0, 0, 1]], [[1, 2, 2]]),
    ],
    ids=["whole rows", "padded", "packed"],
)
def test_an_advance_is_the_rule_that_extend_computes(order, segment):
    """Three steps, so that what the first step finds out is used by the others."""
    advanced, extended = KeyValueCache(1, capacity=1), KeyValueCache(1)
    for cache in (advanced, extended):
        cache.extend(side(order, segment))
    last = torch.tensor(segment).amax(1).tolist()
    for step in range(3):
        following = token([max(row) + 1 + step for row in order], last)
        quick, exact = advanced.advance(following), extended.extend(RuleSide(*following.unbind(0)))
        seen = exact.allowed
        assert torch.equal(quick.allowed, seen)
        assert (quick.pattern == "full") == bool(seen.all())
        if quick.pattern == "general":
            assert torch.equal((quick.bias == 0).expand(-1, -1, 1, -1)[:, 0], seen)


def test_a_window_is_kept_while_decoding():
    cache = KeyValueCache(1, window=2)
    cache.extend(side([[0, 1, 2]], [[1, 1, 1]]))
    assert cache.advance(token([3], [1])).allowed[0, 0].tolist() == [False, False, True, True]


def test_buffers_grow_and_hold_the_same_values():
    cache, pieces = KeyValueCache(1, capacity=2), torch.randn(5, 1, 2, 3, 4)
    for index, piece in enumerate(pieces):
        order = torch.arange(3)[None] + 3 * index
        cache.extend(RuleSide(order, torch.ones_like(order), order))
        keys, values = cache.append(0, piece, piece + 1)
    assert torch.equal(keys, torch.cat(list(pieces), 2)) and torch.equal(values, keys + 1)
    assert cache.length == 15


def test_crop_refuses_what_is_not_there():
    cache = KeyValueCache(1)
    cache.extend(side([[0, 1]], [[1, 1]]))
    with pytest.raises(AttentionError, match="to 3 tokens: it holds 2"):
        cache.crop(3)


def test_bfloat16_decoding_equals_the_full_forward_to_its_precision():
    """Keys and values are kept as they were given: half the memory of float32, and half of what each step reads."""
    system = text_system(Decoder.Config.tiny()).to(torch.bfloat16)
    decoding = Decoding(system)
    tokens = torch.randint(1, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    logits = [decoding.prefill(text_batch([tokens[0, :6].tolist(), tokens[1, :3].tolist()]))]
    logits += [decoding.step(tokens[:, 6 + step]) for step in range(5)]
    assert decoding.cache.keys[0].dtype == decoding.cache.values[0].dtype == torch.bfloat16
    for row, start in enumerate((6, 3)):
        full = [*tokens[row, :start].tolist(), *tokens[row, 6:11].tolist()]
        with torch.no_grad():
            reference = system(text_batch([full])).logits()[0, start - 1 :].float()
        ours = torch.stack([step[row] for step in logits]).float()
        assert float((ours - reference).abs().amax()) <= 0.03 * float(reference.abs().amax())  # 8 bits of mantissa, 2 layers


def test_a_causal_rule_with_one_token_sees_everything():
    assert AttentionRule.causal(1, 1).pattern == "full"
