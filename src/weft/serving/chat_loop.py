"""Talking to a model in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.text import Text as Styled

from weft.core.conversation import Conversation, Media, Part, Text
from weft.core.errors import WeftError, unknown_name
from weft.data.audio import open_audio
from weft.data.images import open_image
from weft.data.video import open_video

HELP = {
    "/image FILE": "show a picture with the next question",
    "/audio FILE": "play a recording with the next question",
    "/video FILE": "show a film with the next question",
    "/reset": "forget the conversation and start again",
    "/history": "read the conversation so far",
    "/help": "this list",
    "/exit": "leave; so does Ctrl-D",
}


CHECKS: dict[str, Callable[[str], object]] = {
    "image": open_image,
    "audio": lambda path: open_audio(path, seconds=0.1),
    "video": lambda path: open_video(path, 1),
}
"""What opens a file of a stream, and says in one line what is wrong with it."""
EXAMPLES = {"image": "picture.png", "audio": "recording.wav", "video": "film.mp4"}


class Session(Protocol):
    """What the loop asks of a conversation that goes on (`inference.chat.ChatSession`)."""

    conversation: Conversation

    def stream(self, *parts: Part | str) -> Iterator[str]: ...

    def reset(self) -> None: ...


class ChatLoop:
    """Reads lines, streams answers. A mistake is told in one line and costs nothing of the conversation."""

    def __init__(self, session: Session, console: Console, read: Callable[[str], str]) -> None:
        self.session = session
        self.console = console
        self.read = read
        self.pending: list[Media] = []

    def show(self, path: str, stream: str = "image") -> None:
        """Put a file before the next question. Raises: DataError for one that is missing or no medium of the stream."""
        check_medium(path, stream)
        self.pending.append(Media(path, stream))

    def answer(self, question: str) -> None:
        """Ask with the pending media and write the answer as it comes. Ctrl-C ends the answer, not the conversation."""
        pieces = self.session.stream(*self.pending, question)
        self.pending = []
        try:
            for piece in pieces:
                self.console.print(Styled(piece), end="", soft_wrap=True)
        except KeyboardInterrupt:
            self.console.print(" [dim](stopped)[/]", end="")
        self.console.print()

    def run(self) -> None:
        """Until /exit, Ctrl-D, or Ctrl-C at the prompt."""
        self.console.print("[dim]/help lists what else there is; Ctrl-D leaves.[/]")
        while True:
            try:
                line = self.read("> ").strip()
            except EOFError:
                self.console.print()
                return
            if line in ("/exit", "/quit"):
                return
            try:
                self._take(line)
            except WeftError as error:
                self.console.print(Styled(" ".join(str(error).split()), "red"), soft_wrap=True)

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if not line:
            return
        if not command.startswith("/"):
            self.answer(line)
        elif command.removeprefix("/") in CHECKS:
            self._show(rest.strip(), command.removeprefix("/"))
        elif command == "/reset":
            self.session.reset()
            self.pending = []
            self.console.print("[dim]a new conversation[/]")
        elif command == "/history":
            self._history()
        elif command == "/help":
            for name, what in HELP.items():
                self.console.print(f"  [bold]{name:12}[/] {what}", highlight=False)
        else:
            raise unknown_name("command", command, [name.split()[0] for name in HELP])

    def _show(self, path: str, stream: str) -> None:
        if not path:
            raise WeftError(f"/{stream} takes a file: /{stream} {EXAMPLES[stream]}")
        self.show(str(Path(path.strip("'\"")).expanduser()), stream)
        self.console.print("[dim]comes with the next question[/]")

    def _history(self) -> None:
        for message in self.session.conversation.messages:
            words = [_written(part) for part in message.parts]
            self.console.print(Styled.assemble((f"{message.role}: ", "bold"), " ".join(words)), soft_wrap=True)


def check_medium(path: str, stream: str) -> None:
    """Raises: DataError for a file that is missing or no medium of the stream."""
    CHECKS[stream](path)


def _written(part: Part) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Media):
        return f"<{part.stream}: {part.source if isinstance(part.source, str) else type(part.source).__name__}>"
    return "[" + ", ".join(f"{c:.2f}" for c in part.coordinates) + "]"
