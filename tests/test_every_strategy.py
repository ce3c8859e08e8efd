"""A run of every kind of strategy, some changed by columns of the input: proven, generated again, and damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest

from pipeline import job
from pipeline.errors import OutputError
from pipeline.records import row_seed
from pipeline.replay import replay
from pipeline.retry import look
from pipeline.strategies import Decoding, Score
from pipeline.verify import Report, verify
from tests.flows import make_job, write_prompts
from tests.forgery import Rows, edit, forge, recount

PROMPTS = ["The quiet fox", "I skip across the", "Count: one, two,", "Today"]
COLUMNS: dict[str, list[Any]] = {
    "limit": [3, None, 500, 0],  # the last one is a bad_override
    "penalty": [1.5, None, 1.2, None],
    "stops": [None, ["e"], None, None],
    "own": [None, 5, 5, None],
    "target": [" barks.", " river.", None, " is"],  # one target_null
}
STRATEGY_COLUMNS = {"max_new_tokens": "limit", "repetition_penalty": "penalty", "stop_strings": "stops", "seed": "own"}
BEAMS = {"type": "beam_search", "max_new_tokens": 6, "num_beams": 4, "num_return_sequences": 2}
ENDLESS = {"ignore_eos": True}
STRATEGIES: list[dict[str, Any]] = [
    {"name": "greedy", "type": "greedy", "max_new_tokens": 8, "min_new_tokens": 2, "forced_eos_token_id": 1},
    {"name": "guided", "type": "greedy", "max_length": 14, "guidance_scale": 1.5, "negative_prompt": "A dog"},
    {"name": "hot", "type": "sampling", "max_new_tokens": 6, "num_return_sequences": 2, "grid": {"top_p": [0.9, None]}},
    {"name": "beams", **BEAMS},
    {"name": "drawn", **BEAMS, "do_sample": True, "top_k": 20},
    {"name": "groups", **BEAMS, "num_beam_groups": 2, "diversity_penalty": 2.0},
    {"name": "forced", **BEAMS, "force_words": ["river", "horse", "street", "castle"]},
    {"name": "contrast", "type": "contrastive_search", "max_new_tokens": 6, "penalty_alpha": 0.6, "top_k": 4} | ENDLESS,
    {"name": "dola", "type": "dola", "max_new_tokens": 6, "dola_layers": "low"} | ENDLESS,
    {"name": "candidates", "type": "next_token", "stop_token_ids": list(range(768))},
    {"name": "own", "type": "score"},
    {"name": "target", "type": "score", "target_column": "target"},
]
UNKEPT = "not of greedy, guided, hot-top_p0.9, hot-top_poff, beams, drawn, groups, forced, contrast, dola, candidates: "


def run_every(folder: Path, keep_columns: list[str]) -> Path:
    """The output folder of the run."""
    source = write_prompts(folder / "prompts.parquet", PROMPTS, **COLUMNS)
    work = make_job(
        source,
        folder / "out",
        input={"path": str(source), "id_column": "id", "keep_columns": keep_columns},
        output={"path": str(folder / "out"), "top_k": 4, "prompt_logprobs": True},
        strategies=STRATEGIES,
        strategy_columns=STRATEGY_COLUMNS,
        seed=7,
    )
    job.run(work, job.here)
    return folder / "out"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, with the columns that changed strategies among its rows; not to be changed."""
    return run_every(tmp_path_factory.mktemp("kept"), ["limit", "penalty", "stops", "own"])


@pytest.fixture(scope="module")
def unkept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, of which only the input knows what changed."""
    return run_every(tmp_path_factory.mktemp("unkept"), [])


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(kept, tmp_path / "out")


def notes(report: Report) -> dict[str, tuple[str, str | None]]:
    return {outcome.check: (outcome.result, outcome.note) for outcome in report.outcomes}


def test_the_run_holds_every_type_of_strategy_ending_and_error_of_a_row(kept: Path) -> None:
    rows = pq.read_table(kept / "data").to_pylist()
    types = {strategy["type"] for strategy in STRATEGIES}
    assert types == {get_args(kind.model_fields["type"].annotation)[0] for kind in (*get_args(Decoding), Score)}
    assert {row["finish_reason"] for row in rows} == {"eos", "stop", "length", "context", "scored", None}
    assert {row["error_type"] for row in rows} >= {"bad_override", "target_null", "force_words_unmet"}


@pytest.mark.parametrize("which", ["kept", "unkept"])
def test_every_kind_of_row_is_proven_and_rescored(which: str, request: pytest.FixtureRequest) -> None:
    report = verify(request.getfixturevalue(which), num_rescored=1000)
    assert report.is_proven, [outcome.first for outcome in report.outcomes if outcome.first]
    found = notes(report)
    unchecked = {check: note for check, (result, note) in found.items() if result == "not checked"}
    if which == "kept":
        assert unchecked == {"retries": "there are none"}
        assert found["endings"] == ("ok", None)
    else:
        assert unchecked == {
            "retries": "there are none",
            "seeds": "rows may bring their own, in column `own`, which was not kept",
        }
        assert found["endings"][1] == UNKEPT + "columns that were not kept set `max_new_tokens`, `stop_strings`"


@pytest.mark.parametrize("which", ["kept", "unkept"])
@pytest.mark.parametrize("row_id", ["r0", "r1", "r2"])
def test_every_kind_of_row_is_identical_when_generated_again(
    which: str, row_id: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    stored = [row for row in pq.read_table(folder / "data").to_pylist() if row["row_id"] == row_id]
    verdicts = replay(folder, row_id)
    assert [(verdict.strategy, verdict.sample_index, verdict.result) for verdict in verdicts] == [
        (row["strategy"], row["sample_index"], "identical" if row["status"] == "ok" else "error row") for row in stored
    ]
    assert len([row for row in stored if row["status"] == "ok"]) >= 15


def test_a_row_cannot_be_generated_again_without_the_input_that_changed_it(tmp_path: Path) -> None:
    folder = run_every(tmp_path, [])
    write_prompts(tmp_path / "prompts.parquet", PROMPTS, **COLUMNS | {"limit": [4, None, 500, 0]})
    with pytest.raises(OutputError, match=r"cannot be computed as they were"):
        replay(folder, "r0")


def test_errors_of_columns_and_targets_are_certain_to_recur(kept: Path) -> None:
    outlook = look(kept)
    assert outlook is not None
    assert outlook.certain == outlook.counts
    assert set(outlook.counts) >= {"bad_override", "target_null", "force_words_unmet"}


def change(row_id: str, strategy: str, sample: int = 0, /, **values: Any) -> Callable[[Rows], None]:
    """Set columns of one row."""

    def damage(rows: Rows) -> None:
        key = (row_id, strategy, sample)
        [row] = [row for row in rows if (row["row_id"], row["strategy"], row["sample_index"]) == key]
        row.update(values)

    return damage


def drop_last_token(rows: Rows) -> None:
    """Let the row whose column allows 3 tokens have 2, as if that were its limit."""
    [row] = [row for row in rows if (row["row_id"], row["strategy"]) == ("r0", "dola")]
    for name, value in row.items():
        if isinstance(value, list) and not name.startswith("prompt"):
            row[name] = value[:-1]
    row |= {"num_generated_tokens": 2, "text": " bark"}
    recount(row)


DAMAGES: list[tuple[str, str, Callable[[Rows], None], str]] = [
    ("a text that was scored but ended", "endings", change("r0", "own", finish_reason="eos"), "must end as `scored`"),
    ("a score that stopped", "endings", change("r0", "target", stop_match="."), "must end as `scored`"),
    ("a score that was drawn", "status", change("r0", "target", sampling_logprobs=[0.0] * 4), "`sampling_logprobs` is"),
    (
        "contrast that was drawn",
        "status",
        change("r0", "contrast", sampling_logprobs=[0.0] * 3),
        "`sampling_logprobs` is",
    ),
    ("a score without a text", "status", change("r0", "own", text=None), "`text` is null"),
    ("a limit that is not that of the row", "endings", drop_last_token, "but nothing ends it there"),
    ("candidates that matched", "endings", change("r0", "candidates", stop_match="x"), "must end as `stop` after 1"),
    ("groups out of order", "totals", change("r0", "groups", 1, sequence_score=9.0), "sequence_score is 9.0, above "),
    ("a seed of the job", "seeds", change("r1", "dola", seed=row_seed(7, "r1", "dola", 0)), "seed is "),
]


@pytest.mark.parametrize(("check", "damage", "message"), [case[1:] for case in DAMAGES], ids=[c[0] for c in DAMAGES])
def test_damage_that_only_some_strategies_can_have_is_found(
    folder: Path, check: str, damage: Callable[[Rows], None], message: str
) -> None:
    forge(folder, damage)
    found = {outcome.check: outcome.first.message for outcome in verify(folder).outcomes if outcome.first}
    assert list(found) == [check]
    assert message in found[check]


def test_a_row_changed_by_its_column_differs_from_one_that_was_not(folder: Path) -> None:
    """The stored row keeps 3 tokens; another job, which lets it have 8, would have said more."""
    edit(folder / "_plan.json", lambda plan: plan["job"].update(strategy_columns={}))
    [verdict] = replay(folder, "r0", "dola")
    assert (verdict.result, verdict.step) == ("differs", 3)
    assert json.loads((folder / "_plan.json").read_text())["identity"]["strategy_columns"] == STRATEGY_COLUMNS
