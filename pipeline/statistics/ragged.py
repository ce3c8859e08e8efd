"""Lists of numbers of different lengths as two arrays, and what the metrics need to do with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Ragged:
    """R lists, one after another.

    Attributes:
        flat: (N,) all their entries.
        lengths: (R,) entries of each.
    """

    flat: Array
    lengths: Array

    @classmethod
    def of(cls, column: Any) -> Self:
        """A column of lists; null counts as empty."""
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        return cls(array.flatten().to_numpy(zero_copy_only=False), lengths.to_numpy().astype(np.int64))

    @property
    def starts(self) -> Array:
        """(R,) where each list begins in `flat`."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)

    @property
    def owners(self) -> Array:
        """(N,) the list that each entry belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def positions(self) -> Array:
        """(N,) the place of each entry in its list, from 0."""
        return np.asarray(np.arange(len(self.flat)) - np.repeat(self.starts, self.lengths))

    def totals(self, entries: Array | None = None) -> Array:
        """(R,) sum over each list, of its entries or of numbers parallel to them, in float64."""
        weights = self.flat if entries is None else entries
        return np.asarray(np.bincount(self.owners, weights.astype(np.float64), len(self.lengths)))

    def without_last(self, is_cut: Array) -> Ragged:
        """The lists, those chosen without their last entry; none of these may be empty."""
        is_kept = np.ones(len(self.flat), bool)
        is_kept[(self.starts + self.lengths - 1)[is_cut]] = False
        return Ragged(self.flat[is_kept], self.lengths - is_cut)

    def split(self) -> list[Array]:
        """Each list as an array."""
        return np.split(self.flat, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


def ngrams(lists: Ragged, n: int) -> Ragged:
    """The n-grams within each list as numbers, which are equal where n-grams are."""
    begins = np.flatnonzero(lists.positions + n <= np.repeat(lists.lengths, lists.lengths))
    codes = lists.flat[begins].astype(np.int64)
    for step in range(1, n):
        codes = paired(codes, lists.flat[begins + step].astype(np.int64))
    return Ragged(codes, np.maximum(lists.lengths - n + 1, 0))


def paired(left: Array, right: Array) -> Array:
    """One number per pair of numbers from 0, equal where pairs are."""
    if not len(left):
        return left
    base = int(right.max()) + 1
    if (int(left.max()) + 1) * base >= 2**63:
        left = np.unique(left, return_inverse=True)[1]
    return left * base + right


def uniqued(lists: Ragged) -> Ragged:
    """The different entries of each list, ascending, as numbers that are equal where entries are."""
    entries, codes = np.unique(lists.flat, return_inverse=True)
    base = max(1, len(entries))
    owners, codes = np.divmod(np.unique(lists.owners * base + codes), base)
    return Ragged(codes, np.bincount(owners, minlength=len(lists.lengths)))
