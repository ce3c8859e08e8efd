"""Columns that set keys of strategies: which may, what a row makes of its strategies, and bad values as error rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from pipeline import job
from pipeline.checkpoint import inspect
from pipeline.config import NOT_FROM_COLUMNS, Job
from pipeline.errors import ConfigError, InputError
from pipeline.jobfile import json_schema, parse_job
from pipeline.overrides import overridden, seed_of
from pipeline.plan import make_plan
from pipeline.records import Completion, Request, Response, RowError, row_seed
from pipeline.resolve import resolve
from pipeline.shard import Setup
from pipeline.strategies import Processed, Strategy
from pipeline.tokenizer import Tokenizer
from tests.flows import GREEDY, make_job, part_bytes, read_output, run_echo, write_prompts

STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)
SAMPLING: dict[str, Any] = {"name": "hot", "type": "sampling", "max_new_tokens": 4}
BEAMS: dict[str, Any] = {"name": "beams", "type": "beam_search", "max_new_tokens": 4, "num_beams": 3}
CONTRAST: dict[str, Any] = {
    "name": "c",
    "type": "contrastive_search",
    "max_new_tokens": 4,
    "penalty_alpha": 0.6,
    "top_k": 4,
}
DOLA: dict[str, Any] = {"name": "dola", "type": "dola", "max_new_tokens": 4, "dola_layers": "low"}
NEXT: dict[str, Any] = {"name": "next", "type": "next_token"}
SCORE: dict[str, Any] = {"name": "score", "type": "score"}
DEMO = inspect("demo")


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(DEMO.folder, DEMO.vocab_size)


def strategy(values: dict[str, Any], **changes: Any) -> Strategy:
    return STRATEGY.validate_python(values | changes)


def columns_of(source: Path, **arrays: Any) -> Path:
    """An input of as many rows as the columns have, all with one prompt."""
    size = len(next(iter(arrays.values())))
    return write_prompts(source / "prompts.parquet", ["Every bee"] * size, **arrays)


def run_with(tmp_path: Path, source: Path, strategies: list[dict[str, Any]], **columns: str) -> list[dict[str, Any]]:
    run_echo(make_job(source, tmp_path / "out", strategies=strategies, strategy_columns=columns))
    return read_output(tmp_path / "out").to_pylist()


# In the job file


def refusal(columns: Any, *strategies: dict[str, Any]) -> str:
    values = {"model": "demo", "input": {"path": "p"}, "output": {"path": "o"}, "strategy_columns": columns}
    with pytest.raises(ConfigError) as error:
        parse_job({**values, "strategies": strategies or [SAMPLING]})
    return str(error.value).removesuffix("\n\n1 error. Nothing was started.")


def test_keys_are_mapped_to_columns_and_written_down_with_the_job() -> None:
    columns = {"max_new_tokens": "limit", "seed": "seed", "temperature": "temp"}
    values = {"model": "demo", "input": {"path": "p"}, "output": {"path": "o"}, "strategies": [SAMPLING]}
    work = parse_job({**values, "strategy_columns": columns})
    assert work.strategy_columns == columns
    assert Job.model_validate_json(work.model_dump_json()) == work
    assert parse_job(values).strategy_columns == {}


@pytest.mark.parametrize(("key", "why"), NOT_FROM_COLUMNS.items())
def test_what_must_be_known_before_a_row_is_read_cannot_come_from_a_column(key: str, why: str) -> None:
    assert refusal({key: "n"}, SAMPLING, SCORE) == (
        f"error: `strategy_columns.{key}` cannot be 'n': {why}\nSet it in the strategies."
    )


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {"num_beams": "n"},
            "error: `strategy_columns.num_beams` cannot be 'n': no strategy of this job has `num_beams`\n"
            "Use it with `type: beam_search`, or leave it out.",
        ),
        ({"tempreature": "t"}, "error: unknown key `strategy_columns.tempreature`\nDid you mean `temperature`?"),
        ({"max_tokens": "t"}, "error: unknown key `strategy_columns.max_tokens`\nUse `max_new_tokens`."),
        ({"grid": "t"}, "error: unknown key `strategy_columns.grid`\nIt belongs in a strategy."),
        ({"colour": "t"}, "error: unknown key `strategy_columns.colour`\nKnown here: `guidance_scale`, "),
        (
            {"top_k": ""},
            "error: `strategy_columns.top_k` must be a non-empty string, but is ''\n"
            "Column that sets `top_k` for its row.",
        ),
        (
            {"top_k": 3},
            "error: `strategy_columns.top_k` must be a non-empty string, but is 3\nWrite it in quotes: '3'.",
        ),
        ({3: "n"}, "error: a key must be a string, but is 3"),
        (["top_k"], "error: `strategy_columns` must be a mapping (optional: `guidance_scale`, "),
    ],
)
def test_a_key_that_sets_nothing_here_is_refused_with_a_way_out(columns: Any, told: str) -> None:
    assert refusal(columns).startswith(told)


def test_all_keys_that_set_nothing_are_told_at_once() -> None:
    assert refusal({"name": "a", "num_beams": "b", "topk": "c"}).endswith("\n\n3 errors. Nothing was started.")


def test_a_key_of_any_strategy_of_a_grid_will_do() -> None:
    sweep = SAMPLING | {"grid": {"top_p": [0.5, 0.9]}}
    values = {"model": "demo", "input": {"path": "p"}, "output": {"path": "o"}, "strategies": [sweep]}
    assert parse_job({**values, "strategy_columns": {"top_p": "p"}}).strategy_columns == {"top_p": "p"}


def test_the_schema_knows_the_keys_that_a_column_can_set() -> None:
    rules = json_schema()["properties"]["strategy_columns"]
    assert rules["additionalProperties"] is False
    assert {"seed", "temperature", "add_bos", *Processed.model_fields} - {"name"} <= rules["properties"].keys()
    assert rules["properties"].keys().isdisjoint([*NOT_FROM_COLUMNS, "grid"])


# Types, from the schema alone

INT, FLOAT, TEXT, BOOL = pa.int64(), pa.float64(), pa.string(), pa.bool_()
INTEGERS, FLOATS = (pa.int8(), pa.uint64()), (pa.float32(), FLOAT, pa.int32())
TEXTS, IDS = (pa.list_(TEXT), pa.large_list(pa.large_string())), (pa.list_(pa.int32()), pa.list_(pa.uint16()))
PHRASES = (pa.list_(pa.list_(INT)),)
BIASES = tuple(
    pa.list_(pa.struct([(key, type_), ("bias", FLOAT)])) for key, type_ in (("text", TEXT), ("token_ids", IDS[0]))
)
NO_INTEGERS, NO_FLOATS = (FLOAT, TEXT, BOOL, pa.list_(INT), pa.binary()), (TEXT, BOOL, pa.list_(FLOAT))
NO_TEXTS, NO_IDS = (TEXT, pa.list_(INT), pa.list_(pa.list_(TEXT))), (INT, pa.list_(FLOAT), pa.list_(TEXT), *PHRASES)
NO_PHRASES = (pa.list_(INT), pa.list_(pa.list_(FLOAT)), pa.list_(TEXT))
Types = tuple[pa.DataType, ...]
TYPES: dict[str, tuple[dict[str, Any], Types, Types]] = {  # key -> a strategy that has it, what fits, what does not
    **dict.fromkeys(("max_new_tokens", "max_length", "min_new_tokens", "seed"), (GREEDY, INTEGERS, NO_INTEGERS)),
    **dict.fromkeys(("no_repeat_ngram_size", "forced_bos_token_id"), (GREEDY, INTEGERS, NO_INTEGERS)),
    **dict.fromkeys(("temperature", "top_p", "eta_cutoff", "presence_penalty"), (SAMPLING, FLOATS, NO_FLOATS)),
    **dict.fromkeys(("stop_strings", "bad_words", "allowed_words"), (GREEDY, TEXTS, NO_TEXTS)),
    **dict.fromkeys(("stop_token_ids", "suppress_tokens", "negative_prompt_ids"), (GREEDY, IDS, NO_IDS)),
    **dict.fromkeys(("bad_words_ids", "allowed_words_ids"), (GREEDY, PHRASES, NO_PHRASES)),
    "exponential_decay_length_penalty": (GREEDY, (pa.list_(pa.float32()), pa.list_(INT)), (FLOAT, pa.list_(TEXT))),
    "sequence_bias": (GREEDY, BIASES, (pa.list_(FLOAT), pa.list_(pa.struct([("word", TEXT), ("bias", FLOAT)])))),
    "negative_prompt": (GREEDY, (TEXT, pa.dictionary(pa.int8(), TEXT)), (INT, pa.list_(TEXT), pa.binary())),
    "ignore_eos": (GREEDY, (BOOL,), (INT, TEXT)),
    "early_stopping": (BEAMS, (BOOL, TEXT), (INT, pa.list_(BOOL))),
    "force_words": (BEAMS, (*TEXTS, pa.list_(pa.list_(TEXT))), (TEXT, pa.list_(INT))),
    "force_words_ids": (BEAMS, (*PHRASES, pa.list_(pa.list_(pa.list_(INT)))), (pa.list_(INT), pa.list_(TEXT))),
    "penalty_alpha": (CONTRAST, FLOATS, NO_FLOATS),
    "top_k": (CONTRAST, INTEGERS, NO_INTEGERS),
    "dola_layers": (DOLA, (TEXT, *IDS), (INT, pa.list_(FLOAT), pa.list_(TEXT))),
    "add_bos": (SCORE, (BOOL,), (INT, TEXT)),
}


@pytest.mark.parametrize(("key", "type_"), [(key, type_) for key, (_, fit, _) in TYPES.items() for type_ in fit])
def test_a_column_may_have_the_types_of_its_key(tmp_path: Path, key: str, type_: pa.DataType) -> None:
    source = columns_of(tmp_path, value=pa.nulls(2, type_))
    make_plan(make_job(source, tmp_path / "out", strategies=[TYPES[key][0]], strategy_columns={key: "value"}))


@pytest.mark.parametrize(("key", "type_"), [(key, type_) for key, (_, _, unfit) in TYPES.items() for type_ in unfit])
def test_a_column_of_another_type_is_refused_from_its_schema(tmp_path: Path, key: str, type_: pa.DataType) -> None:
    source = columns_of(tmp_path, value=pa.nulls(2, type_))
    work = make_job(source, tmp_path / "out", strategies=[TYPES[key][0]], strategy_columns={key: "value"})
    with pytest.raises(InputError) as error:
        make_plan(work)
    assert str(error.value).startswith(f"column `value` is {type_} in prompts.parquet, but `{key}` must be ")
    assert str(error.value).endswith(f" (strategy_columns.{key}). Cast it in the input, or use another column.")


def test_the_rule_is_told_as_in_the_job_file(tmp_path: Path) -> None:
    source = columns_of(tmp_path, limit=[1.5])
    with pytest.raises(InputError) as error:
        run_with(tmp_path, source, [GREEDY], max_new_tokens="limit")
    assert str(error.value) == (
        "column `limit` is double in prompts.parquet, but `max_new_tokens` must be an integer of at least 1 "
        "(strategy_columns.max_new_tokens). Cast it in the input, or use another column."
    )
    assert not (tmp_path / "out").exists()


def test_a_column_that_is_missing_is_refused(tmp_path: Path) -> None:
    source = columns_of(tmp_path, limit=[1])
    with pytest.raises(InputError) as error:
        run_with(tmp_path, source, [GREEDY], max_new_tokens="limits")
    assert str(error.value) == (
        "column `limits` is missing in prompts.parquet; found `id`, `prompt`, `limit`; did you mean `limit`? "
        "Set strategy_columns.max_new_tokens."
    )


def test_csv_holds_text_alone_and_so_sets_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,prompt,limit,away\na,Every bee,3,cold\n")
    work = {"strategies": [GREEDY | {"guidance_scale": 2}]}
    with pytest.raises(InputError, match=r"column `limit` is string in rows\.csv, but `max_new_tokens` must be an"):
        make_plan(
            make_job(tmp_path / "rows.csv", tmp_path / "out", **work, strategy_columns={"max_new_tokens": "limit"})
        )
    make_plan(make_job(tmp_path / "rows.csv", tmp_path / "out", **work, strategy_columns={"negative_prompt": "away"}))


def test_jsonl_has_its_types_row_by_row(tmp_path: Path) -> None:
    rows = [{"limit": 2}, {"limit": "2"}, {"limit": None}, {}, {"limit": 2.0}]
    lines = [json.dumps({"id": f"r{i}", "prompt": "Every bee", **row}) for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = run_with(tmp_path, tmp_path / "rows.jsonl", [GREEDY], max_new_tokens="limit")
    assert [row["error_message"] for row in found] == [
        None,
        "`max_new_tokens` must be an integer of at least 1, but is '2' (column `limit`)",
        None,
        None,
        "`max_new_tokens` must be an integer of at least 1, but is 2.0 (column `limit`)",
    ]


# The strategy of a row


def test_a_row_without_values_leaves_a_strategy_as_it_is(demo: Tokenizer) -> None:
    columns = {"temperature": "t", "top_k": "k", "num_beams": "n"}
    assert overridden(strategy(SAMPLING), {"t": None, "k": None, "n": 5}, columns, demo, DEMO) is None


@pytest.mark.parametrize(
    ("values", "overrides", "expected"),
    [
        (SAMPLING, {"temperature": 0.5, "top_k": 7}, SAMPLING | {"temperature": 0.5, "top_k": 7}),
        (SAMPLING, {"temperature": 2, "num_beams": 9}, SAMPLING | {"temperature": 2}),
        (GREEDY, {"max_length": 9}, GREEDY | {"max_new_tokens": None, "max_length": 9}),
        (GREEDY | {"max_new_tokens": None, "max_length": 9}, {"max_new_tokens": 3}, GREEDY | {"max_new_tokens": 3}),
        (GREEDY, {"stop_strings": ["a", "b"], "stop_token_ids": []}, GREEDY | {"stop_strings": ["a", "b"]}),
        (
            GREEDY | {"bad_words": ["fox"], "bad_words_ids": [[1]]},
            {"bad_words": ["bee"]},
            GREEDY | {"bad_words": ["bee"], "bad_words_ids": [[1]]},
        ),
        (
            GREEDY | {"guidance_scale": 2, "negative_prompt": "cold"},
            {"negative_prompt_ids": [5]},
            GREEDY | {"guidance_scale": 2, "negative_prompt_ids": [5]},
        ),
        (
            GREEDY | {"guidance_scale": 2, "negative_prompt_ids": [5]},
            {"negative_prompt": "cold"},
            GREEDY | {"guidance_scale": 2, "negative_prompt": "cold"},
        ),
        (
            GREEDY,
            {"sequence_bias": [{"text": "fox", "token_ids": None, "bias": 1.0}]},
            GREEDY | {"sequence_bias": [{"text": "fox", "bias": 1.0}]},
        ),
        (BEAMS, {"early_stopping": "never", "num_beams": 5}, BEAMS | {"early_stopping": "never", "num_beams": 5}),
        (BEAMS, {"force_words": [["fox", "bee"], ["hill"]]}, BEAMS | {"force_words": [["fox", "bee"], ["hill"]]}),
        (DOLA, {"dola_layers": [0, 1]}, DOLA | {"dola_layers": [0, 1]}),
        (NEXT, {"repetition_penalty": 1.5, "max_new_tokens": 3}, NEXT | {"repetition_penalty": 1.5}),
        (SCORE, {"add_bos": False}, SCORE | {"add_bos": False}),
    ],
)
def test_a_row_gets_the_strategy_that_a_job_with_its_values_has(
    demo: Tokenizer, values: dict[str, Any], overrides: dict[str, Any], expected: dict[str, Any]
) -> None:
    row = {f"column_{key}": value for key, value in overrides.items()}
    columns = {key: f"column_{key}" for key in overrides}
    assert overridden(strategy(values), row, columns, demo, DEMO) == resolve(strategy(expected), demo, DEMO)


@pytest.mark.parametrize(
    ("values", "row", "message"),
    [
        (SAMPLING, {"temperature": 0}, "`temperature` must be a number above 0, but is 0 (column `temperature`)"),
        (
            SAMPLING,
            {"temperature": float("nan")},
            "`temperature` must be a number above 0, but is nan (column `temperature`)",
        ),
        (SAMPLING, {"top_p": 1.5, "top_k": 3}, "`top_p` must be a number in (0, 1], but is 1.5 (column `top_p`)"),
        (
            GREEDY,
            {"stop_strings": ["a", ""]},
            "`stop_strings[1]` must be a non-empty string, but is '' (column `stop_strings`)",
        ),
        (
            GREEDY,
            {"stop_strings": ["\udcff"]},
            "`stop_strings[0]` must be a non-empty string, but is '\\udcff' (column `stop_strings`)",
        ),
        (
            GREEDY,
            {"max_new_tokens": 3, "max_length": 9},
            "there are two limits, `max_new_tokens` and `max_length` (column `max_length`)",
        ),
        (
            GREEDY | {"min_new_tokens": 3},
            {"max_new_tokens": 2, "stop_strings": ["a"]},
            "`min_new_tokens` (3) must not be above the limit of 2 tokens (columns `max_new_tokens`, `stop_strings`)",
        ),
        (
            GREEDY,
            {"stop_token_ids": [1, 768]},
            "`stop_token_ids` must hold ids below 768, the vocabulary of model `demo`, but holds 768 "
            "(column `stop_token_ids`)",
        ),
        (GREEDY, {"bad_words_ids": [[767]]}, "`bad_words_ids` must not ban the end of text (column `bad_words_ids`)"),
        (
            BEAMS,
            {"force_words_ids": [[1, 2], [1, 2, 3, 4, 5]]},
            "`force_words` needs 5 tokens, which `max_new_tokens` (4) does not allow (column `force_words_ids`)",
        ),
        (
            DOLA,
            {"dola_layers": [3]},
            "`dola_layers` must hold layers below 3, the last one of model `demo`, but holds 3 (column `dola_layers`)",
        ),
        (
            BEAMS,
            {"temperature": 0.5},
            "`temperature` has no effect without `do_sample: true`: beams take the best candidates otherwise "
            "(column `temperature`)",
        ),
    ],
)
def test_a_value_that_a_strategy_cannot_have_is_told_with_its_column(
    demo: Tokenizer, values: dict[str, Any], row: dict[str, Any], message: str
) -> None:
    error = overridden(strategy(values), row, {key: key for key in row}, demo, DEMO)
    assert error == RowError("bad_override", message)


# Seeds


@pytest.mark.parametrize("seed", [None, 0, 2**63 - 1])
def test_a_row_may_bring_a_seed(seed: int | None) -> None:
    assert seed_of({"s": seed}, {"seed": "s"}) == seed
    assert seed_of({"s": seed}, {"temperature": "s"}) is None


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "1"])
def test_what_is_no_seed_is_told_with_its_column(seed: Any) -> None:
    message = f"`seed` must be an integer from 0 to 9223372036854775807, but is {seed!r} (column `s`)"
    assert seed_of({"s": seed}, {"seed": "s"}) == RowError("bad_override", message)


def test_a_row_with_a_seed_draws_from_it_and_not_from_its_id(tmp_path: Path) -> None:
    samples = SAMPLING | {"num_return_sequences": 2}
    source = columns_of(tmp_path, s=pa.array([5, 5, 6, None], pa.uint8()))
    rows = run_with(tmp_path, source, [samples, GREEDY], seed="s")
    seeds = {(row["row_id"], row["strategy"], row["sample_index"]): row["seed"] for row in rows}
    for sample in range(2):
        assert seeds["r0", "hot", sample] == seeds["r1", "hot", sample] == row_seed(5, "", "hot", sample)
        assert seeds["r2", "hot", sample] == row_seed(6, "", "hot", sample)
        assert seeds["r3", "hot", sample] == row_seed(0, "r3", "hot", sample)
    assert seeds["r0", "greedy", 0] == row_seed(5, "", "greedy", 0)
    assert len(set(seeds.values())) == 3 * 3


def test_equal_prompts_with_equal_seeds_have_equal_completions(tmp_path: Path) -> None:
    hot = SAMPLING | {"temperature": 2.0, "max_new_tokens": 12, "ignore_eos": True}
    source = columns_of(tmp_path, s=[1, 2, 1, 2, 3, 3])
    job.run(make_job(source, tmp_path / "out", strategies=[hot], strategy_columns={"seed": "s"}), job.here)
    texts = read_output(tmp_path / "out")["text"].to_pylist()
    assert (texts[0], texts[1], texts[4]) == (texts[2], texts[3], texts[5])
    assert len(set(texts)) == 3


# In a run


class CountingEngine:
    """Completes every prompt with as many tokens as its strategy allows, all of them the strategy's stop token."""

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        return [self._response(request) for request in requests]

    def _response(self, request: Request) -> Response:
        values = request.strategy.model_dump()
        count = values["max_new_tokens"] or values["max_length"] - len(request.prompt_token_ids)
        tokens = np.full(count, values["stop_token_ids"][0] if values["stop_token_ids"] else 1, np.int32)
        numbers = np.zeros(count, np.float32)
        probs = np.full((count, 1), 0.5, np.float32)
        done = Completion(tokens, "length", None, numbers, None, tokens, numbers, tokens[:, None], probs)
        return Response((done,) * len(request.seeds))


def counting(_setup: Setup, _tokenizer: Tokenizer) -> CountingEngine:
    return CountingEngine()


def run_counting(tmp_path: Path, source: Path, **changes: Any) -> list[dict[str, Any]]:
    job.run(make_job(source, tmp_path / "out", **changes), job.here, engine_maker=counting)
    return read_output(tmp_path / "out").to_pylist()


def test_every_strategy_that_has_the_key_takes_it_and_null_leaves_it(tmp_path: Path) -> None:
    source = columns_of(tmp_path, limit=[2, None, 7], stop=pa.array([None, [9], [8]], pa.list_(pa.int16())))
    long = {"name": "long", "type": "greedy", "max_length": 20}
    columns = {"max_new_tokens": "limit", "stop_token_ids": "stop"}
    rows = run_counting(tmp_path, source, strategies=[GREEDY, long], strategy_columns=columns)
    found = [(row["strategy"], row["num_generated_tokens"], row["token_ids"][0]) for row in rows]
    left = 20 - rows[0]["num_prompt_tokens"]
    assert found == [
        ("greedy", 2, 1),
        ("long", 2, 1),
        ("greedy", 4, 9),
        ("long", left, 9),
        ("greedy", 7, 8),
        ("long", 7, 8),
    ]


def test_a_bad_value_is_an_error_row_of_the_strategies_that_have_the_key(tmp_path: Path) -> None:
    source = columns_of(tmp_path, t=[0.5, -1.0, None])
    rows = run_with(tmp_path, source, [SAMPLING | {"num_return_sequences": 2}, GREEDY], temperature="t")
    assert [(row["row_id"], row["strategy"], row["error_type"]) for row in rows] == [
        ("r0", "hot", None),
        ("r0", "hot", None),
        ("r0", "greedy", None),
        ("r1", "hot", "bad_override"),
        ("r1", "hot", "bad_override"),
        ("r1", "greedy", None),
        ("r2", "hot", None),
        ("r2", "hot", None),
        ("r2", "greedy", None),
    ]
    bad = rows[3]
    assert bad["error_message"] == "`temperature` must be a number above 0, but is -1.0 (column `t`)"
    assert (bad["prompt"], bad["token_ids"], bad["num_prompt_tokens"]) == ("Every bee", None, 0)


def test_a_bad_seed_is_an_error_row_of_every_strategy(tmp_path: Path) -> None:
    rows = run_with(tmp_path, columns_of(tmp_path, s=[1, -1]), [SAMPLING, GREEDY], seed="s")
    assert [row["error_type"] for row in rows] == [None, None, "bad_override", "bad_override"]


def test_a_prompt_that_cannot_be_used_is_told_before_what_would_be_done_with_it(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", [None], t=[-1.0])
    assert [row["error_type"] for row in run_with(tmp_path, source, [SAMPLING], temperature="t")] == ["prompt_null"]


def test_a_truncated_prompt_leaves_room_for_the_limit_of_its_row(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["word " * 200] * 2, limit=[29, None])
    changes = {"input": {"path": str(source), "on_long_prompt": "truncate_left"}, "strategies": [GREEDY]}
    rows = run_counting(tmp_path, source, **changes, strategy_columns={"max_new_tokens": "limit"})
    assert [(row["num_prompt_tokens"], row["num_generated_tokens"]) for row in rows] == [(100, 29), (125, 4)]


def test_columns_are_part_of_what_a_job_is(tmp_path: Path) -> None:
    source = columns_of(tmp_path, a=[1.0], b=[2.0])
    plans = [
        make_plan(make_job(source, tmp_path / "out", strategies=[SAMPLING], strategy_columns={"temperature": column}))
        for column in ("a", "b")
    ]
    assert plans[0].fingerprint != plans[1].fingerprint


def test_shards_are_as_small_as_for_the_longest_completion_where_rows_set_their_limit(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["Today"] * 9000, limit=[4] * 9000)

    def shard_rows(limit: int, **changes: Any) -> int:
        samples = SAMPLING | {"num_return_sequences": 8, "max_new_tokens": limit}
        output = {"path": str(tmp_path / "out"), "top_k": 100}
        return make_plan(
            make_job(source, tmp_path / "out", strategies=[samples], output=output, run={}, **changes)
        ).shard_rows

    assert shard_rows(4, strategy_columns={"max_new_tokens": "limit"}) == shard_rows(128) < shard_rows(4) == 1024


def test_rows_do_not_depend_on_their_shard(tmp_path: Path) -> None:
    source = columns_of(tmp_path, s=[1, 2, 3, 4, 5, 6, 7], t=[0.5, None, -1.0, 2.0, None, 0.1, 1.0])
    changes = {"strategies": [SAMPLING], "strategy_columns": {"seed": "s", "temperature": "t"}}
    for name, rows in (("a", 2), ("b", 7)):
        run_echo(make_job(source, tmp_path / name, **changes, run={"shard_rows": rows}))
    assert pq.read_table(tmp_path / "a" / "data").equals(pq.read_table(tmp_path / "b" / "data"))
    assert len(part_bytes(tmp_path / "a")) == 4
