"""Error rows computed again, beside their parts: what is mended, what stays, and that nothing else is touched."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline import cli, job
from pipeline.errors import InputError, OutputError
from pipeline.records import Request, Response, RowError
from pipeline.replay import replay
from pipeline.retry import Retried, carry_out, look
from pipeline.shard import Generates, Part, Poisoned, Setup, Shard, make_engine
from pipeline.tokenizer import Tokenizer
from pipeline.verify import verify
from tests.flows import part_bytes, write_prompts
from tests.forgery import PROMPTS, STRATEGIES, edit, forge, read_part, run_demo, seal, write_part

ROOT = Path(__file__).parent.parent
ILL = ("Every bee", "I skip across the", "Today")  # in all three parts; prompt r2 is null


@dataclass(frozen=True)
class IllEngine:
    """Answers as the engine behind it, but for some prompts, where it says that a process died."""

    engine: Generates
    ill: frozenset[tuple[int, ...]]

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        return [
            Response(RowError("process_died", "it was ill")) if request.prompt_token_ids in self.ill else response
            for request, response in zip(requests, self.engine.generate(requests), strict=True)
        ]


def ill_on(*prompts: str) -> Callable[[Setup, Tokenizer], IllEngine]:
    """An engine maker; its engine fails on these prompts."""

    def make(setup: Setup, tokenizer: Tokenizer) -> IllEngine:
        return IllEngine(make_engine(setup, tokenizer), frozenset(map(tuple, tokenizer.encode(prompts))))

    return make


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with three rows that a second attempt can mend, and one that it cannot."""
    return run_demo(tmp_path_factory.mktemp("ill"), engine_maker=ill_on(*ILL))


@pytest.fixture
def folder(ill: Path, tmp_path: Path) -> Path:
    return shutil.copytree(ill, tmp_path / "out")


@pytest.fixture(scope="module")
def mended(ill: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after a retry that mended what can be mended."""
    folder = shutil.copytree(ill, tmp_path_factory.mktemp("mended") / "out")
    retry(folder)
    return folder


def retry(folder: Path, *error_types: str, execute: job.Executor = job.here, **settings: Any) -> Retried:
    outlook = look(folder, error_types)
    assert outlook is not None
    return carry_out(outlook, execute, **settings)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file but those of retries, with its content and age."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "retries" not in path.parts]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def rows_of(*parts: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(part).replace_schema_metadata(None) for part in parts]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


class StoppedError(Exception):
    """Raised by an executor that stops early."""


def stop_after(count: int) -> job.Executor:
    """An executor that dies after this many shards."""

    def execute(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        yield from job.here(open_worker, shards[:count])
        raise StoppedError

    return execute


def condemned(poisoned: Poisoned) -> job.Executor:
    """An executor that knows these rows to kill."""

    def execute(make_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        worker = make_worker()
        yield from (worker(shard, poisoned) for shard in shards)

    return execute


def test_a_retry_gives_exactly_the_error_rows_and_as_an_undisturbed_run_gives_them(mended: Path, sound: Path) -> None:
    again = rows_of(*sorted((mended / "retries" / "0001" / "data").iterdir()))
    assert [(row["row_id"], row["status"]) for row in again] == [
        (row_id, status)
        for row_id, status in [("r1", "ok"), ("r2", "error"), ("r4", "ok"), ("r5", "ok")]
        for _ in range(8)
    ]
    undisturbed = [row for row in rows_of(sound / "data") if row["row_id"] in ("r1", "r2", "r4", "r5")]
    exact = ("row_index", "strategy", "sample_index", "token_ids", "text", "finish_reason", "seed", "error_type")
    for name in exact:
        assert [row[name] for row in again] == [row[name] for row in undisturbed], name
    for row, other in zip(again, undisturbed, strict=True):
        assert row["token_logprobs"] == pytest.approx(other["token_logprobs"], abs=1e-4)
        assert repr(row["topic"]) == repr(other["topic"])


def test_nothing_that_was_there_before_is_touched(folder: Path) -> None:
    before = files(folder)
    retry(folder)
    assert files(folder) == before


def test_rows_that_killed_their_replicas_are_proven_and_mended_by_the_retry_in_which_they_do_not(
    tmp_path: Path, sound: Path
) -> None:
    killed, hung = RowError("killed_replica", "it was killed"), RowError("hung", "it never ended")
    folder = run_demo(tmp_path, execute=condemned({1: killed, 4: hung, 5: killed}))
    assert verify(folder).is_proven
    retry(folder, "killed_replica", "hung", execute=condemned({5: killed}))
    retry(folder, "killed_replica")
    assert verify(folder).is_proven
    again = [rows_of(*sorted((folder / "retries" / name / "data").iterdir())) for name in ("0001", "0002")]
    assert [[(row["row_id"], row["error_type"]) for row in rows[::8]] for rows in again] == [
        [("r1", None), ("r4", None), ("r5", "killed_replica")],
        [("r5", None)],
    ]
    expected = {(row["row_id"], row["strategy"], row["sample_index"]): row["text"] for row in rows_of(sound / "data")}
    for row in again[0][:16] + again[1]:
        assert row["text"] == expected[row["row_id"], row["strategy"], row["sample_index"]]


def test_the_manifest_of_a_retry_counts_its_own_rows(mended: Path) -> None:
    manifest = json.loads((mended / "retries" / "0001" / "_manifest.json").read_text())
    assert manifest["retry"] == "0001"
    assert manifest["error_types"] == []
    assert manifest["fingerprint"] == json.loads((mended / "_manifest.json").read_text())["fingerprint"]
    tokens = sum(row["num_generated_tokens"] for row in rows_of(mended / "retries" / "0001" / "data"))
    assert manifest["totals"] == {
        "input_rows": 4,
        "rows": 32,
        "ok": 24,
        "errors": 8,
        "truncated_prompts": 0,
        "generated_tokens": tokens,
    }
    assert [(part["key"], part["rows"]) for part in manifest["parts"]] == [
        ("data/part-00000.parquet", 16),
        ("data/part-00001.parquet", 16),
    ]


def test_what_a_retry_left_in_error_is_counted(folder: Path) -> None:
    retried = retry(folder, engine_maker=ill_on("Today"))
    assert (retried.manifest["totals"]["errors"], retried.num_errors) == (16, 16)


def test_every_completion_is_ok_once_in_data_and_retries_together(folder: Path, sound: Path) -> None:
    """The query of docs/verify.md for completions."""
    retry(folder, engine_maker=ill_on("Today", "Every bee"))
    retry(folder, "process_died")
    where = f"['{folder}/data/*.parquet', '{folder}/retries/*/data/*.parquet']"
    query = f"SELECT row_id, strategy, sample_index, text FROM read_parquet({where}) WHERE status = 'ok' ORDER BY ALL"
    found = duckdb.sql(query).fetchall()
    wanted = duckdb.sql(
        f"SELECT row_id, strategy, sample_index, text FROM '{sound}/data/*.parquet' WHERE status = 'ok' ORDER BY ALL"
    ).fetchall()
    assert found == wanted
    assert len(found) == 48


def test_the_newest_state_of_every_row_is_one_query(folder: Path) -> None:
    """The query of docs/verify.md for all rows."""
    retry(folder, engine_maker=ill_on("Today", "Every bee"))
    retry(folder, "process_died", engine_maker=ill_on("Today"))
    where = f"['{folder}/data/*.parquet', '{folder}/retries/*/data/*.parquet']"
    query = (
        f"SELECT row_index, status, error_type FROM read_parquet({where}, filename=true) QUALIFY row_number() OVER "
        "(PARTITION BY row_index, strategy, sample_index ORDER BY filename DESC) = 1 ORDER BY row_index"
    )
    rows = duckdb.sql(query).fetchall()
    assert len(rows) == 56
    errors = {(index, type_) for index, status, type_ in rows if status == "error"}
    assert errors == {(2, "prompt_null"), (5, "process_died")}


def test_readers_of_data_see_every_row_once_as_before(mended: Path) -> None:
    assert len(rows_of(mended / "data")) == 56
    assert sorted(path.name for path in (mended / "data").iterdir()) == [f"part-0000{n}.parquet" for n in range(3)]


def test_what_will_fail_again_is_known_before_a_row_is_computed(ill: Path) -> None:
    outlook = look(ill)
    assert outlook is not None
    assert outlook.counts == {"process_died": 24, "prompt_null": 8}
    assert outlook.certain == {"prompt_null": 8}
    assert (outlook.num_left_out, outlook.is_resumed, outlook.retry.name) == (0, False, "0001")
    assert not (ill / "retries").exists()


def test_only_errors_of_the_chosen_types_are_computed(folder: Path) -> None:
    outlook = look(folder, ["process_died"])
    assert outlook is not None
    assert (outlook.counts, outlook.num_left_out) == ({"process_died": 24}, 8)
    retried = carry_out(outlook, job.here)
    assert (retried.manifest["totals"]["rows"], retried.manifest["totals"]["errors"]) == (24, 0)
    assert retried.num_errors == 8
    with pytest.raises(InputError, match=r"has the error type `process_died`; there are `prompt_null` 8\."):
        look(folder, ["process_died"])


def test_a_later_retry_computes_only_what_is_still_an_error(folder: Path) -> None:
    retry(folder, engine_maker=ill_on("Today"))
    outlook = look(folder)
    assert outlook is not None
    assert (outlook.retry.name, outlook.counts) == ("0002", {"process_died": 8, "prompt_null": 8})
    assert outlook.retry.parts == {"data/part-00000.parquet": 8, "data/part-00001.parquet": 8}


def test_only_the_failed_strategy_is_computed_with_the_prompt_cut_as_for_all_of_them(tmp_path: Path) -> None:
    """A long prompt leaves room for the longest completion of all strategies, also of those that did not fail."""

    @dataclass(frozen=True)
    class FailsOnGreedy:
        engine: Generates

        def generate(self, requests: Sequence[Request]) -> list[Response]:
            died = Response(RowError("process_died", "it was ill"))
            answers = zip(requests, self.engine.generate(requests), strict=True)
            return [died if request.strategy.name == "greedy" else response for request, response in answers]

    long = ["Every bee likes nectar. " * 60]
    source = write_prompts(tmp_path / "long.parquet", long, topic=["t"])
    kept = {"path": str(source), "id_column": "id", "keep_columns": ["topic"], "on_long_prompt": "truncate_left"}
    changes: dict[str, Any] = {"input": kept, "strategies": [STRATEGIES[0], {**STRATEGIES[1], "max_new_tokens": 30}]}
    undisturbed = run_demo(tmp_path, **changes)
    run_demo(
        tmp_path,
        engine_maker=lambda setup, tokenizer: FailsOnGreedy(make_engine(setup, tokenizer)),
        **changes,
        output={"path": str(tmp_path / "failed"), "top_k": 4, "prompt_logprobs": True},
    )
    folder = tmp_path / "failed"
    retry(folder)
    [again] = rows_of(folder / "retries" / "0001" / "data")
    [wanted, *_] = rows_of(undisturbed / "data")
    for name in ("strategy", "prompt_token_ids", "token_ids", "text", "seed"):
        assert again[name] == wanted[name]
    assert again["num_prompt_tokens"] == 128 + 1 - 30


def test_an_error_may_become_another_one(folder: Path) -> None:
    @dataclass(frozen=True)
    class OtherEngine:
        def generate(self, requests: Sequence[Request]) -> list[Response]:
            return [Response(RowError("out_of_memory", "too large"))] * len(requests)

    retry(folder, "process_died", engine_maker=lambda setup, tokenizer: OtherEngine())
    outlook = look(folder)
    assert outlook is not None
    assert outlook.counts == {"out_of_memory": 24, "prompt_null": 8}


def test_a_run_without_errors_has_nothing_to_retry(tmp_path: Path) -> None:
    folder = run_demo(tmp_path, input={"path": str(tmp_path / "prompts.parquet"), "prompt_column": "id"})
    assert look(folder) is None
    assert not (folder / "retries").exists()


def test_an_unfinished_run_is_refused(folder: Path) -> None:
    (folder / "_SUCCESS").unlink()
    with pytest.raises(OutputError, match="is not finished, so its error rows are not all known"):
        look(folder)


def test_a_changed_input_is_refused_and_nothing_written(tmp_path: Path) -> None:
    folder = run_demo(tmp_path, strategies=STRATEGIES[:1])
    table = pq.read_table(tmp_path / "prompts.parquet")
    pq.write_table(table, tmp_path / "prompts.parquet", compression="zstd")
    outlook = look(folder)
    assert outlook is not None
    with pytest.raises(OutputError, match=r"cannot be computed as they were.*\n  inputs\.0 .*: "):
        carry_out(outlook, job.here)
    assert not (folder / "retries").exists()


@pytest.mark.parametrize("num_parts", [0, 1, 2])
def test_a_stopped_retry_goes_on_to_the_bytes_of_an_undisturbed_one(folder: Path, mended: Path, num_parts: int) -> None:
    with pytest.raises(StoppedError):
        retry(folder, execute=stop_after(num_parts))
    outlook = look(folder)
    assert outlook is not None
    assert (outlook.is_resumed, outlook.retry.name, outlook.counts.total()) == (True, "0001", 32)
    assert verify(folder).is_proven
    carry_out(outlook, job.here)
    assert part_bytes(folder / "retries" / "0001") == part_bytes(mended / "retries" / "0001")
    assert verify(folder).is_proven


KILLED = """
import os, signal, sys
from pipeline import job
from pipeline.retry import carry_out, look
def execute(open_worker, shards):
    yield from job.here(open_worker, shards[:int(sys.argv[2])])
    os.kill(os.getpid(), signal.SIGKILL)
carry_out(look(sys.argv[1]), execute)
"""


def test_a_retry_that_was_killed_is_finished_by_the_next(folder: Path, mended: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), "1"], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    again = folder / "retries" / "0001"
    assert not (again / "_SUCCESS").exists()
    assert len(part_bytes(again)) == 1
    retry(folder)
    assert part_bytes(again) == part_bytes(mended / "retries" / "0001")
    assert verify(folder).is_proven


def test_other_types_must_wait_until_a_begun_retry_is_finished(folder: Path) -> None:
    with pytest.raises(StoppedError):
        retry(folder, "process_died", execute=stop_after(1))
    with pytest.raises(
        OutputError, match=r"retry 0001 of .* is not finished.*retry-errors .* --error-type process_died"
    ):
        look(folder, ["prompt_null"])
    outlook = look(folder)  # asked for nothing in particular: goes on
    assert outlook is not None
    assert outlook.counts == {"process_died": 24}


def test_a_folder_without_a_plan_from_a_retry_that_died_first_is_used(folder: Path) -> None:
    (folder / "retries" / "0001" / "data").mkdir(parents=True)
    retry(folder)
    assert verify(folder).is_proven


# With verify and replay


def wrong(folder: Path) -> dict[str, tuple[str, str]]:
    return {
        outcome.check: (outcome.first.place, outcome.first.message)
        for outcome in verify(folder).outcomes
        if outcome.first
    }


@pytest.fixture
def damaged(mended: Path, tmp_path: Path) -> Path:
    """A copy of the mended run, to be damaged."""
    return shutil.copytree(mended, tmp_path / "out")


def test_a_run_with_retries_is_proven(mended: Path) -> None:
    report = verify(mended, num_rescored=5)
    assert report.is_proven
    assert {outcome.result for outcome in report.outcomes} == {"ok"}


def test_damage_in_a_retry_is_found_where_it_is(damaged: Path) -> None:
    again = damaged / "retries" / "0001"
    forge(again, lambda rows: rows[0].update(seed=1))
    assert list(wrong(damaged)) == ["seeds"]
    assert wrong(damaged)["seeds"][0] == "retries/0001/data/part-00000.parquet row 0 (row_id r1, greedy, sample 0)"


def test_a_row_that_was_no_error_has_no_place_in_a_retry(damaged: Path) -> None:
    again = damaged / "retries" / "0001"
    table, metadata = read_part(again / "data" / "part-00000.parquet")
    ok = read_part(damaged / "data" / "part-00000.parquet")[0].slice(0, 1)
    write_part(again / "data" / "part-00000.parquet", pa.concat_tables([ok, table]), metadata)
    seal(again)
    place, message = wrong(damaged)["rows"]
    assert place == "retries/0001/data/part-00000.parquet row 0 (row_id r0, greedy, sample 0)"
    assert message == "input row 0, strategy greedy, sample 0 does not belong here"


def test_a_part_of_a_retry_in_data_is_not_taken_for_one_of_the_run(damaged: Path) -> None:
    again = damaged / "retries" / "0001" / "data" / "part-00000.parquet"
    shutil.copy(again, damaged / "data" / "part-00003.parquet")
    assert list(wrong(damaged)) == ["names"]


def test_a_retry_of_other_rows_than_it_plans_is_found(damaged: Path) -> None:
    edit(damaged / "retries" / "0001" / "_plan.json", lambda plan: plan["parts"].pop())
    assert wrong(damaged)["retries"] == (
        "retries/0001",
        "it plans 0 rows of data/part-00001.parquet, but 16 were errors",
    )
    edit(damaged / "retries" / "0001" / "_plan.json", lambda plan: plan.update(fingerprint="x"))
    assert wrong(damaged)["retries"][1].startswith("it belongs to the run x, this is ")
    (damaged / "retries" / "0001" / "_plan.json").write_text("[]")
    assert "is damaged" in wrong(damaged)["retries"][1]


def test_a_mended_row_can_be_replayed(mended: Path, ill: Path) -> None:
    with pytest.raises(InputError, match="holds errors alone"):
        replay(ill, "r1")
    assert {verdict.result for verdict in replay(mended, "r1")} == {"identical"}


# The command


def test_the_command_says_what_it_will_do_and_exits_by_what_is_left(folder: Path) -> None:
    edit(folder / "_plan.json", lambda plan: plan["job"]["run"].update(max_error_rate=0.05))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "retry-errors", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr  # 8 of 56 rows are more than 5 %
    assert "retry 0001: 32 error rows: process_died 24, prompt_null 8" in done.stderr
    assert "8 of them will fail again the same way (prompt_null)" in done.stderr
    assert "32 rows: 24 ok, 8 errors again · 8 error rows left in the run · " in done.stdout
    assert verify(folder).is_proven


def test_the_command_has_nothing_to_do_without_errors(tmp_path: Path) -> None:
    folder = run_demo(tmp_path, input={"path": str(tmp_path / "prompts.parquet"), "prompt_column": "id"})
    done = CliRunner().invoke(cli.main, ["retry-errors", str(folder)])
    assert (done.exit_code, done.output) == (0, f"no error rows are left, nothing to do · {folder}\n")
    assert len(PROMPTS) == 7
