"""Which rows a part holds: each planned one once, in order, under the id and seed it must have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.proofs.columns import Array, Problem, values
from pipeline.recorded import Recorded
from pipeline.records import row_seed
from pipeline.strategies import num_rows


def row_codes(table: pa.Table, run: Recorded) -> Array:
    """Where each row belongs in the whole output, counted from 0; -1 for what no plan could hold."""
    names = [strategy.name for strategy in run.job.strategies]
    counts = np.array([num_rows(strategy) for strategy in run.job.strategies])
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    order = values(pc.fill_null(pc.index_in(table["strategy"], pa.array(names)), -1))
    row_index, sample = values(table["row_index"]), values(table["sample_index"])
    is_known = (order >= 0) & (sample >= 0) & (sample < counts[order]) & (row_index >= 0)
    return np.where(is_known, row_index * run.rows_per_prompt + firsts[order] + sample, -1)


def check_presence(table: pa.Table, codes: Array, planned: Array, run: Recorded) -> Iterator[Problem]:
    """Rows that do not belong here, stand here twice, or are missing."""
    is_foreign = ~np.isin(codes, planned)
    for row in np.flatnonzero(is_foreign).tolist():
        index, name, sample = (table[key][row].as_py() for key in ("row_index", "strategy", "sample_index"))
        yield Problem("rows", row, f"input row {index}, strategy {name}, sample {sample} does not belong here")
    is_again = ~is_foreign
    is_again[np.unique(codes, return_index=True)[1]] = False
    for row in np.flatnonzero(is_again).tolist():
        yield Problem("rows", row, f"{_described(int(codes[row]), run)} stands here again")
    for code in np.setdiff1d(planned, codes).tolist():
        yield Problem("rows", None, f"{_described(code, run)} is missing")


def check_order(codes: Array) -> Iterator[Problem]:
    """Rows that stand behind one they belong before."""
    known = np.flatnonzero(codes >= 0)
    for row in known[1:][np.diff(codes[known]) < 0].tolist():
        yield Problem("order", row, "it belongs before the row above it")


def check_ids(table: pa.Table, run: Recorded) -> Iterator[Problem]:
    """What is not the same in all rows of an input row, and derived ids that are not as derived."""
    row_index = values(table["row_index"])
    _, first, groups = np.unique(row_index, return_index=True, return_inverse=True)
    for name in ("row_id", "prompt", *run.job.input.keep_columns):
        column = table[name].combine_chunks()
        yield from _differing(name, column, column.take(pa.array(first[groups])))
    if run.job.input.id_column is None:
        for row, (row_id, derived) in enumerate(
            zip(table["row_id"].to_pylist(), _derived(row_index, run), strict=True)
        ):
            if row_id != derived:
                yield Problem("ids", row, f"row_id is `{row_id}`, but input row {row_index[row]} is `{derived}`")


def check_seeds(table: pa.Table, run: Recorded) -> Iterator[Problem]:
    """Seeds that are not those of their rows; where the input brought seeds, only if their column was kept."""
    column = run.job.strategy_columns.get("seed")
    if column is not None and column not in run.job.input.keep_columns:
        return
    own = [None] * table.num_rows if column is None else table[column].to_pylist()
    keys = (table[name].to_pylist() for name in ("row_id", "strategy", "sample_index", "seed"))
    for row, (row_id, strategy, sample, seed, brought) in enumerate(zip(*keys, own, strict=True)):
        is_own = type(brought) is int and 0 <= brought < 2**63
        wanted = row_seed(brought, "", strategy, sample) if is_own else row_seed(run.job.seed, row_id, strategy, sample)
        if seed != wanted:
            yield Problem("seeds", row, f"seed is {seed}, but must be {wanted}")


def _described(code: int, run: Recorded) -> str:
    """The row of a code in words."""
    row_index, place = divmod(code, run.rows_per_prompt)
    samples = [(strategy.name, n) for strategy in run.job.strategies for n in range(num_rows(strategy))]
    return f"input row {row_index}, strategy {samples[place][0]}, sample {samples[place][1]}"


def _differing(name: str, column: pa.Array, wanted: pa.Array) -> Iterator[Problem]:
    if column.equals(wanted):
        return
    for row, (value, other) in enumerate(zip(column.to_pylist(), wanted.to_pylist(), strict=True)):
        if repr(value) != repr(other):  # as text, for NaN is not equal to itself
            yield Problem("ids", row, f"`{name}` is {value!r:.80}, but {other!r:.80} in the first row of its input row")


def _derived(row_index: Array, run: Recorded) -> Iterator[str | None]:
    """Ids as made of file name and position; None for rows that are in no file."""
    inputs = run.identity["inputs"]
    ends = np.cumsum([file["rows"] for file in inputs])
    for row, file in zip(row_index.tolist(), np.searchsorted(ends, row_index, "right").tolist(), strict=True):
        is_inside = row >= 0 and file < len(inputs)
        yield f"{inputs[file]['name']}:{row - ends[file] + inputs[file]['rows']}" if is_inside else None
