"""How a comparison looks: what changed, numbers side by side, and some of the rows that changed."""

from __future__ import annotations

import sys
from typing import NamedTuple

from pipeline.compare import Comparison, Difference, Example, metrics, pair_name
from pipeline.metrics import Sums
from pipeline.painting import pieces
from pipeline.results import Results
from pipeline.terminal import print_table, visible

CHANGES = ("strategy", "rows", "changed", "from step", "KL mean", "KL max", "prob off by")
METRICS = ("strategy", "of", "perplexity", "entropy", "rank 1", "length", "eos", "errors")
EXAMPLES = ("row_id", "strategy", "#", "step", "first", "second")


def print_comparison(comparison: Comparison, num_examples: int) -> None:
    """Tables on stdout: each followed by an empty line."""
    print(f"first   {visible(comparison.names[0])}\nsecond  {visible(comparison.names[1])}")
    for line in comparison.settings:
        print(f"differs in {visible(line)}")
    print()
    print_table(CHANGES, [_changes(each) for each in comparison.by_strategy])
    print()
    rows = [
        [name, side, *_metrics(sums)]
        for each, both in zip(comparison.by_strategy, comparison.sums, strict=True)
        for name, side, sums in zip(each.names, ("first", "second"), both, strict=True)
    ]
    print_table(METRICS, rows)
    print()
    examples = [
        [each.row_id, pair_name(found.names), each.sample_index, each.step, *_tokens(each, comparison)]
        for found in comparison.by_strategy
        for each in found.examples[:num_examples]
    ]
    if examples:
        print_table(EXAMPLES, examples, wide=("first", "second"))
        print()


class Verdict(NamedTuple):
    """Whether two sides agree, in words.

    Attributes:
        word: `agree`, `DIFFER`, or "" where nothing was asked.
        asked: the tolerances, as options.
        said: how much changed.
        beyond: what went beyond what.
    """

    word: str
    asked: tuple[str, ...]
    said: str
    beyond: tuple[str, ...]


def verdict(comparison: Comparison, max_changed: float | None, max_kl: float | None) -> Verdict:
    """What to say of the tolerances; None asks nothing."""
    said = (
        f"{100 * comparison.changed_share:.3g} % of the rows changed · "
        f"largest KL {comparison.kl_max:.2g} nats where both saw the same text"
    )
    beyond = []
    if max_changed is not None and comparison.changed_share > max_changed:
        beyond.append(f"more than --max-changed {max_changed:g} of the rows changed")
    if max_kl is not None and comparison.kl_max > max_kl:
        beyond.append(f"a step has a KL above --max-kl {max_kl:g}")
    limits = {"--max-changed": max_changed, "--max-kl": max_kl}
    asked = tuple(f"{option} {limit:g}" for option, limit in limits.items() if limit is not None)
    return Verdict(("DIFFER" if beyond else "agree") if asked else "", asked, said, tuple(beyond))


def print_verdict(found: Verdict) -> None:
    """Whether they agree, on stdout; what went beyond what, on stderr."""
    print(" · ".join(filter(None, (found.word, found.said))))
    for line in found.beyond:
        print(line, file=sys.stderr)


def _changes(each: Difference) -> list[object]:
    alone = [
        f"{count} only in {side}" for side, count in (("first", each.only_first), ("second", each.only_second)) if count
    ]
    rows = ", ".join([f"{each.num_rows:,}", *alone])
    share = f"{each.num_changed:,} ({100 * each.num_changed / max(1, each.num_rows):.1f} %)"
    step = "–" if each.median_step is None else f"{min(each.steps)} (median {each.median_step})"
    mean = "–" if each.kl_mean is None else f"{each.kl_mean:.2g}"
    return [pair_name(each.names), rows, share, step, mean, f"{each.kl_max:.2g}", f"{each.prob_off_by:.2g}"]


def _metrics(sums: Sums) -> list[str]:
    return [_number(name, value) for name, value in metrics(sums).items()]


def _number(name: str, value: float | None) -> str:
    match name, value:
        case _, None:
            return "–"
        case "perplexity" | "entropy", float():
            return f"{value:.3g}"
        case "length", float():
            return f"{value:.1f}"
        case _:
            return f"{100 * value:.1f} %"


def _tokens(example: Example, comparison: Comparison) -> list[str]:
    """What each side has at the step where they part."""
    sides = zip((example.first, example.second), example.ends, comparison.results, strict=True)
    return [_token(token_id, end, results) for token_id, end, results in sides]


def _token(token_id: int | None, end: str, results: Results) -> str:
    if token_id is None:
        return f"ended: {end}"
    return f"{pieces(results.vocabulary, [token_id])[0]} ({token_id})"
