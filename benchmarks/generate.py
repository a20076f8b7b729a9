"""Decode speed and time to first token, against `transformers`' generate on the same weights in the same run.

python benchmarks/generate.py [--models tiny small medium] [--runs 12] [--threads 2]

Both sides start from prepared tensors, decode greedily the same number of tokens and must write the same ones in fp32.
`transformers` uses scaled-dot-product attention and whichever of its dynamic and static caches is faster for the case; neither
side is compiled. Weights cross through Weft's own LLaVA key map. Runs alternate, with the order swapped every time; ratios are
of medians, and the bound is the lower end of their 95% bootstrap interval. On a machine that others use, `--clock cpu` counts
the process's own CPU time (with one thread).

Writes results/generate.json after every case and generate.md at the end, both beside this file. A run that was interrupted goes
on with `--resume`: cases that were measured on the same code, machine and settings are not measured again.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from typing import Any

import torch
from comparison import CLOCKS, FLOOR, HERE, Clock, conditions, processor, ratio_of_medians
from rich.console import Console
from rich.table import Table

from weft.checkpoints import llava
from weft.checkpoints.weight_files import weights
from weft.core.batch import MediaBatch, MultimodalBatch, TextSide
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.inference.generate import Decoding, generate_tokens
from weft.inference.sampling import Sampling
from weft.language_models.decoder import Decoder
from weft.projectors.mlp import MLP
from weft.systems.multimodal_lm import MultimodalLM, Stream

FLOORS = {"tiny": 1.5}
FIRST_TOKENS = 2, 5  # fewest and most prefills of one run, of which the median counts: a single short one is mostly noise
FIRST_SECONDS = 0.3  # once its prefills have taken so long, a run begins no more of them
TEXT_TOKENS = 24  # around the image


def lm(layers: int, width: int, heads: int, vocabulary: int = 32_000) -> Decoder.Config:
    return Decoder.Config(
        vocabulary=vocabulary,
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_key_value_heads=heads,
        feed_forward_width=width * 11 // 4 // 16 * 16,
    )


def vit(image: int, layers: int, width: int) -> ClipVision.Config:
    return ClipVision.Config(
        image_size=image, patch_size=14, width=width, num_layers=layers, num_heads=4, feed_forward_width=4 * width
    )


RECORD = HERE / "results" / "generate.json"

MODELS = {
    "tiny": (lm(2, 64, 4, vocabulary=2048), vit(56, 2, 64)),
    "small": (lm(6, 256, 4), vit(112, 4, 128)),
    "medium": (lm(12, 512, 8), vit(168, 6, 256)),
}


@dataclass(frozen=True)
class Case:
    """One comparison: a model in a precision with a number of rows."""

    model: str
    precision: str
    batch: int


@dataclass(frozen=True)
class Timing:
    """Units: seconds to the first token, tokens per second of all rows together after it."""

    first: float
    decode: float


@dataclass(frozen=True)
class Result:
    """Medians of both sides, their ratio as a factor in Weft's favour, and its lower bound."""

    case: Case
    metric: str
    weft: float
    transformers: float
    ratio: float
    lower_bound: float
    floor: float
    transformers_cache: str
    prompt_tokens: int
    runs: int

    @property
    def reached(self) -> bool:
        return self.lower_bound >= FLOOR and self.ratio >= self.floor


Run = Callable[[int], Any]  # number of new tokens -> their ids


def system_of(name: str) -> MultimodalLM:
    language_model, encoder = MODELS[name]
    config = MultimodalLM.Config(
        language_model=language_model,
        streams={"image": Stream.Config(encoder=encoder, projector=MLP.Config())},
        fusions=(TokenConcatenation.Config(),),
    )
    torch.manual_seed(0)
    system = config.build().eval()
    for parameter in system.parameters():  # larger than at the start of training, so that greedy tokens are told apart clearly
        if parameter.dim() > 1:
            parameter.data.mul_(3.0)
    return system


def reference_of(system: MultimodalLM, dtype: torch.dtype) -> Any:
    """The `transformers` model with the same weights."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(**llava.write_config(system.config))
    config._attn_implementation = "sdpa"
    model = LlavaForConditionalGeneration(config).eval()
    spelled = {canonical(key): key for key in model.state_dict()}
    state = {spelled[key]: value for key, value in llava.LLAVA.from_weft(weights(system)).items()}
    model.load_state_dict(state, strict=True)
    return model.to(dtype)


def canonical(key: str) -> str:
    return llava.LLAVA.canonical(key)


def prompt(system: MultimodalLM, rows: int) -> tuple[MultimodalBatch, dict[str, torch.Tensor]]:
    """The same prompt for both sides: an image inside a few text tokens, another one for each row."""
    generator = torch.Generator().manual_seed(1)
    config = system.config
    image_token, length = config.language_model.vocabulary - 1, config.num_positions("image")
    text = torch.randint(3, image_token, (rows, TEXT_TOKENS), generator=generator)
    tokens = torch.cat((text[:, :4], torch.full((rows, length), image_token), text[:, 4:]), 1)
    size = config.streams["image"].encoder.image_size
    pixels = torch.randn(rows, 3, size, size, generator=generator)
    order = torch.arange(tokens.shape[1]).expand(rows, -1).clone()
    item = torch.arange(rows)
    spans = torch.stack((item, torch.zeros_like(item), item, torch.full_like(item, 4), torch.full_like(item, length)), 1)
    layout = config.streams["image"].encoder.layout()
    media = MediaBatch(pixels, item, (layout,) * rows, spans, item)
    side = TextSide(tokens, order, torch.ones_like(tokens), order.clone(), (tokens == image_token).long())
    inputs = {"input_ids": tokens, "pixel_values": pixels, "attention_mask": torch.ones_like(tokens)}
    return MultimodalBatch(side, {"image": media}), inputs


def weft_run(system: MultimodalLM, batch: MultimodalBatch) -> Run:
    def run(new_tokens: int) -> list[list[int]]:
        decoding = Decoding(system, capacity=batch.main.tokens.shape[1] + new_tokens)
        logits = decoding.prefill(batch)
        steps = generate_tokens(decoding, logits, Sampling(max_new_tokens=new_tokens))
        columns = [[event.token for event in events] for events in steps]
        return [list(row) for row in zip(*columns, strict=True)]

    return run


def transformers_run(model: Any, inputs: dict[str, torch.Tensor], cache: str) -> Run:
    inputs = inputs | {"pixel_values": inputs["pixel_values"].to(model.dtype)}
    length = inputs["input_ids"].shape[1]

    def run(new_tokens: int) -> list[list[int]]:
        with torch.inference_mode():
            tokens = model.generate(
                **inputs,
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                cache_implementation=None if cache == "dynamic" else cache,
                disable_compile=True,
            )
        return tokens[:, length:].tolist()

    return run


def timed(run: Run, rows: int, new_tokens: int, clock: Clock) -> Timing:
    firsts: list[float] = []
    fewest, most = FIRST_TOKENS
    while len(firsts) < fewest or (len(firsts) < most and sum(firsts) < FIRST_SECONDS):
        start = clock()
        run(1)
        firsts.append(clock() - start)
    first = statistics.median(firsts)
    start = clock()
    run(new_tokens)
    return Timing(first, rows * (new_tokens - 1) / max(clock() - start - first, 1e-9))


def fastest_cache(runs: dict[str, Run], rows: int, new_tokens: int, clock: Clock) -> dict[str, str]:
    """The cache of `transformers` that is faster, by metric."""
    tried = {name: [timed(run, rows, new_tokens, clock) for _ in range(3)][1:] for name, run in runs.items()}
    first = {name: statistics.median(timing.first for timing in timings) for name, timings in tried.items()}
    decode = {name: statistics.median(timing.decode for timing in timings) for name, timings in tried.items()}
    return {"first token": min(first, key=first.__getitem__), "decode": max(decode, key=decode.__getitem__)}


def compare(case: Case, system: MultimodalLM, reference: Any, num_runs: int, new_tokens: int, clock: Clock) -> list[Result]:
    batch, inputs = prompt(system, case.batch)
    ours = weft_run(system, batch)
    theirs = {cache: transformers_run(reference, inputs, cache) for cache in ("dynamic", "static")}
    if case.precision == "fp32" and (found := ours(new_tokens)) != (expected := theirs["dynamic"](new_tokens)):
        raise SystemExit(f"{case}: the two sides write different tokens, {found} and {expected}")
    timed(ours, case.batch, new_tokens, clock)
    chosen = fastest_cache(theirs, case.batch, new_tokens, clock)
    sides = {"weft": ours} | {cache: theirs[cache] for cache in set(chosen.values())}
    timings: dict[str, list[Timing]] = {side: [] for side in sides}
    for index in range(num_runs):
        gc.collect()
        for side in sorted(sides, reverse=index % 2 == 1):
            timings[side].append(timed(sides[side], case.batch, new_tokens, clock))
    results = []
    for metric, cache in chosen.items():
        if metric == "decode":
            pair = [t.decode for t in timings["weft"]], [t.decode for t in timings[cache]]
        else:
            pair = [1 / t.first for t in timings["weft"]], [1 / t.first for t in timings[cache]]
        ratio, bound = ratio_of_medians(*pair)
        medians = [statistics.median(side) if metric == "decode" else 1 / statistics.median(side) for side in pair]
        floor = FLOORS.get(case.model, FLOOR)
        length = batch.main.tokens.shape[1]
        results.append(Result(case, metric, medians[0], medians[1], ratio, bound, floor, cache, length, num_runs))
    return results


def columns(result: Result) -> list[str]:
    if result.metric == "decode":
        sides = [f"{result.weft:,.0f} tokens/s", f"{result.transformers:,.0f} tokens/s"]
    else:
        sides = [f"{result.weft * 1e3:.1f} ms", f"{result.transformers * 1e3:.1f} ms"]
    verdict = "yes" if result.reached else "NO"
    case = result.case
    row = [case.model, case.precision, str(case.batch), result.metric, *sides, result.transformers_cache]
    return [*row, f"{result.ratio:.2f}x", f"{result.lower_bound:.2f}x", f"{result.floor:.2f}x", verdict]


HEADINGS = [
    "model",
    "precision",
    "batch",
    "what",
    "Weft",
    "transformers",
    "its cache",
    "ratio",
    "95% bound",
    "floor",
    "reached",
]


def markdown(results: Sequence[Result], where: dict[str, Any]) -> str:
    shapes = [
        f"- **{name}**: language model {config.num_layers} x {config.width}, vocabulary {config.vocabulary:,}; image tower "
        f"{tower.num_layers} x {tower.width}, {tower.layout().positions} image tokens"
        for name, (config, tower) in MODELS.items()
        if any(result.case.model == name for result in results)
    ]
    lines = [
        "# Generation against `transformers`",
        "",
        f"{where['date']}, commit {where['commit']}; {where['hardware']}; Python {where['python']}, torch {where['torch']}, "
        f"transformers {where['transformers']}. {where['new_tokens']} new tokens, {results[0].runs} alternating runs, the same "
        "weights and prompts on both sides; in fp32 both write the same tokens. `transformers` runs with scaled-dot-product "
        f"attention and the faster of its two caches; nothing is compiled. Command: `{where['command'].strip()}`, "
        f"{where['seconds'] / 60:.0f} minutes.",
        "",
        *shapes,
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(columns(result)) + " |" for result in results),
        "",
    ]
    return "\n".join(lines)


def write_record(results: Sequence[Result], where: dict[str, Any]) -> None:
    record = {"conditions": where, "results": [asdict(result) | {"reached": result.reached} for result in results]}
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def recorded(where: dict[str, Any]) -> list[Result]:
    """What was measured under the same conditions; its seconds are added to those of this run."""
    if not RECORD.exists():
        return []
    record = json.loads(RECORD.read_text())
    before = record["conditions"]
    if other := [key for key in where if key not in ("date", "command", "seconds") and before.get(key) != where[key]]:
        raise SystemExit(f"{RECORD} was measured with another {', '.join(other)}; measure anew without --resume")
    where["seconds"] += before["seconds"]
    fields = [{key: value for key, value in each.items() if key != "reached"} for each in record["results"]]
    return [Result(**(each | {"case": Case(**each["case"])})) for each in fields]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, default=33)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run of the same code stopped")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = conditions("generate.py", processor(arguments.threads, arguments.clock))
    where |= {"new_tokens": arguments.new_tokens, "runs": arguments.runs, "seconds": 0.0}
    cases = [Case(*each) for each in product(arguments.models, arguments.precisions, arguments.batches)]
    results = recorded(where) if arguments.resume else []
    measured = {result.case for result in results}
    console = Console(width=140)
    for (name, precision), group in groupby([c for c in cases if c not in measured], lambda c: (c.model, c.precision)):
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        system = system_of(name)
        reference = reference_of(system, dtype)
        system.to(dtype)
        for case in group:
            start = time.perf_counter()
            found = compare(case, system, reference, arguments.runs, arguments.new_tokens, CLOCKS[arguments.clock])
            where["seconds"] += time.perf_counter() - start
            results += found
            for result in found:
                console.print("  ".join(columns(result)), highlight=False)
            if not arguments.no_write:
                write_record(results, where)
    results = sorted((r for r in results if r.case in cases), key=lambda r: cases.index(r.case))
    table = Table(*HEADINGS)
    for result in results:
        table.add_row(*columns(result), style=None if result.reached else "red")
    console.print(table)
    if not arguments.no_write:
        (HERE / "generate.md").write_text(markdown(results, where))
    return int(not all(result.reached for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
