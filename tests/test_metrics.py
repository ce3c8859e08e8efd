"""Sums of a part, by hand; and that parts add up to the whole in any order."""

from __future__ import annotations

import json
import random
from functools import reduce
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import Sums, add, part_sums
from pipeline.schema import output_schema

SCHEMA = output_schema(pa.schema([]))


def ok_row(strategy: str, ranks: list[int], reason: str = "length", **values: Any) -> dict[str, Any]:
    """A row whose tokens all have logprob -0.5, entropy 2 and, if drawn, sampling logprob -0.25."""
    count = len(ranks)
    return {
        "row_id": "r",
        "row_index": 0,
        "strategy": strategy,
        "sample_index": 0,
        "status": "ok",
        "finish_reason": reason,
        "num_prompt_tokens": 3,
        "num_generated_tokens": count,
        "token_logprobs": [-0.5] * count,
        "sampling_logprobs": [-0.25] * count,
        "entropies": [2.0] * count,
        "token_ranks": ranks,
    } | values


def error_row(strategy: str, error_type: str) -> dict[str, Any]:
    counts = {"num_prompt_tokens": 0, "num_generated_tokens": 0}
    return {
        "row_id": "r",
        "row_index": 0,
        "strategy": strategy,
        "sample_index": 0,
        "status": "error",
        "error_type": error_type,
    } | counts


def sums(*rows: dict[str, Any]) -> dict[str, Sums]:
    return part_sums(pa.Table.from_pylist(list(rows), schema=SCHEMA))


NO_RANKS = {"<=1": 0, "<=10": 0, "<=100": 0, "<=1000": 0, ">1000": 0}


def test_every_sum_of_hand_made_rows() -> None:
    found = sums(
        ok_row("draw", [1, 2, 11], reason="eos"),
        ok_row("beam", [1], sampling_logprobs=None, num_prompt_tokens=7),
        ok_row("draw", [5], token_logprobs=[-4.0]),
        error_row("draw", "prompt_null"),
        ok_row("draw", [], reason="context"),
        error_row("draw", "no_token_left"),
        error_row("draw", "prompt_null"),
        ok_row("draw", [3, 2000, 1001]),
    )
    assert found == {
        "draw": {
            "rows": 7,
            "ok": 4,
            "errors": {"no_token_left": 1, "prompt_null": 2},
            "finish_reasons": {"context": 1, "eos": 1, "length": 2},
            "prompt_tokens": 12,
            "generated_tokens": 7,
            "lengths": {"0": 1, "1": 1, "3": 2},
            "sum_logprob": -0.5 * 6 - 4.0,
            "sum_entropy": 14.0,
            "sum_sharpening": 0.25 * 6 + 3.75,
            "drawn_tokens": 7,
            "ranks": {"<=1": 1, "<=10": 3, "<=100": 1, "<=1000": 0, ">1000": 2},
        },
        "beam": {
            "rows": 1,
            "ok": 1,
            "errors": {},
            "finish_reasons": {"length": 1},
            "prompt_tokens": 7,
            "generated_tokens": 1,
            "lengths": {"1": 1},
            "sum_logprob": -0.5,
            "sum_entropy": 2.0,
            "sum_sharpening": 0.0,
            "drawn_tokens": 0,
            "ranks": NO_RANKS | {"<=1": 1},
        },
    }


def test_scored_tokens_are_counted_and_were_not_drawn() -> None:
    found = sums(ok_row("score", [1, 2, 3, 4], reason="scored", sampling_logprobs=None, num_prompt_tokens=1))["score"]
    assert (found["generated_tokens"], found["drawn_tokens"], found["finish_reasons"]) == (4, 0, {"scored": 1})
    assert (found["sum_logprob"], found["lengths"]) == (-2.0, {"4": 1})  # perplexity: exp(2 / 4)


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (1, "<=1"),
        (2, "<=10"),
        (10, "<=10"),
        (11, "<=100"),
        (100, "<=100"),
        (101, "<=1000"),
        (1000, "<=1000"),
        (1001, ">1000"),
        (50257, ">1000"),
    ],
)
def test_a_rank_on_the_edge_of_a_bin_belongs_to_it(rank: int, expected: str) -> None:
    assert sums(ok_row("a", [rank]))["a"]["ranks"] == NO_RANKS | {expected: 1}


def test_a_strategy_with_errors_only_has_all_sums() -> None:
    assert sums(error_row("a", "prompt_null"))["a"] == {
        "rows": 1,
        "ok": 0,
        "errors": {"prompt_null": 1},
        "finish_reasons": {},
        "prompt_tokens": 0,
        "generated_tokens": 0,
        "lengths": {},
        "sum_logprob": 0.0,
        "sum_entropy": 0.0,
        "sum_sharpening": 0.0,
        "drawn_tokens": 0,
        "ranks": NO_RANKS,
    }


def test_no_rows_have_no_sums() -> None:
    assert sums() == {}


def test_strategies_come_in_the_order_in_which_they_first_occur() -> None:
    assert list(sums(ok_row("z", [1]), ok_row("a", [1]), ok_row("z", [1]))) == ["z", "a"]


def test_lengths_are_counted_in_numerical_order() -> None:
    rows = [ok_row("a", [1] * count) for count in (10, 9, 100)]
    assert list(sums(*rows)["a"]["lengths"]) == ["9", "10", "100"]


def test_many_small_logprobs_are_summed_in_double_precision() -> None:
    assert sums(ok_row("a", [1] * 3, token_logprobs=[-16777216.0, -1.0, -1.0]))["a"]["sum_logprob"] == -16777218.0


def test_tokens_in_several_chunks_are_all_counted() -> None:
    table = pa.Table.from_pylist([ok_row("a", [1, 2]), ok_row("a", [3])], schema=SCHEMA)
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert part_sums(chunked) == part_sums(table)


def test_sums_are_json() -> None:
    found = sums(ok_row("a", [1, 2]), error_row("a", "prompt_null"))
    assert json.loads(json.dumps(found)) == found


# Adding


def test_adding_keeps_keys_of_both_and_leaves_both_as_they_are() -> None:
    left: Sums = {"rows": 1, "errors": {"a": 1, "b": 2}, "x": 0.5}
    right: Sums = {"rows": 2, "errors": {"b": 3, "c": 4}, "y": {"z": 1}}
    assert add(left, right) == {"rows": 3, "errors": {"a": 1, "b": 5, "c": 4}, "x": 0.5, "y": {"z": 1}}
    assert (left["errors"], right["errors"]) == ({"a": 1, "b": 2}, {"b": 3, "c": 4})
    assert add({}, right) == add(right, {}) == right


QUARTERS = st.integers(-400, 0).map(lambda number: number / 4)  # sums of them are exact


@st.composite
def any_rows(draw: st.DrawFn) -> dict[str, Any]:
    strategy = draw(st.sampled_from(["draw", "beam", "greedy"]))
    if draw(st.booleans()):
        return error_row(strategy, draw(st.sampled_from(["prompt_null", "prompt_too_long"])))
    ranks = draw(st.lists(st.integers(1, 5000), max_size=4))
    numbers = st.lists(QUARTERS, min_size=len(ranks), max_size=len(ranks))
    return ok_row(
        strategy,
        ranks,
        reason=draw(st.sampled_from(["eos", "length", "stop"])),
        token_logprobs=draw(numbers),
        sampling_logprobs=draw(st.none() | numbers),
        entropies=draw(numbers),
        num_prompt_tokens=draw(st.integers(1, 1024)),
    )


@given(rows=st.lists(any_rows(), max_size=12), cuts=st.lists(st.integers(0, 12), max_size=3), seed=st.integers(0, 99))
def test_parts_add_up_to_the_whole_in_any_order(rows: list[dict[str, Any]], cuts: list[int], seed: int) -> None:
    edges = [0, *sorted(cuts), 12]
    parts = [sums(*rows[low:high]) for low, high in pairwise(edges)]
    random.Random(seed).shuffle(parts)
    assert reduce(add, parts, {}) == sums(*rows)
