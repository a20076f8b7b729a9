"""A LAVIS file of BLIP-2 or InstructBLIP, which holds what was trained; the language model comes from a folder of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tokenizers import processors

from weft.checkpoints import blip_2_pretraining, blip_2_vision, lavis
from weft.checkpoints.blip_2 import STREAM, lavis_stream, system_of
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.weight_files import WeightFiles
from weft.core.errors import CheckpointError
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.tokenizers import INSTRUCTIONS, Tokenizer
from weft.encoders.eva_clip import EvaClipVision
from weft.language_models.decoder import Decoder
from weft.language_models.opt import Opt
from weft.language_models.t5 import T5
from weft.recipes.base_parts import ENCODER, LANGUAGE_MODEL, BasePart, BaseParts, joined, needed
from weft.recipes.model_folders import FolderContents, Parts
from weft.recipes.transformers_folder import read_tokenizer
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.multimodal_lm import Stream

START, _END = "[DEC]", "</s>"
_TEMPLATES: dict[type, str] = {Opt.Config: "blip_2_opt", T5.Config: "blip_2_t5"}


def read_lavis_file(path: Path, parts: Parts) -> FolderContents:
    """What a file such as `blip2_pretrained_opt2.7b.pth` describes, around the parts that are given.

    `parts` gives the language model, of a file without tower also `streams.image.encoder`: the tower's own file. BERT's
    tokenizer, which reads instructions and the first stage's texts, is that of `qformer_tokenizer/` beside the file, or of the
    part `tokenizer` for the first stage.

    Raises: ConfigError for a part that is not given; CheckpointError for files that do not fit each other.
    """
    bases, files = BaseParts(parts), WeightFiles(path)
    shapes = {name: files.shape(name) for name in files}
    reader = lavis.read_qformer(shapes, str(path))
    own_tower = any(name.startswith(lavis.TOWER) for name in shapes)
    tower = None if own_tower else _tower(path, parts)
    encoder = lavis.read_tower(shapes, str(path)) if tower is None else tower.config
    stream = Stream.Config(encoder=encoder, projector=reader)
    given = {} if tower is None else {ENCODER: tower.at(ENCODER)}
    if not reader.projected:
        return _first_stage(path, files, stream, bases, given, lavis.read_embedding_width(shapes, str(path)))
    model = needed(bases.language_model(), LANGUAGE_MODEL, path)
    if isinstance(model.config, T5.Config):
        model = model._replace(config=replace(model.config, activation="gelu"))  # which LAVIS sets
    given[LANGUAGE_MODEL] = model.at(LANGUAGE_MODEL)
    found = joined(lavis_stream(stream).under(target=f"streams.{STREAM}."), files, given)
    tokenizer = read_tokenizer(bases.tokenizer_in(model.folder))
    if isinstance(model.config, Decoder.Config):
        tokenizer = _beginning_with_end(tokenizer, path)
    if reader.vocabulary is not None and tokenizer.instructions is None:
        tokenizer = tokenizer.with_instructions(_reader_tokenizer(path))
    template = "instructblip" if reader.vocabulary is not None else _TEMPLATES.get(type(model.config), "blip_2_opt")
    system = system_of(model.config, stream)
    processor = Processor.Config(template=template, transforms=_transforms(encoder)).build(tokenizer, system)
    return FolderContents(system, found.key_map, processor, found.tensors, found.where)


def _first_stage(
    path: Path, files: WeightFiles, stream: Stream.Config, bases: BaseParts, given: dict[str, BasePart], width: int
) -> FolderContents:
    """The Q-Former with its heads, as `blip2_pretrained.pth` holds them."""
    beside = path.parent / INSTRUCTIONS
    folder = bases.tokenizer_in(beside if beside.is_dir() else path.parent)
    tokenizer = Tokenizer.from_file(folder).with_special((START,))
    system = FusionEncoder.Config(streams={STREAM: stream}, start_token=tokenizer.special[START], embedding_width=width)
    assert isinstance(stream.encoder, EvaClipVision.Config)
    tower = blip_2_vision.lavis_tower(stream.encoder).under(target=f"{ENCODER}.")
    found = joined(KeyMap.join(blip_2_pretraining.lavis_map(system), tower), files, given)
    processor = Processor.Config(template="blip_2_caption", transforms=_transforms(stream.encoder)).build(tokenizer, system)
    return FolderContents(system, found.key_map, processor, found.tensors, found.where)


def _tower(path: Path, parts: Parts) -> BasePart:
    """The tower's own file. Raises: ConfigError where none is given; CheckpointError for something else."""
    given = Path(parts.get(ENCODER, ""))
    if ENCODER not in parts:
        needed(None, ENCODER, path)
    if not given.is_file():
        raise CheckpointError(f"{given} is no file; {path} goes with the tower in eva_vit_g.pth, whose norm it holds itself")
    files = WeightFiles(given)
    config = lavis.read_tower({name: files.shape(name) for name in files}, str(given), whole=False)
    return BasePart(given.parent, config, blip_2_vision.lavis_map(config), files, str(given))


def _reader_tokenizer(path: Path) -> Tokenizer | None:
    folder = path.parent / INSTRUCTIONS
    return Tokenizer.from_file(folder).with_special((START,)) if folder.is_dir() else None


def _beginning_with_end(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """Vicuna's tokenizer as InstructBLIP has it: its begin token is `</s>`."""
    if _END not in tokenizer.special:
        raise CheckpointError(f"the language model's tokenizer has no {_END}, with which {path.name}'s texts begin")
    backend = tokenizer.backend
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_END} $A", special_tokens=[(_END, tokenizer.special[_END])]
    )
    return Tokenizer(backend, tokenizer.instructions)


def _transforms(encoder: EvaClipVision.Config) -> dict[str, ImageTransform]:
    return {STREAM: ImageTransform(size=encoder.image_size, resize="direct")}
