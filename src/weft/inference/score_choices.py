"""Ranking given answers by their likelihood, with what they share computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from weft.core.batch import IGNORE, MultimodalBatch
from weft.core.conversation import Conversation, assistant
from weft.core.errors import DataError
from weft.data.collate import collate
from weft.inference.cache import KeyValueCache
from weft.inference.continuation import before, behind, shared_prefix
from weft.inference.generate import read
from weft.inference.model import Model, evaluating
from weft.systems.multimodal_lm import MultimodalSystem


@dataclass(frozen=True)
class ChoiceScore:
    """The summed log-likelihood of an answer's tokens, its end included, and how many they are."""

    log_likelihood: float
    num_tokens: int


def score_choices(
    model: Model, conversation: Conversation, choices: Sequence[str], *, batch_size: int = 32
) -> list[ChoiceScore]:
    """How likely the model finds each answer to a conversation that ends with the question.

    The longest common prefix of all candidates, whole media only, is read once and its cache repeated for each; so is what an
    encoder reads.

    Raises: DataError where there is nothing to choose from.
    """
    if not choices:
        raise DataError(f"conversation {conversation.name}: no choices to score; give at least one")
    told = tuple(replace(message, train=False) for message in conversation.messages)
    candidates = [replace(conversation, messages=(*told, assistant(choice, train=True))) for choice in choices]
    samples = [model.processor.encode(candidate) for candidate in candidates]
    rows = [collate([sample]).to(model.device) for sample in samples]
    shared = min(shared_prefix(rows[0], row) for row in rows)
    lengths = [sample.num_written for sample in samples]
    shared = min(shared, min(lengths) - 1)
    with evaluating(model.system), torch.inference_mode():
        cache = KeyValueCache.of(model.system.language_model, max(lengths))
        hidden = read(model.system, before(rows[0], shared), cache) if shared else None
        scores = []
        for start in range(0, len(samples), batch_size):
            batch = collate(samples[start : start + batch_size]).to(model.device)
            if shared:
                cache.crop(shared)
                cache.select([0] * len(batch.written.tokens))
            else:
                cache = KeyValueCache.of(model.system.language_model, max(lengths))
            scores += _score(model.system, batch, shared, cache, hidden)
    return scores


def _score(
    system: MultimodalSystem, batch: MultimodalBatch, shared: int, cache: KeyValueCache, hidden: torch.Tensor | None
) -> list[ChoiceScore]:
    """The candidates of one batch; `hidden` [1, shared, D] is that of their common tokens."""
    rest = read(system, behind(batch, shared), cache)
    if hidden is not None:
        rest = torch.cat((hidden.expand(len(rest), -1, -1), rest), 1)
    targets = batch.written.targets["text"]
    counted = targets != IGNORE
    logits = system.head(rest[counted]).float()
    likelihood = logits.log_softmax(-1).gather(-1, targets[counted][:, None]).squeeze(-1)
    row = counted.nonzero()[:, 0]
    sums = torch.zeros(len(targets), dtype=torch.float64, device=targets.device).index_add_(0, row, likelihood.double())
    return [ChoiceScore(total, count) for total, count in zip(sums.tolist(), counted.sum(1).tolist(), strict=True)]
