"""How a run stands, from its output folder alone: no Ray, no driver is asked, and nothing is written.

Parts say what is done, their times how fast, and the lease whether a driver is there. What a folder cannot say is not
said: a driver on another machine is known only by its lease, which it renews every 15 s.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline import tally
from pipeline.lease import EXPIRY_S, Lease, latest, this_place
from pipeline.manifest import part_footer
from pipeline.pace import Pace, Stored, pace_of
from pipeline.recorded import Recorded, open_run
from pipeline.retries import all_retries
from pipeline.shard import Part

State = Literal["finished", "in progress", "quiet", "stopped", "failed"]


class Facts(NamedTuple):
    """The little that is kept of a part, for there may be a million."""

    rows: int
    tokens: int
    errors: tuple[tuple[str, int], ...]


class Again(NamedTuple):
    """A retry of error rows.

    Attributes:
        rows: planned, of which `num_done` are computed again and `num_ok` came out well.
    """

    name: str
    is_finished: bool
    rows: int
    num_done: int
    num_ok: int


class Holder(NamedTuple):
    """The driver that holds the folder, and seconds since it renewed its lease, by the clocks of here and the store."""

    driver: str
    lease_age_s: float


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        state: `finished`; `in progress` (a driver that is known to live, or renewed its lease within 60 s); `quiet` (it
            did not, and cannot be seen from here); `failed` (nobody works on it, and more rows are errors than the plan
            allows); `stopped` (nobody works on it).
        num_rows: of output, in the parts that are there.
        errors: error type -> rows, as in the parts of the run itself.
        retries: oldest first.
        max_error_rate: as the run was begun with.
        is_past_max_error_rate: whether more rows are errors already, and not mended by a retry, than may be of all.
        last_part_age_s: None before the first one.
        pace: of late; None if parts do not tell.
        timings: of the driver that finished the run, as in its manifest; None before.
    """

    folder: str
    state: State
    num_shards: int
    num_planned_shards: int
    num_rows: int
    num_planned_rows: int
    errors: Mapping[str, int]
    retries: Sequence[Again]
    max_error_rate: float
    is_past_max_error_rate: bool
    generated_tokens: int
    last_part_age_s: float | None
    pace: Pace | None
    holder: Holder | None
    timings: Mapping[str, Any] | None

    @property
    def num_errors(self) -> int:
        """Rows that are errors."""
        return sum(self.errors.values())

    @property
    def num_errors_left(self) -> int:
        """Those that no retry has mended."""
        return self.num_errors - sum(retry.num_ok for retry in self.retries)

    @property
    def error_rate(self) -> float | None:
        """Share of the rows so far that are errors; None before the first one."""
        return self.num_errors / self.num_rows if self.num_rows else None

    @property
    def eta_s(self) -> tuple[float, float] | None:
        """Shortest and longest time to go at the pace of late; None unless the run goes on at one."""
        if self.state != "in progress" or self.pace is None:
            return None
        return self.pace.eta_s(self.num_planned_rows - self.num_rows)

    def to_json(self) -> dict[str, Any]:
        """All of it, null for what is not known."""
        return {
            "folder": self.folder,
            "state": self.state,
            "shards": {"done": self.num_shards, "planned": self.num_planned_shards},
            "rows": {"done": self.num_rows, "planned": self.num_planned_rows},
            "errors": dict(self.errors),
            "error_rate": self.error_rate,
            "errors_left": self.num_errors_left,
            "retries": [retry._asdict() for retry in self.retries],
            "max_error_rate": self.max_error_rate,
            "is_past_max_error_rate": self.is_past_max_error_rate,
            "generated_tokens": self.generated_tokens,
            "rows_per_s": self.pace and self.pace.rows_per_s,
            "tokens_per_s": self.pace and self.pace.tokens_per_s,
            "eta_s": self.eta_s,
            "last_part_age_s": self.last_part_age_s,
            "usual_gap_s": self.pace and self.pace.usual_gap_s,
            "driver": self.holder and self.holder.driver,
            "lease_age_s": self.holder and self.holder.lease_age_s,
            "timings": self.timings,
        }


@dataclass
class Observer:
    """Looks at one run again and again, and reads of each part only once.

    Attributes:
        run: as planned.
        parts: what is known of parts, by key.
        files: of `_parts/` that were read.
    """

    run: Recorded
    parts: dict[str, Facts] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)

    def look(self, now: float | None = None) -> Status:
        """How the run stands; `now` is in seconds since 1970.

        Raises:
            StorageError: a part is damaged, or the store does not answer.
        """
        now = time.time() if now is None else now
        is_finished = self.run.is_finished  # first, for a part may come while others are looked at
        lease = latest(self.run.folder)
        stored_at = self._stored_at()
        self._learn(stored_at)
        parts = [self.parts[key] for key in stored_at]
        errors, retries = _errors(parts), self._retries() if is_finished else []
        num_left = sum(errors.values()) - sum(retry.num_ok for retry in retries)
        is_past = num_left > self.run.job.run.max_error_rate * self.run.num_output_rows
        holder = _holder(self.run, lease, now)
        return Status(
            folder=self.run.folder.name,
            state=_state(is_finished, lease, holder, is_past),
            num_shards=len(parts),
            num_planned_shards=len(self.run.shards),
            num_rows=sum(part.rows for part in parts),
            num_planned_rows=self.run.num_output_rows,
            errors=errors,
            retries=retries,
            max_error_rate=self.run.job.run.max_error_rate,
            is_past_max_error_rate=is_past,
            generated_tokens=sum(part.tokens for part in parts),
            last_part_age_s=max(0.0, now - max(stored_at.values())) if stored_at else None,
            pace=pace_of(Stored(at, self.parts[key].rows, self.parts[key].tokens) for key, at in stored_at.items()),
            holder=holder,
            timings=(self.run.manifest() or {}).get("timings") if is_finished else None,
        )

    def _retries(self) -> list[Again]:
        """What was computed again; a run that is not finished has no retries."""
        found = []
        for retry in all_retries(self.run):
            keys = [key for key in retry.folder.list_keys("data") if key in retry.parts]
            parts = [part_footer(retry.folder, key, self.run.fingerprint, retry.parts[key]) for key in keys]
            done, ok = sum(part.rows for part in parts), sum(part.ok for part in parts)
            found.append(Again(retry.name, retry.is_finished, sum(retry.parts.values()), done, ok))
        return found

    def _stored_at(self) -> dict[str, float]:
        """When each planned part that is there was stored."""
        found = self.run.folder.stored_at("data")
        return {shard.key: found[shard.key] for shard in self.run.shards if shard.key in found}

    def _learn(self, keys: Mapping[str, float]) -> None:
        """Take in what there is to know of these parts."""
        folder, fingerprint = self.run.folder, self.run.fingerprint
        for name in folder.list_keys(tally.FOLDER):
            if name not in self.files:
                self.files.add(name)
                self.parts |= {part.key: _facts(part) for part in tally.stored_parts(folder, name, fingerprint)}
        for shard in self.run.shards:
            if shard.key in keys and shard.key not in self.parts:
                num_rows = (shard.hi - shard.lo) * self.run.rows_per_prompt
                self.parts[shard.key] = _facts(part_footer(folder, shard.key, fingerprint, num_rows))


def observe(path: Path | str) -> Observer:
    """An observer of the run in a folder.

    Raises:
        InputError: the folder is not a run's.
        StorageError: its plan is damaged, or the store does not answer.
    """
    return Observer(open_run(path))


def _facts(part: Part) -> Facts:
    errors = sum((Counter(sums["errors"]) for sums in part.sums.values()), Counter[str]())
    return Facts(part.rows, part.generated_tokens, tuple(errors.items()))


def _errors(parts: Iterable[Facts]) -> dict[str, int]:
    """Rows by type of error, the most frequent first."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(dict(part.errors))
    return dict(counts.most_common())


def _holder(run: Recorded, lease: Lease | None, now: float) -> Holder | None:
    if lease is None:
        return None
    renewed = run.folder.stored_at("_tmp").get(lease.key, now)
    return Holder(str(lease.driver), max(0.0, now - renewed))


def _state(is_finished: bool, lease: Lease | None, holder: Holder | None, is_past: bool) -> State:
    if is_finished:
        return "finished"
    has_ended = lease.driver.has_ended(this_place()) if lease else True
    if holder is None or has_ended:
        return "failed" if is_past else "stopped"
    return "in progress" if has_ended is False or holder.lease_age_s <= EXPIRY_S else "quiet"
