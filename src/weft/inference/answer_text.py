"""The text of an answer while its tokens arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what an incomplete character decodes to


class AnswerText:
    """Decodes tokens as they come and ends at a stop string.

    What `push` and `finish` return, joined, is `text`. A character whose bytes are not all there yet is held back, and so is
    the beginning of what may become a stop string; a stop string and what follows it are never released. `lead` is what the
    template writes between its header and the answer (a blank): it is dropped where the answer begins with it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), lead: str = "") -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._lead = lead
        self._tokens: list[int] = []
        self._context = self._read = 0  # decoded text is the difference of tokens[context:] and tokens[context:read]
        self._held = ""
        self._released: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All that was released so far."""
        return "".join(self._released)

    def push(self, token: int) -> str:
        """Take one token; returns the text that is now certain."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        return self._release(self._new_text(final=False), final=False)

    def finish(self) -> str:
        """No token follows; returns what was held back."""
        return "" if self.stopped else self._release(self._new_text(final=True), final=True)

    def _new_text(self, final: bool) -> str:
        # A token's text depends on its left neighbours (spaces, bytes of one character), so it is decoded with those before it.
        window = self._decode(self._tokens[self._context :])
        known = self._decode(self._tokens[self._context : self._read])
        if not final and (len(window) <= len(known) or window.endswith(REPLACEMENT)):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return window[len(known) :]

    def _release(self, new: str, final: bool) -> str:
        text = self._held + new
        if self._lead:
            if not final and len(text) < len(self._lead) and self._lead.startswith(text):
                self._held = text
                return ""
            text, self._lead = text.removeprefix(self._lead), ""
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, text, self._held = True, text[: min(found)], ""
        else:
            keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        if text:
            self._released.append(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
