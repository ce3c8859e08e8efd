"""A fake engine, small inputs and runs in this process: the flow without a model, in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import job
from pipeline.config import Job
from pipeline.records import Completion, Request, Response, RowError, Usage
from pipeline.shard import Setup
from pipeline.strategies import Score
from pipeline.tokenizer import Tokenizer

GREEDY = {"name": "greedy", "type": "greedy", "max_new_tokens": 4}
SAMPLES = {"name": "samples", "type": "sampling", "max_new_tokens": 4, "num_return_sequences": 2}


class EchoEngine:
    """Completes a prompt with its own first two tokens, or scores its target; fails on prompts that start with 0.

    Its usage is made up: one step for each call, half of the batch used.
    """

    usage = Usage()

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        self.usage += Usage(num_prefills=1, num_decode_steps=1, used_slot_steps=1, offered_slot_steps=2)
        return [self._response(request) for request in requests]

    def _response(self, request: Request) -> Response:
        if request.prompt_token_ids[0] == 0:
            return Response(RowError("no_token_left", "nothing left"))
        is_scored = isinstance(request.strategy, Score)
        tokens = np.array(request.target_token_ids if is_scored else request.prompt_token_ids[:2], np.int32)
        steps = np.arange(len(tokens))
        completion = Completion(
            token_ids=tokens,
            finish_reason="scored" if is_scored else "length",
            stop_match=None,
            token_logprobs=np.float32(-steps),
            sampling_logprobs=None if is_scored else np.float32(-steps / 2),
            token_ranks=np.int32(steps + 1),
            entropies=np.float32(steps),
            top_token_ids=np.int32([[1, 2, 3]] * len(tokens)),
            top_probs=np.float32([[0.5, 0.25, 0.125]] * len(tokens)),
        )
        return Response((completion,) * len(request.seeds))


def echo(_setup: Setup, _tokenizer: Tokenizer) -> EchoEngine:
    """Engine maker; picklable."""
    return EchoEngine()


def write_prompts(path: Path, prompts: Sequence[str | None], **columns: Any) -> Path:
    """A Parquet file with columns id, prompt and the given ones."""
    ids = [f"r{index}" for index in range(len(prompts))]
    pq.write_table(pa.table({"id": ids, "prompt": pa.array(prompts, pa.string()), **columns}), path)
    return path


def make_job(source: Path, output: Path, /, **changes: Any) -> Job:
    """A job over the demo model that never stops for its errors; `changes` replace top-level keys."""
    values: dict[str, Any] = {
        "model": "demo",
        "input": {"path": str(source), "id_column": "id"},
        "output": {"path": str(output), "top_k": 3},
        "strategies": [GREEDY, SAMPLES],
        "run": {"shard_rows": 3},
    } | changes
    return Job.model_validate(values | {"run": {"max_error_rate": 1} | values["run"]})


def run_echo(work: Job, **settings: Any) -> job.Run:
    """Run a job here with the fake engine."""
    return job.run(work, job.here, engine_maker=echo, **settings)


def read_output(folder: Path) -> pa.Table:
    """All parts of a run as one table."""
    return pq.read_table(folder / "data")


def part_bytes(folder: Path) -> dict[str, bytes]:
    """Bytes of every part by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}
