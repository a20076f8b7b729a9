"""The recipes hold what their papers and released scripts say."""

import math

import pytest

from weft.recipes.catalogue import recipe
from weft.systems.accounting import num_parameters, on_meta
from weft.training.schedules import rate_factor, warmup_steps

ROWS = {"llava-1.5": {"align": 558_128, "instruct": 665_298}, "llava": {"align": 595_375, "instruct": 157_712}}


@pytest.mark.parametrize(
    ("name", "stage", "rate", "batch", "epochs"),
    [
        ("llava", "align", 2e-3, 128, 1),
        ("llava", "instruct", 2e-5, 32, 3),
        ("llava-1.5", "align", 1e-3, 256, 1),
        ("llava-1.5", "instruct", 2e-5, 128, 1),
    ],
)
def test_llava_stages(name, stage, rate, batch, epochs):
    for size in ("7b", "13b"):
        found = recipe(name, size).stage(stage)
        assert (found.optimizer.learning_rate, found.batch_size, found.epochs) == (rate, batch, epochs)
        assert (found.schedule.decay, found.schedule.warmup, found.optimizer.weight_decay) == ("cosine", 0.03, 0.0)
        assert (found.max_tokens, found.precision, found.optimizer.name) == (2048, "bf16", "adamw")
        assert found.processor.template == {"align": "plain", "instruct": "vicuna_v1"}[stage]
        trained = {"align": ("streams.image.projector.*",), "instruct": ("streams.image.projector.*", "language_model.*")}
        assert found.train == trained[stage]


def test_llava_1_5_pads_to_a_square_for_instructions_and_for_use():
    made = recipe("llava-1.5")
    assert not made.stage("align").processor.transforms["image"].pad_to_square
    assert made.processor.transforms["image"].pad_to_square
    assert made.processor.boxes.square


@pytest.mark.parametrize(
    ("name", "size", "tokens", "projector"),
    [
        ("llava", "7b", 256, 4_198_400),
        ("llava", "13b", 256, 5_248_000),
        ("llava-1.5", "7b", 576, 20_979_712),
        ("llava-1.5", "13b", 576, 31_467_520),
    ],
)
def test_llava_tokens_and_projector(name, size, tokens, projector):
    made = recipe(name, size)
    assert made.system.num_positions("image") == tokens
    assert num_parameters(on_meta(made.system).stream("image").projector) == projector


@pytest.mark.parametrize(("stage", "steps", "warmup"), [("align", 2181, 66), ("instruct", 5198, 156)])
def test_llava_1_5_takes_the_published_number_of_steps(stage, steps, warmup):
    found = recipe("llava-1.5").stage(stage)
    assert math.ceil(ROWS["llava-1.5"][stage] / found.batch_size) * found.epochs == steps
    assert warmup_steps(found.schedule, steps) == warmup


def test_the_rate_of_stage_1_follows_the_released_schedule():
    stage, steps = recipe("llava-1.5").stage("align"), 2181
    rate = [stage.optimizer.learning_rate * rate_factor(stage.schedule, step, steps) for step in (33, 66, 2180)]
    assert rate == pytest.approx([5e-4, 1e-3, 5.5e-10], rel=0.01)


@pytest.mark.parametrize(
    ("size", "rate", "width", "parameters"),
    [
        ("b-32", 5e-4, 512, 151_277_313),
        ("b-16", 5e-4, 512, 149_620_737),
        ("l-14", 4e-4, 768, 427_616_513),
        ("l-14-336", 4e-4, 768, 427_944_193),
    ],
)
def test_clip(size, rate, width, parameters):
    made = recipe("clip", size)
    stage = made.stages[0]
    assert (stage.optimizer.learning_rate, stage.optimizer.betas, stage.optimizer.epsilon) == (rate, (0.9, 0.98), 1e-6)
    assert (stage.optimizer.weight_decay, stage.schedule.warmup, stage.batch_size, stage.epochs) == (0.2, 2000, 32_768, 32)
    assert made.system.embedding_width == width
    assert made.processor.template == "clip_text"
    assert num_parameters(on_meta(made.system)) == parameters


def test_clip_at_336_pixels_goes_on_from_224_for_one_epoch():
    first, second = recipe("clip", "l-14-336").stages
    assert (first.system.media.image_size, second.system.media.image_size) == (224, 336)
    assert (second.epochs, second.optimizer.learning_rate) == (1, 2e-5)


@pytest.mark.parametrize(
    ("size", "parameters"), [("b-16-224", 203_155_970), ("l-16-256", 652_150_786), ("so400m-14-384", 877_960_498)]
)
def test_siglip(size, parameters):
    made = recipe("siglip", size)
    assert num_parameters(on_meta(made.system)) == parameters
    assert (made.system.initial_scale, made.system.initial_bias) == (10.0, -10.0)
    transform = made.processor.transforms["image"]
    assert (transform.resize, transform.mean, transform.size) == ("direct", (0.5, 0.5, 0.5), made.system.media.image_size)
