"""Settings for all tests: one torch thread, no network, no telemetry, one token for every Ray, the same random data."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_AUTH_MODE"] = "token"  # a process keeps the mode and the token of its first Ray
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # else replicas hardly run where other tests keep cores busy
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # all on loopback, whoever imports Ray first

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from pipeline import job
from pipeline.jobfile import load_job
from tests.forgery import run_demo
from tests.pages import chromium

ROOT = Path(__file__).parent.parent

# A test fails for what is wrong, never by chance or because the machine is slow. `make fuzz` looks further.
settings.register_profile(
    "tests", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with every kind of row; not to be changed."""
    return run_demo(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of jobs/demo.yaml; not to be changed."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        job.run(load_job("jobs/demo.yaml", [f"output.path={folder}"]), job.here)
    return folder
