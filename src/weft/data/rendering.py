"""A conversation written out once: the text, which characters are learned, and where the media stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from zlib import crc32

from weft.core.conversation import Conversation, Media, Message, Part, Region, Text
from weft.core.errors import DataError
from weft.data.templates import Template

WriteRegion = Callable[[Region], str]


@dataclass
class Rendering:
    """A rendered conversation.

    `trained` holds (start, end) in characters, ascending; `media` the character where each medium stands, in the order of the
    text, with its index among the conversation's media; `cuts` where the text is encoded in pieces.
    """

    pieces: list[str] = field(default_factory=list)
    length: int = 0
    trained: list[tuple[int, int]] = field(default_factory=list)
    media: list[tuple[int, int, Media]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def asked(self) -> str:
        """The text up to the first answer that is learned; all of it where none is."""
        return self.text[: self.trained[0][0]] if self.trained else self.text

    def write(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def teach(self, text: str) -> None:
        """Write what is learned."""
        self.trained.append((self.length, self.length + len(text)))
        self.write(text)


def render(
    conversation: Conversation,
    template: Template,
    markers: Mapping[str, str],
    write_region: WriteRegion,
    reply: bool = False,
) -> Rendering:
    """Write a conversation with a template; `markers` gives the text that stands for a medium of a stream ("" for none).

    With `reply` the text ends where the assistant is to speak.

    Raises: DataError for a medium outside a user turn and for a conversation that cannot be replied to.
    """
    messages = conversation.messages
    if not messages:
        raise DataError(f"sample {conversation.name}: a conversation without messages")
    if reply and messages[-1].role == "assistant":
        raise DataError(f"sample {conversation.name}: the assistant spoke last; a reply needs a user's turn at the end")
    out = Rendering()
    begin = template.begin
    opening = template.learned_opening if any(message.train for message in messages) else ""
    closing = out.teach if opening else out.write
    previous = ""
    if messages[0].role != "system" and template.system:
        out.write(begin)
        begin = ""
        _open(out, template.system_header, opening)
        out.write(template.system)
        closing(template.system_footer)
        previous = "system"
    num_media = 0
    for number, message in enumerate(messages):
        if message.role == "system":
            if number:
                raise DataError(
                    f"sample {conversation.name}: the system speaks at turn {number + 1}, only the first can be its"
                )
            if message.parts == () or message.parts == (Text(""),):
                continue
        if out.length and template.between:
            closing(template.between)
        media = message.media
        if media and (message.role != "user" or message.train):
            raise DataError(
                f"sample {conversation.name}: turn {number + 1} ({message.role}) holds a medium; media stand in the user's "
                "turns, which are not trained on"
            )
        header, footer = _around(message, template, previous)
        previous = message.role
        leads = bool(media) and template.media_first and template.media_before_turn
        if leads:
            num_media = _media(out, media, template, markers, num_media)
        if begin:
            out.write(begin)
            begin = ""
        _open(out, header, opening)
        start = out.length
        if message.role == "assistant":
            if template.answer_apart:
                out.cuts.append(start)
            out.write(template.answer_lead)
        parts = message.parts if template.user_text or message.role == "assistant" else media
        if template.media_first and media:
            num_media = num_media if leads else _media(out, media, template, markers, num_media)
            out.write(_words(parts, write_region).strip())
        else:
            num_media = _in_order(out, parts, template, markers, write_region, num_media)
        if message.role == "assistant" and message.train:
            out.write(footer)
            out.trained.append((start, out.length))
            continue
        if message.train:
            out.trained.append((start, out.length))
        closing(footer)
    if reply:
        out.write(template.between + template.assistant_header)
        out.trained.clear()
    elif template.end:
        (out.teach if messages[-1].train else closing)(template.end)
    return out


def answers_apart(conversation: Conversation) -> tuple[Conversation, ...]:
    """A conversation for every answer that is learned: that answer, and before it all that was said, no longer learned.

    A conversation without such an answer stays as it is.
    """
    turns: list[Conversation] = []
    said: list[Message] = []
    for message in conversation.messages:
        if message.role == "assistant" and message.train:
            turns.append(replace(conversation, messages=(*said, message)))
            message = replace(message, train=False)
        said.append(message)
    return tuple(turns) or (conversation,)


def question_and_answer(conversation: Conversation, reply: bool) -> tuple[Conversation, Message | None]:
    """What an encoder reads and what its decoder writes: all before the last answer, and that answer.

    None where the conversation ends without one or, with `reply`, is to get one.

    Raises: DataError for an answer that holds a medium and for an earlier turn that is to be learned: nothing can write it.
    """
    messages, answer = conversation.messages, None
    if not reply:
        if messages and messages[-1].role == "assistant":
            messages, answer = messages[:-1], messages[-1]
        if answer is not None and answer.media:
            raise DataError(
                f"sample {conversation.name}: turn {len(messages) + 1}, the answer, holds a medium; media stand in questions"
            )
        if earlier := sum(message.train for message in messages):
            raise DataError(
                f"sample {conversation.name}: a decoder writes the last answer only, and {earlier} turns before it are marked "
                "to be learned; Processor.encode_all makes a sample of each answer, or mark them train=False"
            )
    return replace(conversation, messages=messages), answer


def divided(conversation: Conversation, answer: Message) -> tuple[Conversation, Message]:
    """A caption's first words as what is asked about the media, the rest as the answer: prefix language modelling.

    The words themselves decide how many are first, from none to all but one, so that every reading divides them alike.
    """
    words = _words(answer.parts, lambda region: "").split()
    place = crc32(" ".join(words).encode()) % max(1, len(words))
    media = [medium for message in conversation.messages for medium in message.media]
    asked = Message("user", (*media, Text(" ".join(words[:place]))))
    return replace(conversation, messages=(asked,)), replace(answer, parts=(Text(" ".join(words[place:])),))


def answer_text(answer: Message, template: Template, write_region: WriteRegion) -> str:
    """An answer alone, as a decoder writes it. Raises: DataError for an answer that holds a medium."""
    if answer.media:
        raise DataError("the answer (assistant) holds a medium; media stand in the user's turns")
    words = (
        part.text if isinstance(part, Text) else write_region(part) for part in answer.parts if not isinstance(part, Media)
    )
    return template.answer_lead + "".join(words) + template.answer_end


def caption(conversation: Conversation) -> str:
    """What a dual encoder reads of a conversation: the assistant's words, or the user's where the assistant says nothing."""
    for role in ("assistant", "user"):
        words = [p.text for m in conversation.messages if m.role == role for p in m.parts if isinstance(p, Text)]
        if any(words):
            return " ".join(w.strip() for w in words)
    raise DataError(f"sample {conversation.name} holds no text; a caption template needs some")


def _open(out: Rendering, header: str, opening: str) -> None:
    """Write a header, whose `opening` is learned."""
    if opening and header.startswith(opening):
        out.teach(opening)
        header = header.removeprefix(opening)
    out.write(header)


def _around(message: Message, template: Template, previous: str) -> tuple[str, str]:
    """A message's header and footer; `previous` is who spoke before it."""
    if message.role == "system":
        return template.system_header, template.system_footer
    if message.role == "user":
        behind = {"system": template.user_header_after_system, "assistant": template.user_header_after_answer}.get(previous)
        header = template.user_header if behind is None else behind
        return (header, template.user_footer) if template.user_text else ("", "")
    return template.assistant_header, template.answer_end


def _in_order(
    out: Rendering,
    parts: tuple[Part, ...],
    template: Template,
    markers: Mapping[str, str],
    write_region: WriteRegion,
    num_media: int,
) -> int:
    around = template.media_around
    for part in parts:
        if isinstance(part, Text):
            out.write(part.text)
        elif isinstance(part, Region):
            out.write(write_region(part))
        else:
            if around and out.pieces[-1:] != [around]:
                out.write(around)
            out.media.append((out.length, num_media, part))
            out.write(markers[part.stream])
            if around:
                out.write(around)
            num_media += 1
    return num_media


def _media(out: Rendering, media: tuple[Media, ...], template: Template, markers: Mapping[str, str], num_media: int) -> int:
    for medium in media:
        if template.media_before_begin:
            out.media.append((0, num_media, medium))
        else:
            out.write(template.media_header.replace("{number}", str(num_media + 1)))
            out.media.append((out.length, num_media, medium))
            out.write(markers[medium.stream] + template.media_footer)
        num_media += 1
    return num_media


def _words(parts: tuple[Part, ...], write_region: WriteRegion) -> str:
    """A turn's text without its media."""
    return "".join(part.text if isinstance(part, Text) else write_region(part) for part in parts if not isinstance(part, Media))
