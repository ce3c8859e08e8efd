"""Jobs handed to a Ray head, as a cluster's users do it: stopped half way and submitted again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline import job
from pipeline.jobfile import load_job
from tests.fake_store import FakeStore, fake_store
from tests.flows import part_bytes, write_prompts
from tests.local_ray import ray_head

ROOT = Path(__file__).parent.parent
JOB = """
model: demo
input: {path: %s, id_column: id}
output: {path: %s}
strategies: [{name: greedy, type: greedy, max_new_tokens: 8}]
run: {shard_rows: 1, replicas: 1}
"""

SECRET = "a-key-of-the-store"


@pytest.fixture(scope="module")
def head() -> Iterator[JobSubmissionClient]:
    """A Ray head with a folder of its own: in the one that all share by default, jobs find the address of whichever
    head was started last. Its path is short, for sockets lie in it."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        ray_head("--num-cpus=2", f"--temp-dir={folder}", AWS_SECRET_ACCESS_KEY=SECRET) as ports,
        pytest.MonkeyPatch.context() as environ,
    ):
        environ.setenv("RAY_ADDRESS", f"127.0.0.1:{ports['port']}")
        environ.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{ports['dashboard-port']}")
        yield JobSubmissionClient(os.environ["RAY_API_SERVER_ADDRESS"])


async def follow(client: JobSubmissionClient, submitted: str) -> str:
    """What a job prints, up to its end."""
    return "".join([lines async for lines in client.tail_job_logs(submitted)])


def stored_parts(server: FakeStore) -> dict[str, bytes]:
    """Bytes of every part by name."""
    folder = "out/data/"
    return {key.removeprefix(folder): data for key, data in server.objects.items() if key.startswith(folder)}


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # Ray's own
def test_a_job_that_is_stopped_and_submitted_again_ends_with_the_bytes_of_an_undisturbed_one(
    head: JobSubmissionClient, tmp_path: Path
) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["The quiet fox", "Every bee", "Today"] * 40)
    with fake_store("s3") as server:
        for name, output in (("undisturbed", tmp_path / "undisturbed"), ("out", f"{server.url}/out")):
            (tmp_path / f"{name}.yaml").write_text(JOB % (source, output))
        job.run(load_job(tmp_path / "undisturbed.yaml"), job.here)
        entrypoint = f"cd {ROOT} && {sys.executable} -m jobs.generate {tmp_path / 'out'}.yaml"
        there = {"env_vars": server.environment}
        is_half_way, is_told_to_stop = Event(), Event()

        def wait_half_way(method: str, key: str) -> str:
            if (method, key) == ("PUT", "out/data/part-00003.parquet"):
                is_half_way.set()
                is_told_to_stop.wait()
            return ""

        server.fault = wait_half_way
        first = head.submit_job(entrypoint=entrypoint, runtime_env=there)
        is_half_way.wait()
        head.stop_job(first)
        is_told_to_stop.set()
        asyncio.run(follow(head, first))
        assert head.get_job_status(first) == JobStatus.STOPPED
        kept = stored_parts(server)
        assert 3 <= len(kept) < 120
        second = head.submit_job(entrypoint=entrypoint, runtime_env=there)
        printed = asyncio.run(follow(head, second))
        assert head.get_job_status(second) == JobStatus.SUCCEEDED
        assert re.search(rf"{len(kept)} of them already done", printed)
        assert kept.items() <= part_bytes(tmp_path / "undisturbed").items()
        assert stored_parts(server) == part_bytes(tmp_path / "undisturbed")


def submit(submission_id: str, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` of this folder, from a terminal that is none."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--submission-id", submission_id]
    command += ["--working-dir", str(ROOT), "--", *entrypoint]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last_line(printed: str) -> dict[str, object]:
    """The line for scripts; of a job that failed Ray prints the end of the log twice."""
    line = re.findall(r"^BATCHGEN (.*)$", printed, re.MULTILINE)[-1]
    outcome: dict[str, object] = json.loads(line)
    return outcome


def test_the_documented_submit_does_a_job_once_and_gives_no_secret_away(
    head: JobSubmissionClient, tmp_path: Path
) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["The quiet fox", "Every bee", "Today"])
    (tmp_path / "job.yaml").write_text(JOB % (source, "out"))
    generate = (sys.executable, "-m", "jobs.generate", str(tmp_path / "job.yaml"))

    relative = submit("relative", *generate)
    assert relative.returncode == 1
    assert "output.path must not be relative in a submitted job, but is 'out'" in relative.stdout
    assert last_line(relative.stdout) == {"exit_code": 2, "result": "config or input refused"}
    assert head.get_job_info("relative").driver_exit_code == 2

    done = submit("once", *generate, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout
    assert last_line(done.stdout) == {"exit_code": 0, "result": "done"}
    assert len(re.findall(r"part-0000\d\.parquet", done.stdout)) == 3  # a line per shard
    assert not re.search(r"\r|█|━|it/s", done.stdout)

    again = submit("once", *generate, "--output", str(tmp_path / "other"))
    assert again.returncode != 0
    assert "once already exists" in again.stdout + again.stderr
    assert not (tmp_path / "other").exists()

    verified = submit("verify", sys.executable, "-m", "jobs.verify", str(tmp_path / "out"))
    assert last_line(verified.stdout) == {"exit_code": 0, "result": "done"}

    retried = submit("retry", sys.executable, "-m", "jobs.retry_errors", str(tmp_path / "out"))
    assert last_line(retried.stdout) == {"exit_code": 0, "result": "done"}
    assert f"no error rows are left, nothing to do · {tmp_path / 'out'}\n" in retried.stdout

    told = [relative.stdout, done.stdout, verified.stdout, retried.stdout, str([vars(job) for job in head.list_jobs()])]
    kept = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    for secret in (SECRET, os.environ["RAY_AUTH_TOKEN"]):
        assert not any(secret in text for text in told)
        assert not any(secret.encode() in data for data in kept)


UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def write_wheel(folder: Path, witness: Path) -> Path:
    """A wheel that makes each process of its environment write its command line into a folder as it starts."""
    wheel, info = folder / "witness-1.0-py3-none-any.whl", "witness-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("witness.pth", "import witness\n")
        code = f"import os, sys\nopen(f'{witness}/{{os.getpid()}}', 'w').write(' '.join(sys.orig_argv))\n"
        file.writestr("witness.py", code)
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: witness\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.mark.skipif(UV is None, reason="uv is not installed")
def test_replicas_of_a_driver_under_uv_run_have_its_environment(head: JobSubmissionClient, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["The quiet fox", "Every bee"])
    (tmp_path / "job.yaml").write_text(JOB % (source, tmp_path / "out"))
    witness = tmp_path / "witness"
    witness.mkdir()
    options = ["--no-project", "--offline", "--no-config", "--python", sys.executable]
    options += ["--with", str(write_wheel(tmp_path, witness))]
    done = submit("uv", str(UV), "run", *options, "python", "-m", "jobs.generate", str(tmp_path / "job.yaml"))
    assert done.returncode == 0, done.stdout
    assert last_line(done.stdout) == {"exit_code": 0, "result": "done"}
    assert len(part_bytes(tmp_path / "out")) == 2
    started = [path.read_text() for path in witness.iterdir()]
    assert any("jobs.generate" in command for command in started)
    assert any("default_worker.py" in command for command in started)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Try with a token, as something listens at "),
        ({"RAY_AUTH_TOKEN": "another" * 5}, "perhaps with another than RAY_AUTH_TOKEN."),
    ],
)
def test_a_cluster_that_does_not_let_the_command_in_is_explained(
    head: JobSubmissionClient, tmp_path: Path, shown: dict[str, str], words: str
) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["Today"])
    (tmp_path / "job.yaml").write_text(JOB % (source, tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-m", "jobs.generate", str(tmp_path / "job.yaml")],
        env=os.environ | shown | {"RAY_NUM_REDIS_GET_RETRIES": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, last_line(done.stdout)["exit_code"]) == (4, 4)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_code_travels_without_what_git_ignores(tmp_path: Path) -> None:
    create_package(str(ROOT), tmp_path / "code.zip", True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(tmp_path / "code.zip") as package:
        names = package.namelist()
        assert {"jobs/generate.py", "pipeline/demo/model.safetensors"} <= set(names)
        assert not [name for name in names if name.startswith((".git/", ".venv/", "out/"))]
        assert sum(item.file_size for item in package.infolist()) < 8 << 20
