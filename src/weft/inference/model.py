"""A system with its processor: conversations in, replies out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from weft.core.conversation import Conversation
from weft.data.collate import collate
from weft.data.encoded_sample import EncodedSample
from weft.data.processor import Processor
from weft.inference.answer_text import AnswerText
from weft.inference.generate import Decoding, FinishReason, generate_tokens
from weft.inference.sampling import Sampling
from weft.systems.multimodal_lm import MultimodalSystem

_SORTED_TOGETHER = 16  # batches whose conversations are ordered by length among themselves


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    `token_ids` are the answer's tokens without the stop id; where a stop string ended it they go up to the token that completed
    the string, which `text` leaves out. Units: `seconds` from the start of the reply's batch to its last token,
    `first_token_seconds` to its first.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    seconds: float
    first_token_seconds: float


class Model:
    """What is chatted with, measured and served: a system, and the processor that it was trained with."""

    def __init__(self, system: MultimodalSystem, processor: Processor) -> None:
        self.system = system
        self.processor = processor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.system.parameters()).device

    def generate(
        self,
        conversations: Sequence[Conversation],
        settings: Sampling = Sampling(),  # noqa: B008 - frozen
        *,
        batch_size: int = 32,
    ) -> list[Reply]:
        """One reply per conversation, in order. Conversations of similar length share a batch; a batch changes no reply.

        Raises: ContextTooShort, DataError for a conversation that cannot be encoded.
        """
        replies: list[Reply | None] = [None] * len(conversations)
        with evaluating(self.system):
            for start in range(0, len(conversations), batch_size * _SORTED_TOGETHER):
                together = range(start, min(len(conversations), start + batch_size * _SORTED_TOGETHER))
                samples = {index: self.processor.encode(conversations[index], reply=True) for index in together}
                by_length = sorted(together, key=lambda index: len(samples[index]), reverse=True)
                for first in range(0, len(by_length), batch_size):
                    indices = by_length[first : first + batch_size]
                    for index, reply in zip(
                        indices, self._replies([samples[i] for i in indices], indices, settings), strict=True
                    ):
                        replies[index] = reply
        return [reply for reply in replies if reply is not None]

    def stream(self, conversation: Conversation, settings: Sampling = Sampling()) -> Iterator[str]:  # noqa: B008 - frozen
        """The reply's text in pieces, as soon as each is certain; joined they are the text that `generate` returns.

        The prompt is read before this returns, so what is wrong with a conversation is raised here.
        """
        sample = self.processor.encode(conversation, reply=True)
        text = answer_text(self.processor, settings)
        with evaluating(self.system):
            decoding = Decoding(self.system, capacity=sample.num_written + settings.max_new_tokens)
            logits = decoding.prefill(collate([sample]).to(self.device))
        return stream_text(self.system, decoding, logits, text, settings, self.processor.stop_ids)

    def _replies(self, samples: Sequence[EncodedSample], streams: Sequence[int], settings: Sampling) -> list[Reply]:
        start = time.perf_counter()
        texts = [answer_text(self.processor, settings) for _ in samples]
        tokens: list[list[int]] = [[] for _ in samples]
        reasons: list[FinishReason] = ["length" for _ in samples]
        first, last = [0.0] * len(samples), [0.0] * len(samples)
        ended: set[int] = set()
        decoding = Decoding(self.system, capacity=max(sample.num_written for sample in samples) + settings.max_new_tokens)
        logits = decoding.prefill(collate(samples).to(self.device))
        for events in generate_tokens(decoding, logits, settings, self.processor.stop_ids, streams, ended):
            now = time.perf_counter() - start
            for event in events:
                row = event.row
                first[row] = first[row] or now
                last[row] = now
                if event.finish != "stop":
                    tokens[row].append(event.token)
                    texts[row].push(event.token)
                if event.finish is not None:
                    texts[row].finish()
                if event.finish == "stop" or texts[row].stopped:
                    reasons[row] = "stop"
                    ended.add(row)
        return [
            Reply(texts[i].text, tuple(tokens[i]), reasons[i], len(samples[i]), last[i], first[i]) for i in range(len(samples))
        ]


def answer_text(processor: Processor, settings: Sampling) -> AnswerText:
    """The text of one answer under a processor's template, which says what leads it in and what ends it."""
    return AnswerText(processor.decode, (*settings.stop, *processor.template.stop), processor.template.answer_lead)


def stream_text(
    system: nn.Module,
    decoding: Decoding,
    logits: torch.Tensor,
    text: AnswerText,
    settings: Sampling,
    stop_ids: frozenset[int],
    tokens: list[int] | None = None,
) -> Iterator[str]:
    """The text of one prefilled row, piece by piece; its tokens are written to `tokens` where that is given."""
    ended: set[int] = set()
    with evaluating(system):
        for (event,) in generate_tokens(decoding, logits, settings, stop_ids, ended=ended):
            piece = ""
            if event.finish != "stop":
                if tokens is not None:
                    tokens.append(event.token)
                piece = text.push(event.token)
            if event.finish is not None:
                piece += text.finish()
            if text.stopped:
                ended.add(event.row)
            if piece:
                yield piece


@contextmanager
def evaluating(system: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module is in the mode in which it was."""
    training = [module for module in system.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
