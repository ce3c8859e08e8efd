"""The driver's loop: start replicas, lease them work, and recover from whatever becomes of them. It knows no Ray.

A `Pool` runs replicas and says what happens to them. One that dies is replaced, later if that happened in its place
before and nothing was done; one that gives no sign of life for longer than its work can take is ended. One that is no
longer needed is released, so that others may have its GPU. When the driver is told to stop, what is under way is
finished and nothing else begun.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pipeline.errors import StoppedError
from pipeline.health import SLACK_S, Breaker, Watch, delay_s
from pipeline.ledger import Ledger, Work
from pipeline.records import RowError
from pipeline.shard import Part

log = logging.getLogger("batchgen.dispatch")

TICK_S = 1.0  # longest wait for an event
LOOK_S = 5.0  # between two looks at the size of the cluster
IDLE_S = 10.0  # without work to give, before a replica is released; loading a model again takes about as long
PATIENCE_S = 30.0  # without a running replica, before a word about it

HUNG = RowError(
    "hung", "generating for this row never ended: its replica gave no sign of life and was ended, each time"
)


class Started(NamedTuple):
    """The process of a replica runs."""

    replica: int


class Begun(NamedTuple):
    """A replica has come to work that it was given; a row takes it so many decode steps at most."""

    replica: int
    work: Work
    steps_per_row: int


class Finished(NamedTuple):
    """A replica has done work that it was given; a trial has no part."""

    replica: int
    work: Work
    part: Part | None


class Died(NamedTuple):
    """A replica is gone and not heard of again.

    Attributes:
        cause: what a row would be said to have died of.
        words: whoever noticed it, in their own.
        work: what it surely died of, if anybody knows.
    """

    replica: int
    cause: RowError
    words: str
    work: Work | None = None


Event = Started | Begun | Finished | Died


class Pool(Protocol):
    """What runs replicas, known by numbers."""

    def start(self) -> int:
        """Begin to start a replica."""

    def give(self, replica: int, work: Work) -> None:
        """Have a replica do work; what it was given before goes first."""

    def events(self, timeout_s: float) -> Iterable[Event]:
        """All that happened since the last call, those of one replica in order; waits for the first one."""

    def kill(self, replica: int) -> None:
        """End a replica, whatever it does; nothing more is heard of it."""

    def room(self) -> int:
        """Replicas to have in the cluster as it is now."""


class Pulse(NamedTuple):
    """How a run stands at a moment of the driver's clock.

    Attributes:
        starting, working, idle: replicas that wait for a place or load the model, that hold work, and that hold none.
        waiting, leased: shards and trials that nobody holds, and that somebody does.
    """

    now: float
    starting: int
    working: int
    idle: int
    waiting: int
    leased: int


class Listener(Protocol):
    """Told of what happens in the loop."""

    def pulse(self, pulse: Pulse) -> None:
        """Once in each turn."""

    def death(self, cause: RowError) -> None:
        """A replica died, or was ended because it hung."""


@dataclass(slots=True)
class Member:
    """A replica that was started.

    Attributes:
        failures: replicas that died in its place in a row without having done anything.
        seen: when it last gave a sign of life, or was given work after having had none.
        has_worked: whether it ever came to work.
    """

    failures: int
    seen: float
    is_running: bool = False
    has_worked: bool = False


class Grave(NamedTuple):
    """The place of a replica that died: when it may be used again, and after how many failures."""

    due: float
    failures: int


@dataclass(slots=True)
class Dispatcher:
    """One run over the shards of a ledger.

    Attributes:
        is_stopping: whether the driver was told to stop.
        grace_s: that the shards under way then have.
        listener: who is told.
        wanted: most replicas there ever was room for. One that waits for a place makes an autoscaler look for it.
        now: when the last events were taken in. Time that the driver then spends elsewhere is nobody's fault.
    """

    ledger: Ledger
    pool: Pool
    grace_s: float
    is_stopping: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    listener: Listener | None = None

    watch: Watch = field(default_factory=Watch)
    breaker: Breaker = field(default_factory=Breaker)
    members: dict[int, Member] = field(default_factory=dict)
    graves: list[Grave] = field(default_factory=list)
    wanted: int = 0
    now: float = 0.0
    looked: float = float("-inf")
    ran: float = 0.0

    def run(self) -> Iterator[Part]:
        """Yield parts as they are done.

        Raises:
            ClusterError: replicas die again and again.
            StoppedError: the driver was told to stop.
        """
        self.now = self.ran = self.clock()
        while not self.ledger.is_done:
            if self.is_stopping():
                yield from self._drain()
            self._start_missing()
            parts = self._collect()
            self._end_hung()
            self._lease()
            self._release_idle()
            self._tell()
            yield from parts

    def close(self) -> None:
        """End all replicas."""
        for replica in list(self.members):
            self._dismiss(replica)

    def _start_missing(self) -> None:
        """Have as many replicas as there is room and work for."""
        if self.now >= self.looked + LOOK_S:
            self.wanted, self.looked = max(self.wanted, self.pool.room()), self.now
        missing = min(self.wanted, self.ledger.num_open) - len(self.members)
        untouched = self.wanted - len(self.members) - len(self.graves)
        due = [grave for grave in self.graves if grave.due <= self.now]
        for place in [*due, *[None] * untouched][: max(0, missing)]:
            if place:
                self.graves.remove(place)
            self.members[self.pool.start()] = Member(place.failures if place else 0, self.now)

    def _lease(self) -> None:
        running = [replica for replica, member in self.members.items() if member.is_running]
        for replica, work in self.ledger.lease(running, len(self.members) - len(running)):
            if len(self.ledger.leases[replica]) == 1:
                self.members[replica].seen = self.now
            self.pool.give(replica, work)

    def _release_idle(self) -> None:
        """End replicas that wait for nothing, or for a place; as many stay as there is work for, should others die."""
        spare = len(self.members) - self.ledger.num_open
        if spare <= 0 or self.ledger.is_done:
            return
        idle = [replica for replica in self.members if not self.ledger.leases.get(replica)]
        due = [replica for replica in idle if self.now - self.members[replica].seen >= IDLE_S]
        due.sort(key=lambda replica: self.members[replica].is_running)  # those without a place first
        for replica in due[:spare]:
            self._dismiss(replica)
        if due:
            log.info("released %d replicas that have no work left; %d go on", len(due[:spare]), len(self.members))

    def _tell(self) -> None:
        if self.listener:
            loaded = [replica for replica, member in self.members.items() if member.has_worked]
            working = sum(bool(self.ledger.leases.get(replica)) for replica in loaded)
            starting, waiting = len(self.members) - len(loaded), self.ledger.num_waiting
            leased = self.ledger.num_open - waiting
            self.listener.pulse(Pulse(self.now, starting, working, len(loaded) - working, waiting, leased))

    def _collect(self) -> list[Part]:
        """Wait for events and take them in."""
        events = list(self.pool.events(TICK_S))
        self.now = self.clock()
        for event in events:
            self._take_in(event)
        self._say_waiting()
        return [event.part for event in events if isinstance(event, Finished) and event.part]

    def _take_in(self, event: Event) -> None:
        member = self.members[event.replica]
        match event:
            case Started():
                member.is_running = True
            case Begun(replica, work, steps_per_row):
                self.ledger.begun(replica, work)
                self.watch.steps_per_row = steps_per_row
                self.breaker.failed_starts, member.has_worked = 0, True
            case Finished(replica, work):
                self.ledger.finished(replica, work)
                self.watch.learn(work, self.now - member.seen)
                member.failures = 0 if work.num_rows else member.failures
            case Died():
                self._bury(event)
        member.seen = self.now

    def _bury(self, died: Died) -> None:
        """Forget a dead replica, charge its death, and have its place used again."""
        if self.listener:
            self.listener.death(died.cause)
        member, current = self.members.pop(died.replica), self.ledger.current(died.replica)
        self.ledger.died(died.replica, died.cause, died.work)
        self.graves.append(Grave(self.now + delay_s(member.failures + 1), member.failures + 1))
        if not member.has_worked:
            log.warning("a replica could not start: %s", died.words)
            self.breaker.count_failed_start(died.words, self.wanted)
            return
        place = current.place if current else "no shard"
        log.warning("a replica died, last heard of at %s: %s", place, died.words)
        self.breaker.count_death(died.cause, died.words, place, self.ledger.progress, self.wanted)

    def _end_hung(self) -> None:
        silent = [replica for replica, member in self.members.items() if self.now - member.seen > SLACK_S]
        for replica in [replica for replica in silent if self.ledger.leases.get(replica)]:
            work = self.ledger.current(replica)
            allowed_s = self.watch.allowed_s(work, self.ledger.deaths(work) if work else 0)
            if self.now - self.members[replica].seen > allowed_s:
                self.pool.kill(replica)
                words = f"it gave no sign of life for {allowed_s:.0f} s and was ended."
                self._bury(Died(replica, HUNG, words, work))

    def _drain(self) -> Iterator[Part]:
        """Let the work under way end within the grace period, begin nothing more, and stop.

        Raises:
            StoppedError: unless that was all there was to do.
        """
        deadline = self.now + self.grace_s
        under_way = {replica: self.ledger.current(replica) for replica in self.members}
        self._dismiss_idle(under_way)
        num_under_way = len(self.members)
        while self.members and self.now < deadline:
            parts = self._collect()
            self._dismiss_idle(under_way)
            self._tell()
            yield from parts
        if self.ledger.is_done:
            return
        raise StoppedError(
            f"stopped by SIGTERM: {num_under_way - len(self.members)} of {num_under_way} replicas at work were done "
            f"within {self.grace_s:g} s. Finished parts are kept.",
            "Run the same command again to resume.",
        )

    def _dismiss_idle(self, under_way: dict[int, Work | None]) -> None:
        """End the replicas that no longer do what was under way."""
        for replica in list(self.members):
            work = self.ledger.current(replica)
            if work is None or work is not under_way[replica]:
                self._dismiss(replica)

    def _dismiss(self, replica: int) -> None:
        del self.members[replica]
        self.pool.kill(replica)

    def _say_waiting(self) -> None:
        if any(member.is_running for member in self.members.values()):
            self.ran = self.now
        elif self.now >= self.ran + PATIENCE_S:
            log.warning("still waiting for a replica to start: the cluster may have no free CPU or GPU")
            self.ran = self.now
