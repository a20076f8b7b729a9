"""Several weight files as one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class JoinedFiles(Mapping[str, Tensor]):
    """The tensors of several tables, those of each under a prefix of its own, read when they are asked for."""

    def __init__(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._at = {prefix + key: (table, key) for prefix, table in tables.items() for key in table}

    def __getitem__(self, key: str) -> Tensor:
        table, own = self._at[key]
        return table[own]

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)

    def shape(self, key: str) -> torch.Size:
        """A tensor's shape, without reading it where its table knows that."""
        table, own = self._at[key]
        lazy = getattr(table, "shape", None)
        return torch.Size(lazy(own)) if lazy is not None else table[own].shape
