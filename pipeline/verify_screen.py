"""What people see of proofs, replays and retries: tables on stdout, what is wrong and what to expect on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.replay import Verdict
from pipeline.retry import Outlook, Retried
from pipeline.terminal import print_table, visible
from pipeline.verify import Report

PROOF_COLUMNS = ("check", "result", "what must be true", "first place, or why not")
VERDICT_COLUMNS = ("strategy", "#", "tokens", "result", "prob off by", "logprob off by", "why")


def print_report(report: Report) -> None:
    """A line per check, and every first finding in full."""
    wrong = {outcome.check: outcome.first for outcome in report.outcomes if outcome.first}
    places = {check: f"{finding.place}: {finding.message}" for check, finding in wrong.items()}
    rows = [
        [outcome.check, outcome.result, outcome.statement, places.get(outcome.check, outcome.note)]
        for outcome in report.outcomes
    ]
    print_table(PROOF_COLUMNS, rows, wide=PROOF_COLUMNS[2:])
    for outcome in report.outcomes:
        if outcome.first:
            more = f" (and {outcome.num_wrong - 1:,} more)" if outcome.num_wrong > 1 else ""
            print(f"wrong: {outcome.check}: {visible(places[outcome.check])}{more}", file=sys.stderr)
    said = "proven" if report.is_proven else f"NOT proven, {len(wrong)} checks found something wrong"
    parts = f"{report.num_parts:,} of {report.num_planned_parts:,} parts"
    print(f"{said} · {report.state} · {parts} · {report.num_rows:,} rows · {report.folder}")


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """A line per completion."""
    rows = [
        [
            verdict.strategy,
            verdict.sample_index,
            verdict.num_tokens,
            verdict.result,
            f"{verdict.difference.prob:.1g}",
            f"{verdict.difference.logprob:.1g}",
            verdict.message,
        ]
        for verdict in verdicts
    ]
    print_table(VERDICT_COLUMNS, rows, wide=("why",))


def print_outlook(outlook: Outlook) -> None:
    """What a retry will compute, and what cannot come out any better."""
    counts = ", ".join(f"{type_} {count:,}" for type_, count in outlook.counts.items())
    begins = "resuming retry" if outlook.is_resumed else "retry"
    left_out = f"; {outlook.num_left_out:,} of other types are left out" if outlook.num_left_out else ""
    print(f"{begins} {outlook.retry.name}: {outlook.counts.total():,} error rows: {counts}{left_out}", file=sys.stderr)
    if certain := outlook.certain:
        print(
            f"{sum(certain.values()):,} of them will fail again the same way ({', '.join(certain)}): the reason lies "
            "in the row or the job, and neither can have changed. Choose others with --error-type.",
            file=sys.stderr,
        )


def print_retried(retried: Retried) -> None:
    """What came of a retry, and what is left."""
    totals, elapsed_s = retried.manifest["totals"], retried.manifest["timings"]["elapsed_s"]
    counts = f"{totals['rows']:,} rows: {totals['ok']:,} ok, {totals['errors']:,} errors again"
    left = f"{retried.num_errors:,} error rows left in the run"
    print(f"done in {elapsed_s:.0f} s · {counts} · {left} · {retried.folder}")
