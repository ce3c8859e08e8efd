"""One work, all peers, each as it does it best: try every layout once, then time the best ones in turn.

Ours is not tried: it runs as the pipeline runs it, one single-threaded process per core. The limit that the machine
sets to the same arrangement is timed in the same rounds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import options
from benchmarks.machine import machine, write_result
from benchmarks.models import Size, checkpoint
from benchmarks.pairs import in_turn, rates, ratio, ratios
from benchmarks.teams import Layout, Peer, here, is_there, layouts, team
from benchmarks.workloads import Workload

OURS, LIMIT = "batchgen", "linears"
BATCHES = {"transformers": (32, 64, 128), "vllm": (64, 128), "ctranslate2": (32, 64, 128)}
REFILLING = {"vllm"}  # gives a row that has ended to the next prompt, so any batch can be tried on few prompts
OUR_BATCH = 128
LONG_S = 60  # a trial that takes longer is not repeated


@dataclass(frozen=True, slots=True)
class Question:
    """What a command compares.

    Attributes:
        name: of the results.
        description: for `--help`.
        case: the work in a dtype, or a tiny one.
        ours: options of our engine.
        peers: those to compare with, in a dtype.
    """

    name: str
    description: str
    case: Callable[[str, bool], Case]
    ours: Mapping[str, Any]
    peers: Callable[[str], Sequence[Peer]]


@dataclass(frozen=True, slots=True)
class Case:
    """A work on a checkpoint in a dtype; `trial` is the part of it that layouts are tried on."""

    workload: Workload
    trial: Workload
    size: Size
    dtype: str

    @property
    def checkpoint(self) -> Path:
        """Made where it is missing."""
        return checkpoint(self.size)


def answer(question: Question, arguments: list[str] | None) -> None:
    """Parse arguments, measure in each dtype, print, keep."""
    chosen = options(question.description, arguments, dtypes=True, peers=tuple(BATCHES))
    for dtype in chosen.dtype:
        peers = [peer for peer in question.peers(dtype) if peer.name in chosen.only]
        measure = compare_here if chosen.quick else compare
        ours = Peer(OURS, "benchmarks.peers.batchgen", question.ours)
        result = measure(question.case(dtype, chosen.quick), ours, peers, chosen.pairs)
        show(result)
        only = "" if len(chosen.only) == len(BATCHES) else f"-{'-'.join(chosen.only)}"  # replaces no whole result
        print(write_result(f"{question.name}-{dtype}{only}", result, chosen.quick))


def compare(case: Case, ours: Peer, peers: Sequence[Peer], pairs: int) -> dict[str, Any]:
    """Tokens per second of all on the whole machine, and our ratio to each, above 1 where we are faster."""
    conditions, cores = machine(), len(os.sched_getaffinity(0))
    our_layout = Layout(cores, 1, OUR_BATCH)
    found = {peer.name: best_layout(case, peer, cores) for peer in peers if is_there(peer)}
    chosen = {OURS: our_layout, LIMIT: our_layout} | {name: layout for name, (layout, _) in found.items()}
    members = [ours, Peer(LIMIT, "benchmarks.peers.linears", {}), *(peer for peer in peers if peer.name in found)]
    with ExitStack() as stack:
        teams = {
            peer.name: stack.enter_context(team(peer, case.workload, case.checkpoint, case.dtype, chosen[peer.name]))
            for peer in members
        }
        timings = in_turn(teams, pairs)
        versions = {name: each.versions for name, each in teams.items()}
    return {
        "machine": conditions,
        "versions": versions,
        "layouts": {name: layout._asdict() for name, layout in chosen.items()},
        "trials": {name: tried for name, (_, tried) in found.items()},
        **summary(case, timings),
    }


def compare_here(case: Case, ours: Peer, peers: Sequence[Peer], pairs: int) -> dict[str, Any]:
    """The same in this process and on one thread, with the peers of this environment alone."""
    members = [ours, Peer(LIMIT, "benchmarks.peers.linears", {}), *(peer for peer in peers if peer.environment is None)]
    runs = {peer.name: here(peer, case.workload, case.checkpoint, case.dtype, OUR_BATCH) for peer in members}
    return {"machine": machine(), **summary(case, in_turn(runs, pairs))}


def best_layout(case: Case, peer: Peer, cores: int) -> tuple[Layout, list[dict[str, Any]]]:
    """The fastest layout on the trial, and what every one reached."""
    tried = []
    rows = len((case.workload if peer.name in REFILLING else case.trial).prompts)
    for layout in layouts(cores, rows, BATCHES[peer.name]):
        with team(peer, case.trial, case.checkpoint, case.dtype, layout) as started:
            seconds = started().wall_s
            if seconds < LONG_S:  # vLLM's first run is a third slower
                seconds = min(seconds, started().wall_s)
        tried.append((case.trial.num_tokens / seconds, layout))
        print(f"{peer.name}, {layout.label}: {tried[-1][0]:.1f} tokens/s", flush=True)
    return max(tried)[1], [layout._asdict() | {"tokens_per_s": round(rate, 1)} for rate, layout in tried]


def summary(case: Case, timings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Conditions of a case, rates, ratios and every timing."""
    rounds = [dict(each) for each in timings]
    share = ratio(rounds, LIMIT, OURS)
    return {
        "model": asdict(case.size),
        "dtype": case.dtype,
        "work": case.workload.described(),
        "tokens_per_s": rates(rounds, case.workload.num_tokens),
        "times_as_fast_as": {name: each for name, each in ratios(rounds, OURS).items() if name != LIMIT},
        "share_of_limit": share,
        "rounds": [{name: timing._asdict() for name, timing in each.items()} for each in rounds],
    }


def _in_words(times: Mapping[str, float]) -> str:
    return f"ours is {times['median']:.2f} times as fast ({times['min']:.2f} to {times['max']:.2f})"


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    for name, rate in result["tokens_per_s"].items():
        against = result["times_as_fast_as"].get(name)
        print(f"{result['dtype']:10} {name:20} {rate:8.1f} tokens/s   {_in_words(against) if against else ''}")
    print(f"{result['dtype']:10} our share of the limit: {result['share_of_limit']['median']:.0%}")
