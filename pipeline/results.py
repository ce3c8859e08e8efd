"""A run's completions, finished or not, opened for reading anywhere.

`open_run(path)` looks once at what is published and gives exactly that from then on, however the run goes on. It
believes what it reads; `verify` proves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline import display, readers, recorded
from pipeline.errors import InputError, StorageError
from pipeline.head import COLUMNS, SHOWN, cells, first_rows
from pipeline.manifest import VOCABULARY
from pipeline.metrics import SUMMED, Sums, add, part_sums
from pipeline.newest import newest, newest_part, rounds
from pipeline.recorded import Recorded, Vocabulary

if TYPE_CHECKING:
    import duckdb
    import polars


class Results:
    """All rows of a run as they are now: published parts, and what retries made of their error rows.

    Attributes:
        run: what the plan says of the run.
        rounds: the run and its retries, with their parts when this was opened.
    """

    def __init__(self, run: Recorded) -> None:
        self.run = run
        self.rounds = rounds(run)

    @property
    def folder(self) -> str:
        """Path or URL of the output folder."""
        return self.run.folder.name

    @cached_property
    def is_finished(self) -> bool:
        """Whether the run was finished when this was first asked."""
        return self.run.is_finished

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """How each token id prints, and its bytes.

        Raises:
            StorageError: it is missing or damaged.
        """
        vocabulary = self.run.vocabulary()
        if vocabulary is None:
            raise StorageError(f"`{VOCABULARY}` of {self.folder} is missing.", "Run the job again, which writes it.")
        return vocabulary

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in the order of the output, a few at a time; memory is that of one part.

        Args:
            columns: only these; None for all.
        """
        return newest(self.run, columns, since=self.rounds)

    def head(self, num_rows: int = 10, strategy: str | None = None) -> list[dict[str, Any]]:
        """First rows for people: text, or candidates where there is none, and how each ended.

        Args:
            num_rows: most rows.
            strategy: only rows of this one.

        Raises:
            InputError: the job has no such strategy.
        """
        names = [each.name for each in self.run.job.strategies]
        if strategy is not None and strategy not in names:
            there = ", ".join(f"`{name}`" for name in names)
            raise InputError(f"the run has no strategy `{strategy}`; there are {there}.", "Name one of these.")
        return first_rows(self.batches(COLUMNS), self.vocabulary, num_rows, strategy)

    @cached_property
    def sums(self) -> dict[str, Sums]:
        """Sums per strategy over all rows as they are now, in the order of the job; see `metrics`.

        Of a finished run without retries they are the manifest's; otherwise all parts are read.
        """
        keys = self.rounds[0].keys
        manifest = self.run.manifest() if len(self.rounds) == 1 else None
        if manifest is not None and {part["key"] for part in manifest["parts"]} == set(keys):
            sums: dict[str, Sums] = manifest["strategies"]
            return sums
        return reduce(add, (part_sums(newest_part(self.run, key, self.rounds, SUMMED)) for key in keys), {})

    @cached_property
    def counts(self) -> dict[str, int]:
        """Rows as they are now: `rows`, `ok`, `errors`, `generated_tokens`."""
        names = ("rows", "ok", "generated_tokens")
        rows, ok, tokens = (sum(each[name] for each in self.sums.values()) for name in names)
        return {"rows": rows, "ok": ok, "errors": rows - ok, "generated_tokens": tokens}

    @property
    def error_rate(self) -> float:
        """Share of error rows."""
        return self.counts["errors"] / max(1, self.counts["rows"])

    def __repr__(self) -> str:
        return display.as_text(self._title, SHOWN, cells(self.head()))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return display.as_html(self._title, SHOWN, cells(self.head()))

    def __rich__(self) -> Any:
        """What `rich.print` shows."""
        return display.as_rich(self._title, SHOWN, cells(self.head()))

    @property
    def _title(self) -> str:
        counts = self.counts
        state = "finished" if self.is_finished else "unfinished"
        numbers = f"{counts['rows']:,} rows: {counts['ok']:,} ok, {counts['errors']:,} errors"
        return f"{self.folder} · {state} · {numbers} · {counts['generated_tokens']:,} tokens"

    def to_pyarrow(self) -> Any:
        """A `pyarrow.dataset.Dataset` over the parts.

        After a retry it has one column more, `_retry`: 0 for a row as the run computed it, n for one of the n-th retry.
        """
        return readers.to_pyarrow(self.run, self.rounds)

    def to_duckdb(self, connection: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyRelation:
        """The view `completions` as a DuckDB relation.

        Args:
            connection: to make the temporary views `completions`, `vocab` and `long` on; by default one of its own.
                `long` has a row per step and alternative, as `explode` writes, and is computed as it is asked for.
        """
        relation: duckdb.DuckDBPyRelation = readers.to_duckdb(self.run, self.rounds, self.vocabulary, connection)
        return relation

    def to_polars(self) -> polars.LazyFrame:
        """A Polars LazyFrame over the parts."""
        return readers.to_polars(self.run, self.rounds)

    def to_pandas(self) -> Any:
        """A pandas DataFrame with Arrow types, whole in memory."""
        return readers.to_pandas(self.run, self.rounds)

    def to_datasets(self, cache_dir: str | None = None) -> Any:
        """A `datasets.Dataset`, copied into the cache of `datasets`."""
        return readers.to_datasets(self.run, self.rounds, cache_dir)

    def to_ray(self) -> Any:
        """A `ray.data.Dataset` over the parts."""
        return readers.to_ray(self.run, self.rounds)


def open_run(path: Path | str) -> Results:
    """Open the output folder of a run, local or `s3://`, `gs://`, `az://`, finished or not.

    Raises:
        InputError: the folder is not a run's, holds no parts yet, or another version of the columns wrote it.
        StorageError: the storage does not answer, or a document is damaged.
    """
    return Results(recorded.open_run(path))
