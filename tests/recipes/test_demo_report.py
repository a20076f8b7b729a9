"""The report names what the demo's speed depends on."""

import pytest
import torch

from weft.recipes.demo_report import hardware

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the report names the GPU here")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("model name\t: Fast 9000\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n", "bf16 by AMX and AVX512-BF16"),
        ("model name\t: Fast 9000\nflags\t\t: fpu avx512f avx512_bf16\n", "bf16 by AVX512-BF16"),
        ("model name\t: Fast 9000\nflags\t\t: fpu avx2\n", "no bf16 instructions"),
        ("Features\t: fp asimd bf16 i8mm\n", "bf16 by Arm BF16"),
        (None, "bf16 instructions unknown"),
    ],
)
def test_the_report_says_whether_the_processor_multiplies_in_bf16(tmp_path, told, said):
    cpuinfo = tmp_path / "cpuinfo"
    if told is not None:
        cpuinfo.write_text(told * 2)  # Linux writes one block a core
    line = hardware(cpuinfo)
    parts = line.split(", ")
    assert said in parts
    assert ("Fast 9000" in parts) == ("model name" in (told or ""))
    assert f"torch {torch.__version__}" in parts
    assert any(part in parts for part in (f"{torch.get_num_threads()} threads", "1 thread"))
