"""`weft list` names every part with what it costs and where it comes from, on any terminal; `weft show` counts tables apart."""

import inspect
import io

import pytest
import torch
from rich.console import Console
from torch import nn

from weft.core.catalogue import parts
from weft.core.interfaces import ModalityEncoder
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


def test_a_size_is_listed_with_its_parameters_and_tokens(tables):
    rows = [line.split() for line in lines_of(tables, 120)]
    sizes = {(row[0], row[1]): row[2:5] for row in rows if len(row) > 4}
    assert sizes["clip_vision", "l-14-336"] == ["303,507,456", "576", "1,024"]
    assert sizes["whisper", "tiny"] == ["7,632,384", "1,500", "384"]
    for name, cls in parts("encoders").items():
        for size in cls.Config.sizes() if issubclass(cls, ModalityEncoder) else ():
            assert (name, size) in sizes


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
