"""Conversation in, batch row out: the only place that writes placeholders, masks and spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from weft.core import config
from weft.core.batch import IGNORE
from weft.core.conversation import Conversation, Media, Message, Region
from weft.core.errors import ConfigError, ContextTooShort, DataError, UnreadableMedium
from weft.core.interfaces import System
from weft.core.layout import MediaLayout
from weft.data.boxes import Boxes, FractionBoxes
from weft.data.encoded_sample import EncodedAnswer, EncodedMedium, EncodedSample
from weft.data.followed_media import in_every_stream
from weft.data.media_transform import MediaTransform, OpenedMedium
from weft.data.rendering import (
    Rendering,
    WriteRegion,
    answer_text,
    answers_apart,
    caption,
    divided,
    question_and_answer,
    render,
)
from weft.data.templates import template
from weft.data.tokenizers import Tokenizer
from weft.data.visibility import visible_media


class Processor:
    """Turns conversations into tokens, targets, positions, media values and spans.

    A conversation is rendered once, and the whole text is encoded in one call, as the published processors do. What is learned
    is decided by characters: a token is a target iff it holds a character of a trained answer or of its end.
    Where the tokenizer has a token for a stream's medium (`<image>`, `<|image|>`), it stands in the text and is repeated for
    every position of the medium, as `transformers` does; where it has none, the text is cut at the media and its pieces are
    encoded apart, as the first LLaVA code did.
    Where a stream's projector reads instructions, the text before the answer goes to it too, in the vocabulary of
    `tokenizer.instructions` and between that one's own begin and end. Where a projector is all that reads, the whole text is in
    that vocabulary, if the tokenizer brings it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """`template` names a chat template; `transforms` one per stream; `boxes` how regions are written; a
        projector reads the last `instruction_tokens` of a longer instruction."""

        template: str = "vicuna_v1"
        transforms: Mapping[str, MediaTransform] = field(default_factory=dict)
        boxes: Boxes = FractionBoxes()
        instruction_tokens: int = 128

        def build(self, tokenizer: Tokenizer, system: System.Config) -> Processor:
            return Processor(self, tokenizer, system)

    def __init__(self, config: Config, tokenizer: Tokenizer, system: System.Config) -> None:
        self.config = config
        self.system = system
        if system.reads_instructions_alone and tokenizer.instructions is not None:
            tokenizer = tokenizer.instructions
        self.tokenizer = tokenizer.with_instructions(self._instructions(tokenizer))
        self.template = template(config.template)
        self._streams: dict[str, _Stream] = {}
        if system.vocabulary is not None and tokenizer.vocabulary > system.vocabulary:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocabulary} ids and the system's token table {system.vocabulary} rows; "
                "give the tokenizer that the system was made for, or a larger vocabulary"
            )
        missing = [t for t in config.boxes.special_tokens if t not in tokenizer.special]
        if missing:
            raise ConfigError(
                f"the tokenizer lacks {len(missing)} box tokens such as {missing[0]!r}; "
                "pass boxes.special_tokens to Tokenizer.train or Tokenizer.with_special"
            )
        self._silent = tokenizer.silent - {tokenizer.special[t] for t in config.boxes.special_tokens}
        self.stop_ids = self._stop_ids()
        self._by_template: dict[str, Processor] = {}

    def encode(self, conversation: Conversation, max_tokens: int | None = None, reply: bool = False) -> EncodedSample:
        """One conversation as arrays, written by the template that it names (`meta["template"]`), else by the processor's.

        `max_tokens` cuts the end of a longer conversation, never a medium; of a document (`meta["document"]`) the media behind
        the cut go with their text. With `reply` the tokens end where the assistant
        is to speak, nothing is a target, and nothing is cut. For a system with a decoder the last answer is what the decoder
        writes and everything before it is what the encoder reads; each of the two has at most `max_tokens`.

        Raises: DataError where text, markers and media disagree; UnreadableMedium where a medium cannot be read;
        ContextTooShort where a medium or a prompt does not fit into `max_tokens`.
        """
        named = conversation.meta.get("template", self.config.template)
        if named != self.config.template:
            return self._written_by(named).encode(conversation, max_tokens, reply)
        conversation = in_every_stream(conversation, self.system.followers)
        if self.system.context == 0:
            return self._encode_media(conversation)
        if self.template.caption:
            return self._encode_caption(conversation, max_tokens)
        answer: Message | None = None
        if has_decoder := self.system.decoder_start is not None:
            conversation, answer = question_and_answer(conversation, reply)
            if answer is not None and self.template.answer_divided:
                conversation, answer = divided(conversation, answer)
        opened = [self._open(conversation, medium, i) for i, medium in enumerate(conversation.media())]
        markers = {name: stream.marker for name, stream in self._streams.items()}
        regions: WriteRegion = lambda r: self._region(conversation, r, opened)  # noqa: E731
        written = render(conversation, self.template, markers, regions, reply or has_decoder)
        row = self._tokens(conversation, written, [medium.num_positions for medium in opened])
        end = self.tokenizer.end if has_decoder else ()  # what an encoder reads is a whole text
        if max_tokens is not None and len(row.tokens) > max_tokens - len(end):
            row = row.cut(self._cut(conversation, row, max_tokens - len(end), reply))
            written.media = written.media[: len(row.places)]
        row = row.followed_by(end)
        targets = np.full_like(row.tokens, IGNORE)
        learned = row.learned[1:].nonzero()[0]
        targets[learned] = row.tokens[learned + 1]
        said = answer_text(answer, self.template, regions) if answer is not None else ""
        media: dict[str, list[EncodedMedium]] = {}
        for (start, count), (_, index, medium) in zip(row.places, written.media, strict=True):
            spans = ((0, start, count),) if count else ()
            asked = self._instruction(medium.stream, written)
            media.setdefault(medium.stream, []).append(opened[index].encoded(spans, asked))
        return EncodedSample(
            tokens=row.tokens,
            targets=targets,
            modality=row.modality,
            media={stream: tuple(items) for stream, items in media.items()},
            id=conversation.id,
            source=conversation.source,
            group=str(conversation.meta.get("group", "")),
            text=written.text + said,
            visible=self._visible(conversation, written, row),
            positions=self._positions(written, row),
            decoder=self._decoder_side(conversation, answer, said, max_tokens),
            weight=float(conversation.meta.get("loss_weight", 1.0)),
        )

    def encode_all(self, conversation: Conversation, max_tokens: int | None = None) -> tuple[EncodedSample, ...]:
        """What is learned of a conversation, as samples: one, but for a system with a decoder one for every answer that is
        learned, each with all before it in what the encoder reads.

        `max_tokens` cuts the first as `encode` does. Of later answers those are left out whose question lies beyond it: a text
        of one piece would have lost them at its end.

        Raises: as `encode`.
        """
        turns = answers_apart(conversation) if self.system.decoder_start is not None else (conversation,)
        samples = [self.encode(turns[0], max_tokens)]
        for number, turn in enumerate(turns[1:], start=2):
            sample = self.encode(replace(turn, id=f"{turn.id}.{number}"))
            if max_tokens is not None and len(sample) > max_tokens:
                break
            assert sample.decoder is not None
            samples.append(replace(sample, decoder=sample.decoder.cut(max_tokens)))
        return tuple(samples)

    def _written_by(self, name: str) -> Processor:
        """This processor with another template."""
        if name not in self._by_template:
            other = copy(self)
            other.config, other.template = replace(self.config, template=name), template(name)
            other.stop_ids = other._stop_ids()
            self._by_template[name] = other
        return self._by_template[name]

    def _decoder_side(
        self, conversation: Conversation, answer: Message | None, said: str, max_tokens: int | None
    ) -> EncodedAnswer | None:
        """The start token and, where there is an answer, its tokens and its end."""
        start = self.system.decoder_start
        if start is None:
            return None
        if answer is None:
            return EncodedAnswer(np.array([start], np.int64), np.array([IGNORE], np.int64))
        self._check_markers(conversation, Rendering(), said)
        ids = self.tokenizer.encode(said)
        if not ids or ids[-1] not in self.stop_ids:
            ids += self.tokenizer.end or self._text_end()
        ids = ids[:max_tokens]
        targets = np.array(ids, np.int64)
        return EncodedAnswer(np.array([start, *ids[:-1]], np.int64), targets if answer.train else np.full_like(targets, IGNORE))

    def _visible(self, conversation: Conversation, written: Rendering, row: _Row) -> dict[str, np.ndarray]:
        """By stream that is reached through cross-attention, what each token sees. A conversation may have its own rule, as the
        interleaved documents of Flamingo's training do: `meta["visibility"]`."""
        visible = {}
        ends = (row.tokens == self.tokenizer.end_id).nonzero()[0]
        for stream in self.config.transforms:
            rule = self.system.visibility(stream)
            if rule is not None:
                places = [place for (place, _), (_, _, m) in zip(row.places, written.media, strict=True) if m.stream == stream]
                rule = conversation.meta.get("visibility", rule)
                visible[stream] = visible_media(rule, places, len(row.tokens), ends)
        return visible

    def _positions(self, written: Rendering, row: _Row) -> np.ndarray | None:
        """The tokens' positions where media share some: those between a medium's first and last token stand at one."""
        steps = np.ones(len(row.tokens), dtype=np.int64)
        for (start, count), (_, _, medium) in zip(row.places, written.media, strict=True):
            if self.system.shares_positions(medium.stream):
                steps[start + 2 : start + count - 1] = 0
        return None if steps.all() else steps.cumsum() - 1

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out except those of boxes."""
        return self.tokenizer.decode((i for i in map(int, token_ids) if i not in self._silent), skip_special=False)

    def _encode_caption(self, conversation: Conversation, max_tokens: int | None) -> EncodedSample:
        text = caption(conversation)
        limit = min(max_tokens or self.system.context, self.system.context)
        begin, end = list(self.tokenizer.begin), self._text_end()
        if limit <= len(begin) + len(end):
            raise ContextTooShort(
                f"sample {conversation.name}: {limit} tokens leave no room for a caption between begin and end"
            )
        ids = begin + self.tokenizer.encode(text)[: limit - len(begin) - len(end)] + end
        if self.template.pad_to_context:
            ids += end * (limit - len(ids))
        return self._encode_media(conversation, ids, text)

    def _encode_media(self, conversation: Conversation, ids: Sequence[int] = (), text: str = "") -> EncodedSample:
        """Media beside a text that has no place for them; without ids, for a system that reads no text at all."""
        media: dict[str, list[EncodedMedium]] = {}
        for i, medium in enumerate(conversation.media()):
            media.setdefault(medium.stream, []).append(self._open(conversation, medium, i).encoded(()))
        tokens = np.array(ids, dtype=np.int64)
        targets = np.full_like(tokens, IGNORE)
        if self.template.learned:
            targets[:-1] = tokens[1:]
        return EncodedSample(
            tokens=tokens,
            targets=targets,
            modality=np.zeros_like(tokens),
            media={stream: tuple(items) for stream, items in media.items()},
            id=conversation.id,
            source=conversation.source,
            group=str(conversation.meta.get("group", "")),
            text=text,
            weight=float(conversation.meta.get("loss_weight", 1.0)),
        )

    def _text_end(self) -> list[int]:
        if self.tokenizer.end_id is None:
            raise ConfigError(f"template {self.template.name!r} ends texts with an end token and the tokenizer has none")
        return [self.tokenizer.end_id]

    def _tokens(self, conversation: Conversation, written: Rendering, positions: Sequence[int]) -> _Row:
        """Encode the text around the media and give each medium its number of positions."""
        text = written.text
        self._check_markers(conversation, written, text)
        ids: list[int] = [] if self.template.begin else list(self.tokenizer.begin)
        at: list[int] = []  # where the media without a marker stand among the ids
        apart = [(character, True) for character, _, medium in written.media if not self._streams[medium.stream].marker]
        if self.template.media_before_begin:
            at, apart = list(range(len(written.media))), []
            ids = [0] * len(at) + ids
        starts, ends = [np.zeros(len(ids), np.int64)], [np.zeros(len(ids), np.int64)]
        done = 0
        for character, is_medium in sorted([*apart, *((cut, False) for cut in written.cuts), (len(text), False)]):
            if character > done:
                piece = self.tokenizer.encode_with_offsets(text[done:character])
                ids.extend(piece.ids)
                starts.append(piece.start + done)
                ends.append(piece.end + done)
            if is_medium:
                at.append(len(ids))
                ids.append(0)
                starts.append(np.full(1, character))
                ends.append(np.full(1, character))
            done = character
        tokens, start, end = np.array(ids, np.int64), np.concatenate(starts), np.concatenate(ends)
        learned = np.zeros(len(tokens), dtype=bool)
        if written.trained:
            first, last = np.array(written.trained).T
            for here, there in zip(end.searchsorted(first, "right"), start.searchsorted(last, "left"), strict=True):
                learned[here:there] = True
        if not written.media:
            return _Row(tokens, learned, np.zeros_like(tokens), [])
        return self._with_media(conversation, written, tokens, learned, at, positions)

    def _with_media(
        self,
        conversation: Conversation,
        written: Rendering,
        tokens: np.ndarray,
        learned: np.ndarray,
        at: list[int],
        positions: Sequence[int],
    ) -> _Row:
        standing = np.zeros(len(tokens), dtype=bool)
        standing[at] = True
        for stream in {medium.stream for _, _, medium in written.media}:
            marker_id = self._streams[stream].marker_id
            if marker_id is not None:
                standing |= tokens == marker_id
        index = standing.nonzero()[0]
        if len(index) != len(written.media):
            raise DataError(
                f"sample {conversation.name}: {len(written.media)} media and {len(index)} media tokens in its encoded text; "
                "does the text hold the tokenizer's media token?"
            )
        counts = np.ones(len(tokens), dtype=np.int64)
        counts[index] = [positions[number] for _, number, _ in written.media]
        first = counts.cumsum() - counts
        places = [(int(first[i]), int(counts[i])) for i in index]
        return _Row(tokens.repeat(counts), learned.repeat(counts), standing.repeat(counts).astype(np.int64), places)

    def _check_markers(self, conversation: Conversation, written: Rendering, text: str) -> None:
        for stream in {"image", *self.config.transforms, *self._streams}:
            known = self._streams.get(stream)
            marker = (known.marker if known else "") or f"<{stream}>"
            marked = known is not None and known.marker and not self.template.media_before_begin
            expected = sum(medium.stream == stream for _, _, medium in written.media) if marked else 0
            if (found := text.count(marker)) != expected:
                media = sum(medium.stream == stream for _, _, medium in written.media)
                raise DataError(
                    f"sample {conversation.name}: its text writes the marker {marker} {found - expected} times itself, beside "
                    f"{media} {stream} parts; media are Media parts, not text"
                )

    def _cut(self, conversation: Conversation, row: _Row, max_tokens: int, reply: bool) -> int:
        """The length that a conversation is cut to."""
        if reply:
            raise ContextTooShort(
                f"sample {conversation.name}: the prompt needs {len(row.tokens)} tokens, {max_tokens} are available; "
                "shorten the conversation or raise the context"
            )
        if conversation.meta.get("document"):
            return min([max_tokens, *(start for start, count in row.places if start + count > max_tokens)])
        for number, (start, count) in enumerate(row.places, start=1):
            if start + count > max_tokens:
                raise ContextTooShort(
                    f"sample {conversation.name}: medium {number} of {len(row.places)} needs {count} positions and ends at "
                    f"token {start + count}, {max_tokens} are available; raise max_tokens, media are never cut"
                )
        return max_tokens

    def _stream(self, name: str) -> _Stream:
        if name not in self._streams:
            if name not in self.config.transforms:
                raise ConfigError(f"no transform for stream {name!r}; this processor has {sorted(self.config.transforms)}")
            marker = next((m for m in (f"<{name}>", f"<|{name}|>") if m in self.tokenizer.special), "")
            self._streams[name] = _Stream(
                self.config.transforms[name],
                self.system.layout(name),
                marker,
                self.tokenizer.special.get(marker),
            )
        return self._streams[name]

    def _instructions(self, tokenizer: Tokenizer) -> Tokenizer | None:
        """The tokenizer of instructions, where a stream reads them. Raises: ConfigError where it is missing or too large."""
        rows = [self.system.instruction_vocabulary(stream) for stream in self.config.transforms]
        if not (reading := [vocabulary for vocabulary in rows if vocabulary is not None]):
            return None
        if tokenizer.instructions is None:
            raise ConfigError(
                "this system's projector reads instructions in a vocabulary of its own and the tokenizer brings none for them; "
                "give a folder that holds one in qformer_tokenizer/, or Tokenizer.with_instructions"
            )
        if tokenizer.instructions.vocabulary > min(reading):
            raise ConfigError(
                f"the tokenizer of instructions has {tokenizer.instructions.vocabulary} ids and the projector's table "
                f"{min(reading)} rows; give the one that the projector was made for"
            )
        return tokenizer.instructions

    def _instruction(self, stream: str, written: Rendering) -> np.ndarray | None:
        """What is asked about a medium of a stream, for a projector that reads it."""
        words = self.tokenizer.instructions
        if words is None or self.system.instruction_vocabulary(stream) is None:
            return None
        asked = written.asked
        for known in self._streams.values():
            asked = asked.replace(known.marker, "") if known.marker else asked
        ids = words.encode(asked)
        room = self.config.instruction_tokens - len(words.begin) - len(words.end)
        return np.array([*words.begin, *ids[max(0, len(ids) - room) :], *words.end], np.int64)

    def _open(self, conversation: Conversation, medium: Media, index: int) -> _Opened:
        stream = self._stream(medium.stream)
        try:
            opened = stream.transform.open(medium.source, stream.layout)
        except DataError as error:
            raise UnreadableMedium(f"sample {conversation.name}, {medium.stream} {index + 1}: {error}") from None
        targets = None if medium.targets is None else np.asarray(medium.targets, np.int64).reshape(len(opened.units), -1)
        if targets is not None and targets.shape[1] > opened.layout.height * opened.layout.width:
            raise DataError(
                f"sample {conversation.name}, {medium.stream} {index + 1}: {targets.shape[1]} targets for "
                f"{opened.layout.height * opened.layout.width} features; they must be made at the transform's clip length"
            )
        return _Opened(stream.transform, opened, self.system.num_positions(medium.stream, opened.layout), targets)

    def _region(self, conversation: Conversation, region: Region, opened: list[_Opened]) -> str:
        known = 0 <= region.media < len(opened)
        if not known and (opened or self.config.boxes.square):
            raise DataError(
                f"sample {conversation.name}: a region names medium {region.media} (from 0), the conversation has {len(opened)}"
            )
        return self.config.boxes.render(region.coordinates, opened[region.media].medium.size if known else None)

    def _stop_ids(self) -> frozenset[int]:
        ids = {self.tokenizer.end_id} if self.tokenizer.end_id is not None else set()
        for stop in self.template.stop:
            pieces = self.tokenizer.encode_with_offsets("a" + stop)
            inside = [i for i, start in zip(pieces.ids, pieces.start, strict=True) if start >= 1]
            if len(inside) == 1:
                ids.add(inside[0])
            elif stop.strip() and not self.template.spelled_end:
                raise ConfigError(
                    f"template {self.template.name!r} ends answers with {stop!r}, no single token of this tokenizer"
                )
        return frozenset(ids)


@dataclass(frozen=True)
class _Stream:
    """What the processor knows of a stream."""

    transform: MediaTransform
    layout: MediaLayout
    marker: str
    marker_id: int | None


class _Opened(NamedTuple):
    """A medium, the transform that read it, and the positions that it takes in the text."""

    transform: MediaTransform
    medium: OpenedMedium
    num_positions: int
    targets: np.ndarray | None

    def encoded(self, spans: tuple[tuple[int, int, int], ...], instruction: np.ndarray | None = None) -> EncodedMedium:
        return EncodedMedium(self.medium.units, self.transform, self.medium.layout, spans, instruction, self.targets)


class _Row(NamedTuple):
    """Tokens with media positions in place; `places` has (start, positions) of each medium."""

    tokens: np.ndarray
    learned: np.ndarray
    modality: np.ndarray
    places: list[tuple[int, int]]

    def cut(self, length: int) -> _Row:
        """The first `length` tokens with their media, none of which the end may cut."""
        places = [(start, count) for start, count in self.places if start + count <= length]
        return _Row(self.tokens[:length], self.learned[:length], self.modality[:length], places)

    def followed_by(self, ids: Sequence[int]) -> _Row:
        """The row and then some tokens of text that are not learned."""
        more = np.array(ids, dtype=np.int64)
        none = np.zeros_like(more)
        tokens, learned = np.concatenate((self.tokens, more)), np.concatenate((self.learned, none.astype(bool)))
        return _Row(tokens, learned, np.concatenate((self.modality, none)), self.places)
