"""Peak memory of an engine at work against what it said before that it would need beside its weights.

    python -m benchmarks.engine_memory [--dtype float32 bfloat16] [--quick]

The prompts are so many and so long that the whole cache is used. Each case has a process of its own; its peak is that
since the weights were loaded.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.command import options
from benchmarks.machine import machine, peak_bytes, write_result
from benchmarks.models import GPT2_124M, TINY, Size, checkpoint
from benchmarks.workloads import Workload, uniform
from pipeline.engine import Engine, keep_freed_memory, load_model
from pipeline.engine.memory import needed_bytes
from pipeline.records import Request, row_seed
from pipeline.strategies import BeamSearch, Greedy, Sampling, Strategy, num_rows

MOST_SLOTS, CACHE_BYTES = 128, 2 << 30
ROWS = {"float32": 64, "bfloat16": 128}  # so many of 438 tokens fill the cache


def strategies(new_tokens: int) -> tuple[Strategy, ...]:
    """One at a time: what copies no logits, what copies them, and what moves slots."""
    return (
        Greedy(name="greedy", type="greedy", max_new_tokens=new_tokens),
        Sampling(name="sampling", type="sampling", max_new_tokens=new_tokens, top_p=0.9, repetition_penalty=1.1),
        BeamSearch(name="beams", type="beam_search", max_new_tokens=new_tokens, num_beams=4),
    )


def peak(folder: Path, dtype: str, workload: Workload, strategy: Strategy, cache_bytes: int) -> dict[str, Any]:
    """What was planned and what was taken, in bytes, beside the weights."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(1)
    model = load_model(str(folder), dtype, "cpu")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = peak_bytes(os.getpid())
    engine = Engine(
        model, eos_token_ids=(), token_bytes=[], num_alternatives=10, max_slots=MOST_SLOTS, cache_bytes=cache_bytes
    )
    seeds = [
        tuple(row_seed(0, str(row), strategy.name, each) for each in range(num_rows(strategy)))
        for row in range(len(workload.prompts))
    ]
    engine.generate([Request(*each) for each in zip(workload.prompts, [strategy] * len(seeds), seeds, strict=True)])
    return {
        "strategy": strategy.name,
        "planned_bytes": needed_bytes(model, MOST_SLOTS, cache_bytes),
        "taken_bytes": peak_bytes(os.getpid()) - before,
    }


def peak_in_a_fresh_process(*arguments: Any) -> dict[str, Any]:
    """`peak`, whatever this process has had before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(peak, *arguments).result()


def measure(
    size: Size, dtype: str, workload: Workload, cache_bytes: int, look: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """All strategies, each as `look` does it."""
    conditions, folder, cases = machine(), checkpoint(size), []
    for strategy in strategies(workload.limits[0]):
        case = look(folder, dtype, workload, strategy, cache_bytes)
        cases.append(case | {"ratio": round(case["taken_bytes"] / case["planned_bytes"], 3)})
    return {
        "machine": conditions,
        "model": asdict(size),
        "dtype": dtype,
        "work": workload.described(),
        "batch_rows": MOST_SLOTS,
        "cache_bytes": cache_bytes,
        "cases": cases,
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, dtypes=True)
    for dtype in chosen.dtype:
        if chosen.quick:
            result = measure(TINY, dtype, uniform(4, 8, 4, TINY.vocab_size), 1 << 20, peak)
        else:
            workload = uniform(ROWS[dtype], 430, 8, GPT2_124M.vocab_size)
            result = measure(GPT2_124M, dtype, workload, CACHE_BYTES, peak_in_a_fresh_process)
        for case in result["cases"]:
            planned, taken = (case[name] / 2**30 for name in ("planned_bytes", "taken_bytes"))
            print(f"{dtype:10} {case['strategy']:10} planned {planned:.2f} GiB, taken {taken:.2f}: {case['ratio']:.3f}")
        print(write_result(f"engine_memory-{dtype}", result, chosen.quick))


if __name__ == "__main__":
    main()
