"""A folder in `transformers` layout, read: config, tokenizer, image processor, chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weft.checkpoints.checkpoint_format import format_of
from weft.checkpoints.key_map import KeyMap
from weft.core.errors import CheckpointError
from weft.core.interfaces import EncoderDecoder, System
from weft.data.images import ImageTransform
from weft.data.media_transform import MediaTransform
from weft.data.processor import Processor
from weft.data.tiles import AnyResolution, PictureTiles
from weft.data.tokenizers import Tokenizer
from weft.encoders.mllama import Mllama
from weft.language_models.decoder import Decoder
from weft.recipes.chat_template import recognise
from weft.recipes.loading import read_json
from weft.recipes.transformers_preprocessing import preprocessing, read_fitted_tiles, read_image_transform
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem
from weft.systems.multimodal_seq2seq import MultimodalSeq2Seq

MARKER, LLAMA_MARKER = "<image>", "<|image|>"

_TEMPLATES = {
    "llama": "vicuna_v1", "mistral": "mistral", "internlm2": "chatml", "qwen": "chatml", "qwen2": "chatml", "qwen3": "chatml",
    "clip": "clip_text", "eva_clip": "clip_text", "siglip": "siglip_text", "t5": "bare", "mllama": "llama_3_2_base",
    "blip-2": "blip_2_opt", "blip-2 on t5": "blip_2_t5", "instructblip": "instructblip",
}  # fmt: skip


def read_transformers_folder(folder: Path, saved: Mapping[str, Any]) -> tuple[System.Config, KeyMap, Processor]:
    """What a folder's `config.json` (`saved`) and its companions describe; the weights are not touched.

    Raises: CheckpointError for an architecture or a preprocessing that Weft does not have.
    """
    layout = format_of(saved, str(folder / "config.json"))
    try:
        system, key_map = layout.read_config(saved), None
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} lacks a field or misstates it ({type(error).__name__}: {error}); download it again"
        ) from error
    if isinstance(system, Decoder.Config):  # a language model alone: a system without streams
        key_map = layout.key_map(system).under(target="language_model.")
        system = MultimodalLM.Config(language_model=system)
    elif isinstance(system, EncoderDecoder.Config):
        key_map = layout.key_map(system).under(target="language_model.")
        system = MultimodalSeq2Seq.Config(language_model=system)
    if not isinstance(system, MultimodalSystem.Config | DualEncoder.Config):
        raise CheckpointError(f"{folder} holds a {layout.name} alone, a part of a system; load it with its key map")
    tokenizer = _read_tokenizer(folder)
    rows = system.vocabulary if isinstance(system, MultimodalSystem.Config) else system.text.vocabulary
    if tokenizer.vocabulary > rows:
        raise CheckpointError(f"{folder}: the tokenizer has {tokenizer.vocabulary} ids, the model's table {rows} rows")
    inside = layout.name in ("llava", "llava_next")
    kind = (saved.get("text_config") or {}).get("model_type", "llama") if inside else saved["model_type"]
    if kind == "blip-2" and isinstance(system, MultimodalSeq2Seq.Config):
        kind = "blip-2 on t5"
    written = _chat_template(folder)
    usual = "llama_3_2" if kind == "mllama" and written is not None else _TEMPLATES[kind]
    config = Processor.Config(
        template=recognise(written) or recognise(written, LLAMA_MARKER) or usual, transforms=_read_transforms(folder, system)
    )
    return system, key_map or layout.key_map(system), config.build(tokenizer, system)


def _read_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(folder)
    added = folder / "added_tokens.json"
    if not (folder / "tokenizer.json").is_file() and added.is_file():
        # a SentencePiece model does not hold what was added later; the ids must follow on
        later = {token: i for token, i in read_json(added).items() if token not in tokenizer.special}
        names = sorted(later, key=lambda token: int(later[token]))
        grown = tokenizer.with_special(names)
        if wrong := [token for token in names if grown.special[token] != later[token]]:
            raise CheckpointError(f"{added}: the ids of {', '.join(wrong)} do not follow on the tokenizer's")
        return grown
    return tokenizer


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and isinstance(text := read_json(folder / name).get("chat_template"), str):
            return text
    return None


def _read_transforms(folder: Path, system: MultimodalSystem.Config | DualEncoder.Config) -> dict[str, MediaTransform]:
    streams: dict[str, Any] = (
        {name: stream.encoder for name, stream in system.streams.items()}
        if isinstance(system, MultimodalSystem.Config)
        else {system.stream: system.media}
    )
    if not streams:
        return {}
    (encoder,) = streams.values()
    saved = preprocessing(folder)
    if isinstance(encoder, Mllama.Config):
        return dict.fromkeys(streams, read_fitted_tiles(saved, encoder, folder))
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
