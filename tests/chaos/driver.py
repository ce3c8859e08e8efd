"""One start of the job, as a process of its own: `drive`. It kills itself, or others, where its command says so.

The engine is the echo with a small delay, so that kills land in the middle of the work. What a process has to tell is
left as a file in the control folder, for processes here end without a word.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline import faults, job, lease
from pipeline.cluster import RayExecutor
from pipeline.config import Job
from pipeline.errors import BatchgenError
from pipeline.records import Request, Response
from pipeline.shard import Setup
from pipeline.tokenizer import Tokenizer
from tests.chaos.scenarios import Kill
from tests.flows import EchoEngine

DELAY_S = 0.02  # for a shard


@dataclass(frozen=True, slots=True)
class Command:
    """What a driver is to do.

    Attributes:
        work: the job.
        on_ray: whether replicas do the shards, or the driver.
        kills: those that it and its replicas see to.
        control: a folder for marks.
        environment: variables to set.
        host: pretend to be this one, where leases expire within a second; none means to be honest.
        raylet: process id of a node's raylet.
    """

    work: Job
    on_ray: bool
    kills: tuple[Kill, ...]
    control: Path
    environment: dict[str, str]
    host: str = ""
    raylet: int = 0


def drive(command: Command, started: Connection) -> None:
    """Do the job; ends as the command line would."""
    _log_to(command.control / "log")
    os.environ.update(command.environment)
    if command.host:
        lease.this_place = lambda: command.host
        lease.RENEWAL_S, lease.EXPIRY_S, lease.POLL_S = 0.1, 0.6, 0.1
    for kill in command.kills:
        if kill.victim == "driver" and kill.fault:
            os.environ[faults.VARIABLE] = kill.fault
    execute = RayExecutor(command.work.run) if command.on_ray else job.here
    kills = tuple(kill for kill in command.kills if kill.victim == "replica" and kill.moment != "time")
    try:
        job.run(
            command.work, execute, Listener(command, started), engine_maker=partial(open_engine, command.control, kills)
        )
    except BatchgenError as error:
        logging.getLogger("chaos").error("%s", error)
        sys.exit(error.exit_code)


def _log_to(path: Path) -> None:
    """Everything that this process and its libraries say."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(stream=sys.stderr, format="%(process)d %(name)s %(message)s", force=True)


class Listener:
    """Progress that says when the work starts, and kills after so many parts."""

    def __init__(self, command: Command, started: Connection) -> None:
        self.command, self.started, self.num_parts = command, started, 0

    def start(self, num_rows: int, num_shards: int, done: object) -> None:
        self.started.send(True)

    def part(self, part: object) -> None:
        self.num_parts += 1
        for kill in self.command.kills:
            if kill.moment == "part" and kill.number == self.num_parts:
                mark(self.command.control, kill.victim)
                for pid in victims(kill.victim, os.getpid(), self.command.raylet):
                    end(pid)


def victims(victim: str, driver: int, raylet: int) -> list[int]:
    """Processes to kill, in this order."""
    match victim:
        case "raylet":
            return [raylet]
        case "cluster":
            return descendants(driver)
        case "everything":
            return [*descendants(driver), driver]
    return [driver]


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and these in turn."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for each in found:
        found += children.get(each, [])
    return found


def end(pid: int) -> bool:
    """Kill a process; whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def mark(control: Path, name: str) -> bool:
    """Leave a mark; whether it is the first one of this name."""
    try:
        (control / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class SlowEngine(EchoEngine):
    """Takes its time, and its process dies in one of its batches if that is asked for."""

    def __init__(self, dies_in_batch: float, last_words: Path) -> None:
        self.dies_in_batch, self.last_words, self.num_batches = dies_in_batch, last_words, 0

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        self.num_batches += 1
        time.sleep(DELAY_S / 2)
        if self.num_batches == self.dies_in_batch:
            self.last_words.touch()
            end(os.getpid())
        time.sleep(DELAY_S / 2)
        return super().generate(requests)


def open_engine(control: Path, kills: Sequence[Kill], _setup: Setup, _tokenizer: Tokenizer) -> SlowEngine:
    """Engine maker. The first process that comes gets the first kill, the second the second, later ones none."""
    mark(control, f"pid-{os.getpid()}")
    index = next((index for index in range(len(kills)) if mark(control, f"kill-{index}")), None)
    if index is None:
        return SlowEngine(0, control)
    if kills[index].fault:
        os.environ[faults.VARIABLE] = kills[index].fault
    return SlowEngine(kills[index].number if kills[index].moment == "engine" else 0, control / f"batch-{index}")
