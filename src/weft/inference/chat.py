"""A conversation that goes on: the cache outlives the turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from weft.core.batch import MultimodalBatch
from weft.core.conversation import Conversation, Message, Part, assistant, system, user
from weft.data.collate import collate
from weft.inference.continuation import behind, shared_prefix, with_tokens
from weft.inference.generate import Decoding, FinishReason
from weft.inference.model import Model, Reply, answer_text, evaluating, stream_text
from weft.inference.sampling import Sampling


class ChatSession:
    """Several turns with one model; what the cache holds of the conversation is neither encoded nor read again.

    Each turn renders the whole conversation anew and reads only what differs from the tokens and media in the cache, so a
    template that rewrites earlier turns costs time and changes no answer.
    """

    def __init__(
        self,
        model: Model,
        settings: Sampling = Sampling(),  # noqa: B008 - frozen
        system_prompt: str | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self._opening: tuple[Message, ...] = (system(system_prompt),) if system_prompt is not None else ()
        self.reset()

    def reset(self) -> None:
        """Forget every turn."""
        self.conversation = Conversation(self._opening, id="chat")
        self.num_tokens_read = 0  # by the last turn's prefill
        self._decoding: Decoding | None = None
        self._stored: MultimodalBatch | None = None

    def ask(self, *parts: Part | str) -> Reply:
        """One turn: text and media in, the reply out.

        Raises: ContextTooShort, DataError; the session is then as it was before the turn.
        """
        turn = _Turn(self, user(*parts))
        for _ in turn.stream():
            pass
        return turn.reply()

    def stream(self, *parts: Part | str) -> Iterator[str]:
        """One turn, its text piece by piece. A reader who stops early leaves what was said so far in the conversation."""
        return _Turn(self, user(*parts)).stream()


class _Turn:
    """One question and its answer while it is written."""

    def __init__(self, session: ChatSession, question: Message) -> None:
        self.session = session
        self.start = time.perf_counter()
        model, settings = session.model, session.settings
        self.conversation = replace(session.conversation, messages=(*session.conversation.messages, question))
        sample = model.processor.encode(self.conversation, reply=True)
        self.batch = collate([sample]).to(model.device)
        self.num_prompt_tokens, self.length = len(sample), sample.num_written
        stored = 0 if session._stored is None else shared_prefix(session._stored, self.batch)
        if session._decoding is None or stored == 0:
            session._decoding = Decoding(model.system, capacity=2 * (self.length + settings.max_new_tokens))
        else:
            session._decoding.cache.crop(stored)
        self.decoding = session._decoding
        session._stored = None  # until the prefill is through, nothing is known of what the cache holds
        with evaluating(model.system):
            self.logits = self.decoding.prefill(behind(self.batch, stored))
        session.num_tokens_read = self.batch.num_tokens - stored
        self.text = answer_text(model.processor, settings)
        self.tokens: list[int] = []
        self.first_token_seconds = 0.0

    def stream(self) -> Iterator[str]:
        session, model = self.session, self.session.model
        try:
            for piece in stream_text(
                model.system, self.decoding, self.logits, self.text, session.settings, model.processor.stop_ids, self.tokens
            ):
                self.first_token_seconds = self.first_token_seconds or time.perf_counter() - self.start
                yield piece
        finally:
            read = self.tokens[: self.decoding.cache.length - self.length]
            session._stored = with_tokens(self.batch, read)
            session.conversation = replace(
                self.conversation, messages=(*self.conversation.messages, assistant(self.text.text, train=False))
            )

    def reply(self) -> Reply:
        stopped = self.text.stopped or len(self.tokens) < min(self.session.settings.max_new_tokens, self.decoding.room[0])
        reason: FinishReason = "stop" if stopped else "length"
        seconds = time.perf_counter() - self.start
        first = self.first_token_seconds or seconds
        return Reply(self.text.text, tuple(self.tokens), reason, self.num_prompt_tokens, seconds, first)
