"""The long form of a run: a row per step and recorded alternative, for tools that have no nested lists.

    row_id, strategy, sample_index, step, rank, token_id, token, probability

`step` counts from 0 as entries of lists do, `rank` from 1 as `token_ranks` does; `token` is text, with U+FFFD where it
is only part of a character, and its bytes are in `_vocab.parquet`. Error rows, and rows of a run that recorded no
alternatives, have none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError, StorageError
from pipeline.results import Results

SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("strategy", pa.string(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("token_id", pa.int32(), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)
COLUMNS = ["row_id", "strategy", "sample_index", "status", "top_token_ids", "top_probs"]
ROW_GROUP = 1 << 18


def explode(results: Results, target: Path | str, row_group: int = ROW_GROUP) -> int:
    """Write the long form as one Parquet file; memory is that of a part and a row group.

    Args:
        results: of the run.
        target: a file that is not there yet; it appears when it is whole.
        row_group: fewest rows of a row group, but for the last.

    Returns:
        Number of rows written.

    Raises:
        OutputError: the file is there already.
        StorageError: it cannot be written, or a part cannot be read.
    """
    target = Path(target)
    if target.exists():
        raise OutputError(f"{target} is there already.", "Remove it, or choose another file with -o.")
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        num_rows = _write(results, unfinished, row_group)
        os.link(unfinished, target)
    except FileExistsError:
        raise OutputError(f"{target} has come meanwhile.", "Remove it, or choose another file with -o.") from None
    except OSError as error:
        raise StorageError(
            f"cannot write {target}: {error.strerror or error}.", "Choose another file with -o."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return num_rows


def long_tables(results: Results) -> Iterator[pa.Table]:
    """The long form a few rows of output at a time, in their order."""
    tokens = pa.array(results.vocabulary.texts, pa.string())
    for rows in results.batches(COLUMNS):
        yield _unfolded(rows.filter(pc.equal(rows["status"], "ok")), tokens)


def _write(results: Results, path: Path, row_group: int) -> int:
    num_rows = 0
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        use_dictionary=["row_id", "strategy", "token_id", "token"],
        column_encoding={"probability": "BYTE_STREAM_SPLIT"},
    ) as writer:
        for table in long_tables(results):
            num_rows += table.num_rows
            waiting.append(table)
            if sum(each.num_rows for each in waiting) >= row_group:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return num_rows


def _unfolded(rows: pa.Table, tokens: pa.StringArray) -> pa.Table:
    """A row per step and alternative of these rows."""
    rows = rows.filter(pc.is_valid(rows["top_token_ids"])).combine_chunks()
    ids, probs = (_whole(rows[name]) for name in ("top_token_ids", "top_probs"))
    steps = ids.flatten()
    row, step_index = pc.list_parent_indices(ids), pc.list_parent_indices(steps)
    owner = row.take(step_index)
    token_ids = steps.flatten()
    return pa.table(
        [
            *(rows[name].combine_chunks().take(owner) for name in ("row_id", "strategy", "sample_index")),
            pa.array(_places(ids), pa.int32()).take(step_index),
            pa.array(_places(steps) + 1, pa.int32()),
            token_ids,
            tokens.take(token_ids),
            probs.flatten().flatten(),
        ],
        schema=SCHEMA,
    )


def _whole(column: pa.ChunkedArray) -> pa.ListArray:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _places(lists: pa.ListArray) -> npt.NDArray[np.int64]:
    """Place of each entry in its own list, from 0."""
    lengths = np.diff(lists.offsets.to_numpy())
    ends = np.cumsum(lengths, dtype=np.int64)
    places: npt.NDArray[np.int64] = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)
    return places
