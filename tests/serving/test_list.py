"""`weft list` names every part with what it costs and where it comes from, on any terminal; `weft show` counts tables apart."""

import dataclasses
import inspect
import io
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

from weft.core.catalogue import parts
from weft.core.interfaces import ModalityEncoder
from weft.encoders.clap_laion import ClapLaionWrapper
from weft.encoders.whisper import Whisper
from weft.projectors.qwen_resampler import QwenResampler
from weft.serving.part_tables import source, table
from weft.systems.accounting import num_parameters, num_table_values, without_values
from weft.systems.accounting import parts as parts_of

PARTS = {f"{room}/{name}": cls for room in ("encoders", "projectors") for name, cls in parts(room).items()}


@pytest.fixture(scope="module")
def tables():
    return [table(room) for room in ("encoders", "projectors")]


def lines_of(tables, columns: int) -> list[str]:
    console = Console(width=columns, file=io.StringIO())
    console.print(*tables)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("name", PARTS)
def test_every_part_names_its_paper(name):
    """The list's last column comes from the docstring's line."""
    cls = PARTS[name]
    assert "Source: " in (inspect.getdoc(cls) or ""), f"{name} has no line 'Source: name, arXiv:number'"
    assert source(cls)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_line_fits_the_terminal_and_no_name_or_number_breaks(tables, columns):
    lines = lines_of(tables, columns)
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    for name in PARTS:
        assert f"\n{name.partition('/')[2]} " in text
    for whole in ("s-14-registers", "1,136,485,376", "so400m-14-384", "2310.03744", "4,350,556,928"):
        assert whole in text


def test_a_size_is_listed_with_its_parameters_tables_omissions_and_tokens(tables):
    sizes = sizes_of(lines_of(tables, 120))
    assert sizes["clip_vision", "l-14-336"] == ["303,507,456", "0.8M", "576", "1,024"]
    assert sizes["whisper", "tiny"] == ["7,632,384", "0.6M", "29.6M", "1,500", "384"]
    assert sizes["siglip_vision", "so400m-14-384"] == ["428,225,600", "729", "1,152"]
    for name, cls in parts("encoders").items():
        for size in cls.Config.sizes() if issubclass(cls, ModalityEncoder) else ():
            assert (name, size) in sizes


def sizes_of(lines: list[str]) -> dict[tuple[str, str], list[str]]:
    """The numbers of every size, found under its part's name."""
    found, part = {}, ""
    for line in lines:
        if line.startswith("  "):
            size, *numbers = line.split()
            found[part, size] = numbers
        elif line.strip():
            part = line.split()[0]
    return found


def test_listing_loads_neither_a_models_library_nor_a_compiler():
    """Either takes longer to load than all the rest together; the second comes with a product on the meta device."""
    code = (
        "from weft.serving.part_tables import table; table('encoders'), table('projectors'); import sys; "
        "print('LOADED', [name for name in ('transformers', 'torch._dynamo', 'sympy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.rpartition("LOADED ")[2].strip() == "[]"


@pytest.mark.parametrize("changes", [{}, {"embedding_width": None}, {"head": "residual"}, {"depths": (2, 4), "window_size": 2}])
def test_a_wrapper_that_counts_itself_counts_what_it_builds(changes):
    pytest.importorskip("transformers")
    config = dataclasses.replace(ClapLaionWrapper.Config.tiny(), **changes)
    with without_values():
        built = config.build()
    assert config.num_parameters == num_parameters(built)
    assert ClapLaionWrapper.Config(embedding_width=None).num_parameters == 27_534_488, "the published audio tower"


def test_counting_without_values_changes_no_count():
    config = Whisper.Config.tiny()
    with without_values():
        empty = config.build()
    real = config.build()
    assert num_parameters(empty) == num_parameters(real) > 0
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not any(parameter.is_meta for parameter in config.build().parameters()), "it ends with the block"


def test_fixed_tables_are_counted_apart():
    with without_values():
        whisper, resampler = Whisper.Config.sizes()["tiny"].build(), QwenResampler.Config().build(1664, 4096)
        plain = nn.BatchNorm2d(8)
    assert num_table_values(whisper) == Whisper.Config.sizes()["tiny"].num_constants == 1500 * 384
    assert num_parameters(whisper) + num_table_values(whisper) == 8_208_384, "as published, with the table"
    assert num_table_values(resampler) == 16 * 16 * 4096
    assert num_table_values(plain) == 0
    with torch.device("meta"):
        (part,) = parts_of(nn.ModuleDict({"encoder": Whisper.Config.tiny().build()}))
    assert part.table_values == Whisper.Config.tiny().num_constants
