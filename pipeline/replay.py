"""One input row generated again, from its stored prompt tokens and seeds, and held against what the run recorded.

In this process, by the functions that made it; needs the model and no Ray, and the input only where its columns change
strategies. Ids and texts must be the same; probabilities may differ by what a batch of another shape explains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.dataset import Slice, read
from pipeline.errors import InputError
from pipeline.prompts import Prompt
from pipeline.recorded import Recorded, open_run, read_rows
from pipeline.reopen import plan_again, reopen
from pipeline.rescore import TOLERANCES, Difference
from pipeline.retries import all_retries
from pipeline.shard import EngineMaker, Setup, Shard, answer, make_engine, make_pairs, output_rows
from pipeline.strategies import Score, Strategy
from pipeline.tokenizer import Tokenizer
from pipeline.writer import build_table

Row = dict[str, Any]

IDENTICAL, NEAR_TIE, DIFFERS, NOT_REPLAYED = "identical", "near tie", "differs", "error row"
NO_KEPT_COLUMNS = pa.table({"": pa.nulls(1)}).select([])


class Verdict(NamedTuple):
    """What a completion generated again has to say of the stored one.

    Attributes:
        result: `identical`; `near tie`: other tokens, as bfloat16 may give them; `differs`; `error row`: not replayed.
        message: where they part, and by how much.
        step: first that differs, None if none does.
        difference: largest over the steps that can be compared.
    """

    strategy: str
    sample_index: int
    num_tokens: int
    result: str
    message: str | None = None
    step: int | None = None
    difference: Difference = Difference()


def replay(
    path: Path | str,
    row_id: str,
    strategy: str | None = None,
    sample_index: int | None = None,
    engine_maker: EngineMaker = make_engine,
) -> list[Verdict]:
    """Generate a row again.

    Args:
        path: folder of the run, finished or not.
        row_id: of the input row.
        strategy, sample_index: only these, None for all.
        engine_maker: makes the engine.

    Raises:
        InputError: there is no such row, or nothing but error rows.
        ModelError: the model is not the one that the plan recorded.
    """
    run = open_run(path)
    stored = find_rows(run, row_id)
    wanted = chosen(stored, strategy, sample_index)
    if all(row["status"] == "error" for row in wanted):
        raise InputError(
            f"row `{row_id}` holds errors alone here, so there is nothing to replay: {wanted[0]['error_message']}.",
            "Have it computed again by `batchgen retry-errors`.",
        )
    setup, tokenizer = reopen(run)
    again = _generate([row for row in stored if row["status"] == "ok"], run, setup, tokenizer, engine_maker)
    return [_verdict(row, again.get(_key(row)), run.job.model.dtype, tokenizer) for row in wanted]


def find_rows(run: Recorded, row_id: str) -> list[Row]:
    """All output rows of an input row as they are now, retries included, in order.

    Raises:
        InputError: no part has them.
    """
    for shard in _shards_of(run, row_id):
        rows = read_rows(run.folder, shard.key, row_id)
        for retry in all_retries(run) if rows else ():
            later = {_key(row): row for row in read_rows(retry.folder, shard.key, row_id)}
            rows = [later.get(_key(row), row) for row in rows]
        if rows:
            return rows
    raise InputError(
        f"no part of {run.folder.name} has row `{row_id}`.",
        "Take an id of column row_id; without input.id_column they are "
        "made of file name and position, as `prompts.parquet:17`.",
    )


def chosen(rows: list[Row], strategy: str | None, sample_index: int | None) -> list[Row]:
    """Of the output rows of an input row those of a strategy and a sample; None for all.

    Raises:
        InputError: there are none.
    """
    wanted = [
        row for row in rows if strategy in (None, row["strategy"]) and sample_index in (None, row["sample_index"])
    ]
    if not wanted:
        there = ", ".join(f"`{row['strategy']}` sample {row['sample_index']}" for row in rows)
        asked = f"strategy `{strategy}`" if strategy is not None else "strategy"
        sample = f" with sample {sample_index}" if sample_index is not None else ""
        raise InputError(f"row `{rows[0]['row_id']}` has no {asked}{sample}; it has {there}.", "Name one of these.")
    return wanted


def _shards_of(run: Recorded, row_id: str) -> Iterator[Shard]:
    """Shards that may hold a row: the one that a derived id names, else all."""
    if run.job.input.id_column is not None:
        yield from run.shards
        return
    name, _, position = row_id.rpartition(":")
    first = 0
    for file in run.identity["inputs"]:
        if file["name"] == name and position.isdecimal():
            row_index = first + int(position)
            yield from (shard for shard in run.shards if shard.lo <= row_index < shard.hi)
        first += file["rows"]


def _generate(
    rows: list[Row], run: Recorded, setup: Setup, tokenizer: Tokenizer, engine_maker: EngineMaker
) -> dict[Any, Row]:
    """The ok rows of one input row once more, by strategy and sample."""
    first = rows[0]
    place = Slice(first["row_index"], [first["row_id"]], [], NO_KEPT_COLUMNS, _others(run, first["row_index"]))
    stored = {row["strategy"]: row for row in rows}
    pairs = [pair for pair in make_pairs(place, tokenizer, setup) if pair.strategy.name in stored]
    prompts = [_prompt(stored[pair.strategy.name], pair.strategy) for pair in pairs]
    responses = answer(pairs, prompts, engine_maker(setup, tokenizer))
    output = output_rows(pairs, prompts, responses, place, tokenizer)
    return {_key(row): row for row in build_table(output, place.kept).to_pylist()}


def _others(run: Recorded, row_index: int) -> dict[str, list[Any]]:
    """Values of the columns that change strategies for their row; only for these the input is needed."""
    if not run.job.strategy_columns:
        return {}
    return read(plan_again(run).dataset, row_index, row_index + 1).others


def _prompt(row: Row, strategy: Strategy) -> Prompt:
    """What the row says was given to the model; under `score` the recorded tokens were given too."""
    target = tuple(row["token_ids"]) if isinstance(strategy, Score) else ()
    return Prompt(row["prompt"], tuple(row["prompt_token_ids"]), target_token_ids=target)


def _key(row: Row) -> tuple[str, int]:
    return row["strategy"], row["sample_index"]


def _verdict(stored: Row, again: Row | None, dtype: str, tokenizer: Tokenizer) -> Verdict:
    """The stored row against the one generated again."""
    verdict = Verdict(*_key(stored), stored["num_generated_tokens"], IDENTICAL)
    if stored["status"] == "error" or again is None:
        return verdict._replace(result=NOT_REPLAYED, message=stored["error_message"])
    if again["status"] == "error":
        return verdict._replace(result=DIFFERS, message=f"here it is an error: {again['error_message']}")
    step = _first_difference(stored["token_ids"], again["token_ids"])
    verdict = verdict._replace(step=step, difference=_difference(stored, again, step))
    is_explained = verdict.difference.is_within(TOLERANCES[dtype])
    if step is not None:
        result = NEAR_TIE if is_explained and dtype == "bfloat16" else DIFFERS
        return verdict._replace(result=result, message=_parting(stored, again, step, tokenizer))
    for name in ("finish_reason", "stop_match", "text"):
        if stored[name] != again[name]:
            return verdict._replace(result=DIFFERS, message=f"{name} is {stored[name]!r:.80}, here {again[name]!r:.80}")
    if not is_explained:
        step = _first_apart(stored, again, TOLERANCES[dtype])
        message = f"{_parting(stored, again, step, tokenizer)}, or with other alternatives"
        return verdict._replace(result=DIFFERS, step=step, message=message)
    return verdict


def _first_difference(stored: list[int], again: list[int]) -> int | None:
    """First step where the tokens differ, or one of the two has ended."""
    for step, (one, other) in enumerate(zip(stored, again, strict=False)):
        if one != other:
            return step
    return None if len(stored) == len(again) else min(len(stored), len(again))


def _first_apart(stored: Row, again: Row, limit: Difference) -> int:
    """First step whose numbers are further apart than the limit; there is one."""
    return next(step for step in range(len(stored["token_ids"])) if not _at(stored, again, step).is_within(limit))


def _difference(stored: Row, again: Row, step: int | None) -> Difference:
    """Largest difference over the steps that saw the same tokens: all before `step`, and of that the alternatives."""
    steps = range(len(stored["token_ids"]) if step is None else step)
    found = [_at(stored, again, each) for each in steps]
    if step is not None:
        found.append(Difference(prob=_apart(stored, again, "top_probs", step)))
    return Difference(*(max(values) for values in zip(Difference(), *found, strict=True)))


def _at(stored: Row, again: Row, step: int) -> Difference:
    """How far the numbers of one step are apart."""
    logprob = max(_apart(stored, again, name, step) for name in ("token_logprobs", "sampling_logprobs"))
    chosen = abs(math.exp(stored["token_logprobs"][step]) - math.exp(again["token_logprobs"][step]))
    return Difference(prob=max(chosen, _apart(stored, again, "top_probs", step)), logprob=logprob)


def _apart(stored: Row, again: Row, name: str, step: int) -> float:
    """Largest difference of a list's entry; 0 where it was not recorded, or one of the two has ended, and 1 if they
    are not even of the same shape."""
    one, other = stored[name], again[name]
    if not one or not other or step >= min(len(one), len(other)):
        return 0.0
    if np.shape(one[step]) != np.shape(other[step]):
        return 1.0
    return float(np.abs(np.subtract(one[step], other[step])).max(initial=0.0))


def _parting(stored: Row, again: Row, step: int, tokenizer: Tokenizer) -> str:
    """What each has at the step where they part."""
    return f"step {step}: stored {_token(stored, step, tokenizer)}, here {_token(again, step, tokenizer)}"


def _token(row: Row, step: int, tokenizer: Tokenizer) -> str:
    if step >= len(row["token_ids"]):
        return f"the end, `{row['finish_reason']}`"
    token_id = row["token_ids"][step]
    text = tokenizer.token_bytes[token_id].decode("utf-8", "replace") or tokenizer.tokens[token_id]
    return f"{token_id} {text!r} with probability {math.exp(row['token_logprobs'][step]):.6f}"
