"""The benchmarks that exist: every concrete class that a module of `benchmarks/` defines, by its `name`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any, cast

from weft.core.errors import unknown_name
from weft.evaluation import benchmarks as room
from weft.evaluation.benchmark import Benchmark


@cache
def _found() -> tuple[tuple[str, type[Benchmark]], ...]:
    found: dict[str, type[Benchmark]] = {}
    for info in pkgutil.iter_modules(room.__path__):
        module = importlib.import_module(f"{room.__name__}.{info.name}")
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__ and issubclass(cls, Benchmark):
                found[cls.name] = cls
    return tuple(sorted(found.items()))


def benchmarks() -> dict[str, type[Benchmark]]:
    """The benchmarks by name, sorted."""
    return dict(_found())


def benchmark_config(name: str) -> Benchmark.Config:
    """The config of a benchmark with its defaults. Raises: ConfigError that offers the nearest names."""
    if name not in benchmarks():
        raise unknown_name("benchmark", name, benchmarks())
    config: Any = benchmarks()[name].Config
    return cast(Benchmark.Config, config())
