"""What a very long job costs its driver, without a cluster: plan, ledger, resume.

    python -m benchmarks.scale [--shards 250000] [--shard-rows 4000] [--files 1000] [--replicas 64]

`plan` makes the plan of shards x shard-rows rows from Parquet files that are nothing but footers, and its document.
`ledger` has the driver's loop lease every shard to replicas that answer at once. `resume` runs a job of as many shards,
of one row each, in a folder where all but a few parts are there: empty files, for what is known of them stands in
`_parts/`, as a run leaves it there. Each runs in a process of its own, because a peak of memory never goes down, and
tells the time by the clock, which other work on the machine makes longer, and in CPU seconds.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import machine, peak_bytes, write_result
from benchmarks.noop import NoopEngine, make_noop_engine, noop_job, write_input
from pipeline import manifest
from pipeline.config import Job
from pipeline.dispatch import Begun, Dispatcher, Event, Finished, Started
from pipeline.job import here, run
from pipeline.ledger import Ledger, Work
from pipeline.plan import Plan, make_plan
from pipeline.shard import NO_ROWS, Part, Shard, Worker, make_part
from pipeline.shards import all_shards
from pipeline.storage import Folder, LocalFolder
from pipeline.tally import PARTS_PER_FILE, Tally

ROWS_PER_GROUP = 10_000


@dataclass(slots=True)
class NoopPool:
    """Replicas that are done with everything as soon as somebody looks."""

    replicas: int
    news: list[Event] = field(default_factory=list)
    num_started: int = 0

    def start(self) -> int:
        """It runs at once."""
        self.news.append(Started(self.num_started))
        self.num_started += 1
        return self.num_started - 1

    def give(self, replica: int, work: Work) -> None:
        """Done at once."""
        part = Part(work.shard.key, work.shard.hi - work.shard.lo, "", {}, 0)
        self.news += [Begun(replica, work, 1), Finished(replica, work, part)]

    def events(self, timeout_s: float) -> list[Event]:
        """All since the last call."""
        news, self.news = self.news, []
        return news

    def kill(self, replica: int) -> None:
        """Nothing to end."""

    def room(self) -> int:
        """As many as wanted."""
        return self.replicas


def write_footers(folder: Path, files: int, rows_per_file: int) -> None:
    """Parquet files of one text column `prompt` that say they have so many rows, and hold none."""
    buffer = io.BytesIO()
    group_rows = min(ROWS_PER_GROUP, rows_per_file)
    pq.write_table(pa.table({"prompt": ["x"] * group_rows}), buffer)
    footer, group = (pq.read_metadata(io.BytesIO(buffer.getvalue())) for _ in range(2))
    for _ in range(rows_per_file // group_rows - 1):
        footer.append_row_groups(group)
    folder.mkdir()
    for number in range(files):
        footer.write_metadata_file(str(folder / f"{number:06d}.parquet"))


def plan_footers(folder: Path, output: Path, shard_rows: int) -> dict[str, Any]:
    """Make the plan and claim the output folder with it."""
    job = _job(folder, output, shard_rows)
    start, cpu = time.perf_counter(), time.process_time()
    plan = make_plan(job)
    planned = time.perf_counter()
    _claim(output, plan)
    claimed = time.perf_counter()
    num_shards = sum(1 for _ in plan.shards)
    return {
        "rows": plan.dataset.num_rows,
        "files": len(plan.dataset.files),
        "shards": num_shards,
        "plan_s": round(planned - start, 2),
        "document_s": round(claimed - planned, 2),
        "document_bytes": (output / manifest.PLAN).stat().st_size,
        "every_shard_made_s": round(time.perf_counter() - claimed, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_bytes": peak_bytes(os.getpid()),
    }


def drive_ledger(shards: int, shard_rows: int, replicas: int) -> dict[str, Any]:
    """Have every shard leased, begun and finished."""
    start, cpu = time.perf_counter(), time.process_time()
    todo = all_shards(shards * shard_rows, shard_rows)
    keys = {part.key for part in Dispatcher(Ledger(todo), NoopPool(replicas), grace_s=0.0).run()}
    seconds = time.perf_counter() - start
    assert len(keys) == shards
    return {
        "shards": shards,
        "replicas": replicas,
        "run_s": round(seconds, 2),
        "shards_per_s": round(shards / seconds),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_bytes": peak_bytes(os.getpid()),
    }


def resume_folder(source: Path, output: Path) -> dict[str, Any]:
    """Finish a run that lacks a few parts."""
    num_left, working, worked = 0, 0.0, 0.0

    def execute(opener: Callable[[], Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        nonlocal num_left, working, worked
        num_left, working = len(shards), time.perf_counter()
        yield from here(opener, shards)
        worked = time.perf_counter()

    start, cpu = time.perf_counter(), time.process_time()
    finished = run(_job(source, output, 1), execute, engine_maker=make_noop_engine)
    end = time.perf_counter()
    return {
        "parts": len(finished.manifest["parts"]),
        "parts_left": num_left,
        "until_work_s": round(working - start, 2),
        "work_s": round(worked - working, 2),
        "manifest_s": round(end - worked, 2),
        "manifest_bytes": (output / manifest.MANIFEST).stat().st_size,
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_bytes": peak_bytes(os.getpid()),
    }


def prepare_folder(source: Path, output: Path, shards: int) -> None:
    """A run of one-row shards that was stopped after the last full file in `_parts/`; the parts are empty files."""
    write_input(source, shards, ROWS_PER_GROUP)
    plan = make_plan(_job(source, output, 1))
    folder = _claim(output, plan)
    done = plan.shards[-((shards - 1) // PARTS_PER_FILE * PARTS_PER_FILE) :]
    like = make_part(done[0], Worker(plan.setup(folder), plan.tokenizer, NoopEngine()), NO_ROWS)
    tally = Tally(folder, plan.fingerprint)
    for shard in done:
        (output / shard.key).touch()
        tally.add(replace(like, key=shard.key, unpublished=None))


def _claim(output: Path, plan: Plan) -> Folder:
    folder = LocalFolder(output)
    folder.prepare()
    return manifest.claim(folder, plan)


def _job(source: Path, output: Path, shard_rows: int) -> Job:
    """Without an id column, whose ids would all have to be read and compared."""
    job = noop_job(source, output, 1)
    given, run_config = (
        job.input.model_copy(update={"id_column": None}),
        job.run.model_copy(update={"shard_rows": shard_rows}),
    )
    return job.model_copy(update={"input": given, "run": run_config})


def measure(shards: int, shard_rows: int, files: int, replicas: int) -> dict[str, Any]:
    """All three, one after another."""
    conditions = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_footers(folder / "footers", files, shards * shard_rows // files)
        prepare_folder(folder / "input.parquet", folder / "resumed", shards)
        results = {
            "plan": _alone(plan_footers, folder / "footers", folder / "planned", shard_rows),
            "ledger": _alone(drive_ledger, shards, shard_rows, replicas),
            "resume": _alone(resume_folder, folder / "input.parquet", folder / "resumed"),
        }
    return {"machine": conditions, "rows_per_row_group": ROWS_PER_GROUP, **results}


def _alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description="Plan, ledger and resume of a very long job.")
    parser.add_argument("--shards", type=int, default=250_000)
    parser.add_argument("--shard-rows", type=int, default=4000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=64)
    arguments = parser.parse_args()
    result = measure(arguments.shards, arguments.shard_rows, arguments.files, arguments.replicas)
    for name in ("plan", "ledger", "resume"):
        print(f"{name:7}", "  ".join(f"{key} {value:,}" for key, value in result[name].items()))
    print(write_result("scale", result))


if __name__ == "__main__":
    main()
