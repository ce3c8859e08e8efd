"""Our engine against itself or one peer, on one core: several ways to do a work, timed in turn.

Every way has a process of its own, all on the first core, so that none can disturb another's caches and counters.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.machine import machine
from benchmarks.models import Size, checkpoint
from benchmarks.pairs import Run, in_turn, rates, ratios
from benchmarks.teams import Layout, Peer, here, is_there, team
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True)
class Way:
    """A peer, the work it is given, and the most rows it decodes together."""

    peer: Peer
    workload: Workload
    batch: int


def measure(ways: Sequence[Way], size: Size, dtype: str, pairs: int, *, quick: bool, base: str) -> dict[str, Any]:
    """Every timing, tokens per second, and how many times as long as `base` each way takes.

    In a quick look all run in this process, and those of another environment not at all.
    """
    conditions, folder = machine(), checkpoint(size)
    with ExitStack() as stack:
        runs: dict[str, Run] = {}
        versions = {}
        for way in ways:
            if quick and way.peer.environment is None:
                runs[way.peer.name] = here(way.peer, way.workload, folder, dtype, way.batch)
            elif not quick and is_there(way.peer):
                started = stack.enter_context(team(way.peer, way.workload, folder, dtype, Layout(1, 1, way.batch)))
                runs[way.peer.name], versions[way.peer.name] = started, started.versions
        rounds = in_turn(runs, pairs)
    return {
        "machine": conditions | {"cores_used": 1, "cores": len(os.sched_getaffinity(0))},
        "versions": versions,
        "model": asdict(size),
        "dtype": dtype,
        "ways": {way.peer.name: {"batch": way.batch, **way.workload.described()} for way in ways},
        "options": {way.peer.name: dict(way.peer.options) for way in ways},
        "tokens_per_s": rates(rounds, ways[0].workload.num_tokens),
        "time_against": {"base": base, **ratios(rounds, base)},
        "rounds": [{name: timing._asdict() for name, timing in each.items()} for each in rounds],
    }
