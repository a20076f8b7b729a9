"""The mixtures of published stages: their parts, proportions and weights, and a run on files of one's own."""

import base64
import json
from io import BytesIO

import pytest
from PIL import Image

from weft.core.config import override_all
from weft.core.errors import DataError
from weft.data.datasets.mixture import Mixture, probabilities
from weft.recipes.catalogue import recipe, sizes_of, tiny_recipe
from weft.recipes.training_run import TrainingRun
from weft.training.schedules import rate_factor

TWO = ("pretrain", "instruct")
MIXED = {"flamingo": ("train",), "openflamingo": ("train",), "idefics": TWO, "vila": TWO}


def data_of(name, stage, size=None):
    return recipe(name, size).stage(stage).data


def test_openflamingo_reads_two_pairs_for_a_document_at_a_fifth_of_its_weight():
    data = data_of("openflamingo", "train")
    shares = probabilities([1, 1], [part.weight for part in data.parts.values()], data.weighting)
    assert [round(data.epoch * share) for share in shares] == [120_000_000, 60_000_000]
    assert {name: part.loss_weight for name, part in data.parts.items()} == {"laion": 0.2, "mmc4": 1.0}
    mmc4 = data.parts["mmc4"].data
    assert (mmc4.min_similarity, mmc4.max_images, mmc4.min_bytes // 1000) == (0.24, 6, 11)
    assert (mmc4.interleaving.opening, mmc4.interleaving.single_share) == ("read", 0.5)


def test_flamingo_weighs_four_sets():
    parts = data_of("flamingo", "train").parts
    assert {name: part.loss_weight for name, part in parts.items()} == {"m3w": 1.0, "align": 0.2, "ltip": 0.2, "vtp": 0.03}
    pages = parts["m3w"].data.interleaving
    assert (pages.max_media, pages.next_share, pages.random_start, pages.opening) == (5, 0.5, True, "learned")


def test_idefics_shows_wikipedia_and_pmd_three_times_and_dialogues_in_its_cards_ratios():
    pretrain, instruct = (data_of("idefics", stage) for stage in MIXED["idefics"])
    assert pretrain.weighting == "sizes"
    assert {name: part.weight for name, part in pretrain.parts.items()} == {"obelics": 1, "wikipedia": 3, "laion": 1, "pmd": 3}
    ratios = {name: part.weight for name, part in instruct.parts.items()}
    assert sum(ratios.values()) == pytest.approx(100) and (ratios["ultrachat"], ratios["laion"], ratios["obelics"]) == (
        29.1,
        5.1,
        30.7,
    )
    documents = {name for name, part in instruct.parts.items() if part.template == "idefics_document"}
    assert documents == {"laion", "obelics"} and not any(part.template for part in pretrain.parts.values())
    assert instruct.weighting == "given"


@pytest.mark.parametrize(
    ("size", "peaks", "ends"), [("9b", (1e-5, 1e-5), (6e-6, 1.2e-6)), ("80b", (5e-5, 3e-6), (3e-5, 3.6e-7))]
)
def test_idefics_rates_are_its_cards(size, peaks, ends):
    stages = recipe("idefics", size).stages
    for stage, peak, end, steps, warmup, length in zip(
        stages, peaks, ends, (200_000, 22_000), (2000, 1000), (1024, 2048), strict=True
    ):
        assert (stage.steps, stage.max_tokens, stage.schedule.warmup) == (steps, length, warmup)
        rates = [stage.optimizer.learning_rate * rate_factor(stage.schedule, step, steps) for step in (warmup, steps)]
        assert rates == pytest.approx([peak, end])


@pytest.mark.parametrize("size", sizes_of("vila"))
def test_vila_reads_pairs_and_documents_once_and_keeps_text_among_its_instructions(size):
    pretrain, instruct = (data_of("vila", stage, size) for stage in MIXED["vila"])
    assert list(pretrain.parts) == ["coyo", "mmc4"] and list(instruct.parts) == ["vflan", "sharegpt4v", "text"]
    assert pretrain.parts["mmc4"].data.max_images == 6
    for data in (pretrain, instruct):
        assert data.weighting == "sizes" and all((part.weight, part.loss_weight) == (1, 1) for part in data.parts.values())


ON_DESK = [(name, stage) for name, stages in MIXED.items() for stage in stages if (name, stage) != ("vila", "pretrain")]
"""VILA's tiny form reads documents alone: captions in a row."""


@pytest.mark.parametrize(("name", "stage"), ON_DESK)
def test_tiny_recipes_mix_the_desk_in_the_published_proportions(name, stage):
    published, tiny = data_of(name, stage), tiny_recipe(name).stage(stage).data
    assert tiny.weighting == published.weighting and list(tiny.parts) == list(published.parts)
    for part, small in zip(published.parts.values(), tiny.parts.values(), strict=True):
        assert (part.weight, part.loss_weight) == (small.weight, small.loss_weight)
    assert isinstance(tiny.build(), Mixture)


def picture(shade):
    content = BytesIO()
    Image.new("RGB", (32, 32), (shade, 90, 30)).save(content, "png")
    return content.getvalue()


def files_of_ones_own(folder):
    """A pair, and of three documents one that is whole, one without its picture and one that is broken."""
    (folder / "a.png").write_bytes(picture(9))
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a red 7"}]
    (folder / "pairs.jsonl").write_text(json.dumps({"id": "pair", "image": "a.png", "conversations": turns}) + "\n")
    found = {"image_name": "b.png", "matched_text_index": 1, "matched_sim": 0.3}
    both = [found | {"matched_text_index": i, "image_base64": base64.b64encode(picture(i)).decode()} for i in (0, 1)]
    documents = [{"text_list": ["a red 7", "a blue 3"], "image_info": images} for images in (both, [found])]
    lines = [*map(json.dumps, documents), '{"text_list": ["broken"]}']
    (folder / "docs_0.jsonl").write_text("\n".join(lines) + "\n")
    return f"train.laion={folder}/pairs.jsonl", f"train.mmc4={folder}/docs_*.jsonl"


def test_openflamingo_trains_on_files_of_ones_own(tmp_path):
    """Few steps on two files, broken records named or, where one asks for it, counted."""
    files = files_of_ones_own(tmp_path)
    settings = [("stages.train.steps", "2"), ("stages.train.data.epoch", "12")]
    made = override_all(tiny_recipe("openflamingo"), settings)
    with pytest.raises(DataError, match=r"docs_0\.jsonl, line 2: no image file .*b\.png; mend it, or skip such records"):
        TrainingRun(recipe=made, data=files, tiny=True).trainer(tmp_path / "strict").fit()
    TrainingRun(recipe=made, data=files, tiny=True, skip_broken=True).trainer(tmp_path / "run").fit()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "data: of 12 samples an epoch laion 66.67%, mmc4 33.33%" in log
    assert "data: mmc4: broken records that were skipped: 1; the first: " in log
    assert "data: mmc4: sound records that do not fit and were left out: 1 beside 1" in log
    assert "data: mmc4: pictures that are not there, their documents do without them: 1" in log
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
