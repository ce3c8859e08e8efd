"""95 % intervals from resampled prompts, because the rows of one prompt are not independent of each other.

A Poisson bootstrap over at most 2,048 groups of prompts: each resample weighs a group by how often it was drawn. Up to
2,048 prompts each is a group of its own; beyond that memory stays what it is, and the width of an interval is right to
some percent. Weights depend on nothing, so that intervals repeat, and differences between strategies or runs over the
same input are of pairs.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from pipeline.statistics.ragged import Array

NUM_GROUPS = 2048
NUM_RESAMPLES = 1000
FEWEST_GROUPS = 10


class Estimate(NamedTuple):
    """A value over all rows and the 95 % interval around it; None for what is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


def groups_of(prompts: Array, num_prompts: int) -> Array:
    """The group of each prompt, by its number in the input."""
    if num_prompts <= NUM_GROUPS:
        return prompts
    return mixed(prompts) % np.uint64(NUM_GROUPS)


def resampled(sums: Array) -> Array:
    """(resamples, M) sums over resampled groups, from (G, M) sums per group."""
    return np.asarray(_weights()[:, : len(sums)] @ sums)


def interval(resamples: Array, num_groups: int) -> tuple[float | None, float | None]:
    """2.5th and 97.5th percentile of a statistic's resamples; none where too few groups or resamples have it."""
    finite = resamples[np.isfinite(resamples)]
    if num_groups < FEWEST_GROUPS or len(finite) < 0.95 * len(resamples):
        return None, None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


@cache
def _weights() -> Array:
    return np.random.default_rng(0).poisson(1.0, (NUM_RESAMPLES, NUM_GROUPS)).astype(np.float64)


def mixed(numbers: Array) -> Array:
    """splitmix64 (Steele et al. 2014), so that no order of the input meets the groups."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
