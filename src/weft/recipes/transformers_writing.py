"""A folder in `transformers` layout, written: config, weights, tokenizer, image processor, chat template."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft.checkpoints import blip_2, clip, idefics, llama, llava, llava_next, mllama, siglip
from weft.checkpoints.weight_files import SHARD_BYTES, weights, write_weights
from weft.core.errors import CheckpointError
from weft.core.interfaces import System
from weft.data.images import FILTERS, EvenCentreTransform, ImageTransform
from weft.data.media_transform import MediaTransform
from weft.data.processor import Processor
from weft.data.templates import template
from weft.data.tiles import AnyResolution, FittedCanvas, PictureTiles
from weft.data.tokenizers import INSTRUCTIONS, Tokenizer
from weft.encoders.mllama import Mllama
from weft.encoders.siglip import SiglipVision
from weft.fusion.cross_attention import CrossAttention
from weft.language_models.decoder import Decoder
from weft.projectors.qformer import QFormer
from weft.projectors.tiles import Tiles
from weft.recipes.chat_template import jinja
from weft.recipes.transformers_folder import LLAMA_MARKER, MARKER
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem

ROWS_MULTIPLE = 64  # a table that must grow grows to a multiple of it, as the published LLaVA-1.5 did: 32,000 to 32,064
_TOKEN_TABLES = ("language_model.embedding.weight", "language_model.output.weight")


def write_transformers_folder(folder: Path, system: System, processor: Processor, shard_bytes: int = SHARD_BYTES) -> None:
    """Fill an existing folder with a model that `transformers` loads.

    A system with a picture stream is written as LLaVA or, with tiles, LLaVA-NeXT, with a Q-Former as BLIP-2 or, where it reads
    instructions, InstructBLIP, with Llama 3.2's tower as Llama 3.2 Vision, with other gated blocks as IDEFICS, one without
    streams as Llama, Qwen2 or Qwen3, a dual encoder as CLIP or SigLIP. Where no row of a token table stands for `<image>`,
    LLaVA's tables grow by copies of the begin token's row, which no model says and which generation suppresses. BLIP-2's files
    have no place for what is suppressed: its tables grow by the mean of their rows, whose logit, the mean of all, is never the
    largest.

    Warns where the library will compute otherwise than the system does.

    Raises: CheckpointError for a system that the layouts cannot hold.
    """
    if isinstance(system, DualEncoder):
        tensors = _write_dual_encoder(folder, system, processor)
    elif isinstance(system, MultimodalSystem) and any(
        isinstance(stream.projector, QFormer.Config) for stream in system.config.streams.values()
    ):
        tensors = _write_blip_2(folder, system, processor)
    elif not isinstance(system, MultimodalLM):
        raise CheckpointError(f"a {type(system).__name__} has no transformers layout; MultimodalLM and DualEncoder have")
    elif any(isinstance(stream.encoder, Mllama.Config) for stream in system.config.streams.values()):
        tensors = _write_mllama(folder, system, processor)
    elif any(isinstance(fusion, CrossAttention.Config) for fusion in system.config.fusions):
        tensors = _write_idefics(folder, system, processor)
    elif system.config.streams:
        tensors = _write_llava(folder, system, processor)
    else:
        tensors = _write_language_model(folder, system, processor)
    write_weights(folder, tensors, shard_bytes)


def _write_llava(folder: Path, system: MultimodalLM, processor: Processor) -> Mapping[str, Tensor]:
    stream = system.config.streams.get(llava.STREAM)
    tiled = stream is not None and isinstance(stream.projector, Tiles.Config)
    encoder, decoder = llava.expressible_parts(llava_next.without_tiles(system.config) if tiled else system.config)
    tokenizer, image_token, needed = _with_marker(processor.tokenizer, decoder.vocabulary)
    rows = decoder.vocabulary
    grown = replace(system.config, language_model=replace(decoder, vocabulary=needed))
    table = llava_next.LLAVA_NEXT if tiled else llava.LLAVA
    tensors = table.streamed_from_weft(_grown(weights(system), needed, tokenizer.begin_id or 0))
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


def _write_blip_2(folder: Path, system: MultimodalSystem, processor: Processor) -> Mapping[str, Tensor]:
    """BLIP-2 or InstructBLIP. What ends an answer is said in the language model's config, the only one that it reads."""
    _, projector, language_model = blip_2.expressible_parts(system.config)
    if not processor.template.media_before_begin:
        raise CheckpointError(
            f"the BLIP-2 layout puts pictures before all text, the template {processor.config.template!r} puts them into it; "
            "give the processor a template like 'instructblip' or 'blip_2_opt'"
        )
    tokenizer, image_token, needed = _with_marker(processor.tokenizer, language_model.vocabulary)
    larger = replace(language_model, vocabulary=needed)  # type: ignore[call-arg]  # a field of every language model
    grown = replace(system.config, language_model=larger)
    tensors = blip_2.key_map(system.config).streamed_from_weft(_grown(weights(system), needed))
    config = blip_2.write_config(grown, image_token)
    config["text_config"] |= _ids(tokenizer, processor)
    name = "Blip2Processor" if projector.vocabulary is None else "InstructBlipProcessor"
    _write_generation(folder, config, tensors, tokenizer, processor)
    _write_images(folder, processor.config.transforms[blip_2.STREAM], "Blip", name)
    _write(folder / "processor_config.json", {"processor_class": name, "num_query_tokens": projector.num_queries})
    _write_tokenizer(folder, tokenizer, processor, {"processor_class": name})
    if tokenizer.instructions is not None:
        _write_tokenizer_config(folder / INSTRUCTIONS, tokenizer.instructions, projector.context)
    return tensors


def _write_mllama(folder: Path, system: MultimodalLM, processor: Processor) -> Mapping[str, Tensor]:
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
    tensors = mllama.key_map(system.config).streamed_from_weft(weights(system))
    _write_generation(folder, config, tensors, tokenizer, processor, marker=marker)
    _write_images(folder, processor.config.transforms[mllama.STREAM], "Mllama", name)
    named = {"processor_class": name, "bos_token": begin, "extra_special_tokens": {"image_token": marker}}
    _write_tokenizer(folder, tokenizer, processor, named)
    _warn_of_other_rules(system.config)
    return tensors


def _warn_of_other_rules(config: MultimodalLM.Config) -> None:
    if mllama.as_transformers(config) != config:
        settings = " ".join(f"--set {path}={value}" for path, value in mllama.TRANSFORMERS_RULES)
        warnings.warn(
            "transformers computes otherwise than Weft from this folder of Llama 3.2 Vision: its features are what leaves "
            "the tower's local blocks, in Meta's code what enters them, and it shows text before the first picture all "
            "pictures, Meta's code none; for Weft with the library's rules, write a Weft folder: weft convert SOURCE TARGET "
            f"--to weft {settings}",
            stacklevel=3,
        )


def _write_idefics(folder: Path, system: MultimodalLM, processor: Processor) -> Mapping[str, Tensor]:
    """All tokens have a row; those of pictures are special, and the processor puts one around them."""
    config = idefics.write_config(system.config)
    tokenizer, around, name = processor.tokenizer, processor.template.media_around, "IdeficsProcessor"
    lost = [token for token in (MARKER, around) if token not in tokenizer.special]
    if lost or tokenizer.vocabulary > system.config.vocabulary:
        raise CheckpointError(
            f"the IDEFICS layout holds a tokenizer of at most {system.config.vocabulary} ids, here {tokenizer.vocabulary}, "
            f"with {MARKER!r} and what the template puts around pictures, as 'idefics' does; it lacks {lost}"
        )
    tensors = idefics.key_map(system.config).streamed_from_weft(weights(system))
    _write_generation(folder, config, tensors, tokenizer, processor)
    _write_images(folder, processor.config.transforms[idefics.STREAM], "Idefics", name)
    added = [around, MARKER, *(token for token in processor.template.stop if token in tokenizer.special)]
    _write_tokenizer(folder, tokenizer, processor, {"processor_class": name, "additional_special_tokens": added})
    return tensors


def _write_language_model(folder: Path, system: MultimodalLM, processor: Processor) -> Mapping[str, Tensor]:
    decoder = system.config.language_model
    if not isinstance(decoder, Decoder.Config):
        raise CheckpointError(f"the Llama layout cannot hold a {decoder.part_name}")
    tensors = llama.LLAMA.under(target="language_model.").streamed_from_weft(weights(system))
    _write_generation(folder, llama.write_config(decoder), tensors, processor.tokenizer, processor)
    _write_tokenizer(folder, processor.tokenizer, processor)
    return tensors


def _write_dual_encoder(folder: Path, system: DualEncoder, processor: Processor) -> Mapping[str, Tensor]:
    layout, name = (siglip.SIGLIP, "Siglip") if isinstance(system.config.media, SiglipVision.Config) else (clip.CLIP, "CLIP")
    config = layout.write_config(system.config)
    tensors = layout.key_map(system.config).streamed_from_weft(weights(system))
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
    ids = _ids(tokenizer, processor)
    _write(folder / "config.json", {**config, **ids, "torch_dtype": _precision(tensors)})
    generation = {**ids, "do_sample": False, **({"suppress_tokens": list(suppressed)} if suppressed else {})}
    _write(folder / "generation_config.json", generation)
    (folder / "chat_template.jinja").write_text(jinja(template(processor.config.template), marker), encoding="utf-8")


def _ids(tokenizer: Tokenizer, processor: Processor) -> dict[str, Any]:
    """What begins a text, fills a row and ends an answer."""
    ends = sorted(processor.stop_ids)
    end = ends[0] if len(ends) == 1 else ends or None
    return {"bos_token_id": tokenizer.begin_id, "pad_token_id": tokenizer.pad_id, "eos_token_id": end}


def _precision(tensors: Mapping[str, Tensor]) -> str:
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


def _with_marker(tokenizer: Tokenizer, rows: int) -> tuple[Tokenizer, int, int]:
    """The tokenizer with a token for images, that token's id, and the rows that the token tables then need."""
    tokenizer = tokenizer if MARKER in tokenizer.special else tokenizer.with_special([MARKER])
    token = tokenizer.special[MARKER]
    return tokenizer, token, rows if token < rows else -(-(token + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE


def _grown(tensors: Mapping[str, Tensor], rows: int, copied: int | None = None) -> dict[str, Tensor]:
    """A model's tensors with more rows in its token tables: copies of one, by default of the mean."""

    def longer(table: Tensor) -> Tensor:
        row = table.float().mean(0).to(table.dtype) if copied is None else table[copied]
        return torch.cat((table, row.expand(rows - len(table), -1)))

    tables = [name for name in _TOKEN_TABLES if name in tensors and len(tensors[name]) < rows]
    return {**tensors, **{name: longer(tensors[name]) for name in tables}}


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
    if family == "Idefics":
        more = {"image_size": transform.size, "image_num_channels": 3}
    if isinstance(transform, EvenCentreTransform) or (transform.shorter_side and not shortest):
        raise CheckpointError(
            f"this layout cuts the centre out of a picture that kept its aspect, from the lower pixel on, not as {transform}; "
            "give the processor an ImageTransform with resize='shortest' or without shorter_side"
        )
    if family in ("Blip", "Idefics") and (shortest or transform.pad_to_square):
        raise CheckpointError(f"this layout holds pictures that are resized to a square, not {transform}; set resize='direct'")
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
    end = min(processor.stop_ids) if tokenizer.end_id is None and processor.stop_ids else tokenizer.end_id
    _write_tokenizer_config(folder, tokenizer, processor.system.context, end, more)


def _write_tokenizer_config(
    folder: Path, tokenizer: Tokenizer, context: int, end: int | None = None, more: Mapping[str, Any] | None = None
) -> None:
    named = {"bos_token": tokenizer.begin_id, "eos_token": end, "pad_token": tokenizer.pad_id}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # 4.x would add token types, which none of these models takes
        **{name: tokenizer.token_of(i) for name, i in named.items() if i is not None},
        **(more or {}),
    }
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
