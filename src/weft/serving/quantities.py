"""How counts are written for people."""

from __future__ import annotations

_SHORT = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 8.91 TFLOP."""
    for factor, prefix in _SHORT:
        if abs(number) >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def gibibytes(number: float) -> str:
    """Bytes as GiB, or MiB where that is more telling."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.2f} MiB"


def count(number: int) -> str:
    """All digits, in groups."""
    return f"{number:,}"


def percent(share: float) -> str:
    """A share of 1 with as many digits as tell something: 0.30%, 95.7%."""
    return f"{share:.1%}" if share >= 0.1 or share == 0 else f"{share:.2g}" if share < 1e-4 else f"{share:.2%}"
