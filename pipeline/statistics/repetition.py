"""Repetition within a completion: rep-4 and loops. Knows token ids and nothing of strategies."""

from __future__ import annotations

import numpy as np

from pipeline.statistics.ragged import Array, Ragged, ngrams, uniqued

REPEATED_NGRAM = 4
LONGEST_BLOCK = 20
TIMES_RUNNING = 3


def repetition(lists: Ragged) -> Array:
    """(R,) share of each list's 4-grams that stood there before: 1 - unique / all; NaN below four entries.

    Welleck et al. 2020 (arXiv:1908.04319) call it seq-rep-4.
    """
    grams = ngrams(lists, REPEATED_NGRAM)
    with np.errstate(invalid="ignore"):
        return np.asarray(1 - uniqued(grams).lengths / np.where(grams.lengths > 0, grams.lengths, np.nan))


def ends_in_loop(lists: Ragged) -> Array:
    """(R,) whether each list ends in the same block of 1 to 20 entries three times running."""
    ends = _ends(lists, LONGEST_BLOCK * TIMES_RUNNING)
    found = np.zeros(len(lists.lengths), bool)
    for block in range(1, LONGEST_BLOCK + 1):
        repeats = block * (TIMES_RUNNING - 1)
        is_same = ends[:, -repeats:] == ends[:, -repeats - block : -block]
        found |= is_same.all(axis=1) & (lists.lengths >= block * TIMES_RUNNING)
    return found


def _ends(lists: Ragged, width: int) -> Array:
    """(R, width) the last entries of each list, to the right; what is missing is -1."""
    columns = lists.positions - np.repeat(lists.lengths, lists.lengths) + width
    ends = np.full((len(lists.lengths), width), -1, np.int64)
    inside = columns >= 0
    ends[lists.owners[inside], columns[inside]] = lists.flat[inside]
    return ends
