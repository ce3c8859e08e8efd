"""A job that decodes nothing: real input, real parts, and an engine that answers at once.

What such a job costs is what the pipeline costs. The engine lives here and not in a command's own module, so that Ray's
workers can import it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Job
from pipeline.jobfile import parse_job
from pipeline.records import Completion, Request, Response
from pipeline.shard import Setup
from pipeline.tokenizer import Tokenizer

NUM_TOKENS = 4  # of every completion
PROMPT_CHARACTERS = 40
TEXT = "the old river town sleeps under slow rain while a young cat walks home along its quiet street"


class NoopEngine:
    """Gives every request the same short completion, made once; after `wait_s`, as if a GPU were at work."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s
        floats, alternatives = np.full(NUM_TOKENS, -1.0, np.float32), np.zeros((NUM_TOKENS, 0))
        completion = Completion(
            token_ids=np.arange(100, 100 + NUM_TOKENS, dtype=np.int32),
            finish_reason="length",
            stop_match=None,
            token_logprobs=floats,
            sampling_logprobs=None,
            token_ranks=np.ones(NUM_TOKENS, np.int32),
            entropies=-floats,
            top_token_ids=alternatives.astype(np.int32),
            top_probs=alternatives.astype(np.float32),
        )
        self.response = Response((completion,))

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """The same answer to each."""
        time.sleep(self.wait_s)
        return [self.response] * len(requests)


def make_noop_engine(setup: Setup, tokenizer: Tokenizer, *, wait_s: float = 0.0) -> NoopEngine:
    """An engine maker."""
    return NoopEngine(wait_s)


def make_registered_engine(setup: Setup, tokenizer: Tokenizer, *, registry: Path) -> NoopEngine:
    """An engine maker that leaves a file named by the pid of its process in the folder `registry`."""
    (registry / str(os.getpid())).touch()
    return NoopEngine()


def write_input(
    path: Path, rows: int, row_group_rows: int | None = None, *, characters: int = PROMPT_CHARACTERS, seed: int = 0
) -> None:
    """A Parquet file with columns `id` and `prompt`, text of so many characters.

    Args:
        path: of the file.
        rows: in it.
        row_group_rows: rows per row group; None for pyarrow's own choice, a million.
        characters: of each prompt.
        seed: of the text.
    """
    rng, words = random.Random(seed), TEXT.split()
    prompts = [" ".join(rng.choices(words, k=characters // 2))[:characters] for _ in range(rows)]
    table = pa.table({"id": [f"row-{row:07d}" for row in range(rows)], "prompt": prompts})
    pq.write_table(table, path, row_group_size=row_group_rows)


def noop_job(input_path: Path, output_path: Path, replicas: int, shard_rows: int | str = "auto") -> Job:
    """One greedy strategy over the input, no alternatives recorded."""
    return parse_job(
        {
            "model": "demo",
            "input": {"path": str(input_path), "id_column": "id"},
            "output": {"path": str(output_path), "top_k": 0},
            "strategies": [{"name": "greedy", "type": "greedy", "max_new_tokens": NUM_TOKENS}],
            "run": {"replicas": replicas, "shard_rows": shard_rows},
        }
    )
