"""What a verification found: findings, one outcome per check, and whether the folder is proven."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Finding(NamedTuple):
    """Something wrong, and where. `row` is the position in the part."""

    check: str
    message: str
    part: str | None = None
    row: int | None = None
    row_id: str | None = None
    strategy: str | None = None
    sample_index: int | None = None

    @property
    def place(self) -> str:
        """Where, in words."""
        if self.row is None:
            return self.part or ""
        return f"{self.part} row {self.row} (row_id {self.row_id}, {self.strategy}, sample {self.sample_index})"


class Outcome(NamedTuple):
    """What came of a check.

    Attributes:
        result: `ok`, `wrong` or `not checked`.
        note: why it was not checked, or what else there is to say.
        num_wrong: findings.
        first: of them.
    """

    check: str
    statement: str
    result: str
    note: str | None = None
    num_wrong: int = 0
    first: Finding | None = None


@dataclass(frozen=True)
class Report:
    """What `verify` found in a folder. `state` is `finished`, `running` or `damaged`."""

    folder: str
    state: str
    outcomes: tuple[Outcome, ...]
    num_parts: int = 0
    num_planned_parts: int = 0
    num_rows: int = 0

    @property
    def is_proven(self) -> bool:
        """Whether nothing is wrong."""
        return all(outcome.result != "wrong" for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        names = ("state", "is_proven", "num_parts", "num_planned_parts", "num_rows")
        checks = [
            {**outcome._asdict(), "first": outcome.first._asdict() if outcome.first else None}
            for outcome in self.outcomes
        ]
        return {
            "schema": 1,
            "folder": self.folder,
            **{name: getattr(self, name) for name in names},
            "checks": checks,
        }


@dataclass
class Tally:
    """Findings counted per check; only the first of each is kept."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, Finding] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        """Count them."""
        for finding in findings:
            self.counts[finding.check] += 1
            self.first.setdefault(finding.check, finding)

    def outcome(self, check: str, statement: str, unchecked: str | None, note: str | None) -> Outcome:
        """What came of a check; `unchecked` says why it was not made."""
        if self.counts[check]:
            return Outcome(check, statement, "wrong", note, self.counts[check], self.first[check])
        return Outcome(check, statement, "not checked" if unchecked else "ok", unchecked or note)
