"""What the template of a comparison shows, worked out: what was compared, what changed, and metrics side by side."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from pipeline.compare import KL_BOUNDS, Comparison, Difference, pair_name
from pipeline.manifest import DETERMINISM
from pipeline.report import charts, view
from pipeline.report.wording import change, number, share
from pipeline.results import Results
from pipeline.statistics import METRICS, Collector, Estimate, StrategySummary
from pipeline.statistics.diversity import common_budget
from pipeline.statistics.rows import read_strategies

KL_ENDS = (f"< {KL_BOUNDS[0]:g}", f"≥ {KL_BOUNDS[-1]:g}")
KL_NAMES = (KL_ENDS[0], *(f"{low:g} to {high:g}" for low, high in pairwise(KL_BOUNDS)), KL_ENDS[1])


class Fact(NamedTuple):
    """Something that can be said of each side."""

    label: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the sides have not the same."""
        return len(set(self.values)) > 1


class ChangeView(NamedTuple):
    """A row of the table of changes, and its charts."""

    name: str
    num_rows: int
    changed: str
    changed_share: str
    alone: str
    bar: list[view.Segment]
    tokens_before: str
    kl_mean: str
    kl_max: str
    prob_off_by: str
    charts: list[charts.Chart]


class Delta(NamedTuple):
    """A difference of a metric and its interval, as text; clear where that leaves out 0."""

    value: str
    interval: str
    is_clear: bool


class MetricView(NamedTuple):
    """Both sides of a strategy, and what the second has more."""

    name: str
    sides: tuple[view.StrategyView, view.StrategyView]
    deltas: dict[str, Delta]


def content(comparison: Comparison) -> dict[str, Any]:
    """What the template names, apart from the rows."""
    first, second = _summaries(comparison)
    both = [summary for pair in zip(first, second, strict=True) for summary in pair]
    columns, views = view.columns(both), view.strategies(both)
    pairs = zip(comparison.by_strategy, first, second, views[::2], views[1::2], strict=True)
    return {
        "is_one_run": comparison.results[0] is comparison.results[1],
        "differing": [fact for fact in facts(comparison) if fact.differs],
        "same": [fact for fact in facts(comparison) if not fact.differs],
        "changes": changes(comparison),
        "columns": columns,
        "metrics": [
            MetricView(pair_name(found.names), (here, there), _deltas(one, other, columns))
            for found, one, other, here, there in pairs
        ],
    }


def facts(comparison: Comparison) -> list[Fact]:
    """What each side is; said once where both are of one run."""
    first, second = comparison.results
    described = [_described(each) for each in ((first,) if first is second else (first, second))]
    labels = dict.fromkeys(label for each in described for label in each)
    return [Fact(label, tuple(each.get(label, "–") for each in described)) for label in labels]


def _described(results: Results) -> dict[str, str]:
    run, manifest = results.run, results.run.manifest() or {}
    dtype = run.job.model.dtype
    return {
        "folder": results.folder,
        "model": run.model.name,
        "commit": run.model.commit,
        "numbers": f"{dtype}, determinism {DETERMINISM[dtype]}",
        "seed": str(run.job.seed),
        "input": ", ".join(f"{file['name']} ({file['sha256'][:12]})" for file in run.identity["inputs"][:4]),
        "rows": f"{results.counts['rows']:,}, of them {results.counts['errors']:,} errors",
        "tokens": f"{results.counts['generated_tokens']:,}",
        "state": "finished" if results.is_finished else "under way",
        "fingerprint": run.fingerprint[:16],
        "batchgen": run.identity["batchgen"]["version"],
        **manifest.get("versions", {}),
    }


def changes(comparison: Comparison) -> list[ChangeView]:
    """Rows of the table, in the order of the job; all charts of a kind have the same axis."""
    longest = 1 + max((step for each in comparison.by_strategy for step in each.steps), default=0)
    return [_change(each, longest) for each in comparison.by_strategy]


def _change(each: Difference, longest: int) -> ChangeView:
    name = pair_name(each.names)
    alone = {"only in the first": each.only_first, "only in the second": each.only_second}
    counts = {"same": each.num_rows - each.num_changed, "changed": each.num_changed, **alone}
    total = max(1, sum(counts.values()))
    return ChangeView(
        name=name,
        num_rows=each.num_rows,
        changed=f"{each.num_changed:,}",
        changed_share=share(each.num_changed / each.num_rows) if each.num_rows else "",
        alone=", ".join(f"{count:,} {where}" for where, count in alone.items() if count),
        bar=view.segments({label: count / total for label, count in counts.items()}),
        tokens_before="–" if each.median_step is None else f"{min(each.steps):,} (median {each.median_step:,})",
        kl_mean=number(each.kl_mean),
        kl_max=number(each.kl_max) if each.num_steps else number(None),
        prob_off_by=number(each.prob_off_by) if each.num_steps else number(None),
        charts=[
            charts.histogram(_histogram(each), longest, 1, f"tokens before the first difference, {name}"),
            charts.categories(each.kl_counts, KL_NAMES, KL_ENDS, f"KL in nats at a step, {name}"),
        ]
        if each.num_steps or each.num_changed
        else [],
    )


def _histogram(each: Difference) -> Any:
    return np.bincount(np.fromiter(each.steps.elements(), np.int64), minlength=1)


def _deltas(one: StrategySummary, other: StrategySummary, columns: list[view.Column]) -> dict[str, Delta]:
    return {column.name: _delta(one, other, column) for column in columns}


def _delta(one: StrategySummary, other: StrategySummary, column: view.Column) -> Delta:
    """What the second has more; `distinct_2` has no interval."""
    if column.name in METRICS:
        found = other.difference(one, column.name)
    else:
        values = (one.distinct_2, other.distinct_2)
        found = Estimate(None if None in values else (other.distinct_2 or 0) - (one.distinct_2 or 0))
    value, interval = change(found, column.is_share)
    is_clear = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
    return Delta(value, interval, is_clear)


def _summaries(comparison: Comparison) -> tuple[list[StrategySummary], list[StrategySummary]]:
    """Metrics of both sides, of the same groups of prompts and as many bigrams, so that they can be compared."""
    num_prompts = max(results.run.num_input_rows for results in comparison.results)
    collectors: dict[int, Collector] = {}
    for results in comparison.results:
        if id(results) not in collectors:
            collectors[id(results)] = Collector(results, None, num_prompts)
            for rows in read_strategies(results, None):
                collectors[id(results)].add(rows)
    sides = [collectors[id(results)] for results in comparison.results]
    names = [[each.names[side] for each in comparison.by_strategy] for side in (0, 1)]
    samples = [collector.tallies[name].sample for collector, own in zip(sides, names, strict=True) for name in own]
    budget = common_budget(samples)
    first, second = (
        [collector.summary(budget).strategy(name) for name in own] for collector, own in zip(sides, names, strict=True)
    )
    return first, second
