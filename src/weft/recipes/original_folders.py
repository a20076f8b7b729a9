"""What the code of a published model says of its folder and no file in it does: how texts, pictures and boxes are given.

Layouts that `transformers` reads bring their own processor files; those here were published with code beside the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.checkpoints.weight_files import read_json
from weft.core.errors import CheckpointError
from weft.data.boxes import Boxes, BracketedBoxes, FractionBoxes, ThousandthBoxes
from weft.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from weft.data.media_transform import MediaTransform
from weft.data.templates import TEMPLATES
from weft.data.tiles import AnyResolution, DynamicTiling, PictureTiles

Saved = Mapping[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Convention:
    """`template` from the folder and its config, `transform` from the config and the tower's size in pixels; `tokens` are
    special ones that texts hold around media, if the config says so."""

    template: Callable[[Path, Saved], str]
    transform: Callable[[Saved, int], MediaTransform]
    boxes: Boxes = FractionBoxes()
    tokens: Callable[[Saved], tuple[str, ...]] = lambda saved: ()


def _qwen_vl_template(folder: Path, saved: Saved) -> str:
    settings = folder / "generation_config.json"
    talks = settings.is_file() and read_json(settings).get("chat_format") == "chatml"
    return "qwen_vl" if talks else "qwen_vl_base"


def _named(field: str, names: Mapping[str, str], usual: str) -> Callable[[Path, Saved], str]:
    """The template that a field of the config names."""

    def template(folder: Path, saved: Saved) -> str:
        name = saved.get(field, usual)
        if name not in names:
            raise CheckpointError(f"{folder / 'config.json'} has {field}={name!r}; Weft has templates for {', '.join(names)}")
        return names[name]

    return template


def _llava_template(folder: Path, saved: Saved) -> str:
    """What LLaVA's demo chooses by the name of the model: the folder's, or the one that the config was saved under.

    Its models on Vicuna v1 are demonstrated with "human" where they were trained and measured with "user"; this says "user".
    """
    names = [_name(folder), Path(str(saved.get("_name_or_path", ""))).name]
    name = next((each for each in names if "llava" in each.lower()), " ".join(names)).lower()
    if saved["model_type"] == "llava_mistral":
        kind = "mistral"
    elif "llama-2" in name:
        kind = "llava_llama_2"
    elif "v1.6-34b" in name:
        kind = "llava_chatml"
    elif "v1" in name or ("v0" not in name and saved.get("mm_projector_type", "linear") != "linear"):
        kind = "vicuna_v1"  # the models of v0 have a linear map
    else:
        kind = "llava_v0"
    if tokens := _llava_tokens(saved):
        kind += "_tagged"
        if kind not in TEMPLATES:
            raise CheckpointError(
                f"{folder / 'config.json'} has mm_use_im_start_end; Weft writes {' and '.join(tokens)} around pictures for "
                "models on Vicuna only; set the field to false where the model was trained without them"
            )
    _log.info("%s: conversations are written with the template %s, by the name %r", folder, kind, name)
    return kind


def _llava_tokens(saved: Saved) -> tuple[str, ...]:
    return ("<im_start>", "<im_end>") if saved.get("mm_use_im_start_end", False) else ()


def _name(folder: Path) -> str:
    """A folder's name; of a snapshot in the hub's cache the repository's."""
    return folder.parents[1].name if folder.parent.name == "snapshots" else folder.resolve().name


def _whole(saved: Saved, size: int) -> ImageTransform:
    """The picture stretched to the tower's square, with CLIP's mean."""
    return ImageTransform(size=size, resize="direct")


def _internvl_tiles(saved: Saved, size: int) -> MediaTransform:
    view = ImageTransform(size=size, resize="direct", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if not saved.get("dynamic_image_size", False):
        return view
    tiling = DynamicTiling(min_tiles=saved.get("min_dynamic_patch", 1), max_tiles=saved.get("max_dynamic_patch", 6))
    return PictureTiles(view=view, tiling=tiling, thumbnail=saved.get("use_thumbnail", False))


def _llava_pictures(saved: Saved, size: int) -> MediaTransform:
    """LLaVA's own code reads the pairs of `image_grid_pinpoints` as (width, height), `transformers` as (height, width)."""
    if saved.get("image_aspect_ratio") == "anyres":
        grids = tuple((height // size, width // size) for width, height in saved["image_grid_pinpoints"])
        return PictureTiles(view=ImageTransform(size=size, resize="direct"), tiling=AnyResolution(grids=grids))
    return ImageTransform(size=size, pad_to_square=saved.get("image_aspect_ratio") == "pad")


_COGVLM = {"base": "cogvlm_base", "chat": "cogvlm_talk", "vqa": "cogvlm_vqa"}
_INTERNVL = {"internlm2-chat": "internlm2_chat"}

CONVENTIONS: dict[str, Convention] = {
    "qwen_vl": Convention(_qwen_vl_template, _whole, ThousandthBoxes()),
    "cogvlm": Convention(_named("template_version", _COGVLM, "chat"), _whole, BracketedBoxes()),
    "mono_internvl": Convention(_named("template", _INTERNVL, "internlm2-chat"), _internvl_tiles),
    "llava_original": Convention(_llava_template, _llava_pictures, FractionBoxes(square=True), _llava_tokens),
}
"""By the name of the layout."""
