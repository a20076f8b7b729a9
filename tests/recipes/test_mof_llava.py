"""Mixture of Features in LLaVA: figures of the paper, the order of tokens, and the two ends of the additive mixture."""

from dataclasses import replace

import pytest
import torch

from weft.data.collate import collate
from weft.encoders.mixture import CLIP_MEAN, CLIP_STD
from weft.projectors.mlp import MLP
from weft.recipes.catalogue import recipe, tiny_recipe
from weft.recipes.shrinking import tiny_tokenizer
from weft.systems.accounting import num_parameters, on_meta
from weft.systems.multimodal_lm import Stream

LLAVA_1_5 = {"7b": (7_062_902_784, 20_979_712), "13b": (13_350_839_296, 31_467_520)}
DINOV2 = 304_367_616  # ViT-L/14


@pytest.mark.parametrize(
    ("size", "tokens", "rates", "batches", "epochs"),
    [
        ("7b", 1152, (2e-3, 2e-5), (256, 128), (1, 1)),
        ("13b", 1152, (2e-3, 2e-5), (256, 128), (1, 1)),
        ("llava-7b", 512, (1e-3, 2e-5), (128, 128), (1, 3)),
        ("additive-13b", 256, (1e-3, 2e-5), (128, 128), (1, 3)),
    ],
)
def test_published_figures(size, tokens, rates, batches, epochs):
    made = recipe("mof-llava", size)
    assert tuple(s.optimizer.learning_rate for s in made.stages) == rates
    assert tuple(s.batch_size for s in made.stages) == batches and tuple(s.epochs for s in made.stages) == epochs
    assert [s.system.num_positions("image") for s in made.stages] == [tokens, tokens]
    align, instruct = made.stages
    assert align.train == ("streams.image.projector.*",)
    assert instruct.train == ("streams.image.projector.*", "language_model.*")
    encoder = made.system.streams["image"].encoder
    assert (encoder.second_mean, encoder.second_std) == (CLIP_MEAN, CLIP_STD), "DINOv2 sees CLIP's pixels, as published"
    assert encoder.first.feature_layer == -2 and encoder.second.feature_layer == -1


@pytest.mark.parametrize("size", LLAVA_1_5)
def test_it_is_llava_1_5_with_a_second_tower_and_a_second_projector(size):
    whole, projector = LLAVA_1_5[size]
    system = on_meta(recipe("mof-llava", size).system)
    assert num_parameters(system.stream("image").projector) == 2 * projector
    assert num_parameters(system.stream("image").encoder.second) == DINOV2
    assert num_parameters(system) == whole + projector + DINOV2


@pytest.fixture(scope="module")
def stage():
    return tiny_recipe("mof-llava").stage("instruct")


@pytest.fixture(scope="module")
def batch(stage):
    processor, data = stage.processor.build(tiny_tokenizer(100), stage.system), stage.data.build()
    return collate([processor.encode(data[index]) for index in range(2)])


def built(system, seed=0):
    torch.manual_seed(seed)
    return system.build().eval()


@torch.no_grad()
def test_tokens_of_both_encoders_take_turns_in_the_text(stage, batch):
    system = built(stage.system)
    features = system.encode(batch)["image"]
    projector, units = system.stream("image").projector, batch.media["image"].units
    item, layout = batch.media["image"].unit_item, batch.media["image"].layout
    encoder = system.stream("image").encoder
    clip = projector.first(encoder.first(units, item, layout)).values.view(2, 16, -1)
    dino = projector.second(encoder.second(units, item, layout)).values.view(2, 16, -1)
    assert features.values.shape == (2, 16, 128)
    embeddings = system.sequence(batch).embeddings
    for item_number, _, row, start, length in batch.media["image"].spans.tolist():
        assert length == 32
        tokens = embeddings[row, start : start + length]
        assert torch.equal(tokens[0::2], clip[item_number]) and torch.equal(tokens[1::2], dino[item_number])


@torch.no_grad()
def test_added_at_zero_it_is_llava_bit_for_bit_and_at_one_it_ignores_clip(stage, batch):
    stream = stage.system.streams["image"]
    spans = batch.media["image"].spans.clone()

    def added(alpha):
        mixed = Stream.Config(encoder=replace(stream.encoder, alpha=alpha), projector=MLP.Config(depth=2))
        return replace(stage.system, streams={"image": mixed})

    plain = replace(stage.system, streams={"image": Stream.Config(encoder=stream.encoder.first, projector=MLP.Config(depth=2))})
    llava = built(plain)
    halved = replace(batch, media={"image": replace(batch.media["image"], spans=_first_half(spans))})
    expected = llava(halved).logits()

    def mixture(alpha):
        system = built(added(alpha), seed=1)
        state = {name.replace("image.encoder.", "image.encoder.first."): value for name, value in llava.state_dict().items()}
        missing = set(system.state_dict()) - set(state)
        assert missing and all(".encoder.second." in name for name in missing)
        system.load_state_dict(system.state_dict() | state)
        return system

    assert torch.equal(mixture(0.0)(halved).logits(), expected)
    only_dino, half = mixture(1.0), mixture(0.5)
    before = only_dino(halved).logits(), half(halved).logits()
    for system in (only_dino, half):
        for parameter in system.stream("image").encoder.first.parameters():
            parameter.add_(0.1)
    assert torch.equal(only_dino(halved).logits(), before[0])
    assert not torch.equal(half(halved).logits(), before[1])


def _first_half(spans):
    """The same places for half as many tokens; the rest of the places hold what the text has there."""
    spans[:, 4] //= 2
    return spans
