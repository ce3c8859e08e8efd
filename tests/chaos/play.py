"""Play a scenario to its end, and compare what it leaves with the undisturbed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from pipeline import leftovers
from pipeline.storage import Folder, open_folder
from tests.chaos.scenarios import DOCUMENTS, PARTS, Kill, Scenario, Start
from tests.chaos.world import World

MOST_STARTS = 4  # without a kill
EXIT_CODES = (0, 4, -9)

Documents = dict[str, Any]


class WrongError(Exception):
    """The promise is broken."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a scenario.

    Attributes:
        scenario: played.
        kills: those that met somebody.
        num_starts: of the job, until it was done.
        leftovers: collected by gc in the end.
    """

    scenario: Scenario
    kills: tuple[Kill, ...]
    num_starts: int
    leftovers: int


def play(scenario: Scenario, place: World, seed: int) -> Outcome:
    """Start the job with all kills, then until it is done.

    Raises:
        WrongError: what is left is not what the undisturbed run leaves.
        HungError: a start did not end.
    """
    is_timed = any(kill.moment == "time" for start in scenario.starts for kill in start.kills)
    expected = undisturbed(place, scenario.ground if is_timed else "here")
    random = Random(f"{seed} {scenario.number}")
    output = _output(place, scenario, str(scenario.number))
    folder = open_folder(output)
    kills: list[Kill] = []
    for num_starts, start in enumerate(_starts(scenario), 1):
        ended = place.start(scenario, start, output, random)
        kills += ended.kills
        found = documents(folder)
        if ended.exit_code not in EXIT_CODES and not _dies_with_ray(start):
            raise WrongError(f"exit code {ended.exit_code} in start {num_starts}")
        check_state(found, expected, is_finished=ended.exit_code == 0)
        if not start.kills and ended.exit_code == 0:
            return Outcome(scenario, tuple(kills), num_starts, collected(folder, found))
    raise WrongError(f"not done after {MOST_STARTS} undisturbed starts, exit code {ended.exit_code}")


def _dies_with_ray(start: Start) -> bool:
    """Whether Ray may be killed while the driver starts or ends it, and then end the driver with a code of its own."""
    return any(kill.victim == "cluster" and kill.moment == "time" for kill in start.kills)


def undisturbed(place: World, ground: str) -> Documents:
    """What the job leaves when nobody is killed; the same from every ground.

    From then on the duration of such a run is known.
    """
    expected = _undisturbed(place, "here")
    if expected.keys() != {*PARTS, *DOCUMENTS}:
        raise WrongError(f"an undisturbed run leaves {', '.join(expected)}")
    if (found := _undisturbed(place, ground)) != expected:
        raise WrongError(f"an undisturbed run differs {_difference(found, expected)}")
    return expected


def documents(folder: Folder) -> Documents:
    """All files but unfinished ones, by key; of those that name folders and times, everything else as JSON values."""
    keys = [key for key in folder.list_keys() if key not in ("_tmp", "data")]
    keys += folder.list_keys("data")
    return {key: COMPARED.get(key, bytes)(folder.read(key) or b"") for key in keys}


def _starts(scenario: Scenario) -> list[Start]:
    return [*scenario.starts, *[Start(replicas=scenario.starts[-1].replicas)] * MOST_STARTS]


def _output(place: World, scenario: Scenario, name: str) -> str:
    return str(place.folder / f"out-{name}") if scenario.store == "disk" else f"{scenario.store}://bkt/{name}"


def _undisturbed(place: World, ground: str) -> Documents:
    scenario = Scenario((), ground=ground)
    output = _output(place, scenario, f"undisturbed-{ground}")
    if ground not in place.durations_s:
        ended = place.start(scenario, Start(), output, Random(0))
        if ended.exit_code:
            raise WrongError(f"an undisturbed run on {ground} ended with {ended.exit_code}")
        place.durations_s[ground] = ended.elapsed_s
    return documents(open_folder(output))


def check_state(found: Documents, expected: Documents, is_finished: bool) -> None:
    """Nothing torn or foreign at any time, and the end is said only when it is one."""
    if "_SUCCESS" in found or is_finished:
        if found != expected:
            raise WrongError(f"the folder looks finished, but differs {_difference(found, expected)}")
    elif not found.items() <= expected.items():
        so_far = {key: expected[key] for key in found.keys() & expected.keys()}
        raise WrongError(f"the unfinished folder differs {_difference(found, so_far)}")


def collected(folder: Folder, finished: Documents) -> int:
    """How many leftovers gc removed; it must leave nothing foreign, and the rest as it was."""
    found = leftovers.collect(folder, wait=lambda _seconds: None)
    left = folder.list_keys("_tmp")
    if left or documents(folder) != finished:
        raise WrongError(f"gc left {left}, and changed {_difference(documents(folder), finished)}")
    return len(found)


def _difference(found: Documents, expected: Documents) -> str:
    keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    return f"in {', '.join(keys) or 'nothing'}"


def _plan(document: bytes) -> dict[str, Any]:
    plan = json.loads(document)
    del plan["job"]["output"]["path"], plan["job"]["run"]
    return dict(plan)


def _manifest(document: bytes) -> dict[str, Any]:
    manifest = json.loads(document)
    del manifest["timings"]
    return dict(manifest)


COMPARED: dict[str, Callable[[bytes], Any]] = {"_plan.json": _plan, "_manifest.json": _manifest}
