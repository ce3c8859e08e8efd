"""`batchgen compare -o`: a comparison as one HTML file that opens anywhere, offline.

The comparison has read both sides once and shown every pair to a `ChangePicker`; here both are read for their metrics
and for the rows to show. The file is a function of the folders and the tolerances alone.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import new_file
from pipeline.compare import Comparison, pair_of, table_views
from pipeline.compare_screen import Verdict
from pipeline.recorded import Vocabulary
from pipeline.report import Written, comparison_view
from pipeline.report.gather import COLUMNS, chosen_rows, that_fit
from pipeline.report.page import render
from pipeline.report.payload import cut, described, packed, prompt_text, prompts_of, rows_of
from pipeline.report.selection import ChangePicker, Why
from pipeline.results import Results

MOST_PLAIN = 100
MARKS = ("_pair", "_side")


def write_comparison(
    path: Path, comparison: Comparison, found: Verdict, picker: ChangePicker, exit_code: int
) -> Written:
    """Write the page of a comparison; a file at `path` is written over.

    Args:
        path: of the page.
        comparison: what it says.
        found: whether the tolerances were kept.
        picker: that was shown every pair.
        exit_code: of the command.
    """
    why = picker.chosen(picker.num_prompts)
    table = _shown_rows(comparison, why)
    steps, others = _changes(table)
    num_shown = pc.count_distinct(table["row_index"]).as_py()
    vocabulary = comparison.results[0].vocabulary
    content = {
        "comparison": comparison,
        "verdict": found,
        "exit_code": exit_code,
        "command_line": _command_line(comparison, found),
        "num_shown": num_shown,
        "num_prompts": picker.num_prompts,
        **comparison_view.content(comparison),
        "plain_rows": _plain_rows(table, steps, others),
        "payload": packed(_header(comparison, table, vocabulary, why, steps, others), table, vocabulary),
    }
    document = render("compare", content)
    new_file.write(path, document)
    return Written(path, len(document.encode()), num_shown, picker.num_prompts)


def _command_line(comparison: Comparison, found: Verdict) -> str:
    """What says the same in a terminal."""
    first, second = comparison.results
    strategies = ",".join(comparison.names)
    sides = [first.folder, "--strategies", strategies] if first is second else [first.folder, second.folder]
    return " ".join(["batchgen compare", *map(shlex.quote, sides), *found.asked])


def _shown_rows(comparison: Comparison, why: Why) -> pa.Table:
    """Rows of both sides in the order of the page, with columns `_pair`, which entry of the comparison, and `_side`."""
    kept = _kept(comparison)
    sides = [_side_rows(comparison, side, results, why, kept) for side, results in enumerate(comparison.results)]
    types = [{field.name: field.type for field in side.schema} for side in sides]
    columns = [name for name in types[0] if types[0][name] == types[1][name]]
    table = pa.concat_tables([side.select(columns) for side in sides])
    order = [(name, "ascending") for name in ("row_index", "_pair", "_side", "sample_index")]
    return that_fit(table.sort_by(order), why)


def _side_rows(comparison: Comparison, side: int, results: Results, why: Why, kept: list[str]) -> pa.Table:
    table = chosen_rows(results, why, kept)
    pairs = pc.index_in(table["strategy"], pa.array([each.names[side] for each in comparison.by_strategy]))
    table = table.append_column("_pair", pairs).append_column("_side", pa.repeat(side, table.num_rows))
    return table.filter(pc.is_valid(table["_pair"]))


def _kept(comparison: Comparison) -> list[str]:
    """Columns that both sides kept."""
    first, second = (results.run.job.input.keep_columns for results in comparison.results)
    return [name for name in first if name in second and name not in MARKS]


def _changes(table: pa.Table) -> tuple[list[int | None], list[int | None]]:
    """Of each row the first step that differs, None for the same, and the row of its counterpart, None for none."""
    steps: list[int | None] = [None] * table.num_rows
    others: list[int | None] = [None] * table.num_rows
    sides = table["_side"].to_numpy()
    keys = list(zip(*(table[name].to_pylist() for name in ("row_index", "_pair", "sample_index")), strict=True))
    rows = [np.flatnonzero(sides == side).tolist() for side in (0, 1)]
    views = [table_views(table.filter(pa.array(sides == side)).combine_chunks()) for side in (0, 1)]
    first = {keys[row]: (row, view) for row, view in zip(rows[0], views[0], strict=True)}
    for row, view in zip(rows[1], views[1], strict=True):
        if keys[row] in first:
            other, counterpart = first[keys[row]]
            steps[row] = steps[other] = pair_of(counterpart, view).step
            others[row], others[other] = other, row
    return steps, others


def _header(
    comparison: Comparison,
    table: pa.Table,
    vocabulary: Vocabulary,
    why: Why,
    steps: list[int | None],
    others: list[int | None],
) -> dict[str, Any]:
    known = [{each.name: each for each in results.run.job.strategies} for results in comparison.results]
    pairs, sides = (table[name].to_numpy() for name in MARKS)
    has_changed = any(step is not None or other is None for step, other in zip(steps, others, strict=True))
    return {
        "strategies": [
            described(strategies[name]) | {"side": side}
            for each in comparison.by_strategy
            for side, (name, strategies) in enumerate(zip(each.names, known, strict=True))
        ],
        "isSample": any(why.values()),
        "defaults": {"different": "1"} if has_changed else {},
        "prompts": _prompts(table, vocabulary, why),
        "rows": rows_of(table) | {"strategy": (2 * pairs + sides).tolist(), "step": steps, "other": others},
    }


def _prompts(table: pa.Table, vocabulary: Vocabulary, why: Why) -> list[dict[str, Any]]:
    """As for a report; where the second side has another prompt, with that as `second`."""
    kept = [name for name in table.column_names if name not in (*COLUMNS, *MARKS)]
    prompts = prompts_of(table, vocabulary, why, kept)
    sides = [_prompt_rows(table.filter(pc.equal(table["_side"], side))) for side in (0, 1)]
    for prompt in prompts:
        first, second = (side.get(prompt["index"]) for side in sides)
        if first is not None and second is not None:
            texts = [prompt_text(row, vocabulary) for row in (first, second)]
            if texts[0] != texts[1]:
                prompt["second"] = cut(texts[1])
    return prompts


def _prompt_rows(table: pa.Table) -> dict[int, dict[str, Any]]:
    """The first row of each prompt."""
    indices, first = np.unique(table["row_index"].to_numpy(), return_index=True)
    rows = table.select(["prompt", "prompt_token_ids"]).take(pa.array(first))
    return dict(zip(indices.tolist(), rows.to_pylist(), strict=True))


def _plain_rows(table: pa.Table, steps: list[int | None], others: list[int | None]) -> list[dict[str, Any]]:
    """The first pairs that changed, for those without JavaScript."""
    changed = [
        (row, other)
        for row, (step, other) in enumerate(zip(steps, others, strict=True))
        if step is not None and other is not None and row < other
    ][:MOST_PLAIN]
    names = ["row_id", "strategy", "prompt", "text", "finish_reason", "error_type"]
    first, second = (
        table.select(names).take(pa.array([pair[side] for pair in changed], pa.int64())).to_pylist() for side in (0, 1)
    )
    return [
        {"first": one, "second": other, "step": steps[row]}
        for (row, _), one, other in zip(changed, first, second, strict=True)
    ]
