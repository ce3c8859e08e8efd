"""The driver's loop over replicas that are only simulated, in a time of their own: no Ray, no waiting."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from pipeline.dispatch import HUNG, IDLE_S, Begun, Died, Dispatcher, Event, Finished, Pulse, Started
from pipeline.errors import ClusterError, StoppedError
from pipeline.health import LOADING_S, SLACK_S, SLOWEST_STEP_S, TOLERANCE, delay_s
from pipeline.ledger import Ledger, Work
from pipeline.records import RowError
from pipeline.shard import Part, Shard
from tests.test_ledger import CRASH, shards

NEVER = float("inf")
STEPS = 10  # per row


@dataclass
class Process:
    """A simulated replica: what it was given, what it is at, when the oldest of that ends, and when what happens."""

    place: int
    queue: deque[Work] = field(default_factory=deque)
    at: deque[Work] = field(default_factory=deque)
    ends: float = 0.0
    due: float = 0.0
    is_running: bool = False


@dataclass
class World:
    """A `Pool` whose replicas live in simulated seconds.

    Attributes:
        seconds: that a replica takes for work; NEVER hangs.
        deadly: rows that kill whoever generates for them, half a second into it.
        starts: seconds until the n-th replica runs, NEVER for one that waits for a place; its death if negative.
        places: room in the cluster, as a function of the time.
        at_a_time: shards that a replica is at; the second waits for the first.
    """

    seconds: Callable[[Work], float] = lambda work: 1.0
    deadly: frozenset[int] = frozenset()
    starts: Callable[[int], float] = lambda replica: 2.0
    places: Callable[[float], int] = lambda now: 1
    at_a_time: int = 1
    now: float = 1000.0
    processes: dict[int, Process] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)
    log: list[tuple[float, str, int]] = field(default_factory=list)
    tried: list[Shard] = field(default_factory=list)

    def room(self) -> int:
        return self.places(self.now)

    def start(self) -> int:
        replica = next(self.numbers)
        self.processes[replica] = Process(replica, due=self.now + abs(self.starts(replica)))
        self.log.append((self.now, "start", replica))
        return replica

    def kill(self, replica: int) -> None:
        del self.processes[replica]
        self.log.append((self.now, "kill", replica))

    def give(self, replica: int, work: Work) -> None:
        process = self.processes[replica]
        process.queue.append(work)
        process.due = self.next_due(process)

    def next_due(self, process: Process) -> float:
        if process.queue and len(process.at) < self.at_a_time:
            return self.now
        return process.ends if process.at else NEVER

    def clock(self) -> float:
        return self.now

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Everything due at the next moment at which anything is, if that comes in time."""
        moment = min((process.due for process in self.processes.values()), default=NEVER)
        self.now = max(self.now, min(moment, self.now + timeout_s))
        for replica in [replica for replica, process in self.processes.items() if process.due <= self.now]:
            yield self.step(replica, self.processes[replica])

    def step(self, replica: int, process: Process) -> Event:
        if not process.is_running:
            if self.starts(replica) < 0:
                del self.processes[replica]
                return Died(replica, CRASH, "No module named `pipeline`.")
            process.is_running, process.due = True, NEVER
            return Started(replica)
        if process.queue and len(process.at) < self.at_a_time:
            process.at.append(process.queue.popleft())
            self.tried.append(process.at[-1].shard)
            self.go_on(process, is_new=len(process.at) == 1)
            return Begun(replica, process.at[-1], STEPS)
        work = process.at.popleft()
        if self.deadly & set(work.rows):
            del self.processes[replica]
            return Died(replica, CRASH, "it crashed.")
        self.go_on(process, is_new=bool(process.at))
        return Finished(replica, work, None if work.is_trial else part(work))

    def go_on(self, process: Process, is_new: bool) -> None:
        if is_new:
            work = process.at[0]
            process.ends = self.now + (0.5 if self.deadly & set(work.rows) else self.seconds(work))
        process.due = self.next_due(process)


def part(work: Work) -> Part:
    return Part(work.shard.key, work.shard.hi - work.shard.lo, ",".join(map(str, work.poisoned)), {}, 0)


def dispatcher(world: World, todo: list[Shard], **settings: object) -> Dispatcher:
    return Dispatcher(Ledger(todo), world, **{"grace_s": 10.0, "clock": world.clock} | settings)


def run(world: World, todo: list[Shard]) -> dict[str, str]:
    """Part keys with the rows that are errors."""
    parts = list(dispatcher(world, todo).run())
    assert len(parts) == len({part.key for part in parts}) == len(todo)
    return {part.key: part.sha256 for part in parts}


def starts(world: World) -> list[float]:
    return [moment - 1000.0 for moment, what, _ in world.log if what == "start"]


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_all_shards_are_done_by_as_many_replicas_as_there_is_room_for(at_a_time: int) -> None:
    world = World(places=lambda now: 3, at_a_time=at_a_time)
    assert set(run(world, shards(30))) == {shard.key for shard in shards(30)}
    assert len(world.processes) == 3
    assert world.now == pytest.approx(1000 + 2 + 10)


def test_no_more_replicas_are_started_than_there_are_shards() -> None:
    world = World(places=lambda now: 50)
    run(world, shards(2))
    assert len(starts(world)) == 2


def test_a_cluster_that_grows_is_used_and_one_that_shrinks_and_grows_again_is_too() -> None:
    world = World(places=lambda now: 3 if now > 1020 else 1)
    run(world, shards(100))
    assert [int(moment) for moment in starts(world)] == [0, 25, 25]  # it looks every five seconds


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_rows_that_kill_become_errors_and_cost_nobody_else_anything(at_a_time: int) -> None:
    world = World(deadly=frozenset({3, 17}), places=lambda now: 2, at_a_time=at_a_time)
    assert run(world, shards(4)) == {
        "data/part-00000.parquet": "3",
        "data/part-00001.parquet": "",
        "data/part-00002.parquet": "17",
        "data/part-00003.parquet": "",
    }


def test_many_deadly_rows_in_the_very_last_shard_do_not_stop_the_run() -> None:
    """Every verdict takes three deaths in a row; only those without a survivor in between count against the run."""
    deadly = frozenset(range(64, 128, 5))
    found = run(World(deadly=deadly), shards(2, rows=64))
    assert found["data/part-00001.parquet"] == ",".join(map(str, sorted(deadly)))


def test_the_next_replica_in_a_place_waits_the_longer_the_more_died_there_without_doing_anything() -> None:
    assert [delay_s(failures) for failures in range(1, 9)] == [0, 1, 2, 4, 8, 16, 30, 30]
    world = World(deadly=frozenset(range(100)), seconds=lambda work: 0.0)
    with pytest.raises(ClusterError):
        run(world, shards(8))
    gaps = [later - earlier for earlier, later in zip(starts(world), starts(world)[1:], strict=False)]
    lived = 2.5  # to start, and to die
    assert gaps[:7] == pytest.approx(
        [lived + delay for delay in (0, 1, 2, 4, 8, 16, 30)], abs=1.0
    )  # it looks every 1 s


def test_a_place_whose_replica_did_something_is_used_again_at_once() -> None:
    world = World(deadly=frozenset({1, 3, 5, 7, 9}))
    run(world, shards(10, rows=1))
    assert all(later - earlier < 9 for earlier, later in zip(starts(world), starts(world)[1:], strict=False))


def test_replicas_that_die_whatever_they_do_stop_the_run_with_the_causes() -> None:
    with pytest.raises(ClusterError) as caught:
        run(World(deadly=frozenset(range(1000))), shards(100))
    assert str(caught.value) == (
        "replicas died 20 times in a row (20 killed_replica) and nothing was done in between, last on input rows 56 to "
        "63 (data/part-00007.parquet): it crashed. Finished parts are kept. Look at the memory and the logs of the "
        "nodes, then run the same command again."
    )


def test_a_hundred_replicas_that_die_at_once_do_not_stop_the_run() -> None:
    """Whole groups of spot machines go at the same time."""

    class Storm(World):
        def events(self, timeout_s: float) -> Iterator[Event]:
            if 1010 < self.now < 1020:
                self.now += 20
                lost, self.processes = list(self.processes), {}
                yield from (Died(replica, CRASH, "its node died.") for replica in lost)
            else:
                yield from super().events(timeout_s)

    world = Storm(places=lambda now: 100, seconds=lambda work: 7.0)
    run(world, shards(1000))
    assert len(starts(world)) == 200


def test_replicas_that_cannot_start_stop_the_run_with_the_reason() -> None:
    with pytest.raises(ClusterError, match=r"could not start 3 times in a row: No module named `pipeline`\."):
        run(World(starts=lambda replica: -1.0), shards(4))


def test_a_few_replicas_that_cannot_start_do_no_harm_among_others_that_can() -> None:
    world = World(starts=lambda replica: -1.0 if replica % 3 else 1.0, places=lambda now: 2, deadly=frozenset({0, 8}))
    run(world, shards(20))


def test_waiting_for_a_first_place_is_said_every_half_minute(caplog: pytest.LogCaptureFixture) -> None:
    run(World(starts=lambda replica: 100.0), shards(1))
    assert [record.message for record in caplog.records].count(
        "still waiting for a replica to start: the cluster may have no free CPU or GPU"
    ) == 3


def hangs_on(row: int) -> Callable[[Work], float]:
    return lambda work: NEVER if row in work.rows else 1.0


def test_a_replica_that_hangs_is_ended_and_only_its_shard_is_charged() -> None:
    world = World(seconds=hangs_on(3))
    assert run(world, shards(3)) == {
        "data/part-00000.parquet": "3",
        "data/part-00001.parquet": "",
        "data/part-00002.parquet": "",
    }
    assert Counter(shard.lo for shard in world.tried if shard.key != "data/part-00000.parquet") == {8: 1, 16: 1}


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_a_hanging_row_is_said_to_be_one(at_a_time: int) -> None:
    ledger = Ledger(shards(2))
    world = World(seconds=hangs_on(3), at_a_time=at_a_time)
    poisoned: list[dict[int, RowError]] = []
    world.give = lambda replica, work: (poisoned.append(dict(work.poisoned)), World.give(world, replica, work))
    list(Dispatcher(ledger, world, 10.0, clock=world.clock).run())
    assert poisoned[-1] == {3: HUNG}


def test_before_any_shard_is_done_the_bound_follows_from_rows_and_steps() -> None:
    world = World(seconds=hangs_on(0))
    run(world, shards(1, rows=1000))
    ended = next(moment for moment, what, _ in world.log if what == "kill") - 1000 - 2
    assert ended == pytest.approx(SLACK_S + SLOWEST_STEP_S * 1000 * STEPS, abs=3)


def test_after_that_from_the_slowest_shard_so_far() -> None:
    world = World(seconds=lambda work: NEVER if 2500 in work.rows else 50.0 if 0 in work.rows else 5.0)
    run(world, shards(3, rows=1000))
    begun = 1000 + 2 + 50 + 5
    ended = next(moment for moment, what, _ in world.log if what == "kill") - begun
    assert ended == pytest.approx(SLACK_S + TOLERANCE * 50, abs=3)


def test_a_shard_that_is_only_slow_gets_twice_the_time_and_is_done() -> None:
    world = World(seconds=lambda work: 1.0 if 0 in work.rows else 1000.0)
    assert run(world, shards(2)) == {"data/part-00000.parquet": "", "data/part-00001.parquet": ""}
    assert [what for _, what, _ in world.log].count("kill") == 1


def test_a_replica_that_never_comes_to_its_work_is_ended() -> None:
    class Stuck(World):
        """The first replica starts and then loads its model for ever."""

        def give(self, replica: int, work: Work) -> None:
            super().give(replica, work)
            if replica == 0:
                self.processes[replica].due = NEVER

    world = Stuck()
    run(world, shards(2))
    assert next(moment for moment, what, _ in world.log if what == "kill") - 1002 == pytest.approx(LOADING_S, abs=3)
    assert Counter(shard.lo for shard in world.tried) == {0: 1, 8: 1}


def test_time_that_the_driver_spends_on_a_part_is_not_taken_for_a_replica_that_hangs() -> None:
    world = World(places=lambda now: 2, seconds=lambda work: 3.0)
    for _ in dispatcher(world, shards(20)).run():
        world.now += 100_000
    assert [what for _, what, _ in world.log] == ["start", "start"]


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_told_to_stop_it_finishes_what_is_under_way_and_begins_nothing(at_a_time: int) -> None:
    """Of two shards that a replica is at, the older one is."""
    world = World(places=lambda now: 2, seconds=lambda work: 3.0, at_a_time=at_a_time)
    work = dispatcher(world, shards(20), is_stopping=lambda: world.now >= 1003)
    parts = []
    with pytest.raises(StoppedError) as caught:
        parts += work.run()  # a list takes what was yielded before the error
    assert str(caught.value) == (
        "stopped by SIGTERM: 2 of 2 replicas at work were done within 10 s. Finished parts are kept. Run the "
        "same command again to resume."
    )
    assert world.processes == {}


def test_told_to_stop_it_does_not_wait_longer_than_the_grace_period() -> None:
    world = World(places=lambda now: 2, seconds=lambda work: 3.0 if 0 in work.rows else 50.0)
    work = dispatcher(world, shards(20), is_stopping=lambda: world.now >= 1003)
    with pytest.raises(StoppedError, match=r"1 of 2 replicas at work were done within 10 s"):
        list(work.run())
    assert world.now == pytest.approx(1013, abs=2)


def test_told_to_stop_while_the_last_shards_are_under_way_it_ends_as_if_nothing_had_been_said() -> None:
    world = World(places=lambda now: 2, seconds=lambda work: 3.0)
    assert len(list(dispatcher(world, shards(2), is_stopping=lambda: world.now >= 1003).run())) == 2


def test_every_death_is_logged_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    run(World(deadly=frozenset({0})), shards(2, rows=1))
    assert caplog.messages[0] == (
        "a replica died, last heard of at input rows 0 to 0 (data/part-00000.parquet): it crashed."
    )


def test_ten_thousand_shards_and_sixty_four_replicas_take_no_time() -> None:
    world = World(places=lambda now: 64, seconds=lambda work: 60.0)
    assert len(run(world, shards(10_000, rows=1))) == 10_000


@dataclass
class Ear:
    """A listener that remembers."""

    pulses: list[Pulse] = field(default_factory=list)
    deaths: list[RowError] = field(default_factory=list)

    def pulse(self, pulse: Pulse) -> None:
        self.pulses.append(pulse)

    def death(self, cause: RowError) -> None:
        self.deaths.append(cause)


def test_a_listener_hears_of_replicas_and_shards_in_each_turn_and_of_every_death() -> None:
    ear = Ear()
    list(dispatcher(World(), shards(3), listener=ear).run())
    assert ear.pulses[:3] == [
        Pulse(1001.0, 1, 0, 0, 3, 0),
        Pulse(1002.0, 1, 0, 0, 1, 2),  # it runs and was given work, but has not come to it: it may load a model
        Pulse(1002.0, 0, 1, 0, 1, 2),
    ]
    assert ear.pulses[-1] == Pulse(1005.0, 0, 0, 1, 0, 0)
    assert ear.deaths == []
    list(dispatcher(World(deadly=frozenset({3})), shards(2), listener=ear).run())
    assert ear.deaths == [CRASH] * 8  # the row met in wholes, halves and alone


def test_replicas_without_work_are_released_after_a_while_but_for_as_many_as_may_be_needed() -> None:
    """Six shards, one of them long: the others' replicas go after ten seconds, and the tail costs one replica."""
    ear = Ear()
    world = World(places=lambda now: 4, seconds=lambda work: 60.0 if work.shard.lo == 0 else 3.0)
    found = list(dispatcher(world, shards(6), listener=ear).run())
    assert len(found) == 6
    released = [moment - 1000 for moment, what, _ in world.log if what == "kill"]
    assert released == pytest.approx([IDLE_S + 2 + 3, IDLE_S + 2 + 6, IDLE_S + 2 + 6], abs=1.5)
    assert starts(world) == [0, 0, 0, 0]
    assert ear.pulses[-2].idle == 0
    assert ear.pulses[-2].working == 1


def test_a_replica_that_still_waits_for_a_place_is_given_up_when_others_have_all_the_work() -> None:
    world = World(
        places=lambda now: 3, starts=lambda replica: NEVER if replica == 1 else 2.0, seconds=lambda work: 30.0
    )
    assert len(run(world, shards(3))) == 3
    released = {replica: moment - 1000 for moment, what, replica in world.log if what == "kill"}
    assert released == pytest.approx({1: 2 + 30, 2: 2 + 30 + IDLE_S}, abs=1.5)


def test_a_row_that_kills_after_the_others_were_released_is_found_all_the_same() -> None:
    world = World(places=lambda now: 4, deadly=frozenset({3}), seconds=lambda work: 30.0 if 3 in work.rows else 1.0)
    assert run(world, shards(8))["data/part-00000.parquet"] == "3"
