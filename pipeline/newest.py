"""A run's rows as they are now: those of its parts and, in place of error rows computed again, what retries made of
them.

Retries lie beside the parts (`retries`), so a reader must leave out what a later round has computed again. What that is
can be told from key columns alone: rows are found again by (row_index, strategy, sample_index).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, StorageError
from pipeline.manifest import finished_keys
from pipeline.proofs.rows import row_codes
from pipeline.recorded import Recorded
from pipeline.retries import all_retries
from pipeline.storage import Folder, LocalFolder

KEY = ("row_index", "strategy", "sample_index")


class Round(NamedTuple):
    """The run itself, or one of its retries.

    Attributes:
        number: 0 for the run, then as the retries are numbered.
        keys: of the published parts, in order.
        stale: codes (see `row_codes`) of the rows that later rounds have computed again, sorted.
    """

    number: int
    folder: Folder
    keys: tuple[str, ...]
    stale: pa.Int64Array

    @property
    def files(self) -> list[str]:
        """Paths or URLs of the parts."""
        return [f"{self.folder.name}/{key}" for key in self.keys]


def rounds(run: Recorded) -> tuple[Round, ...]:
    """The run and its retries, oldest first, with the parts published by now.

    Raises:
        InputError: there are no parts yet.
        StorageError: a part of a retry is damaged.
    """
    folders = [run.folder, *(retry.folder for retry in all_retries(run))]
    keys = [tuple(sorted(finished_keys(folder))) for folder in folders]
    if not keys[0]:
        raise InputError(f"{run.folder.name} holds no parts yet.", "Look again when the run has finished a shard.")
    stale = np.empty(0, np.int64)
    found = []
    for number in reversed(range(len(folders))):
        found.append(Round(number, folders[number], keys[number], pa.array(stale)))
        if number:
            again = [row_codes(read_part(folders[number], key, KEY), run) for key in keys[number]]
            stale = np.unique(np.concatenate([stale, *again]))
    return tuple(reversed(found))


def newest(
    run: Recorded, columns: Sequence[str] | None = None, *, since: Sequence[Round] | None = None, batch_rows: int = 256
) -> Iterator[pa.Table]:
    """All rows as they are now, in the order of the output, a few at a time; memory is that of one part.

    Args:
        run: finished or not.
        columns: only these; None for all.
        since: the rounds, where they are known already.
        batch_rows: most rows of a table.

    Raises:
        InputError: there are no parts yet, or a column is not there.
        StorageError: a part is damaged.
    """
    since = rounds(run) if since is None else since
    for key in since[0].keys:
        part = newest_part(run, key, since, columns)
        for start in range(0, part.num_rows, batch_rows):
            yield part.slice(start, batch_rows)


def newest_part(run: Recorded, key: str, since: Sequence[Round], columns: Sequence[str] | None = None) -> pa.Table:
    """A part with its rows as they are now; arguments and errors as for `newest`."""
    first, *retries = since
    part = read_part(first.folder, key, columns)
    again = [read_part(retry.folder, key, columns) for retry in retries if key in retry.keys]
    part = _patched(part, again, run) if again else part
    return part if columns is None else part.select(list(columns))


def _patched(rows: pa.Table, again: Sequence[pa.Table], run: Recorded) -> pa.Table:
    """The rows, each replaced by the newest one of the same code."""
    for later in again:
        there = {code: place for place, code in enumerate(row_codes(later, run).tolist())}
        codes = row_codes(rows, run).tolist()
        chosen = [rows.num_rows + there[code] if code in there else place for place, code in enumerate(codes)]
        rows = pa.concat_tables([rows, later]).take(pa.array(chosen, pa.int64()))
    return rows


def read_part(folder: Folder, key: str, columns: Sequence[str] | None) -> pa.Table:
    """A part without its metadata, or some of its columns and those of the key.

    Raises:
        InputError: a column is not there.
        StorageError: the part is damaged or gone.
    """
    try:
        with _opened(folder, key) as source:
            return _read(pq.ParquetFile(source), folder, columns)
    except FileNotFoundError:
        raise StorageError(
            f"{folder.name}/{key} was there and is gone.", "Put it back, or run the job again."
        ) from None
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"{folder.name}/{key} cannot be read: {error}.", "Remove it and run the job again."
        ) from error


def _opened(folder: Folder, key: str) -> BinaryIO:
    """A part, of which a local one is read only where it is needed."""
    if isinstance(folder, LocalFolder):
        return open(folder.root / key, "rb")
    stored = folder.read(key)
    if stored is None:
        raise FileNotFoundError
    return io.BytesIO(stored)


def _read(file: pq.ParquetFile, folder: Folder, columns: Sequence[str] | None) -> pa.Table:
    for name in columns or ():
        if name not in file.schema_arrow.names:
            there = ", ".join(f"`{known}`" for known in file.schema_arrow.names)
            raise InputError(f"{folder.name} has no column `{name}`; there are {there}.", "Name one of these.")
    wanted = None if columns is None else list(dict.fromkeys([*KEY, *columns]))
    return file.read(wanted).replace_schema_metadata(None)
