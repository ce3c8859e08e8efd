"""How long `batchgen report` takes, how large its file is and how much memory it needs, for N completions and ten times
as few.

    python -m benchmarks.report [--completions 100000]

The completions are drawn at random, because a report reads them and does not care who made them: 10 to 40 tokens, the
top 10 recorded, three per prompt (one greedy, two samples). Each report is written by a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, peak_bytes, write_result
from benchmarks.noop import write_input
from pipeline import job
from pipeline.jobfile import parse_job
from pipeline.records import Completion, Request, Response
from pipeline.report import write_report
from pipeline.shard import Setup
from pipeline.tokenizer import Tokenizer

PER_PROMPT = 3
TOP_K = 10


class RandomEngine:
    """Draws completions that have the shape of real ones."""

    def __init__(self, vocab_size: int) -> None:
        self.random, self.vocab_size = np.random.default_rng(0), vocab_size

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """As many completions as each request asks for."""
        return [Response(tuple(self._completion() for _ in request.seeds)) for request in requests]

    def _completion(self) -> Completion:
        steps = int(self.random.integers(10, 41))
        top_probs = -np.sort(-self.random.dirichlet(np.full(TOP_K + 1, 0.3), steps)[:, :TOP_K], axis=1)
        ranks = np.minimum(self.random.geometric(0.6, steps), TOP_K)
        top_token_ids = self.random.integers(1, self.vocab_size, (steps, TOP_K))
        chosen = np.arange(steps), ranks - 1
        logprobs = np.log(np.maximum(top_probs[chosen], 1e-9)).astype(np.float32)
        return Completion(
            token_ids=top_token_ids[chosen].astype(np.int32),
            finish_reason="length",
            stop_match=None,
            token_logprobs=logprobs,
            sampling_logprobs=logprobs,
            token_ranks=ranks.astype(np.int32),
            entropies=self.random.gamma(2.0, 1.0, steps).astype(np.float32),
            top_token_ids=top_token_ids.astype(np.int32),
            top_probs=top_probs.astype(np.float32),
        )


def make_random_engine(setup: Setup, tokenizer: Tokenizer) -> RandomEngine:
    """An engine maker."""
    return RandomEngine(len(tokenizer.tokens))


def make_run(folder: Path, completions: int) -> Path:
    """A finished run of so many completions."""
    write_input(folder / "prompts.parquet", completions // PER_PROMPT)
    strategies = [
        {"name": "greedy", "type": "greedy", "max_new_tokens": 40},
        {"name": "nucleus", "type": "sampling", "max_new_tokens": 40, "top_p": 0.9, "num_return_sequences": 2},
    ]
    work = parse_job(
        {
            "model": "demo",
            "input": {"path": str(folder / "prompts.parquet"), "id_column": "id"},
            "output": {"path": str(folder / "out"), "top_k": TOP_K},
            "strategies": strategies,
        }
    )
    job.run(work, job.here, engine_maker=make_random_engine)
    return folder / "out"


def measure(folder: Path) -> dict[str, Any]:
    """Seconds, bytes and peak of one report, written by this process."""
    began = time.perf_counter()
    written = write_report(folder, folder.parent / "report.html")
    return {
        "seconds": time.perf_counter() - began,
        "file_bytes": written.num_bytes,
        "peak_bytes": peak_bytes(os.getpid()),
        "prompts_shown": written.num_shown,
    }


def measure_run(completions: int) -> dict[str, Any]:
    """The same for a run made for it."""
    with tempfile.TemporaryDirectory() as root:
        folder = make_run(Path(root), completions)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return {"completions": completions, **process.submit(measure, folder).result()}


def main() -> None:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--completions", type=int, default=100_000)
    completions = parser.parse_args().completions
    found = [measure_run(number) for number in (completions // 10, completions)]
    for each in found:
        size, peak = each["file_bytes"] / 1e6, each["peak_bytes"] / 2**20
        print(f"{each['completions']:>9,} completions: {each['seconds']:.1f} s, {size:.1f} MB, peak {peak:.0f} MiB")
    write_result("report", {"machine": machine(), "reports": found})


if __name__ == "__main__":
    main()
