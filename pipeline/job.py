"""A whole run: plan, skip what is done, have the rest done, and write the manifest. It does not know who does the work.

An executor takes a way to open a worker and the shards to do, and yields parts as they are published, in any order:
`here` runs them in this process, `cluster.RayExecutor` on Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipeline import manifest
from pipeline.config import Job
from pipeline.errors import ConfigError
from pipeline.lease import hold
from pipeline.plan import Plan, make_plan
from pipeline.shard import EngineMaker, Part, Shard, make_engine, open_worker, published
from pipeline.storage import Folder, open_folder

Worker = Callable[[Shard], Part]
Executor = Callable[[Callable[[], Worker], Sequence[Shard]], Iterator[Part]]


class Progress(Protocol):
    """Told what happens during a run."""

    def start(self, num_rows: int, num_shards: int, done: Sequence[Part]) -> None:
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
    start = time.perf_counter()
    plan = make_plan(job)
    folder = open_output(job.output.path)
    _check_apart(folder, plan)
    manifest.check_ours(folder, plan)
    if (stored := manifest.finished(folder, plan)) is not None:
        return Run(folder.name, stored, was_finished=True)
    folder.prepare()
    with hold(folder) as still_mine:
        folder = manifest.claim(folder, plan)
        finished = manifest.finished_keys(folder)
        todo = [shard for shard in plan.shards if shard.key not in finished]
        parts = [manifest.stored_part(folder, plan, shard) for shard in plan.shards if shard.key in finished]
        if progress:
            progress.start(plan.num_output_rows, len(plan.shards), parts)
        for part in execute(partial(open_worker, plan.setup(folder), engine_maker), todo) if todo else ():
            still_mine()
            parts.append(published(part, folder))
            if progress:
                progress.part(parts[-1])
        timings = {
            "elapsed_s": round(time.perf_counter() - start, 3),
            "shards_s": round(sum(part.seconds for part in parts), 3),
        }
        return Run(folder.name, manifest.finish(folder, plan, parts, timings), was_finished=False)


def _check_apart(folder: Folder, plan: Plan) -> None:
    """Refuse an output folder that input files lie in."""
    inside = [file.path for file in plan.dataset.files if Path(folder.name) in Path(file.path).parents]
    if inside:
        raise ConfigError(f"output.path {folder.name} holds input file {inside[0]}. Keep input and output apart.")
