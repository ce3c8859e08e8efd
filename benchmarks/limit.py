"""What the machine can do: matrix products at the shapes of GPT-2, and memory bandwidth, on one core and on all.

    python -m benchmarks.limit [--dtype float32 bfloat16] [--rows 1 ... 256] [--quick]

For every number of rows it times all linear layers of the model, the head included, once each, as one decode step has
them; the weights are as many different numbers, so that they come from memory as they do in earnest. "All cores" is one
process on each at the same time, as replicas run. "linear" is `F.linear`, "packed" the engine's own way: its kernels,
or oneDNN with `BATCHGEN_KERNELS=torch`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

from benchmarks.command import options
from benchmarks.machine import machine, write_result
from benchmarks.models import GPT2_124M, TINY, Size
from benchmarks.peers.linears import LINEAR, PACKED, Layer, linears
from benchmarks.plots import lines

ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
REPEATS = 5
COPY_BYTES = 256 << 20


def step_times(size: Size, dtype: str, way: str, rows: list[int], repeats: int, core: int) -> list[dict[str, Any]]:
    """Seconds of each repeat of all products of one step, and of the head alone, for each number of rows."""
    import torch

    os.sched_setaffinity(0, [core])
    torch.set_num_threads(1)
    blocks, head = linears(asdict(size), getattr(torch, dtype), way)
    return [_step_times(blocks, head, size.n_embd, dtype, each, repeats) for each in rows]


def _step_times(
    blocks: list[tuple[int, Layer]], head: Layer, width: int, dtype: str, rows: int, repeats: int
) -> dict[str, Any]:
    import torch

    inputs = {fan_in: torch.randn(rows, fan_in).to(getattr(torch, dtype)) for fan_in in {width, *dict(blocks)}}
    timings: dict[str, list[float]] = {"blocks_s": [], "head_s": []}
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for fan_in, layer in blocks:
                layer(inputs[fan_in])
            between = time.perf_counter()
            head(inputs[width])
            timings["blocks_s"].append(round(between - start, 6))
            timings["head_s"].append(round(time.perf_counter() - between, 6))
    return {"rows": rows} | {name: values[1:] for name, values in timings.items()}  # the first warms up


def copy_times(num_bytes: int, repeats: int, core: int) -> list[float]:
    """Bytes read and written per second by a copy that no cache holds, in GB/s, for each repeat."""
    import torch

    os.sched_setaffinity(0, [core])
    torch.set_num_threads(1)
    source, target = torch.ones(num_bytes // 4), torch.empty(num_bytes // 4)
    target.copy_(source)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return [round(2 * num_bytes / each / 1e9, 2) for each in seconds]


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes, all started and waiting, so that tasks for all of them begin at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_started, initargs=(barrier,)) as pool:
        for each in [pool.submit(os.getpid) for _ in range(count)]:
            each.result()
        yield pool


def _started(barrier: Any) -> None:
    import torch  # noqa: F401  # takes seconds

    barrier.wait()


def rate(times: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """Tokens per second of all processes together, and what a step takes, by rows."""
    return [_rate(list(same_rows)) for same_rows in zip(*times, strict=True)]


def _rate(processes: list[dict[str, Any]]) -> dict[str, float]:
    heads = [median(each["head_s"]) for each in processes]
    steps = [median(map(sum, zip(each["blocks_s"], each["head_s"], strict=True))) for each in processes]
    return {
        "rows": processes[0]["rows"],
        "step_ms": round(1e3 * sum(steps) / len(steps), 2),
        "head_ms": round(1e3 * sum(heads) / len(heads), 2),
        "tokens_per_s": round(sum(processes[0]["rows"] / step for step in steps), 1),
    }


def measure(dtypes: list[str], rows: list[int], repeats: int, size: Size, copy_bytes: int) -> dict[str, Any]:
    """Products and bandwidth, on one core and on all."""
    conditions = machine()
    cores = sorted(os.sched_getaffinity(0))
    used = {"one_core": cores[:1], "all_cores": cores}
    with workers(len(cores)) as pool:
        steps = {
            f"{dtype}-{way}-{name}": list(pool.map(partial(step_times, size, dtype, way, rows, repeats), each))
            for dtype in dtypes
            for way in (LINEAR, PACKED)
            for name, each in used.items()
        }
        copies = {name: list(pool.map(partial(copy_times, copy_bytes, repeats), each)) for name, each in used.items()}
    return {
        "machine": conditions,
        "model": asdict(size),
        "steps": {name: rate(times) for name, times in steps.items()},
        "copy_gb_per_s": {name: round(sum(map(median, each)), 1) for name, each in copies.items()},
        "timings": {"steps": steps, "copies_gb_per_s": copies},
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options("Matrix rate and memory bandwidth of this machine.", arguments, dtypes=True)
    rows, size = ([1, 4], TINY) if chosen.quick else (list(ROWS), GPT2_124M)
    repeats, copy_bytes = (1, 1 << 20) if chosen.quick else (REPEATS, COPY_BYTES)
    result = measure(chosen.dtype, rows, repeats, size, copy_bytes)
    for name, steps in result["steps"].items():
        for step in steps:
            print(f"{name:28}" + "   ".join(f"{key} {value:10,.1f}" for key, value in step.items()))
    print("copy, read and written, GB/s:", result["copy_gb_per_s"])
    curves = {name: [(step["rows"], step["tokens_per_s"]) for step in steps] for name, steps in result["steps"].items()}
    print(write_result("limit", result, chosen.quick))
    lines("limit", "All linear layers of one step", "rows", "tokens/s", curves, chosen.quick)


if __name__ == "__main__":
    main()
