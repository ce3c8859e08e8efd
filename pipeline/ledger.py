"""The driver's book of a run: which shards are done, who holds which, which rows kill. It knows neither Ray nor time.

A shard is leased to one replica at a time, at most two to a replica so that it never waits for the driver. What a dead
replica held goes back to the front, and only what it surely died of is charged with the death. Where it may have been
at either, nobody is charged, and each of the two is leased alone from then on.

After two deaths on a shard its halves are tried apart, then theirs, results thrown away, until every row that kills is
alone and has died three times. Then the whole shard is done once more with these rows as errors: its part depends on
which rows are guilty, and not on how they were found.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.errors import ClusterError
from pipeline.records import RowError
from pipeline.shard import NO_ROWS, Poisoned, Shard

LEASES_PER_REPLICA = 2
DEATHS_TO_SUSPECT = 2  # on a whole shard, before its halves are tried
DEATHS_TO_CONVICT = 3  # on a row alone, for replicas die of other things too
MOST_ROUNDS = 4  # of trials in which every row survived, and then the whole shard did not


class Work(NamedTuple):
    """What a replica is asked for: to do a shard, or to try some of its rows and forget what came of them.

    Attributes:
        shard: a whole one; of a trial, the key of the whole and the rows to try.
        poisoned: rows known to kill.
        is_trial: whether to publish nothing.
    """

    shard: Shard
    poisoned: Poisoned = NO_ROWS
    is_trial: bool = False

    @property
    def rows(self) -> list[int]:
        """The rows to generate for."""
        return [row for row in range(self.shard.lo, self.shard.hi) if row not in self.poisoned]

    @property
    def num_rows(self) -> int:
        """How many there are of them."""
        lo, hi = self.shard.lo, self.shard.hi
        return hi - lo - sum(lo <= row < hi for row in self.poisoned)

    @property
    def place(self) -> str:
        """Where in the input this is, for people."""
        return f"input rows {self.shard.lo} to {self.shard.hi - 1} ({self.shard.key})"


@dataclass(slots=True)
class Lease:
    """Work that a replica holds, and whether it is known to have come to it."""

    work: Work
    is_begun: bool = False


@dataclass(slots=True)
class Suspect:
    """A shard on which a replica died, or may have.

    Attributes:
        shard: the whole.
        since: progress of the run at that time.
        deaths: by shard or trial, in this round.
        guilty: rows that died alone often enough, and of what.
        num_trials: not decided yet.
        fruitless: rounds in which nobody was guilty.
    """

    shard: Shard
    since: int
    deaths: Counter[Shard] = field(default_factory=Counter)
    guilty: dict[int, RowError] = field(default_factory=dict)
    num_trials: int = 0
    fruitless: int = 0


class Ledger:
    """All that the driver knows and that is not in the output folder.

    Attributes:
        num_left: shards not done.
        leases: what each replica holds, oldest first.
        progress: grows when work with rows is done, and when a row is found guilty while other work was done: then it
            is the rows, and not the replicas, that are bad.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.num_left = self._num_fresh = len(shards)
        self.leases: dict[int, deque[Lease]] = {}
        self.progress = 0
        self._fresh = iter(shards)
        self._returned: deque[Work] = deque()  # goes first
        self._trials: deque[Work] = deque()  # go last, so that one shard cannot hold up the others
        self._suspects: dict[str, Suspect] = {}

    @property
    def is_done(self) -> bool:
        """Whether every shard is done."""
        return self.num_left == 0

    @property
    def num_waiting(self) -> int:
        """Shards and trials that nobody holds."""
        return self._num_fresh + len(self._returned) + len(self._trials)

    @property
    def num_open(self) -> int:
        """Shards and trials that are not decided."""
        return self.num_waiting + sum(map(len, self.leases.values()))

    def lease(self, replicas: Collection[int], num_starting: int) -> list[tuple[int, Work]]:
        """Lease work to the running replicas: a first piece to each, then a second, as long as enough is left for the
        others and for those that still start: at the end nothing waits behind one replica while another is idle."""
        given = []
        for limit in range(1, LEASES_PER_REPLICA + 1):
            spared = num_starting + len(replicas) - 1 if limit > 1 else 0
            for replica in replicas:
                held = self.leases.setdefault(replica, deque())
                if len(held) < limit and self.num_waiting > spared and not self._clash(held):
                    held.append(Lease(self._queue().popleft()))
                    given.append((replica, held[-1].work))
        return given

    def _clash(self, held: deque[Lease]) -> bool:
        """Whether work is held already, and that or the next must be alone."""
        return bool(held) and any(work.shard.key in self._suspects for work in (held[-1].work, self._queue()[0]))

    def begun(self, replica: int, work: Work) -> None:
        """The replica has come to this work, and may have done it since."""
        for lease in self.leases[replica]:
            lease.is_begun |= lease.work is work

    def current(self, replica: int) -> Work | None:
        """The oldest work that a replica is at, as far as was heard: what others wait for."""
        return next((lease.work for lease in self.leases.get(replica, ()) if lease.is_begun), None)

    def finished(self, replica: int, work: Work) -> None:
        """The replica has done this work."""
        self.leases[replica] = deque(lease for lease in self.leases[replica] if lease.work is not work)
        self.progress += work.num_rows > 0
        if work.is_trial:
            self._settle(self._suspects[work.shard.key], work)
        else:
            self._suspects.pop(work.shard.key, None)
            self.num_left -= 1

    def died(self, replica: int, cause: RowError, work: Work | None = None) -> Work | None:
        """A replica is gone; what it held goes back to the front.

        Args:
            replica: which.
            cause: what a row would be said to have died of.
            work: what it surely died of, if somebody knows.

        Returns:
            The work that is charged with the death.

        Raises:
            ClusterError: a shard kills replicas though none of its rows does.
        """
        current, held = self.current(replica), [lease.work for lease in self.leases.pop(replica, ())]
        charged = work or (current if len(held) == 1 else None)
        self._returned.extendleft(each for each in reversed(held) if each is not charged)
        for each in held if current or work else ():
            self._suspects.setdefault(each.shard.key, Suspect(each.shard, self.progress))
        if charged:
            self._judge(self._suspects[charged.shard.key], charged, cause)
        return charged

    def deaths(self, work: Work) -> int:
        """How often replicas died of exactly this work in the current round."""
        suspect = self._suspects.get(work.shard.key)
        return suspect.deaths[work.shard] if suspect else 0

    def _queue(self) -> deque[Work]:
        """Where the next work is at the front."""
        if not self._returned and self._num_fresh:
            self._num_fresh -= 1
            self._returned.append(Work(next(self._fresh)))
        return self._returned or self._trials

    def _judge(self, suspect: Suspect, work: Work, cause: RowError) -> None:
        """Decide what follows from one more death: once more, halves, or a verdict."""
        suspect.deaths[work.shard] += 1
        num_rows, deaths = work.num_rows, suspect.deaths[work.shard]
        if num_rows > 1 and (work.is_trial or deaths >= DEATHS_TO_SUSPECT):
            self._split(suspect, work)
        elif num_rows == 1 and deaths >= DEATHS_TO_CONVICT:
            suspect.guilty[work.rows[0]] = cause
            self.progress += self.progress > suspect.since
            self._settle(suspect, work)
        elif not num_rows and deaths >= DEATHS_TO_CONVICT:
            raise _unexplained(suspect, cause.message)
        elif work.is_trial:
            self._trials.appendleft(work)
        else:
            self._returned.appendleft(work)

    def _split(self, suspect: Suspect, work: Work) -> None:
        """Put both halves of the rows on trial, before others: the sooner one survives, the sooner it is known that
        replicas are well."""
        shard, rows = work.shard, work.rows
        middle = rows[len(rows) // 2]
        for half in (shard._replace(lo=middle), shard._replace(hi=middle)):
            self._trials.appendleft(Work(half, work.poisoned, is_trial=True))
            suspect.num_trials += 1
        suspect.num_trials -= work.is_trial

    def _settle(self, suspect: Suspect, work: Work) -> None:
        """A trial is decided; after the last one the whole shard is done, without the rows that are guilty."""
        suspect.num_trials -= work.is_trial
        if suspect.num_trials:
            return
        suspect.fruitless += suspect.guilty == work.poisoned
        if suspect.fruitless >= MOST_ROUNDS:
            raise _unexplained(suspect, "it died only with all of them together.")
        suspect.deaths.clear()
        self._returned.appendleft(Work(suspect.shard, dict(suspect.guilty)))


def _unexplained(suspect: Suspect, last: str) -> ClusterError:
    return ClusterError(
        f"replicas die again and again on {Work(suspect.shard).place}, but no row of it is to blame: {last} Finished "
        "parts are kept.",
        "Give each replica more memory, or lower run.shard_rows and use a new output folder.",
    )
