"""How counts are written for people."""

from __future__ import annotations

from collections.abc import Mapping

_SHORT = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def short(number: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 8.91 TFLOP."""
    for factor, prefix in _SHORT:
        if abs(number) >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def size_of_memory(number: float) -> str:
    """Bytes in the unit in which they are at least a tenth: 0.16 GiB, 80.0 MiB."""
    factor, unit = next((pair for pair in _BINARY if number >= pair[0] / 10), _BINARY[-1])
    return f"{number / factor:,.1f} {unit}" if number >= 10 * factor else f"{number / factor:.2f} {unit}"


def count(number: int) -> str:
    """All digits, in groups."""
    return f"{number:,}"


def counts(numbers: Mapping[str, int]) -> str:
    """Several counts by name: `projection (786,432), head (1,024)`."""
    return ", ".join(f"{name} ({count(number)})" for name, number in numbers.items())


def percent(share: float) -> str:
    """A share of 1 with as many digits as tell something: 0.30%, 95.7%, 100%."""
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{share:.1%}" if share >= 0.1 else f"{share:.2%}" if share >= 1e-4 else f"{share:.1e}"
