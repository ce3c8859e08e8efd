"""Rows added up: per strategy and group of prompts what metrics are made of, and whole distributions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.compute as pc

from pipeline.statistics.bootstrap import NUM_GROUPS, groups_of
from pipeline.statistics.diversity import Sample, sample_of
from pipeline.statistics.ragged import Array
from pipeline.statistics.rows import StrategyRows, is_text
from pipeline.strategies import Strategy

ENTROPY_BIN = 0.25  # nats


class Tally:
    """What has been seen of one strategy. Any order of the rows gives the same, but for float rounding.

    Attributes:
        names: of the sums.
        sums: (G, M) per group of prompts.
        lengths: [n] completions of n tokens.
        entropies: [b] steps whose entropy is in [b/4, (b+1)/4) nats.
        steps, probabilities: [s] tokens at step s from 0, and the sum of their raw probabilities.
        parting: [s] completions whose first token unlike the baseline's is at step s from 1.
        sample: whose bigrams are counted.
    """

    def __init__(self, strategy: Strategy, num_prompts: int) -> None:
        self.strategy, self.num_prompts = strategy, num_prompts
        self.names: tuple[str, ...] = ()
        self.sums: Array = np.zeros((min(num_prompts, NUM_GROUPS), 0))
        self.lengths = self.steps = self.parting = self.entropies = np.zeros(0, np.int64)
        self.probabilities: Array = np.zeros(0)
        self.finish_reasons: Counter[str] = Counter()
        self.error_types: Counter[str] = Counter()
        self.sample = Sample()

    def add(self, rows: StrategyRows) -> None:
        """Count some more rows."""
        self._add_sums(rows)
        lengths = rows.numbers["tokens"][rows.is_ok]
        self.lengths = _added(self.lengths, np.bincount(lengths))
        bins = (np.maximum(rows.entropies.flat, 0) / ENTROPY_BIN).astype(np.int64)
        self.entropies = _added(self.entropies, np.bincount(bins))
        self.steps = _added(self.steps, np.bincount(rows.logprobs.positions))
        probabilities = np.exp(rows.logprobs.flat.astype(np.float64))
        self.probabilities = _added(self.probabilities, np.bincount(rows.logprobs.positions, probabilities))
        self.finish_reasons.update(pc.drop_null(rows.table["finish_reason"]).to_pylist())
        self.error_types.update(pc.drop_null(rows.table["error_type"]).to_pylist())
        if rows.agreement is not None:
            found = rows.agreement
            self.parting = _added(self.parting, np.bincount(found.common[found.has_parted] + 1))
        if is_text(rows.strategy):
            self.sample = self.sample.joined(_sample(rows))

    def _add_sums(self, rows: StrategyRows) -> None:
        groups = groups_of(rows.prompts, self.num_prompts).astype(np.int64)
        columns = [np.bincount(groups, values, len(self.sums)) for values in rows.numbers.values()]
        found = np.stack(columns, axis=1)
        self.names = tuple(rows.numbers)
        self.sums = self.sums + found if self.sums.size else found


def _sample(rows: StrategyRows) -> Sample:
    row_ids, samples = rows.table["row_id"], rows.table["sample_index"].to_numpy()
    return sample_of(row_ids, rows.prompts, samples, rows.words)


def _added(left: Array, right: Array) -> Array:
    """Sum of two histograms of different lengths."""
    longer, shorter = (left, right) if len(left) >= len(right) else (right, left)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total
