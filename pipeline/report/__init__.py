"""`batchgen report`: a run as one HTML file that opens anywhere, offline.

Reads the folder twice, part by part: once for the metrics of all rows and for what to show, once for the rows to show.
The file is a function of the folder alone. Every text in it is data: it enters the page escaped or as a text node.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from pipeline import new_file
from pipeline.errors import InputError
from pipeline.report import view
from pipeline.report.gather import first_rows, shown_rows
from pipeline.report.page import render
from pipeline.report.payload import payload
from pipeline.report.selection import Picker
from pipeline.report.wording import sentences
from pipeline.results import Results, open_run
from pipeline.statistics import Collector
from pipeline.statistics.rows import baseline_of, read_strategies

NUM_PROMPTS = 400


class Written(NamedTuple):
    """What a page holds."""

    path: Path
    num_bytes: int
    num_shown: int
    num_prompts: int

    def __str__(self) -> str:
        shown = f"{self.num_shown:,} of {self.num_prompts:,} prompts"
        return f"{self.path} · {self.num_bytes / 1e6:.1f} MB · {shown}"


def write_report(
    folder: Path | str,
    path: Path,
    *,
    num_prompts: int = NUM_PROMPTS,
    row_ids: Sequence[str] = (),
    baseline: str | None = None,
    may_replace: bool = False,
) -> Written:
    """Write the report of a run, finished or not.

    Args:
        folder: the run's.
        path: of the report.
        num_prompts: most prompts to show; metrics are of all of them.
        row_ids: of prompts to show in any case.
        baseline: strategy that others are compared with; default: the first greedy one.
        may_replace: whether a file at `path` may be written over.

    Raises:
        InputError: the folder holds no parts yet, or no row of a wanted id.
        OutputError: the file is there already, or cannot be written.
        ConfigError: there is no such baseline.
    """
    new_file.check_free(path, may_replace=may_replace)
    document, num_shown, num_all = _document(open_run(folder), num_prompts, row_ids, baseline)
    new_file.write(path, document)
    return Written(path, len(document.encode()), num_shown, num_all)


def _document(results: Results, num_prompts: int, row_ids: Sequence[str], baseline: str | None) -> tuple[str, int, int]:
    run, vocabulary = results.run, results.vocabulary
    baseline = baseline_of(run.job, baseline)
    collector, picker = Collector(results, baseline), Picker(num_prompts, row_ids)
    for rows in read_strategies(results, baseline):
        collector.add(rows)
        picker.add(rows)
    summary = collector.summary()
    if missing := [row_id for row_id in row_ids if row_id not in picker.asked.values()]:
        raise InputError(f"{results.folder} holds no row with row_id {missing[0]!r}.", "Take an id of column row_id.")
    why = picker.chosen(summary.num_prompts)
    table = shown_rows(results, why)
    num_shown = pc.count_distinct(table["row_index"]).as_py()
    content = {
        "run": run,
        "summary": summary,
        "num_shown": num_shown,
        "sentences": list(sentences(summary)),
        "tiles": view.tiles(results, summary),
        "columns": view.columns(summary.strategies),
        "strategies": view.strategies(summary.strategies),
        "error_counts": view.error_counts(summary),
        "error_rows": view.error_rows(table),
        "plain_rows": first_rows(table),
        "made": view.how_it_was_made(results),
        "payload": payload(run, vocabulary, table, why, baseline),
    }
    return render("report", content), num_shown, summary.num_prompts
