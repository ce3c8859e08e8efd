"""How different completions are from each other: the samples of one prompt, and the bigrams of a strategy.

On token ids, symmetric, without smoothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.statistics.ragged import Array, Ragged, ngrams, uniqued

MOST_SAMPLES = 16
MOST_BIGRAMS = 20_000
FEWEST_BIGRAMS = 20


class Overlap(NamedTuple):
    """Of one prompt with several samples.

    Attributes:
        first: position of its first sample.
        jaccard: mean over pairs of samples of |A & B| / |A | B| of their sets of bigrams; None where no pair has any.
        is_identical: whether two samples have the same token ids.
    """

    first: int
    jaccard: float | None
    is_identical: bool


def overlaps(lists: Ragged, prompts: Array) -> list[Overlap]:
    """How alike samples are, of each prompt the first 16.

    Args:
        lists: token ids of R samples.
        prompts: (R,) the prompt of each, ascending.
    """
    starts, counts = np.unique(prompts, return_index=True, return_counts=True)[1:]
    several = counts > 1
    if not several.any():
        return []
    texts = [ids.tobytes() for ids in lists.split()]
    bigrams = [frozenset(codes.tolist()) for codes in uniqued(ngrams(lists, 2)).split()]
    found = []
    for start, count in zip(starts[several].tolist(), counts[several].tolist(), strict=True):
        rows = slice(start, start + min(count, MOST_SAMPLES))
        found.append(Overlap(start, _mean_jaccard(bigrams[rows]), len(set(texts[rows])) < len(texts[rows])))
    return found


def _mean_jaccard(sets: Sequence[frozenset[int]]) -> float | None:
    shares = [len(left & right) / len(left | right) for left, right in combinations(sets, 2) if left or right]
    return sum(shares) / len(shares) if shares else None


Key = tuple[int, str, int]


@dataclass(frozen=True)
class Sample:
    """The completions whose bigrams are counted: first samples before second ones, then by MD5 of the row id.

    Fewer than 20,000 bigrams are in all of them but the last, so that two samples join to one of the same kind.

    Attributes:
        keys: (sample_index, MD5 of row_id, row_index), ascending.
        lists: token ids of each.
    """

    keys: tuple[Key, ...] = ()
    lists: tuple[Array, ...] = ()

    @property
    def num_bigrams(self) -> int:
        """How many bigrams there are to count, at most 20,000."""
        return min(MOST_BIGRAMS, sum(max(0, len(ids) - 1) for ids in self.lists))

    def joined(self, other: Sample) -> Sample:
        """The sample of both together."""
        both = sorted(
            zip(self.keys + other.keys, self.lists + other.lists, strict=True), key=lambda completion: completion[0]
        )
        counts = np.cumsum([0, *(max(0, len(ids) - 1) for _, ids in both)])
        kept = both[: int(np.searchsorted(counts, MOST_BIGRAMS))]
        return Sample(tuple(key for key, _ in kept), tuple(ids for _, ids in kept))

    def distinct(self, budget: int) -> float | None:
        """distinct-2 (Li et al. 2016, arXiv:1510.03055): unique bigrams / all, of the first `budget` bigrams.

        Plain distinct-n falls with the length of a text, so what is compared must have one budget. None below it.
        """
        if not 0 < budget <= self.num_bigrams:
            return None
        lengths = np.array([len(ids) for ids in self.lists])
        codes = ngrams(Ragged(np.concatenate(self.lists), lengths), 2).flat[:budget]
        return len(np.unique(codes)) / budget


def sample_of(row_ids: pa.ChunkedArray, row_indices: Array, sample_indices: Array, lists: Ragged) -> Sample:
    """The sample of some completions of a strategy."""
    digests = [hashlib.md5(row_id.encode(), usedforsecurity=False).hexdigest() for row_id in row_ids.to_pylist()]
    keys = tuple(zip(sample_indices.tolist(), digests, row_indices.tolist(), strict=True))
    return Sample().joined(Sample(keys, tuple(lists.split())))


def common_budget(samples: Sequence[Sample]) -> int:
    """Bigrams to count of each: what the smallest has, those with fewer than 20 left out; 0 if none has as many."""
    return min((each.num_bigrams for each in samples if each.num_bigrams >= FEWEST_BIGRAMS), default=0)
