"""Of every stage of the published systems: how many parameters there are, and how many it trains, to the last one.

What is trained is written as a sum of the published parts' counts; what is left of the whole is frozen.
"""

import pytest

from weft.recipes.catalogue import recipe, recipe_names, sizes_of
from weft.systems.accounting import num_parameters, without_values
from weft.training.freezing import freeze
from weft.training.trainer import check_recipe

EVERY_SIZE = [(name, size) for name in recipe_names() for size in sizes_of(name) or (None,)]

VICUNA, VICUNA_13B = 6_738_415_616, 13_015_864_320
LLAMA_3, LLAMA_3_70B = 8_030_261_248, 70_553_706_496
QWEN = 7_721_324_544
CLIP_L, CLIP_L_336 = 303_179_776, 303_507_456
UNREAD = 12_596_224 + 2_048  # CLIP-L's last block and final norm: features leave one block earlier
EVA_G = 1_192_576 + 984_756_864 + 2_816 - 39 * 1408  # without the zero biases of the keys
RESAMPLER = 63_019_008
COGVLM_ADDED = 6_476_005_376 + 142_614_528 + 8_192  # experts, adapter, the two learned borders
QWEN_TOWER, QWEN_POOL = 1_842_770_688 + 8_192 + 16_777_216, 76_054_528 - 1_048_576
MONO_EXPERTS, MONO_ATTENTION = 24 * 3 * 2048 * 8192, 24 * (2048 * 4096 + 2048 * 2048)

EXACT = [
    ("llava", "7b", "align", CLIP_L + VICUNA + 4_198_400, 4_198_400),
    ("llava", "7b", "instruct", CLIP_L + VICUNA + 4_198_400, 4_198_400 + VICUNA),
    ("llava", "13b", "align", CLIP_L + VICUNA_13B + 5_248_000, 5_248_000),
    ("llava", "13b", "instruct", CLIP_L + VICUNA_13B + 5_248_000, 5_248_000 + VICUNA_13B),
    ("llava-1.5", "7b", "align", 7_062_902_784, 20_979_712),
    ("llava-1.5", "7b", "instruct", 7_062_902_784, 20_979_712 + VICUNA),
    ("llava-1.5", "13b", "align", 13_350_839_296, 31_467_520),
    ("llava-1.5", "13b", "instruct", 13_350_839_296, 31_467_520 + VICUNA_13B),
    ("llava-next", "7b", "align", 7_062_902_784, 20_979_712),
    ("llava-next", "7b", "instruct", 7_062_902_784 + 4096, 7_062_902_784 + 4096 - UNREAD),
    ("mof-llava", "7b", "align", None, 2 * 20_979_712),
    ("mof-llava", "7b", "instruct", None, 2 * 20_979_712 + VICUNA),
    ("mof-llava", "additive-13b", "align", None, 31_467_520),
    ("mof-llava", "additive-13b", "instruct", None, 31_467_520 + VICUNA_13B),
    ("vila", "7b", "align", 7_062_902_784, 20_979_712),
    ("vila", "7b", "pretrain", 7_062_902_784, 20_979_712 + VICUNA),
    ("vila", "7b", "instruct", 7_062_902_784, 20_979_712 + VICUNA),
    ("vila", "13b-linear", "pretrain", CLIP_L_336 + VICUNA_13B + 5_248_000, 5_248_000 + VICUNA_13B),
    ("minigpt-4", "7b", "align", None, 3_149_824),
    ("minigpt-4", "7b", "tune", None, 3_149_824),
    ("minigpt-4", "13b", "tune", None, 3_937_280),
    ("minigpt-4", "llama-2-7b", "tune", EVA_G + VICUNA + 4 * 1408 * 4096 + 4096, 4 * 1408 * 4096 + 4096),
    ("blip-2", "flan-t5-xl", "generate", 3_942_446_592 - 39 * 1408, 106_737_152),
    ("blip-2", "flan-t5-xl", "caption", None, 106_737_152 + EVA_G + (26**2 - 16**2) * 1408),  # at 364 pixels
    ("blip-2", "flan-t5-xxl", "generate", 12_229_596_672 - 39 * 1408, 108_312_064),
    ("blip-2", "opt-6.7b", "generate", 7_752_738_304 - 39 * 1408, 108_312_064),
    ("instructblip", "vicuna-7b", "instruct", 7_913_209_856 - 39 * 1408, 188_833_792),
    ("idefics", "9b", "pretrain", 8_929_679_632, 1_434_519_568 + 125_961_984 + 2 * 2 * 4096),
    ("idefics", "9b", "instruct", 8_929_679_632, 8_929_679_632 - 2 * 1280),  # the tower's closing norm is not read
    ("idefics", "80b", "pretrain", 79_967_843_624, 13_925_422_120 + 125_961_984 + 2 * 2 * 8192),
    ("openflamingo", "3b", "train", None, 881_000_496 + RESAMPLER + 2 * 2048),
    ("openflamingo", "4b", "train", None, 897_744_928 + RESAMPLER + 2 * 2560),
    ("openflamingo", "9b", "train", None, 1_115_815_952 + RESAMPLER + 2 * 4096),
    ("llama-3.2-vision", "11b", "anneal", 10_642_941_475, 10_642_941_475 - LLAMA_3),
    ("llama-3.2-vision", "11b", "instruct", 10_670_220_835, 10_670_220_835 - LLAMA_3),
    ("llama-3.2-vision", "90b", "instruct", 88_593_355_323, 88_593_355_323 - LLAMA_3_70B),
    ("mono-internvl", "2b", "concept", None, MONO_EXPERTS + 14_246_912),
    ("mono-internvl", "2b", "semantic", None, MONO_EXPERTS + 14_246_912),
    ("mono-internvl", "2b", "align", None, MONO_EXPERTS + 14_246_912 + MONO_ATTENTION),
    ("mono-internvl", "2b", "instruct", 3_111_353_344, 3_111_353_344),
    ("cogvlm", "17b", "caption", None, COGVLM_ADDED),
    ("cogvlm", "17b", "ground_490", 17_639_685_376, COGVLM_ADDED),
    ("cogvlm", "17b", "chat", 17_639_685_376, 17_639_685_376),
    ("qwen-vl", None, "pretrain", None, QWEN_TOWER + QWEN_POOL),
    ("qwen-vl", None, "multitask", None, QWEN_TOWER + QWEN_POOL + QWEN),
    ("qwen-vl", None, "chat", None, QWEN_POOL + QWEN),  # the norm and the product behind the queries belong to the tower
]


@pytest.mark.parametrize(("name", "size", "stage", "whole", "trained"), EXACT)
def test_a_stage_trains_the_published_parts(name, size, stage, whole, trained):
    stage = recipe(name, size).stage(stage)
    with without_values():
        system = stage.system.build()
    learned = freeze(system, stage.train)
    assert num_parameters(learned.values()) == trained
    assert whole in (None, num_parameters(system))


@pytest.mark.parametrize(("name", "size"), EVERY_SIZE)
def test_every_published_size_could_start(name, size):
    """Every pattern of every stage matches, every parameter that is not new comes from an earlier stage."""
    check_recipe(recipe(name, size))
