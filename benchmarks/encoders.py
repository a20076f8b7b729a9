"""Images per second and peak memory of every image encoder, against `transformers` on the same weights in the same run.

python benchmarks/encoders.py [--encoders clip_vision siglip_vision] [--size smallest] [--batches 1 8] [--runs 12] [--threads 2]

Encoders come from the catalogue; one is held against the class that its checkpoint format writes into the config, and the
weights cross in that format. An encoder without such a class is named and left out. Both sides give the same output, in fp32
within 1e-4 of its largest value, else nothing is measured. "forward" is that output without gradients, "training" the mean of
its square with the gradients of all weights, no optimizer. In bf16 weights and pixels are bf16. Neither side is compiled;
`transformers` picks its own attention. Runs alternate, with the order swapped every time; ratios are of medians in Weft's
favour, and the bound is the lower end of their 95% bootstrap interval. Peak memory is what a call adds to what was held
before it: counted by the allocator on CUDA, by the kernel's high-water mark of the process on Linux (from 8 MiB on, below it
is noise), elsewhere not at all. A CUDA device is taken where there is one. Writes results/encoders.json and encoders.md
beside this file.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from comparison import CLOCKS, FLOOR, HERE, Clock, conditions, processor, ratio_of_medians
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from weft.checkpoints.checkpoint_format import CheckpointFormat, checkpoint_formats
from weft.checkpoints.weight_files import weights
from weft.core.catalogue import parts
from weft.core.errors import CheckpointError, ConfigError
from weft.core.interfaces import ModalityEncoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("forward", "training")
AGREEMENT = 1e-4  # float32 through a published depth, in other orders of summation
OUTPUTS = {"pooled": ("pooler_output", "image_embeds"), "features": ("last_hidden_state",)}
MEBIBYTE = 2**20
SMALLEST_PEAK = 8.0  # MiB of resident memory, below which pages and the allocator's habits are what is measured


@dataclass(frozen=True)
class Case:
    """One comparison: an encoder's size, in a precision, with a number of images, forward only or with gradients."""

    encoder: str
    size: str
    precision: str
    batch: int
    mode: str


@dataclass(frozen=True)
class Result:
    """Medians of both sides, their ratio as a factor in Weft's favour, and its lower bound.

    Units: images per second, or MiB.
    """

    case: Case
    metric: str
    weft: float
    transformers: float
    ratio: float
    lower_bound: float
    runs: int

    @property
    def reached(self) -> bool:
        return self.lower_bound >= FLOOR


class LeftOut(Exception):
    """An encoder that cannot be compared, and why."""


def image_encoders() -> dict[str, type[ModalityEncoder]]:
    """The catalogue's image encoders by name."""
    found = {name: cls for name, cls in parts("encoders").items() if issubclass(cls, ModalityEncoder)}
    return {name: cls for name, cls in found.items() if cls.Config.modality == "image"}


def config_of(cls: type[ModalityEncoder], size: str) -> tuple[str, ModalityEncoder.Config]:
    """The size's name and config: "tiny", "smallest", "largest" or a published name.

    Raises: LeftOut where the encoder has no such size.
    """
    if size == "tiny":
        return size, cls.Config.tiny()
    sizes = dict(cls.Config.sizes())
    if size in ("smallest", "largest") and sizes:
        ordered = sorted(sizes, key=lambda name: num_parameters(sizes[name]))
        size = ordered[0 if size == "smallest" else -1]
    if size not in sizes:
        raise LeftOut(f"no size {size!r}")
    return size, sizes[size]


def num_parameters(config: ModalityEncoder.Config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in config.build().parameters())


def published_form(config: ModalityEncoder.Config) -> tuple[CheckpointFormat, dict[str, Any]] | None:
    """The format that can write this encoder for a `transformers` class, and the written config; None where there is none."""
    import transformers

    for layout in checkpoint_formats().values():
        if any(type(tiny) is type(config) for tiny in layout.tiny()):
            saved = layout.write_config(config)
            named = any(hasattr(transformers, architecture) for architecture in saved.get("architectures") or ())
            if named and saved.get("model_type") in layout.model_types:
                return layout, saved
    return None


def reference_of(encoder: ModalityEncoder, layout: CheckpointFormat, saved: dict[str, Any]) -> Any:
    """The `transformers` model with the same weights, through a folder in its published form."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    state = layout.key_map(encoder.config).from_weft(weights(encoder))
    cls = getattr(transformers, saved["architectures"][0])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, file, {"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(saved))
        model, info = cls.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    if any(info.values()):
        raise SystemExit(f"{cls.__name__} does not take all that Weft writes: {info}")
    return model.float().eval()


Outputs = Callable[[Tensor], Tensor]


def same_output(encoder: ModalityEncoder, reference: Any, pixels: Tensor) -> tuple[Outputs, Outputs]:
    """The two functions of pixels that give the same numbers: pooled vectors where both have them, else features.

    Raises: LeftOut where there are none.
    """
    layout = (encoder.config.layout(),) * len(pixels)
    ours: dict[str, Outputs] = {
        "pooled": encoder.pool,
        "features": lambda x: encoder(x, torch.arange(len(x), device=x.device), layout).values,
    }
    with torch.inference_mode():
        given = reference(pixel_values=pixels)
        for name, function in ours.items():
            try:
                found = function(pixels)
            except ConfigError:  # no pooling of its own
                continue
            for key in OUTPUTS[name]:
                expected = getattr(given, key, None)
                if expected is not None and agree(found, expected):
                    return function, lambda x, key=key: getattr(reference(pixel_values=x), key)
    raise LeftOut(f"no output that {type(reference).__name__} gives as well")


def agree(found: Tensor, expected: Tensor) -> bool:
    if found.numel() != expected.numel():
        return False
    difference = (found - expected.reshape(found.shape)).abs().max()
    return bool(difference <= AGREEMENT * expected.abs().max().clamp_min(1.0))


def call(function: Outputs, model: torch.nn.Module, pixels: Tensor, mode: str) -> Callable[[], None]:
    """One forward without gradients, or one forward and backward after which the gradients are let go."""

    def forward() -> None:
        with torch.inference_mode():
            function(pixels)

    def training() -> None:
        function(pixels).float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return forward if mode == "forward" else training


def images_per_second(run: Callable[[], None], calls: int, batch: int, clock: Clock, device: torch.device) -> float:
    synchronize(device)
    start = clock()
    for _ in range(calls):
        run()
    synchronize(device)
    return calls * batch / max(clock() - start, 1e-9)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(run: Callable[[], None], device: torch.device) -> float | None:
    """What one call adds at its peak, in MiB; None where nothing counts it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - held) / MEBIBYTE
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory goes back, so that a call has to ask for all that it uses
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident
        held = resident("VmRSS")
        run()
        return (resident("VmHWM") - held) / 1024
    except OSError:
        return None


def resident(field: str) -> float:
    """A line of the process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def compare(
    case: Case, runs: dict[str, Callable[[], None]], num_runs: int, seconds: float, clock: Clock, device: torch.device
) -> list[Result]:
    for run in runs.values():
        run()
    slowest = min(images_per_second(run, 1, case.batch, clock, device) for run in runs.values())
    calls = max(1, round(seconds * slowest / case.batch))
    speed: dict[str, list[float]] = {side: [] for side in runs}
    memory: dict[str, list[float | None]] = {side: [] for side in runs}
    for index in range(num_runs):
        for side in sorted(runs, reverse=index % 2 == 1):
            gc.collect()
            speed[side].append(images_per_second(runs[side], calls, case.batch, clock, device))
            memory[side].append(peak_memory(runs[side], device))
    results = [result(case, "speed", speed["weft"], speed["transformers"], num_runs)]
    counted = 0.0 if device.type == "cuda" else SMALLEST_PEAK
    peaks = {side: [value for value in values if value is not None and value > counted] for side, values in memory.items()}
    if all(len(values) == num_runs for values in peaks.values()):
        results.append(result(case, "peak memory", peaks["weft"], peaks["transformers"], num_runs))
    return results


def result(case: Case, metric: str, ours: Sequence[float], theirs: Sequence[float], num_runs: int) -> Result:
    pair = (ours, theirs) if metric == "speed" else ([1 / value for value in ours], [1 / value for value in theirs])
    ratio, bound = ratio_of_medians(*pair)
    return Result(case, metric, statistics.median(ours), statistics.median(theirs), ratio, bound, num_runs)


HEADINGS = ["encoder", "size", "precision", "images", "mode", "what", "Weft", "transformers", "ratio", "95% bound", "reached"]


def columns(result: Result) -> list[str]:
    unit = "{:,.1f} images/s" if result.metric == "speed" else "{:,.1f} MiB"
    sides = [unit.format(result.weft), unit.format(result.transformers)]
    case = result.case
    row = [case.encoder, case.size, case.precision, str(case.batch), case.mode, result.metric, *sides]
    return [*row, f"{result.ratio:.2f}x", f"{result.lower_bound:.2f}x", "yes" if result.reached else "NO"]


def markdown(results: Sequence[Result], where: dict[str, Any], left_out: dict[str, str]) -> str:
    lines = [
        "# Image encoders against `transformers`",
        "",
        f"{where['date']}, commit {where['commit']}; {where['hardware']}; Python {where['python']}, torch {where['torch']}, "
        f"transformers {where['transformers']}. {results[0].runs} alternating runs, the same weights and pixels on both sides, "
        "whose outputs agree in fp32. Forward without gradients; training is forward and backward of all weights. Peak memory "
        f"is what a call adds. A row is reached where the bound is {FLOOR}x or more. Command: `{where['command'].strip()}`.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(columns(result)) + " |" for result in results),
        "",
    ]
    if left_out:
        lines += ["Left out: " + "; ".join(f"{name}, {reason}" for name, reason in left_out.items()) + ".", ""]
    return "\n".join(lines)


def measure(name: str, arguments: argparse.Namespace) -> Iterator[Result]:
    """The results of one encoder. Raises: LeftOut with the reason where it cannot be compared."""
    device, clock = torch.device(arguments.device), CLOCKS[arguments.clock]
    size, config = config_of(image_encoders()[name], arguments.size)
    form = published_form(config)
    if form is None:
        raise LeftOut("no class in transformers")
    torch.manual_seed(0)
    encoder = config.build().eval()
    reference = reference_of(encoder, *form).to(device)
    encoder.to(device)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(max(arguments.batches), *config.unit_shape, generator=generator).to(device)
    functions = same_output(encoder, reference, pixels[:2])
    for precision in arguments.precisions:
        sides = {"weft": encoder.to(DTYPES[precision]), "transformers": reference.to(DTYPES[precision])}
        for mode in arguments.modes:
            for batch in arguments.batches:
                case = Case(name, size, precision, batch, mode)
                some = pixels[:batch].to(DTYPES[precision])
                runs = {
                    side: call(function, model.train(mode == "training"), some, mode)
                    for function, (side, model) in zip(functions, sides.items(), strict=True)
                }
                yield from compare(case, runs, arguments.runs, arguments.seconds, clock, device)


def main() -> int:
    names = list(image_encoders())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=names, default=names)
    parser.add_argument("--size", default="smallest", help="tiny, smallest, largest, or the name of a published size")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one timing, as a multiple of whole calls")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    on_cuda = arguments.device.startswith("cuda")
    hardware = torch.cuda.get_device_name(arguments.device) if on_cuda else processor(arguments.threads, arguments.clock)
    where = conditions("encoders.py", hardware)
    console = Console(width=160)
    left_out: dict[str, str] = {}
    results: list[Result] = []
    for name in arguments.encoders:
        try:
            for one in measure(name, arguments):
                console.print("  ".join(columns(one)), highlight=False)
                results.append(one)
        except (LeftOut, CheckpointError) as reason:
            left_out[name] = str(reason)
    table = Table(*HEADINGS)
    for one in results:
        table.add_row(*columns(one), style=None if one.reached else "red")
    console.print(table)
    for name, reason in left_out.items():
        console.print(f"left out: {name}, {reason}")
    if results and not arguments.no_write:
        record = {"conditions": where, "results": [asdict(one) | {"reached": one.reached} for one in results]}
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "encoders.json").write_text(json.dumps(record, indent=1) + "\n")
        (HERE / "encoders.md").write_text(markdown(results, where, left_out))
    return int(not results or not all(one.reached for one in results))


if __name__ == "__main__":
    raise SystemExit(main())
