"""How the state of a run looks: a bar and a few lines on a terminal, the same lines elsewhere, one line when watched.

What is not known is left out. Times are rounded, and an estimate is a range.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from pipeline.status import Again, State, Status
from pipeline.terminal import visible

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
COLOURS: dict[State, str] = {
    "finished": "green",
    "in progress": "cyan",
    "quiet": "yellow",
    "stopped": "yellow",
    "failed": "red",
}
UNDER_WAY: tuple[State, ...] = ("in progress", "quiet")


class Line(NamedTuple):
    """A line of the screen, and what of it stands out."""

    head: str
    rest: str


def duration(seconds: float) -> str:
    """Time as people say it, in its largest unit: `8 s`, `3 min`, `2.5 h`."""
    for size, unit in UNITS:
        if seconds >= size * 1.5 or size == 1:
            count = seconds / size
            return f"{count:.1f} {unit}" if unit in ("d", "h") and count < 10 else f"{count:.0f} {unit}"
    raise AssertionError


def between(low: float, high: float) -> str:
    """A range of times, as one where both ends read the same."""
    first, last = duration(low), duration(high)
    return first if first == last else f"{first} to {last}"


def lines(status: Status) -> list[Line]:
    """What there is to say, most important first."""
    found = [Line(status.state, _progress(status))]
    if status.errors:
        counts = ", ".join(f"{name} {count:,}" for name, count in status.errors.items())
        past = ", past it" if status.is_past_max_error_rate else ""
        rate = f"{status.error_rate:.3%} of these rows, limit {status.max_error_rate:.3g} of all{past}"
        found.append(Line("errors", f"{status.num_errors:,} ({rate}): {counts}"))
    if status.retries:
        told = [_retry(retry) for retry in status.retries]
        found.append(Line("retries", f"{'; '.join(told)}: {status.num_errors_left:,} errors left"))
    if status.holder and status.state != "finished":
        age = duration(status.holder.lease_age_s)
        ended = ", which has ended" if status.state in ("stopped", "failed") else ""
        found.append(Line("driver", visible(f"{status.holder.driver}{ended}; lease renewed {age} ago")))
    if status.timings and (said := spent(status.timings)):
        found.append(Line("spent", said))
    return found


def _retry(retry: Again) -> str:
    done = "" if retry.is_finished else f", {retry.num_done:,} done and not finished"
    return f"{retry.name} of {retry.rows:,} rows{done}, {retry.num_ok:,} ok now"


def spent(timings: Mapping[str, Any]) -> str:
    """How well replicas were used, from the timings of a manifest; empty where nothing tells."""
    said = []
    if replica_s := timings.get("replica_s"):
        said.append("replicas " + ", ".join(f"{state} {duration(seconds)}" for state, seconds in replica_s.items()))
    if (occupancy := timings.get("batch_occupancy")) is not None:
        said.append(f"batches {occupancy:.0%} full")
    if step_s := timings.get("step_s"):
        said.append(f"{step_s * 1e3:.3g} ms a step")
    return " · ".join(said)


def sentence(status: Status) -> str:
    """The first of these lines, for a look among many."""
    errors = f" · {status.num_errors:,} errors" if status.errors else ""
    return f"{status.state}{_progress(status)}{errors}"


def _progress(status: Status) -> str:
    said = [
        f"{status.num_shards:,} of {status.num_planned_shards:,} shards",
        f"{status.num_rows:,} of {status.num_planned_rows:,} rows",
        f"{status.generated_tokens:,} tokens",
    ]
    if status.pace and status.state == "in progress":
        said.append(f"{status.pace.tokens_per_s:,.0f} tok/s")
    if status.state == "in progress":
        said.append(f"eta {between(*status.eta_s)}" if status.eta_s else "eta not known yet")
    if status.last_part_age_s is not None:
        usual = f" (one every {duration(status.pace.usual_gap_s)})" if status.pace and status.eta_s else ""
        said.append(f"last part {duration(status.last_part_age_s)} ago{usual}")
    return "".join(f" · {words}" for words in said)


def print_status(status: Status) -> None:
    """On stdout: with a bar on a terminal, else plain lines."""
    if sys.stdout.isatty():
        Console().print(_screen(status))
        return
    for head, rest in lines(status):
        print(f"{head}{rest if rest.startswith(' ·') else f' {rest}'}")


def follow(looks: Iterator[Status], shown: Callable[[Status], None] | None = None) -> Status:
    """Show each look: redrawn on a terminal, else a line each; returns the last one."""
    if shown is None and sys.stdout.isatty():
        with Live(console=Console(), auto_refresh=False) as live:
            return _last(looks, lambda status: live.update(_screen(status), refresh=True))
    return _last(looks, shown or (lambda status: print(sentence(status), flush=True)))


def _last(looks: Iterator[Status], show: Callable[[Status], None]) -> Status:
    for status in looks:
        show(status)
    return status


def _screen(status: Status) -> RenderableType:
    said = [
        Text.assemble((head, f"bold {COLOURS.get(status.state, '')}" if not index else "dim"), " " * bool(index), rest)
        for index, (head, rest) in enumerate(lines(status))
    ]
    return Group(ProgressBar(total=status.num_planned_rows, completed=status.num_rows, width=40), *said)
