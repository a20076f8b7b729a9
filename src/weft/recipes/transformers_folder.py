"""A published folder, read: config, tokenizer, image processor, chat template."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from weft.checkpoints.checkpoint_format import CheckpointFormat, format_of
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.weight_files import WeightFiles, read_json
from weft.core.errors import CheckpointError
from weft.core.interfaces import EncoderDecoder, LanguageModel
from weft.data.images import ImageTransform
from weft.data.media_transform import MediaTransform
from weft.data.processor import Processor
from weft.data.tiles import AnyResolution, PictureTiles
from weft.data.tokenizers import Tokenizer
from weft.encoders.mllama import Mllama
from weft.language_models.bert import Bert
from weft.recipes.base_parts import BASE, ENCODER, LANGUAGE_MODEL, PARTS, BaseParts, joined, whole
from weft.recipes.chat_template import recognise
from weft.recipes.encoder_loading import tower_config
from weft.recipes.model_folders import FolderContents, Parts
from weft.recipes.original_folders import CONVENTIONS
from weft.recipes.transformers_preprocessing import (
    preprocessing,
    read_fitted_tiles,
    read_image_transform,
    read_media_transform,
)
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem
from weft.systems.multimodal_seq2seq import MultimodalSeq2Seq

MARKER, LLAMA_MARKER = "<image>", "<|image|>"

_TEMPLATES = {
    "llama": "vicuna_v1", "mistral": "mistral", "internlm2": "chatml", "qwen": "chatml", "qwen2": "chatml", "qwen3": "chatml",
    "clip": "clip_text", "eva_clip": "clip_text", "siglip": "siglip_text",
    "clap": "clip_text", "clap_microsoft": "clip_text", "t5": "bare", "mllama": "llama_3_2_base",
    "blip-2": "blip_2_opt", "blip-2 on t5": "blip_2_t5", "instructblip": "instructblip",
    "idefics": "idefics", "idefics before instruction": "idefics_base",
}  # fmt: skip


def read_transformers_folder(
    folder: Path, saved: Mapping[str, Any], parts: Parts, weights: Path | None = None
) -> FolderContents:
    """What a folder's `config.json` (`saved`) and its companions describe; no weight is read yet. `weights` is their file where
    the folder holds several.

    The layouts of `transformers` state their preprocessing and most their chat template; for those that were published with
    code of their own `CONVENTIONS` does. A language model without any template has one that writes texts as they are, and a
    warning says so.

    Raises: CheckpointError for an architecture or a preprocessing that Weft does not have.
    """
    layout, bases = format_of(saved, str(folder / "config.json")), BaseParts(parts, (*PARTS, BASE))
    tower, language_model = bases.encoder(), bases.language_model()
    if tower is not None:
        saved = {"vision_config": tower_config(tower.folder), **saved}
    system, key_map = described_system(layout, saved, folder)
    if not isinstance(system, MultimodalSystem.Config | DualEncoder.Config):
        raise CheckpointError(f"{folder} holds a {layout.name} alone, a part of a system; load it with its key map")
    if language_model is not None and isinstance(system, MultimodalLM.Config):
        system = replace(system, language_model=language_model.config)
    given = {name: part.at(name) for name, part in ((ENCODER, tower), (LANGUAGE_MODEL, language_model)) if part is not None}
    convention = CONVENTIONS.get(layout.name)
    own = whole(WeightFiles(weights or folder), bases.base())
    files = joined(key_map, own, given, (ENCODER, LANGUAGE_MODEL) if convention is not None else ())
    tokenizer = read_tokenizer(bases.tokenizer_in(folder))
    rows = system.vocabulary if isinstance(system, MultimodalSystem.Config) else system.text.vocabulary
    if tokenizer.vocabulary > rows:
        raise CheckpointError(f"{folder}: the tokenizer has {tokenizer.vocabulary} ids, the model's table {rows} rows")
    if convention is not None and isinstance(system, MultimodalSystem.Config):
        if lost := [token for token in convention.tokens(saved) if token not in tokenizer.special]:
            raise CheckpointError(
                f"{folder}: texts hold {' and '.join(lost)}, which the tokenizer lacks; give the one that it was trained with, "
                "--from tokenizer=PATH"
            )
        ((stream, each),) = system.streams.items()
        transforms = {stream: convention.transform(saved, each.encoder.unit_shape[-1])}
        config = Processor.Config(template=convention.template(folder, saved), transforms=transforms, boxes=convention.boxes)
    else:
        template = _template(folder, layout, saved, system, tokenizer)
        if isinstance(system, DualEncoder.Config):
            transforms, system = _read_pair_transforms(folder, system)
        else:
            transforms = _read_transforms(folder, system)
        config = Processor.Config(template=template, transforms=transforms)
    return FolderContents(system, files.key_map, config.build(tokenizer, system), files.tensors, files.where)


def described_system(layout: CheckpointFormat, saved: Mapping[str, Any], folder: Path) -> tuple[Any, KeyMap]:
    """The system of a config and its table; a language model alone is a system without streams.

    Raises: CheckpointError for a config that Weft cannot follow.
    """
    try:
        system = layout.read_config(saved)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} lacks a field or misstates it ({type(error).__name__}: {error}); download it again"
        ) from error
    key_map = layout.key_map(system)
    if isinstance(system, EncoderDecoder.Config):
        return MultimodalSeq2Seq.Config(language_model=system), key_map.under(target="language_model.")
    if isinstance(system, LanguageModel.Config) and not isinstance(system, Bert.Config):  # BERT writes no text
        return MultimodalLM.Config(language_model=system), key_map.under(target="language_model.")
    return system, key_map


def _template(folder: Path, layout: CheckpointFormat, saved: Mapping[str, Any], system: Any, tokenizer: Tokenizer) -> str:
    """The template of a folder in `transformers` layout: what it writes itself, else that of its kind of model."""
    inside = layout.name in ("llava", "llava_next")
    kind = (saved.get("text_config") or {}).get("model_type", "llama") if inside else saved["model_type"]
    if kind == "blip-2" and isinstance(system, MultimodalSeq2Seq.Config):
        kind = "blip-2 on t5"
    if kind == "idefics" and "<end_of_utterance>" not in tokenizer.special:
        kind = "idefics before instruction"
    written = _chat_template(folder)
    if found := recognise(written) or recognise(written, LLAMA_MARKER):
        return found
    if kind == "mllama" and written is not None:
        return "llama_3_2"
    if kind not in _TEMPLATES:
        warnings.warn(
            f"{folder} holds a {kind} without a chat template that Weft knows; its texts are written as they are",
            stacklevel=2,
        )
    return _TEMPLATES.get(kind, "continued")


def read_tokenizer(folder: Path) -> Tokenizer:
    """A folder's tokenizer with the tokens that its other files add. Raises: CheckpointError where their ids do not fit."""
    tokenizer = Tokenizer.from_file(folder)
    if (folder / "tokenizer.json").is_file():
        return tokenizer
    settings, added = folder / "tokenizer_config.json", folder / "added_tokens.json"
    if settings.is_file():
        listed = read_json(settings).get("added_tokens_decoder") or {}
        tokenizer = _renamed(tokenizer, {int(i): token["content"] for i, token in listed.items()})
    if added.is_file():
        # a SentencePiece model does not hold what was added later; the ids must follow on
        later = {token: i for token, i in read_json(added).items() if token not in tokenizer.special}
        names = sorted(later, key=lambda token: int(later[token]))
        grown = tokenizer.with_special(names)
        if wrong := [token for token in names if grown.special[token] != later[token]]:
            raise CheckpointError(f"{added}: the ids of {', '.join(wrong)} do not follow on the tokenizer's")
        return grown
    return tokenizer


def _renamed(tokenizer: Tokenizer, names: Mapping[int, str]) -> Tokenizer:
    """A SentencePiece model some of whose unused pieces became special tokens, as InternLM2's did."""
    known = {i: tokenizer.token_of(i) for i in names if i < tokenizer.vocabulary}
    old = {token: names[i] for i, token in known.items() if token is not None and token != names[i]}
    if not old:
        return tokenizer
    saved = json.loads(tokenizer.backend.to_str())
    model = saved["model"]
    if model["type"] != "BPE":
        raise CheckpointError(f"tokenizer_config.json calls {', '.join(old)} {', '.join(old.values())}; only BPE is read so")
    model["vocab"] = {old.get(token, token): i for token, i in model["vocab"].items()}
    model["merges"] = [pair for pair in model["merges"] if not old.keys() & {*pair, "".join(pair)}]
    for token in saved["added_tokens"]:
        token["content"] = old.get(token["content"], token["content"])
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(saved))).with_special(list(old.values()))


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and isinstance(text := read_json(folder / name).get("chat_template"), str):
            return text
    return None


def _read_pair_transforms(folder: Path, system: DualEncoder.Config) -> tuple[dict[str, MediaTransform], DualEncoder.Config]:
    """The transform of a dual encoder's media, and the system at the size that the transform gives."""
    transform, media = read_media_transform(folder, system.media)
    if transform is None:
        if media.modality != "image":
            raise CheckpointError(
                f"{folder} does not say how {media.modality} becomes units of its {media.part_name}: it has no "
                "preprocessor_config.json; download it again"
            )
        transform = read_image_transform({}, media.unit_shape[-1], folder)
    return {system.stream: transform}, replace(system, media=media)


def _read_transforms(folder: Path, system: MultimodalSystem.Config) -> dict[str, MediaTransform]:
    streams: dict[str, Any] = {name: stream.encoder for name, stream in system.streams.items()}
    if not streams:
        return {}
    (encoder,) = streams.values()
    saved = preprocessing(folder)
    if isinstance(encoder, Mllama.Config):
        return dict.fromkeys(streams, read_fitted_tiles(saved, encoder, folder))
    if "image_num_channels" in saved:  # IDEFICS, whose processor of 4.x has one field for both sides
        side = saved.get("image_size", 224)
        saved = {**saved, "size": {"height": side, "width": side}}
    transform: MediaTransform = read_image_transform(saved, encoder.image_size, folder)
    if isinstance(transform, ImageTransform) and (pinpoints := saved.get("image_grid_pinpoints")):
        transform = _read_tiles(pinpoints, transform, folder)
    return dict.fromkeys(streams, transform)


def _read_tiles(pinpoints: Sequence[Sequence[int]], view: ImageTransform, folder: Path) -> PictureTiles:
    """The transform of LLaVA-NeXT's image processor; its `do_pad` fills up the tiles of a batch, not the picture."""
    if any(side % view.size for pair in pinpoints for side in pair):
        raise CheckpointError(f"{folder}: image_grid_pinpoints {pinpoints} are not whole tiles of {view.size} pixels")
    grids = tuple((height // view.size, width // view.size) for height, width in pinpoints)
    view = replace(view, resize="direct", pad_to_square=False)
    return PictureTiles(view=view, tiling=AnyResolution(grids=grids))
