"""The mixtures of published stages: their parts, proportions and weights, and a run on files of one's own."""

import base64
import json
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from weft.core.config import override_all
from weft.core.errors import DataError
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture, probabilities
from weft.data.desk.dataset import DeskConversations
from weft.recipes.catalogue import recipe, sizes_of, tiny_recipe
from weft.recipes.chosen_data import with_data
from weft.recipes.training_run import TrainingRun
from weft.training.schedules import rate_factor

TWO = ("pretrain", "instruct")
MIXED = {
    "flamingo": ("train",), "openflamingo": ("train",), "idefics": TWO, "vila": TWO, "instructblip": ("instruct",),
    "minigpt-4": ("align",), "qwen-vl": ("multitask",), "mono-internvl": ("align",),
}  # fmt: skip


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


def shares_of(data, sizes):
    """What the mixture draws of each part where the parts have so many samples."""
    parts = {name: replace(part, data=DeskConversations.Config(epoch=sizes[name])) for name, part in data.parts.items()}
    return replace(data, parts=parts).build().probabilities


@pytest.mark.parametrize("size", sizes_of("instructblip"))
def test_instructblip_draws_its_thirteen_sets_by_the_roots_of_their_sizes(size):
    sizes = {
        "coco_caption": 566_747, "web_capfilt": 14_000_000, "textcaps": 109_765,
        "vqav2": 443_757, "okvqa": 9_009, "a_okvqa": 17_056, "ocr_vqa": 801_673,
    }  # fmt: skip
    more = {
        "vqg_vqav2": 443_757, "vqg_okvqa": 9_009, "vqg_a_okvqa": 17_056,
        "llava_conversation": 58_000, "llava_detail": 23_000, "llava_reasoning": 77_000,
    }  # fmt: skip
    data = data_of("instructblip", "instruct", size)
    assert list(data.parts) == [*sizes, *more] and len(data.parts) == 13
    shares = shares_of(data, sizes | more)
    among = sum(shares[name] for name in sizes)
    expected = (0.1138, 0.5658, 0.0501, 0.1007, 0.0144, 0.0197, 0.1354)  # of the seven among themselves, to four places
    assert [shares[name] / among for name in sizes] == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("size", sizes_of("minigpt-4"))
def test_minigpt_4_draws_115_pairs_of_laion_for_14_others(size):
    shares = shares_of(data_of("minigpt-4", "align", size), {"laion": 10, "cc_sbu": 1000})
    assert shares == {"laion": pytest.approx(115 / 129), "cc_sbu": pytest.approx(14 / 129)}


def test_qwen_vl_learns_seven_tasks_of_77_million_samples():
    millions = {
        "captioning": 19.7, "vqa": 3.6, "grounding": 3.5, "ref_grounding": 8.7, "grounded_captioning": 8.7, "ocr": 24.8,
        "text": 7.8,
    }  # fmt: skip
    data = data_of("qwen-vl", "multitask")
    assert round(sum(part.weight for part in data.parts.values())) == 77
    assert shares_of(data, dict.fromkeys(millions, 10)) == pytest.approx({name: n / 76.8 for name, n in millions.items()})
    assert [name for name, part in data.parts.items() if not part.data.images] == ["text"]


def test_mono_internvl_aligns_on_captions_places_and_text_in_pictures():
    data = data_of("mono-internvl", "align")
    expected = {"captioning": 0.539, "detection": 0.052, "ocr": 0.409}
    assert data.epoch == 143_000_000 and shares_of(data, dict.fromkeys(expected, 10)) == pytest.approx(expected)


BY_STAGE = [(name, stage) for name, stages in MIXED.items() for stage in stages]


@pytest.mark.parametrize(("name", "stage"), BY_STAGE)
def test_one_file_stands_for_a_mixture_and_a_file_for_its_part(name, stage):
    published = data_of(name, stage)
    whole = with_data(recipe(name), [f"{stage}=mine.json"], None).stage(stage).data
    assert isinstance(whole, LlavaJson.Config) and (whole.path, whole.images) == ("mine.json", "")
    for part in published.parts:
        fed = with_data(recipe(name), [f"{stage}.{part}=mine.json"], None).stage(stage).data
        assert fed.parts[part] == replace(published.parts[part], data=fed.parts[part].data)
        assert fed.parts[part].data.path == "mine.json"
        others = {other: each for other, each in published.parts.items() if other != part}
        assert fed == replace(published, parts=others | {part: fed.parts[part]})


ON_DESK = [each for each in BY_STAGE if each != ("vila", "pretrain")]
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
