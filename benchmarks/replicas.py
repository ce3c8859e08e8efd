"""Does one driver keep up with 50 replicas? Real ones, on a Ray that believes it has as many CPUs.

    python -m benchmarks.replicas [--replicas 50] [--shards 12] [--wait 4] [--quick]

In the `paced` run the engine waits so many seconds for every shard of 1,000 rows, as if a GPU were at work: 50 such
replicas fit on two cores, and whether they ever wait for the driver can be seen. In `eager` runs it answers at once,
and shards have 20 rows: many parts per second, which tells what the driver computes for each, and Ray's own processes
beside it. The second half of each run is measured: in the first, replicas still start.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.command import options
from benchmarks.machine import TICKS_PER_S, machine, process_stats, write_result
from benchmarks.noop import make_noop_engine, noop_job, write_input
from pipeline import access
from pipeline.cluster import RayExecutor
from pipeline.job import run
from pipeline.shard import Part
from pipeline.tally import Listed

import ray  # isort: skip, for `pipeline.cluster` prepares what Ray reads when it is imported

ROW_GROUP_ROWS = 10_000
PACED_ROWS, EAGER_ROWS = 1000, 20  # per shard


class Moment(NamedTuple):
    """What clocks show: time, CPU of the driver with all its threads, CPU of Ray's processes beside it."""

    clock_s: float
    driver_s: float
    ray_s: float


@dataclass(slots=True)
class Clocks:
    """A `Progress` that looks at the clocks when half of the parts are done, and when all are."""

    num_parts: int = 0
    num_done: int = 0
    moments: list[Moment] = field(default_factory=list)

    def start(self, num_rows: int, num_shards: int, done: Collection[Listed]) -> None:
        """The plan is made."""
        self.num_parts = num_shards

    def part(self, part: Part) -> None:
        """One more is done."""
        self.num_done += 1
        if self.num_done in (self.num_parts // 2, self.num_parts):
            self.moments.append(Moment(time.perf_counter(), time.process_time(), _ray_cpu_s()))


def drive(replicas: int, shards: int, shard_rows: int, wait_s: float) -> dict[str, Any]:
    """A run of so many shards per replica."""
    clocks = Clocks()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.parquet"
        write_input(source, replicas * shards * shard_rows, ROW_GROUP_ROWS)
        job = noop_job(source, Path(folder) / "out", replicas, shard_rows)
        ray.init(
            address="local", num_cpus=replicas, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        try:
            finished = run(job, RayExecutor(job.run), clocks, partial(make_noop_engine, wait_s=wait_s))
        finally:
            ray.shutdown()
    num_parts = clocks.num_parts - clocks.num_parts // 2
    first, last = clocks.moments
    clock_s, driver_s, ray_s = (after - before for before, after in zip(first, last, strict=True))
    return {
        "replicas": replicas,
        "shard_rows": shard_rows,
        "wait_s": wait_s,
        "parts": num_parts,
        "parts_per_s": round(num_parts / clock_s, 2),
        "driver_ms_per_part": round(1000 * driver_s / num_parts, 3),
        "ray_ms_per_part": round(1000 * ray_s / num_parts, 3),
        "driver_share_of_a_core": round(driver_s / clock_s, 4),
        "ray_share_of_a_core": round(ray_s / clock_s, 4),
        "replica_s": finished.manifest["timings"]["replica_s"],
    }


def _ray_cpu_s() -> float:
    """CPU seconds so far of the processes that this one started, workers not among them: raylet and GCS."""
    return sum(sum(map(int, stat[11:13])) for stat in process_stats() if int(stat[1]) == os.getpid()) / TICKS_PER_S


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, numbers={"replicas": 50, "shards": 12, "wait": 4})
    access.ensure_token(os.environ, Path.home())
    conditions = machine()
    plans: dict[str, tuple[int, int, int, float]] = {
        f"paced, {chosen.replicas} replicas": (chosen.replicas, chosen.shards, PACED_ROWS, chosen.wait),
        "eager, 10 replicas": (10, 20 * chosen.shards, EAGER_ROWS, 0),
        "eager, 2 replicas": (2, 100 * chosen.shards, EAGER_ROWS, 0),
    }
    if chosen.quick:
        plans = {"paced, 2 replicas": (2, 2, EAGER_ROWS, 0.1)}
    runs = {}
    for name, plan in plans.items():
        runs[name] = drive(*plan)
        print(f"{name:20}", "  ".join(f"{key} {value}" for key, value in runs[name].items()), flush=True)
    print(write_result("replicas", {"machine": conditions, "runs": runs}, chosen.quick))


if __name__ == "__main__":
    main()
