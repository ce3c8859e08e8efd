"""All shards of an input, made as they are asked for: a million of them take no memory."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from pipeline.shard import Shard


@dataclass(frozen=True)
class Shards(Sequence[Shard]):
    """Shards of equal size; the last one of the input may be shorter.

    Attributes:
        num_rows: of the input.
        shard_rows: rows per shard.
        indexes: of those that this holds, among all.
    """

    num_rows: int
    shard_rows: int
    indexes: Sequence[int]

    def __len__(self) -> int:
        return len(self.indexes)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> Shards: ...
    def __getitem__(self, index: int | slice) -> Shard | Shards:
        if isinstance(index, slice):
            return replace(self, indexes=self.indexes[index])
        lo = self.indexes[index] * self.shard_rows
        return Shard(self._key(self.indexes[index]), lo, min(lo + self.shard_rows, self.num_rows))

    @property
    def summary(self) -> dict[str, Any]:
        """What a plan says of them, as JSON values."""
        return {"count": len(self), "first": list(self[0]), "last": list(self[-1])}

    def without(self, keys: Collection[str]) -> Shards:
        """Those whose part is not among `keys`."""
        return replace(self, indexes=array("q", (i for i in self.indexes if self._key(i) not in keys)))

    def _key(self, index: int) -> str:
        digits = max(5, len(str(_count(self.num_rows, self.shard_rows) - 1)))  # names sort as numbers do
        return f"data/part-{index:0{digits}d}.parquet"


def all_shards(num_rows: int, shard_rows: int) -> Shards:
    """The shards of an input of so many rows."""
    return Shards(num_rows, shard_rows, range(_count(num_rows, shard_rows)))


def _count(num_rows: int, shard_rows: int) -> int:
    return -(-num_rows // shard_rows)
