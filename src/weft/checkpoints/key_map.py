"""Key maps: how the tensors of a published file become the parameters of a Weft module, and back.

A map is a table of rules. A pattern is a dotted name in which `{i}` stands for an index and `*` for any text; it also matches
one more component at its end, so `"mlp.fc1"` covers `mlp.fc1.weight` and `mlp.fc1.bias`. Every key of a file is used by one
rule or dropped with a stated reason, every parameter of the model is filled, and whatever does not fit is one error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weft.checkpoints.patterns import Bindings, Pattern, collapse, compile_patterns, expression, fill, moved, placeholders
from weft.checkpoints.rules import Rule
from weft.core.errors import CheckpointError, ConfigError


class Step(NamedTuple):
    """One rule at work: the keys it reads and the keys it writes."""

    rule: Rule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def within(self, part: str) -> Step:
        """What it writes to names that begin with `part`; the reading side alone."""
        places = [place for place, name in enumerate(self.outputs) if name.startswith(part)]
        if len(places) == len(self.outputs):
            return self
        made = self.rule.forward
        rule = replace(self.rule, forward=lambda tensors: tuple(made(tensors)[place] for place in places))
        return Step(rule, self.inputs, tuple(self.outputs[place] for place in places))


@dataclass
class Problems:
    """Everything that does not fit, gathered before anything is changed."""

    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)
    conflicting: list[str] = field(default_factory=list)

    def raise_if_any(self, where: str, model: str) -> None:
        """One error that lists them all; names that differ in one index only are written as a range."""
        parts = []
        for name in ("missing", "unknown", "wrong_shape", "conflicting"):
            if keys := getattr(self, name):
                shown = collapse(keys) if name in ("missing", "unknown") else keys
                parts.append(f"{len(keys)} {name.replace('_', ' ')} ({', '.join(shown)})")
        if parts:
            way_out = "is this file of the architecture and size that its config describes?"
            raise CheckpointError(f"{where} does not fit {model}: {'; '.join(parts)}; {way_out}")


@dataclass
class Plan:
    """What a map does with a list of keys."""

    steps: list[Step] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)

    def within(self, part: str) -> Plan:
        """What becomes of the keys that fill a part of the model, whose names begin with `part`."""
        return replace(self, steps=[step for each in self.steps if (step := each.within(part)).outputs])


class _Match(NamedTuple):
    rule: int
    place: int
    bindings: Bindings  # of the end that matched
    moved: Bindings  # of the other end


class KeyMap:
    """A two-way, strict table between the keys of a published layout (source) and those of a Weft module (target).

    `drop` maps source patterns to the reason why they are not used; it goes before the rules. `spellings` are prefix rewrites
    (old, new) that turn other accepted spellings of the source into this one: they are tried in order until the key is one
    that the table knows. A spelling that differs by more than a prefix has `read_only` rules of its own.
    """

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        *,
        rename: Mapping[str, str] | None = None,
        drop: Mapping[str, str] | None = None,
        spellings: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.rules = (*rules, *(Rule((s,), (t,)) for s, t in (rename or {}).items()))
        self.drop = dict(drop or {})
        self.spellings = tuple(spellings)
        if silent := [pattern for pattern, reason in self.drop.items() if not reason.strip()]:
            raise ConfigError(f"a key is dropped for a reason; none given for {', '.join(silent)}")
        for rule in self.rules:
            if len({frozenset(placeholders(name)) for name in (*rule.sources, *rule.targets)}) > 1:
                raise ConfigError(f"a rule binds different indices on its two ends: {rule.sources} and {rule.targets}")
        self._sources = compile_patterns([rule.sources for rule in self.rules])
        self._targets = compile_patterns([() if rule.read_only else rule.targets for rule in self.rules])
        self._drop = [(re.compile(expression(pattern)), reason) for pattern, reason in self.drop.items()]

    @staticmethod
    def join(*maps: KeyMap, spellings: Sequence[tuple[str, str]] = ()) -> KeyMap:
        """One map of several; `spellings` of the whole come before those of the parts."""
        drop = {pattern: reason for part in maps for pattern, reason in part.drop.items()}
        inner = [spelling for part in maps for spelling in part.spellings]
        return KeyMap((rule for part in maps for rule in part.rules), drop=drop, spellings=(*spellings, *inner))

    def under(self, source: str = "", target: str = "") -> KeyMap:
        """The same map for a module that sits under `target` and whose keys begin with `source` (both with their dot)."""
        return KeyMap(
            (rule.under(source, target) for rule in self.rules),
            drop={source + pattern: reason for pattern, reason in self.drop.items()},
            spellings=[(source + old, source + new) for old, new in self.spellings],
        )

    def canonical(self, key: str) -> str:
        """The key in the spelling that the table uses."""
        for old, new in self.spellings:
            if self._match(key, self._sources, False) is not None or self._reason(key) is not None:
                return key
            if key.startswith(old):
                key = new + key[len(old) :]
        return key

    def plan(self, keys: Iterable[str], reverse: bool = False) -> Plan:
        """Which rule uses which of the source's keys (`reverse`: of the target's keys)."""
        plan = Plan()
        found: dict[tuple[int, Bindings, Bindings], dict[int, str]] = {}
        for key in keys:
            name = key if reverse else self.canonical(key)
            if not reverse and (reason := self._reason(name)) is not None:
                plan.dropped[key] = reason
                continue
            match = self._match(name, self._targets if reverse else self._sources, reverse)
            if match is None:
                plan.problems.unknown.append(key)
                continue
            places = found.setdefault((match.rule, match.bindings, match.moved), {})
            if match.place in places:
                plan.problems.conflicting.append(f"{places[match.place]} and {key} are two spellings of one key")
            places[match.place] = key
        for (number, bindings, other), places in found.items():
            rule = self.rules[number]
            ends = (rule.targets, rule.sources) if reverse else (rule.sources, rule.targets)
            absent = [fill(ends[0][place], bindings) for place in range(len(ends[0])) if place not in places]
            plan.problems.missing.extend(absent)
            if not absent:
                outputs = tuple(fill(pattern, other) for pattern in ends[1])
                plan.steps.append(Step(rule, tuple(places[p] for p in range(len(ends[0]))), outputs))
        return plan

    def to_weft(self, state: Mapping[str, Tensor], where: str = "checkpoint") -> dict[str, Tensor]:
        """The target's tensors. Raises: CheckpointError for unknown keys and for incomplete groups."""
        plan = self.plan(state)
        plan.problems.raise_if_any(where, "its key map")
        made = ((step.outputs, _outputs(step, [state[key] for key in step.inputs], where)) for step in plan.steps)
        return {name: tensor for names, tensors in made for name, tensor in zip(names, tensors, strict=True)}

    def from_weft(self, state: Mapping[str, Tensor], where: str = "model") -> dict[str, Tensor]:
        """The source's tensors. Raises: CheckpointError for target keys that the layout cannot hold."""
        return dict(self.streamed_from_weft(state, where))

    def streamed_from_weft(self, state: Mapping[str, Tensor], where: str = "model") -> StreamedTensors:
        """The same, each tensor made when it is asked for: what is fused of several is never held for the whole model."""
        plan = self.plan(state, reverse=True)
        plan.problems.raise_if_any(where, "its key map")
        return StreamedTensors(plan, state, where)

    def load(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        where: str = "checkpoint",
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        part: str = "",
    ) -> dict[str, str]:
        """Fill every parameter and persistent buffer of `model`, one rule at a time; nothing is changed unless all fits.

        Of a file that holds more, `model` is the `part` whose parameters the table gives names that begin so (with its dot).
        `state` may read lazily (an object with `shape(key)` is asked for shapes without reading). A parameter that stands on
        the meta device is replaced by the file's tensor, in `dtype` and on `device` where given. Parameters that are one (a
        tied head) may be given once or, when equal, several times. Returns the dropped keys with their reasons.

        Raises: CheckpointError naming `where` and every missing, unknown and misshapen key.
        """
        plan = self.plan(state).within(part)
        targets: dict[str, Tensor] = model.state_dict(keep_vars=True, prefix=part)
        tied: dict[int, list[str]] = {}
        for name, tensor in targets.items():
            tied.setdefault(id(tensor), []).append(name)
        writers = self._check(plan, targets, state)
        for names in tied.values():
            given = [writers[name] for name in names if name in writers]
            if not given:
                expected = self._source_name(names[0])
                if not set(expected.split(" + ")) & set(plan.problems.missing):
                    plan.problems.missing.append(expected)
            elif len(given) > 1 and not plan.problems.wrong_shape:
                plan.problems.conflicting.extend(_unequal(given, names, state))
        plan.problems.raise_if_any(where, type(model).__name__)
        for step in plan.steps:
            for name, tensor in zip(step.outputs, step.rule.forward([state[k] for k in step.inputs]), strict=True):
                target = targets[name]
                if target.device.type == "meta":
                    names = [each.removeprefix(part) for each in tied[id(target)]]
                    _materialise(model, names, target, tensor, dtype, device)
                else:
                    with torch.no_grad():
                        target.copy_(tensor)
        return plan.dropped

    def _check(self, plan: Plan, targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Step]:
        """Hold every step's result to the model's names and shapes, on the meta device; returns the step that writes a name."""
        writers: dict[str, Step] = {}
        for step in plan.steps:
            inputs = [torch.empty(_shape(state, key), device="meta") for key in step.inputs]
            shapes = ", ".join(f"{k} {tuple(t.shape)}" for k, t in zip(step.inputs, inputs, strict=True))
            try:
                outputs = step.rule.forward(inputs)
            except (ValueError, RuntimeError, IndexError) as error:
                plan.problems.wrong_shape.append(f"{shapes}: {error}")
                outputs = ()
            if any(name not in targets for name in step.outputs):
                plan.problems.unknown.extend(step.inputs)
            for name in step.outputs:
                if name in writers:
                    sources = ", ".join((*writers[name].inputs, *step.inputs))
                    plan.problems.conflicting.append(f"{sources} all become the model's {name}")
            for name, tensor in zip(step.outputs, outputs, strict=False):
                if name in targets and tensor.shape != targets[name].shape:
                    plan.problems.wrong_shape.append(f"{shapes}: the model's {name} is {tuple(targets[name].shape)}")
            writers.update(dict.fromkeys(step.outputs, step))
        return writers

    def _source_name(self, target: str) -> str:
        """How the file would call a parameter, for errors."""
        match = self._match(target, self._targets, True)
        if match is None:
            return f"the model's {target}, which no rule writes"
        return " + ".join(fill(pattern, match.moved) for pattern in self.rules[match.rule].sources)

    def _reason(self, key: str) -> str | None:
        return next((reason for pattern, reason in self._drop if pattern.fullmatch(key)), None)

    def _match(self, key: str, side: Sequence[Pattern], reverse: bool) -> _Match | None:
        """The most literal rule that matches; two equally literal ones are a fault of the table."""
        best: list[tuple[int, _Match]] = []
        for pattern in side:
            found = pattern.expression.fullmatch(key)
            if found is None:
                continue
            bindings = tuple((name, text) for name, text in found.groupdict().items() if text is not None)
            other = moved(bindings, self.rules[pattern.rule].index, reverse)
            if other is not None:
                exact = "leaf_" not in dict(bindings)
                best.append((pattern.literal + exact, _Match(pattern.rule, pattern.place, bindings, other)))
        if not best:
            return None
        best.sort(key=lambda pair: -pair[0])
        if len(best) > 1 and best[0][0] == best[1][0]:
            raise ConfigError(f"two rules of one key map match {key!r}; make one of them more literal")
        return best[0][1]


def _shape(state: Mapping[str, Tensor], key: str) -> torch.Size:
    lazy = getattr(state, "shape", None)
    return torch.Size(lazy(key)) if lazy is not None else state[key].shape


def _outputs(step: Step, inputs: Sequence[Tensor], where: str, reverse: bool = False) -> tuple[Tensor, ...]:
    try:
        return (step.rule.backward if reverse else step.rule.forward)(inputs)
    except (ValueError, RuntimeError, IndexError) as error:
        raise CheckpointError(f"{where}: {' + '.join(step.inputs)} has the wrong shape: {error}") from None


class StreamedTensors(Mapping[str, Tensor]):
    """The tensors of a published layout by name, each made of a model's when it is asked for, and not kept.

    Raises: CheckpointError, before any is made, for a shape that the layout cannot hold.
    """

    def __init__(self, plan: Plan, state: Mapping[str, Tensor], where: str) -> None:
        self._state, self._where = state, where
        self._made_by: dict[str, tuple[Step, int]] = {}
        self._num_bytes: dict[str, int] = {}
        for step in plan.steps:
            shapes = [torch.empty_like(state[key], device="meta", requires_grad=False) for key in step.inputs]
            for place, tensor in enumerate(_outputs(step, shapes, where, reverse=True)):
                self._made_by[step.outputs[place]] = step, place
                self._num_bytes[step.outputs[place]] = tensor.nbytes

    def __getitem__(self, key: str) -> Tensor:
        step, place = self._made_by[key]
        return _outputs(step, [self._state[name] for name in step.inputs], self._where, reverse=True)[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made_by)

    def __len__(self) -> int:
        return len(self._made_by)

    def num_bytes(self, key: str) -> int:
        """A tensor's size, without making it."""
        return self._num_bytes[key]


def _unequal(steps: Sequence[Step], names: Sequence[str], state: Mapping[str, Tensor]) -> list[str]:
    """Tied parameters that the file gives different values."""
    values = []
    for step in steps:
        outputs = step.rule.forward([state[key] for key in step.inputs])
        values.append(next(t for name, t in zip(step.outputs, outputs, strict=True) if name in names))
    if all(torch.equal(values[0], value) for value in values[1:]):
        return []
    return [f"{' and '.join(key for step in steps for key in step.inputs)} differ, but the model ties them"]


def _materialise(
    model: nn.Module,
    names: Sequence[str],
    target: Tensor,
    tensor: Tensor,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> None:
    """Put a file's tensor in the place of one on the meta device, under every name it has."""
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    real = torch.empty(tensor.shape, dtype=kind, device=device or tensor.device)  # own memory, never the file's mapping
    real.copy_(tensor)
    new = nn.Parameter(real, requires_grad=target.requires_grad) if isinstance(target, nn.Parameter) else real
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, new)
