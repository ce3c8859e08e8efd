"""Jobs handed to a Ray head, as a cluster's users do it: stopped half way and submitted again."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline import job
from pipeline.jobfile import load_job
from tests.flows import part_bytes, write_prompts

ROOT = Path(__file__).parent.parent
JOB = """
model: demo
input: {path: %s, id_column: id}
output: {path: %s}
strategies: [{name: greedy, type: greedy, max_new_tokens: 8}]
run: {shard_rows: 1, replicas: 1}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head() -> Iterator[JobSubmissionClient]:
    """A Ray head of its own, on ports that no other on this machine has."""
    ports = {
        name: free_port()
        for name in (
            "port",
            "dashboard-port",
            "dashboard-agent-listen-port",
            "ray-client-server-port",
            "metrics-export-port",
        )
    }
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert any("Ray runtime started" in line for line in process.stdout)
        yield JobSubmissionClient(f"http://127.0.0.1:{ports['dashboard-port']}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


async def follow(client: JobSubmissionClient, submitted: str, until: str = "") -> str:
    """What a job prints, up to the words or to its end."""
    printed = ""
    async for lines in client.tail_job_logs(submitted):
        printed += lines
        if until and until in printed:
            break
    return printed


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # Ray's own
def test_a_job_that_is_stopped_and_submitted_again_ends_with_the_bytes_of_an_undisturbed_one(
    head: JobSubmissionClient, tmp_path: Path
) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["The quiet fox", "Every bee", "Today"] * 80)
    for name in ("undisturbed", "out"):
        (tmp_path / f"{name}.yaml").write_text(JOB % (source, tmp_path / name))
    job.run(load_job(tmp_path / "undisturbed.yaml"), job.here)
    entrypoint = f"cd {ROOT} && {sys.executable} -m jobs.generate {tmp_path / 'out'}.yaml"
    first = head.submit_job(entrypoint=entrypoint)
    asyncio.run(follow(head, first, "done=3/240"))
    head.stop_job(first)
    asyncio.run(follow(head, first))
    assert head.get_job_status(first) == JobStatus.STOPPED
    kept = part_bytes(tmp_path / "out")
    assert 3 <= len(kept) < 240
    second = head.submit_job(entrypoint=entrypoint)
    printed = asyncio.run(follow(head, second))
    assert head.get_job_status(second) == JobStatus.SUCCEEDED
    assert re.search(rf"{len(kept)} of them already done", printed)
    assert kept.items() <= part_bytes(tmp_path / "undisturbed").items()
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")
