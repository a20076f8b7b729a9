"""One's own files in the place of a recipe's data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weft.core.errors import ConfigError, RunError, unknown_name
from weft.data.dataset import Dataset
from weft.data.datasets.captioned_recordings import CaptionedRecordings
from weft.data.datasets.joined import Joined
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.datasets.mmc4 import Mmc4
from weft.data.datasets.obelics import Obelics
from weft.data.datasets.subset import Subset
from weft.data.desk.documents import DeskDocuments
from weft.data.documents import Documents
from weft.training.stage import Recipe, Stage

FromFiles = LlavaJson.Config | Mmc4.Config | Obelics.Config


def with_data(recipe: Recipe, data: Sequence[str], images: Path | None) -> Recipe:
    """The recipe with other files in the place of its stages' data.

    A text is a file for every stage, `stage=file`, or `stage.part=file` for a part of the stage's mixture. Several files of a
    stage are mixed by their sizes. What a file is, its first record says; it is read with the options of what it replaces.

    Raises: ConfigError for a stage or a part that the recipe does not have, one set in whole and in part, or images without
    data.
    """
    if images is not None and not data:
        raise ConfigError("--images says where the pictures of --data are; give --data as well")
    folder = "" if images is None else str(images)
    everywhere = [Path(text) for text in data if "=" not in text]
    whole: dict[str, list[Path]] = {}
    parts: dict[str, dict[str, Path]] = {}
    for text in data:
        name, equals, file = text.partition("=")
        if equals:
            stage, part = stage_and_part(recipe, name)
            if part:
                parts.setdefault(stage, {})[part] = Path(file)
            else:
                whole.setdefault(stage, []).append(Path(file))
    if both := sorted(whole.keys() & parts.keys()):
        raise ConfigError(f"the data of stage {both[0]!r} is given as a whole and in part; leave one out")

    def fed(stage: Stage) -> Dataset.Config:
        if stage.name in parts:
            assert isinstance(stage.data, Mixture.Config)
            known = dict(stage.data.parts)
            for part, file in parts[stage.name].items():
                known[part] = replace(known[part], data=reader(file, folder, known[part].data))
            return replace(stage.data, parts=known)
        files = whole.get(stage.name, everywhere)
        return mixed([reader(file, folder, stage.data) for file in files]) if files else stage.data

    return replace(recipe, stages=tuple(replace(stage, data=fed(stage)) for stage in recipe.stages))


def check_files(recipe: Recipe) -> None:
    """Find a missing file before the first stage starts. Raises: RunError naming the stage and what to give."""
    for stage in recipe.stages:
        named = {f"{stage.name}.{part}": each.data for part, each in parts_of(stage).items()} or {stage.name: stage.data}
        for name, data in named.items():
            for read in single(data):
                if isinstance(read, FromFiles) and not files_of(read):
                    raise RunError(
                        f"stage {stage.name!r} reads {read.path}, which is not there; give --data {name}=FILE "
                        "with --images DIR, or --data FILE for every stage"
                    )


def stage_and_part(recipe: Recipe, name: str) -> tuple[str, str]:
    """Which stage, and which part of its mixture, a name means. Raises: ConfigError that offers what there is."""
    stage, dot, part = name.rpartition(".")
    if not dot or name in {s.name for s in recipe.stages}:
        return recipe.stage(name).name, ""
    parts = parts_of(recipe.stage(stage))
    if not parts:
        raise ConfigError(f"stage {stage!r} reads one data set, which has no part {part!r}; give --data {stage}=FILE")
    if part not in parts:
        raise unknown_name(f"part of the mixture of stage {stage!r}", part, parts)
    return stage, part


def parts_of(stage: Stage) -> Mapping[str, Mixture.Part]:
    """The parts of a stage's mixture; none where it reads a single data set."""
    return stage.data.parts if isinstance(stage.data, Mixture.Config) else {}


def mixed(data: Sequence[Dataset.Config]) -> Dataset.Config:
    """One data set, or several as one that shows each sample once an epoch."""
    if len(data) == 1:
        return data[0]
    return Mixture.Config(parts={str(i): Mixture.Part(data=each) for i, each in enumerate(data)}, weighting="sizes")


def reader(file: Path, images: str, replaced: Dataset.Config) -> FromFiles:
    """What reads a file, with the options of what is of its kind in the data that it takes the place of."""
    kind, known = kind_of(file), list(single(replaced))
    for alike in known:
        if isinstance(alike, kind):
            return replace(alike, path=str(file), images=images)
    made = kind(path=str(file), images=images)
    for other in known:
        if isinstance(made, Documents.Config) and isinstance(other, Documents.Config | DeskDocuments.Config):
            strict = other.strict if isinstance(other, Documents.Config) else made.strict
            return replace(made, interleaving=other.interleaving, strict=strict)
    return made


def single(data: Dataset.Config) -> Iterator[Dataset.Config]:
    """The data sets that one is made of."""
    if isinstance(data, Mixture.Config):
        for part in data.parts.values():
            yield from single(part.data)
    elif isinstance(data, Joined.Config | Subset.Config):
        yield from single(data.of)
    else:
        yield data


def skipping_broken(recipe: Recipe) -> Recipe:
    """The recipe with its files read in the lenient mode; what media are in them the trainer leaves out (`skip_broken`)."""

    def lenient(data: Dataset.Config) -> Dataset.Config:
        if isinstance(data, Mixture.Config):
            parts = {name: replace(part, data=lenient(part.data)) for name, part in data.parts.items()}
            return replace(data, parts=parts)
        if isinstance(data, Joined.Config | Subset.Config):
            return replace(data, of=lenient(data.of))
        return replace(data, strict=False) if isinstance(data, FromFiles | CaptionedRecordings.Config) else data

    def fed(stage: Stage) -> Stage:
        held_out = None if stage.validation is None else lenient(stage.validation)
        return replace(stage, data=lenient(stage.data), validation=held_out)

    return replace(recipe, stages=tuple(map(fed, recipe.stages)))


def files_of(data: FromFiles) -> list[Path]:
    """The files that a reader reads; none where they are missing."""
    place = Path(data.path)
    if place.is_file():
        return [place]
    if not isinstance(data, Documents.Config):
        return []
    return sorted(place.glob("*.jsonl") if place.is_dir() else place.parent.glob(place.name))


def kind_of(place: Path) -> type[FromFiles]:
    """The reader of a file, a folder or a pattern, by the fields of its first record; LLaVA's JSON for all but documents."""
    files = files_of(Obelics.Config(path=str(place)))
    fields: set[str] = set()
    if files:
        with files[0].open("rb") as lines:
            if lines.read(1) == b"{":  # a list of records may be one long line
                lines.seek(0)
                fields = _fields(lines.readline())
    return Mmc4.Config if "text_list" in fields else Obelics.Config if {"images", "texts"} <= fields else LlavaJson.Config


def _fields(written: bytes) -> set[str]:
    try:
        record = json.loads(written)
    except ValueError:
        return set()
    return set(record) if isinstance(record, dict) else set()
