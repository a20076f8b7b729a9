"""Flamingo and its open successors hold what their papers say: where the blocks stand and what they weigh."""

import pytest

from weft.fusion.cross_attention import CrossAttention, GatedSwiGLU
from weft.language_models.decoder import Decoder
from weft.recipes.catalogue import recipe
from weft.systems.accounting import num_parameters, without_values


def built(name, size):
    with without_values():
        return recipe(name, size).system.build()


def gated(system):
    """The gated blocks, by the layer in front of which they stand."""
    slots = {i: block.before_attention for i, block in enumerate(system.language_model.blocks)}
    return {i: slot for i, slot in slots.items() if num_parameters(slot)}


@pytest.mark.parametrize(("size", "layers"), [("3b", range(24)), ("9b", range(0, 40, 4)), ("80b", range(0, 80, 7))])
def test_flamingo_stands_in_front_of_the_first_layer_and_every_kth_from_there(size, layers):
    system = built("flamingo", size)
    blocks = gated(system)
    assert list(blocks) == list(layers)
    assert all(block.attention_gate.shape == block.feed_forward_gate.shape == (1,) for block in blocks.values())
    assert system.config.streams["image"].num_tokens == 64 and system.config.num_positions("image") == 1


@pytest.mark.parametrize(
    ("size", "published", "percent"),
    [
        ("3b", {"blocks": 1.2e9, "resampler": 194e6, "whole": 3.2e9}, {"blocks": -3.5, "resampler": -9.9, "whole": -2.1}),
        ("9b", {"blocks": 1.6e9, "resampler": 194e6, "whole": 9.3e9}, {"blocks": 12.7, "resampler": -9.9, "whole": 15.8}),
        ("80b", {"blocks": 10e9, "resampler": 194e6, "whole": 80e9}, {"blocks": -16.4, "resampler": -9.9, "whole": -7.2}),
    ],
)
def test_flamingo_misses_the_papers_table_by_what_the_recipe_says(size, published, percent):
    system = built("flamingo", size)
    parts = {"blocks": gated(system).values(), "resampler": [system.stream("image").projector], "whole": [system]}
    found = {name: 100 * (sum(map(num_parameters, modules)) / published[name] - 1) for name, modules in parts.items()}
    assert found == pytest.approx(percent, abs=0.05)


def test_flamingos_encoder_has_the_published_size():
    assert num_parameters(built("flamingo", "3b").stream("image").encoder) == 435_286_116


@pytest.mark.parametrize(
    ("size", "layers", "block", "total"),
    [
        ("3b", range(24), 36_708_354, 881_000_496),
        ("4b", range(1, 32, 2), 56_109_058, 897_744_928),
        ("9b", range(3, 32, 4), 139_476_994, 1_115_815_952),
    ],
)
def test_openflamingo_stands_in_front_of_every_kth_layer_and_weighs_what_is_published(size, layers, block, total):
    system = built("openflamingo", size)
    blocks = gated(system)
    assert list(blocks) == list(layers)
    assert {num_parameters(each) for each in blocks.values()} == {block}
    assert sum(map(num_parameters, blocks.values())) == total
    assert num_parameters(system.stream("image").projector) == 63_019_008
    assert system.added_tokens.inputs.weight.shape[0] == 2


def test_openflamingos_rates_are_those_of_the_released_script():
    stage = recipe("openflamingo").stage("train")
    assert (stage.optimizer.learning_rate, stage.optimizer.weight_decay, stage.optimizer.clip_norm) == (1e-4, 0.1, 1.0)
    assert (stage.schedule.decay, stage.schedule.warmup, stage.max_tokens) == ("constant", 1875, 256)


def test_llama_3_2_is_llama_3_1_with_eight_blocks_and_eight_rows_more():
    """`transformers` counts 9,249,855,504 without the head, and the blocks as layers 3, 8, .. 38 of 40."""
    with without_values():
        model = Decoder.Config.sizes()["llama-3.1-8b"].build()
        head = num_parameters(model.output)
        block = GatedSwiGLU(num_key_value_heads=8, blind_feed_forward=False)
        CrossAttention.Config(block=block, every=4, first=3, visibility="run").build().install(model)
    slots = [i for i, each in enumerate(model.blocks) if num_parameters(each.before_attention)]
    assert slots == list(range(3, 32, 4))
    assert [i + place for place, i in enumerate(slots)] == list(range(3, 40, 5))
    assert num_parameters(model) - head + 8 * 4096 == 9_249_855_504
