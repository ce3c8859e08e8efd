"""A whole run: plan, skip what is done, have the rest done, and write the manifest. It does not know who does the work.

An executor takes a way to open a worker and the shards to do, and yields parts as they are published, in any order:
`here` runs them in this process, `cluster.RayExecutor` on Ray. One with replicas returns how long they were in which
state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from pipeline import manifest
from pipeline.config import Job
from pipeline.errors import ConfigError, ErrorRateError
from pipeline.lease import hold
from pipeline.plan import Plan, make_plan
from pipeline.records import Usage
from pipeline.shard import EngineMaker, Part, Setup, Shard, Worker, make_engine, open_worker, published
from pipeline.storage import Folder, open_folder
from pipeline.tally import Listed, Tally


@dataclass(frozen=True, slots=True)
class OpenWorker:
    """Opens a worker in the process in which it is called."""

    setup: Setup
    engine_maker: EngineMaker

    def __call__(self) -> Worker:
        """The worker.

        Raises:
            ConfigError: this machine has another output folder than the driver.
            ModelError: it has another checkpoint.
        """
        manifest.check_seen(self.setup.folder)
        return open_worker(self.setup, self.engine_maker)


Executor = Callable[[OpenWorker, Sequence[Shard]], Iterator[Part]]


class Progress(Protocol):
    """Told what happens during a run."""

    def start(self, num_rows: int, num_shards: int, done: Collection[Listed]) -> None:
        """The run begins: so many rows of output in so many shards, of which these parts are already there."""

    def part(self, part: Part) -> None:
        """One more part is published."""


class Run(NamedTuple):
    """A finished run.

    Attributes:
        folder: the output, a path or a URL.
        manifest: as stored.
        was_finished: whether there was nothing to do.
    """

    folder: str
    manifest: dict[str, Any]
    was_finished: bool

    @property
    def error_rate(self) -> float:
        """Share of error rows."""
        totals = self.manifest["totals"]
        return float(totals["errors"] / max(1, totals["rows"]))


@dataclass(slots=True)
class Spent:
    """What a run took of time and of what it held; parts that were there before do not count.

    Attributes:
        start: when it began, by `time.perf_counter`.
        shards_s: of all shards, one after another.
        engine_s: the part of it spent in the engine.
        replica_s: state -> seconds of all replicas; empty without replicas.
    """

    start: float = field(default_factory=time.perf_counter)
    shards_s: float = 0.0
    engine_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    replica_s: Mapping[str, float] = field(default_factory=dict)

    def heard(self, parts: Iterator[Part]) -> Iterator[Part]:
        """The parts of an executor, until it returns what its replicas did, if it does."""
        self.replica_s = (yield from cast(Generator[Part, None, Mapping[str, float] | None], parts)) or {}

    def add(self, part: Part) -> None:
        """One more part is published."""
        self.shards_s, self.engine_s = self.shards_s + part.seconds, self.engine_s + part.engine_s
        self.usage += part.usage

    def timings(self) -> dict[str, Any]:
        """For the manifest."""
        occupancy = self.usage.occupancy
        return {
            "elapsed_s": round(time.perf_counter() - self.start, 3),
            "shards_s": round(self.shards_s, 3),
            "engine_s": round(self.engine_s, 3),
            "replica_s": {state: round(seconds, 3) for state, seconds in self.replica_s.items()},
            "batch_occupancy": None if occupancy is None else round(occupancy, 4),
            "step_s": round(self.engine_s / self.usage.num_passes, 6) if self.usage.num_passes else None,
        }


def here(make_worker: Callable[[], Worker], shards: Sequence[Shard]) -> Iterator[Part]:
    """Do the shards one after another in this process."""
    worker = make_worker()
    for shard in shards:
        yield worker(shard)


def run(
    job: Job,
    execute: Executor,
    progress: Progress | None = None,
    engine_maker: EngineMaker = make_engine,
    open_output: Callable[[str], Folder] = open_folder,
) -> Run:
    """Do a job, or what is left of it.

    Args:
        job: from `jobfile.load_job`; a relative output path counts from the working directory.
        execute: who does the shards.
        progress: who is told.
        engine_maker: makes each worker's engine; picklable.
        open_output: makes the folder of `output.path`.

    Raises:
        BatchgenError: with what to do; all published parts are kept.
    """
    spent = Spent()
    plan = make_plan(job)
    folder = checked_output(plan, open_output)
    if (stored := manifest.finished(folder, plan)) is not None:
        return Run(folder.name, stored, was_finished=True)
    folder.prepare()
    with hold(folder) as still_mine:
        folder = manifest.claim(folder, plan)
        tally = manifest.known_parts(folder, plan.fingerprint, plan.part_rows)
        todo = plan.shards.without(tally.parts)
        if progress:
            progress.start(plan.num_output_rows, len(plan.shards), tally)
        if todo:
            _check_error_rate(tally, plan)
        worker = OpenWorker(plan.setup(folder), engine_maker)
        for part in spent.heard(execute(worker, todo)) if todo else ():
            still_mine()
            tally.add(published(part, folder))
            spent.add(part)
            if progress:
                progress.part(part)
            if len(tally) < len(plan.shards):
                _check_error_rate(tally, plan)
        return Run(folder.name, manifest.finish(folder, plan, tally, spent.timings()), was_finished=False)


def checked_output(plan: Plan, open_output: Callable[[str], Folder] = open_folder) -> Folder:
    """The output folder of a plan, which may not exist yet; nothing is written.

    Raises:
        ConfigError: input files lie in it, or its path cannot be used.
        OutputError: it is another job's.
    """
    folder = open_output(plan.job.output.path)
    _check_apart(folder, plan)
    manifest.check_ours(folder, plan)
    return folder


def _check_error_rate(tally: Tally, plan: Plan) -> None:
    """Raise ErrorRateError as soon as no end of the run can be within `run.max_error_rate`."""
    allowed = plan.job.run.max_error_rate
    if tally.errors > allowed * plan.num_output_rows:
        raise ErrorRateError(
            f"{tally.errors:,} of the {plan.num_output_rows:,} rows of the job are errors already, more than "
            f"run.max_error_rate ({allowed:.1%}) of all. All results so far are kept; see columns error_type and "
            "error_message.",
            "Raise run.max_error_rate and run the same command again to go on in spite of them.",
        )


def _check_apart(folder: Folder, plan: Plan) -> None:
    """Refuse an output folder that input files lie in."""
    inside = [file.path for file in plan.dataset.files if Path(folder.name) in Path(file.path).parents]
    if inside:
        raise ConfigError(f"output.path {folder.name} holds input file {inside[0]}.", "Keep input and output apart.")
