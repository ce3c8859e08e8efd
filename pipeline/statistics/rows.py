"""The rows of a run, whole prompts at a time, with the numbers of each row that metrics are sums of.

Rows that a retry computed again stand in the place of their errors. Reads one part after another in pieces, so that
memory is that of a compressed part and a piece (of a retried part: that of its columns), and does not grow with the
run. Believes what it reads; `verify` proves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import Job
from pipeline.errors import ConfigError, StorageError
from pipeline.metrics import RANK_BINS
from pipeline.newest import newest_part
from pipeline.results import Results
from pipeline.statistics.agreement import Agreement, agreement
from pipeline.statistics.diversity import overlaps
from pipeline.statistics.ragged import Array, Ragged
from pipeline.statistics.repetition import ends_in_loop, repetition
from pipeline.strategies import NextToken, Score, Strategy

COLUMNS = (
    *("row_id", "row_index", "strategy", "sample_index", "status", "error_type", "finish_reason"),
    *("token_ids", "token_logprobs", "token_ranks", "entropies"),
)
PIECE_BYTES = 64 << 20
PIECE_ROWS = 16384
RANKS = (*(f"rank_{bound}" for bound in RANK_BINS), "rank_more")


class StrategyRows(NamedTuple):
    """Rows of one strategy.

    Attributes:
        table: the rows, of columns `COLUMNS`.
        prompts: (R,) number of each row's input row, ascending.
        is_ok: (R,) whether it is no error row.
        words: (R lists) token ids without the end-of-text token that ended them; none for what is not generated text.
        logprobs, entropies: (R lists) of the steps.
        numbers: name -> (R,) what metrics are sums of; 0 where it says nothing.
        agreement: with the baseline, None for the baseline itself and where there is none.
    """

    strategy: Strategy
    table: pa.Table
    prompts: Array
    is_ok: Array
    words: Ragged
    logprobs: Ragged
    entropies: Ragged
    numbers: dict[str, Array]
    agreement: Agreement | None


def is_text(strategy: Strategy) -> bool:
    """Whether its completions are generated text, and so can repeat, vary and agree."""
    return not isinstance(strategy, NextToken | Score)


def baseline_of(job: Job, name: str | None = None) -> str | None:
    """Whom completions are compared with: the strategy of that name, else the first greedy one, if there is one.

    Raises:
        ConfigError: no strategy that generates text has the name.
    """
    names = [strategy.name for strategy in job.strategies if is_text(strategy)]
    if name is None:
        return next((strategy.name for strategy in job.strategies if strategy.type == "greedy"), None)
    if name not in names:
        choice = f"Choose one of {', '.join(names)}." if names else "Leave it out: this run has none."
        raise ConfigError(f"the baseline must be a strategy of the run that generates text, not `{name}`.", choice)
    return name


def read_strategies(results: Results, baseline: str | None, piece_rows: int = PIECE_ROWS) -> Iterator[StrategyRows]:
    """All rows there are so far, as whole prompts and by strategy; within a strategy in the order of the input."""
    strategies = results.run.job.strategies
    for table in whole_prompts(results, COLUMNS, piece_rows):
        names = table["strategy"].combine_chunks()
        parts = {
            strategy.name: table.filter(pc.equal(names, strategy.name)).combine_chunks() for strategy in strategies
        }
        first = _first_samples(parts[baseline]) if baseline is not None else None
        for strategy in strategies:
            others = None if strategy.name == baseline or not is_text(strategy) else first
            if parts[strategy.name].num_rows:
                yield _strategy_rows(strategy, parts[strategy.name], others)


def whole_prompts(results: Results, columns: Sequence[str], piece_rows: int = PIECE_ROWS) -> Iterator[pa.Table]:
    """Some columns of all rows as they are now, in pieces that never divide the rows of a prompt.

    Args:
        results: an opened run.
        columns: their names.
        piece_rows: most rows to decode at once, fewer where rows are large.

    Raises:
        StorageError: a part is damaged.
    """
    for key in results.rounds[0].keys:
        try:
            yield from _pieces(_batches(results, key, list(columns), piece_rows))
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"{results.folder}/{key} cannot be read: {error}.", "Remove it and run the job again."
            ) from error


def _batches(results: Results, key: str, columns: list[str], piece_rows: int) -> Iterator[pa.RecordBatch]:
    first, *retries = results.rounds
    if any(key in retry.keys for retry in retries):
        yield from newest_part(results.run, key, results.rounds, columns).to_batches(max_chunksize=piece_rows)
        return
    data = first.folder.read(key)
    if data is None:
        raise StorageError(f"{results.folder}/{key} was there and is gone.", "Put it back, or run the job again.")
    file = pq.ParquetFile(pa.BufferReader(data))
    yield from file.iter_batches(min(piece_rows, _rows_that_fit(file.metadata, columns)), columns=columns)


def _pieces(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    rest: pa.Table | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        table = table if rest is None else pa.concat_tables([rest, table])
        prompts = table["row_index"].to_numpy()
        cut = int(np.searchsorted(prompts, prompts[-1]))
        if cut:
            yield table.slice(0, cut)
        rest = table.slice(cut)
    if rest is not None:
        yield rest


def _rows_that_fit(metadata: pq.FileMetaData, columns: list[str]) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    return max(1, int(PIECE_BYTES * metadata.num_rows // max(1, size)))


def _first_samples(table: pa.Table) -> tuple[Ragged, Array]:
    is_first = pc.and_(pc.equal(table["sample_index"], 0), pc.equal(table["status"], "ok"))
    rows = table.filter(is_first).combine_chunks()
    return Ragged.of(rows["token_ids"]), rows["row_index"].to_numpy()


def _strategy_rows(strategy: Strategy, table: pa.Table, baseline: tuple[Ragged, Array] | None) -> StrategyRows:
    token_ids, ranks, logprobs, entropies = (
        Ragged.of(table[name]) for name in ("token_ids", "token_ranks", "token_logprobs", "entropies")
    )
    prompts = table["row_index"].to_numpy()
    is_ok = pc.equal(table["status"], "ok").to_numpy()
    ended = pc.fill_null(pc.equal(table["finish_reason"], "eos"), False).to_numpy()
    nothing = Ragged(token_ids.flat[:0], np.zeros(len(prompts), np.int64))
    words = token_ids.without_last(ended) if is_text(strategy) else nothing
    with_baseline = _agreement(token_ids, prompts, is_ok, baseline)
    numbers = (
        {"rows": np.ones(len(prompts)), "ok": is_ok, "errors": ~is_ok, "tokens": token_ids.lengths}
        | {"surprise": -logprobs.totals(), "entropy": entropies.totals()}
        | _rank_numbers(ranks)
        | _repetition_numbers(words)
        | _overlap_numbers(words, prompts, is_ok)
        | _agreement_numbers(len(prompts), with_baseline)
    )
    return StrategyRows(strategy, table, prompts, is_ok, words, logprobs, entropies, numbers, with_baseline)


def _rank_numbers(ranks: Ragged) -> dict[str, Array]:
    bins = np.searchsorted(RANK_BINS, ranks.flat)
    return {name: ranks.totals(bins == index) for index, name in enumerate(RANKS)}


def _repetition_numbers(words: Ragged) -> dict[str, Array]:
    repeated = repetition(words)
    return {
        "repeated": np.nan_to_num(repeated),
        "repeatable": np.isfinite(repeated),
        "loops": ends_in_loop(words),
        "texts": words.lengths > 0,
    }


def _overlap_numbers(words: Ragged, prompts: Array, is_ok: Array) -> dict[str, Array]:
    numbers = {name: np.zeros(len(prompts)) for name in ("overlap", "overlapping", "identical", "sampled")}
    rows = np.flatnonzero(is_ok)
    kept = Ragged(words.flat, words.lengths[rows])  # error rows have no tokens
    for first, jaccard, is_identical in overlaps(kept, prompts[rows]) if len(words.flat) else ():
        row = rows[first]
        numbers["sampled"][row], numbers["identical"][row] = 1, is_identical
        if jaccard is not None:
            numbers["overlap"][row], numbers["overlapping"][row] = jaccard, 1
    return numbers


def _agreement(lists: Ragged, prompts: Array, is_ok: Array, baseline: tuple[Ragged, Array] | None) -> Agreement | None:
    if baseline is None:
        return None
    found = agreement(lists, prompts, *baseline)
    return Agreement(*(values[is_ok[found.rows]] for values in found))


def _agreement_numbers(num_rows: int, found: Agreement | None) -> dict[str, Array]:
    numbers = {name: np.zeros(num_rows) for name in ("compared", "same", "parted", "prefixed", "prefix")}
    if found is not None:
        some = found.shorter > 0
        numbers["compared"][found.rows] = 1
        numbers["same"][found.rows] = found.is_same
        numbers["parted"][found.rows] = found.has_parted
        numbers["prefixed"][found.rows] = some
        numbers["prefix"][found.rows[some]] = found.common[some] / found.shorter[some]
    return numbers
