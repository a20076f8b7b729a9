"""Zero-shot classification: a medium belongs to the class whose texts it lies nearest to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.conversation import Conversation
from weft.core.errors import DataError
from weft.evaluation.classes import Classes, Ranked
from weft.evaluation.statistics import Estimate, Marks, of_type
from weft.evaluation.ties import recall_at
from weft.inference.embedder import Embedder, similarities
from weft.inference.sampling import Sampling


def class_embeddings(texts: Tensor, num_classes: int) -> Tensor:
    """One vector a class: the mean of its texts' vectors, each of length 1, brought to length 1 again.

    Shapes: texts [num_classes * templates, E] in the order of `Classes.texts` -> [num_classes, E].
    Source: CLIP, arXiv:2103.00020, section 3.1.4.
    """
    return F.normalize(F.normalize(texts, dim=-1).unflatten(0, (num_classes, -1)).mean(1), dim=-1)


def accuracy(scores: Tensor, truth: Sequence[int], k: int = 1, groups: Sequence[str] | None = None) -> Estimate:
    """The share of media whose class is among the `k` of highest score, with its 95% interval; ties count by chance.

    Shapes: scores [N, classes], truth N class numbers; media of one group are not independent (frames of one video).
    """
    numbers = torch.as_tensor(truth)
    if len(numbers) != len(scores) or not len(scores):
        raise DataError(f"accuracy needs one class number per medium, got {len(numbers)} for {len(scores)} media")
    if int(numbers.min()) < 0 or int(numbers.max()) >= scores.shape[1]:
        raise DataError(f"class numbers lie in 0 to {scores.shape[1] - 1}, got {int(numbers.min())} to {int(numbers.max())}")
    marks = recall_at(scores, F.one_hot(numbers, scores.shape[1]).bool(), k)
    names = groups if groups is not None else [str(i) for i in range(len(scores))]
    return of_type(Marks(tuple(marks.tolist()), tuple(names)))


class ZeroShotModel:
    """A dual encoder that answers the questions of a benchmark with `classes`, as a language model would answer others'.

    A conversation says by `meta["classes"]` which classes it is about; its first medium is classified.
    """

    def __init__(self, embedder: Embedder, classes: Mapping[str, Classes], k: int = 1) -> None:
        self.embedder = embedder
        self.system = embedder.system
        self.processor = embedder.processor
        self.classes = classes
        self.k = k

    @cached_property
    def _vectors(self) -> dict[str, Tensor]:
        texts = {name: self.embedder.texts(classes.texts()) for name, classes in self.classes.items()}
        return {name: class_embeddings(vectors, len(self.classes[name].names)) for name, vectors in texts.items()}

    def generate(self, conversations: Sequence[Conversation], settings: Sampling, *, batch_size: int = 32) -> list[Ranked]:
        """The ranking of classes for each conversation, in order; nothing is sampled."""
        media = self.embedder.media([next(c.media()) for c in conversations], batch_size)
        ranked = []
        for row, conversation in enumerate(conversations):
            about = conversation.meta["classes"]
            scores = similarities(media[row : row + 1], self._vectors[about])[0]
            ranked.append(Ranked.of(scores, self.classes[about].names, self.k))
        return ranked
