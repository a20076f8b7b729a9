"""MM1's attention pooling: the resampling layer without positions."""

import dataclasses

import torch

from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.projectors.attention_pooling import AttentionPooling

CONFIG = AttentionPooling.Config(num_queries=5, head_width=4)
LAYOUT = MediaLayout(3, 4)
FEATURES = MediaFeatures(torch.randn(2, 12, 10, generator=torch.Generator().manual_seed(1)), torch.arange(2), (LAYOUT,) * 2)


def randomised():
    torch.manual_seed(0)
    projector = CONFIG.build(10, 16).eval()
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 * (parameter.dim() == 1), std=0.4)
    return projector


def tokens_of(projector, features):
    with torch.no_grad():
        return projector(features).values.unflatten(0, (len(features.values), -1))


def test_it_is_softmax_attention_of_normed_queries_over_normed_features():
    projector = randomised()
    p = dict(projector.resampler.named_parameters())
    found = tokens_of(projector, FEATURES)

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"attention.{name}.weight"].T + p[f"attention.{name}.bias"]

    for unit, x in enumerate(FEATURES.values):
        memory = norm(x @ p["input.weight"].T, "feature_norm")
        query, key, value = linear(norm(p["queries"], "query_norm"), "query"), linear(memory, "key"), linear(memory, "value")
        heads = [slice(start, start + 4) for start in range(0, 16, 4)]
        mixed = [torch.softmax(query[:, h] @ key[:, h].T / 2, -1) @ value[:, h] for h in heads]  # 2 = sqrt(head width)
        expected = linear(torch.cat(mixed, -1), "output").detach()
        torch.testing.assert_close(found[unit], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))  # float32


def test_the_order_of_features_is_not_seen():
    projector = randomised()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    shuffled = dataclasses.replace(FEATURES, values=FEATURES.values[:, order])
    torch.testing.assert_close(tokens_of(projector, shuffled), tokens_of(projector, FEATURES), rtol=1e-5, atol=1e-5)  # float32


def test_features_that_do_not_exist_are_not_read():
    projector = randomised()
    valid = torch.arange(12).expand(2, 12) < torch.tensor([[12], [5]])
    found = tokens_of(projector, dataclasses.replace(FEATURES, valid=valid))
    short = MediaFeatures(FEATURES.values[1:, :5], torch.zeros(1, dtype=torch.long), (MediaLayout(1, 5),))
    torch.testing.assert_close(found[1], tokens_of(projector, short)[0], rtol=1e-5, atol=1e-5)  # float32


def test_every_frame_and_tile_has_its_own_tokens():
    assert CONFIG.num_tokens(MediaLayout(3, 4, frames=7)) == 35
    assert CONFIG.num_tokens(MediaLayout(3, 4, tile_rows=2, tile_columns=2, thumbnail="last")) == 25
