"""Texts that are scored: what of a row is given and what is scored, what cannot be, and the rows that come out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.checkpoint import DEMO
from pipeline.errors import ConfigError, InputError
from pipeline.job import here, run
from pipeline.plan import make_plan
from pipeline.prompts import Prompt, Rules, scored, self_scored
from pipeline.records import RowError
from pipeline.tokenizer import Tokenizer
from tests.flows import GREEDY, make_job, part_bytes, read_output, run_echo, write_prompts

BOS = 767
RULES = Rules(num_positions=8, vocab_size=768, bos_token_id=BOS, on_long_prompt="error")
SCORE: dict[str, Any] = {"name": "score", "type": "score"}
ANSWER = SCORE | {"target_column": "answer"}


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(DEMO, 768)


def prompt(*token_ids: int) -> Prompt:
    return Prompt("text", token_ids)


def error(kind: str, message: str) -> Prompt:
    return Prompt("text", RowError(kind, message))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0]


def run_score(tmp_path: Path, source: Path, *strategies: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    inputs = {"path": str(source), "id_column": "id", **settings}
    run_echo(make_job(source, tmp_path / "out", strategies=list(strategies), input=inputs))
    return read_output(tmp_path / "out").to_pylist()


# What is given and what is scored


def test_a_prompt_is_scored_after_the_start_token() -> None:
    assert self_scored(prompt(1, 2, 3), (BOS,), RULES) == Prompt("text", (BOS,), False, (1, 2, 3))
    assert self_scored(prompt(1), (BOS,), RULES) == Prompt("text", (BOS,), False, (1,))


def test_without_a_start_token_the_first_token_is_given() -> None:
    assert self_scored(prompt(1, 2, 3), (), RULES) == Prompt("text", (1,), False, (2, 3))


def test_a_target_is_scored_after_the_prompt() -> None:
    assert scored(prompt(1, 2), prompt(3, 4), RULES) == Prompt("text", (1, 2), False, (3, 4))


def test_an_empty_prompt_before_a_target_is_the_start_token_or_an_error() -> None:
    assert scored(prompt(), prompt(3), RULES) == Prompt("text", (BOS,), False, (3,))
    refused = scored(prompt(), prompt(3), RULES._replace(bos_token_id=None))
    assert refused.token_ids == RowError("prompt_empty", "the prompt is empty; input.on_empty_prompt is `error`")


def test_nothing_to_score_is_an_error() -> None:
    assert scored(prompt(1), prompt(), RULES) == error("target_empty", "the target is empty: there is nothing to score")
    empty = error("target_empty", "the prompt is empty: there is nothing to score")
    assert self_scored(prompt(), (BOS,), RULES) == self_scored(prompt(), (), RULES) == empty
    one = error("target_empty", "the prompt has one token, which is given: there is nothing to score")
    assert self_scored(prompt(5), (), RULES) == one
    refused = self_scored(prompt(), (BOS,), RULES._replace(bos_token_id=None))
    assert refused == error("prompt_empty", "the prompt is empty; input.on_empty_prompt is `error`")


def test_the_error_of_the_prompt_goes_before_that_of_the_target() -> None:
    no_prompt, no_target = RowError("prompt_null", "no prompt"), RowError("target_null", "no target")
    assert scored(Prompt(None, no_prompt), Prompt(None, no_target), RULES) == Prompt(None, no_prompt)
    assert scored(prompt(1), Prompt(None, no_target), RULES) == Prompt("text", no_target)


# Long ones: prompt and target together may have one token more than there are positions


@pytest.mark.parametrize("rule", ["error", "truncate_left", "truncate_right"])
def test_what_just_fits_the_context_is_left_alone(rule: str) -> None:
    limits = RULES._replace(on_long_prompt=rule)
    assert scored(prompt(1, 2, 3), prompt(*[9] * 6), limits) == Prompt("text", (1, 2, 3), False, (9,) * 6)
    assert scored(prompt(1), prompt(*[9] * 8), limits) == Prompt("text", (1,), False, (9,) * 8)
    assert self_scored(prompt(*range(8)), (BOS,), limits) == Prompt("text", (BOS,), False, tuple(range(8)))
    assert self_scored(prompt(*range(9)), (), limits) == Prompt("text", (0,), False, tuple(range(1, 9)))


def test_what_is_too_long_is_an_error_that_says_the_lengths() -> None:
    way_out = "the model's context 8; shorten it or set input.on_long_prompt"
    assert scored(prompt(*range(4)), prompt(*[9] * 6), RULES) == error(
        "prompt_too_long", f"the prompt has 4 tokens and its target 6, {way_out}"
    )._replace(target_token_ids=(9,) * 6)
    for given, count in (((BOS,), 9), ((), 10)):
        expected = error("prompt_too_long", f"the prompt has {count} tokens, {way_out}")
        assert self_scored(prompt(*range(count)), given, RULES) == expected


@pytest.mark.parametrize("rule", ["error", "truncate_left", "truncate_right"])
def test_a_target_that_leaves_no_room_for_a_prompt_is_an_error(rule: str) -> None:
    message = "the target has 9 tokens, the model's context 8; shorten it"
    found = scored(prompt(1), prompt(*range(9)), RULES._replace(on_long_prompt=rule))
    assert found == error("target_too_long", message)


def test_a_long_prompt_is_cut_to_make_room_for_the_target() -> None:
    left, right = (RULES._replace(on_long_prompt=f"truncate_{side}") for side in ("left", "right"))
    assert scored(prompt(*range(9)), prompt(*[9] * 6), left) == Prompt("text", (6, 7, 8), True, (9,) * 6)
    assert scored(prompt(*range(9)), prompt(*[9] * 6), right) == Prompt("text", (0, 1, 2), True, (9,) * 6)


def test_a_long_prompt_that_is_scored_itself_is_cut_to_what_can_be() -> None:
    left, right = (RULES._replace(on_long_prompt=f"truncate_{side}") for side in ("left", "right"))
    assert self_scored(prompt(*range(12)), (BOS,), left) == Prompt("text", (BOS,), True, tuple(range(4, 12)))
    assert self_scored(prompt(*range(12)), (BOS,), right) == Prompt("text", (BOS,), True, tuple(range(8)))
    assert self_scored(prompt(*range(12)), (), left) == Prompt("text", (3,), True, tuple(range(4, 12)))
    assert self_scored(prompt(*range(12)), (), right) == Prompt("text", (0,), True, tuple(range(1, 9)))


# In a run


def test_a_scored_prompt_is_a_row_like_others(tmp_path: Path, demo: Tokenizer) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["The quiet fox"])
    [row] = run_score(tmp_path, source, SCORE)
    tokens = ids(demo, "The quiet fox")
    count = len(tokens)
    assert {key: row[key] for key in row if key not in ("seed", "top_probs", "top_token_ids")} == {
        "row_id": "r0",
        "row_index": 0,
        "strategy": "score",
        "sample_index": 0,
        "status": "ok",
        "error_type": None,
        "error_message": None,
        "prompt": "The quiet fox",
        "text": "The quiet fox",
        "prompt_token_ids": [BOS],
        "token_ids": tokens,
        "finish_reason": "scored",
        "stop_match": None,
        "num_prompt_tokens": 1,
        "num_generated_tokens": count,
        "token_logprobs": [-float(step) for step in range(count)],
        "sampling_logprobs": None,
        "token_ranks": [*range(1, count + 1)],
        "entropies": [float(step) for step in range(count)],
        "cumulative_logprob": -float(sum(range(count))),
        "sequence_score": None,
        "perplexity": pytest.approx(math.exp((count - 1) / 2)),
        "prompt_logprobs": None,
    }
    assert len(row["top_probs"]) == len(row["top_token_ids"]) == count
    metadata = pq.read_metadata(tmp_path / "out" / "data" / "part-00000.parquet").metadata
    assert metadata[b"batchgen.schema_version"] == b"2"  # the perplexity is new in it


def test_targets_are_tokenised_on_their_own_and_shown_as_text(tmp_path: Path, demo: Tokenizer) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["Every bee", ""], answer=[" sings", "The fox"])
    rows = run_score(tmp_path, source, ANSWER, SCORE | {"name": "all"}, SCORE | {"name": "rest", "add_bos": False})
    given = [(row["strategy"], row["prompt"], row["text"], row["prompt_token_ids"], row["token_ids"]) for row in rows]
    bee, sings = ids(demo, "Every bee"), ids(demo, " sings")
    assert given[:4] == [
        ("score", "Every bee", " sings", bee, sings),
        ("all", "Every bee", "Every bee", [BOS], bee),
        ("rest", "Every bee", demo.decode(bee[1:]), bee[:1], bee[1:]),
        ("score", "", "The fox", [BOS], ids(demo, "The fox")),
    ]
    assert [row["error_type"] for row in rows[4:]] == ["target_empty", "target_empty"]


@pytest.mark.parametrize("type_", [pa.list_(pa.int16()), pa.large_list(pa.uint64())])
def test_a_target_may_be_token_ids(tmp_path: Path, type_: pa.DataType) -> None:
    answers = pa.array([[5, 6], [], [5, 768], [5, None], None], type_)
    source = write_prompts(tmp_path / "p.parquet", ["Every bee"] * 5, answer=answers)
    rows = run_score(tmp_path, source, ANSWER)
    assert rows[0]["token_ids"] == [5, 6]
    assert [(row["error_type"], row["error_message"]) for row in rows[1:]] == [
        ("target_empty", "the target is empty: there is nothing to score"),
        ("token_id_out_of_range", "token id 768 is outside the vocabulary of 768 tokens (0..767)"),
        ("token_id_out_of_range", "a token id in column `answer` is null (row 3 of the input)"),
        ("target_null", "column `answer` is null (row 4 of the input)"),
    ]


def test_bad_targets_are_error_rows_of_their_strategy(tmp_path: Path) -> None:
    answers = [None, 7, "\ud800", "", ["a"], {"a": 1}, "fine", "x " * 200]
    lines = [json.dumps({"id": f"r{i}", "prompt": "Every bee", "answer": value}) for i, value in enumerate(answers)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = run_score(tmp_path, tmp_path / "rows.jsonl", ANSWER, GREEDY)
    assert [row["error_type"] for row in rows if row["strategy"] == "score"] == [
        "target_null",
        "target_not_text",
        "target_not_unicode",
        "target_empty",
        "target_not_token_ids",
        "target_not_text",
        None,
        "target_too_long",
    ]
    assert [row["error_type"] for row in rows if row["strategy"] == "greedy"] == [None] * 8
    assert rows[2]["error_message"] == "column `answer` must be text, but is a number (row 1 of the input)"


def test_a_bad_prompt_is_an_error_row_of_a_score_too(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", [None, "x " * 400], answer=["a", "b"])
    rows = run_score(tmp_path, source, ANSWER, SCORE | {"name": "all"})
    assert [row["error_type"] for row in rows] == ["prompt_null"] * 2 + ["prompt_too_long"] * 2


def test_truncated_rows_are_counted_once(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["word " * 300, "Every bee", "Today"], answer=["a", "b " * 126, "c"])
    inputs = {"path": str(source), "on_long_prompt": "truncate_left"}
    finished = run_echo(
        make_job(source, tmp_path / "out", strategies=[ANSWER, SCORE | {"name": "all"}, GREEDY], input=inputs)
    )
    assert finished.manifest["totals"]["truncated_prompts"] == 2
    counts = {
        (row["row_index"], row["strategy"]): row["num_prompt_tokens"] + row["num_generated_tokens"]
        for row in read_output(tmp_path / "out").to_pylist()
    }
    assert [counts[0, "score"], counts[0, "all"], counts[1, "score"]] == [129, 129, 129]


def test_scored_tokens_are_in_the_sums_and_the_query_of_the_readme_gives_their_perplexity(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["The quiet fox", "Every bee", None])
    rows = [row for row in run_score(tmp_path, source, SCORE) if row["status"] == "ok"]
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    tokens, logprob = (sum(row[key] for row in rows) for key in ("num_generated_tokens", "cumulative_logprob"))
    sums = manifest["strategies"]["score"]
    assert manifest["totals"]["generated_tokens"] == sums["generated_tokens"] == tokens
    assert (sums["sum_logprob"], sums["drawn_tokens"], sums["prompt_tokens"]) == (logprob, 0, 2)
    query = (Path(__file__).parent.parent / "README.md").read_text().split('duckdb.sql(\\"')[1].split('\\"')[0]
    [(_, _, found, perplexity)] = duckdb.sql(query.replace("out/demo", str(tmp_path / "out"))).fetchall()
    assert (found, perplexity) == (tokens, pytest.approx(math.exp(-logprob / tokens), abs=0.0005))


def test_a_column_may_be_prompt_and_target_and_kept(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["Every bee"], topic=["bees"])
    [row] = run_score(tmp_path, source, SCORE | {"target_column": "topic"}, keep_columns=["topic"])
    assert (row["text"], row["topic"]) == ("bees", "bees")
    assert part_bytes(tmp_path / "out").keys() == {"part-00000.parquet"}


def test_a_completion_that_is_scored_has_the_probabilities_it_was_generated_with(tmp_path: Path) -> None:
    """The output of one job is the input of the next: token ids after token ids, by the engine itself."""
    source = write_prompts(tmp_path / "p.parquet", ["The quiet fox", "Every bee", "I skip across the"])
    long = GREEDY | {"max_new_tokens": 16}
    run(make_job(source, tmp_path / "out", strategies=[long]), here)
    generated = read_output(tmp_path / "out")
    columns = {"token_ids_column": "prompt_token_ids", "id_column": "row_id"}
    again = {"path": str(tmp_path / "out" / "data"), **columns}
    score = SCORE | {"target_column": "token_ids"}
    run(make_job(source, tmp_path / "scored", input=again, strategies=[score]), here)
    rescored = read_output(tmp_path / "scored")
    for name in ("row_id", "prompt", "text", "prompt_token_ids", "token_ids", "token_ranks", "top_token_ids"):
        assert rescored[name].to_pylist() == generated[name].to_pylist()
    for name in ("token_logprobs", "entropies", "cumulative_logprob", "perplexity"):
        for found, expected in zip(rescored[name].to_pylist(), generated[name].to_pylist(), strict=True):
            assert found == pytest.approx(expected, abs=1e-4)
    assert rescored["token_ranks"].to_pylist() == [[1] * len(ids) for ids in generated["token_ids"].to_pylist()]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "answr",
            ["a"],
            "column `answer` is missing in p.parquet; found `id`, `prompt`, `answr`; did you mean `answr`? "
            "Set target_column of strategy `score`.",
        ),
        (
            "answer",
            [1.5],
            "column `answer` is double in p.parquet, but a target must be text or a list of token ids "
            "(target_column of strategy `score`). Cast it in the input, or use another column.",
        ),
    ],
)
def test_a_target_column_that_cannot_be_used_is_refused(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["Every bee"], **{column: values})
    with pytest.raises(InputError) as refused:
        run_score(tmp_path, source, ANSWER)
    assert str(refused.value) == message
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_start_token_is_refused_unless_the_first_token_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in DEMO.glob("*.json"):
        (folder / file.name).write_text(file.read_text().replace('"bos_token_id": 767', '"bos_token_id": null'))
    (folder / "model.safetensors").symlink_to(DEMO / "model.safetensors")
    source = write_prompts(tmp_path / "p.parquet", ["Every bee"])
    job = {"model": str(folder), "input": {"path": str(source), "on_empty_prompt": "error"}}
    with pytest.raises(ConfigError, match=r"has none \(strategy `score`\)\. Set `add_bos: false`"):
        make_plan(make_job(source, tmp_path / "out", **job, strategies=[SCORE]))
    run_echo(make_job(source, tmp_path / "out", **job, strategies=[SCORE | {"add_bos": False}]))
    assert read_output(tmp_path / "out")["finish_reason"].to_pylist() == ["scored"]


def test_shards_of_scored_texts_are_planned_for_the_longest(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["Today"] * 9000)
    output = {"path": str(tmp_path / "out"), "top_k": 1000}
    longest = GREEDY | {"max_new_tokens": 128}
    planned = [
        make_plan(make_job(source, tmp_path / "out", strategies=[strategy], output=output, run={})).shard_rows
        for strategy in (SCORE, longest, GREEDY)
    ]
    assert planned[0] == planned[1] < planned[2]
