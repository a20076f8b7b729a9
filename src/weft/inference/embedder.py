"""A dual encoder with its processor: media and texts in, vectors of length 1 out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.batch import TextSide
from weft.core.conversation import Conversation, Media, user
from weft.core.errors import DataError
from weft.data.collate import collate
from weft.data.processor import Processor
from weft.inference.model import evaluating
from weft.systems.dual_encoder import DualEncoder


class Embedder:
    """What classifies, retrieves and ranks without a word: a dual encoder, and the processor that it was trained with.

    Vectors are fp32 and on the CPU. Raises: DataError where a vector is not finite.
    """

    def __init__(self, system: DualEncoder, processor: Processor) -> None:
        self.system = system
        self.processor = processor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.system.parameters()).device

    def texts(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Shapes: M texts -> [M, E]."""
        return self._embed("text", [Conversation((user(text),), id=text) for text in texts], batch_size)

    def media(self, media: Sequence[Media], batch_size: int = 64) -> Tensor:
        """Shapes: N media -> [N, E], or [N, L, E] where the system compares features."""
        told = "-"  # a caption that the processor asks for and that no tower reads
        return self._embed("media", [Conversation((user(m, told),), id=str(i)) for i, m in enumerate(media)], batch_size)

    def _embed(self, side: str, conversations: Sequence[Conversation], batch_size: int) -> Tensor:
        parts = []
        with evaluating(self.system), torch.inference_mode():
            for start in range(0, len(conversations), batch_size):
                batch = collate([self.processor.encode(c) for c in conversations[start : start + batch_size]])
                one_side = replace(batch, main=_NO_TEXT) if side == "media" else batch
                # a reduced precision leaves lengths a little off 1
                parts.append(F.normalize(self.system(one_side.to(self.device)).embeddings[side].float().cpu(), dim=-1))
        if not parts:
            raise DataError(f"nothing to embed: no {side} given")
        vectors = torch.cat(parts)
        if not torch.isfinite(vectors).all():
            raise DataError(f"the {side} tower gives vectors that are not finite; its training diverged")
        return vectors


def similarities(media: Tensor, texts: Tensor) -> Tensor:
    """The cosine of every medium with every text; of a medium's features the best counts.

    Shapes: media [N, E] or [N, L, E], texts [M, E] -> [N, M].
    """
    return media @ texts.T if media.dim() == 2 else (media @ texts.T).amax(1)


_NOTHING = torch.zeros(0, 0, dtype=torch.long)
_NO_TEXT = TextSide(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING)
