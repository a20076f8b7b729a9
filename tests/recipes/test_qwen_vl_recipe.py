"""Qwen-VL: the paper's stages, what each of them trains, and boxes in the text."""

from fnmatch import fnmatchcase

import pytest
import torch

from weft.core.batch import IGNORE
from weft.data.collate import collate
from weft.projectors.qwen_resampler import sine_cosine_table
from weft.recipes.catalogue import recipe, tiny_recipe
from weft.recipes.shrinking import tiny_tokenizer
from weft.systems.accounting import on_meta
from weft.training.freezing import freeze
from weft.training.schedules import rate_factor
from weft.training.taking import take


def test_stages():
    pretrain, multitask, chat = stages = recipe("qwen-vl").stages
    assert [(s.steps, s.batch_size, s.optimizer.learning_rate) for s in stages] == [
        (50_000, 30_720, 2e-4), (19_000, 4096, 5e-5), (8000, 128, 1e-5),
    ]  # fmt: skip
    assert [s.processor.transforms["image"].size for s in stages] == [224, 448, 448]
    assert [s.max_tokens for s in stages] == [512, 2048, 2048] and multitask.packing
    for stage in stages:
        assert (stage.optimizer.betas, stage.optimizer.weight_decay, stage.optimizer.clip_norm) == ((0.9, 0.98), 0.05, 1.0)
        assert stage.processor.transforms["image"].resize == "direct" and stage.schedule.decay == "cosine"
    assert pretrain.optimizer.layer_decay == multitask.optimizer.layer_decay == {"streams.image.encoder": 0.95}
    assert chat.optimizer.layer_decay == {}
    assert 2e-4 * rate_factor(pretrain.schedule, 49_999, 50_000) == pytest.approx(1e-6, rel=1e-3)


def test_every_picture_becomes_256_tokens():
    assert [s.system.num_positions("image") for s in recipe("qwen-vl").stages] == [256, 256, 256]
    assert [s.system.layout("image").positions for s in recipe("qwen-vl").stages] == [256, 1024, 1024]


@pytest.mark.parametrize(
    ("stage", "tower", "adapter", "end_of_tower", "language_model"),
    [("pretrain", True, True, True, False), ("multitask", True, True, True, True), ("chat", False, True, False, True)],
)
def test_what_a_stage_trains(stage, tower, adapter, end_of_tower, language_model):
    assert recipe("qwen-vl").stage(stage).train == tiny_recipe("qwen-vl").stage(stage).train
    stage = tiny_recipe("qwen-vl").stage(stage)
    system = on_meta(stage.system)
    trained = set(freeze(system, stage.train))
    expected = {
        "streams.image.encoder.*": tower,
        "streams.image.projector.resampler.*": adapter,
        "streams.image.projector.final_norm.*": end_of_tower,
        "streams.image.projector.output.*": end_of_tower,
        "language_model.*": language_model,
    }
    for name, _ in system.named_parameters():
        (wanted,) = [trains for pattern, trains in expected.items() if fnmatchcase(name, pattern)]
        assert (name in trained) is wanted, name


def test_the_tower_goes_to_finer_pictures_with_the_positions_that_it_learned():
    pretrain, multitask, _ = tiny_recipe("qwen-vl").stages
    coarse, fine = pretrain.system.build(), multitask.system.build()
    state = coarse.state_dict()
    assert take(multitask, fine, lambda earlier: state) == []
    assert all(torch.equal(value, state[name]) for name, value in fine.state_dict().items())
    assert len(fine.stream("image").encoder.position_embedding) == 9 and fine.config.layout("image").positions == 16
    projector = fine.stream("image").projector
    assert torch.equal(projector.position_table, sine_cosine_table(4, 64))


def test_boxes_of_the_desk_are_learned_in_thousandths():
    stage, tokenizer = tiny_recipe("qwen-vl").stage("multitask"), tiny_tokenizer(100)
    processor, data = stage.processor.build(tokenizer, stage.system), stage.data.build()
    samples = [processor.encode(data[index]) for index in range(40)]
    sample = next(s for s in samples if tokenizer.special["<box>"] in s.targets)
    said = processor.decode(sample.targets[sample.targets != IGNORE])
    found = processor.config.boxes.parse(said)
    assert found is not None and all(0 <= value < 1 for value in found)
    assert collate([sample]).media["image"].spans[0, 4] == 16
