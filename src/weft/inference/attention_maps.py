"""Where the model looked: the attention of answer tokens over a medium's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.core.batch import MultimodalBatch
from weft.core.conversation import Conversation
from weft.core.errors import AttentionError
from weft.core.layout import MediaLayout
from weft.data.collate import collate
from weft.inference.continuation import with_tokens
from weft.inference.model import Model, evaluating
from weft.layers.kernels import record_attention
from weft.systems.multimodal_lm import MultimodalLM

TOLERANCE = 1e-5  # of logits between the dense reference path and the fast one, in float32, times the largest logit above 1


@dataclass(frozen=True)
class AttentionMap:
    """Attention over the grid of one medium, averaged over the chosen tokens, the layers and the heads.

    Shapes: `values` [rows, columns], probabilities. `share` is their sum: how much of all attention went to this medium, where
    spreading it evenly over the tokens in view would give `even_share`. `logit_difference` is the largest difference between
    the reference path that was recorded and the fast path.
    """

    values: Tensor
    share: float
    even_share: float
    logit_difference: float


def attention_map(
    model: Model,
    conversation: Conversation,
    token_ids: Sequence[int],
    *,
    chosen: Sequence[int] | None = None,
    medium: int = 0,
    stream: str = "image",
) -> AttentionMap:
    """Where the model looked while it wrote an answer.

    `conversation` ends with the question, `token_ids` are the reply's; `chosen` names tokens of the reply (None: all). A
    token's attention is that of the step that wrote it. `medium` counts the stream's media in the conversation.

    Raises: AttentionError where the medium or tokens do not exist, the medium has no grid in the text, or the reference path
    does not reproduce the fast path's logits.
    """
    if not isinstance(model.system, MultimodalLM):
        raise AttentionError("a decoder looks at media through its encoder; a map needs media that stand in the text it writes")
    sample = model.processor.encode(conversation, reply=True)
    batch = with_tokens(collate([sample]).to(model.device), token_ids)
    places = range(len(token_ids)) if chosen is None else chosen
    wrong = [place for place in places if not 0 <= place < len(token_ids)]
    if wrong or not places:
        raise AttentionError(f"the reply has {len(token_ids)} tokens, chosen were {list(places)}; choose from 0 on")
    with evaluating(model.system):
        return map_of_row(model.system, batch, [len(sample) - 1 + place for place in places], medium, stream)


@torch.inference_mode()
def map_of_row(
    system: MultimodalLM, batch: MultimodalBatch, queries: Sequence[int], medium: int = 0, stream: str = "image"
) -> AttentionMap:
    """The attention of the tokens at indices `queries` of a one-row batch over one medium.

    Raises: AttentionError as `attention_map` does.
    """
    if system.config.visibility(stream) is not None:
        raise AttentionError(
            f"stream {stream!r} stands beside the text and not in it; a map needs media that are tokens of the text"
        )
    spans = _spans(batch, medium, stream)
    sequence = system.sequence(batch)
    model = system.language_model
    index = torch.tensor(list(queries), device=spans.device)
    fast = system.head(model(sequence)[0][0, index])
    with record_attention() as maps:
        dense = system.head(model(sequence)[0][0, index])
    difference = float((fast.float() - dense.float()).abs().amax())
    allowed = TOLERANCE * max(1.0, float(dense.abs().amax()))
    if not difference <= allowed:
        raise AttentionError(
            f"the dense reference path differs from the fast path by {difference:.2e} in logits, {allowed:.2e} allowed, so its "
            f"map would not be of the served model; weights are in {fast.dtype}, load the model in float32"
        )
    keys = torch.cat([torch.arange(start, start + length, device=spans.device) for start, length in spans[:, 3:].tolist()])
    attention = torch.stack([probabilities[0][:, index] for probabilities in maps]).mean((0, 1))  # [queries, T]
    over_medium = attention[:, keys].mean(0)
    projector = system.stream(stream).projector
    if not projector.config.keeps_places:
        raise AttentionError(
            f"the tokens of {type(projector).__name__} stand for no places; a map needs a projector that keeps places"
        )
    grid = grid_of(batch.media[stream].layout[medium], len(keys))
    even = len(keys) * float((1.0 / (index + 1.0)).mean())
    return AttentionMap(over_medium.view(grid).cpu(), float(over_medium.sum()), even, difference)


def grid_of(layout: MediaLayout, num_tokens: int) -> tuple[int, int]:
    """Rows and columns of the tokens that a medium became: the feature grid, or that grid made coarser by a whole factor.

    Raises: AttentionError for a number of tokens that makes no grid.
    """
    if layout.num_units == 1 and num_tokens > 0 and layout.positions % num_tokens == 0:
        factor = math.isqrt(layout.positions // num_tokens)
        if factor**2 * num_tokens == layout.positions and layout.height % factor == 0 and layout.width % factor == 0:
            return layout.height // factor, layout.width // factor
    raise AttentionError(
        f"{num_tokens} tokens of a medium with {layout.frames} x {layout.height} x {layout.width} features have no grid; "
        "a map needs a projector that keeps places"
    )


def _spans(batch: MultimodalBatch, medium: int, stream: str) -> Tensor:
    """The spans of a medium in the order of its tokens."""
    known = {name: len(media.layout) for name, media in batch.media.items()}
    if not 0 <= medium < known.get(stream, 0):
        raise AttentionError(f"the conversation has no medium {medium} of stream {stream!r}; it has {known or 'none'}")
    spans = batch.media[stream].spans
    spans = spans[spans[:, 0] == medium]
    return spans[spans[:, 1].argsort()]
