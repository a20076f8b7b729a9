"""A recipe on one's own data: files by stage, tokenizers, published weights to start from."""

import json
from dataclasses import replace

import pytest
import torch

from weft.checkpoints.clip import CLIP_VISION
from weft.checkpoints.weight_files import weights, write_weights
from weft.core.errors import CheckpointError, ConfigError, RunError
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mmc4 import Mmc4
from weft.data.datasets.obelics import Obelics
from weft.data.desk.dataset import DeskConversations
from weft.encoders.clip import ClipVision
from weft.recipes.catalogue import recipe, tiny_recipe
from weft.recipes.chosen_data import with_data
from weft.recipes.shrinking import tiny_tokenizer
from weft.recipes.starting_weights import starting_weights
from weft.recipes.training_run import TrainingRun
from weft.training.model_folder import write_model_folder

ENCODER = "streams.image.encoder"


def test_a_file_feeds_every_stage_or_the_one_that_it_is_given_to(tmp_path):
    made = tiny_recipe("llava")
    everywhere = with_data(made, ["all.json"], tmp_path)
    assert [s.data for s in everywhere.stages] == [LlavaJson.Config(path="all.json", images=str(tmp_path))] * 2
    one = with_data(made, ["instruct=mine.json"], None)
    assert isinstance(one.stage("align").data, DeskConversations.Config)
    assert one.stage("instruct").data == LlavaJson.Config(path="mine.json")


def test_an_unknown_stage_offers_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown stage 'instuct'.*'instruct'"):
        with_data(tiny_recipe("llava"), ["instuct=mine.json"], None)


def test_several_files_of_a_stage_are_mixed_by_their_sizes():
    made = with_data(tiny_recipe("llava"), ["align=a.json", "align=b.json", "c.json"], None)
    data = made.stage("align").data
    assert [part.data.path for part in data.parts.values()] == ["a.json", "b.json"] and data.weighting == "sizes"
    assert made.stage("instruct").data == LlavaJson.Config(path="c.json")


def test_a_part_of_a_mixture_is_fed_and_the_others_are_missed(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"conversations": []}\n')
    (tmp_path / "docs.jsonl").write_text('{"text_list": [], "image_info": []}\n')
    given = [f"train.laion={tmp_path}/pairs.jsonl", f"train.mmc4={tmp_path}/docs*.jsonl"]
    published = recipe("openflamingo").stage("train").data
    data = with_data(recipe("openflamingo"), given, tmp_path).stage("train").data
    assert (data.parts["laion"].weight, data.parts["laion"].loss_weight, data.parts["mmc4"].weight) == (64, 0.2, 32)
    assert data.parts["mmc4"].data == replace(
        published.parts["mmc4"].data, path=f"{tmp_path}/docs*.jsonl", images=str(tmp_path)
    )
    run = TrainingRun(recipe=recipe("openflamingo"), data=tuple(given[:1]))
    with pytest.raises(RunError, match=r"'train' reads mmc4/docs_\*.jsonl.*--data train.mmc4=FILE"):
        run.trainer(tmp_path / "run")


@pytest.mark.parametrize("record", ['{"text_list": [], "image_info": []}', '{"images": [], "texts": [], "metadata": ""}'])
def test_documents_are_recognised_and_read_as_the_recipe_reads_its_own(record, tmp_path):
    for place in (tmp_path / "docs.jsonl", tmp_path, tmp_path / "d*.jsonl"):
        (tmp_path / "docs.jsonl").write_text(record + "\n")
        data = with_data(recipe("openflamingo"), [str(place)], None).stage("train").data
        assert type(data) is (Mmc4.Config if "text_list" in record else Obelics.Config)
        assert data.interleaving.opening == "read" and not data.strict and data.path == str(place)


def test_what_is_no_part_of_a_mixture_is_refused():
    flamingo = tiny_recipe("openflamingo")
    with pytest.raises(ConfigError, match=r"unknown part of the mixture of stage 'train' 'mmc'; did you mean 'mmc4'"):
        with_data(flamingo, ["train.mmc=x.json"], None)
    with pytest.raises(ConfigError, match="stage 'align' reads one data set, which has no part 'x'"):
        with_data(tiny_recipe("llava"), ["align.x=y.json"], None)
    with pytest.raises(ConfigError, match="'train' is given as a whole and in part"):
        with_data(flamingo, ["train=x.json", "train.mmc4=y.json"], None)


def test_images_alone_are_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="--data"):
        with_data(tiny_recipe("llava"), [], tmp_path)


def test_a_missing_file_is_found_before_anything_starts(tmp_path):
    run = TrainingRun(recipe=recipe("llava-1.5"), data=("nowhere.json",))
    with pytest.raises(RunError, match=r"'align' reads nowhere.json.*--data align=FILE"):
        run.trainer(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_published_recipe_asks_for_its_tokenizer():
    with pytest.raises(ConfigError, match="--tokenizer"):
        TrainingRun(recipe=recipe("llava-1.5")).find_tokenizer()


def test_a_recipe_that_trains_its_own_tokenizer_uses_it():
    made = recipe("desk")
    assert TrainingRun(recipe=made).find_tokenizer().vocabulary <= made.system.language_model.vocabulary


def test_the_tokenizer_comes_with_the_language_model(tmp_path):
    tiny_tokenizer(50).save(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    run = TrainingRun(recipe=recipe("llava-1.5"), start=(f"language_model={tmp_path}",))
    assert run.find_tokenizer().encode("a red 7") == tiny_tokenizer(50).encode("a red 7")


@pytest.fixture
def published_tower(tmp_path):
    """A tower's weights as the transformers library writes them."""
    torch.manual_seed(1)
    config = tiny_recipe("llava").system.streams["image"].encoder
    tower = config.build()
    folder = tmp_path / "tower"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CLIP_VISION.write_config(config)))
    write_weights(folder, CLIP_VISION.key_map(config).from_weft(weights(tower)))
    return tower, folder


def test_a_part_starts_from_published_weights(published_tower):
    tower, folder = published_tower
    torch.manual_seed(0)
    system = tiny_recipe("llava").system.build()
    before = {n: p.clone() for n, p in system.named_parameters()}
    fill = starting_weights([f"{ENCODER}={folder}"])
    assert fill is not None
    fill(system)
    for name, parameter in system.named_parameters():
        inner = name.removeprefix(f"{ENCODER}.")
        expected = tower.get_parameter(inner) if inner != name else before[name]
        assert torch.equal(parameter, expected), name


def test_a_part_starts_from_a_model_folder_of_weft(tmp_path):
    torch.manual_seed(1)
    made = tiny_recipe("llava")
    source = made.system.build()
    write_model_folder(tmp_path / "model", source, made.processor.build(tiny_tokenizer(50), made.system))
    torch.manual_seed(0)
    system = made.system.build()
    fill = starting_weights([f"language_model={tmp_path / 'model'}"])
    assert fill is not None
    fill(system)
    assert torch.equal(system.language_model.embedding.weight, source.language_model.embedding.weight)
    assert not torch.equal(system.stream("image").projector.linear.weight, source.stream("image").projector.linear.weight)


def test_an_unknown_part_offers_the_nearest(published_tower):
    fill = starting_weights([f"streams.image.encodr={published_tower[1]}"])
    with pytest.raises(ConfigError, match=r"unknown part 'streams.image.encodr'.*'streams.image.encoder'"):
        fill(tiny_recipe("llava").system.build())


def test_weights_of_another_size_are_refused(published_tower):
    system = tiny_recipe("clip").system.build()
    system.media = ClipVision.Config(image_size=64, patch_size=16, width=32, num_layers=1, num_heads=2).build()
    with pytest.raises(CheckpointError, match="does not fit ClipVision"):
        starting_weights([f"media={published_tower[1]}"])(system)


def test_nothing_to_start_from_is_nothing_to_do():
    assert starting_weights([]) is None
    with pytest.raises(ConfigError, match="PART=PATH"):
        starting_weights(["language_model"])
