"""A short session of the chaos suite, and that it would notice a broken promise. `make chaos` plays the long one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.machine import RESULTS
from pipeline.faults import STEPS
from pipeline.storage import LocalFolder
from tests.chaos.play import WrongError, check_state, collected, documents, play
from tests.chaos.scenarios import (
    CORE_FILES,
    FAMILIES,
    FILES,
    OBJECT_STEPS,
    OBJECT_STORES,
    PARTS,
    Kill,
    Scenario,
    Start,
    scenarios,
)
from tests.chaos.world import World, world
from tests.flows import make_job, run_echo, write_prompts

SEED = 5

LONG_ONLY = ("replica at any moment", "driver on Ray", "cluster")  # a driver takes long to see that its Ray is gone
WITH_ITS_RAY = Scenario((Start((Kill("everything", "part", 2),), replicas=1),), ground="own", number=17)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.mark.slow
def test_a_few_kills_of_every_kind_leave_the_bytes_of_the_undisturbed_run(place: World) -> None:
    chosen = [scenario for scenario in scenarios(SEED, 15) if scenario.family not in LONG_ONLY] + [WITH_ITS_RAY]
    assert len(chosen) == 15
    outcomes = [play(scenario, place, SEED) for scenario in chosen]
    killed = {kill.victim for outcome in outcomes for kill in outcome.kills}
    assert {"driver", "replica", "raylet", "everything"} <= killed
    too_late = [outcome.scenario for outcome in outcomes if not outcome.kills]
    assert {scenario.starts[0].kills[0].moment for scenario in too_late} <= {"time"}


def test_the_same_seed_makes_the_same_scenarios_and_another_one_others() -> None:
    assert scenarios(SEED, 200) == scenarios(SEED, 200)
    assert scenarios(SEED, 200) != scenarios(SEED + 1, 200)


@pytest.mark.parametrize("seed", range(20))
def test_two_hundred_runs_go_through_every_step_of_every_file_and_every_kind_of_victim(seed: int) -> None:
    chosen = scenarios(seed, 200)
    assert len(chosen) >= 200
    assert {scenario.family for scenario in chosen} == set(FAMILIES)
    moments = {
        (kill.victim, "disk" if scenario.store == "disk" else "objects", kill.moment)
        for scenario in chosen
        for start in scenario.starts
        for kill in start.kills
    }
    assert {("driver", "disk", f"{key}:{step}") for key in FILES for step in STEPS} <= moments
    assert {("driver", "objects", f"{key}:{step}") for key in CORE_FILES for step in OBJECT_STEPS} <= moments
    assert {("replica", "disk", f"data/*:{step}") for step in STEPS} <= moments
    assert {scenario.store for scenario in chosen} == {"disk", *OBJECT_STORES}
    assert {victim for victim, _, _ in moments} == {"driver", "rival", "replica", "raylet", "cluster", "everything"}


def test_the_page_on_faults_quotes_the_last_long_session() -> None:
    session = json.loads((RESULTS / "chaos.json").read_text())
    assert session["runs_with_a_kill"] >= 200
    assert session["failures"] == []
    page = (RESULTS.parents[1] / "docs" / "faults.md").read_text()
    assert f"with seed {session['seed']}: {session['runs']} runs, {session['num_kills']} kills, 0 failures" in page
    quoted = [int(count) for count in re.findall(r"^\| [^|]+ \| (\d+) \| .* \|$", page, re.MULTILINE)]
    assert sorted(quoted) == sorted(sum(moments.values()) for moments in session["kills"].values())


# What the suite would notice, shown on a folder that was tampered with


@pytest.fixture
def finished(tmp_path: Path) -> LocalFolder:
    source = write_prompts(tmp_path / "prompts.parquet", ["The quiet fox", "Every bee", "Today"])
    run_echo(make_job(source, tmp_path / "out", run={"shard_rows": 1}))
    return LocalFolder(tmp_path / "out")


def test_a_finished_folder_is_what_was_expected_and_an_unfinished_one_a_part_of_it(finished: LocalFolder) -> None:
    expected = documents(finished)
    check_state(expected, expected, is_finished=True)
    for key in ("_SUCCESS", "_manifest.json", PARTS[1]):
        finished.remove(key)
        check_state(documents(finished), expected, is_finished=False)


@pytest.mark.parametrize("key", ["_plan.json", "_manifest.json", "_vocab.parquet", "README.md", PARTS[1]])
def test_a_changed_or_missing_file_in_a_folder_that_looks_finished_is_noticed(finished: LocalFolder, key: str) -> None:
    expected = documents(finished)
    data = finished.read(key) or b""
    finished.replace(key, data.replace(b"fingerprint", b"fingerprinT", 1) if key.endswith("json") else data + b"x")
    with pytest.raises(WrongError, match=f"looks finished, but differs in {key}"):
        check_state(documents(finished), expected, is_finished=False)
    finished.remove(key)
    with pytest.raises(WrongError, match=f"looks finished, but differs in {key}"):
        check_state(documents(finished), expected, is_finished=False)


def test_a_torn_or_foreign_file_in_an_unfinished_folder_is_noticed(finished: LocalFolder) -> None:
    expected = documents(finished)
    finished.remove("_SUCCESS")
    finished.replace(PARTS[2], (finished.read(PARTS[2]) or b"")[:100])
    finished.replace("data/other.parquet", b"")
    with pytest.raises(WrongError, match=f"the unfinished folder differs in data/other.parquet, {PARTS[2]}"):
        check_state(documents(finished), expected, is_finished=False)


def test_a_job_that_ended_well_without_saying_so_is_noticed(finished: LocalFolder) -> None:
    expected = documents(finished)
    finished.remove("_SUCCESS")
    with pytest.raises(WrongError, match="looks finished, but differs in _SUCCESS"):
        check_state(documents(finished), expected, is_finished=True)


def test_what_gc_leaves_is_noticed(finished: LocalFolder) -> None:
    finished.replace("_tmp/unknown", b"")
    with pytest.raises(WrongError, match=r"gc left \['_tmp/unknown'\]"):
        collected(finished, documents(finished))
