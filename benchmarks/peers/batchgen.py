"""Ours: the engine on one thread, as a replica of the pipeline holds it.

Options: `strategies`, lists of strategies as in a job file, each list one call of the engine (`max_new_tokens` comes
from the row); `top_k`, alternatives recorded per step, or None: the step chooses a token and nothing is measured.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.peers.serving import Once, Work, serve
from pipeline.engine import Engine, decode, keep_freed_memory, load_model, turn
from pipeline.engine.measure import Measures
from pipeline.records import Request, Response, RowError, row_seed
from pipeline.strategies import Strategy, num_rows

SEED = 0


def prepare(work: Work) -> Once:
    """Load the checkpoint; each call generates for all prompts."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(len(work["cores"]))
    model = load_model(work["checkpoint"], work["dtype"], work["device"])
    whole_cache = work["batch"] * model.num_positions * model.kv_bytes_per_token
    engine = Engine(
        model,
        eos_token_ids=(),
        token_bytes=[],
        num_alternatives=work["options"]["top_k"] or 0,
        max_slots=work["batch"],
        cache_bytes=2 << 30 if work["device"] == "cpu" else whole_cache,
    )
    gc.freeze()  # as a replica does
    calls = [_requests(work, strategies) for strategies in work["options"]["strategies"]]

    def once() -> int:
        with ExitStack() as stack:
            if work["options"]["top_k"] is None:
                stack.enter_context(patch.object(decode, "measure", _only_choose))
                stack.enter_context(patch.object(turn, "score", _no_score))
            return sum(_num_tokens(response) for requests in calls for response in engine.generate(requests))

    return once


def _only_choose(logits: Tensor, _k: int) -> Measures:
    """`measure` for greedy search alone: the most probable token, by the fastest way that torch has, and zeros."""
    rows = len(logits)
    return Measures(
        log_normalisers=logits.new_zeros(rows),
        best=logits.max(-1).indices,
        entropies=np.zeros(rows, np.float32),
        top_token_ids=np.zeros((rows, 0), np.int32),
        top_probs=np.zeros((rows, 0), np.float32),
    )


def _no_score(_logits: Tensor, _measures: Measures, rows: Tensor, _tokens: Tensor) -> tuple[list[float], list[int]]:
    """`score` that looks at nothing."""
    return [0.0] * len(rows), [1] * len(rows)


def _requests(work: Work, strategies: list[dict[str, Any]]) -> list[Request]:
    """Every prompt under every strategy, as a shard asks for them."""
    parsed = {limit: [_parsed(each, limit) for each in strategies] for limit in {*work["limits"]}}
    return [
        Request(tuple(prompt), strategy, _seeds(row, strategy))
        for row, (prompt, limit) in enumerate(zip(work["prompts"], work["limits"], strict=True))
        for strategy in parsed[limit]
    ]


def _parsed(values: dict[str, Any], limit: int) -> Strategy:
    adapter: TypeAdapter[Strategy] = TypeAdapter(Strategy)
    return adapter.validate_python({"name": values["type"], "max_new_tokens": limit, **values})


def _seeds(row: int, strategy: Strategy) -> tuple[int, ...]:
    return tuple(row_seed(SEED, str(row), strategy.name, sample) for sample in range(num_rows(strategy)))


def _num_tokens(response: Response) -> int:
    assert not isinstance(response.completions, RowError), response.completions
    return sum(len(completion.token_ids) for completion in response.completions)


if __name__ == "__main__":
    serve(prepare, "torch")
