"""Weft: one design space for multimodal large language models.

The names below are found here and imported where they live on first use, so `import weft` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from weft.core.conversation import Conversation as Conversation
    from weft.core.conversation import Media as Media
    from weft.core.conversation import assistant as assistant
    from weft.core.conversation import user as user
    from weft.core.errors import WeftError as WeftError
    from weft.inference.model import Model as Model
    from weft.inference.sampling import Sampling as Sampling
    from weft.recipes.catalogue import recipe as recipe
    from weft.recipes.encoder_loading import load_encoder as load_encoder
    from weft.recipes.loading import load_model as load_model
    from weft.recipes.loading import save_model as save_model
    from weft.training.stage import Recipe as Recipe
    from weft.training.stage import Stage as Stage
    from weft.training.trainer import Trainer as Trainer

_HOMES = {
    "Conversation": "weft.core.conversation",
    "Media": "weft.core.conversation",
    "assistant": "weft.core.conversation",
    "user": "weft.core.conversation",
    "WeftError": "weft.core.errors",
    "Model": "weft.inference.model",
    "Sampling": "weft.inference.sampling",
    "recipe": "weft.recipes.catalogue",
    "load_encoder": "weft.recipes.encoder_loading",
    "load_model": "weft.recipes.loading",
    "save_model": "weft.recipes.loading",
    "Recipe": "weft.training.stage",
    "Stage": "weft.training.stage",
    "Trainer": "weft.training.trainer",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
