"""What the pipeline costs per row: a job with an engine that answers at once, through Ray and in one process.

    python -m benchmarks.flow [--rows 100000] [--replicas 2] [--repeats 3]
    python -m benchmarks.flow --profile        where the time goes, in one process

Every run is a whole one: plan, Ray started and stopped, input read, prompts tokenised, parts encoded, flushed to disk
and published, manifest. Two rates come of it, and `Timeline` says what is in each.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import machine, write_result
from benchmarks.noop import NUM_TOKENS, PROMPT_CHARACTERS, make_noop_engine, noop_job, write_input
from pipeline.cluster import RayExecutor
from pipeline.config import Job
from pipeline.job import Executor, Run, here, run
from pipeline.shard import Part
from pipeline.tally import Listed


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

    def start(self, num_rows: int, num_shards: int, done: Collection[Listed]) -> None:
        """The plan is made."""
        self.planned = time.perf_counter()

    def part(self, part: Part) -> None:
        """A part is published; its shard began `part.seconds` ago."""
        self.reported = time.perf_counter()
        self.working = min(self.working, self.reported - part.seconds)
        self.shards_s += part.seconds

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


def measure(rows: int, replicas: int, repeats: int) -> dict[str, Any]:
    """Alternate runs through Ray and in this process; rates are medians over the repeats."""
    conditions = machine()
    runs: dict[str, list[dict[str, float]]] = {"ray": [], "in_process": []}
    shard_rows = 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.parquet"
        write_input(source, rows)
        for repeat in range(repeats):
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
            "ray_whole_run": _rate(rows, runs["ray"], "run_s"),
            "ray_working": _rate(rows, runs["ray"], "work_s"),
            "in_process_working": _rate(rows, runs["in_process"], "work_s"),
            "in_process_per_cpu_s": _rate(rows, runs["in_process"], "cpu_s"),
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


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description="Rows per second of the pipeline with a no-op engine.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="profile one process instead")
    arguments = parser.parse_args()
    if arguments.profile:
        profile(arguments.rows)
        return
    result = measure(arguments.rows, arguments.replicas, arguments.repeats)
    for name, runs in result["runs"].items():
        for seconds in runs:
            print(f"{name:10}", "  ".join(f"{stage} {value:.2f}" for stage, value in seconds.items()))
    for name, rate in result["rows_per_s"].items():
        print(f"{name:22} {rate:>8,} rows/s")
    print(write_result("flow", result))


if __name__ == "__main__":
    main()
