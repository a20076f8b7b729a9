"""A sharded folder is read tensor by tensor: at no time does memory hold the model twice."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import tokenizer

from weft.checkpoints import llama
from weft.checkpoints.weight_files import write_weights
from weft.language_models.decoder import Decoder
from weft.systems.accounting import num_parameters, without_values

MEBIBYTE = 2**20
SHARD = 48 * MEBIBYTE
SLACK = 16 * MEBIBYTE  # the modules themselves, the tokenizer, the allocator's rounding

# The peak of the process's resident memory, mapped pages of files included, over what it was before.
MEASURE = """
import sys
from pathlib import Path
import weft.recipes.transformers_folder
from weft.recipes.loading import load_model

def kibibytes(field):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))

load_model(sys.argv[2])  # everything that a first call brings along
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kibibytes("VmRSS")
model = load_model(sys.argv[1])
print((kibibytes("VmHWM") - before) * 1024)
"""


def write_folder(folder: Path, config: Decoder.Config, shard_bytes: int) -> int:
    """A Llama folder of zeros; returns its bytes."""
    with without_values():
        model = config.build()
    tensors = llama.LLAMA.from_weft({name: torch.zeros(p.shape) for name, p in model.named_parameters()})
    folder.mkdir()
    write_weights(folder, tensors, shard_bytes)
    (folder / "config.json").write_text(json.dumps(llama.write_config(config)))
    tokenizer().save(folder)
    return 4 * num_parameters(model)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read where Linux tells it")
def test_a_sharded_folder_is_never_held_twice(tmp_path):
    small = replace(Decoder.Config.tiny(), vocabulary=512)
    large = replace(small, width=1024, num_layers=3, num_heads=8, num_key_value_heads=8, feed_forward_width=4096)
    write_folder(tmp_path / "small", small, SHARD)
    size = write_folder(tmp_path / "large", large, SHARD)
    assert size > 190 * MEBIBYTE and len(list((tmp_path / "large").glob("*.safetensors"))) > 3
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(tmp_path / "small")]
    peak = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert size < peak < size + SHARD + SLACK, f"{peak / size:.2f} times the model"
