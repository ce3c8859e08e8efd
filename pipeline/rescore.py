"""Stored probabilities of a few rows held against the model: which rows, and how far they may be off.

One forward over prompt and completion gives what the run computed a step at a time, up to rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.proofs import Problem
from pipeline.recorded import Recorded
from pipeline.records import Completion, Request, RowError
from pipeline.reopen import reopen
from pipeline.shard import make_engine
from pipeline.strategies import Score

COLUMNS = ["prompt_token_ids", "token_ids", "token_logprobs", "top_token_ids", "top_probs", "prompt_logprobs"]
SCORE = Score(name="rescore", type="score")


class Difference(NamedTuple):
    """How far two computations of the same numbers are apart at most, or may be."""

    prob: float = 0.0
    logprob: float = 0.0

    def is_within(self, limit: Difference) -> bool:
        """Whether neither is above its limit; NaN is."""
        return self.prob <= limit.prob and self.logprob <= limit.logprob

    def __str__(self) -> str:
        return f"{self.prob:.2g} in a probability, {self.logprob:.2g} in a log-probability"


# What batches, hardware and forwards of other shapes explain. bfloat16 keeps a logit of 100 to the nearest 0.5 only.
TOLERANCES = {"float32": Difference(1e-4, 1e-3), "bfloat16": Difference(0.2, 1.0)}


class Rescorer:
    """Rescores a number of rows, the same every time, spread evenly over parts and strategies.

    Attributes:
        num_done: rows rescored so far; in the end fewer than asked for if there are not enough.
        largest: difference so far.
        tolerance: of the run's number format.
    """

    def __init__(self, run: Recorded, num_rows: int, keys: Sequence[str]) -> None:
        """Load the model.

        Args:
            run: what to hold against it.
            num_rows: to rescore.
            keys: of the parts there are.

        Raises:
            ModelError: it is not the one that the plan recorded.
        """
        self.num_done, self.largest, self.tolerance = 0, Difference(), TOLERANCES[run.job.model.dtype]
        self._shares = {
            key: range(i * num_rows // len(keys), (i + 1) * num_rows // len(keys)) for i, key in enumerate(keys)
        }
        self._engine = make_engine(*reopen(run))

    def check(self, key: str, table: pa.Table) -> Iterator[Problem]:
        """Rescore this part's share of the rows; all of them must be whole."""
        for position in self.picks(key, table):
            row = {name: table[name][position].as_py() for name in COLUMNS}
            difference = self._difference(row)
            self.num_done += 1
            self.largest = Difference(*np.maximum(self.largest, difference).tolist())
            if not difference.is_within(self.tolerance):
                yield Problem("rescore", position, f"the model says otherwise by up to {difference}")

    def picks(self, key: str, table: pa.Table) -> list[int]:
        """Positions of this part's share of the rows: completions, from the strategies in turn."""
        queues: dict[str, deque[int]] = {}
        order = sorted(range(table.num_rows), key=lambda position: _shuffled(key, position))
        strategies, sizes = (table[name].to_pylist() for name in ("strategy", "num_generated_tokens"))
        for position in order:
            if sizes[position]:
                queues.setdefault(strategies[position], deque()).append(position)
        picked = []
        for number in self._shares.get(key, ()):
            waiting = [queues[name] for name in sorted(queues) if queues[name]]
            if waiting:
                picked.append(waiting[number % len(waiting)].popleft())
        return picked

    def _difference(self, row: dict[str, Any]) -> Difference:
        """Between a stored row and its tokens scored after its prompt."""
        request = Request(tuple(row["prompt_token_ids"]), SCORE, (0,), tuple(row["token_ids"]))
        [response] = self._engine.generate([request])
        if isinstance(response.completions, RowError):
            return Difference(prob=1.0, logprob=math.inf)
        [scored] = response.completions
        logprobs: list[tuple[Any, Any]] = [(row["token_logprobs"], scored.token_logprobs)]
        if row["prompt_logprobs"] and response.prompt_logprobs is not None:
            logprobs.append((row["prompt_logprobs"][1:], response.prompt_logprobs[1:]))
        probs: list[tuple[Any, Any]] = [(np.exp(stored), np.exp(found)) for stored, found in logprobs]
        if row["top_probs"]:
            probs.append((row["top_probs"], scored.top_probs))
            probs.append((row["top_probs"], _by_token(row["top_token_ids"], scored)))
        return Difference(prob=_largest(probs), logprob=_largest(logprobs))


def _by_token(token_ids: list[list[int]], scored: Completion) -> list[list[float]]:
    """(S, K) probabilities of the stored alternatives; one that is not among the best has at most the last one's."""
    steps = zip(token_ids, scored.top_token_ids.tolist(), scored.top_probs.tolist(), strict=True)
    return [
        [dict(zip(best, probs, strict=True)).get(token_id, probs[-1]) for token_id in ids] for ids, best, probs in steps
    ]


def _largest(pairs: Iterable[tuple[Any, Any]]) -> float:
    return max((float(np.abs(np.subtract(a, b)).max(initial=0.0)) for a, b in pairs), default=0.0)


def _shuffled(key: str, position: int) -> bytes:
    return hashlib.blake2b(f"{key}:{position}".encode(), digest_size=8).digest()
