"""Images per second and peak memory of every image encoder, against `transformers` on the same weights in the same run.

python benchmarks/encoders.py [--quick] [--encoders clip siglip] [--batches 1 4] [--runs 12] [--threads 2]

Each side lives in a process of its own (encoder_process.py); runs alternate between the two, with the order swapped every time,
and a case has at least six such pairs of processes, because where a process's memory came to lie moves its speed.
The weights cross through a folder in the published form, and before anything is measured both sides must give the same output,
in fp32 within 1e-4 of its largest value. "forward" is that output without gradients, "training" the mean of its square with the
gradients of all weights, no optimizer. In bf16 weights and pixels are bf16. Neither side is compiled; `transformers` picks its
own attention. While speed is measured on a CPU, both processes keep what a call frees for the next one, as Weft's trainer does:
otherwise the time to find new pages varies by half from call to call. A pair of processes gives one ratio, the median of those
of its neighbouring runs, in Weft's favour; a case gives their geometric mean with the lower end of Student's 95% interval over
the pairs. Where that lies more than 1.5% below the ratio, and the floor of 0.97 is not half as far again from the ratio, above
or below, further pairs follow, to at most five times as many. (Half as far again:
drawn 3,000 times, a true ratio at the floor is called reached 2.5 to 4% of the time, so looking after every pair costs little.)

Peak memory is what a call adds to what was held before it: counted by the allocator on CUDA, by the kernel's high-water mark of
the process on Linux (from 8 MiB on: it counts in steps of up to 0.25 MiB on two cores), elsewhere not at all. It does not
depend on where memory lies, so one pair of processes does: the median ratio of its runs, with a bootstrap interval. A CUDA
device is taken where there is one.

Every row is written as soon as it is measured, to results/encoders.json and encoders.md beside this file, with the conditions
that its encoder was measured under. A run that was interrupted goes on where it stopped. Rows of an encoder asked for are
measured anew where the machine, the settings or the code that the encoder imports have changed since; rows of other encoders,
and those of another kind of device, stay. --quick measures shallow forms of the same widths and writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from comparison import CLOCKS, FLOOR, HERE, conditions, processor, ratio_of_pairs, ratio_of_processes
from encoder_process import DTYPES, LONG, Opening, Process
from rich.console import Console
from safetensors.torch import save_file

from weft.checkpoints.checkpoint_format import CheckpointFormat, checkpoint_formats
from weft.checkpoints.weight_files import weights
from weft.core.errors import CheckpointError
from weft.core.interfaces import ModalityEncoder
from weft.encoders.clip import ClipVision
from weft.encoders.dinov2 import Dinov2
from weft.encoders.eva_clip import EvaClipVision
from weft.encoders.resnet import Resnet
from weft.encoders.siglip import SiglipVision

MODES = ("forward", "training")
METRICS = {"speed": "{:,.1f} images/s", "peak memory": "{:,.1f} MiB"}
AGREEMENT = 1e-4  # float32 through a published depth, in other orders of summation
WIDTH = 0.015  # between a ratio and its bound, above which further pairs of processes follow
FAR = 1.5  # half an interval's widths from its ratio to the floor, from which on its width does not matter
MOST = 5  # times as many pairs
PAIRS = 6  # of processes at least: where a process's memory came to lie moves its speed by up to five percent
SHORT = 3  # times as many runs of a call that is not long: of more than two, the median leaves out those that were disturbed
SMALLEST_PEAK = 8.0  # MiB of resident memory, which the kernel counts in steps of up to 0.25 MiB on two cores
RESULTS, TABLE = HERE / "results" / "encoders.json", HERE / "encoders.md"


def subjects() -> dict[str, tuple[str, ModalityEncoder.Config]]:
    """Every encoder that `transformers` has a class for, at a size that two cores can train: its name, size and config."""
    dinov2: dict[str, Any] = {"image_size": 224}
    blip_2 = dataclasses.replace(
        EvaClipVision.Config.sizes()["g-14-blip-2"],
        width=768, num_layers=12, num_heads=12, feed_forward_width=3072, feature_norm_eps=1e-6,
    )  # fmt: skip
    plain = dataclasses.replace(Dinov2.Config.sizes()["s-14"], position_interpolation="plain", **dinov2)
    registers = dataclasses.replace(Dinov2.Config.sizes()["s-14-registers"], **dinov2)
    return {
        "clip": ("b-16", ClipVision.Config.sizes()["b-16"]),
        "siglip": ("b-16-224", SiglipVision.Config.sizes()["b-16-224"]),
        "dinov2": ("s-14 at 224", plain),
        "dinov2-registers": ("s-14 at 224", registers),
        "resnet": ("50", Resnet.Config.sizes()["50"]),
        "eva_clip": ("BLIP-2's, 12 x 768", blip_2),
    }


LEFT_OUT = {
    "eva_clip with sub-norms and rotary positions": "no class in transformers",
    "nfnet": "no class in transformers",
    "qwen_vl_vision": "no class in transformers",
    "patch_vision": "no class in transformers",
    "mllama": "its class takes tiles with the number of their grid and a mask of those that are real, not pictures alone",
}


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

    @property
    def settled(self) -> bool:
        """Whether more runs would change little: the interval is narrow, or the floor is far from it, on whichever side."""
        half = self.ratio - self.lower_bound
        return half <= WIDTH * self.ratio or abs(self.ratio - FLOOR) >= FAR * half

    @staticmethod
    def of_speed(case: Case, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Result:
        """From images per second, a list for each pair of processes."""
        all_of = [list(chain.from_iterable(side)) for side in (ours, theirs)]
        return Result(case, "speed", *map(statistics.median, all_of), *ratio_of_processes(ours, theirs), len(all_of[0]))

    @staticmethod
    def of_memory(case: Case, ours: Sequence[float], theirs: Sequence[float]) -> Result:
        ratio, bound = ratio_of_pairs(theirs, ours)  # the smaller the better
        return Result(case, "peak memory", statistics.median(ours), statistics.median(theirs), ratio, bound, len(ours))


@dataclass
class Part:
    """One encoder's rows on one kind of device, with what they were measured under: the conditions, and the encoder's code."""

    encoder: str
    device: str
    conditions: dict[str, Any]
    code: str
    results: list[Result] = dataclasses.field(default_factory=list)
    unmeasured: list[tuple[Case, str]] = dataclasses.field(default_factory=list)

    @staticmethod
    def read(saved: dict[str, Any]) -> Part:
        results = [Result(**{**row, "case": Case(**row["case"])}) for row in saved["results"]]
        unmeasured = [(Case(**case), metric) for case, metric in saved["unmeasured"]]
        return Part(**{**saved, "results": results, "unmeasured": unmeasured})

    def same_as(self, other: Part) -> bool:
        """Whether rows of both may stand beside each other: the day, the commit and what else was asked for may differ."""
        same = ("hardware", "python", "torch", "transformers", "settings")
        return self.code == other.code and all(self.conditions[key] == other.conditions[key] for key in same)

    def has(self, case: Case, metric: str) -> bool:
        return (case, metric) in self.unmeasured or any((one.case, one.metric) == (case, metric) for one in self.results)


class Record:
    """The parts so far, on disk after each row; None as a file keeps them in memory only."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        saved = json.loads(file.read_text()).get("parts", []) if file is not None and file.exists() else []
        self.parts = {(part.encoder, part.device): part for part in map(Part.read, saved)}

    def part(self, new: Part, again: bool) -> Part:
        """The part that `new` goes on with: what stands of it, or `new` itself where conditions differ or all is asked anew."""
        key = (new.encoder, new.device)
        if again or key not in self.parts or not self.parts[key].same_as(new):
            self.parts[key] = new
        return self.parts[key]

    def add(self, part: Part, case: Case, metric: str, result: Result | None) -> None:
        if result is None:
            part.unmeasured.append((case, metric))
        else:
            part.results.append(result)
        if self.file is None:
            return
        begun = [one for one in self.parts.values() if one.results or one.unmeasured]
        self.file.parent.mkdir(exist_ok=True)
        beside = self.file.with_suffix(".partial")
        beside.write_text(json.dumps({"parts": [asdict(one) for one in begun]}, indent=1) + "\n")
        beside.replace(self.file)
        TABLE.write_text(markdown(begun))


def published_form(config: ModalityEncoder.Config) -> tuple[CheckpointFormat, dict[str, Any]]:
    """The format that writes this encoder for a `transformers` class, and the written config."""
    import transformers

    for layout in checkpoint_formats().values():
        if any(type(tiny) is type(config) for tiny in layout.tiny()):
            try:
                saved = layout.write_config(config)
            except CheckpointError:  # this layout has no place for it, another may
                continue
            named = any(hasattr(transformers, architecture) for architecture in saved.get("architectures") or ())
            if named and saved.get("model_type") in layout.model_types:
                return layout, saved
    raise SystemExit(f"{type(config).__qualname__}: no checkpoint format writes it for a class of transformers")


def write_weights(config: ModalityEncoder.Config, folder: Path) -> str:
    """Fresh weights in Weft's names and in the published form; the name of the peer's class."""
    layout, saved = published_form(config)
    torch.manual_seed(0)
    state = weights(config.build())
    for file, tensors in {"weft": state, "model": layout.key_map(config).from_weft(state)}.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{file}.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(saved))
    return str(saved["architectures"][0])


def same_output(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, str]:
    """The names of the two outputs that hold the same numbers: pooled vectors where both have them, else features."""
    for name, found in ours.items():
        for key, expected in theirs.items():
            if found.size == expected.size:
                difference = abs(found - expected.reshape(found.shape)).max()
                if difference <= AGREEMENT * max(abs(expected).max(), 1.0):
                    return name, key
    raise SystemExit(f"no output agrees: Weft has {', '.join(ours)}, the peer {', '.join(theirs)}")


def alternating(sides: Sequence[Process], num_runs: int, *call: Any) -> tuple[list[Any], list[Any]]:
    """What `num_runs` calls of each side give, in turns, with the order swapped every time."""
    found: tuple[list[Any], list[Any]] = ([], [])
    for run in range(num_runs):
        for place in (0, 1) if run % 2 == 0 else (1, 0):
            found[place].append(sides[place](*call))
    return found


def measure(
    cases: Sequence[Case], config: ModalityEncoder.Config, record: Record, part: Part, arguments: Any
) -> Iterator[Result]:
    """The results of one encoder that its part does not have yet: speed in every case, then memory in every case."""
    with tempfile.TemporaryDirectory() as folder:
        peer = write_weights(config, Path(folder))
        for metric, results in (("speed", speeds), ("peak memory", peaks)):
            common = (metric == "peak memory", Path(folder), arguments.device, arguments.threads, arguments.clock)
            pair = partial(opened, [Opening(config, name, *common) for name in (None, peer)])
            missing = [case for case in cases if not part.has(case, metric)]
            for case, result in results(missing, pair, arguments):
                record.add(part, case, metric, result)
                if result is not None:
                    yield result


Pair = Callable[[], AbstractContextManager[tuple[Sequence[Process], tuple[str, str]]]]
Found = Iterator[tuple[Case, Result | None]]


@contextmanager
def opened(openings: Sequence[Opening]) -> Iterator[tuple[Sequence[Process], tuple[str, str]]]:
    """Both sides in new processes, with the names of the outputs that hold the same numbers."""
    sides = [Process(opening) for opening in openings]
    try:
        for side in sides:
            side.answer()
        ours, theirs = (side("values") for side in sides)
        yield sides, same_output(ours, theirs)
    finally:
        for side in sides:
            side.close()


def speeds(cases: Sequence[Case], pair: Pair, arguments: Any) -> Found:
    """From as many pairs of processes as a narrow interval takes."""
    runs: dict[Case, tuple[list[list[Any]], list[list[Any]]]] = {case: ([], []) for case in cases}
    for number in range(1, MOST * PAIRS + 1):
        if not runs:
            return
        with pair() as (sides, outputs):
            for case in runs:
                seconds = prepared(case, sides, outputs)
                calls = max(1, round(arguments.seconds / seconds))
                num_runs = -(-arguments.runs // PAIRS) * (1 if seconds > LONG else SHORT)
                for known, new in zip(runs[case], alternating(sides, num_runs, "rate", calls), strict=True):
                    known.append(new)
        for case in list(runs) if number >= PAIRS else []:
            result = Result.of_speed(case, *runs[case])
            if result.settled or number == MOST * PAIRS:
                del runs[case]
                yield case, result


def peaks(cases: Sequence[Case], pair: Pair, arguments: Any) -> Found:
    """None where nothing counts memory, or where it is too little to be counted."""
    if not cases:
        return
    with pair() as (sides, outputs):
        for case in cases:
            prepared(case, sides, outputs)
            yield case, memory_result(case, alternating(sides, arguments.runs, "peak"), arguments.device)


def prepared(case: Case, sides: Sequence[Process], outputs: Sequence[str]) -> float:
    """Seconds of one call of the slower side."""
    call = (case.precision, case.mode, case.batch)
    return max(side("prepare", name, *call) for side, name in zip(sides, outputs, strict=True))


def memory_result(case: Case, measured: tuple[list[float | None], list[float | None]], device: str) -> Result | None:
    """From MiB of each side's runs; None where one is missing or too small to be counted."""
    smallest = 0.0 if device.startswith("cuda") else SMALLEST_PEAK
    ours, theirs = ([value for value in side if value is not None and value > smallest] for side in measured)
    if (len(ours), len(theirs)) != tuple(map(len, measured)):
        return None
    return Result.of_memory(case, ours, theirs)


def shallow(config: ModalityEncoder.Config) -> ModalityEncoder.Config:
    """The same widths in two blocks, or one block a stage."""
    if isinstance(config, Resnet.Config):
        return dataclasses.replace(config, depths=(1,) * len(config.depths))
    return dataclasses.replace(config, num_layers=2)  # type: ignore[call-arg]  # the others are transformers


HEADINGS = (
    *("encoder", "size", "precision", "images", "mode", "what", "Weft", "transformers"),
    *("runs", "ratio", "95% bound", "reached"),
)


def columns(result: Result) -> list[str]:
    case, write = result.case, METRICS[result.metric].format
    row = [case.encoder, case.size, case.precision, str(case.batch), case.mode, result.metric]
    row += [write(result.weft), write(result.transformers), str(result.runs)]
    return [*row, f"{result.ratio:.2f}x", f"{result.lower_bound:.2f}x", "yes" if result.reached else "NO"]


def place(result: Result) -> tuple[int, ...]:
    """Where a result stands in the table."""
    case, orders = result.case, (list(subjects()), list(METRICS), list(DTYPES), MODES)
    names = (case.encoder, result.metric, case.precision, case.mode)
    return (*(order.index(name) for order, name in zip(orders, names, strict=True)), case.batch)


def markdown(parts: Sequence[Part]) -> str:
    lines = [
        "# Image encoders against `transformers`",
        "",
        "Alternating runs in six pairs of processes or more, the same weights and pixels, outputs that agree in fp32. "
        "Forward without gradients; training is forward and backward of all weights, without an optimizer; on a CPU both "
        "processes keep what a call frees for the next one. Peak memory is what a call adds. A ratio of speed is the geometric "
        "mean over the pairs of processes, one of memory the median over the runs; a row is reached where its bound, the lower "
        f"end of the 95% interval, is {FLOOR}x or more.",
    ]
    alike: dict[str, list[Part]] = {}
    for part in parts:
        said = "{date}, commit {commit}; {hardware}; Python {python}, torch {torch}, transformers {transformers}; `{command}`:"
        alike.setdefault(said.format(**part.conditions), []).append(part)
    for said, group in alike.items():
        results = sorted((result for part in group for result in part.results), key=place)
        lines += [
            "",
            said,
            "",
            "| " + " | ".join(HEADINGS) + " |",
            "|" + "---|" * len(HEADINGS),
            *("| " + " | ".join(columns(result)) + " |" for result in results),
        ]
    return "\n".join(
        [*lines, "", "Not compared: " + "; ".join(f"{name}, {reason}" for name, reason in LEFT_OUT.items()) + ".", ""]
    )


def digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


def modules(name: str, found: dict[str, Path]) -> dict[str, Path]:
    """Weft's modules that the module `name` needs, itself among them, with their files: what is named after an import."""
    place = (HERE.parent / "src").joinpath(*name.split("."))
    file = next((one for one in (place.with_suffix(".py"), place / "__init__.py") if one.exists()), None)
    if not name.startswith("weft") or file is None or name in found:
        return found
    found[name] = file
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for other in names:
            modules(other, found)
    return found


def main() -> int:
    known = subjects()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=known, default=list(known))
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batches", nargs="+", type=int, help="images a call; [1, 4], with --quick [2]")
    parser.add_argument("--runs", type=int, help="alternating runs of each side at least; 12, with --quick 10")
    parser.add_argument("--seconds", type=float, default=0.3, help="of one timing at least, as a multiple of whole calls")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quick", action="store_true", help="shallow forms; nothing is written")
    parser.add_argument("--again", action="store_true", help="measure anew what is already recorded")
    arguments = parser.parse_args()
    arguments.runs = arguments.runs or (10 if arguments.quick else 12)
    batches = arguments.batches or ([2] if arguments.quick else [1, 4])
    on_cuda = arguments.device.startswith("cuda")
    hardware = torch.cuda.get_device_name(arguments.device) if on_cuda else processor(arguments.threads, arguments.clock)
    settings = {"code": digest(HERE.glob("encoder*.py")), "runs": arguments.runs, "seconds": arguments.seconds}
    where = conditions("encoders.py", hardware) | {"settings": settings}
    record = Record(None if arguments.quick else RESULTS)
    parts = []
    console = Console(width=160)
    for name in arguments.encoders:
        size, config = known[name]
        if arguments.quick:
            size, config = f"{size}, shallow", shallow(config)
        cases = [
            Case(name, size, precision, batch, mode)
            for precision in arguments.precisions
            for mode in arguments.modes
            for batch in batches
        ]
        code = digest(modules(type(config).__module__, {}).values())
        parts.append(record.part(Part(name, arguments.device.split(":")[0], where, code), arguments.again))
        for result in measure(cases, config, record, parts[-1], arguments):
            style = None if result.reached else "red"
            console.print("  ".join(columns(result)), highlight=False, style=style)
    rows = [result for part in parts for result in part.results]
    short = [result for result in rows if not result.reached]
    console.print(f"{len(rows)} rows, {len(short)} below {FLOOR}x")
    return int(not rows or bool(short))


if __name__ == "__main__":
    raise SystemExit(main())
