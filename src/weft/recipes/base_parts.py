"""Parts of a published model that its own folder leaves out, read from the folders that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from weft.checkpoints.checkpoint_format import format_of
from weft.checkpoints.delta_files import DeltaFiles, is_delta
from weft.checkpoints.joined_files import JoinedFiles
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.weight_files import WeightFiles, read_json
from weft.core.errors import CheckpointError, ConfigError, unknown_name
from weft.core.interfaces import LanguageModel
from weft.recipes.encoder_loading import PublishedEncoder
from weft.recipes.model_folders import find_model_folder

TOKENIZER, LANGUAGE_MODEL, ENCODER, BASE = "tokenizer", "language_model", "streams.image.encoder", "base"
PARTS = (TOKENIZER, LANGUAGE_MODEL, ENCODER)
_TOKENIZER_FILES = ("tokenizer.", "spiece.", "qwen.tiktoken")


class BasePart(NamedTuple):
    """A part in a folder of its own: its config, its tensors and the table from their names to the part's."""

    folder: Path
    config: Any
    key_map: KeyMap
    tensors: Mapping[str, Tensor]
    where: str

    def at(self, name: str) -> BasePart:
        """The same as the part `name` of a system."""
        return self._replace(key_map=self.key_map.under(target=f"{name}."))


class BaseParts:
    """The folders that are given for parts, by the part's name."""

    def __init__(self, folders: Mapping[str, str | Path], known: Sequence[str] = PARTS) -> None:
        for name in folders:
            if name not in known:
                raise unknown_name("part", name, known)
        self._folders = dict(folders)

    def tokenizer_in(self, folder: Path) -> Path:
        """Where the tokenizer is: in the folder given for it, in the language model's, else in the model's own.

        Raises: ConfigError where that holds none.
        """
        given = self._folders.get(TOKENIZER) or self._folders.get(LANGUAGE_MODEL)
        if given is None and not any(path.name.startswith(_TOKENIZER_FILES) for path in folder.iterdir()):
            raise _absent(TOKENIZER, folder)
        if given is None:
            return folder
        return Path(given) if Path(given).is_dir() else find_model_folder(given)

    def language_model(self) -> BasePart | None:
        """The language model. Raises: CheckpointError where its folder holds none, or a delta of one."""
        return self._language_model_for(LANGUAGE_MODEL)

    def base(self) -> BasePart | None:
        """The language model that a delta was taken from. Raises: CheckpointError where its folder holds none."""
        return self._language_model_for(BASE)

    def _language_model_for(self, name: str) -> BasePart | None:
        if name not in self._folders:
            return None
        folder = find_model_folder(self._folders[name])
        saved = read_json(folder / "config.json")
        layout = format_of(saved, str(folder / "config.json"))
        config = layout.read_config(saved)
        if not isinstance(config, LanguageModel.Config):
            raise CheckpointError(f"{folder} holds a {layout.name}, no language model alone")
        files = WeightFiles(folder)
        refuse_delta(files, name)
        return BasePart(folder, config, layout.key_map(config), files, str(files.path))

    def encoder(self) -> BasePart | None:
        """The image tower. Raises: CheckpointError where its folder holds none."""
        if ENCODER not in self._folders:
            return None
        published = PublishedEncoder.in_folder(find_model_folder(self._folders[ENCODER]))
        files, tower, _ = published.tensors()
        return BasePart(published.folder, published.config, published.layout.key_map(published.config), tower, str(files.path))


def needed(part: BasePart | None, name: str, folder: Path) -> BasePart:
    """A part that a folder cannot do without. Raises: ConfigError that says how to give it."""
    if part is None:
        raise _absent(name, folder)
    return part


def _absent(name: str, folder: Path) -> ConfigError:
    way = f"--from {name}=PATH, or parts={{{name!r}: PATH}}"
    return ConfigError(f"{folder} does not hold its {name}; give the folder that does: {way}")


def _filled(table: KeyMap, tensors: Mapping[str, Tensor]) -> set[str]:
    """The parameters that some tensors become."""
    return {name for step in table.plan(tensors).steps for name in step.outputs}


def refuse_delta(files: WeightFiles, name: str) -> None:
    """Raises: CheckpointError where the files that are given as a part hold a delta of it."""
    if is_delta(files):
        raise CheckpointError(
            f"{files.path.parent}, given as {name}, holds a delta, not whole weights; make them first: weft convert "
            f"{files.path.parent} WHOLE --from {BASE}=PATH, and give WHOLE"
        )


def whole(files: WeightFiles, base: BasePart | None) -> WeightFiles | DeltaFiles:
    """A folder's own tensors; those of a delta with its base added.

    Raises: ConfigError for a delta without a base, and for a base of what is no delta; CheckpointError for another's base.
    """
    folder, delta = files.path.parent, is_delta(files)
    if base is None:
        if delta:
            raise ConfigError(
                f"{folder} holds a delta, the difference from another model's weights; give the folder of that model (LLaMA-1 "
                f"for LLaVA v1, in transformers layout): --from {BASE}=PATH, or parts={{{BASE!r}: PATH}}"
            )
        return files
    if not delta:
        raise ConfigError(f"{folder} holds whole weights, no delta; leave out --from {BASE} or parts={{{BASE!r}: ..}}")
    assert isinstance(base.tensors, WeightFiles)
    return DeltaFiles(files, base.tensors, base.key_map)


class Joined(NamedTuple):
    """One table over a model's own files and those of its parts."""

    key_map: KeyMap
    tensors: Mapping[str, Tensor]
    where: str


def joined(own: KeyMap, files: WeightFiles | DeltaFiles, parts: Mapping[str, BasePart], wanted: Sequence[str] = ()) -> Joined:
    """A model's own files and those of its parts, whose tables lead to the model too; `wanted` are parts that it has.

    A part's keys are named `PART: KEY`, so that one error can list what is wrong with any of the files.

    Raises: ConfigError for a part that the model's own files hold too, and for one that is nowhere.
    """
    held = _filled(own, files) if parts or wanted else set()
    for name in wanted:
        if name not in parts and not any(each.startswith(f"{name}.") for each in held):
            raise _absent(name, files.path.parent)
    if not parts:
        return Joined(own, files, str(files.path))
    for name, part in parts.items():
        if held & _filled(part.key_map, part.tensors):
            raise ConfigError(f"{files.path} holds its {name} itself; leave out --from {name} or parts={{{name!r}: ..}}")
    maps = [part.key_map.under(source=f"{name}: ") for name, part in parts.items()]
    tables = {"": files, **{f"{name}: ": part.tensors for name, part in parts.items()}}
    where = ", ".join([str(files.path), *(f"{name} in {part.where}" for name, part in parts.items())])
    return Joined(KeyMap.join(own, *maps), JoinedFiles(tables), where)
