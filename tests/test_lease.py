"""One driver at a time: refused, waited for, taken over, renewed, given back; time passes only where a test says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from pipeline import job
from pipeline.errors import InUseError
from pipeline.lease import (
    EXPIRY_S,
    POLL_S,
    Driver,
    Lease,
    acquire,
    hold,
    latest,
    renew,
    start_of,
    this_driver,
    this_place,
    wait_until_free,
)
from pipeline.shard import Part, Shard
from pipeline.storage import LocalFolder
from tests.flows import echo, make_job, part_bytes, run_echo, write_prompts

ELSEWHERE = Driver("far", "far boot pid:[1]", 7, 70, "2026-01-01T00:00:00+00:00", "a")
SLEEP = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    prepared = LocalFolder(tmp_path / "out")
    prepared.prepare()
    return prepared


class Clock:
    """Passes time without waiting: calls `then` at each step and counts the seconds."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.then, self.passed_s = then, 0.0

    def wait(self, seconds: float) -> None:
        self.passed_s += seconds
        self.then()


def never(_seconds: float) -> None:
    raise AssertionError("there is nothing to wait for")


def put(folder: LocalFolder, driver: Driver, number: int = 1) -> Lease:
    """A lease as another driver stores it."""
    lease = Lease(number, driver)
    folder.replace(lease.key, lease.document)
    return lease


@pytest.fixture
def other_process() -> Iterator[Driver]:
    """A driver that lives on this machine in a process of its own until the test is over."""
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield replace(this_driver(), pid=process.pid, started=start_of(process.pid), token="other")
        process.kill()


def test_a_held_folder_holds_one_lease_that_names_the_driver_and_goes_in_the_end(folder: LocalFolder) -> None:
    with hold(folder, never):
        stored = json.loads(folder.read("_tmp/driver-00001.json") or b"")
        assert stored["driver"]["pid"] == os.getpid()
        assert stored["driver"]["started"] == start_of(os.getpid())
        assert folder.list_keys("_tmp") == ["_tmp/driver-00001.json"]
    assert folder.list_keys("_tmp") == []


def test_a_driver_alive_on_this_machine_is_not_waited_for_but_refused_by_name(
    folder: LocalFolder, other_process: Driver
) -> None:
    put(folder, other_process)
    with pytest.raises(
        InUseError, match=rf"is being worked on by process {other_process.pid} on \S+, since 2"
    ) as caught:
        acquire(folder, this_driver(), never)
    assert caught.value.exit_code == 4
    assert str(folder.root) in str(caught.value)
    assert folder.list_keys("_tmp") == ["_tmp/driver-00001.json"]


def test_a_driver_whose_process_was_killed_on_this_machine_never_blocks_the_next(folder: LocalFolder) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE)
    driver = replace(this_driver(), pid=process.pid, started=start_of(process.pid), token="dead")
    put(folder, driver)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie, until somebody asks for its exit code
    assert acquire(folder, this_driver(), never).number == 2
    process.communicate()
    assert wait_until_free(folder, "another place", Clock().wait) == 3


def test_a_pid_that_another_process_has_got_is_not_taken_for_the_driver(folder: LocalFolder) -> None:
    started = start_of(os.getpid())
    assert started is not None
    put(folder, replace(this_driver(), started=started - 1))
    assert acquire(folder, this_driver(), never).number == 2


def test_a_driver_elsewhere_is_taken_over_after_a_minute_without_a_renewal(folder: LocalFolder) -> None:
    put(folder, ELSEWHERE)
    clock = Clock()
    lease = acquire(folder, this_driver(), clock.wait)
    assert clock.passed_s == EXPIRY_S == 60
    assert lease.number == 2
    assert latest(folder) == lease


@pytest.mark.parametrize("step", [1, 2, 12])
def test_a_driver_elsewhere_that_renews_its_lease_is_alive(folder: LocalFolder, step: int) -> None:
    lease = put(folder, ELSEWHERE)
    clock = Clock(lambda: renew(folder, lease) if clock.passed_s == step * POLL_S else None)
    with pytest.raises(InUseError, match="being worked on by process 7 on far, since 2026-01-01T00:00:00"):
        acquire(folder, this_driver(), clock.wait)
    assert clock.passed_s == step * POLL_S
    assert latest(folder) == replace(lease, renewals=1)


def test_a_driver_elsewhere_that_ends_while_it_is_watched_makes_room(folder: LocalFolder) -> None:
    lease = put(folder, ELSEWHERE)
    clock = Clock(lambda: folder.remove(lease.key))
    assert acquire(folder, this_driver(), clock.wait).number == 1
    assert clock.passed_s == POLL_S


def test_a_driver_that_takes_over_first_is_the_one_that_holds_the_folder(folder: LocalFolder) -> None:
    put(folder, ELSEWHERE)
    clock = Clock(lambda: put(folder, replace(ELSEWHERE, token="b"), 2) if clock.passed_s == EXPIRY_S else None)
    with pytest.raises(InUseError):
        acquire(folder, this_driver(), clock.wait)


def test_of_many_drivers_that_want_a_dead_ones_folder_one_gets_it(folder: LocalFolder) -> None:
    put(folder, replace(this_driver(), started=0))
    barrier = Barrier(8)

    def race(_number: int) -> Lease | None:
        me = this_driver()
        barrier.wait()
        try:
            return acquire(folder, me, never)
        except InUseError:
            return None

    with ThreadPoolExecutor(8) as threads:
        won = [lease for lease in threads.map(race, range(8)) if lease is not None]
    assert [lease.number for lease in won] == [2]
    assert latest(folder) == won[0]


def test_a_driver_that_was_taken_over_learns_it_at_its_next_renewal_and_leaves_the_lease_alone(
    folder: LocalFolder,
) -> None:
    mine = acquire(folder, this_driver(), never)
    theirs = put(folder, ELSEWHERE, 2)
    with pytest.raises(InUseError, match=r"was taken over by process 7 on far.*finished parts are kept"):
        renew(folder, mine)
    assert latest(folder) == theirs


def test_a_lease_that_somebody_removed_is_put_back(folder: LocalFolder) -> None:
    mine = acquire(folder, this_driver(), never)
    folder.remove(mine.key)
    assert renew(folder, mine) == latest(folder) == replace(mine, renewals=1)


def test_a_damaged_lease_is_that_of_somebody_unknown(folder: LocalFolder) -> None:
    folder.replace("_tmp/driver-00001.json", b"{")
    clock = Clock(lambda: folder.replace("_tmp/driver-00001.json", b"[]"))
    with pytest.raises(InUseError, match="process 0 on an unknown host"):
        acquire(folder, this_driver(), clock.wait)
    clock = Clock()
    assert acquire(folder, this_driver(), clock.wait).number == 2
    assert clock.passed_s == EXPIRY_S


def test_a_place_is_a_host_a_boot_and_a_namespace_of_pids() -> None:
    host, boot, namespace = this_place().split()
    assert (host, len(boot), namespace[:5]) == (os.uname().nodename, 36, "pid:[")
    assert start_of(2**22 + 1) is None


# Whole runs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.parquet", ["The quiet fox", "Every bee", "Today", "I skip"])


def test_a_second_run_in_a_folder_is_refused_while_the_first_goes_on_to_its_end(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out", run={"shard_rows": 1})
    refused = []

    def meanwhile(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        for part in job.here(open_worker, shards):
            with pytest.raises(InUseError) as caught:
                run_echo(work)
            refused.append(str(caught.value))
            yield part

    finished = job.run(work, meanwhile, engine_maker=echo)
    assert len(refused) == 4
    assert not finished.was_finished
    assert run_echo(work).was_finished


def test_a_run_in_the_folder_of_a_dead_driver_finishes_and_leaves_no_lease(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    run_echo(make_job(source, tmp_path / "undisturbed"))
    folder = LocalFolder(tmp_path / "out")
    folder.prepare()
    put(folder, replace(this_driver(), started=0))
    run_echo(work)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")
    assert folder.list_keys("_tmp") == []


def test_a_finished_run_is_not_held_by_anybody(source: Path, tmp_path: Path, other_process: Driver) -> None:
    work = make_job(source, tmp_path / "out")
    run_echo(work)
    put(LocalFolder(tmp_path / "out"), other_process)
    assert run_echo(work).was_finished
