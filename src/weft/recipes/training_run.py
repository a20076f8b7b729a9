"""A recipe on one's own data: which file feeds which stage, which tokenizer, which weights to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weft.core.errors import ConfigError, RunError
from weft.data.dataset import Dataset
from weft.data.datasets.llava_json import LlavaJson
from weft.data.tokenizers import Tokenizer
from weft.recipes.catalogue import own_tokenizer
from weft.recipes.loading import find_model_folder
from weft.recipes.shrinking import tiny_tokenizer
from weft.recipes.starting_weights import starting_weights
from weft.training.stage import Recipe
from weft.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What `weft train` is told.

    `data` holds files for every stage, or `stage=file` for one; `images` is the folder that their pictures are named from.
    `start` holds `part=path` for published weights. The tokenizer comes from `tokenizer`, or from the language model or text
    tower that `start` names; a tiny recipe trains its own.
    """

    recipe: Recipe
    data: tuple[str, ...] = ()
    images: Path | None = None
    tokenizer: Path | None = None
    start: tuple[str, ...] = ()
    tiny: bool = False

    def trainer(self, folder: Path, **options: Any) -> Trainer:
        """The trainer of this run; `options` are the trainer's own.

        Raises: ConfigError for data, tokenizer or weights that are missing or do not fit together.
        """
        recipe = with_data(self.recipe, self.data, self.images)
        check_files(recipe)
        initialise = starting_weights(self.start)
        return Trainer(recipe, folder, tokenizer=self.find_tokenizer(), initialise=initialise, **options)

    def find_tokenizer(self) -> Tokenizer:
        """The tokenizer of this run. Raises: ConfigError where none is given."""
        if self.tokenizer is not None:
            return Tokenizer.from_file(self.tokenizer)
        for text in self.start:
            part, _, path = text.partition("=")
            if part in ("language_model", "text"):
                return Tokenizer.from_file(find_model_folder(path))
        if self.tiny:
            return tiny_tokenizer()
        if (own := own_tokenizer(self.recipe.name)) is not None:
            return own
        if all(stage.system.context == 0 for stage in self.recipe.stages):
            return Tokenizer.train((), 256)  # no text is read; a model folder has a tokenizer all the same
        raise ConfigError(
            f"recipe {self.recipe.name!r} needs the tokenizer of its language model; give --tokenizer FILE, or start from "
            "published weights with --from language_model=PATH, which bring theirs"
        )


def with_data(recipe: Recipe, data: Sequence[str], images: Path | None) -> Recipe:
    """The recipe with its stages' data replaced by LLaVA JSON files.

    Raises: ConfigError for a stage that the recipe does not have, or images without data.
    """
    if images is not None and not data:
        raise ConfigError("--images says where the pictures of --data are; give --data as well")
    chosen: dict[str, Dataset.Config] = {}
    for text in data:
        stage, equals, path = text.partition("=")
        names = [recipe.stage(stage).name] if equals else [s.name for s in recipe.stages]
        file = path if equals else text
        chosen |= {name: LlavaJson.Config(path=file, images="" if images is None else str(images)) for name in names}
    return replace(recipe, stages=tuple(replace(s, data=chosen.get(s.name, s.data)) for s in recipe.stages))


def check_files(recipe: Recipe) -> None:
    """Find a missing file before the first stage starts. Raises: RunError naming the stage and what to give."""
    for stage in recipe.stages:
        if isinstance(stage.data, LlavaJson.Config) and not Path(stage.data.path).is_file():
            raise RunError(
                f"stage {stage.name!r} reads {stage.data.path}, which is not there; give --data {stage.name}=FILE "
                f"with --images DIR, or --data FILE for every stage"
            )
