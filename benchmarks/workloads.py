"""Prompts and limits, seeded: the same for every peer, and known before anything runs.

Where texts end is drawn beforehand and given as each row's limit, so that every program does the same useful work,
whatever tokens it generates.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

SEED = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts of token ids, and how many new tokens each row has: no more, no less."""

    prompts: tuple[tuple[int, ...], ...]
    limits: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """New tokens of all rows."""
        return sum(self.limits)

    def first(self, rows: int) -> Workload:
        """The first rows alone."""
        return Workload(self.prompts[:rows], self.limits[:rows])

    def share(self, index: int, count: int) -> Workload:
        """One of `count` shares of about equal work: rows are dealt out in order of their length."""
        order = sorted(range(len(self.prompts)), key=lambda row: (len(self.prompts[row]) + self.limits[row], row))
        rows = sorted(order[index::count])
        return Workload(tuple(self.prompts[row] for row in rows), tuple(self.limits[row] for row in rows))

    def described(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "prompts": len(self.prompts),
            "prompt_tokens": _spread([len(prompt) for prompt in self.prompts]),
            "new_tokens": _spread(self.limits),
            "new_tokens_in_all": self.num_tokens,
            "seed": SEED,
        }


def uniform(rows: int, prompt_tokens: int, new_tokens: int, vocab_size: int, seed: int = SEED) -> Workload:
    """Random prompts of one length and one limit."""
    rng = random.Random(seed)
    return Workload(tuple(_prompt(rng, prompt_tokens, vocab_size) for _ in range(rows)), (new_tokens,) * rows)


def ragged(rows: int, vocab_size: int, *, longest: int = 256, most_new: int = 128, seed: int = SEED) -> Workload:
    """Prompt lengths as in user traffic, and texts that end with a chance of 1.6 % at every step.

    Lengths are log-normal with a median of 28 and a sigma of 1; limits are geometric.
    """
    rng = random.Random(seed)
    lengths = [min(longest, max(1, round(rng.lognormvariate(math.log(28), 1.0)))) for _ in range(rows)]
    limits = tuple(min(most_new, 1 + int(math.log(1 - rng.random()) / math.log(1 - 0.016))) for _ in range(rows))
    return Workload(tuple(_prompt(rng, length, vocab_size) for length in lengths), limits)


def _prompt(rng: random.Random, length: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(rng.randrange(vocab_size) for _ in range(length))


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}
