"""A Ray of this machine alone, quiet, for as long as a test needs it: of this process, or a head in one of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


@contextmanager
def local_ray(num_cpus: int, num_gpus: int = 0, **system_config: Any) -> Iterator[None]:
    """Logical CPUs and GPUs, and settings of Ray's own processes."""
    ray.init(
        address="local",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _system_config=system_config or None,
    )
    yield
    ray.shutdown()


PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")


@contextmanager
def ray_head(*options: str, **environment: str) -> Iterator[dict[str, int]]:
    """A new cluster of one node, which ends with `kill -9`. Gives its ports, which no other on this machine has."""
    ports = {name: free_port() for name in PORTS}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options]
    command += [f"--{name}={port}" for name, port in ports.items()]
    process = subprocess.Popen(
        [*command, "--min-worker-port=0", "--max-worker-port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert any("Ray runtime started" in line for line in process.stdout)
        yield ports
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
