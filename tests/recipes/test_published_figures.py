"""The recipes hold what their papers and released scripts say."""

import math

import pytest
from PIL import Image

from weft.recipes.catalogue import recipe
from weft.systems.accounting import num_parameters, on_meta
from weft.training.freezing import freeze
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


@pytest.mark.parametrize(
    ("size", "batch", "billion", "rates", "decays", "parameters"),
    [
        ("g-14", 40_960, 11, (4e-4, 4e-5), None, 1_136_435_841),
        ("g-14-plus", 114_688, 11, (4e-4, 4e-5), (0.85, 0.75), 1_366_621_569),
        ("b-16", 131_072, 8, (2e-4, 2e-5), (0.75, 0.75), 149_691_137),
        ("l-14", 131_072, 4, (4e-4, 4e-5), (0.85, 0.75), 427_755_457),
        ("l-14-336", 61_440, None, (4e-4, 4e-5), (0.75, 0.65), 428_083_137),
        ("e-14", 115_200, 4, (4e-4, 4e-5), (0.9, 0.75), 4_704_589_569),
        ("e-14-plus", 144_000, 9, (4e-4, 4e-5), (0.9, 0.75), 5_044_889_089),
    ],
)
def test_eva_clip(size, batch, billion, rates, decays, parameters):
    """Batches are published in thousands, samples in billions."""
    stage = recipe("eva-clip", size).stages[-1]
    optimizer = stage.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.epsilon, optimizer.weight_decay) == ("lamb", (0.9, 0.98), 1e-6, 0.05)
    assert (optimizer.clip_norm, optimizer.learning_rate, stage.schedule.warmup) == (5.0, 5e-4, 2000)
    found = tuple(optimizer.learning_rate * optimizer.rates[part] for part in ("media.*", "text.*"))
    assert found == pytest.approx(rates)
    if decays is not None:
        assert dict(optimizer.layer_decay) == {"media": decays[0], "text": decays[1]}
    assert stage.batch_size == batch
    if billion is not None:
        assert stage.batch_size * stage.steps == pytest.approx(billion * 1e9, rel=1e-4)
    dropped = {"g-14-plus", "e-14", "e-14-plus"}
    assert stage.system.media.patch_dropout == (0.5 if size in dropped else 0.0)
    assert num_parameters(on_meta(stage.system)) == parameters


def test_clap_of_laion():
    stage = recipe("clap", "laion").stages[0]
    assert (stage.batch_size, stage.epochs, stage.schedule.warmup, stage.optimizer.weight_decay) == (2304, 45, 3200, 0.0)
    assert (stage.optimizer.learning_rate, stage.precision, stage.max_tokens) == (1e-4, "fp32", 77)
    assert num_parameters(on_meta(stage.system)) == 153_492_890


def test_clap_of_microsoft():
    system = on_meta(recipe("clap", "microsoft").system)
    assert num_parameters(system.media) - num_parameters(system.media.head) == 80_753_615 - 527 * 2049  # less the classifier
    assert system.config.media.embedding_width == system.config.text.embedding_width == 1024


@pytest.mark.parametrize(
    ("size", "encoder", "width", "gpus", "rate", "clip", "gradient", "standardise"),
    [
        ("base", 94_371_712, 256, 32, 5e-4, 10.0, 0.1, False),
        ("large", 315_438_720, 768, 128, 1.5e-3, 1.0, 1.0, True),
    ],
)
def test_hubert(size, encoder, width, gpus, rate, clip, gradient, standardise):
    made = recipe("hubert", size)
    stage, optimizer = made.stages[-1], made.stages[-1].optimizer
    assert num_parameters(on_meta(stage.system).encoder) == encoder
    assert (stage.system.embedding_width, stage.system.convolution_gradient) == (width, gradient)
    assert (optimizer.learning_rate, optimizer.betas, optimizer.epsilon) == (rate, (0.9, 0.98), 1e-6)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.01, clip)
    assert (stage.schedule.decay, stage.schedule.warmup, stage.steps) == ("linear", 32_000, 400_000)
    assert stage.processor.transforms["audio"].standardise is standardise
    assert stage.batch_size % gpus == 0
    objective = stage.objective
    assert (objective.mask_probability, objective.span, objective.least_spans, objective.feature_penalty) == (0.8, 10, 2, 10.0)
    first, second = made.stages[:2]
    assert [s.system.num_clusters for s in (first, second)] == [100, 500]
    assert (first.targets.stage, second.targets.stage, second.targets.layer) == (None, "first", 6)


@pytest.mark.parametrize(
    ("size", "parameters"), [("7b", 7_062_906_880), ("13b", 13_350_844_416), ("mistral-7b", 7_566_223_360)]
)
def test_llava_next(size, parameters):
    """Counts of the `transformers` class with these parts and 32,000 tokens."""
    made = recipe("llava-next", size)
    assert num_parameters(on_meta(made.system)) == parameters
    transform = made.processor.transforms["image"]
    assert transform.tiling.grids == ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)) and transform.view.size == 336
    unit = made.system.layout("image")
    for (width, height), tokens in {(336, 336): 1176, (672, 672): 2928, (640, 480): 2340, (1000, 300): 2182}.items():
        layout = transform.open(Image.new("RGB", (width, height)), unit).layout
        assert made.system.num_positions("image", layout) == tokens


def test_llava_next_takes_the_projector_of_llava_1_5_and_trains_the_image_tower_too():
    align, instruct = recipe("llava-next").stages
    assert align == recipe("llava-1.5").stage("align")
    assert instruct.new == ("streams.image.projector.newline",)
    trained = freeze(on_meta(instruct.system), instruct.train)
    still = {name for name, _ in on_meta(instruct.system).named_parameters()} - set(trained)
    read = ("streams.image.encoder.blocks.23.", "streams.image.encoder.final_norm.")
    assert still and all(name.startswith(read) for name in still), "what lies behind the features is not read"
