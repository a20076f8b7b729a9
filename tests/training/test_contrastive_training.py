"""Dual encoders of every published pair of towers learn which text belongs to which picture."""

from __future__ import annotations

import math

import pytest
import torch

from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.catalogue import parts
from weft.core.interfaces import ModalityEncoder, TextEncoder
from weft.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive
from weft.systems.dual_encoder import DualEncoder

PAIRS = 6
STEPS = 20
POOLED = [
    name
    for name, part in parts("encoders").items()
    if issubclass(part, ModalityEncoder) and part.Config.modality == "image" and part.pool is not ModalityEncoder.pool
]
TEXTS = [name for name, part in parts("encoders").items() if issubclass(part, TextEncoder)]


def test_the_published_towers_are_found():
    assert {"clip_vision", "siglip_vision", "eva_clip_vision"} <= set(POOLED)
    assert {"clip_text", "siglip_text"} <= set(TEXTS)


def batch(config):
    torch.manual_seed(0)
    media, text = config.media, config.text
    tokens = torch.randint(3, text.vocabulary, (PAIRS, min(8, text.context)))
    order = torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()
    side = TextSide(tokens, order, torch.ones_like(tokens), order, torch.zeros_like(tokens))
    items = torch.arange(PAIRS)
    units = torch.randn(PAIRS, *media.unit_shape)
    pictures = MediaBatch(units, items, (media.layout(),) * PAIRS, torch.zeros(0, 5, dtype=torch.long), items)
    return MultimodalBatch(side, {"image": pictures}, tuple(SampleRef(i, 1, "", str(i)) for i in range(PAIRS)))


def losses(config, objective):
    torch.manual_seed(0)
    system = config.build().train()
    data = batch(config)
    optimizer = torch.optim.AdamW(system.parameters(), lr=3e-3)
    told = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = objective(system, data).mean()
        loss.backward()
        optimizer.step()
        objective.after_step(system)
        told.append(loss.item())
    return told, system


PAIRED = [(media, "clip_text") for media in POOLED] + [("clip_vision", text) for text in TEXTS if text != "clip_text"]


@pytest.mark.parametrize("objective", [SoftmaxContrastive, SigmoidContrastive])
@pytest.mark.parametrize(("media", "text"), PAIRED)
def test_towers_learn_their_pairs_by_heart(media, text, objective):
    towers = {"media": parts("encoders")[media].Config.tiny(), "text": parts("encoders")[text].Config.tiny()}
    bias = -10.0 if objective is SigmoidContrastive else None
    config = DualEncoder.Config(**towers, embedding_width=16, initial_scale=10.0, initial_bias=bias)
    told, system = losses(config, objective.Config(chunk=4).build())
    # the towers may start at a loss of ln(pairs), or of about 10, the bias, for each pair that belongs together
    assert told[-1] < 0.5 * math.log(PAIRS) if objective is SoftmaxContrastive else told[-1] < 0.5 * told[0]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in (system.logit_scale, *system.media.parameters()))
    assert system.logit_scale.exp() <= 100.0 * (1 + 1e-6)
