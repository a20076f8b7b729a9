"""Write files and folders so that they are either whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.core.errors import RunError

PARTIAL = ".partial-"  # prefix of what is still being written; safe to delete when no process writes

_NEARLY_FULL = 1 << 20


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill the yielded folder; leaving the block puts it in the place of `target`, an exception leaves `target` as it was.

    Raises: RunError where the disk refuses, naming what is left.
    """
    target = Path(target)
    partial = target.parent / f"{PARTIAL}{target.name}-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        _sync(partial)
        _put(partial, target)
        _sync(target.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) or (isinstance(error, Exception) and _is_full(error, target.parent)):
            raise RunError(refusal(target, error)) from error
        raise


def write_text_atomically(target: Path, text: str) -> None:
    """Replace a file in one step."""
    partial = target.parent / f"{PARTIAL}{target.name}-{os.getpid()}"
    try:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(refusal(target, error)) from error


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left half-written in a folder."""
    for path in folder.glob(f"{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def refusal(target: Path, error: BaseException) -> str:
    """One line on why `target` could not be written."""
    if _is_full(error, target.parent):
        return f"the disk is full: {target} was not written; what stood there before is untouched; free some space, then go on"
    reason = getattr(error, "strerror", None) or error
    return f"{target} could not be written ({reason}); what stood there before is untouched"


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether a write failed for want of space; writers in other languages do not always say so."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "No space left" in str(error) or (folder.exists() and shutil.disk_usage(folder).free < _NEARLY_FULL)


def _put(partial: Path, target: Path) -> None:
    if not target.exists():
        os.rename(partial, target)
        return
    old = target.parent / f"{PARTIAL}old-{target.name}-{os.getpid()}"
    os.rename(target, old)
    try:
        os.rename(partial, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
