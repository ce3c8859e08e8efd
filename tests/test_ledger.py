"""The ledger alone: who gets what, who is charged, which rows are found guilty; then any interleaving of all that."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.errors import ClusterError
from pipeline.ledger import DEATHS_TO_CONVICT, Ledger, Work
from pipeline.records import RowError
from pipeline.shard import Shard

CRASH = RowError("killed_replica", "it crashed")


def shards(count: int, rows: int = 8) -> list[Shard]:
    return [Shard(f"data/part-{index:05d}.parquet", index * rows, (index + 1) * rows) for index in range(count)]


def ranges(given: Sequence[tuple[int, Work]]) -> list[tuple[int, int, int]]:
    return [(replica, work.shard.lo, work.shard.hi) for replica, work in given]


def drive(ledger: Ledger, kills: Callable[[Work], object], num_replicas: int = 1) -> tuple[dict[str, Work], list[Work]]:
    """Do everything, with replicas that die of some work; a dead one is replaced at once.

    Returns:
        How each shard was done in the end, and the work charged with each death.
    """
    done, charged = {}, []
    while not ledger.is_done:
        ledger.lease(range(num_replicas), 0)
        for replica in range(num_replicas):
            if ledger.leases[replica]:
                work = ledger.leases[replica][0].work
                ledger.begun(replica, work)
                if kills(work):
                    charged += [dead] if (dead := ledger.died(replica, CRASH)) else []
                    continue
                ledger.finished(replica, work)
                assert work.is_trial or done.setdefault(work.shard.key, work) is work, "done twice"
    return done, charged


def rows_of(guilty: set[int]) -> Callable[[Work], object]:
    """Work that generates for one of these rows kills."""
    return lambda work: guilty & set(work.rows)


def held(ledger: Ledger, replica: int) -> list[Work]:
    return [lease.work for lease in ledger.leases[replica]]


def finish(ledger: Ledger, replica: int) -> Shard:
    """A replica comes to the oldest work that it holds and does it."""
    work = held(ledger, replica)[0]
    ledger.begun(replica, work)
    ledger.finished(replica, work)
    return work.shard


def test_every_replica_gets_one_shard_before_any_gets_a_second_and_none_gets_a_third() -> None:
    ledger = Ledger(shards(9, rows=1))
    assert ranges(ledger.lease([7, 8], 0)) == [(7, 0, 1), (8, 1, 2), (7, 2, 3), (8, 3, 4)]
    assert ledger.lease([7, 8], 0) == []
    finish(ledger, 8)
    assert ranges(ledger.lease([7, 8], 0)) == [(8, 4, 5)]


def test_the_last_shards_wait_for_whoever_is_free_first_and_behind_nobody() -> None:
    ledger = Ledger(shards(6, rows=1))
    assert ranges(ledger.lease([0, 1, 2, 3], 0)) == [(0, 0, 1), (1, 1, 2), (2, 2, 3), (3, 3, 4)]
    finish(ledger, 2)
    assert ranges(ledger.lease([0, 1, 2, 3], 0)) == [(2, 4, 5)]


def test_second_shards_are_left_for_replicas_that_still_start() -> None:
    ledger = Ledger(shards(3, rows=1))
    assert ranges(ledger.lease([0], 2)) == [(0, 0, 1)]
    assert ranges(ledger.lease([0], 1)) == [(0, 1, 2)]


def test_a_shard_may_be_done_before_an_older_one_and_before_it_is_heard_to_have_been_begun() -> None:
    ledger = Ledger(shards(3))
    ledger.lease([0], 0)
    older, newer = held(ledger, 0)
    ledger.begun(0, older)
    ledger.finished(0, newer)
    ledger.begun(0, newer)
    assert ledger.current(0) is older
    assert ranges(ledger.lease([0], 0)) == [(0, 16, 24)]


def test_what_a_dead_replica_held_goes_to_the_front_in_order_and_only_what_it_was_at_is_charged() -> None:
    ledger = Ledger(shards(3, rows=2))
    ledger.lease([0, 1], 0)  # 0 holds shard 0, 1 holds shard 1; shard 2 waits for whoever is free first
    ledger.begun(1, held(ledger, 1)[0])
    assert ledger.died(1, CRASH) == Work(shards(3, rows=2)[1])
    assert ledger.died(0, CRASH) is None
    assert [ledger.deaths(Work(shard)) for shard in shards(3, rows=2)] == [0, 1, 0]
    assert ranges(ledger.lease([2, 3, 4], 0)) == [(2, 0, 2), (3, 2, 4), (4, 4, 6)]


@pytest.mark.parametrize("num_begun", [1, 2])
def test_a_death_at_one_of_two_shards_charges_nobody_and_both_are_then_leased_alone(num_begun: int) -> None:
    """Of what was not heard to have begun, it may have been at it all the same."""
    ledger = Ledger(shards(4))
    ledger.lease([0], 0)
    for work in held(ledger, 0)[:num_begun]:
        ledger.begun(0, work)
    assert ledger.died(0, CRASH) is None
    for shard in shards(2):
        assert ranges(ledger.lease([1], 0)) == [(1, shard.lo, shard.hi)]
        assert finish(ledger, 1) == shard
    assert ranges(ledger.lease([1], 0)) == [(1, 16, 24), (1, 24, 32)]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("num_begun", [0, 1, 2])
def test_what_a_replica_surely_died_of_is_charged_and_the_other_is_leased_alone(index: int, num_begun: int) -> None:
    ledger = Ledger(shards(4))
    ledger.lease([0], 0)
    works = held(ledger, 0)
    for work in works[:num_begun]:
        ledger.begun(0, work)
    assert ledger.died(0, CRASH, works[index]) is works[index]
    assert [ledger.deaths(work) for work in works] == [int(work is works[index]) for work in works]
    assert len(ledger.lease([1], 0)) == 1


def test_a_replica_that_dies_before_it_came_to_any_work_charges_nobody() -> None:
    ledger = Ledger(shards(4))
    ledger.lease([0], 0)
    assert ledger.died(0, CRASH) is None
    assert ranges(ledger.lease([0], 0)) == [(0, 0, 8), (0, 8, 16)]


@pytest.mark.parametrize("guilty", [{0}, {7}, {3}, {2, 3}, {0, 7}, {1, 4, 6}, set(range(8)), {0, 9, 17}])
@pytest.mark.parametrize("num_replicas", [1, 3])
def test_rows_that_kill_are_found_and_all_others_are_kept(guilty: set[int], num_replicas: int) -> None:
    done, _ = drive(Ledger(shards(3)), rows_of(guilty), num_replicas)
    assert {key: set(work.poisoned) for key, work in done.items()} == {
        shard.key: guilty & set(range(shard.lo, shard.hi)) for shard in shards(3)
    }
    assert all(cause == CRASH for work in done.values() for cause in work.poisoned.values())


def test_one_row_among_a_thousand_takes_two_deaths_of_the_shard_one_of_each_half_and_three_alone() -> None:
    _, charged = drive(Ledger(shards(1, rows=1024)), rows_of({700}))
    sizes = Counter(len(work.rows) for work in charged)
    assert sizes == {1024: 2, 512: 1, 256: 1, 128: 1, 64: 1, 32: 1, 16: 1, 8: 1, 4: 1, 2: 1, 1: 3}


def test_the_search_waits_for_the_other_shards() -> None:
    done, _ = drive(Ledger(shards(5)), rows_of({0}))
    assert [work.shard.lo for work in done.values()] == [8, 16, 24, 32, 0]


def test_a_shard_that_only_dies_as_a_whole_stops_the_run_and_is_named() -> None:
    message = r"on input rows 0 to 7 \(data/part-00000\.parquet\), but no row of it is to blame: it died only with all"
    with pytest.raises(ClusterError, match=message):
        drive(Ledger(shards(1)), lambda work: not work.is_trial)


def test_a_shard_whose_rows_are_all_guilty_and_dies_without_them_stops_the_run() -> None:
    with pytest.raises(ClusterError, match="no row of it is to blame: it crashed"):
        drive(Ledger(shards(1, rows=1)), lambda work: True)


@pytest.mark.parametrize(
    ("guilty", "progress"),
    [
        (set(), 1),
        ({0, 1}, 0),  # nobody survived; a shard without a row left to generate for proves nothing
        ({0}, 2),  # the other row on trial, the shard; the verdict came before either
        ({1}, 3),  # the other row on trial, the verdict, the shard
    ],
)
def test_a_verdict_is_progress_only_if_other_work_survived_since_the_first_death(
    guilty: set[int], progress: int
) -> None:
    ledger = Ledger(shards(1, rows=2))
    drive(ledger, rows_of(guilty))
    assert ledger.progress == progress


@dataclass
class Replica:
    """A process as it is: what it was given, what it is at, and what it said that the driver has not heard."""

    given: deque[Work] = field(default_factory=deque)
    at: list[Work] = field(default_factory=list)
    unheard: deque[tuple[str, Work | None]] = field(default_factory=deque)
    come_to: list[Work] = field(default_factory=list)
    is_dead: bool = False


class Interleavings(RuleBasedStateMachine):
    """Replicas run on their own, the driver hears of it late, and what a dying replica said last may be lost."""

    @initialize(num_rows=st.sampled_from([1, 2, 4]), guilty=st.sets(st.integers(0, 11), max_size=3))
    def begin(self, num_rows: int, guilty: set[int]) -> None:
        self.guilty, self.shards = guilty, shards(6, rows=num_rows)
        self.published: dict[str, frozenset[int]] = {}
        self.deaths_alone: Counter[int] = Counter()
        self.numbers = count()
        self.start_driver()

    def start_driver(self) -> None:
        """A driver knows nothing but which parts there are."""
        self.ledger = Ledger([shard for shard in self.shards if shard.key not in self.published])
        self.replicas: dict[int, Replica] = {}
        self.zombies: list[Replica] = []
        self.counted: list[str] = []
        self.lease()

    def lease(self, num_starting: int = 0) -> None:
        """Two replicas as far as the driver knows, and it leases whenever it can; some may be dead already."""
        while len(self.replicas) < 2:
            self.replicas[next(self.numbers)] = Replica()
        for number, work in self.ledger.lease(self.replicas, num_starting):
            self.replicas[number].given.append(work)

    @rule(data=st.data(), steps=st.integers(1, 4), num_lost=st.integers(0, 2))
    def work(self, data: st.DataObject, steps: int, num_lost: int) -> None:
        """A replica does its next steps, whether the driver looks or not."""
        replica = data.draw(st.sampled_from([*self.replicas.values(), *self.zombies]))
        for _ in range(steps):
            self.advance(replica, num_lost, data.draw(st.integers(0, 2)))

    def advance(self, replica: Replica, num_lost: int, which: int = 0) -> None:
        """It comes to the next work, if there is any and `which` is beyond what it is at, else it ends that."""
        if replica.is_dead:
            return
        if replica.given and which >= len(replica.at):
            replica.at.append(replica.given.popleft())
            replica.come_to.append(replica.at[-1])
            replica.unheard.append(("begun", replica.at[-1]))
            return
        work = replica.at[min(which, len(replica.at) - 1)] if replica.at else None
        if work is None:
            return
        if self.guilty & set(work.rows):
            self.die(replica, num_lost)
            return
        if not work.is_trial:  # whoever publishes second changes nothing
            self.published.setdefault(work.shard.key, frozenset(work.poisoned))
        replica.at.remove(work)
        replica.unheard.append(("finished", work))

    def die(self, replica: Replica, num_lost: int) -> None:
        for _ in range(min(num_lost, len(replica.unheard))):
            replica.unheard.pop()
        replica.is_dead = True
        replica.unheard.append(("died", None))

    @rule(data=st.data(), steps=st.integers(0, 4), num_lost=st.integers(0, 3))
    def kill(self, data: st.DataObject, steps: int, num_lost: int) -> None:
        """From outside, at any moment."""
        replica = data.draw(st.sampled_from(list(self.replicas.values())))
        for _ in range(steps):
            self.advance(replica, num_lost, data.draw(st.integers(0, 2)))
        if not replica.is_dead:
            self.die(replica, num_lost)

    @precondition(lambda self: any(replica.unheard for replica in self.replicas.values()))
    @rule(data=st.data(), num_starting=st.integers(0, 2))
    def hear(self, data: st.DataObject, num_starting: int) -> None:
        number = data.draw(st.sampled_from([n for n, replica in self.replicas.items() if replica.unheard]))
        for _ in range(data.draw(st.integers(1, len(self.replicas[number].unheard)))):
            self.take_in(number)
        self.lease(num_starting)

    def take_in(self, number: int) -> None:
        match self.replicas[number].unheard.popleft():
            case "begun", work:
                self.ledger.begun(number, work)
            case "finished", work:
                self.ledger.finished(number, work)
                if not work.is_trial:
                    assert work.shard.key not in self.counted, "one part counted twice"
                    assert work.shard.key in self.published
                    self.counted.append(work.shard.key)
            case "died", _:
                self.bury(number)

    @precondition(lambda self: any(replica.at and not replica.unheard for replica in self.replicas.values()))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """The driver takes a slow replica for hung; it lives on, and may publish."""
        slow = [n for n, r in self.replicas.items() if r.at and not r.unheard and not r.is_dead]
        if slow:
            number = data.draw(st.sampled_from(slow))
            self.zombies.append(self.replicas[number])
            self.bury(number, self.ledger.current(number))
            self.lease()

    def bury(self, number: int, surely: Work | None = None) -> None:
        replica = self.replicas.pop(number)
        try:
            charged = self.ledger.died(number, CRASH, surely)
        except ClusterError:
            self.start_driver()
            return
        assert surely is None or charged is surely
        if charged is not None:
            assert any(charged is work for work in replica.come_to), "a queued shard was charged"
            assert any(charged is work for work in replica.at or replica.come_to[-1:]), "charged for what another did"
            assert surely or len(replica.at) < 2, "charged though it was at two"
            if len(charged.rows) == 1:
                self.deaths_alone[charged.rows[0]] += 1

    @rule(one_in_ten=st.integers(0, 9))
    def restart(self, one_in_ten: int) -> None:
        """The driver dies and is started again; its replicas go with it."""
        if one_in_ten == 0:
            self.start_driver()

    @invariant()
    def one_holder_of_everything(self) -> None:
        if not hasattr(self, "ledger"):
            return
        held = [lease.work.shard for leases in self.ledger.leases.values() for lease in leases]
        rows = [row for shard in held for row in range(shard.lo, shard.hi)]
        assert len(rows) == len(set(rows)), "two replicas hold one row"
        assert all(len(leases) <= 2 for leases in self.ledger.leases.values())

    @invariant()
    def no_verdict_without_three_deaths_alone(self) -> None:
        for poisoned in getattr(self, "published", {}).values():
            assert all(self.deaths_alone[row] >= DEATHS_TO_CONVICT for row in poisoned)

    def teardown(self) -> None:
        """Left in peace, the run ends: every shard once, every row that kills found."""
        if not hasattr(self, "ledger"):
            return
        for _ in range(3000):
            if self.ledger.is_done:
                break
            self.lease()
            for number, replica in list(self.replicas.items()):
                self.advance(replica, 0)
                while number in self.replicas and replica.unheard:
                    self.take_in(number)
        assert self.ledger.is_done, "the run does not end"
        assert set(self.published) == {shard.key for shard in self.shards}
        for shard in self.shards:
            assert self.guilty & set(range(shard.lo, shard.hi)) <= self.published[shard.key]
        self.no_verdict_without_three_deaths_alone()


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=100, stateful_step_count=60)
