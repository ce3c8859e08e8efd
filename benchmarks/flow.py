"""What the pipeline costs per row: a job with an engine that answers at once, through Ray and in one process.

    python -m benchmarks.flow [--rows 400000] [--replicas 2] [--pairs 5] [--quick]
    python -m benchmarks.flow --profile        where the time goes, in one process

Every run is a whole one: plan, Ray started and stopped, input read, prompts tokenised, parts encoded, flushed to disk
and published, manifest. Two rates come of it, and `Timeline` says what is in each.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command import options
from benchmarks.machine import machine, write_result
from benchmarks.noop import NUM_TOKENS, PROMPT_CHARACTERS, make_noop_engine, noop_job, write_input
from pipeline.cluster import RayExecutor
from pipeline.config import Job
from pipeline.job import Executor, Run, here, run
from pipeline.shard import Part
from pipeline.tally import Listed

QUICK_ROWS = 20
RATES = (
    ("ray", "whole_run", "run_s"),
    ("ray", "working", "work_s"),
    ("in_process", "working", "work_s"),
    ("in_process", "per_cpu_s", "cpu_s"),
)


@dataclass(slots=True)
class Timeline:
    """A `Progress` that looks at the clock.

        begun -> planned -> working ... reported -> ended
               plan     start      work           finish

    `plan` scans the input. `start` is Ray's start, and the replicas' processes, imports and tokenizers. `work` is from
    the beginning of the first shard on any replica to the report of the last part to the driver. `finish` stops Ray and
    writes the manifest. `cpu` is what this process computed, all its threads: without Ray that is all there was, and it
    depends little on what else the machine does; with Ray it is the driver's part.
    """

    begun: float = field(default_factory=time.perf_counter)
    cpu_begun: float = field(default_factory=time.process_time)
    planned: float = 0.0
    working: float = float("inf")
    reported: float = 0.0
    ended: float = 0.0
    cpu_ended: float = 0.0
    shards_s: float = 0.0
    engine_s: float = 0.0

    def start(self, num_rows: int, num_shards: int, done: Collection[Listed]) -> None:
        """The plan is made."""
        self.planned = time.perf_counter()

    def part(self, part: Part) -> None:
        """A part is published; its shard began `part.seconds` ago."""
        self.reported = time.perf_counter()
        self.working = min(self.working, self.reported - part.seconds)
        self.shards_s += part.seconds
        self.engine_s += part.engine_s

    def seconds(self) -> dict[str, float]:
        """Of the whole, of each stage, of all shards, which run at the same time, and of CPU."""
        stages = {
            "run_s": self.ended - self.begun,
            "plan_s": self.planned - self.begun,
            "start_s": self.working - self.planned,
            "work_s": self.reported - self.working,
            "finish_s": self.ended - self.reported,
            "shards_s": self.shards_s,
            "cpu_s": self.cpu_ended - self.cpu_begun,
        }
        return {name: round(value, 3) for name, value in stages.items()}


def timed_run(job: Job, execute: Executor) -> tuple[Run, Timeline]:
    """Do a job with the no-op engine."""
    timeline = Timeline()
    finished = run(job, execute, timeline, make_noop_engine)
    timeline.ended, timeline.cpu_ended = time.perf_counter(), time.process_time()
    assert finished.manifest["totals"]["errors"] == 0, finished.manifest["totals"]
    return finished, timeline


def measure(rows: int, replicas: int, pairs: int, *, with_ray: bool = True) -> dict[str, Any]:
    """Alternate runs through Ray and in this process; rates are medians."""
    conditions = machine()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (["ray"] if with_ray else []) + ["in_process"]}
    shard_rows = 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.parquet"
        write_input(source, rows)
        for repeat in range(pairs):
            for name, seconds in runs.items():
                job = noop_job(source, Path(folder) / f"{name}-{repeat}", replicas)
                finished, timeline = timed_run(job, RayExecutor(job.run) if name == "ray" else here)
                shard_rows = finished.manifest["parts"][0]["rows"]
                seconds.append(timeline.seconds() | {"manifest_elapsed_s": finished.manifest["timings"]["elapsed_s"]})
    return {
        "machine": conditions,
        "rows": rows,
        "replicas": replicas,
        "shard_rows": shard_rows,
        "prompt_characters": PROMPT_CHARACTERS,
        "new_tokens": NUM_TOKENS,
        "rows_per_s": {
            f"{name}_{label}": _rate(rows, runs[name], stage) for name, label, stage in RATES if name in runs
        },
        "runs": runs,
    }


def profile(rows: int, num_lines: int = 40) -> None:
    """Print where the time of a run in this process goes. The profiler itself slows small functions most."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.parquet"
        write_input(source, rows)
        timed_run(noop_job(source, Path(folder) / "warm", 1), here)
        profiler = cProfile.Profile()
        job = noop_job(source, Path(folder) / "out", 1)
        profiled: Callable[[Job, Executor], tuple[Run, Timeline]] = timed_run
        _, timeline = profiler.runcall(profiled, job, here)
    print(f"{rows:,} rows; seconds under the profiler: {timeline.seconds()}")
    statistics = pstats.Stats(profiler).strip_dirs()
    statistics.sort_stats("tottime").print_stats(num_lines)
    statistics.sort_stats("cumulative").print_stats(num_lines)


def _rate(rows: int, runs: Sequence[dict[str, float]], stage: str) -> int:
    return round(rows / median(seconds[stage] for seconds in runs))


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, numbers={"rows": 400_000, "replicas": 2}, flags=["profile"])
    rows = QUICK_ROWS if chosen.quick else chosen.rows
    if chosen.profile:
        profile(rows)
        return
    result = measure(rows, chosen.replicas, chosen.pairs, with_ray=not chosen.quick)
    for name, runs in result["runs"].items():
        for seconds in runs:
            print(f"{name:10}", "  ".join(f"{stage} {value:.2f}" for stage, value in seconds.items()))
    for name, rate in result["rows_per_s"].items():
        print(f"{name:22} {rate:>8,} rows/s")
    print(write_result("flow", result, chosen.quick))


if __name__ == "__main__":
    main()
