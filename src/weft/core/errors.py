"""Errors that a user can act on: what happened, where, expected against got, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WeftError(Exception):
    """Base of every error that Weft raises on purpose; the command line prints it as one line and exits with 2."""


class ConfigError(WeftError):
    """A config, recipe or override that cannot be built."""


class MissingLibrary(ConfigError):
    """A part that an optional `library` runs, which is not installed; `extra` of Weft brings it."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        super().__init__(f"{what} is run by the library {library}, which is not installed; pip install 'weft[{extra}]'")
        self.library = library


class DataError(WeftError):
    """A sample, medium or file of data that cannot be used."""


class UnreadableMedium(DataError):
    """A medium of a sample that cannot be read; the other samples may be sound."""


class MediaTokenMismatch(DataError):
    """The prompt reserves another number of positions than the projector emits."""


class ContextTooShort(DataError):
    """A medium does not fit into the context; truncation never cuts a medium."""


class CheckpointError(WeftError):
    """A weight file that is missing, damaged, unsafe, or does not fit the model."""


class AttentionError(WeftError):
    """An attention rule that the chosen kernel or cache cannot serve exactly."""


class RunError(WeftError):
    """A training run that cannot start, continue or resume."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a catalogue, with the nearest names offered."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    offer = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "known: " + ", ".join(names)
    return ConfigError(f"unknown {kind} {name!r}; {offer}")
