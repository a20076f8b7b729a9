"""Recipes are found by existing, under names that people write, with the nearest names offered."""

import re

import pytest

from weft.core import config
from weft.core.errors import ConfigError
from weft.recipes.catalogue import public_name, recipe, recipe_names, sizes_of, tiny_names, tiny_recipe

EVERY_SIZE = [(name, size) for name in recipe_names() for size in sizes_of(name)]


def test_the_published_systems_are_there():
    assert {"clip", "siglip", "llava", "llava-1.5"} <= set(recipe_names())
    assert {"clip", "siglip", "llava", "llava-1.5"} <= set(tiny_names())


@pytest.mark.parametrize(("stem", "name"), [("llava_1_5", "llava-1.5"), ("blip_2", "blip-2"), ("clip", "clip"), ("a_b", "a-b")])
def test_names_are_written_as_papers_write_them(stem, name):
    assert public_name(stem) == name


@pytest.mark.parametrize("spelling", ["llava-1.5", "llava_1_5", "LLaVA-1.5"])
def test_a_recipe_is_found_under_each_spelling(spelling):
    assert recipe(spelling, "7b").name == "llava-1.5"


@pytest.mark.parametrize(("name", "size"), EVERY_SIZE)
def test_every_size_builds_and_survives_being_saved(name, size):
    made = recipe(name, size)
    assert (made.name, made.size) == (name, size)
    assert made.paper
    assert config.loads(config.dumps(made)) == made


def test_the_first_choice_is_a_published_size():
    for name in recipe_names():
        assert recipe(name).size in (*sizes_of(name), "")


def test_an_unknown_recipe_offers_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown recipe 'lava'.*'llava'"):
        recipe("lava")


def test_an_unknown_size_offers_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown size of llava '7'.*'7b'"):
        recipe("llava", "7")


def test_a_recipe_of_one_size_says_so():
    single = [name for name in recipe_names() if not sizes_of(name)]
    for name in single:
        with pytest.raises(ConfigError, match="single size"):
            recipe(name, "7b")
    assert all(sizes_of(name) for name in recipe_names() if name not in single)


def without_block_numbers(patterns):
    """A small tower's last block has another number."""
    return [re.sub(r"\.blocks\.\d+\.", ".blocks.N.", pattern) for pattern in patterns]


@pytest.mark.parametrize("name", tiny_names())
def test_tiny_keeps_the_published_stages(name):
    small, published = tiny_recipe(name), recipe(name)
    assert [stage.name for stage in small.stages] == [stage.name for stage in published.stages]
    for ours, theirs in zip(small.stages, published.stages, strict=True):
        assert without_block_numbers(ours.train) == without_block_numbers(theirs.train)
        same = ("takes", "new", "objective", "title", "packing")
        assert [getattr(ours, field) for field in same] == [getattr(theirs, field) for field in same]
        assert ours.processor.template == theirs.processor.template
        assert (ours.optimizer.name, ours.optimizer.betas) == (theirs.optimizer.name, theirs.optimizer.betas)
        assert ours.schedule.decay == theirs.schedule.decay
