"""Timings that can be compared on a machine that others use too: in turn, round after round, ratios within a round.

A round does every work once and the next one goes in the opposite order, so that drift falls on all alike. Clock time
is what counts; CPU seconds tell whether others disturbed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds of one run on the clock, and of CPU in all its processes."""

    wall_s: float
    cpu_s: float


Run = Callable[[], Timing]
Round = dict[str, Timing]


def timed(call: Callable[[], object]) -> Timing:
    """Of a call in this process."""
    start, cpu_start = time.perf_counter(), time.process_time()
    call()
    return Timing(round(time.perf_counter() - start, 4), round(time.process_time() - cpu_start, 4))


def in_turn(runs: Mapping[str, Run], rounds: int) -> list[Round]:
    """Time all, so many times; prints each."""
    order = list(runs)
    timings = []
    for _ in range(rounds):
        timings.append({name: runs[name]() for name in order})
        print("   ".join(f"{name} {timings[-1][name].wall_s:.2f} s" for name in runs), flush=True)
        order.reverse()
    return timings


def rates(rounds: Sequence[Round], amount: float) -> dict[str, float]:
    """Median amount per second of each."""
    return {name: round(amount / median(each[name].wall_s for each in rounds), 1) for name in rounds[0]}


def ratios(rounds: Sequence[Round], base: str) -> dict[str, dict[str, float]]:
    """How many times as long each takes as `base`, on the clock and in CPU seconds, within a round."""
    return {name: ratio(rounds, name, base) for name in rounds[0] if name != base}


def ratio(rounds: Sequence[Round], name: str, base: str) -> dict[str, float]:
    """Median, least and most of time by time of `base`; `cpu` is the median in CPU seconds."""
    wall = [each[name].wall_s / each[base].wall_s for each in rounds]
    cpu = [each[name].cpu_s / each[base].cpu_s for each in rounds if each[name].cpu_s and each[base].cpu_s]
    values = {"median": median(wall), "min": min(wall), "max": max(wall)} | ({"cpu": median(cpu)} if cpu else {})
    return {key: round(value, 3) for key, value in values.items()}
