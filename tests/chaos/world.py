"""What can be killed: drivers as processes and a Ray cluster of three nodes; and stores. Everything is started once.

Drivers are forked from a server process that has loaded the libraries and opened nothing. Processes are killed by the
ids of those that were started here, or told by what was.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from ray.cluster_utils import Cluster

from pipeline.config import Job
from tests.chaos.driver import Command, descendants, drive, end, victims
from tests.chaos.scenarios import NUM_PARTS, OBJECT_STORES, Kill, Scenario, Start
from tests.fake_store import fake_store
from tests.flows import GREEDY, SAMPLES, make_job, write_prompts

SHARD_ROWS = 2
HUNG_S = 240.0
PROMPTS = ["The quiet fox", "Every bee", None, "I skip across the", "Today", "x" * 2000, "Count: one, two,"]
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class HungError(Exception):
    """A start of the job did not end."""


@dataclass(slots=True)
class Ended:
    """How a start of the job ended: exit code, the kills that met somebody, and after how long."""

    exit_code: int
    kills: list[Kill]
    elapsed_s: float


@dataclass
class World:
    """All of it.

    Attributes:
        folder: for everything that is written.
        durations_s: of an undisturbed run on each ground.
        num_starts: so far.
    """

    folder: Path
    durations_s: dict[str, float] = field(default_factory=dict)
    num_starts: int = 0

    @cached_property
    def processes(self) -> Any:
        """Makes drivers, with all libraries loaded by now, so that the first one takes no longer than others."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.chaos.driver"])
        first = context.Process(target=int)
        first.start()
        first.join()
        return context

    @cached_property
    def source(self) -> Path:
        """The input."""
        rows = NUM_PARTS * SHARD_ROWS
        return write_prompts(self.folder / "prompts.parquet", (PROMPTS * rows)[:rows])

    @cached_property
    def nodes(self) -> Nodes:
        """The running cluster."""
        return Nodes()

    def job(self, output: str, replicas: int) -> Job:
        """The job, which is the same but for where it goes and who does it."""
        run = {"shard_rows": SHARD_ROWS, "max_error_rate": 1, "replicas": replicas, "gpus_per_replica": 0}
        work = make_job(self.source, self.folder, strategies=[GREEDY, SAMPLES], run=run)
        return work.model_copy(update={"output": work.output.model_copy(update={"path": output})})

    def start(self, scenario: Scenario, start: Start, output: str, random: Random) -> Ended:
        """One start of the job, with its kills.

        Raises:
            HungError: it did not end.
        """
        control = self.folder / f"control-{self.num_starts}"
        control.mkdir()
        (control / "log").touch()  # for a driver that dies before its first word
        self.num_starts += 1
        command = self._command(scenario, start, output, control)
        context, begun = self.processes, time.perf_counter()
        with _running(context, command) as (process, started):
            if start.has_rival:
                started.poll(None)  # until it holds the lease, or has ended
                met = self._with_rival(scenario, start, output, control, process)
            else:
                met = self._kill_in_time(process, start.kills, scenario.ground, command, random)
            _wait(process, control)
        elapsed_s = time.perf_counter() - begun
        met += self._met_by_itself(process, start.kills, control)
        if any(kill.victim == "raylet" for kill in met):
            self.nodes.replace(command.raylet)
        return Ended(process.exitcode or 0, met, elapsed_s)

    def close(self) -> None:
        """End what was started."""
        if "nodes" in self.__dict__:
            self.nodes.cluster.shutdown()

    def _command(self, scenario: Scenario, start: Start, output: str, control: Path) -> Command:
        on_nodes, hurry = scenario.ground == "nodes", {"RAY_gcs_rpc_server_reconnect_timeout_s": "20"}
        return Command(
            work=self.job(output, start.replicas),
            on_ray=scenario.ground != "here",
            kills=start.kills,
            control=control,
            environment=ENVIRONMENT | ({"RAY_ADDRESS": self.nodes.cluster.address} if on_nodes else hurry),
            host=f"host {self.num_starts}" if any(each.has_rival for each in scenario.starts) else "",
            raylet=self.nodes.a_raylet(scenario.number) if on_nodes else 0,
        )

    def _with_rival(
        self, scenario: Scenario, start: Start, output: str, control: Path, first: BaseProcess
    ) -> list[Kill]:
        """Run a second driver beside the first one, to its end."""
        own = control / "rival"
        own.mkdir()
        command = self._command(scenario, Start(), output, own)
        command = Command(command.work, False, (), own, command.environment, host=f"{command.host} rival")
        with _running(self.processes, command) as (rival, _):
            kills = [kill for kill in start.kills if kill.victim == "rival"]
            met = self._kill_in_time(rival, kills, scenario.ground, command, Random(0))
            _wait(rival, own)
        return met

    def _kill_in_time(
        self, process: BaseProcess, kills: Sequence[Kill], ground: str, command: Command, random: Random
    ) -> list[Kill]:
        """Wait for the moments that are shares of time, and kill; returns the kills that met somebody."""
        met, waited_s = [], 0.0
        for kill in sorted((kill for kill in kills if kill.moment == "time"), key=lambda kill: kill.number):
            due_s = kill.number * self.durations_s[ground]
            process.join(due_s - waited_s)
            waited_s = due_s
            if process.exitcode is None and process.pid is not None:
                pids = _targets(kill, process.pid, command, random)
                met += [kill] * (sum(end(pid) for pid in pids) > 0)
        return met

    def _met_by_itself(self, process: BaseProcess, kills: Sequence[Kill], control: Path) -> list[Kill]:
        """Kills at a step, a batch or a part that took place."""
        has_lost_one = "a replica died" in (control / "log").read_text(errors="replace")
        num_batches = len(list(control.glob("batch-*")))
        met = []
        for kill in (kill for kill in kills if kill.moment != "time"):
            if kill.victim == "driver":
                is_met = process.exitcode == -9
            elif kill.moment == "engine":
                is_met, num_batches = num_batches > 0, num_batches - 1
            else:
                is_met = has_lost_one if kill.victim == "replica" else (control / kill.victim).exists()
            met += [kill] * is_met
        return met


@contextlib.contextmanager
def _running(context: Any, command: Command) -> Iterator[tuple[BaseProcess, Connection]]:
    """A driver, and what it says when it starts to work."""
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=drive, args=(command, writer))
    process.start()
    writer.close()
    with reader:
        yield process, reader


def _targets(kill: Kill, driver: int, command: Command, random: Random) -> list[int]:
    if kill.victim != "replica":
        return victims(kill.victim, driver, command.raylet)
    pids = [int(path.name.removeprefix("pid-")) for path in command.control.glob("pid-*")]
    alive = sorted(pid for pid in pids if Path(f"/proc/{pid}").exists())
    return [random.choice(alive)] if alive else []


def _wait(process: BaseProcess, control: Path) -> None:
    process.join(HUNG_S)
    if process.exitcode is None and process.pid is not None:
        for pid in [*descendants(process.pid), process.pid]:
            end(pid)
        raise HungError(f"after {HUNG_S:g} s; see {control}/log")


class Nodes:
    """A Ray cluster whose head has no room for replicas, and two nodes with two places each."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args=_resources(0))
        self.nodes = [self.cluster.add_node(**_resources(2), wait=False) for _ in range(2)]
        self.cluster.wait_for_nodes()

    def a_raylet(self, choice: int) -> int:
        """Process id of the raylet of one of the nodes."""
        return _raylet(self.nodes[choice % len(self.nodes)])

    def replace(self, raylet: int) -> None:
        """Add a node for the one whose raylet was killed."""
        lost = next(node for node in self.nodes if _raylet(node) == raylet)
        self.nodes = [node for node in self.nodes if node is not lost]
        self.cluster.remove_node(lost, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(**_resources(2)))


def _resources(cpus: int) -> dict[str, Any]:
    return {"num_cpus": cpus, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """A world in an empty folder, with access to an object store of each kind in the environment."""
    with contextlib.ExitStack() as stack:
        for scheme in OBJECT_STORES:
            stack.enter_context(patch.dict(os.environ, stack.enter_context(fake_store(scheme)).environment))
        stack.enter_context(patch.dict(os.environ, ENVIRONMENT))
        made = World(folder)
        try:
            yield made
        finally:
            made.close()
