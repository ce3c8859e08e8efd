"""Processes of a peer that share a work: started once, made ready, then timed as often as wanted.

One process with a thread on every core, or one process per core with its share of the prompts: `Layout` says which. A
peer runs in the environment that has its libraries; where that is absent, `is_there` is false.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.machine import TICKS_PER_S, process_stats
from benchmarks.models import FOLDER
from benchmarks.pairs import Run, Timing, timed
from benchmarks.peers.serving import Once, Work
from benchmarks.workloads import Workload

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Peer:
    """A program to compare.

    Attributes:
        name: in results.
        module: to run or import, one of `benchmarks.peers`.
        options: as the module understands them.
        environment: folder of its virtual environment; None for the one of this project.
        completions: of every prompt.
    """

    name: str
    module: str
    options: Mapping[str, Any]
    environment: str | None = None
    completions: int = 1

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return ROOT / self.environment / "bin" / "python" if self.environment else Path(sys.executable)


class Layout(NamedTuple):
    """How a peer uses the machine: so many processes, so many cores each, most rows decoded together in each."""

    processes: int
    cores: int
    batch: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.processes} process(es) x {self.cores} core(s), batch {self.batch}"


@dataclass(slots=True)
class Team:
    """The processes of a peer, ready."""

    members: list[subprocess.Popen[str]]
    num_tokens: int
    log: Path
    versions: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> Timing:
        """Do the work once, all processes at the same time."""
        cpu_start, start = self._cpu_s(), time.perf_counter()
        for member in self.members:
            _tell(member, "run")
        counted = sum(self._answer(member)["num_tokens"] for member in self.members)
        wall_s = time.perf_counter() - start
        _check(counted, self.num_tokens)
        return Timing(round(wall_s, 4), round(self._cpu_s() - cpu_start, 2))

    def make_ready(self) -> None:
        """Wait until all have loaded."""
        for member in self.members:
            self.versions = self._answer(member)

    def close(self) -> None:
        """End all processes."""
        for member in self.members:
            member.communicate(timeout=60)  # it reads no more, and ends

    def _answer(self, member: subprocess.Popen[str]) -> Any:
        assert member.stdout
        if line := member.stdout.readline():
            return json.loads(line)
        tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise RuntimeError(f"a process ended early; the end of {self.log}:\n{tail}")

    def _cpu_s(self) -> float:
        return sum(session_cpu_s(member.pid) for member in self.members)


def is_there(peer: Peer) -> bool:
    """Whether the peer's environment exists; says how to build it where it does not."""
    if not peer.python.exists():
        print(f"{peer.name} skipped: there is no {peer.environment}; `make {peer.environment}/.ready` builds it")
    return peer.python.exists()


@contextmanager
def team(peer: Peer, workload: Workload, checkpoint: Path, dtype: str, layout: Layout) -> Iterator[Team]:
    """Start a peer's processes, each on its own cores with its share of the work; they end with the context."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    log = FOLDER.absolute() / f"{peer.name}.log"
    with log.open("w") as errors:
        members = [_start(peer, errors) for _ in range(layout.processes)]
    started = Team(members, workload.num_tokens * peer.completions, log)
    try:
        for index, member in enumerate(members):
            _tell(member, json.dumps(_work(peer, workload, checkpoint, dtype, layout, index)))
        started.make_ready()
        yield started
    finally:
        started.close()


def here(peer: Peer, workload: Workload, checkpoint: Path, dtype: str, batch: int, *, device: str = "cpu") -> Run:
    """The same in this process, on one thread or a GPU; for a quick look, and for what needs no peer of another
    environment."""
    module = import_module(peer.module)
    work = _work(peer, workload, checkpoint, dtype, Layout(1, 1, batch), 0)
    work["device"] = device
    once: Once = module.prepare(work)

    def checked() -> None:
        _check(once(), workload.num_tokens * peer.completions)

    return lambda: timed(checked)


def session_cpu_s(session: int) -> float:
    """CPU seconds so far of all living processes of a session, their ended children included."""
    return sum(sum(map(int, stat[11:15])) for stat in process_stats() if int(stat[3]) == session) / TICKS_PER_S


def _check(counted: int, expected: int) -> None:
    """Nobody may gain by doing less."""
    if counted != expected:
        raise RuntimeError(f"{counted} new tokens where {expected} were asked for")


def _start(peer: Peer, errors: IO[str]) -> subprocess.Popen[str]:
    command = [str(peer.python), "-m", peer.module]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=errors, text=True, cwd=ROOT, start_new_session=True
    )


def _tell(member: subprocess.Popen[str], line: str) -> None:
    assert member.stdin
    member.stdin.write(line + "\n")
    member.stdin.flush()


def _work(peer: Peer, workload: Workload, checkpoint: Path, dtype: str, layout: Layout, index: int) -> Work:
    cores = sorted(os.sched_getaffinity(0))
    share = workload.share(index, layout.processes)
    return Work(
        checkpoint=str(checkpoint),
        dtype=dtype,
        cores=cores[index * layout.cores : (index + 1) * layout.cores],
        batch=layout.batch,
        device="cpu",
        prompts=[list(prompt) for prompt in share.prompts],
        limits=list(share.limits),
        options=dict(peer.options),
    )


def layouts(cores: int, rows: int, batches: Sequence[int]) -> list[Layout]:
    """Every way to use the cores that makes a difference: one process or one per core, each batch that is filled."""
    ways = {(1, cores), (cores, 1)}
    return [
        Layout(processes, each, batch)
        for processes, each in sorted(ways)
        for batch in sorted({min(batch, -(-rows // processes)) for batch in batches})
    ]
