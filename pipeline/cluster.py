"""Ray: replicas that hold a worker each, and a ledger of shards that the driver owns. It knows no decoding.

Every shard is leased to one replica at a time, at most two to a replica so that it never waits for the driver. When a
replica dies its leases go back to the others and a new one is started; a shard's result does not depend on who computes
it, or on how often. A shard during which replicas died three times stops the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.config import RunConfig
from pipeline.errors import BatchgenError, ClusterError, ConfigError
from pipeline.job import Worker
from pipeline.shard import Part, Shard

log = logging.getLogger("batchgen.cluster")

LEASES_PER_REPLICA = 2
MOST_DEATHS = 3
PATIENCE_S = 30.0  # without an answer, before a word about replicas that do not start


class Replica:
    """The actor: one worker in one process."""

    def __init__(self, open_worker: Callable[[], Worker], has_gpu: bool) -> None:
        if not has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it alone where no GPU was asked for
        self.open_worker = open_worker

    @cached_property
    def worker(self) -> Worker:
        """Opened by the first shard, so that what goes wrong is an answer to a call and not a death."""
        return self.open_worker()

    def ready(self) -> None:
        """Answers once the process runs."""

    def process(self, shard: Shard) -> Part:
        """Do a shard."""
        return self.worker(shard)


@dataclass(slots=True)
class Ledger:
    """Who works on what. All state of the driver that is not in the output folder.

    Attributes:
        todo: shards nobody works on, in order.
        replicas: those that run; shards are leased to no other, for one that starts may have to wait for a place.
        calls: call -> (replica, shard), oldest first; without a shard while the replica starts.
        deaths: how often a replica died working on a shard, by key; while starting, under the key "".
    """

    todo: deque[Shard]
    replicas: list[Any] = field(default_factory=list)
    calls: dict[Any, tuple[Any, Shard | None]] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)

    @property
    def is_done(self) -> bool:
        """Whether every shard is done."""
        return not self.todo and all(shard is None for _, shard in self.calls.values())

    def start(self, replica: Any) -> None:
        """Wait for a new replica to run."""
        self.calls[replica.ready.remote()] = (replica, None)

    def feed(self) -> None:
        """Lease shards to the running replicas: a first to each, then a second, as long as enough are left for those
        that still start."""
        for limit in range(1, LEASES_PER_REPLICA + 1):
            for replica in self.replicas:
                held = sum(holder is replica for holder, _ in self.calls.values())
                spare = len(self.todo) - (self._num_starting() if limit > 1 else 0)
                if held < limit and spare > 0:
                    shard = self.todo.popleft()
                    self.calls[replica.process.remote(shard)] = (replica, shard)

    def bury(self, replica: Any) -> Shard | None:
        """Return a dead replica's leases to the front of the queue.

        Returns:
            The oldest of them, which was being worked on and is charged; None if the replica died while it started.
        """
        lost = [(call, shard) for call, (holder, shard) in self.calls.items() if holder is replica]
        for call, _ in lost:
            del self.calls[call]
        self.replicas = [other for other in self.replicas if other is not replica]
        shards = [shard for _, shard in lost if shard is not None]
        self.todo.extendleft(reversed(shards))
        self.deaths[shards[0].key if shards else ""] += 1
        return shards[0] if shards else None

    def _num_starting(self) -> int:
        return sum(shard is None for _, shard in self.calls.values())


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Does shards on Ray: on the cluster of RAY_ADDRESS where that is set, else on one started here for the run."""

    config: RunConfig

    def __call__(self, open_worker: Callable[[], Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        """Yield parts as they are published.

        Raises:
            ConfigError: the cluster cannot hold one replica.
            ClusterError: Ray cannot be reached, or replicas die again and again.
        """
        with _connected():
            gpus = self._gpus_per_replica()
            wanted = min(self._num_replicas(gpus), len(shards))
            options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
            start = ray.remote(Replica).options(**options).remote
            worker = ray.put(open_worker)
            log.info("replicas=%d gpus_per_replica=%g", wanted, gpus)
            yield from _run(Ledger(deque(shards)), lambda: start(worker, gpus > 0), wanted)

    def _gpus_per_replica(self) -> float:
        if self.config.gpus_per_replica == "auto":
            return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
        return self.config.gpus_per_replica

    def _num_replicas(self, gpus: float) -> int:
        """How many replicas to start; a cluster that cannot hold them would let them wait for ever."""
        have = ray.cluster_resources()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(_room(node.get("CPU", 0), node.get("GPU", 0), gpus) for node in nodes)
        wanted = room if self.config.replicas == "auto" else self.config.replicas
        if wanted > room or room < 1:
            raise ConfigError(
                f"run.replicas asks for {max(wanted, 1)} replicas of 1 CPU and {gpus:g} GPUs each, but the cluster has "
                f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs, room for {room}. "
                "Lower run.replicas or run.gpus_per_replica, or add nodes."
            )
        return wanted


def _room(cpus: float, gpus: float, gpus_per_replica: float) -> int:
    """Replicas of one CPU that fit a node; a fraction of a GPU never spans two."""
    if gpus_per_replica == 0:
        return int(cpus)
    fit = int(gpus // gpus_per_replica) if gpus_per_replica >= 1 else int(gpus) * int(1 / gpus_per_replica)
    return min(int(cpus), fit)


def _run(ledger: Ledger, start: Callable[[], Any], wanted: int) -> Iterator[Part]:
    """Lease, collect and recover until every shard is done."""
    for _ in range(wanted):
        ledger.start(start())
    while not ledger.is_done:
        answered, _ = ray.wait(list(ledger.calls), num_returns=1, timeout=PATIENCE_S)
        if not answered:
            if not ledger.replicas:
                log.warning("still waiting for a first replica to start: the cluster may have no free CPU or GPU")
            continue
        replica, shard = ledger.calls[answered[0]]
        try:
            part = ray.get(answered[0])
        except RayTaskError as error:
            if isinstance(error.cause, BatchgenError):
                raise error.cause from error
            raise
        except RayError as error:  # a death, whatever Ray calls it
            _count_death(ledger, ledger.bury(replica), error)
            ledger.start(start())
            ledger.feed()
            continue
        del ledger.calls[answered[0]]
        if shard is None:
            ledger.replicas.append(replica)
        ledger.feed()
        if shard is not None:
            yield part


def _count_death(ledger: Ledger, shard: Shard | None, error: RayError) -> None:
    """Say that a replica died, and give up where that has happened too often."""
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()] or [""]
    if shard is None:
        log.warning("a replica could not start: %s", lines[-1])
        if ledger.deaths[""] >= MOST_DEATHS:
            raise ClusterError(
                f"replicas could not start {MOST_DEATHS} times: {lines[-1]} Every node needs the same environment. "
                "Finished parts are kept."
            ) from error
        return
    log.warning("a replica died working on %s: %s", shard.key, lines[0])
    if ledger.deaths[shard.key] >= MOST_DEATHS:
        raise ClusterError(
            f"replicas died {MOST_DEATHS} times while working on input rows {shard.lo} to {shard.hi - 1} "
            f"({shard.key}): {lines[0]} Finished parts are kept; look for a row that exhausts memory there, then run "
            "the same command again."
        ) from error


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Ray for the length of a run; a cluster that was there before is left running."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _check_listening(address)
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise ClusterError(
            f"no Ray cluster can be used at RAY_ADDRESS={address}: {error} "
            "Start it, or unset RAY_ADDRESS to use this machine. If it asks for a token, `export RAY_AUTH_MODE=token`."
            if address
            else f"Ray could not be started on this machine: {error}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raise OSError if nobody listens at `host:port`; Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()
