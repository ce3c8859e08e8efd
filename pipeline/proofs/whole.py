"""Whether each row is whole: what must be there is, what must not is not, lists are parallel, ids have a meaning."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.proofs.columns import Array, Problem, is_null, lengths, rows_with, values
from pipeline.recorded import Recorded
from pipeline.strategies import BeamSearch, ContrastiveSearch, NextToken, Score, Strategy

PER_TOKEN = ("token_ids", "token_logprobs", "token_ranks", "entropies", "sampling_logprobs")
PER_STEP_AND_ALTERNATIVE = ("top_token_ids", "top_probs")
RESULTS = (
    *("text", "prompt_token_ids", "finish_reason", "stop_match", *PER_TOKEN, *PER_STEP_AND_ALTERNATIVE),
    *("cumulative_logprob", "sequence_score", "perplexity", "prompt_logprobs"),
)


def check_status(table: pa.Table, is_ok: Array, run: Recorded) -> Iterator[Problem]:
    """Rows that are neither `ok` with a result nor `error` with a reason."""
    is_error = values(table["status"]) == "error"
    for row in np.flatnonzero(~is_ok & ~is_error).tolist():
        yield Problem("status", row, f"status is `{table['status'][row]}`, but must be `ok` or `error`")
    for name in ("error_type", "error_message"):
        yield from _check_nulls(table, name, is_needed=is_error, is_unwanted=is_ok)
    for name in RESULTS:
        is_needed, is_unwanted = np.zeros(len(is_ok), bool), is_error.copy()
        for strategy in run.job.strategies:
            is_row = is_ok & (values(table["strategy"]) == strategy.name)
            needed = _needs(strategy, name, run)
            is_needed |= is_row & (needed is True)
            is_unwanted |= is_row & (needed is False)
        yield from _check_nulls(table, name, is_needed, is_unwanted)
    for name in ("num_prompt_tokens", "num_generated_tokens"):
        for row in np.flatnonzero(is_error & (values(table[name]) != 0)).tolist():
            yield Problem("status", row, f"`{name}` is {table[name][row]} on an error row, but must be 0")


def check_lists(table: pa.Table, is_ok: Array, run: Recorded) -> Iterator[Problem]:
    """Lists that are longer or shorter than their tokens, or hold nulls."""
    width = min(run.job.output.top_k, run.model.vocab_size)
    wanted = dict.fromkeys((*PER_TOKEN, *PER_STEP_AND_ALTERNATIVE), "num_generated_tokens")
    wanted |= {"prompt_token_ids": "num_prompt_tokens", "prompt_logprobs": "num_prompt_tokens"}
    for name, counter in wanted.items():
        found, counted = lengths(table[name]), values(table[counter])
        for row in np.flatnonzero(is_ok & ~is_null(table[name]) & (found != counted)).tolist():
            yield Problem("lists", row, f"`{name}` has {found[row]} entries, but {counter} is {counted[row]}")
    for name in PER_STEP_AND_ALTERNATIVE:
        for row in _rows_of_other_width(table[name], width):
            yield Problem("lists", row, f"a step of `{name}` has not {width} entries")
    for name in (*PER_TOKEN, *PER_STEP_AND_ALTERNATIVE, "prompt_token_ids"):
        for row in rows_with(table[name], is_null):
            yield Problem("lists", row, f"`{name}` holds a null")


def check_tokens(table: pa.Table, run: Recorded) -> Iterator[Problem]:
    """Rows with token ids that the model does not know."""
    size = run.model.vocab_size
    for name in ("prompt_token_ids", "token_ids", "top_token_ids"):
        for row in rows_with(table[name], lambda ids: _is_outside(ids, size)):
            yield Problem("tokens", row, f"`{name}` holds an id outside 0..{size - 1}")


def _check_nulls(table: pa.Table, name: str, is_needed: Array, is_unwanted: Array) -> Iterator[Problem]:
    nothing = is_null(table[name])
    for row in np.flatnonzero(is_needed & nothing).tolist():
        yield Problem("status", row, f"`{name}` is null, which no row of status `{table['status'][row]}` may have here")
    for row in np.flatnonzero(is_unwanted & ~nothing).tolist():
        yield Problem("status", row, f"`{name}` is {table[name][row].as_py()!r:.40}, but must be null here")


def _needs(strategy: Strategy, name: str, run: Recorded) -> bool | None:
    """Whether an ok row of the strategy must have a value in a result column; None where it may or may not."""
    match name:
        case "text":
            return not isinstance(strategy, NextToken)
        case "stop_match" | "perplexity":
            return None
        case "top_token_ids" | "top_probs":
            return run.job.output.top_k > 0
        case "prompt_logprobs":
            return run.job.output.prompt_logprobs
        case "sampling_logprobs":
            return not isinstance(strategy, BeamSearch | ContrastiveSearch | Score)
        case "sequence_score":
            return isinstance(strategy, BeamSearch)
        case _:
            return True


def _rows_of_other_width(column: pa.ChunkedArray, width: int) -> list[int]:
    array = column.combine_chunks()
    owners = values(pc.list_parent_indices(array))
    rows: list[int] = np.unique(owners[lengths(array.flatten()) != width]).tolist()
    return rows


def _is_outside(ids: pa.Array, vocab_size: int) -> Array:
    numbers = values(pc.fill_null(ids, 0))
    return (numbers < 0) | (numbers >= vocab_size)
