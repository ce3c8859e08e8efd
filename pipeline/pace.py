"""How fast parts come, from when they were stored. Only one clock is known here, that of the store.

What was stored before the last long pause says nothing about the present, and of the rest the newest parts say most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

MOST_PARTS = 65
FEWEST_PARTS = 4  # fewer tell nothing about the future
PAUSE_S = 60.0
PAUSE_FACTOR = 10.0  # times the usual gap


class Stored(NamedTuple):
    """A part: when it was stored, in seconds, and what it holds."""

    at: float
    rows: int
    tokens: int


class Pace(NamedTuple):
    """How fast parts came lately.

    Attributes:
        rows_per_s, tokens_per_s: from one part to the last.
        usual_gap_s: median time between two parts.
        rows_per_s_range: slower and faster half of the time looked at.
    """

    rows_per_s: float
    tokens_per_s: float
    usual_gap_s: float
    rows_per_s_range: tuple[float, float]

    def eta_s(self, rows_left: int) -> tuple[float, float]:
        """Shortest and longest time that so many rows would take."""
        slow, fast = self.rows_per_s_range
        return rows_left / fast, rows_left / slow


def pace_of(parts: Iterable[Stored]) -> Pace | None:
    """The pace of late; None while too few parts tell, or all have the same time."""
    recent = _since_pause(sorted(parts)[-MOST_PARTS:])
    if len(recent) < FEWEST_PARTS or recent[0].at == recent[-1].at:
        return None
    seconds = recent[-1].at - recent[0].at
    middle = len(recent) // 2
    halves = [_rows_per_s(half) for half in (recent[: middle + 1], recent[middle:])]
    rates = [rate for rate in [*halves, _rows_per_s(recent)] if rate]
    return Pace(
        rows_per_s=sum(part.rows for part in recent[1:]) / seconds,
        tokens_per_s=sum(part.tokens for part in recent[1:]) / seconds,
        usual_gap_s=median(_gaps(recent)),
        rows_per_s_range=(min(rates), max(rates)),
    )


def _since_pause(parts: Sequence[Stored]) -> Sequence[Stored]:
    """The parts after the last gap that is far longer than the usual one."""
    gaps = _gaps(parts)
    if not gaps:
        return parts
    longest = max(PAUSE_S, PAUSE_FACTOR * median(gaps))
    pauses = [index for index, gap in enumerate(gaps, start=1) if gap > longest]
    return parts[pauses[-1] :] if pauses else parts


def _gaps(parts: Sequence[Stored]) -> list[float]:
    return [later.at - earlier.at for earlier, later in pairwise(parts)]


def _rows_per_s(parts: Sequence[Stored]) -> float | None:
    """Rows of all but the first part, by the time they took; None if that is too short to tell."""
    seconds = parts[-1].at - parts[0].at
    return sum(part.rows for part in parts[1:]) / seconds if seconds else None
