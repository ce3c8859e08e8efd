"""The whole pipeline against its own engine, and two replicas against one: GPT-2 124M, text in, Parquet out, Ray.

    python -m benchmarks.pipeline [--dtype bfloat16] [--pairs 5] [--quick]

4,096 prompts of about 64 characters in one Parquet file, 16 new tokens each, greedy, the 10 best alternatives recorded,
in shards of as many rows as a job has that names no number. The pipeline's time is from the start of the first shard
to the report of the last part, without the seconds that Ray and the models take to start; the engine gets the same
prompts as token ids, all at once, in processes as new as the replicas. `in_engine` is what the replicas' clocks say: of
the time of all replicas, the share that passed in the engine's `generate`. The rest is reading, tokenising, writing,
and waiting for shards or for the last replica.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import pyarrow.parquet as pq

from benchmarks.command import options
from benchmarks.flow import Timeline
from benchmarks.machine import machine, write_result
from benchmarks.models import GPT2_124M, TINY, Size, checkpoint
from benchmarks.noop import write_input
from benchmarks.pairs import Run, Timing, in_turn, rates, ratio
from benchmarks.teams import Layout, Peer, here, team
from benchmarks.workloads import Workload
from pipeline.cluster import RayExecutor
from pipeline.config import Job
from pipeline.job import Executor, run
from pipeline.job import here as in_process
from pipeline.jobfile import parse_job
from pipeline.tokenizer import Tokenizer

CHARACTERS = 64
BATCH = 128  # what a replica's engine is made with


@dataclass(frozen=True, slots=True)
class Shape:
    """What is run, and how large."""

    size: Size
    rows: int
    new_tokens: int
    shard_rows: int | Literal["auto"]
    replicas: tuple[int, ...]


def shape(quick: bool) -> Shape:
    """In earnest, or tiny and without Ray."""
    if quick:
        return Shape(TINY, rows=8, new_tokens=2, shard_rows=4, replicas=(1,))
    return Shape(GPT2_124M, rows=4096, new_tokens=16, shard_rows="auto", replicas=(1, len(os.sched_getaffinity(0))))


def make_job(what: Shape, dtype: str, replicas: int, source: Path, output: Path) -> Job:
    """Greedy over the file."""
    greedy = {"name": "greedy", "type": "greedy", "max_new_tokens": what.new_tokens, "ignore_eos": True}
    return parse_job(
        {
            "model": {"name": str(checkpoint(what.size)), "dtype": dtype},
            "input": {"path": str(source), "id_column": "id"},
            "output": {"path": str(output), "top_k": 10},
            "strategies": [greedy],
            "run": {"replicas": replicas, "shard_rows": what.shard_rows},
        }
    )


def timed_job(job: Job, execute: Executor, replicas: int, in_engine: list[float]) -> Timing:
    """Of one run; the CPU seconds of replicas are not known."""
    timeline = Timeline()
    with tempfile.TemporaryDirectory() as folder:
        output = job.output.model_copy(update={"path": folder})
        finished = run(job.model_copy(update={"output": output}), execute, timeline)
    assert finished.manifest["totals"]["errors"] == 0, finished.manifest["totals"]
    work_s = timeline.reported - timeline.working
    in_engine.append(round(timeline.engine_s / work_s / replicas, 4))
    return Timing(round(work_s, 4), 0.0)


def timed_engine(engine: Peer, workload: Workload, model: Path, dtype: str, replicas: int) -> Timing:
    """The first work of new processes."""
    with team(engine, workload, model, dtype, Layout(replicas, 1, BATCH)) as processes:
        return processes()


def read_workload(source: Path, what: Shape) -> Workload:
    """The file's prompts as token ids."""
    tokenizer = Tokenizer(checkpoint(what.size), what.size.vocab_size)
    prompts = tokenizer.encode(pq.read_table(source)["prompt"].to_pylist())
    return Workload(tuple(map(tuple, prompts)), (what.new_tokens,) * len(prompts))


def measure(dtype: str, pairs: int, quick: bool) -> dict[str, Any]:
    """Rates of both with one replica and with one on each core."""
    conditions, what, model = machine(), shape(quick), checkpoint(shape(quick).size)
    engine = Peer("engine", "benchmarks.peers.batchgen", {"strategies": [[{"type": "greedy"}]], "top_k": 10})
    in_engine: dict[int, list[float]] = {replicas: [] for replicas in what.replicas}
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.parquet"
        write_input(source, what.rows, characters=CHARACTERS)
        workload = read_workload(source, what)
        for replicas, shares in in_engine.items():
            job = make_job(what, dtype, replicas, source, Path(folder))
            execute = in_process if quick else RayExecutor(job.run)
            runs[f"pipeline-{replicas}"] = partial(timed_job, job, execute, replicas, shares)
            runs[f"engine-{replicas}"] = (
                here(engine, workload, model, dtype, BATCH)
                if quick
                else partial(timed_engine, engine, workload, model, dtype, replicas)
            )
        rounds = in_turn(runs, pairs)
    most = what.replicas[-1]
    return {
        "machine": conditions,
        "shape": asdict(what),
        "dtype": dtype,
        "batch": BATCH,
        "work": workload.described(),
        "tokens_per_s": rates(rounds, workload.num_tokens),
        "share_of_engine": {each: ratio(rounds, f"engine-{each}", f"pipeline-{each}") for each in what.replicas},
        "in_engine": {each: {"median": median(shares), "all": shares} for each, shares in in_engine.items()},
        "times_one_replica": {name: ratio(rounds, f"{name}-1", f"{name}-{most}") for name in ("engine", "pipeline")},
        "rounds": [{name: timing._asdict() for name, timing in each.items()} for each in rounds],
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, dtypes=True)
    for dtype in chosen.dtype:
        result = measure(dtype, chosen.pairs, chosen.quick)
        for name, rate in result["tokens_per_s"].items():
            print(f"{dtype:10} {name:14} {rate:8.1f} tokens/s")
        for replicas, share in result["share_of_engine"].items():
            in_engine = result["in_engine"][replicas]["median"]
            print(
                f"{dtype:10} {replicas} replica(s): {share['median']:.1%} of the engine's own rate, "
                f"{in_engine:.1%} of their time in the engine"
            )
        print(f"{dtype:10} all replicas against one: {result['times_one_replica']['pipeline']['median']:.2f} times")
        print(write_result(f"pipeline-{dtype}", result, chosen.quick))


if __name__ == "__main__":
    main()
