"""The metrics of a run: values over all rows, intervals, differences and distributions, strategy by strategy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.results import Results
from pipeline.statistics.bootstrap import Estimate, interval, resampled
from pipeline.statistics.diversity import common_budget
from pipeline.statistics.metrics import METRICS
from pipeline.statistics.ragged import Array
from pipeline.statistics.rows import StrategyRows, baseline_of, read_strategies
from pipeline.statistics.tally import Tally


@dataclass(frozen=True)
class StrategySummary:
    """What all rows of a strategy say.

    Attributes:
        tally: its rows added up, with the distributions.
        bigrams: how many of them `distinct_2` counts.
    """

    tally: Tally
    bigrams: int

    @property
    def name(self) -> str:
        """Of the strategy."""
        return self.tally.strategy.name

    @cached_property
    def totals(self) -> dict[str, float]:
        """Sums over all rows: `rows`, `ok`, `errors`, `tokens` and what else metrics are made of."""
        return dict(zip(self.tally.names, self.tally.sums.sum(axis=0).tolist(), strict=True))

    @property
    def distinct_2(self) -> float | None:
        """Unique bigrams / all, of the first `bigrams`; None where there are fewer."""
        return self.tally.sample.distinct(self.bigrams)

    def metric(self, name: str) -> Estimate:
        """A metric of `METRICS` with its 95 % interval."""
        metric, tally = METRICS[name], self.tally
        value = float(metric.of(tally.sums.sum(axis=0), tally.names))
        if not np.isfinite(value):
            return Estimate(None)
        return Estimate(value, *interval(metric.of(self._resamples, tally.names), self._num_groups(name)))

    def metrics(self) -> dict[str, Estimate]:
        """All metrics, by name."""
        return {name: self.metric(name) for name in METRICS} | {"distinct_2": Estimate(self.distinct_2)}

    def difference(self, other: StrategySummary, name: str) -> Estimate:
        """This metric less the other's, of the same prompts; the two differ where the interval leaves out 0."""
        here, there = self.metric(name), other.metric(name)
        if here.value is None or there.value is None:
            return Estimate(None)
        metric = METRICS[name]
        resamples = metric.of(self._resamples, self.tally.names) - metric.of(other._resamples, other.tally.names)
        num_groups = min(self._num_groups(name), other._num_groups(name))
        return Estimate(here.value - there.value, *interval(resamples, num_groups))

    def length_quantile(self, share: float) -> int | None:
        """The smallest length that this share of the completions does not exceed."""
        return quantile(self.tally.lengths, share)

    @property
    def median_parting_step(self) -> int | None:
        """Median, over completions that part from the baseline, of the first step (from 1) that differs."""
        return quantile(self.tally.parting, 0.5)

    @cached_property
    def _resamples(self) -> Array:
        return resampled(self.tally.sums)

    def _num_groups(self, name: str) -> int:
        return int((self.tally.sums[:, self.tally.names.index(METRICS[name].below)] > 0).sum())


@dataclass(frozen=True)
class RunSummary:
    """What all rows of a run say.

    Attributes:
        baseline: the strategy that others are compared with, None if there is none.
        bigrams: how many of each strategy `distinct_2` counts, 0 where no strategy has enough.
        strategies: in job order.
        num_prompts: input rows that the parts so far hold.
        elapsed_s: of the attempt that finished the run; None while it is not finished.
    """

    baseline: str | None
    bigrams: int
    strategies: tuple[StrategySummary, ...]
    num_prompts: int
    elapsed_s: float | None

    def total(self, name: str) -> int:
        """Sum over the strategies of `rows`, `ok`, `errors` or `tokens`."""
        return round(sum(strategy.totals.get(name, 0) for strategy in self.strategies))

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of all strategies per second; what a run recorded of time does not divide by strategy."""
        return self.total("tokens") / self.elapsed_s if self.elapsed_s else None

    def strategy(self, name: str) -> StrategySummary:
        """The strategy of that name."""
        return next(strategy for strategy in self.strategies if strategy.name == name)


class Collector:
    """Adds up rows as they are read."""

    def __init__(self, results: Results, baseline: str | None, num_prompts: int | None = None) -> None:
        """Begin with nothing.

        Args:
            results: the run.
            baseline: name of the strategy that others are compared with.
            num_prompts: that are put into groups; more than the run has where it is compared with a larger one.
        """
        self.run, self.baseline = results.run, baseline
        self.num_rows = 0
        num_prompts = num_prompts or self.run.num_input_rows
        self.tallies = {each.name: Tally(each, num_prompts) for each in self.run.job.strategies}

    def add(self, rows: StrategyRows) -> None:
        """Count some more rows."""
        self.tallies[rows.strategy.name].add(rows)
        self.num_rows += len(rows.prompts)

    def summary(self, bigrams: int | None = None) -> RunSummary:
        """What they say; `bigrams` to count of each strategy, by default what the smallest has."""
        tallies = list(self.tallies.values())
        budget = common_budget([tally.sample for tally in tallies]) if bigrams is None else bigrams
        return RunSummary(
            baseline=self.baseline,
            bigrams=budget,
            strategies=tuple(StrategySummary(tally, budget) for tally in tallies),
            num_prompts=self.num_rows // self.run.rows_per_prompt,
            elapsed_s=_elapsed_s(self.run.manifest()),
        )


def summarise(results: Results, baseline: str | None = None) -> RunSummary:
    """Metrics of all rows as they are now, per strategy.

    Args:
        results: from `open_run`, finished or not.
        baseline: name of the strategy that others are compared with; default: the first greedy one.

    Raises:
        ConfigError: no strategy that generates text has that name.
        StorageError: a part is damaged.
    """
    name = baseline_of(results.run.job, baseline)
    return _collected(Collector(results, name), read_strategies(results, name)).summary()


def quantile(histogram: Array, share: float) -> int | None:
    """The smallest index that this share of what was counted does not exceed; None of nothing."""
    total = int(histogram.sum())
    return int(np.searchsorted(np.cumsum(histogram), share * total)) if total else None


def _collected(collector: Collector, rows: Iterable[StrategyRows]) -> Collector:
    for each in rows:
        collector.add(each)
    return collector


def _elapsed_s(manifest: dict[str, Any] | None) -> float | None:
    return None if manifest is None else float(manifest["timings"]["elapsed_s"])
