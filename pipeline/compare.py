"""Two runs, or two strategies of one run, row by row: what changed, from which step on, and how far apart they are.

Rows are matched by input row, strategy and sample. As long as two completions are the same, both models saw the same
text, so their recorded probabilities can be compared there, and only there. Runs are read in order, a part at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, starmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.manifest import differences
from pipeline.metrics import Sums
from pipeline.results import Results

PLAIN = ["row_id", "row_index", "strategy", "sample_index", "status", "finish_reason"]
LISTS = ["prompt_token_ids", "token_ids", "top_token_ids", "top_probs"]
LEAST = 1e-7  # of a probability: what float32 leaves of the rest
KL_BOUNDS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # nats, of the histogram
MOST_EXAMPLES = 20

Ids = npt.NDArray[np.int32]
Probs = npt.NDArray[np.float32]


class View(NamedTuple):
    """One completion. Shapes: token_ids (S,), top_ids and top_probs (S, K); empty for an error row."""

    row_id: str
    row_index: int
    strategy: str
    sample_index: int
    end: str
    prompt: Ids
    token_ids: Ids
    top_ids: Ids
    top_probs: Probs


class Pair(NamedTuple):
    """A completion and its counterpart, None where a side has none.

    Attributes:
        step: first step that differs, 0 for another prompt, the number of tokens where only the ways to end differ;
            None for the same, and where a side has none.
        kl: (S,) KL(one || other) in nats of the steps that saw the same text and have alternatives; see `kl`.
        prob_off_by: largest difference of a probability there.
    """

    one: View | None
    other: View | None
    step: int | None
    kl: npt.NDArray[np.float64]
    prob_off_by: float

    @property
    def view(self) -> View:
        """Either of the two."""
        view = self.one or self.other
        assert view is not None
        return view

    @property
    def has_changed(self) -> bool:
        """Whether it differs, or stands on one side alone."""
        return self.step is not None or self.one is None or self.other is None


class Example(NamedTuple):
    """A row that changed: the first step that differs, and the token that each has there, None for the end."""

    row_id: str
    sample_index: int
    step: int
    first: int | None
    second: int | None
    ends: tuple[str, str]


@dataclass
class Difference:
    """What the completions of one strategy, or of two, have to say.

    Attributes:
        num_rows: matched on both sides.
        num_changed: whose tokens, ways to end, or prompts differ; a row with another prompt differs from step 0 on.
        only_first, only_second: rows that the other side has not.
        steps: first step that differs -> rows.
        kl_sum, kl_max: KL(first || second) in nats over steps that saw the same text; see `kl`.
        num_steps: such steps.
        kl_counts: of them, by the bin of `KL_BOUNDS`: the first is below all, the last is open.
        prob_off_by: largest difference of a probability that both recorded there.
        examples: some of the rows that changed.
    """

    names: tuple[str, str]
    num_rows: int = 0
    num_changed: int = 0
    only_first: int = 0
    only_second: int = 0
    steps: Counter[int] = field(default_factory=Counter)
    kl_sum: float = 0.0
    kl_max: float = 0.0
    num_steps: int = 0
    kl_counts: list[int] = field(default_factory=lambda: [0] * (len(KL_BOUNDS) + 1))
    prob_off_by: float = 0.0
    examples: list[Example] = field(default_factory=list)

    @property
    def changed_share(self) -> float:
        """Share of all rows that changed or stand on one side alone."""
        alone = self.only_first + self.only_second
        return (self.num_changed + alone) / max(1, self.num_rows + alone)

    @property
    def kl_mean(self) -> float | None:
        """Mean over the steps that could be compared, None if there are none."""
        return self.kl_sum / self.num_steps if self.num_steps else None

    @property
    def median_step(self) -> int | None:
        """Median of the first steps that differ, None if nothing changed."""
        found = sorted(self.steps.elements())
        return found[(len(found) - 1) // 2] if found else None

    def add(self, pair: Pair) -> None:
        """Count a pair of completions."""
        one, other = pair.one, pair.other
        if one is None or other is None:
            self.only_first += other is None
            self.only_second += one is None
            return
        self.num_rows += 1
        if pair.step is not None:
            self.num_changed += 1
            self.steps[pair.step] += 1
            if len(self.examples) < MOST_EXAMPLES:
                self.examples.append(_example(one, other, pair.step))
        if len(pair.kl):
            self.num_steps += len(pair.kl)
            self.kl_sum += float(pair.kl.sum())
            self.kl_max = max(self.kl_max, float(pair.kl.max()))
            self.prob_off_by = max(self.prob_off_by, pair.prob_off_by)
            bins = np.bincount(np.searchsorted(KL_BOUNDS, pair.kl, "right"), minlength=len(self.kl_counts))
            self.kl_counts = [sum(both) for both in zip(self.kl_counts, bins.tolist(), strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Two runs, or two strategies of one.

    Attributes:
        names: of both sides.
        settings: where the two jobs, inputs or models differ, a line each.
        by_strategy: in the order of the job.
        sums: of both sides, per entry of `by_strategy`.
    """

    names: tuple[str, str]
    settings: tuple[str, ...]
    by_strategy: tuple[Difference, ...]
    sums: tuple[tuple[Sums, Sums], ...]
    results: tuple[Results, Results]

    @property
    def changed_share(self) -> float:
        """Share of all rows that changed or stand on one side alone."""
        rows = [each.num_rows + each.only_first + each.only_second for each in self.by_strategy]
        changed = [each.changed_share * count for each, count in zip(self.by_strategy, rows, strict=True)]
        return sum(changed) / max(1, sum(rows))

    @property
    def kl_max(self) -> float:
        """Largest KL divergence of a step."""
        return max((each.kl_max for each in self.by_strategy), default=0.0)


Watcher = Callable[[tuple[str, str], Pair], None]


def compare_runs(first: Results, second: Results, watch: Watcher | None = None) -> Comparison:
    """Compare the strategies that two runs over the same input share by name.

    Args:
        first, second: the runs.
        watch: is shown every pair, with the names of its strategy, in the order of the input.

    Raises:
        InputError: they share no strategy or vocabulary, or the same input row has another id.
    """
    names = [each.name for each in first.run.job.strategies]
    shared = [name for name in names if name in {each.name for each in second.run.job.strategies}]
    if not shared:
        there = ", ".join(f"`{each.name}`" for each in second.run.job.strategies)
        raise InputError(
            f"the runs share no strategy: {', '.join(f'`{name}`' for name in names)} there, {there} here.",
            "Compare runs with strategies of the same names.",
        )
    if first.vocabulary.tokens != second.vocabulary.tokens:
        raise InputError(
            "the runs have models with other vocabularies, so that token ids do not mean the same in both.",
            "Compare runs of models with one tokenizer.",
        )
    found = {name: Difference((name, name)) for name in shared}
    for pair in pairs(_views(first), _views(second)):
        if (name := pair.view.strategy) in found:
            _count(found[name], pair, watch)
    settings = tuple(differences(first.run.identity, second.run.identity))
    sums = tuple((first.sums[name], second.sums[name]) for name in shared)
    return Comparison((first.folder, second.folder), settings, tuple(found.values()), sums, (first, second))


def compare_strategies(results: Results, first: str, second: str, watch: Watcher | None = None) -> Comparison:
    """Compare two strategies of a run, sample with sample; `watch` as for `compare_runs`.

    Raises:
        InputError: the run has not both.
    """
    known = {each.name: each for each in results.run.job.strategies}
    for name in (first, second):
        if name not in known:
            there = ", ".join(f"`{each}`" for each in known)
            raise InputError(f"the run has no strategy `{name}`; there are {there}.", "Name two of these.")
    found = Difference((first, second))
    for pair in pairs(*(of_strategy(_views(results), name) for name in (first, second))):
        _count(found, pair, watch)
    one_way, other_way = (
        known[name].model_dump(mode="json", exclude={"name"}, exclude_defaults=True) for name in (first, second)
    )
    sums = ((results.sums[first], results.sums[second]),)
    return Comparison((first, second), tuple(differences(one_way, other_way)), (found,), sums, (results, results))


def first_difference(one: Ids, other: Ids) -> int | None:
    """First step where two completions differ, or one of them has ended; None if they are the same."""
    shortest = min(len(one), len(other))
    unequal = np.flatnonzero(one[:shortest] != other[:shortest])
    if len(unequal):
        return int(unequal[0])
    return None if len(one) == len(other) else shortest


def kl(one: View, other: View, num_steps: int) -> tuple[npt.NDArray[np.float64], float]:
    """KL(one || other) in nats of the first steps, (S,), and the largest difference of a probability.

    Taken over the tokens that both recorded and one bucket for all others: exact for what is recorded, and never more
    than the divergence of the whole distributions.
    """
    if not num_steps or not one.top_ids.shape[1] or not other.top_ids.shape[1]:
        return np.empty(0), 0.0
    is_same = one.top_ids[:num_steps, :, None] == other.top_ids[:num_steps, None, :]  # (S, K, K)
    p = np.where(is_same.any(2), one.top_probs[:num_steps], 0).astype(np.float64)  # (S, K), 0 for those not shared
    q = (is_same * other.top_probs[:num_steps, None, :]).sum(2, dtype=np.float64)  # (S, K), in the order of `p`
    parts = [np.append(each, 1 - each.sum(1, keepdims=True), 1).clip(LEAST) for each in (p, q)]
    divergence = (parts[0] * np.log(parts[0] / parts[1])).sum(1)
    return np.maximum(divergence, 0), float(np.abs(p - q).max(initial=0))


def pairs(first: Iterator[View], second: Iterator[View]) -> Iterator[Pair]:
    """Completions of the same input row, strategy and sample, in the order of the input.

    Raises:
        InputError: an input row has another id on the other side.
    """
    return starmap(pair_of, _matched(first, second))


def pair_name(names: tuple[str, str]) -> str:
    """A strategy of two runs, or two strategies of one, in words."""
    return names[0] if names[0] == names[1] else " → ".join(names)


def pair_of(one: View | None, other: View | None) -> Pair:
    """A completion and its counterpart, compared."""
    if one is None or other is None:
        return Pair(one, other, None, np.empty(0), 0.0)
    if not np.array_equal(one.prompt, other.prompt):
        return Pair(one, other, 0, np.empty(0), 0.0)
    step = first_difference(one.token_ids, other.token_ids)
    num_same = len(one.token_ids) if step is None else step + 1
    divergence, off_by = kl(one, other, min(len(one.top_ids), len(other.top_ids), num_same))
    if step is None and one.end != other.end:
        step = len(one.token_ids)
    return Pair(one, other, step, divergence, off_by)


def _count(found: Difference, pair: Pair, watch: Watcher | None) -> None:
    found.add(pair)
    if watch is not None:
        watch(found.names, pair)


def _example(one: View, other: View, step: int) -> Example:
    first, second = (int(view.token_ids[step]) if step < len(view.token_ids) else None for view in (one, other))
    return Example(one.row_id, one.sample_index, step, first, second, (one.end, other.end))


def _matched(first: Iterator[View], second: Iterator[View]) -> Iterator[tuple[View | None, View | None]]:
    """Pairs of completions of the same input row, strategy and sample; None where a side has none."""
    sides = [groupby(side, key=lambda view: view.row_index) for side in (first, second)]
    waiting = [_next(side) for side in sides]
    while waiting[0] or waiting[1]:
        index = min(group[0].row_index for group in waiting if group)
        one, other = ([*group] if group and group[0].row_index == index else [] for group in waiting)
        waiting = [
            _next(side) if group and group[0].row_index == index else group
            for side, group in zip(sides, waiting, strict=True)
        ]
        yield from _pairs(one, other)


def _next(side: Any) -> list[View]:
    return next(([*group] for _, group in side), [])


def _pairs(one: Sequence[View], other: Sequence[View]) -> Iterator[tuple[View | None, View | None]]:
    if one and other and one[0].row_id != other[0].row_id:
        raise InputError(
            f"input row {one[0].row_index} is `{one[0].row_id}` in one run and `{other[0].row_id}` in the other: they "
            "are not of the same input, in the same order.",
            "Compare runs of one input, in one order.",
        )
    left, right = ({(view.strategy, view.sample_index): view for view in views} for views in (one, other))
    for key in dict.fromkeys([*left, *right]):
        yield left.get(key), right.get(key)


def _views(results: Results) -> Iterator[View]:
    """All completions of a run, in order."""
    for table in results.batches([*PLAIN, *LISTS]):
        yield from table_views(table)


def of_strategy(views: Iterator[View], strategy: str) -> Iterator[View]:
    """Those of one strategy, without its name, so that they match those of another."""
    return (view._replace(strategy="") for view in views if view.strategy == strategy)


def table_views(table: pa.Table) -> Iterator[View]:
    """Completions of a table with columns `PLAIN` and `LISTS`."""
    plain = zip(*(table[name].to_pylist() for name in PLAIN), strict=True)
    prompts, tokens = (_flat(table[name]) for name in LISTS[:2])
    top_ids, top_probs = (_steps(table[name]) for name in LISTS[2:])
    for row, (row_id, row_index, strategy, sample_index, status, reason) in enumerate(plain):
        lists = [values[bounds[row] : bounds[row + 1]] for values, bounds in (prompts, tokens, top_ids, top_probs)]
        yield View(row_id, row_index, strategy, sample_index, reason or status, *lists)


def _flat(column: pa.ChunkedArray) -> tuple[Any, list[int]]:
    """All values of a column of lists, and where each row's begin and the last one's end; null is empty."""
    whole = column.combine_chunks()
    lengths = whole.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return whole.flatten().to_numpy(zero_copy_only=False), [0, *np.cumsum(lengths).tolist()]


def _steps(column: pa.ChunkedArray) -> tuple[Any, list[int]]:
    """All steps of a column of lists of lists of one length, (steps, K), and where each row's begin and end."""
    whole = column.combine_chunks()
    lengths = whole.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = whole.flatten().flatten().to_numpy(zero_copy_only=False)
    count = int(lengths.sum())
    return values.reshape(count, -1) if count else values.reshape(0, 0), [0, *np.cumsum(lengths).tolist()]


def kl_names() -> list[str]:
    """What the bins of a histogram of divergences hold, in nats: `<1e-08`, then `1e-08` for `1e-08` to `1e-07`."""
    return [f"<{KL_BOUNDS[0]:g}", *(f"{bound:g}" for bound in KL_BOUNDS)]


def metrics(sums: Sums) -> dict[str, float | None]:
    """What the sums of a strategy say, None where it is not defined.

    Of rows that are ok: `perplexity` is exp of the mean negative log-probability of all tokens, `entropy` their mean in
    nats, `rank1` the share of tokens that were the most probable, `length` the mean number of tokens, `eos` the share
    of rows that ended so. `errors` is the share of error rows.
    """
    tokens, ok, rows = sums["generated_tokens"], sums["ok"], sums["rows"]
    return {
        "perplexity": math.exp(min(700.0, -sums["sum_logprob"] / tokens)) if tokens else None,
        "entropy": sums["sum_entropy"] / tokens if tokens else None,
        "rank1": sums["ranks"]["<=1"] / tokens if tokens else None,
        "length": tokens / ok if ok else None,
        "eos": sums["finish_reasons"].get("eos", 0) / ok if ok else None,
        "errors": (sums["errors"] and sum(sums["errors"].values()) / rows) or 0.0,
    }


def to_document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values, exact."""
    return {
        "first": comparison.names[0],
        "second": comparison.names[1],
        "changed_share": comparison.changed_share,
        "kl_max": comparison.kl_max,
        "settings": list(comparison.settings),
        "strategies": [
            {
                "first": each.names[0],
                "second": each.names[1],
                "rows": each.num_rows,
                "changed": each.num_changed,
                "only_first": each.only_first,
                "only_second": each.only_second,
                "first_steps": {str(step): each.steps[step] for step in sorted(each.steps)},
                "median_first_step": each.median_step,
                "kl_mean": each.kl_mean,
                "kl_max": each.kl_max,
                "kl_steps": dict(zip(kl_names(), each.kl_counts, strict=True)),
                "prob_off_by": each.prob_off_by,
                "metrics": {"first": metrics(first), "second": metrics(second)},
                "examples": [example._asdict() for example in each.examples],
            }
            for each, (first, second) in zip(comparison.by_strategy, comparison.sums, strict=True)
        ],
    }
