"""`weft show PART`: parameters, fixed tables and omitted heads apart, tokens per medium, papers; every mistake is one line."""

import dataclasses

import pytest
from test_cli import fails, says

from weft.core import config
from weft.core.catalogue import parts
from weft.encoders.siglip import SiglipVision
from weft.serving.chosen_part import ROOMS
from weft.serving.part_costs import costs_of, fitting, sizes_of
from weft.serving.part_tables import source

# hf_wrapper is built by its library, which takes longer to load than all others to build
PARTS = [f"{room}/{name}" for room in ROOMS for name in parts(room) if name != "hf_wrapper"]


def facts(shown: str) -> dict[str, dict[str, str]]:
    """What is told of every size, by its title."""
    found: dict[str, dict[str, str]] = {}
    size = ""
    for line in shown.splitlines():
        if line.startswith(("├── ", "└── ")):
            title, told = line[4:16].strip(), line[16:].strip()
            found.setdefault(size, {})[title] = told
        elif not line.startswith(" "):
            size = line
    return found


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_shown_with_its_counts_and_papers(name, capsys):
    room, _, part = name.partition("/")
    cls = parts(room)[part]
    size, published = next(iter(sizes_of(cls).items()))
    shown = says(capsys, "show", name, *(("--size", size) if size != "default" else ()))
    assert shown.startswith(f"{part}, {ROOMS[room]}, ") and all(paper in shown for paper in source(cls).split())
    told = facts(shown)[size]
    assert list(told)[:5] == ["parameters", "fixed tables", "omitted", "takes", "gives"]
    assert told["parameters"] == costs_of(fitting(published)).told


def test_tables_and_omitted_heads_stand_apart_for_every_size(capsys):
    whisper = facts(says(capsys, "show", "whisper"))
    assert list(whisper) == ["tiny", "base", "small", "medium", "large", "large-v2", "large-v3"]
    assert whisper["tiny"] == {
        "parameters": "7,632,384",
        "fixed tables": "576,000 values",  # 1,500 sinusoids, 384 wide
        "omitted": "decoder (29,552,256)",
        "takes": "audio units of 80 x 3,000",
        "gives": "1x1500 features: 1,500 tokens per medium, 384 wide",
    }
    assert facts(says(capsys, "show", "clip_vision"))["l-14-336"]["omitted"] == "projection (786,432)"  # 1,024 to 768
    siglip = facts(says(capsys, "show", "siglip_vision", "--size", "so400m-14-384"))
    assert siglip.keys() == {"so400m-14-384"}
    assert siglip["so400m-14-384"]["gives"] == "27x27 features: 729 tokens per medium, 1,152 wide"
    assert (
        facts(says(capsys, "show", "siglip_text", "--size", "b-16-224"))["b-16-224"]["gives"] == "one vector a text, 768 wide"
    )


def test_a_projector_is_shown_between_the_widths_of_the_list(capsys):
    told = facts(says(capsys, "show", "perceiver"))
    assert list(told) == ["openflamingo", "idefics"]
    assert told["openflamingo"]["takes"] == "24x24 features, 1,024 wide, for example"
    assert told["openflamingo"]["gives"] == "64 tokens per medium, 4,096 wide"


def test_a_single_size_shows_what_is_inside_and_what_is_tied(capsys):
    shown = says(capsys, "show", "opt", "--size", "opt-350m")
    assert "24 x PostNormBlock  302,309,376" in shown and "Linear  tied to the above" in shown
    assert "All sizes: opt-125m, opt-350m" in shown
    assert "inside" not in says(capsys, "show", "siglip_vision")


def test_a_recipes_name_wins_and_the_part_has_its_rooms_name(capsys):
    assert "stages" in says(capsys, "show", "hubert", "--tiny")
    assert says(capsys, "show", "encoders/hubert").startswith("hubert, encoder")
    assert says(capsys, "show", "Q-Former") == says(capsys, "show", "projectors/q_former")


def test_fields_are_set_and_the_config_is_saved(capsys):
    arguments = ("show", "siglip_vision", "--size", "b-16-224", "--set", "image_size=448", "--json")
    assert config.loads(says(capsys, *arguments)) == dataclasses.replace(
        SiglipVision.Config.sizes()["b-16-224"], image_size=448
    )
    wider = facts(says(capsys, "show", "siglip_vision", "--set", "image_size=448"))
    assert wider["b-16-224"]["gives"].startswith("28x28 features: 784 tokens")


def test_the_list_sends_the_reader_to_a_command_that_answers(capsys):
    assert "`weft show NAME`" in says(capsys, "list", "encoders")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("siglip_vison",), "unknown recipe or part 'siglip_vison'; did you mean 'siglip_vision'"),
        (("encoders/hubrt",), "did you mean 'encoders/hubert'"),
        (("encoders/mlp",), "unknown recipe or part 'encoders/mlp'"),
        (("siglip_vision", "--size", "so400m"), "known: b-16-224, l-16-256, so400m-14-384"),
        (("mlp", "--size", "large"), "mlp has a single size; leave --size out"),
        (("mlp", "--tiny"), "--tiny is a size of recipes"),
        (("mlp", "--set", "dept=3"), "did you mean depth"),
        (("whisper", "--json"), "name one with --size: tiny, base"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(capsys, arguments, line):
    assert line in fails(capsys, "show", *arguments)
