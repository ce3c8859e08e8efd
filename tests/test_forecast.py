"""What `batchgen plan` says of a job, held against counts by hand and against the run itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from click.testing import CliRunner, Result

from pipeline.calibration import Trial, calibrate
from pipeline.cli import main
from pipeline.config import Job
from pipeline.errors import ErrorRateError
from pipeline.forecast import CacheNeeds, Forecast, calibrated, forecast, spread
from pipeline.job import checked_output
from pipeline.plan import Plan, make_plan
from pipeline.plan_screen import size, warnings
from pipeline.storage import LocalFolder
from tests.flows import echo, make_job, read_output, run_echo, write_prompts
from tests.test_status import partial_run

PROMPTS = ["The quiet fox", "Every bee", None, "", "I skip across the", "Today", "x" * 2000, "In the stable"]
GREEDY = {"name": "greedy", "type": "greedy", "max_new_tokens": 4}


def seen(work: Job, num_rows: int = 1000) -> Forecast:
    plan = make_plan(work)
    return forecast(plan, checked_output(plan), num_rows)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.parquet", PROMPTS)


def test_what_is_said_of_the_prompts_is_what_the_run_does_with_them(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    found = seen(work)
    run = run_echo(work)
    rows = read_output(tmp_path / "out").to_pylist()
    lengths = [row["num_prompt_tokens"] for row in rows if row["strategy"] == "greedy" and row["status"] == "ok"]
    assert found.prompt_tokens is not None
    assert found.prompt_tokens.total == sum(lengths)
    assert found.prompt_tokens.longest == max(lengths)
    assert found.prompt_tokens.p50 == sorted(lengths)[3]
    assert (found.too_long, found.truncated, found.empty) == (1, 0, 1)
    assert found.errors == {"prompt_null": 3, "prompt_too_long": 3}
    assert sum(found.errors.values()) == run.manifest["totals"]["errors"]
    assert found.is_exact


def test_prompts_that_will_be_cut_are_counted(source: Path, tmp_path: Path) -> None:
    cut = {"path": str(source), "id_column": "id", "on_long_prompt": "truncate_left"}
    work = make_job(source, tmp_path / "out", input=cut)
    found = seen(work)
    assert (found.truncated, found.too_long) == (1, 0)
    assert run_echo(work).manifest["totals"]["truncated_prompts"] == 1


def test_new_tokens_are_at_most_what_strategies_and_positions_allow(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["Today", "Today", None])
    strategies = [
        GREEDY,
        {"name": "samples", "type": "sampling", "max_new_tokens": 6, "num_return_sequences": 2},
        {"name": "long", "type": "greedy", "max_new_tokens": 500},
        {"name": "counted", "type": "greedy", "max_length": 3},
        {"name": "next", "type": "next_token"},
        {"name": "given", "type": "score"},
    ]
    found = seen(make_job(source, tmp_path / "out", strategies=strategies))
    length = found.prompt_tokens.longest if found.prompt_tokens else 0
    assert {each.name: each.new_tokens for each in found.needs} == {
        "greedy": 2 * 4,
        "samples": 2 * 2 * 6,
        "long": 2 * (128 + 1 - length),
        "counted": 2 * (3 - length),
        "next": 2,
        "given": 2 * length,
    }
    assert {each.name: each.rows for each in found.needs} == {
        "greedy": 3,
        "samples": 6,
        "long": 3,
        "counted": 3,
        "next": 3,
        "given": 3,
    }


def test_a_sample_is_spread_over_the_input_and_scaled_up(tmp_path: Path) -> None:
    assert list(spread(100, 1000, 8)) == [(0, 100)]
    assert list(spread(100, 8, 4)) == [(0, 2), (25, 27), (50, 52), (75, 77)]
    assert list(spread(100, 3, 8)) == [(0, 1), (33, 34), (66, 67)]
    source = write_prompts(tmp_path / "prompts.parquet", ["Today"] * 400)
    found = seen(make_job(source, tmp_path / "out", strategies=[GREEDY]), 40)
    assert (found.num_sampled, found.is_exact) == (40, False)
    assert found.needs[0].new_tokens == 400 * 4


def cache_of(tmp_path: Path, strategies: list[dict[str, Any]], **run: Any) -> CacheNeeds:
    source = write_prompts(tmp_path / "prompts.parquet", ["Today"] * 400)
    found = seen(make_job(source, tmp_path / "out", strategies=strategies, run=run))
    assert found.cache is not None
    return found.cache


def test_the_cache_is_as_large_as_batch_shard_and_limit_allow(tmp_path: Path) -> None:
    """Keys and values of 64 floats in three layers."""
    full = cache_of(tmp_path, [GREEDY], shard_rows=400)
    assert full.token_bytes == 2 * 3 * 64 * 4
    assert full.rows == 128
    assert full.num_bytes == full.token_bytes * full.positions * 128
    assert cache_of(tmp_path, [GREEDY], shard_rows=10).rows == 10
    beams = {"name": "beams", "type": "beam_search", "max_new_tokens": 4, "num_beams": 5, "num_return_sequences": 3}
    assert cache_of(tmp_path, [GREEDY, beams], shard_rows=10).rows == 10 * (1 + 5)
    guided = {**beams, "guidance_scale": 1.5}
    assert cache_of(tmp_path, [guided], shard_rows=1).rows == 10
    little = 3 * full.token_bytes * full.positions / 2**30
    assert cache_of(tmp_path, [GREEDY], shard_rows=400, cache_gib=little).rows == 3
    assert cache_of(tmp_path, [beams], shard_rows=400, cache_gib=little).rows == 5
    assert cache_of(tmp_path, [GREEDY], shard_rows=400, batch_rows=7).rows == 7


def test_a_job_whose_errors_are_certain_to_stop_it_is_refused(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out", run={"max_error_rate": 0.1})
    with pytest.raises(ErrorRateError, match=r"25\.0% of the 24 rows .*prompt_null 3, prompt_too_long 3.*10\.0%"):
        seen(work)
    sampled = seen(work, 7)
    assert not sampled.is_exact
    assert "the run may stop with exit code 3" in warnings(sampled)[0]


# Calibration


def clock(*seconds: float) -> Iterator[float]:
    """Two looks for each trial, which take so many seconds."""
    now = 0.0
    for taken in seconds:
        yield now
        now += taken
        yield now


def planned(tmp_path: Path, num_rows: int, **changes: Any) -> tuple[Plan, LocalFolder]:
    source = write_prompts(tmp_path / "prompts.parquet", ["The quiet fox"] * num_rows)
    plan = make_plan(make_job(source, tmp_path / "out", **changes))
    return plan, LocalFolder(tmp_path / "out")


def test_trials_grow_until_one_is_long_enough_or_as_large_as_a_shard(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path, 200, run={"shard_rows": 50})
    times = clock(*[1.0] * 9)
    trials = calibrate(plan, folder, echo, lambda: next(times))
    assert [trial.rows for trial in trials] == [8, 16, 32, 50]
    assert [trial.tokens for trial in trials] == [8 * 6, 16 * 6, 32 * 6, 50 * 6]
    slow = clock(1.0, 3.0, 11.0, 1.0)
    assert [trial.seconds for trial in calibrate(plan, folder, echo, lambda: next(slow))] == [3.0, 11.0]
    assert not (tmp_path / "out").exists()


def test_one_row_is_enough_for_a_trial(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path, 1)
    assert [trial.rows for trial in calibrate(plan, folder, echo)] == [1]


def test_time_and_size_follow_from_the_last_two_trials(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path, 1000, run={"shard_rows": 100, "replicas": 3})
    trials = [Trial(8, 99.0, 1, 1), Trial(50, 100.0, 300, 5000), Trial(100, 180.0, 600, 9000)]
    takes = calibrated(forecast(plan, folder), "cpu", trials).takes
    assert takes is not None
    assert takes.replica_s == (1800.0, 2000.0)
    assert takes.run_s == (4 * 180.0, 4 * 200.0)  # one of three replicas has four of the ten shards
    assert takes.gpu_hours is None
    assert takes.output_bytes == (90_000, 100_000)


def test_gpu_hours_are_those_of_the_share_that_a_replica_has(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path, 1000, run={"shard_rows": 100, "gpus_per_replica": 0.5})
    takes = calibrated(forecast(plan, folder), "NVIDIA H100", [Trial(100, 360.0, 600, 9000)]).takes
    assert takes is not None
    assert takes.gpu_hours == (0.5, 0.5)
    assert takes.run_s is None


def test_only_what_is_left_of_a_run_is_estimated(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["The quiet fox"] * 40)
    work = make_job(source, tmp_path / "out", run={"shard_rows": 10})
    partial_run(work, 3)
    found = calibrated(seen(work), "cpu", [Trial(10, 5.0, 60, 900)])
    assert found.num_done == 3
    assert found.takes is not None
    assert found.takes.replica_s == (5.0, 5.0)


def test_sizes_are_said_in_their_largest_unit() -> None:
    assert [size(number) for number in (0, 1023, 1536, 3 << 30, 1 << 62)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3 GiB",
        "4.1e+03 PiB",
    ]


# The command


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plan", *map(str, arguments)])


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    source = write_prompts(tmp_path / "prompts.parquet", ["The quiet fox", "Every bee"] * 8)
    path = tmp_path / "job.yaml"
    path.write_text(
        f"model: demo\ninput: {{path: {source}, id_column: id}}\noutput: {{path: {tmp_path / 'out'}}}\n"
        "strategies: [{name: greedy, type: greedy, max_new_tokens: 5}]\nrun: {replicas: 2}\n"
    )
    return path


def test_the_command_does_not_even_import_ray(job_file: Path) -> None:
    script = "import sys; from pipeline.cli import main; main(standalone_mode=False); print('ray' in sys.modules)"
    plan = [sys.executable, "-c", script, "plan", str(job_file), "--json"]
    said = subprocess.run(plan, capture_output=True, text=True, check=True).stdout
    document, _, has_ray = said.strip().rpartition("\n")
    assert (json.loads(document)["input"]["rows"], has_ray) == (16, "False")


def test_the_command_calibrates_with_the_real_model_starts_no_ray_and_writes_nothing(
    job_file: Path, tmp_path: Path
) -> None:
    done = command(job_file, "--calibrate", "--json")
    assert done.exit_code == 0, done.output
    assert not ray.is_initialized()
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert document["trials"][0]["rows"] == 8
    assert 0 < document["trials"][0]["tokens"] <= 8 * 5
    assert document["takes"]["replica_s"][0] > 0
    assert document["takes"]["gpu_hours"] is None
    assert not (tmp_path / "out").exists()
    plain = command(job_file)
    assert plain.stdout.splitlines()[-2:] == ["strategy\ttype\trows\tnew tokens at most", "greedy\tgreedy\t16\t80"]
    assert "time and output size are not known without --calibrate" in plain.stderr
    assert plain.stderr.endswith("nothing was started\n")


@pytest.mark.parametrize(
    ("override", "exit_code", "words"),
    [
        ("input.prompt_column=promt", 2, "column `promt`"),
        ("model=./nowhere", 2, "`./nowhere` is not a folder"),
        ("strategies.0.max_new_tokens=0", 2, "max_new_tokens"),
        ("output.path=.", 2, "it is not a run of batchgen"),
    ],
)
def test_what_would_fail_later_is_refused(job_file: Path, override: str, exit_code: int, words: str) -> None:
    done = command(job_file, "--set", override)
    assert (done.exit_code, words in done.stderr) == (exit_code, True)


def test_the_output_of_another_job_is_refused(job_file: Path, tmp_path: Path) -> None:
    source = tmp_path / "prompts.parquet"
    run_echo(make_job(source, tmp_path / "out"))
    done = command(job_file)
    assert done.exit_code == 2
    assert "belongs to another job" in done.stderr
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 48
