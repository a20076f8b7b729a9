"""Every part and every recipe is counted before it exists; a new one joins by existing."""

import gc
from dataclasses import replace

import pytest
import torch

from weft.core.catalogue import parts
from weft.core.interfaces import ModalityEncoder
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.linear import Linear
from weft.recipes.catalogue import recipe, recipe_names, tiny_names, tiny_recipe
from weft.serving.recipe_view import sample_of
from weft.systems.accounting import SampleShape, cost, num_parameters, on_meta, without_values
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.memory import stage_cost

ENCODERS = [cls for cls in parts("encoders").values() if issubclass(cls, ModalityEncoder)]
PROJECTORS = list(parts("projectors").values())
LANGUAGE_MODELS = list(parts("language_models").values())
PARTS = [
    (kind, cls)
    for kind, found in {"encoder": ENCODERS, "projector": PROJECTORS, "language_model": LANGUAGE_MODELS}.items()
    for cls in found
]
STAGES = [
    pytest.param(stage, id=f"{name}-{stage.name}")
    for name in recipe_names()
    for stage in (tiny_recipe(name) if name in tiny_names() else recipe(name)).stages
]


def system(encoder=None, projector=None, language_model=None):
    stream = Stream.Config(encoder=encoder or ClipVision.Config.tiny(), projector=projector or Linear.Config())
    model = language_model or Decoder.Config.tiny()
    return MultimodalLM.Config(language_model=model, streams={"image": stream}, fusions=(TokenConcatenation.Config(),))


def counted(config):
    """The cost of a picture with some text, and of the text alone."""
    seeing = on_meta(config)
    alone = on_meta(replace(config, streams={}, fusions=()))
    units = (1, *config.streams["image"].encoder.unit_shape)
    return cost(seeing, SampleShape(8, {"image": units})), cost(alone, SampleShape(8))


@pytest.mark.parametrize("cls", ENCODERS, ids=lambda cls: cls.__name__)
def test_every_encoder_is_counted(cls):
    seeing, alone = counted(system(encoder=cls.Config.tiny()))
    assert seeing.forward_flops > alone.forward_flops
    assert seeing.activation_bytes > alone.activation_bytes


@pytest.mark.parametrize("cls", PROJECTORS, ids=lambda cls: cls.__name__)
def test_every_projector_is_counted(cls):
    seeing, alone = counted(system(projector=cls.Config.tiny()))
    assert seeing.forward_flops > alone.forward_flops


@pytest.mark.parametrize("cls", LANGUAGE_MODELS, ids=lambda cls: cls.__name__)
def test_every_language_model_is_counted(cls):
    seeing, alone = counted(system(language_model=cls.Config.tiny()))
    assert 0 < alone.forward_flops < seeing.forward_flops


@pytest.mark.parametrize(("kind", "cls"), PARTS, ids=lambda value: getattr(value, "__name__", value))
def test_every_part_is_made_where_the_block_says(kind, cls, monkeypatch):
    """PyTorch lists once what a device context reaches; where `transformers` was first, `torch.linspace` is not on the list."""
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *args, **options: linspace(*args, **{"device": "cpu", **options}))
    made = on_meta(system(**{kind: cls.Config.tiny()}))
    assert {parameter.device.type for parameter in made.parameters()} == {"meta"}


@pytest.mark.parametrize(("kind", "cls"), PARTS, ids=lambda value: getattr(value, "__name__", value))
def test_listing_a_part_allocates_next_to_nothing(kind, cls):
    config = system(**{kind: cls.Config.tiny()})
    with without_values():
        made = config.build()
    assert gc.isenabled()
    assert num_parameters(made) == num_parameters(on_meta(config))
    allocated = num_parameters(parameter for parameter in made.parameters() if not parameter.is_meta)
    assert allocated < 1e-3 * num_parameters(made)  # what starts as a range of numbers is that range


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_every_recipe_is_counted(stage):
    meta = on_meta(stage.system)
    found = stage_cost(stage, meta, sample_of(stage, 16))
    assert 0 < found.trained_parameters <= found.all_parameters == num_parameters(meta)
    assert found.sample.forward_flops > 0
    assert found.sample.backward_flops > 0
    assert found.activation_bytes > 0
