"""Peak memory of the driver and of each replica for N rows and for ten times as many; both should be the same.

    python -m benchmarks.memory [--rows 20000] [--replicas 2] [--quick]

The engine is the no-op one, so what is seen is the pipeline's. Each run has a driver process of its own, because a peak
never goes down; the driver reads the replicas' peaks from /proc whenever a part is reported, the last one included.
Both inputs have row groups of one size, because a row group, not the file, is what reading Parquet may hold.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import options
from benchmarks.machine import machine, peak_bytes, write_result
from benchmarks.noop import make_registered_engine, noop_job, write_input
from pipeline.cluster import RayExecutor
from pipeline.job import here, run
from pipeline.shard import Part
from pipeline.tally import Listed

TIMES = 10
QUICK_ROWS = 20
ROW_GROUP_ROWS = 10_000


class PeakWatch:
    """A `Progress` that keeps the highest peak of every process in the registry."""

    def __init__(self, registry: Path) -> None:
        self.registry = registry
        self.peaks: dict[int, int] = {}

    def start(self, num_rows: int, num_shards: int, done: Collection[Listed]) -> None:
        """Nothing runs yet."""

    def part(self, part: Part) -> None:
        """Look at all."""
        for file in self.registry.iterdir():
            pid = int(file.name)
            self.peaks[pid] = max(self.peaks.get(pid, 0), peak_bytes(pid))


def peaks_of_a_run(source: Path, folder: Path, replicas: int, with_ray: bool) -> dict[str, Any]:
    """Peaks in bytes of a driver, which is this process, and of its replicas; without Ray both are the same."""
    registry = folder / "registry"
    registry.mkdir(parents=True)
    watch = PeakWatch(registry)
    job = noop_job(source, folder / "out", replicas)
    execute = RayExecutor(job.run) if with_ray else here
    finished = run(job, execute, watch, partial(make_registered_engine, registry=registry))
    return {
        "rows": finished.manifest["totals"]["rows"],
        "parts": len(finished.manifest["parts"]),
        "driver_bytes": peak_bytes(os.getpid()),
        "replica_bytes": sorted(watch.peaks.values()),
    }


def measure(rows: int, replicas: int, *, with_ray: bool = True) -> dict[str, Any]:
    """Peaks of a run over `rows` and of one over ten times as many."""
    conditions = machine()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for num_rows in (rows, TIMES * rows):
            source = Path(folder) / f"{num_rows}.parquet"
            write_input(source, num_rows, ROW_GROUP_ROWS)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                arguments = (source, Path(folder) / str(num_rows), replicas, with_ray)
                runs.append(fresh.submit(peaks_of_a_run, *arguments).result())
    few, many = runs
    return {
        "machine": conditions,
        "replicas": replicas,
        "row_group_rows": ROW_GROUP_ROWS,
        "runs": runs,
        "ratio": {
            "driver": round(many["driver_bytes"] / few["driver_bytes"], 3),
            "replica": round(max(many["replica_bytes"]) / max(few["replica_bytes"]), 3),
        },
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, numbers={"rows": 20_000, "replicas": 2})
    result = measure(QUICK_ROWS if chosen.quick else chosen.rows, chosen.replicas, with_ray=not chosen.quick)
    print(f"{'rows':>10} {'parts':>6} {'driver MiB':>11}  replicas MiB")
    for each in result["runs"]:
        replicas = "  ".join(f"{peak / 2**20:.1f}" for peak in each["replica_bytes"])
        print(f"{each['rows']:>10,} {each['parts']:>6} {each['driver_bytes'] / 2**20:>11.1f}  {replicas}")
    print(f"{'ratio':>10} {'':>6} {result['ratio']['driver']:>11.3f}  {result['ratio']['replica']:.3f}")
    print(write_result("memory", result, chosen.quick))


if __name__ == "__main__":
    main()
