"""Where completions of a strategy part from those of a baseline, such as greedy, for the same prompt."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.statistics.ragged import Array, Ragged


class Agreement(NamedTuple):
    """Of the C completions whose prompt has one of the baseline.

    Attributes:
        rows: (C,) their positions.
        common: (C,) tokens before the first difference, at most those of the shorter one.
        shorter: (C,) tokens of the shorter of the two.
        is_same: (C,) whether the token ids are the same to the end.
    """

    rows: Array
    common: Array
    shorter: Array
    is_same: Array

    @property
    def has_parted(self) -> Array:
        """(C,) whether a token differs; not so where one is the beginning of the other."""
        return np.asarray(self.common < self.shorter)


def agreement(lists: Ragged, prompts: Array, baseline: Ragged, baseline_prompts: Array) -> Agreement:
    """Compare completions with the baseline's, position by position up to the first difference.

    Args:
        lists: token ids, R lists.
        prompts: (R,) the prompt of each.
        baseline: token ids of the baseline, one list per prompt of `baseline_prompts`.
        baseline_prompts: ascending.
    """
    others = np.searchsorted(baseline_prompts, prompts)
    rows = np.flatnonzero(np.isin(prompts, baseline_prompts))
    others = others[rows]
    shorter = np.minimum(lists.lengths[rows], baseline.lengths[others])
    steps = Ragged(np.zeros(int(shorter.sum())), shorter)
    here = lists.flat[lists.starts[rows][steps.owners] + steps.positions]
    there = baseline.flat[baseline.starts[others][steps.owners] + steps.positions]
    different = np.flatnonzero(here != there)
    parted, first = np.unique(steps.owners[different], return_index=True)
    common = shorter.copy()
    common[parted] = steps.positions[different[first]]
    is_same = (common == shorter) & (lists.lengths[rows] == baseline.lengths[others])
    return Agreement(rows, common, shorter, is_same)
