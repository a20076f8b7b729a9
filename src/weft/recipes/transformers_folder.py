"""A folder in `transformers` layout: config, weights, tokenizer, image processor, chat template; read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft.checkpoints import llama, llava
from weft.checkpoints.checkpoint_format import format_of
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.weight_files import SHARD_BYTES, weights, write_weights
from weft.core.errors import CheckpointError
from weft.core.interfaces import System
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.templates import template
from weft.data.tokenizers import Tokenizer
from weft.language_models.decoder import Decoder
from weft.recipes.chat_template import jinja, recognise
from weft.recipes.loading import read_json
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM

MARKER = "<image>"
BICUBIC = 3
ROWS_MULTIPLE = 64  # a table that must grow grows to a multiple of it, as the published LLaVA-1.5 did: 32,000 to 32,064

_TEMPLATES = {"llama": "vicuna_v1", "qwen2": "chatml", "qwen3": "chatml", "clip": "clip_text", "siglip": "siglip_text"}


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
    if not isinstance(system, MultimodalLM.Config | DualEncoder.Config):
        raise CheckpointError(f"{folder} holds a {layout.name} alone, a part of a system; load it with its key map")
    tokenizer = _read_tokenizer(folder)
    text: Any = system.language_model if isinstance(system, MultimodalLM.Config) else system.text
    rows = text.vocabulary
    if tokenizer.vocabulary > rows:
        raise CheckpointError(f"{folder}: the tokenizer has {tokenizer.vocabulary} ids, the model's table {rows} rows")
    kind = (saved.get("text_config") or {}).get("model_type", "llama") if layout.name == "llava" else saved["model_type"]
    config = Processor.Config(
        template=recognise(_chat_template(folder)) or _TEMPLATES[kind], transforms=_read_transforms(folder, system)
    )
    return system, key_map or layout.key_map(system), config.build(tokenizer, system)


def write_transformers_folder(folder: Path, system: System, processor: Processor, shard_bytes: int = SHARD_BYTES) -> None:
    """Fill an existing folder with a model that `transformers` loads: LLaVA's layout, or Llama's for a system without streams.

    Where no row of the embedding stands for `<image>`, the tables grow by copies of the begin token's row, which no model says
    and which generation suppresses.

    Raises: CheckpointError for a system that the layouts cannot hold.
    """
    if not isinstance(system, MultimodalLM):
        raise CheckpointError(f"a {type(system).__name__} cannot be written in transformers layout; a MultimodalLM can")
    tokenizer = processor.tokenizer
    state = weights(system)
    if not system.config.streams:
        decoder = system.config.language_model
        if not isinstance(decoder, Decoder.Config):
            raise CheckpointError(f"the Llama layout cannot hold a {decoder.part_name}")
        config, tensors = llama.write_config(decoder), llama.LLAMA.under(target="language_model.").from_weft(state)
        suppressed: list[int] = []
    else:
        llava.expressible_parts(system.config)
        tokenizer = tokenizer if MARKER in tokenizer.special else tokenizer.with_special([MARKER])
        image_token = tokenizer.special[MARKER]
        rows = system.config.language_model.vocabulary
        needed = rows if image_token < rows else -(-(image_token + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE
        grown = replace(system.config, language_model=replace(system.config.language_model, vocabulary=needed))
        config, tensors = llava.write_config(grown, image_token), llava.LLAVA.from_weft(state)
        tensors = {name: _grown(name, tensor, needed, tokenizer.begin_id or 0) for name, tensor in tensors.items()}
        suppressed = list(range(rows, needed))
        _write_image_processor(folder, processor.config.transforms[llava.STREAM], config)
    ends = sorted(processor.stop_ids)
    ids = {"bos_token_id": tokenizer.begin_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    ids["pad_token_id"] = tokenizer.pad_id
    precision = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    _write(folder / "config.json", {**config, **ids, "torch_dtype": precision})
    generation: dict[str, Any] = {**ids, "do_sample": False}
    _write(folder / "generation_config.json", generation | ({"suppress_tokens": suppressed} if suppressed else {}))
    _write_tokenizer(folder, tokenizer, processor, bool(system.config.streams))
    (folder / "chat_template.jinja").write_text(jinja(template(processor.config.template)), encoding="utf-8")
    write_weights(folder, tensors, shard_bytes)


def _grown(name: str, tensor: Tensor, rows: int, copied: int) -> Tensor:
    if not name.endswith(("embed_tokens.weight", "lm_head.weight")) or len(tensor) >= rows:
        return tensor
    return torch.cat((tensor, tensor[copied].expand(rows - len(tensor), -1)))


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


def _read_transforms(folder: Path, system: MultimodalLM.Config | DualEncoder.Config) -> dict[str, ImageTransform]:
    streams: dict[str, Any] = (
        {name: stream.encoder for name, stream in system.streams.items()}
        if isinstance(system, MultimodalLM.Config)
        else {system.stream: system.media}
    )
    if not streams:
        return {}
    saved: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            saved |= found.get("image_processor") or (found if name.startswith("pre") else {})
    (encoder,) = streams.values()
    transform = _read_transform(saved, encoder.image_size, folder)
    return dict.fromkeys(streams, transform)


def _read_transform(saved: Mapping[str, Any], image_size: int, folder: Path) -> ImageTransform:
    """An image processor's settings; without any, CLIP's at the encoder's size."""
    size, crop = saved.get("size", {"shortest_edge": image_size}), saved.get("crop_size", image_size)
    direct = isinstance(size, dict) and "height" in size
    side = (size["height"] if direct else size.get("shortest_edge")) if isinstance(size, dict) else size
    cropped = crop["height"] if isinstance(crop, dict) else crop
    wanted = {
        "size": side == image_size,
        "crop_size": direct or cropped == image_size,
        "resample": saved.get("resample", BICUBIC) == BICUBIC,
        "do_resize": saved.get("do_resize", True),
        "do_normalize": saved.get("do_normalize", True),
        "do_center_crop": direct or saved.get("do_center_crop", True),
    }
    if unfit := [f"{name}={saved.get(name)!r}" for name, fits in wanted.items() if not fits]:
        raise CheckpointError(
            f"{folder}: the image processor has {', '.join(unfit)}; "
            f"Weft resizes bicubically to the encoder's {image_size} pixels"
        )
    default = ImageTransform()
    return ImageTransform(
        size=image_size,
        resize="direct" if direct else "shortest",
        pad_to_square=bool(saved.get("do_pad", False)),
        mean=tuple(saved.get("image_mean", default.mean)),
        std=tuple(saved.get("image_std", default.std)),
    )


def _write_image_processor(folder: Path, transform: ImageTransform, config: Mapping[str, Any]) -> None:
    side = {"height": transform.size, "width": transform.size}
    shortest = transform.resize == "shortest"
    settings = {
        "image_processor_type": "LlavaImageProcessor" if transform.pad_to_square else "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        **({"do_pad": True} if transform.pad_to_square else {}),
        "do_resize": True,
        "size": {"shortest_edge": transform.size} if shortest else side,
        "resample": BICUBIC,
        "do_center_crop": shortest,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }
    _write(folder / "preprocessor_config.json", settings)
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": config["vision_config"]["patch_size"],
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        "num_additional_image_tokens": 1,  # the class token
        "image_token": MARKER,
    }
    _write(folder / "processor_config.json", processor)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, processor: Processor, media: bool) -> None:
    tokenizer.save(folder)
    named = {"bos_token": tokenizer.begin_id, "eos_token": tokenizer.end_id, "pad_token": tokenizer.pad_id}
    if tokenizer.end_id is None and processor.stop_ids:
        named["eos_token"] = min(processor.stop_ids)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": processor.system.context,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # 4.x would add token types, which no Llama takes
        **{name: tokenizer.token_of(i) for name, i in named.items() if i is not None},
    }
    if media:
        settings |= {"processor_class": "LlavaProcessor", "extra_special_tokens": {"image_token": MARKER}}
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
