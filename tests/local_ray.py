"""A Ray of this machine alone, quiet, for as long as a test needs it; and ports for one."""

from __future__ import annotations

import socket
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


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
