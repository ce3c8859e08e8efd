"""Rules about replicas that fail: how long work may take, when a place is used again, and when to give up.

Only numbers and counts; who acts on them is `dispatch`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.errors import ClusterError
from pipeline.ledger import Work
from pipeline.records import RowError

LOADING_S = 1800.0  # for a replica to come to its first work, a download of the model included
SLACK_S = 600.0  # for any work
SLOWEST_STEP_S = 0.05  # of one row, as long as no shard is done
TOLERANCE = 20.0  # times the slowest pace of a shard so far

LONGEST_DELAY_S = 30.0
MOST_DEATHS = 20  # in a row, nothing done in between
MOST_FAILED_STARTS = 3  # in a row, of replicas that never came to work
ROUNDS = 3  # as often may each replica that is wanted die, for nodes are lost with many at a time


@dataclass(slots=True)
class Watch:
    """How long a replica may give no sign of life.

    Attributes:
        steps_per_row: most decode steps of an input row.
        pace_s: of the slowest shard so far, in seconds per row and step; None before the first.
    """

    steps_per_row: int = 1
    pace_s: float | None = None

    def learn(self, work: Work, seconds: float) -> None:
        """Work was done in so many seconds. Trials are too short to tell."""
        if not work.is_trial:
            self.pace_s = max(self.pace_s or 0.0, seconds / self._size(work))

    def allowed_s(self, work: Work | None, deaths: int) -> float:
        """Seconds for work on which replicas died before, twice as many each time; for None, to come to any.

        Generous on purpose: a replica that is ended too early costs all it did, one that is ended late costs waiting.
        """
        if work is None:
            return LOADING_S
        per_step = SLOWEST_STEP_S if self.pace_s is None else TOLERANCE * self.pace_s
        return (SLACK_S + per_step * self._size(work)) * float(1 << deaths)

    def _size(self, work: Work) -> int:
        return max(1, work.num_rows * self.steps_per_row)


def delay_s(failures: int) -> float:
    """Seconds before a place whose last `failures` replicas did nothing is used again: 0, 1, 2, 4, ... 30."""
    return 0.0 if failures < 2 else min(LONGEST_DELAY_S, 2.0 ** (failures - 2))


@dataclass(slots=True)
class Breaker:
    """Counts deaths in a row, and stops the run when there is no more hope.

    Attributes:
        failed_starts: deaths since a replica last came to work.
        causes: of the deaths since something was last done.
        progress: of the ledger at that time.
    """

    failed_starts: int = 0
    causes: list[str] = field(default_factory=list)
    progress: int = 0

    def count_failed_start(self, words: str, wanted: int) -> None:
        """A replica died before it came to any work.

        Raises:
            ClusterError: this happens all the time.
        """
        self.failed_starts += 1
        if self.failed_starts >= max(MOST_FAILED_STARTS, ROUNDS * wanted):
            raise ClusterError(
                f"replicas could not start {self.failed_starts} times in a row: {words} Finished parts are kept.",
                "Give every node the same environment, then run the same command again.",
            )

    def count_death(self, cause: RowError, words: str, place: str, progress: int, wanted: int) -> None:
        """A replica died after it had come to work.

        Args:
            cause: what a row would be said to have died of.
            words: Ray's own on it.
            place: where that was.
            progress: of the ledger.
            wanted: replicas there should be.

        Raises:
            ClusterError: this happens all the time, and nothing is done in between.
        """
        if progress > self.progress:
            self.progress, self.causes = progress, []
        self.causes.append(cause.type)
        if len(self.causes) >= max(MOST_DEATHS, ROUNDS * wanted):
            counts = ", ".join(f"{count} {type_}" for type_, count in Counter(self.causes).most_common())
            raise ClusterError(
                f"replicas died {len(self.causes)} times in a row ({counts}) and nothing was done in between, last on "
                f"{place}: {words} Finished parts are kept.",
                "Look at the memory and the logs of the nodes, then run the same command again.",
            )
