"""The command as a user runs it, in processes of its own: output, exit codes, kills, Ctrl-C, resume."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from pipeline import job
from pipeline.jobfile import load_job
from tests.commands import ROOT, last_words, started, wait_for_line
from tests.flows import part_bytes, write_prompts

JOB = """
model: demo
input: {path: %s, id_column: id}
output: {path: unused}
strategies:
  - {name: greedy, type: greedy, max_new_tokens: 8}
  - {name: hot, type: sampling, max_new_tokens: 8, temperature: 1.5, num_return_sequences: 2}
  - {name: beams, type: beam_search, max_new_tokens: 8, num_beams: 4}
run: {shard_rows: 1, replicas: 2}
"""
PROMPTS = ["The quiet fox", "Every bee", "I skip across the", "Today", "Count: one, two,"] * 16
WholeRun = tuple[subprocess.CompletedProcess[str], dict[str, bytes]]


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    source = write_prompts(tmp_path / "prompts.parquet", PROMPTS)
    path = tmp_path / "job.yaml"
    path.write_text(JOB % source)
    return path


def batchgen(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | env, check=False)


def status(output: Path) -> tuple[int, dict[str, Any]]:
    """The exit code of `batchgen status --exit-status`, and what it says."""
    done = batchgen("status", output, "--json", "--exit-status")
    return done.returncode, json.loads(done.stdout)


def started_run(job_file: Path, output: Path) -> subprocess.Popen[bytes]:
    return started([sys.executable, "-m", "pipeline.cli", "run", str(job_file), "--output", str(output)])


def processes_of_session(leader: int) -> dict[int, str]:
    """Command lines of the living processes a command started, itself included, by process id."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """What a run that nothing happens to says, its log as JSON, and the bytes of its parts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = write_prompts(folder / "prompts.parquet", PROMPTS)
    (folder / "job.yaml").write_text(JOB % source)
    done = batchgen("run", folder / "job.yaml", "--output", folder / "out", "--log-json")
    assert done.returncode == 0, done.stderr
    return done, part_bytes(folder / "out")


@pytest.fixture
def undisturbed(whole_run: WholeRun) -> dict[str, bytes]:
    return whole_run[1]


def test_the_demo_job_runs_resumes_as_finished_and_shows_its_completions(tmp_path: Path) -> None:
    first = batchgen("run", "jobs/demo.yaml", "--output", tmp_path / "out")
    assert first.returncode == 0, first.stderr
    assert "511 rows: 511 ok, 0 errors" in first.stdout
    assert "\x1b" not in first.stdout + first.stderr
    assert first.stderr.count("data/part-") == 8
    again = batchgen("run", "jobs/demo.yaml", "--output", tmp_path / "out")
    assert again.returncode == 0
    assert again.stdout.startswith("already finished, nothing to do · 511 rows")
    shown = batchgen("head", tmp_path / "out", "-n", "3", "--json")
    rows = json.loads(shown.stdout)["rows"]
    assert [row["strategy"] for row in rows] == ["greedy", "no_repeats", "nucleus"]
    table = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert rows[0]["text"] == table[0]["text"]
    everything = json.loads(batchgen("head", tmp_path / "out", "-n", "600", "--json").stdout)["rows"]
    assert len(everything) == 511
    places = next(row for row in everything if row["strategy"] == "candidates")
    assert places["text"].count(" %") == 5
    lines = batchgen("head", tmp_path / "out", "-n", "3").stdout.splitlines()
    assert lines[0] == "row_id\tstrategy\t#\tprompt\ttext\tended by"
    assert len(lines) == 4


def test_with_log_json_every_line_on_stderr_is_an_object_and_each_shard_has_one(
    whole_run: WholeRun,
) -> None:
    lines = [json.loads(line) for line in whole_run[0].stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    shards = [line for line in lines if "part" in line]
    assert sorted(line["part"] for line in shards) == [f"data/{name}" for name in sorted(whole_run[1])]
    assert [line["done"] for line in shards] == list(range(1, 81))
    assert {(line["rows"], line["errors"], line["shards"]) for line in shards} == {(4, 0, 80)}


def test_the_query_that_the_summary_prints_works(
    whole_run: WholeRun,
) -> None:
    hint = whole_run[0].stdout.splitlines()[-1].removeprefix("query it: ")
    shown = subprocess.run(hint, shell=True, capture_output=True, text=True, check=True).stdout
    assert "perplexity" in shown
    assert "beams" in shown


def test_the_entry_point_for_clusters_is_the_same_command(job_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.generate", str(job_file), "--set", "strategies.0.top_p=0.9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "`top_p`" in done.stderr
    assert "type: sampling" in done.stderr


def test_a_driver_killed_half_way_resumes_to_the_undisturbed_bytes(
    job_file: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    process = started_run(job_file, tmp_path / "out")
    wait_for_line(process, "done=3/80")
    code, seen = status(tmp_path / "out")
    assert (code, seen["state"], seen["shards"]["planned"]) == (6, "in progress", 80)
    assert 3 <= seen["shards"]["done"] < 80
    assert seen["driver"].startswith(f"process {process.pid} on ")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = part_bytes(tmp_path / "out")
    assert seen["shards"]["done"] <= len(kept) < 80
    code, seen = status(tmp_path / "out")
    assert (code, seen["state"]) == (4, "stopped")
    assert len(kept) <= seen["shards"]["done"] < 80  # a replica may have outlived its driver by one
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    resumed = batchgen("run", job_file, "--output", tmp_path / "out")
    assert resumed.returncode == 0, resumed.stderr
    assert "of them already done" in resumed.stderr
    code, seen = status(tmp_path / "out")
    assert (code, seen["state"], seen["shards"]["done"], seen["driver"]) == (0, "finished", 80, None)
    assert part_bytes(tmp_path / "out") == undisturbed
    assert kept.items() <= undisturbed.items()


def test_ctrl_c_stops_cleanly_says_what_is_kept_and_the_same_command_resumes(
    job_file: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    process = started_run(job_file, tmp_path / "out")
    wait_for_line(process, "done=2/80")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    errors = last_words(process)
    assert process.returncode == 130
    assert "stopped. Finished parts are kept; run the same command again to resume." in errors
    assert "Traceback" not in errors
    assert processes_of_session(process.pid) == {}
    resumed = batchgen("run", job_file, "--output", tmp_path / "out")
    assert resumed.returncode == 0, resumed.stderr
    assert part_bytes(tmp_path / "out") == undisturbed


def test_a_driver_whose_ray_dies_says_so_and_ends_with_4(job_file: Path, tmp_path: Path) -> None:
    """Once Ray ended it with an exit code of its own, 1, in the middle of a line of its log."""
    process = started_run(job_file, tmp_path / "out")
    wait_for_line(process, "done=2/80")
    commands = processes_of_session(process.pid)
    del commands[process.pid]
    for pid in sorted(commands, key=lambda pid: "gcs_server" not in commands[pid]):  # else it tells of the others
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    errors = last_words(process)
    assert process.returncode == 4, errors
    assert "error: the Ray of this machine is gone" in errors
    assert "Traceback" not in errors
    assert 2 <= len(part_bytes(tmp_path / "out")) < 80


def test_past_the_error_rate_the_run_exits_with_3_and_a_higher_one_takes_it_on(job_file: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.parquet", ["Today", None, "Every bee", "Today"])
    stopped = batchgen("run", job_file, "--output", tmp_path / "out", "--set", "run.replicas=1")
    assert stopped.returncode == 3
    assert "4 of the 16 rows of the job are errors already, more than run.max_error_rate (5.0%)" in stopped.stderr
    assert "part-00000.parquet" in part_bytes(tmp_path / "out")
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    finished = batchgen("run", job_file, "--output", tmp_path / "out", "--set", "run.max_error_rate=0.25")
    assert finished.returncode == 0
    again = batchgen("run", job_file, "--output", tmp_path / "out", "--set", "run.max_error_rate=0.2")
    assert again.returncode == 3
    assert "25.0% of the rows are errors, more than run.max_error_rate (20.0%)" in again.stderr


def test_sigterm_ends_the_command_in_good_order_with_4_and_the_same_command_resumes(
    job_file: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    process = started_run(job_file, tmp_path / "out")
    wait_for_line(process, "done=2/80")
    process.terminate()
    errors = last_words(process)
    assert process.returncode == 4, errors
    assert "error: stopped by SIGTERM" in errors
    assert "Finished parts are kept. Run the same command again to resume." in errors
    assert "Traceback" not in errors
    assert processes_of_session(process.pid) == {}
    assert 2 <= len(part_bytes(tmp_path / "out")) < 80
    resumed = batchgen("run", job_file, "--output", tmp_path / "out")
    assert resumed.returncode == 0, resumed.stderr
    assert part_bytes(tmp_path / "out") == undisturbed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "strategies.0.temperature=0.5"], ["`temperature`", "type: sampling"]),
        (["--set", "model=./nowhere"], ["`./nowhere` is not a folder"]),
        (["--set", "model=nobody/nothing"], ["is not a local folder, and the hub cannot be reached"]),
        (["--set", "input.path=nowhere.parquet"], ["nowhere.parquet"]),
        (["--set", "input.prompt_column=promt"], ["column `promt`", "`prompt`"]),
    ],
)
def test_what_is_wrong_is_one_message_and_exit_code_2(
    job_file: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    done = batchgen("run", job_file, "--output", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    for word in words:
        assert word in done.stderr


def test_an_unreachable_cluster_is_one_message_and_exit_code_4(job_file: Path, tmp_path: Path) -> None:
    done = batchgen("run", job_file, "--output", tmp_path / "out", RAY_ADDRESS="127.0.0.1:9")
    assert done.returncode == 4
    assert "no Ray cluster is at RAY_ADDRESS=127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


NOTEBOOK = {
    "skip": {
        "greedy": " line to a place where I can see the big castle.",
        "no-repeats": " line to a place where I can see the big castle.",
        "beam5": " street to the other side of the street.",
        "beam5-no-repeats": " street to the other side of the street.",
        "no-bigram-twice": " line to a place where I can see the big castle.",
        "no-line": " street to the other side of the street.",
        "contrastive": " line to a place where I can see the big sea.",
    },
    "stormy": {
        "greedy": " I skip across the line to a place where I can see the far castle.",
        "no-repeats": " I skip across the line to a place where I can see the far castle.",
        "beam5": " I skip across the street to the other side of the street.",
        "beam5-no-repeats": " I skip across the street to the other side of the street.",
        "no-bigram-twice": " I skip across the line to a place where I can see the far castle.",
        "no-line": " I skip across the street to the other side of the street.",
        "contrastive": " I skip across the street to the other side of the street.",
    },
    "bright": {
        "greedy": ".",
        "no-repeats": ".",
        "beam5": ". I skip across the street to the other side of the street.",
        "beam5-no-repeats": ". I skip across the street to the other side of the street.",
        "no-bigram-twice": ".",
        "no-line": ".",
        "contrastive": ".",
    },
}
NEXT = {
    "skip": '" line" 19.2 %, " street" 16.8 %, " river" 12.8 %, " road" 8.4 %, " bridge" 8.1 %',
    "stormy": '" I" 81.7 %, " " 5.0 %, " duck" 2.8 %, " The" 2.4 %, " frog" 1.5 %',
    "bright": '"." 64.5 %, " +" 17.9 %, " from" 4.8 %, " lives" 3.2 %, "?" 2.3 %',
}
DRAWN = {"beam-sampling", "cool", "top-k", "top-p"}


def test_the_notebook_job_shows_what_a_tutorial_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    work = load_job("jobs/notebook.yaml", [f"output.path={tmp_path}"])
    assert load_job("jobs/notebook.yaml", ["model=openai-community/gpt2"]).strategies == work.strategies
    done = job.run(work, job.here)
    assert (done.manifest["totals"]["rows"], done.error_rate) == (len(NOTEBOOK) * len(work.strategies), 0)
    rows = pq.read_table(tmp_path / "data").to_pylist()
    assert all(row["num_prompt_tokens"] + row["num_generated_tokens"] <= 40 for row in rows if row["strategy"] in DRAWN)
    assert all(rank <= 10 for row in rows if row["strategy"] == "top-k" for rank in row["token_ranks"])
    shown = json.loads(batchgen("head", tmp_path, "-n", "36", "--json").stdout)["rows"]
    assert {row["row_id"]: row["text"] for row in shown if row["strategy"] == "candidates"} == NEXT
    for row_id, texts in NOTEBOOK.items():
        of_row = {row["strategy"]: row["text"] for row in shown if row["row_id"] == row_id}
        assert {name: text for name, text in of_row.items() if name not in {*DRAWN, "candidates"}} == texts
        assert of_row.keys() > DRAWN


def test_generated_text_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["\x1b]52;c;aGk=\x07[bold]x[/bold]\n\u202egnp"])
    (tmp_path / "job.yaml").write_text(JOB % source)
    job.run(load_job(tmp_path / "job.yaml", [f"output.path={tmp_path / 'out'}"]), job.here)
    shown = batchgen("head", tmp_path / "out", "-n", "1").stdout
    assert "\x1b" not in shown
    assert "␛]52;c;aGk=␇[bold]x[/bold]⏎⟨U+202E⟩gnp" in shown


def test_the_schema_command_prints_what_editors_need() -> None:
    schema = json.loads(batchgen("schema").stdout)
    jsonschema.validate(YAML(typ="safe").load((ROOT / "jobs" / "demo.yaml").read_text()), schema)
    assert schema["properties"]["strategies"]["type"] == "array"
