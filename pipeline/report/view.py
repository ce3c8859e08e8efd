"""What the templates show, worked out: tiles, the table of strategies, charts, errors and how the run was made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest import DETERMINISM
from pipeline.report import charts
from pipeline.report.wording import between, duration, number, share
from pipeline.results import Results
from pipeline.statistics import METRICS, Estimate, RunSummary, StrategySummary
from pipeline.statistics.rows import RANKS, is_text
from pipeline.statistics.tally import ENTROPY_BIN
from pipeline.terminal import visible

MOST_ERRORS = 500
NOT_IN_THE_WAY = ("name", "type")


class Column(NamedTuple):
    """A column of the table of strategies."""

    name: str
    label: str
    is_share: bool
    meaning: str


class Cell(NamedTuple):
    """What stands in it: a value and its interval, as text."""

    value: str
    interval: str


class Segment(NamedTuple):
    """A piece of a bar that adds up to 100 %; `shade` from 0."""

    x: float
    width: float
    shade: int
    title: str


class StrategyView(NamedTuple):
    """A row of the table."""

    name: str
    type: str
    settings: str
    num_rows: int
    num_errors: int
    length_title: str
    cells: dict[str, Cell]
    ranks: list[Segment]
    endings: list[Segment]
    parting_step: int | None
    charts: list[charts.Chart]


LABELS = {
    "length": "tokens",
    "perplexity": "perplexity",
    "entropy": "entropy",
    "distinct_2": "distinct-2",
    "rep_4": "rep-4",
    "loop_share": "loops",
    "sample_overlap": "overlap",
    "identical_samples": "twins",
    "same_as_baseline": "same",
    "common_prefix": "prefix",
}
ENDINGS = ("eos", "length", "stop", "context", "scored")
SHARES = {"rep_4", "loop_share", "identical_samples", "same_as_baseline", "common_prefix"}


def columns(summaries: Sequence[StrategySummary]) -> list[Column]:
    """Those that at least one strategy has a value for."""
    bigrams = max((each.bigrams for each in summaries), default=0)
    distinct = f"share of different bigrams among the first {bigrams:,} of the strategy, the same number for each"
    meanings = {name: metric.meaning for name, metric in METRICS.items()} | {"distinct_2": distinct}
    found = [each.metrics() for each in summaries]
    return [
        Column(name, label, name in SHARES, meanings[name])
        for name, label in LABELS.items()
        if any(metrics[name].value is not None for metrics in found)
    ]


def strategies(summaries: Sequence[StrategySummary]) -> list[StrategyView]:
    """Rows of the table, in the order given; all charts of a kind have the same axis."""
    drawn = [each.tally for each in summaries if is_text(each.tally.strategy)]
    longest = max((len(tally.lengths) for tally in drawn), default=0)
    entropies = max((len(tally.entropies) for tally in drawn), default=0)
    steps = max((len(tally.steps) for tally in drawn), default=0)
    return [_strategy(each, longest, entropies, steps) for each in summaries]


def tiles(results: Results, summary: RunSummary) -> list[tuple[str, str, str]]:
    """The run at a glance: label, value, and a note."""
    run, model = results.run, results.run.model
    rows, errors = summary.total("rows"), summary.total("errors")
    found = [
        ("completions", f"{rows:,}", f"{summary.num_prompts:,} prompts, {len(summary.strategies)} strategies"),
        ("errors", f"{errors:,}", f"{share(errors / rows)} of the rows" if rows else ""),
        ("tokens", f"{summary.total('tokens'):,}", "generated or scored"),
    ]
    if summary.elapsed_s is not None and summary.tokens_per_s is not None:
        found.append(
            ("time", duration(summary.elapsed_s), f"{number(summary.tokens_per_s)} tokens/s over all strategies")
        )
    return [
        *found,
        ("model", model.name.rstrip("/").rsplit("/", 1)[-1], f"{model.commit[:19]}"),
        ("numbers", run.job.model.dtype, f"determinism: {DETERMINISM[run.job.model.dtype]}"),
        ("seed", str(run.job.seed), f"fingerprint {run.fingerprint[:12]}"),
        ("state", *_state(results, summary)),
    ]


def _state(results: Results, summary: RunSummary) -> tuple[str, str]:
    """The state of a run, and what there is to know of it."""
    if results.run.manifest() is None:
        return "under way", f"{summary.num_prompts:,} of {results.run.num_input_rows:,} prompts"
    first, *retries = results.rounds
    return "finished", f"{len(first.stale):,} rows computed again by retry-errors" if retries else ""


def error_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Error rows among those shown."""
    failed = table.filter(pc.equal(table["status"], "error"))
    names = ["row_id", "row_index", "strategy", "sample_index", "error_type", "error_message"]
    rows: list[dict[str, Any]] = failed.select(names).slice(0, MOST_ERRORS).to_pylist()
    return rows


def error_counts(summary: RunSummary) -> list[tuple[str, int, float]]:
    """Type, number, and length of its bar in percent of the longest; over all rows."""
    counts: dict[str, int] = {}
    for each in summary.strategies:
        for name, count in each.tally.error_types.items():
            counts[name] = counts.get(name, 0) + count
    most = max(counts.values(), default=1)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(name, count, round(100 * count / most, 2)) for name, count in ranked]


def _strategy(summary: StrategySummary, longest: int, entropies: int, steps: int) -> StrategyView:
    tally, strategy = summary.tally, summary.tally.strategy
    metrics, shares = summary.metrics(), _shares(tally.finish_reasons)
    return StrategyView(
        name=strategy.name,
        type=strategy.type,
        settings=_settings(strategy.model_dump(exclude_defaults=True, exclude=set(NOT_IN_THE_WAY))),
        num_rows=round(summary.totals.get("rows", 0)),
        num_errors=round(summary.totals.get("errors", 0)),
        length_title=f"median {summary.length_quantile(0.5)}, 95 % have at most {summary.length_quantile(0.95)}",
        cells={name: _cell(estimate, name in SHARES) for name, estimate in metrics.items()},
        ranks=segments({name: metrics[name].value or 0 for name in RANKS}, RANK_NAMES),
        endings=segments({reason: shares.get(reason, 0) for reason in ENDINGS}),
        parting_step=summary.median_parting_step,
        charts=[
            charts.histogram(tally.lengths, longest, 1, f"tokens per completion of {strategy.name}"),
            charts.histogram(tally.entropies, entropies, ENTROPY_BIN, f"entropy in nats per step of {strategy.name}"),
            charts.curve(tally.probabilities, tally.steps, steps, f"mean probability by step of {strategy.name}"),
        ]
        if is_text(strategy)
        else [],
    )


RANK_NAMES = dict(zip(RANKS, ("1", "2 to 10", "11 to 100", "101 to 1000", "above 1000"), strict=True))


def _cell(estimate: Estimate, is_share: bool) -> Cell:
    return Cell((share if is_share else number)(estimate.value), between(estimate, is_share))


def _shares(counts: dict[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {name: counts[name] / total for name in sorted(counts)}


def segments(shares: dict[str, float], names: dict[str, str] | None = None) -> list[Segment]:
    """Pieces of a bar for these shares; `names` are ranks, by what the shares are called."""
    found, x = [], 0.0
    for shade, (name, value) in enumerate(shares.items()):
        if value:
            label = f"rank {names[name]}" if names else name
            found.append(Segment(round(100 * x, 3), round(100 * value, 3), shade, f"{label}: {share(value)}"))
        x += value
    return found


def _settings(values: dict[str, Any]) -> str:
    return " · ".join(f"{key} {json.dumps(value)}" for key, value in values.items())


def how_it_was_made(results: Results) -> dict[str, Any]:
    """Facts of the last section."""
    run, manifest = results.run, results.run.manifest() or {}
    folders = [f"'{visible(each.folder.name)}/data/*.parquet'" for each in results.rounds if each.keys]
    job = json.dumps(run.job.model_dump(mode="json", exclude_defaults=True), indent=2, ensure_ascii=False)
    return {
        "job": "\n".join(map(visible, job.splitlines())),
        "versions": manifest.get("versions", {}),
        "inputs": run.identity["inputs"],
        "commit": run.model.commit,
        "fingerprint": run.fingerprint,
        "folder": run.folder.name,
        "query": (
            "SELECT strategy, count(*) AS ok,\n"
            "       exp(-sum(cumulative_logprob) / sum(num_generated_tokens)) AS perplexity\n"
            f"FROM read_parquet([{', '.join(folders)}])\n"
            "WHERE status = 'ok' GROUP BY strategy"
        ),
    }
