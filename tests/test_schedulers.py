"""What schedulers do with a job that fails: the same command again, on a new Ray each time, until it ends with 0."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import pytest
import yaml

from pipeline import job
from pipeline.jobfile import load_job
from pipeline.storage import open_folder
from tests.commands import ROOT, last_words, started, wait_for_line
from tests.fake_store import fake_store
from tests.flows import part_bytes, write_prompts
from tests.local_ray import ray_head

NUM_SHARDS = 120  # two attempts do at most fifty each


def small_job(tmp_path: Path, **changes: Any) -> Path:
    """A job file of the demo model over a local input; with its parts as they should be in `undisturbed/`."""
    source = write_prompts(tmp_path / "prompts.parquet", ["The quiet fox", "Every bee"] * (NUM_SHARDS // 2))
    strategies = [{"name": "nucleus", "type": "sampling", "max_new_tokens": 8, "top_p": 0.94}]
    values = {
        "model": "demo",
        "input": {"path": str(source), "id_column": "id"},
        "output": {"path": "unused"},
        "strategies": strategies,
        "run": {"replicas": 1, "shard_rows": 1},
    } | changes
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    job.run(load_job(path, [f"output.path={tmp_path / 'undisturbed'}"]), job.here)
    return path


def attempt(command: list[str], ended_by: signal.Signals | None, **environment: str) -> int:
    """The exit code of a command, which gets a signal, with all that it started, when some parts are done."""
    process = started(command, **environment)
    if ended_by:
        for _ in range(3):
            wait_for_line(process, ".parquet")
        os.killpg(process.pid, ended_by)
    said = last_words(process)
    assert process.returncode == 0 or ended_by, said
    assert "Traceback" not in said
    return process.returncode


def test_a_rayjob_whose_clusters_are_lost_is_done_within_its_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As KubeRay does: for each retry a new cluster and the entrypoint of the manifest."""
    manifest, settings = list(yaml.safe_load_all((ROOT / "deploy/rayjob.yaml").read_text()))[:2]
    run = yaml.safe_load(settings["data"]["job.yaml"])["run"] | {"replicas": 1, "shard_rows": 1}
    job_file = small_job(tmp_path, run=run)
    with fake_store("s3") as server:
        places = {"/etc/batchgen/job.yaml": str(job_file), "s3://your-bucket": server.url, "python": sys.executable}
        entrypoint = [
            re.sub("|".join(places), lambda found: places[found[0]], word)
            for word in shlex.split(manifest["spec"]["entrypoint"])
        ]
        options = ["--num-cpus=1", "--num-gpus=1", "--include-dashboard=false"]
        codes, kept = [], []
        for ended_by in (signal.SIGTERM, signal.SIGKILL, None):
            with ray_head(*options, **server.environment) as ports:
                address = f"127.0.0.1:{ports['port']}"
                codes.append(attempt(entrypoint, ended_by, RAY_ADDRESS=address, **server.environment))
            kept.append(sum(key.startswith("out/data/") for key in server.objects))
        assert codes == [4, -signal.SIGKILL, 0]
        assert len(codes) - 1 <= manifest["spec"]["backoffLimit"]
        assert 3 <= kept[0] < kept[1] < kept[2] == NUM_SHARDS
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        folder = open_folder(f"{server.url}/out")
        assert folder.read("_SUCCESS") is not None
        parts = {key.removeprefix("data/"): folder.read(key) for key in folder.list_keys("data")}
        assert parts == part_bytes(tmp_path / "undisturbed")


class Task:
    """What the DAG of the documentation makes: a DAG is a context, an operator its arguments."""

    last: Task

    def __init__(self, *names: str, **arguments: Any) -> None:
        self.arguments = arguments
        Task.last = self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


def documented_task(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of the operator in docs/cluster.md, read without Airflow."""
    for name, members in {
        "airflow.sdk": ["DAG"],
        "airflow.providers.standard.operators.bash": ["BashOperator"],
    }.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member, Task)
        monkeypatch.setitem(sys.modules, name, module)
    page = (ROOT / "docs/cluster.md").read_text()
    [snippet] = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "airflow" in code]
    exec(snippet, {})
    return Task.last.arguments


def test_airflows_retries_of_the_documented_task_finish_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Airflow does: every exit code but 0 is tried again; a task that is stopped, or whose worker is lost, too.

    The signal reaches the driver's Ray as well. Where that is gone first, it may end the driver, with its own code, 1.
    """
    task = documented_task(monkeypatch)
    job_file, out = small_job(tmp_path), tmp_path / "out"
    command = task["bash_command"].replace("batchgen", f"{sys.executable} -m pipeline.cli")
    command = command.replace("/shared/job.yaml", str(job_file)).replace("s3://your-bucket/out", str(out))
    codes, kept = [], []
    for ended_by in (signal.SIGTERM, signal.SIGKILL, None):
        codes.append(attempt(["bash", "-c", command], ended_by))
        kept.append(len(part_bytes(out)))
    assert len(codes) - 1 <= task["retries"]
    assert task["retry_delay"] >= timedelta(minutes=1)
    assert codes[0] in (4, 1)
    assert codes[1:] == [-signal.SIGKILL, 0]
    assert 3 <= kept[0] < kept[1] < kept[2] == NUM_SHARDS
    assert part_bytes(out) == part_bytes(tmp_path / "undisturbed")
