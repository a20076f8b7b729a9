"""Random reference models, and the way between them and Weft through the real key maps."""

import json
import logging
from pathlib import Path
from unittest import TestCase

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weft.checkpoints.checkpoint_format import format_of
from weft.checkpoints.weight_files import weights


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which every part of a model matters: unit-variance matrices, norms and biases away from one and zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2:
            scale = 0.5 if "embedding" in name and "patch" not in name else parameter[0].numel() ** -0.5
            parameter.data = noise * scale
        else:
            parameter.data = noise * 0.2 + ("norm" in name.lower() and name.endswith("weight"))
    return model.eval()


def to_weft(reference, folder: Path, rename=lambda key: key) -> nn.Module:
    """The Weft model of a reference: saved by its library, read by Weft; `rename` makes another spelling of the keys."""
    reference.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    layout = format_of(saved, str(folder))
    config = layout.read_config(saved)
    model = config.build().eval()
    state = {rename(key): value for key, value in load_file(folder / "model.safetensors").items()}
    layout.key_map(config).load(model, state, str(folder))
    return model


def to_transformers(model: nn.Module, cls, folder: Path):
    """A Weft model written in the reference's layout and loaded by its library, which must not say a word about keys."""
    layout = format_of({"model_type": cls.config_class.model_type}, "test")
    state = layout.key_map(model.config).from_weft(weights(model))
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(layout.write_config(model.config)))
    loaded, info = cls.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(info.values()), info
    return loaded.eval()


def opened_silently(folder: Path, cls):
    """A written folder in its library, which must not say a word: neither of keys in its report nor anything in its log."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_says_something_of_the_folder)
    try:
        with TestCase().assertNoLogs("transformers", "WARNING"):
            loaded, info = cls.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    finally:
        logger.removeFilter(_says_something_of_the_folder)
    assert not any(info.values()), info
    return loaded.eval()


def _says_something_of_the_folder(record: logging.LogRecord) -> bool:
    """Every T5 with a head of its own is told so by 5.x, which reads its config as tied whatever that says."""
    return "lm_head.weight, but both are present in the checkpoints" not in record.getMessage()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal within 1e-5 of the largest reference value (or of 1): float32 with a few layers differs by rounding only."""
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max().item()
    assert difference <= 1e-5 * max(1.0, theirs.abs().max().item()), difference
