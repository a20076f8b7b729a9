from dataclasses import replace

import pytest
import torch
from tiny_model import picture, question, tiny_model

from weft.core.errors import AttentionError
from weft.core.layout import MediaLayout
from weft.data.collate import collate
from weft.inference import attention_maps
from weft.inference.attention_maps import attention_map, grid_of
from weft.inference.continuation import with_tokens
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.layers.kernels import record_attention
from weft.projectors.perceiver import Perceiver
from weft.projectors.positioned import Positioned


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=3)


ASKED = question(picture(0), "which colour?", picture(1), "and now?")


@pytest.fixture(scope="module")
def reply(model):
    return model.generate([ASKED], Sampling(max_new_tokens=6))[0]


def test_the_map_is_the_mean_attention_of_the_steps_that_wrote_the_tokens(model, reply):
    sample = model.processor.encode(ASKED, reply=True)
    batch = with_tokens(collate([sample]), reply.token_ids)
    sequence = model.system.sequence(batch)
    with torch.no_grad(), record_attention() as layers:
        model.system.language_model(sequence)
    for medium in (0, 1):
        _, _, _, start, length = batch.media["image"].spans[medium].tolist()
        rows = [len(sample) - 1 + i for i in (1, 3)]
        expected = torch.stack([layer[0, :, rows, start : start + length] for layer in layers]).mean((0, 1, 2))
        found = attention_map(model, ASKED, reply.token_ids, chosen=[1, 3], medium=medium)
        layout = batch.media["image"].layout[medium]
        assert found.values.shape == (layout.height, layout.width)
        assert torch.allclose(found.values.flatten(), expected, atol=1e-7)
        assert found.share == pytest.approx(float(expected.sum()), rel=1e-5)
        assert 0 < found.even_share < 1
        assert found.logit_difference < 1e-4


def test_all_tokens_are_the_mean_of_each(model, reply):
    every = [attention_map(model, ASKED, reply.token_ids, chosen=[i]).values for i in range(len(reply.token_ids))]
    assert torch.allclose(attention_map(model, ASKED, reply.token_ids).values, torch.stack(every).mean(0), atol=1e-7)


def test_a_reference_path_that_differs_is_refused(model, reply, monkeypatch):
    monkeypatch.setattr(attention_maps, "TOLERANCE", 0.0)
    original = model.system.language_model.head
    calls = iter((0.0, 1e-3))
    monkeypatch.setattr(model.system.language_model, "head", lambda hidden: original(hidden) + next(calls))
    with pytest.raises(AttentionError, match="differs from the fast path by"):
        attention_map(model, ASKED, reply.token_ids)


def test_bfloat16_weights_are_sent_back_to_float32(reply):
    low = tiny_model(seed=3)
    low.system.to(torch.bfloat16)
    with pytest.raises(AttentionError, match="float32"):
        attention_map(low, ASKED, reply.token_ids)


def test_what_does_not_exist_is_named(model, reply):
    with pytest.raises(AttentionError, match="no medium 2 of stream 'image'"):
        attention_map(model, ASKED, reply.token_ids, medium=2)
    with pytest.raises(AttentionError, match="no medium 0 of stream 'audio'"):
        attention_map(model, ASKED, reply.token_ids, stream="audio")
    with pytest.raises(AttentionError, match="6 tokens, chosen were"):
        attention_map(model, ASKED, reply.token_ids, chosen=[6])


def test_a_resamplers_queries_have_no_map_even_where_their_number_makes_a_grid(model, reply):
    stream = model.system.stream("image")
    resampled = Perceiver.Config(num_latents=4, num_layers=1, num_heads=2, head_width=8)
    assert stream.projector.config.keeps_places and not Positioned.Config(inner=resampled).keeps_places
    config = replace(model.system.config, streams={"image": replace(model.system.config.streams["image"], projector=resampled)})
    other = Model(config.build().eval(), model.processor.config.build(model.processor.tokenizer, config))
    assert grid_of(config.layout("image"), 4) == (2, 2)
    with pytest.raises(AttentionError, match="the tokens of Perceiver stand for no places"):
        attention_map(other, ASKED, reply.token_ids)


def test_grids():
    assert grid_of(MediaLayout(24, 24), 576) == (24, 24)
    assert grid_of(MediaLayout(24, 32), 192) == (12, 16)
    for layout, tokens in ((24, 24, 1), 32), ((4, 4, 2), 32), ((3, 4, 1), 3), ((4, 4, 1), 0):
        with pytest.raises(AttentionError, match="no grid"):
            grid_of(MediaLayout(*layout), tokens)
