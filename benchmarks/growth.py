"""How cost grows: with rows, context, batch, recorded alternatives and strategies; on one core, as curves.

    python -m benchmarks.growth [--pairs 3] [--quick]

Rows go through the whole pipeline in one process with a small model, for there the pipeline itself weighs most. The
other curves are the engine's on GPT-2 124M in float32, milliseconds per new token: for context of the steps alone, as
texts grow, for the others of the whole work.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.command import options
from benchmarks.flow import Timeline
from benchmarks.machine import machine, write_result
from benchmarks.models import GPT2_124M, SMALL, TINY, Size, checkpoint
from benchmarks.noop import write_input
from benchmarks.plots import lines
from benchmarks.teams import Peer, here
from benchmarks.workloads import uniform
from pipeline.engine.model import GPT2
from pipeline.job import here as in_process
from pipeline.job import run
from pipeline.jobfile import parse_job

DTYPE = "float32"
Point = tuple[float, list[float]]  # where, and every timing
GREEDY = ({"type": "greedy"},)


def seconds(
    size: Size, repeats: int, *, rows: int, prompt_tokens: int, new_tokens: int, top_k: int = 10, strategies: int = 1
) -> list[float]:
    """Of each repeat of a work on the engine, all rows decoded together."""
    several = [{"name": f"s{i}", "type": "sampling", "temperature": 0.5 + 0.1 * i} for i in range(strategies)]
    chosen = [*GREEDY] if strategies == 1 else several
    peer = Peer(
        "batchgen", "benchmarks.peers.batchgen", {"strategies": [chosen], "top_k": top_k}, completions=strategies
    )
    workload = uniform(rows, prompt_tokens, new_tokens, size.vocab_size)
    once = here(peer, workload, checkpoint(size), DTYPE, rows * strategies)
    return [once().wall_s for _ in range(repeats)]


def rows_curve(size: Size, repeats: int, counts: Sequence[int]) -> list[Point]:
    """New tokens per second of the pipeline in this process."""
    return [(rows, [_rate(size, rows) for _ in range(repeats)]) for rows in counts]


def _rate(size: Size, rows: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        write_input(Path(folder) / "input.parquet", rows)
        job = parse_job(
            {
                "model": str(checkpoint(size)),
                "input": {"path": f"{folder}/input.parquet", "id_column": "id"},
                "output": {"path": f"{folder}/out"},
                "strategies": [{"name": "greedy", "type": "greedy", "max_new_tokens": 8, "ignore_eos": True}],
            }
        )
        timeline = Timeline()
        totals = run(job, in_process, timeline).manifest["totals"]
    return round(float(totals["generated_tokens"]) / (timeline.reported - timeline.working), 1)


def context_curve(size: Size, repeats: int, lengths: Sequence[int], window: int) -> list[Point]:
    """Milliseconds per new token of 16 rows that grow from the first length to the last: of so many steps after each
    length, the median."""
    starts: list[float] = []
    decode = GPT2.decode

    def timed(*arguments: Any) -> Any:
        starts.append(time.perf_counter())
        return decode(*arguments)

    new_tokens = lengths[-1] - lengths[0] + window + 2  # the first comes with the prompt, the last ends no interval
    with patch.object(GPT2, "decode", timed):
        seconds(size, repeats, rows=16, prompt_tokens=lengths[0], new_tokens=new_tokens)
    steps = 1e3 / 16 * np.diff(np.reshape(starts, (repeats, -1)))  # (repeats, steps)
    at = {length: steps[:, length - lengths[0] :][:, :window] for length in lengths}
    return [(length, np.median(found, axis=1).round(4).tolist()) for length, found in at.items()]


def cost_curve(at: Callable[[int], tuple[int, list[float]]], where: Sequence[int]) -> list[Point]:
    """Milliseconds per new token; `at` gives the tokens and the seconds of a place."""
    costs: list[Point] = []
    for place in where:
        num_tokens, timings = at(place)
        costs.append((place, [round(1e3 * each / num_tokens, 4) for each in timings]))
    return costs


def measure(repeats: int, quick: bool) -> dict[str, list[Point]]:
    """All curves."""
    size, new = (TINY, 2) if quick else (GPT2_124M, 16)
    rows = 2 if quick else 64

    def batch(count: int) -> tuple[int, list[float]]:
        return count * new, seconds(size, repeats, rows=count, prompt_tokens=32, new_tokens=new)

    def top_k(k: int) -> tuple[int, list[float]]:
        return rows * new, seconds(size, repeats, rows=rows, prompt_tokens=32, new_tokens=new, top_k=k)

    def strategies(count: int) -> tuple[int, list[float]]:
        work = seconds(size, repeats, rows=16, prompt_tokens=32, new_tokens=new, strategies=count)
        return 16 * count * new, work

    return {
        "rows": rows_curve(TINY if quick else SMALL, repeats, (20, 40) if quick else (1_000, 10_000, 100_000)),
        "context": context_curve(size, repeats, (8, 12) if quick else (16, 64, 256, 512, 960), 2 if quick else 32),
        "batch": cost_curve(batch, (1, 2) if quick else (1, 4, 16, 64, 128, 256)),
        "top_k": cost_curve(top_k, (1, 10) if quick else (1, 10, 100, 1000)),
        "strategies": cost_curve(strategies, (1, 2) if quick else (1, 2, 4, 8)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print, draw."""
    chosen = options(__doc__ or "", arguments)
    conditions: dict[str, Any] = {"machine": machine(), "model": asdict(GPT2_124M), "model_of_rows": asdict(SMALL)}
    curves = measure(chosen.pairs, chosen.quick)
    for name, points in curves.items():
        unit = "tokens/s" if name == "rows" else "ms per new token"
        medians = [(where, median(timings)) for where, timings in points]
        print(f"{name:12}" + "   ".join(f"{where:,}: {value:,.3f}" for where, value in medians), unit)
        lines(f"growth-{name}", "Cost of growth", name, unit, {"batchgen": medians}, chosen.quick)
    print(write_result("growth", conditions | {"dtype": DTYPE, "curves": curves}, chosen.quick))


if __name__ == "__main__":
    main()
