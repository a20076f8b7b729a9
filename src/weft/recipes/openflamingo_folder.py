"""An OpenFlamingo folder, which holds what was trained; tower and language model come from folders of their own."""

from __future__ import annotations

from pathlib import Path

from weft.checkpoints import openflamingo
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.weight_files import WeightFiles
from weft.core.errors import CheckpointError
from weft.data.processor import Processor
from weft.encoders.clip import ClipVision
from weft.recipes.base_parts import ENCODER, LANGUAGE_MODEL, BaseParts, joined, needed
from weft.recipes.model_folders import FolderContents, Parts
from weft.recipes.transformers_folder import read_tokenizer
from weft.recipes.transformers_preprocessing import preprocessing, read_image_transform


def read_openflamingo_folder(folder: Path, parts: Parts) -> FolderContents:
    """What a folder with `checkpoint.pt` (or `.safetensors`) describes, around the parts that are given.

    Raises: ConfigError for a part that is not given; CheckpointError for files that do not fit each other.
    """
    bases = BaseParts(parts)
    tower, language_model = needed(bases.encoder(), ENCODER, folder), needed(bases.language_model(), LANGUAGE_MODEL, folder)
    if not isinstance(tower.config, ClipVision.Config):
        raise CheckpointError(f"{tower.folder} holds a {tower.config.part_name}; OpenFlamingo looks with CLIP's tower")
    files, tokenizer = WeightFiles(folder), read_tokenizer(bases.tokenizer_in(language_model.folder))
    vocabulary = tokenizer.vocabulary
    shapes = {name: files.shape(name) for name in files}
    system = openflamingo.read_shapes(shapes, language_model.config, tower.config, vocabulary, str(files.path))
    table = next(name for name, kind in openflamingo.TABLES.items() if isinstance(language_model.config, kind))
    bare = {name.removeprefix("module."): shape for name, shape in shapes.items()}
    has_head = openflamingo.HEAD in bare
    apart = any("gated_cross_attn_layers" in name for name in bare)
    own = openflamingo.key_map(vocabulary, bare[table][0] - vocabulary, table, apart)
    if has_head:
        own = KeyMap.join(own, openflamingo.head_rule(vocabulary, bare[openflamingo.HEAD][0]))
    theirs = openflamingo.language_model_table(language_model.key_map, language_model.config, vocabulary, has_head)
    found = joined(own, files, {ENCODER: tower.at(ENCODER), LANGUAGE_MODEL: language_model._replace(key_map=theirs)})
    settings = preprocessing(tower.folder)
    transform = read_image_transform(settings, tower.config.image_size, tower.folder)
    config = Processor.Config(template="flamingo", transforms={openflamingo.STREAM: transform})
    processor = config.build(tokenizer.with_special(openflamingo.ADDED), system)
    return FolderContents(system, found.key_map, processor, found.tensors, found.where)
