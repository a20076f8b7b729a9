"""A folder in `transformers` layout, written: config, weights, tokenizer, image processor, chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft.checkpoints import clip, llama, llava, llava_next, mllama, siglip
from weft.checkpoints.weight_files import SHARD_BYTES, weights, write_weights
from weft.core.errors import CheckpointError
from weft.core.interfaces import System
from weft.data.images import FILTERS, ImageTransform
from weft.data.media_transform import MediaTransform
from weft.data.processor import Processor
from weft.data.templates import template
from weft.data.tiles import AnyResolution, FittedCanvas, PictureTiles
from weft.data.tokenizers import Tokenizer
from weft.encoders.mllama import Mllama
from weft.encoders.siglip import SiglipVision
from weft.language_models.decoder import Decoder
from weft.projectors.tiles import Tiles
from weft.recipes.chat_template import jinja
from weft.recipes.transformers_folder import LLAMA_MARKER, MARKER
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM

ROWS_MULTIPLE = 64  # a table that must grow grows to a multiple of it, as the published LLaVA-1.5 did: 32,000 to 32,064


def write_transformers_folder(folder: Path, system: System, processor: Processor, shard_bytes: int = SHARD_BYTES) -> None:
    """Fill an existing folder with a model that `transformers` loads.

    A system with a picture stream is written as LLaVA or, with tiles, LLaVA-NeXT, with Llama 3.2's tower as Llama 3.2 Vision,
    one without streams as Llama, Qwen2 or Qwen3, a dual encoder as CLIP or SigLIP. Where no row of LLaVA's embedding stands for
    `<image>`, its tables grow by copies of the begin token's row, which no model says and which generation suppresses.

    Raises: CheckpointError for a system that the layouts cannot hold.
    """
    if isinstance(system, DualEncoder):
        tensors = _write_dual_encoder(folder, system, processor)
    elif not isinstance(system, MultimodalLM):
        raise CheckpointError(f"a {type(system).__name__} has no transformers layout; MultimodalLM and DualEncoder have")
    elif any(isinstance(stream.encoder, Mllama.Config) for stream in system.config.streams.values()):
        tensors = _write_mllama(folder, system, processor)
    elif system.config.streams:
        tensors = _write_llava(folder, system, processor)
    else:
        tensors = _write_language_model(folder, system, processor)
    write_weights(folder, tensors, shard_bytes)


def _write_llava(folder: Path, system: MultimodalLM, processor: Processor) -> dict[str, Tensor]:
    stream = system.config.streams.get(llava.STREAM)
    tiled = stream is not None and isinstance(stream.projector, Tiles.Config)
    encoder, decoder = llava.expressible_parts(llava_next.without_tiles(system.config) if tiled else system.config)
    tokenizer = processor.tokenizer
    tokenizer = tokenizer if MARKER in tokenizer.special else tokenizer.with_special([MARKER])
    image_token, rows = tokenizer.special[MARKER], decoder.vocabulary
    needed = rows if image_token < rows else -(-(image_token + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    grown = replace(system.config, language_model=replace(decoder, vocabulary=needed))
    tensors = (llava_next.LLAVA_NEXT if tiled else llava.LLAVA).from_weft(weights(system))
    tensors = {name: _grown(name, tensor, needed, tokenizer.begin_id or 0) for name, tensor in tensors.items()}
    transform = processor.config.transforms[llava.STREAM]
    if tiled:
        pinpoints = {"image_grid_pinpoints": _pinpoints(transform)}
        config, name = llava_next.write_config(grown, image_token) | pinpoints, "LlavaNextProcessor"
    else:
        config, name = llava.write_config(grown, image_token), "LlavaProcessor"
    _write_generation(folder, config, tensors, tokenizer, processor, range(rows, needed))
    _write_images(folder, transform, "CLIP", name)
    settings = {
        "processor_class": name,
        "patch_size": encoder.patch_size,
        "vision_feature_select_strategy": "full" if encoder.keep_class_token else "default",
        "num_additional_image_tokens": 1,  # the class token
        "image_token": MARKER,
    }
    _write(folder / "processor_config.json", settings)
    named = {"processor_class": name, "extra_special_tokens": {"image_token": MARKER}}
    _write_tokenizer(folder, tokenizer, processor, named)
    return tensors


def _write_mllama(folder: Path, system: MultimodalLM, processor: Processor) -> dict[str, Tensor]:
    tokenizer, begin, name = processor.tokenizer, processor.template.begin, "MllamaProcessor"
    marker = MARKER if MARKER in tokenizer.special else LLAMA_MARKER
    tokenizer = _unwrapped(tokenizer if marker in tokenizer.special else tokenizer.with_special([marker]))
    begin_id = tokenizer.id_of(begin) if begin else None
    if begin_id is None or tokenizer.vocabulary > system.config.vocabulary:
        raise CheckpointError(
            f"the Llama 3.2 Vision layout holds a tokenizer with {marker!r} of at most {system.config.vocabulary} ids, here "
            f"{tokenizer.vocabulary}, and a template that writes a begin token of it, such as 'llama_3_2', here {begin!r}"
        )
    config = mllama.write_config(system.config, tokenizer.special[marker])
    ids = {"bos_token_id": begin_id, "eos_token_id": sorted(processor.stop_ids), "pad_token_id": tokenizer.pad_id}
    config["text_config"] |= ids
    tensors = mllama.key_map(system.config).from_weft(weights(system))
    _write_generation(folder, config, tensors, tokenizer, processor, marker=marker)
    _write_images(folder, processor.config.transforms[mllama.STREAM], "Mllama", name)
    named = {"processor_class": name, "bos_token": begin, "extra_special_tokens": {"image_token": marker}}
    _write_tokenizer(folder, tokenizer, processor, named)
    return tensors


def _write_language_model(folder: Path, system: MultimodalLM, processor: Processor) -> dict[str, Tensor]:
    decoder = system.config.language_model
    if not isinstance(decoder, Decoder.Config):
        raise CheckpointError(f"the Llama layout cannot hold a {decoder.part_name}")
    tensors = llama.LLAMA.under(target="language_model.").from_weft(weights(system))
    _write_generation(folder, llama.write_config(decoder), tensors, processor.tokenizer, processor)
    _write_tokenizer(folder, processor.tokenizer, processor)
    return tensors


def _write_dual_encoder(folder: Path, system: DualEncoder, processor: Processor) -> dict[str, Tensor]:
    layout, name = (siglip.SIGLIP, "Siglip") if isinstance(system.config.media, SiglipVision.Config) else (clip.CLIP, "CLIP")
    config = layout.write_config(system.config)
    tensors = layout.key_map(system.config).from_weft(weights(system))
    _write(folder / "config.json", config | {"torch_dtype": _precision(tensors)})
    _write_images(folder, processor.config.transforms[system.config.stream], name, f"{name}Processor")
    tokenizer, named = _wrapped(processor.tokenizer), {"processor_class": f"{name}Processor"}
    if processor.template.pad_to_context:  # what fills a text is read by the tower, and it is the end token
        named["pad_token"] = tokenizer.token_of(tokenizer.end[-1]) or ""
    _write_tokenizer(folder, tokenizer, processor, named)
    return tensors


def _write_generation(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    processor: Processor,
    suppressed: range = range(0),
    marker: str = MARKER,
) -> None:
    """`config.json`, `generation_config.json` and the chat template of a model that answers."""
    ends = sorted(processor.stop_ids)
    ids: dict[str, Any] = {"bos_token_id": tokenizer.begin_id, "pad_token_id": tokenizer.pad_id}
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    _write(folder / "config.json", {**config, **ids, "torch_dtype": _precision(tensors)})
    generation = {**ids, "do_sample": False, **({"suppress_tokens": list(suppressed)} if suppressed else {})}
    _write(folder / "generation_config.json", generation)
    (folder / "chat_template.jinja").write_text(jinja(template(processor.config.template), marker), encoding="utf-8")


def _precision(tensors: Mapping[str, Tensor]) -> str:
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


def _grown(name: str, tensor: Tensor, rows: int, copied: int) -> Tensor:
    if not name.endswith(("embed_tokens.weight", "lm_head.weight")) or len(tensor) >= rows:
        return tensor
    return torch.cat((tensor, tensor[copied].expand(rows - len(tensor), -1)))


def _unwrapped(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that puts nothing around a text, where the processor writes the begin token."""
    backend = tokenizer.backend
    backend.post_processor = None
    return Tokenizer(backend)


def _wrapped(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that puts the end token behind every text by itself, as those of dual encoders do."""
    from tokenizers import processors

    if tokenizer.end or tokenizer.end_id is None:
        return tokenizer
    backend = tokenizer.backend
    around = [*tokenizer.begin, tokenizer.end_id]
    named = [(tokenizer.token_of(i) or "", i) for i in around]
    form = " ".join([*(name for name, _ in named[:-1]), "$A", named[-1][0]])
    backend.post_processor = processors.TemplateProcessing(single=form, special_tokens=named)
    return Tokenizer(backend)


def _write_images(folder: Path, transform: MediaTransform, family: str, processor: str) -> None:
    kind, more = f"{family}ImageProcessor", {}
    if processor == "LlavaNextProcessor" and isinstance(transform, PictureTiles):
        kind, more = "LlavaNextImageProcessor", {"image_grid_pinpoints": _pinpoints(transform), "do_pad": True}
        transform = replace(transform.view, resize="shortest")  # of a tile, which that leaves as it is
    if processor == "MllamaProcessor" and isinstance(transform, PictureTiles) and isinstance(transform.tiling, FittedCanvas):
        more = {"max_image_tiles": transform.tiling.max_tiles, "do_pad": True}
        transform = transform.view
    if not isinstance(transform, ImageTransform):
        raise CheckpointError(f"this layout holds pictures, the processor's transform is a {transform.part_name}")
    side = {"height": transform.size, "width": transform.size}
    shortest = transform.resize == "shortest"
    settings = {
        "image_processor_type": "LlavaImageProcessor" if transform.pad_to_square else kind,
        "processor_class": processor,
        "do_convert_rgb": True,
        **({"do_pad": True} if transform.pad_to_square else {}),
        "do_resize": True,
        "size": {"shortest_edge": transform.shorter_side or transform.size} if shortest else side,
        "resample": int(FILTERS[transform.filter]),
        "do_center_crop": shortest,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
        **more,
    }
    _write(folder / "preprocessor_config.json", settings)


def _pinpoints(transform: MediaTransform) -> list[list[int]]:
    """The grids of a tiled picture in pixels, (height, width). Raises: CheckpointError for another way to cut pictures."""
    if isinstance(transform, PictureTiles) and isinstance(transform.tiling, AnyResolution):
        view = transform.view
        if view.resize == "direct" and not view.pad_to_square:
            return [[rows * view.size, columns * view.size] for rows, columns in transform.tiling.grids]
    raise CheckpointError(
        f"the LLaVA-NeXT layout holds PictureTiles of AnyResolution with a direct view, not {transform}; "
        "give the processor such a transform"
    )


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, processor: Processor, more: Mapping[str, Any] | None = None) -> None:
    tokenizer.save(folder)
    named = {"bos_token": tokenizer.begin_id, "eos_token": tokenizer.end_id, "pad_token": tokenizer.pad_id}
    if tokenizer.end_id is None and processor.stop_ids:
        named["eos_token"] = min(processor.stop_ids)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": processor.system.context,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # 4.x would add token types, which none of these models takes
        **{name: tokenizer.token_of(i) for name, i in named.items() if i is not None},
        **(more or {}),
    }
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
