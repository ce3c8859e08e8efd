"""The rows that a report shows, read from the parts: all rows of the chosen prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.selection import Why
from pipeline.results import Results
from pipeline.statistics.rows import whole_prompts

MOST_STEPS = 150_000  # a file of about 8 MB
NUM_PLAIN = 100

COLUMNS = (
    *("row_id", "row_index", "strategy", "sample_index", "error_type", "error_message", "prompt", "text", "status"),
    *("prompt_token_ids", "token_ids", "finish_reason", "stop_match", "num_prompt_tokens", "token_logprobs"),
    *("sampling_logprobs", "token_ranks", "entropies", "top_token_ids", "top_probs", "sequence_score", "seed"),
)


def shown_rows(results: Results, why: Why) -> pa.Table:
    """Rows of the chosen prompts as far as there is room; prompts without a reason are left out first."""
    return that_fit(chosen_rows(results, why, results.run.job.input.keep_columns), why)


def chosen_rows(results: Results, why: Why, kept: Sequence[str]) -> pa.Table:
    """All rows of the chosen prompts, of `COLUMNS` and these kept columns."""
    chosen = pa.array(list(why), pa.int64())
    pieces = whole_prompts(results, [*COLUMNS, *kept])
    return pa.concat_tables([piece.filter(pc.is_in(piece["row_index"], chosen)) for piece in pieces])


def that_fit(table: pa.Table, why: Why) -> pa.Table:
    """Rows of the prompts in order of claim until their steps are too many; always of one."""
    steps = pc.fill_null(pc.list_value_length(table["token_ids"]), 0)
    sizes = pa.table({"prompt": table["row_index"], "steps": steps}).group_by("prompt").aggregate([("steps", "sum")])
    by_prompt = dict(zip(sizes["prompt"].to_pylist(), sizes["steps_sum"].to_pylist(), strict=True))
    kept: list[int] = []
    total = 0
    for prompt in sorted(by_prompt, key=lambda prompt: not why[prompt]):
        total += by_prompt[prompt]
        if total <= MOST_STEPS or not kept:
            kept.append(prompt)
    return table.filter(pc.is_in(table["row_index"], pa.array(kept, pa.int64()))).combine_chunks()


def first_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The first of them, for those without JavaScript."""
    names = ["row_id", "strategy", "prompt", "text", "finish_reason", "error_type"]
    rows: list[dict[str, Any]] = table.select(names).slice(0, NUM_PLAIN).to_pylist()
    return rows
