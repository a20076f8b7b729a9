"""The rules of a key map: what happens to tensors between a published file and a Weft module, each with its inverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core.errors import ConfigError

Transform = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


class Index(NamedTuple):
    """How `{i}` changes between source and target, and back; a value that does not come back is not matched."""

    forward: Callable[[int], int]
    backward: Callable[[int], int]


def shift(by: int) -> Index:
    """The index function i -> i + by."""
    return Index(lambda i: i + by, lambda i: i - by)


def _unchanged(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensors)


@dataclass(frozen=True)
class Rule:
    """Tensors named by `sources` become those named by `targets` through `forward`, and back through `backward`.

    Build one with `rename`, `split`, `concatenate`, `transpose`, `squeeze`, `permute_rows`, `take_rows` or `pad_rows`.
    `read_only` rules stand for another spelling of the source: they are never used on the way back.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    forward: Transform = _unchanged
    backward: Transform = _unchanged
    index: Index | None = None
    read_only: bool = False

    def under(self, source: str, target: str) -> Rule:
        """The same rule with prefixes before its names."""
        sources, targets = (source + s for s in self.sources), (target + t for t in self.targets)
        return replace(self, sources=tuple(sources), targets=tuple(targets))


def read_only(*rules: Rule) -> tuple[Rule, ...]:
    """The rules as another spelling of the source, which is read and never written."""
    return tuple(replace(rule, read_only=True) for rule in rules)


def rename(source: str, target: str, index: Index | None = None) -> Rule:
    """The same tensor under another name."""
    return Rule((source,), (target,), index=index)


def split(source: str, targets: Sequence[str], dim: int = 0, sizes: Sequence[int] | None = None) -> Rule:
    """One tensor cut along `dim` into several: equal parts, or parts of the given sizes."""

    def cut(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (whole,) = tensors
        length = whole.shape[dim]
        parts = [length // len(targets)] * len(targets) if sizes is None else list(sizes)
        if sum(parts) != length:
            wanted = f"{len(targets)} equal parts" if sizes is None else f"parts of {list(sizes)}"
            raise ValueError(f"dimension {dim} of {tuple(whole.shape)} does not divide into {wanted}")
        return tuple(whole.split(parts, dim))

    return Rule((source,), tuple(targets), cut, lambda tensors: (torch.cat(list(tensors), dim),))


def concatenate(sources: Sequence[str], target: str, dim: int = 0, sizes: Sequence[int] | None = None) -> Rule:
    """Several tensors joined along `dim`; `sizes` for the way back, equal parts without."""
    other = split(target, sources, dim, sizes)
    return Rule(other.targets, other.sources, other.backward, other.forward)


def transpose(source: str, target: str, axes: tuple[int, ...] = (1, 0)) -> Rule:
    """The tensor with its axes in another order."""
    back = tuple(axes.index(i) for i in range(len(axes)))
    return Rule(
        (source,), (target,), lambda t: (t[0].permute(axes).contiguous(),), lambda t: (t[0].permute(back).contiguous(),)
    )


def squeeze(source: str, target: str, axes: Sequence[int]) -> Rule:
    """The source without its axes of length one at `axes` (ascending, counted in the source)."""

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        if any(axis >= tensor.dim() or tensor.shape[axis] != 1 for axis in axes):
            raise ValueError(f"expected length one at axes {tuple(axes)}, got {tuple(tensor.shape)}")
        return (tensor.squeeze(tuple(axes)),)

    def backward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        for axis in axes:
            tensor = tensor.unsqueeze(axis)
        return (tensor,)

    return Rule((source,), (target,), forward, backward)


def permute_rows(source: str, target: str, order: Callable[[int], Tensor]) -> Rule:
    """Rows in another order: row r of the target is row `order(number of rows)[r]` of the source."""

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (tensors[0][order(len(tensors[0])).to(tensors[0].device)],)

    def backward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (tensors[0][order(len(tensors[0])).argsort().to(tensors[0].device)],)

    return Rule((source,), (target,), forward, backward)


def take_rows(source: str, target: str, rows: range, of: int) -> Rule:
    """Only `rows` of the `of` rows of the source; on the way back the others are zero."""
    _check_rows(source, rows, of)

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (_exactly(tensors[0], of)[rows.start : rows.stop],)

    def backward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (part,) = tensors
        whole = part.new_zeros(of, *part.shape[1:])
        whole[rows.start : rows.stop] = _exactly(part, len(rows))
        return (whole,)

    return Rule((source,), (target,), forward, backward)


def pad_rows(source: str, target: str, rows: int, to: int) -> Rule:
    """The `rows` rows of the source followed by zeros up to `to` rows; on the way back they are cut off."""
    other = take_rows(target, source, range(rows), to)
    return Rule(other.targets, other.sources, other.backward, other.forward)


def _check_rows(name: str, rows: range, of: int) -> None:
    if rows.step != 1 or not 0 <= rows.start < rows.stop <= of:
        raise ConfigError(f"{name}: rows {rows.start} to {rows.stop} do not lie in order within {of} rows")


def _exactly(tensor: Tensor, rows: int) -> Tensor:
    if len(tensor) != rows:
        raise ValueError(f"expected {rows} rows, got {tuple(tensor.shape)}")
    return tensor
