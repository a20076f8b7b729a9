"""The processes that train one model together, each with its share of every step's samples.

Every rank holds the whole model. Losses are normalised by the weights of the whole step and gradients are added over ranks, so
that all of them take the same update: together they are one process with the whole batch, up to the order of sums.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError, RunError, WeftError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from torch.distributed import ProcessGroup

_LOOPBACK = {"linux": "lo", "darwin": "lo0"}
_PATIENCE = 5.0  # seconds that a finished process gets to leave

Item = TypeVar("Item")


class Ranks:
    """This process among those that train together; by itself it is the first of one, and every sum is what it was."""

    def __init__(self, rank: int = 0, size: int = 1, group: ProcessGroup | None = None) -> None:
        self.rank = rank
        self.size = size
        self.group = group

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and tells people."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's part of what all ranks do: neighbours stay together, parts differ by one at most."""
        count = len(items)
        return items[count * self.rank // self.size : count * (self.rank + 1) // self.size]

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name, the same names on every rank, added over ranks."""
        if self.group is None or not values:
            return dict(values)
        total = torch.stack([value.detach().float() for value in values.values()])
        torch.distributed.all_reduce(total, group=self.group)
        return dict(zip(values, total.unbind(), strict=True))

    def total(self, *counts: int) -> tuple[int, ...]:
        """Counts added over ranks."""
        if self.group is None:
            return counts
        total = torch.tensor(counts, dtype=torch.long)
        torch.distributed.all_reduce(total, group=self.group)
        return tuple(total.tolist())

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether some rank raises it."""
        if self.group is None:
            return flags
        raised = torch.tensor(flags, dtype=torch.uint8)
        torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX, group=self.group)
        return tuple(map(bool, raised.tolist()))

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the gradients of all ranks; a parameter that has one on some rank has one on all of them afterwards."""
        if self.group is None or not parameters:
            return
        sizes = [p.numel() for p in parameters]
        device = parameters[0].device
        flat = torch.zeros(sum(sizes) + len(parameters), device=device)
        parts, found = flat.split([*sizes, len(parameters)])[:-1], flat[sum(sizes) :]
        for index, (parameter, part) in enumerate(zip(parameters, parts, strict=True)):
            if parameter.grad is not None:
                part.copy_(parameter.grad.flatten())
                found[index] = 1.0
        torch.distributed.all_reduce(flat, group=self.group)
        for parameter, part, has in zip(parameters, parts, found.tolist(), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if has else None

    def wait(self) -> None:
        """Go on when every rank has come here."""
        self.any(False)


class LocalRanks:
    """While the block runs, `size` processes of this machine train together, forked from this one, which is the first.

    `work` is what the others do, given their ranks; what it raises ends its process, and the first rank's next exchange fails.
    Each process computes with one thread: a forked process cannot use the threads that its parent had started.

    Raises: ConfigError where processes cannot be forked.
    """

    def __init__(self, size: int, work: Callable[[Ranks], object]) -> None:
        if size > 1 and "fork" not in multiprocessing.get_all_start_methods():
            raise ConfigError(f"this system ({sys.platform}) cannot fork processes; train in 1 process")
        self.size = size
        self.work = work
        self.helpers: list[BaseProcess] = []
        self._threads = 0
        self._meeting: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Ranks:
        if self.size == 1:
            return Ranks()
        self._meeting = tempfile.TemporaryDirectory(prefix="weft-ranks-")
        self._threads = torch.get_num_threads()
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK.get(sys.platform, ""))
        context = multiprocessing.get_context("fork")
        self.helpers = [context.Process(target=self._help, args=(rank,), daemon=True) for rank in range(1, self.size)]
        for helper in self.helpers:
            helper.start()
        return self._join(0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._meeting is None:
            return
        for helper in self.helpers:
            if error is None:
                helper.join(_PATIENCE)
            if helper.is_alive():
                helper.kill()
            helper.join()
        told = [file.read_text() for file in sorted(self._place.glob("*.error"))]
        self._leave()
        if isinstance(error, RuntimeError) and not isinstance(error, WeftError):  # an exchange with a process that is gone
            codes = ", ".join(str(helper.exitcode) for helper in self.helpers)
            reason = told[0] if told else f"a process that trained along ended (exit codes {codes}): {error}"
            raise RunError(f"{reason}; resume to go on from the last checkpoint") from error

    @property
    def _place(self) -> Path:
        assert self._meeting is not None
        return Path(self._meeting.name)

    def _leave(self) -> None:
        assert self._meeting is not None
        torch.distributed.destroy_process_group()
        torch.set_num_threads(self._threads)
        self._meeting.cleanup()
        self._meeting = None

    def _join(self, rank: int) -> Ranks:
        torch.set_num_threads(1)
        meeting = f"file://{self._place / 'ranks'}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=self.size)
        return Ranks(rank, self.size, torch.distributed.group.WORLD)

    def _help(self, rank: int) -> None:
        """The life of another rank: its own output is the first rank's, said once."""
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # to the end of this process
        try:
            self.work(self._join(rank))
        except BaseException as error:
            (self._place / f"{rank}.error").write_text(str(error))  # for the first rank to tell
            os._exit(1)  # what the parent registered for its own end is not this process's to run
        os._exit(0)
