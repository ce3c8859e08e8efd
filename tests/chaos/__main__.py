"""`python -m tests.chaos --seed 0 --runs 225`: play scenarios, print a table of kills, keep the counts.

The same seed makes the same scenarios; `--only 17` plays the one of that number, with its folders kept for a look.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, write_result
from pipeline import __version__
from tests.chaos.play import Outcome, WrongError, play
from tests.chaos.scenarios import Kill, Scenario, scenarios
from tests.chaos.world import HungError, world


def main() -> None:
    """Parse arguments, play, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=225)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of scenarios")
    arguments = parser.parse_args()
    chosen = scenarios(arguments.seed, arguments.runs)
    if arguments.only is not None:
        chosen = [scenario for scenario in chosen if scenario.number in arguments.only]
    conditions, begun = machine(), time.perf_counter()
    outcomes, failures = play_all(chosen, arguments.seed)
    print(table(outcomes))
    for failure in failures:
        print(f"FAILED {failure}")
    if arguments.only is None:
        result = summary(outcomes, failures, arguments.seed)
        result["elapsed_s"] = round(time.perf_counter() - begun)
        print(write_result("chaos", {"machine": conditions, "batchgen": __version__} | result))
    sys.exit(bool(failures))


def play_all(chosen: Sequence[Scenario], seed: int) -> tuple[list[Outcome], list[str]]:
    """Outcomes, and what went wrong with the others."""
    outcomes, failures = [], []
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with world(folder) as place:
        for scenario in chosen:
            begun, starts = time.perf_counter(), place.num_starts
            try:
                outcomes.append(play(scenario, place, seed))
                said = f"{len(outcomes[-1].kills)} kills, {outcomes[-1].num_starts} starts"
            except (WrongError, HungError) as error:
                failures.append(f"--only {scenario.number} ({scenario.family}, control-{starts} on): {error}")
                said = failures[-1]
            print(f"{scenario.number:4} {time.perf_counter() - begun:5.1f} s  {scenario.family}: {said}", flush=True)
    print(f"everything written is in {folder}")
    return outcomes, failures


def label(kill: Kill) -> str:
    """Where a kill belongs in the table."""
    key, _, step = kill.moment.rpartition(":")
    if not key:
        return {"engine": "in a batch", "part": "after the n-th part", "time": "at any time"}[step]
    file = "part" if key.startswith("data/") else "lease" if key.startswith("_tmp/") else key.replace("*", "any file")
    return f"{file}, {step}"


def counted(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Kills that met somebody, by victim and moment."""
    counts = Counter((kill.victim, label(kill)) for outcome in outcomes for kill in outcome.kills)
    return {
        victim: {moment: count for (whose, moment), count in sorted(counts.items()) if whose == victim}
        for victim in sorted({victim for victim, _ in counts})
    }


def table(outcomes: Sequence[Outcome]) -> str:
    """Kills by victim and moment, as lines."""
    lines = []
    for victim, moments in counted(outcomes).items():
        lines.append(f"{victim:12} {sum(moments.values()):4}")
        lines += [f"    {moment:28} {count:4}" for moment, count in moments.items()]
    return "\n".join(lines)


def summary(outcomes: Sequence[Outcome], failures: Sequence[str], seed: int) -> dict[str, Any]:
    """What is kept of a session."""
    kills = counted(outcomes)
    return {
        "seed": seed,
        "runs": len(outcomes) + len(failures),
        "runs_with_a_kill": sum(len(outcome.kills) > 0 for outcome in outcomes),
        "failures": list(failures),
        "runs_by_family": dict(Counter(outcome.scenario.family for outcome in outcomes)),
        "num_kills": sum(sum(moments.values()) for moments in kills.values()),
        "kills_that_came_too_late": sum(len(start.kills) for outcome in outcomes for start in outcome.scenario.starts)
        - sum(len(outcome.kills) for outcome in outcomes),
        "kills": kills,
        "starts_until_done": dict(Counter(str(outcome.num_starts) for outcome in outcomes)),
        "runs_with_leftovers": sum(outcome.leftovers > 0 for outcome in outcomes),
        "leftovers_collected": sum(outcome.leftovers for outcome in outcomes),
    }


if __name__ == "__main__":
    main()
