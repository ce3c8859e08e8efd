"""Columns as numpy arrays, and the problem that a check reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Array = npt.NDArray[Any]


class Problem(NamedTuple):
    """What is wrong, and the position of its row in the part; None where no row of it is to blame."""

    check: str
    row: int | None
    message: str


def values(column: Any) -> Array:
    """A column as a numpy array."""
    array: Array = _whole(column).to_numpy(zero_copy_only=False)
    return array


def is_null(column: Any) -> Array:
    """Where a column is null."""
    return values(pc.is_null(column))


def lengths(column: Any) -> Array:
    """Entries of each list; 0 for null."""
    return values(pc.fill_null(pc.list_value_length(column), 0))


def entries(column: Any) -> Array:
    """All entries of a column of lists, or of lists of lists, one after another."""
    return values(_leaves(column)[0])


def rows_with(column: Any, is_wrong: Callable[[pa.Array], Array]) -> Iterator[int]:
    """Positions of lists, or of lists of lists, that hold an entry for which `is_wrong` is true."""
    leaves, owners = _leaves(column)
    yield from np.unique(owners[is_wrong(leaves)]).tolist()


def _leaves(column: Any) -> tuple[pa.Array, Array]:
    """The entries, and the position of the row that each belongs to."""
    array = _whole(column)
    owners = np.arange(len(array))
    while pa.types.is_list(array.type):
        owners = owners[values(pc.list_parent_indices(array))]
        array = array.flatten()
    return array, owners


def _whole(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
