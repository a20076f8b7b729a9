"""CogVLM and Mono-InternVL: the papers' stages, experts that start as copies of published weights, text left as it was."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from weft.checkpoints import internlm2, llama
from weft.checkpoints.weight_files import weights
from weft.core.batch import MultimodalBatch, TextSide
from weft.core.errors import ConfigError
from weft.data.collate import collate
from weft.fusion.visual_expert import VisualExpert
from weft.recipes.catalogue import recipe, tiny_recipe
from weft.recipes.shrinking import tiny_tokenizer
from weft.recipes.starting_weights import starting_weights
from weft.training.freezing import freeze
from weft.training.optimizers import build_optimizer
from weft.training.taking import take

EXPERTS = ("streams.image.projector.*", "language_model.blocks.*.routes.*")
VISUAL = ("streams.image.*", "language_model.blocks.*.feed_forward.routes.*")
STAGES = [(name, stage.name) for name in ("cogvlm", "mono-internvl") for stage in tiny_recipe(name).stages]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(100)


def test_cogvlm_stages():
    caption, ground, finer, chat = recipe("cogvlm").stages
    assert [(s.steps, s.batch_size, s.optimizer.learning_rate) for s in (caption, ground, finer, chat)] == [
        (120_000, 8192, 1e-4), (30_000, 1024, 1e-5), (30_000, 1024, 1e-5), (6000, 1024, 1e-5),
    ]  # fmt: skip
    assert [s.system.num_positions("image") for s in (caption, ground, finer, chat)] == [258, 258, 1227, 1227]
    assert [s.processor.transforms["image"].size for s in (caption, ground, finer, chat)] == [224, 224, 490, 490]
    assert caption.train == ground.train == finer.train == EXPERTS
    assert chat.optimizer.rates == {"streams.image.encoder.*": 0.1}
    assert caption.optimizer.betas == (0.9, 0.95) and caption.optimizer.weight_decay == 0.05


def test_mono_internvl_stages():
    concept, semantic, align, instruct = recipe("mono-internvl").stages
    tiles = [s.processor.transforms["image"].tiling.max_tiles for s in (concept, semantic, align, instruct)]
    assert [256 * (n + 1) for n in tiles] == [1280, 1792, 3328, 6400]
    assert concept.train == semantic.train == VISUAL
    assert align.train == (*VISUAL, "language_model.blocks.*.attention.*") and instruct.train == ("*",)
    assert (instruct.optimizer.learning_rate, instruct.batch_size, instruct.optimizer.weight_decay) == (4e-5, 128, 0.01)
    assert instruct.schedule.warmup == 0.03 and instruct.processor.template == "internlm2_chat"


def text_logits(system):
    tokens = torch.arange(3, 15)[None]
    order = torch.arange(12)[None]
    with torch.no_grad():
        return system(MultimodalBatch(TextSide(tokens, order, torch.ones_like(order), order, torch.zeros_like(order)))).logits()


@pytest.mark.parametrize(("name", "stage_name"), STAGES)
def test_a_stage_leaves_text_alone_unless_it_trains_the_language_model(name, stage_name, tokenizer):
    """CogVLM's first stages and S1.1 and S1.2: text-only logits are bit for bit what they were."""
    stage = tiny_recipe(name).stage(stage_name)
    torch.manual_seed(0)
    system = stage.system.build()
    with torch.no_grad():
        for parameter in system.parameters():
            if not parameter.any():
                parameter.fill_(0.5)
    processor, data = stage.processor.build(tokenizer, stage.system), stage.data.build()
    before = text_logits(system)
    optimizer = build_optimizer(stage.optimizer, system, freeze(system, stage.train))
    stage.objective.build()(system, collate([processor.encode(data[i]) for i in range(2)])).mean().backward()
    optimizer.step(1.0)
    trains_text = stage_name in ("chat", "align", "instruct")
    assert torch.equal(text_logits(system), before) is not trains_text


@pytest.mark.parametrize("attention", [False, True], ids=["feed-forward", "attention too"])
@pytest.mark.parametrize("layout", [llama, internlm2], ids=["llama", "internlm2"])
def test_experts_start_as_copies_of_the_weights_that_fill_the_language_model(layout, attention, tmp_path):
    system = tiny_recipe("mono-internvl").system
    system = replace(system, fusions=(system.fusions[0], VisualExpert.Config(attention=attention)))
    torch.manual_seed(1)
    published = system.language_model.build()
    state = layout.FORMAT.key_map(published.config).from_weft(weights(published))
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(layout.FORMAT.write_config(published.config)))
    torch.manual_seed(0)
    fresh = system.build()
    fill = starting_weights([f"language_model={tmp_path}"])
    assert fill is not None
    fill(fresh)
    expected = copy.deepcopy(published)
    VisualExpert.Config(attention=attention).build().install(expected)
    found = fresh.language_model.state_dict()
    assert set(found) == set(expected.state_dict())
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


def test_the_towers_places_are_interpolated_where_the_pictures_grow():
    stages = {stage.name: stage for stage in tiny_recipe("cogvlm").stages}
    coarse, fine = stages["ground"].system.build(), stages["ground_490"].system.build()
    name = "streams.image.encoder.position_embedding"
    state = coarse.state_dict()
    assert take(stages["ground_490"], fine, lambda earlier: state) == []
    table = state[name][1:].T.reshape(1, -1, 3, 3)
    grid = torch.nn.functional.interpolate(table, size=(4, 4), mode="bicubic", align_corners=False)[0].flatten(1).T
    assert torch.equal(fine.state_dict()[name], torch.cat((state[name][:1], grid)))
    assert all(torch.equal(value, state[key]) for key, value in fine.state_dict().items() if key != name)
    with pytest.raises(ConfigError, match=r"position_embedding is 17x64, ground:.* is 10x64"):
        take(replace(stages["ground_490"], interpolates=()), fine, lambda earlier: state)
