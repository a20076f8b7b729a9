"""One side of the comparison of encoders, Weft's or its peer's, in a process of its own.

The parent sends (method, arguments), the process answers with what the method returns. Both sides open the same folder of
weights and draw the same pixels. Both stay in evaluation mode, also where gradients are taken: no branch is dropped and batch
statistics are held, so the two do the same work.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from comparison import CLOCKS
from safetensors.torch import load_file
from torch import Tensor

from weft.core.errors import ConfigError
from weft.core.interfaces import ModalityEncoder
from weft.layers.attention import join_projections
from weft.training.allocator import keep_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEER_OUTPUTS = ("pooler_output", "last_hidden_state")
MEBIBYTE = 2**20
LONG = 0.5  # seconds of a call: its first one has little in it that later ones do not have, and what disturbs one is averaged
MMAP_THRESHOLD = -3  # in glibc's mallopt
SET_THP_DISABLE = 41  # in Linux's prctl

Outputs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Opening:
    """What a process needs to make its side: the config, the peer's class (None: Weft's side), the weights' folder, and
    whether it is there to count memory or to measure speed."""

    config: ModalityEncoder.Config
    peer: str | None
    counts_memory: bool
    folder: Path
    device: str
    threads: int
    clock: str


class Side:
    """A model with its outputs by name, and the call that is measured."""

    def __init__(self, opening: Opening) -> None:
        self.opening, self.device = opening, torch.device(opening.device)
        if opening.counts_memory:
            large_blocks_apart()
        else:  # both sides alike, as Weft's trainer does: the time to find new pages varies by half from call to call
            keep_freed_memory(self.device)
        torch.set_num_threads(opening.threads)
        self.model, self.outputs = (weft_side if opening.peer is None else peer_side)(opening)
        self.model.eval().to(self.device)
        self.run: Callable[[], None] = lambda: None
        self.batch = 0

    def values(self) -> dict[str, Any]:
        """Each output of the first two pictures, in float32."""
        found = {}
        with torch.inference_mode():
            for name, function in self.outputs.items():
                try:
                    found[name] = function(self.pixels(2)).cpu().numpy()
                except (AttributeError, ConfigError):  # this model has none of that name
                    continue
        return found

    def pixels(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, *self.opening.config.unit_shape, generator=generator).to(self.device)

    def prepare(self, output: str, precision: str, mode: str, batch: int) -> float:
        """Set the call that `rate` and `peak` measure, and warm up with one call, a short one with two; seconds of the last."""
        dtype, function = DTYPES[precision], self.outputs[output]
        self.model.to(dtype)
        pixels, self.batch = self.pixels(batch).to(dtype), batch

        def forward() -> None:
            with torch.inference_mode():
                function(pixels)

        def training() -> None:
            function(pixels).float().square().mean().backward()
            self.model.zero_grad(set_to_none=True)

        self.run = forward if mode == "forward" else training
        seconds = batch / self.rate(1)
        return seconds if seconds > LONG else batch / self.rate(1)

    def rate(self, calls: int) -> float:
        """Images per second."""
        clock = CLOCKS[self.opening.clock]
        gc.collect()
        self.synchronize()
        start = clock()
        for _ in range(calls):
            self.run()
        self.synchronize()
        return calls * self.batch / max(clock() - start, 1e-9)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self) -> float | None:
        """What one call adds at its peak, in MiB; None where nothing counts it."""
        gc.collect()
        if self.device.type == "cuda":
            self.synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)
            held = torch.cuda.memory_allocated(self.device)
            self.run()
            return (torch.cuda.max_memory_allocated(self.device) - held) / MEBIBYTE
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory goes back, so that a call has to ask for all that it uses
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident
            held = resident("VmRSS")
            self.run()
            return (resident("VmHWM") - held) / 1024
        except OSError:
            return None


def large_blocks_apart() -> None:
    """Large blocks become mappings of their own, of small pages, so the high-water mark counts what a call holds and neither
    what the heap keeps for later nor the unused rest of a huge page. For a process that has made nothing yet; it costs time."""
    if Path("/proc/self/clear_refs").exists():
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MMAP_THRESHOLD, 64 * 1024)
        libc.prctl(SET_THP_DISABLE, 1, 0, 0, 0)


def weft_side(opening: Opening) -> tuple[torch.nn.Module, dict[str, Outputs]]:
    encoder = opening.config.build()
    encoder.load_state_dict(load_file(opening.folder / "weft.safetensors"))
    join_projections(encoder)  # as `load_encoder` does
    layout = opening.config.layout()

    def features(x: Tensor) -> Tensor:
        return encoder(x, torch.arange(len(x), device=x.device), (layout,) * len(x)).values

    return encoder, {"pool": encoder.pool, "features": features}


def peer_side(opening: Opening) -> tuple[torch.nn.Module, dict[str, Outputs]]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    cls = getattr(transformers, str(opening.peer))
    model, info = cls.from_pretrained(opening.folder, output_loading_info=True, local_files_only=True)
    if any(info.values()):
        raise RuntimeError(f"{opening.peer} does not take all that Weft writes: {info}")
    return model.float(), {name: lambda x, name=name: getattr(model(pixel_values=x), name) for name in PEER_OUTPUTS}


def resident(field: str) -> float:
    """A line of the process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def serve(opening: Opening, connection: Connection) -> None:
    """Answer until the parent hangs up; an interruption is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        side = Side(opening)
        connection.send((True, None))
        while True:
            method, arguments = connection.recv()
            connection.send((True, getattr(side, method)(*arguments)))
    except (EOFError, BrokenPipeError):
        return
    except Exception as reason:
        connection.send((False, f"{type(reason).__name__}: {reason}"))


class Process:
    """A side behind its pipe: `process("rate", 3)` is `side.rate(3)` over there. It loads while the other one does."""

    def __init__(self, opening: Opening) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(opening, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self) -> Any:
        """Raises: RuntimeError with what went wrong over there."""
        try:
            well, value = self.connection.recv()
        except EOFError:
            raise RuntimeError("a side of the comparison ended without an answer; it may have run out of memory") from None
        if not well:
            raise RuntimeError(value)
        return value

    def __call__(self, method: str, *arguments: Any) -> Any:
        self.connection.send((method, arguments))
        return self.answer()

    def close(self) -> None:
        self.connection.close()
        self.process.join()
