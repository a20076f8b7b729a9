"""The catalogue finds what exists, by itself."""

import inspect

import pytest

from weft.core.catalogue import INTERFACES, parts, snake_case
from weft.core.errors import ConfigError
from weft.encoders.clip import ClipVision
from weft.projectors.pixel_shuffle import PixelShuffle


def test_a_part_is_found_by_the_name_of_its_class():
    assert parts("encoders")["clip_vision"] is ClipVision
    assert parts("projectors")["pixel_shuffle"] is PixelShuffle


@pytest.mark.parametrize("room", INTERFACES)
def test_every_part_of_a_room_is_concrete_and_builds_from_its_own_config(room):
    found = parts(room)
    assert found and list(found) == sorted(found)
    for cls in found.values():
        assert not inspect.isabstract(cls) and not inspect.isabstract(cls.Config)
        assert cls.__module__.startswith(f"weft.{room}.")


def test_an_unknown_room_offers_the_nearest():
    with pytest.raises(ConfigError, match="encoders"):
        parts("encoder")


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("MLP", "mlp"),
        ("MultimodalLM", "multimodal_lm"),
        ("ClipVision", "clip_vision"),
        ("Dinov2Vision", "dinov2_vision"),
        ("LDPv2", "ldpv2"),
    ],
)
def test_spelling(name, spelling):
    assert snake_case(name) == spelling
