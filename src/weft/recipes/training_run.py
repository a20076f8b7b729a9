"""A recipe on one's own data: which file feeds which stage, which tokenizer, which weights to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.core.errors import ConfigError
from weft.data.tokenizers import Tokenizer
from weft.recipes.catalogue import own_tokenizer
from weft.recipes.chosen_data import check_files, skipping_broken, with_data
from weft.recipes.model_folders import find_model_folder
from weft.recipes.shrinking import tiny_tokenizer
from weft.recipes.starting_weights import started, starting_stages, whole_contents
from weft.recipes.transformers_folder import read_tokenizer
from weft.systems.fusion_encoder import FusionEncoder
from weft.training.stage import Recipe
from weft.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What `weft train` is told.

    `data` holds files as `with_data` takes them; `images` is the folder that their pictures are named from. With `skip_broken`
    records and media that cannot be read are left out, and the log names and counts them.
    `start` holds `part=path` for published weights, or the path of a whole model. The tokenizer comes from `tokenizer`, or from
    the model, language model or text tower that `start` names; a tiny recipe trains its own.
    """

    recipe: Recipe
    data: tuple[str, ...] = ()
    images: Path | None = None
    skip_broken: bool = False
    tokenizer: Path | None = None
    start: tuple[str, ...] = ()
    tiny: bool = False

    def trainer(self, folder: Path, **options: Any) -> Trainer:
        """The trainer of this run; `options` are the trainer's own.

        Raises: ConfigError for data, tokenizer or weights that are missing or do not fit together.
        """
        recipe = with_data(self.recipe, self.data, self.images)
        recipe = skipping_broken(recipe) if self.skip_broken else recipe
        check_files(recipe)
        initialise = starting_stages(self.start, recipe)
        tokenizer = self.find_tokenizer()
        return Trainer(recipe, folder, tokenizer=tokenizer, initialise=initialise, skip_broken=self.skip_broken, **options)

    def find_tokenizer(self) -> Tokenizer:
        """The tokenizer of this run. Raises: ConfigError where none is given."""
        if self.tokenizer is not None:
            return Tokenizer.from_file(self.tokenizer)
        start = started(self.start)
        if (found := whole_contents(start)) is not None:
            return found.processor.tokenizer
        reader = self._reader_tokenizer(start.parts)
        for part in ("language_model", "text"):
            if part in start.parts:
                words = read_tokenizer(find_model_folder(start.parts[part]))
                return words if reader is None else words.with_instructions(reader)
        if reader is not None:
            return reader
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

    def _reader_tokenizer(self, start: Mapping[str, str]) -> Tokenizer | None:
        """That of the BERT from which the Q-Former of BLIP-2's first stage starts, with the token that captions begin with."""
        for stage in self.recipe.stages:
            if isinstance(stage.system, FusionEncoder.Config):
                path = start.get(f"streams.{stage.system.stream}.projector")
                if path is None or Path(path).is_file():  # a LAVIS file brings no tokenizer
                    return None
                return Tokenizer.from_file(find_model_folder(path)).with_special(("[DEC]",))
        return None
