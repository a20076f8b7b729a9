"""Sharded folders are read and written tensor by tensor: at no time does memory hold the model twice."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from weft.checkpoints import blip_2, blip_2_vision, clip, internlm2, llava_original
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.weight_files import write_weights
from weft.data.tokenizers import Tokenizer
from weft.encoders.clip import ClipVision
from weft.language_models.decoder import Decoder
from weft.language_models.opt import Opt
from weft.projectors.mlp import MLP
from weft.projectors.qformer import QFormer
from weft.systems.accounting import num_parameters, without_values
from weft.systems.multimodal_lm import MultimodalSystem, Stream

MEBIBYTE = 2**20
SHARD = 16 * MEBIBYTE
SLACK = 8 * MEBIBYTE  # the modules themselves, the tokenizer, the allocator's rounding

# By case, what reading and converting add to the process's resident memory at their peaks, mapped pages of files included.
MEASURE = """
import gc, json, sys
from pathlib import Path
import weft.recipes.transformers_folder
from weft.recipes.converting import convert
from weft.recipes.loading import load_model

def kibibytes(field):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))

def peak_of(work, *arguments):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kibibytes("VmRSS")
    work(*arguments)
    return (kibibytes("VmHWM") - before) * 1024

def read(source, parts, target, to, shard):
    load_model(source, parts=parts)

def write(source, parts, target, to, shard):
    convert(source, target, to, parts=parts, shard_bytes=shard)

peaks = {}
for name, (small, large) in json.loads(sys.argv[1]).items():
    for work in (read, write):  # everything that a first call brings along
        work(*small)
    peaks[name] = [peak_of(work, *large) for work in (read, write)]
print(json.dumps(peaks))
"""


class Case(NamedTuple):
    """A published folder to be written at two sizes, the encoder's own where the layout leaves it out, and where it goes."""

    layout: CheckpointFormat
    small: Any
    large: Any
    to: str = "transformers"
    tower: CheckpointFormat | None = None


TOKENIZER = Tokenizer.train(["which colour is it?"] * 4, 300, ("<pad>", "<s>", "</s>", "<|im_end|>"))
WIDE = {"width": 1024, "num_heads": 8, "feed_forward_width": 1024, "num_layers": 3}
SMALL = replace(Decoder.Config.tiny(), vocabulary=TOKENIZER.vocabulary)
LARGE = replace(SMALL, **WIDE, num_key_value_heads=8)


def blip_2_system(**sizes: int) -> MultimodalSystem.Config:
    """The tower in `transformers` layout has one matrix for query, key and value, here half of the whole model."""
    encoder = replace(blip_2_vision.tiny_tower(1e-6), **sizes)
    stream = Stream.Config(encoder=encoder, projector=QFormer.Config.tiny())
    return blip_2.system_of(replace(Opt.Config.tiny(), vocabulary=TOKENIZER.vocabulary), stream)


def llava_system(decoder: Decoder.Config, **sizes: int) -> MultimodalSystem.Config:
    encoder = replace(ClipVision.Config.tiny(), feature_layer=-2, **sizes)
    return blip_2.system_of(decoder, Stream.Config(encoder=encoder, projector=MLP.Config(depth=2)))


CASES = {
    "internlm2, query, key and value in one": Case(internlm2.FORMAT, SMALL, LARGE),
    "blip-2, fused on both sides": Case(blip_2.BLIP_2, blip_2_system(), blip_2_system(**WIDE)),
    "llava, its tower in another folder": Case(
        llava_original.FORMAT, llava_system(SMALL), llava_system(LARGE, **WIDE | {"num_layers": 1}), "weft", clip.CLIP_VISION
    ),
}


def write_folder(folder: Path, layout: CheckpointFormat, config: Any, left_out: str | None = None) -> int:
    """A published folder of ones, without the keys that hold `left_out`; returns the model's bytes."""
    with without_values():
        model = config.build()
    state = {name: torch.ones(p.shape) for name, p in model.named_parameters()}
    tensors = layout.key_map(config).from_weft(state)
    folder.mkdir()
    write_weights(folder, {key: value for key, value in tensors.items() if left_out is None or left_out not in key}, SHARD)
    (folder / "config.json").write_text(json.dumps(layout.write_config(config)))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 32, "width": 32}, "do_center_crop": False}))
    TOKENIZER.save(folder)
    return 4 * num_parameters(model)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int, int]]:
    """By case the model's bytes and the peaks of reading and converting it, in a fresh process."""
    root = tmp_path_factory.mktemp("folders")
    sizes, told = {}, {}
    for number, (name, case) in enumerate(CASES.items()):
        told[name] = []
        for config in (case.small, case.large):
            folder, parts = root / f"{number}-{len(told[name])}", {}
            sizes[name] = write_folder(folder, case.layout, config, "vision_tower" if case.tower else None)
            if case.tower:
                parts["streams.image.encoder"] = f"{folder}-tower"
                write_folder(Path(f"{folder}-tower"), case.tower, config.streams["image"].encoder)
            told[name].append((str(folder), parts, f"{folder}-written", case.to, SHARD))
        assert len(list(folder.glob("*.safetensors"))) > 3
    arguments = [sys.executable, "-W", "ignore", "-c", MEASURE, json.dumps(told)]
    at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system, whatever came before
    peaks = json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, env=at_once).stdout)
    shutil.rmtree(root)
    return {name: (sizes[name], *peaks[name]) for name in CASES}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read where Linux tells it")
@pytest.mark.parametrize("name", CASES)
def test_a_sharded_folder_is_never_held_twice(measured, name):
    size, *peaks = measured[name]
    assert size > 60 * MEBIBYTE
    for work, peak in zip(("reading", "converting"), peaks, strict=True):
        assert size < peak < size + SHARD + SLACK, f"{work} takes {peak / size:.2f} times the model"
