"""Weight files: what is whole and safe is read, everything else is one clear error."""

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weft.checkpoints.weight_files import INDEX, WEIGHTS, WeightFiles, weights, write_weights
from weft.core.errors import CheckpointError


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(8, 4, generator=draw) for i in range(5)} | {"half": torch.ones(3).bfloat16()}


def same(files: WeightFiles, expected: dict[str, torch.Tensor]) -> bool:
    return set(files) == set(expected) and all(torch.equal(files[key], expected[key]) for key in expected)


def test_a_single_file_is_read_as_it_was_written(tmp_path):
    write_weights(tmp_path, tensors())
    assert os.listdir(tmp_path) == [WEIGHTS]
    for path in (tmp_path, tmp_path / WEIGHTS):
        assert same(WeightFiles(path), tensors())
    assert WeightFiles(tmp_path).shape("layer.0.weight") == (8, 4)


def test_a_large_model_is_written_in_shards_with_an_index(tmp_path):
    write_weights(tmp_path, tensors(), shard_bytes=300)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 8 * 4 * 4 + 3 * 2
    assert set(os.listdir(tmp_path)) == {INDEX, *index["weight_map"].values()}
    assert sorted(set(index["weight_map"].values())) == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    assert same(WeightFiles(tmp_path), tensors())


def test_views_and_tied_tensors_are_written_once_and_small(tmp_path):
    whole = torch.arange(1_000_000.0)
    write_weights(tmp_path, {"part": whole[:4], "other": whole[4:8]})
    assert (tmp_path / WEIGHTS).stat().st_size < 1000
    embedding, head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
    head.weight = embedding.weight
    assert list(weights(nn.Sequential(embedding, head))) == ["0.weight"]


def test_torch_files_with_bare_tensors_are_read(tmp_path):
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    assert same(WeightFiles(tmp_path), tensors())
    torch.save({"state_dict": tensors()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(WeightFiles(tmp_path / "old.pt"), tensors())
    torch.save({"model": tensors()}, tmp_path / "lavis.pth")
    assert same(WeightFiles(tmp_path / "lavis.pth"), tensors())


class Hostile:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, name, writer):
    trap = {"weight": Hostile(str(tmp_path / "sprung"))}
    with (tmp_path / name).open("wb") as file:
        (pickle.dump if writer == "pickle" else torch.save)(trap, file)
    with pytest.raises(CheckpointError, match="refused") as caught:
        WeightFiles(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_a_torch_file_with_other_things_than_tensors_is_refused(tmp_path):
    torch.save({"weight": torch.ones(2), "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not a table of tensors"):
        WeightFiles(tmp_path / "model.pt")


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_a_file_cut_short_is_one_clear_error(tmp_path, name, kept):
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(tensors(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="cut short") as caught:
        WeightFiles(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_header_that_lies_about_its_length_is_refused(tmp_path):
    path = tmp_path / WEIGHTS
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(CheckpointError, match="cut short or no safetensors file"):
        WeightFiles(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index["weight_map"].update(ghost="model-00001-of-00003.safetensors"), "ghost is not in model-00001"),
        (lambda index: index["weight_map"].pop("half"), "half of model-00003-of-00003.safetensors is not listed"),
        (lambda index: index["weight_map"].update(half="model-00009-of-00003.safetensors"), "does not exist"),
        (lambda index: index["weight_map"].update(half="../other.safetensors"), "outside its folder"),
        (lambda index: index.pop("weight_map"), "no weight_map"),
    ],
    ids=["ghost key", "unlisted key", "missing shard", "path outside", "no map"],
)
def test_a_wrong_index_is_one_clear_error(tmp_path, change, said):
    write_weights(tmp_path, tensors(), shard_bytes=300)
    index = json.loads((tmp_path / INDEX).read_text())
    change(index)
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=said):
        WeightFiles(tmp_path)


def test_missing_files_and_other_formats_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        WeightFiles(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        WeightFiles(tmp_path / "model.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="no weight file"):
        WeightFiles(tmp_path / "model.gguf")


def test_a_refusing_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_weights(tmp_path, tensors())
    assert os.listdir(tmp_path) == []
