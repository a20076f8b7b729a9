"""Weight files: safetensors, single or sharded, read lazily and written whole; torch files only if they hold bare tensors."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weft.core.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
TRAINED_ONLY = ("checkpoint.safetensors", "checkpoint.pt", "mm_projector.safetensors", "mm_projector.bin")
"""What OpenFlamingo and LLaVA's first stage call the file of what they trained of a larger model."""
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CLAP_MICROSOFT_WEIGHTS = "CLAP_weights_2022.pth"
SHARD_BYTES = 5 * 1000**3


class WeightFiles(Mapping[str, Tensor]):
    """The tensors of one or several weight files by name, each read when it is asked for.

    `path` is a `.safetensors`, `.bin`, `.pt` or `.pth` file, an `.index.json`, or a folder with one under its published name.

    Raises: CheckpointError for a file that is missing, cut short, of another format, or that holds more than tensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _weights_in(Path(path))
        self._opened: dict[Path, Any] = {}
        self._file: dict[str, Path] = {}
        if self.path.name.endswith(".index.json"):
            self._read_index()
        else:
            self._file = dict.fromkeys(self._keys_of(self.path), self.path)

    def __getitem__(self, key: str) -> Tensor:
        path = self._file[key]
        file = self._opened[path]
        # a tensor of its own opening: with it go the pages of the file that it read, which one handle for all would keep
        return file[key] if isinstance(file, dict) else _open_safetensors(path).get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        file = self._opened[self._file[key]]
        return tuple(file[key].shape) if isinstance(file, dict) else tuple(file.get_slice(key).get_shape())

    def _read_index(self) -> None:
        listed = read_json(self.path).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise CheckpointError(f"{self.path} has no weight_map from tensor names to files; download it again")
        if outside := sorted({name for name in listed.values() if Path(name).name != name}):
            raise CheckpointError(f"{self.path} names files outside its folder ({', '.join(outside)}); refused")
        held = {name: set(self._keys_of(self.path.parent / name)) for name in sorted(set(listed.values()))}
        wrong = [f"{key} is not in {name}" for key, name in listed.items() if key not in held[name]]
        wrong += [f"{key} of {name} is not listed" for name, keys in held.items() for key in sorted(keys - set(listed))]
        if wrong:
            raise CheckpointError(f"{self.path} disagrees with its files: {'; '.join(wrong)}; download all of them again")
        self._file = {key: self.path.parent / name for key, name in listed.items()}

    def _keys_of(self, path: Path) -> list[str]:
        file = _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)
        self._opened[path] = file
        return list(file.keys())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises: CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def weights(module: nn.Module) -> dict[str, Tensor]:
    """What a file must hold of a module: parameters and persistent buffers, a tied one once, under its first name."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if first.setdefault(id(tensor), name) == name}


def write_weights(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write `model.safetensors`, or shards of at most `shard_bytes` with their index; each file is whole or not there.

    `tensors` may make what they give (an object with `num_bytes(key)` is asked for sizes); one shard's are held at a time.

    Raises: CheckpointError where the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards = _shards(tensors, shard_bytes)
    single = len(shards) == 1
    names = [WEIGHTS if single else f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    try:
        for name, keys in zip(names, shards, strict=True):
            partial = folder / f".partial-{name}"
            try:
                save_file({key: _own(tensors[key]) for key in keys}, partial, metadata={"format": "pt"})
                os.replace(partial, folder / name)
            finally:
                partial.unlink(missing_ok=True)
        if not single:
            _write_index(folder, names, shards, tensors)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} could not be written: {error}; free some space or choose another folder") from error


def _weights_in(path: Path) -> Path:
    if path.is_dir():
        names = (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX, *OPEN_CLIP_WEIGHTS, CLAP_MICROSOFT_WEIGHTS, *TRAINED_ONLY)
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path} holds no weights; expected {WEIGHTS}, {INDEX} or {TORCH_WEIGHTS}")
        return found[0]
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    return path


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; download all files of the checkpoint")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            head = file.read(4)
        if head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
            raise CheckpointError(
                f"{path} is a pickle under the name of a safetensors file; it could run code, refused"
            ) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is cut short or no safetensors file ({reason}); copy or download it again") from None


def _open_torch(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; download all files of the checkpoint")
    if path.suffix not in (".bin", ".pt", ".pth"):
        raise CheckpointError(f"{path} is no weight file; Weft reads .safetensors, .bin, .pt and .pth")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says about odd pickles is said below, in one line
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # the unpickler raises whatever a damaged or hostile file makes it meet
        if "Unsupported" in str(error) or "WeightsUnpickler" in str(error) or "weights_only" in str(error).lower():
            raise CheckpointError(
                f"{path} holds Python objects besides tensors, which could run code; refused, convert it to safetensors"
            ) from None
        raise CheckpointError(
            f"{path} is cut short or no torch file ({type(error).__name__}); copy or download it again"
        ) from None
    for wrapper in ("state_dict", "model_state_dict", "model"):  # what training scripts and LAVIS put around the table
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} is not a table of tensors by name; export the model's state_dict alone")
    return state


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for key in tensors:
        size = _num_bytes(tensors, key)
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards


def _num_bytes(tensors: Mapping[str, Tensor], key: str) -> int:
    known = getattr(tensors, "num_bytes", None)
    return int(known(key)) if known is not None else tensors[key].nbytes


def _own(tensor: Tensor) -> Tensor:
    """The tensor as safetensors wants it: dense, on the CPU, and not a piece of a larger storage."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _write_index(folder: Path, names: list[str], shards: list[list[str]], tensors: Mapping[str, Tensor]) -> None:
    size = sum(_num_bytes(tensors, key) for key in tensors)
    listed = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
    index = {"metadata": {"total_size": size}, "weight_map": listed}
    partial = folder / f".partial-{INDEX}"
    partial.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / INDEX)
