"""What is known of the published parts of a run: little per part, and sums over all.

For every 64 parts it is written to a file in `_parts/`, so that a later run need not read the parts again, and people
can see what there is before the manifest. These files only save time: what is not in them is read from the parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from pipeline.metrics import Sums
from pipeline.shard import Part
from pipeline.storage import Folder

log = logging.getLogger("batchgen")

FOLDER = "_parts"
PARTS_PER_FILE = 64
# Of a part; the others are the running attempt's alone.
WRITTEN = [each.name for each in fields(Part) if each.name not in ("usage", "unpublished")]


class Listed(NamedTuple):
    """A part as the manifest lists it."""

    key: str
    rows: int
    ok: int
    generated_tokens: int
    sha256: str


@dataclass(slots=True)
class Tally:
    """The parts so far.

    Attributes:
        folder: of the run.
        fingerprint: of the run.
        parts: by key.
        errors: rows of all that are errors.
        truncated_prompts: of all.
        earlier_tokens: generated tokens of the parts that were there before this attempt.
    """

    folder: Folder
    fingerprint: str
    parts: dict[str, Listed] = field(default_factory=dict)
    errors: int = 0
    truncated_prompts: int = 0
    earlier_tokens: int = 0
    _sums: dict[str, Any] = field(default_factory=dict)
    _unwritten: list[Part] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Listed]:
        return iter(self.parts.values())

    def __contains__(self, key: object) -> bool:
        return key in self.parts

    @property
    def generated_tokens(self) -> int:
        """Tokens of all completions."""
        return sum(part.generated_tokens for part in self)

    @property
    def strategies(self) -> dict[str, Sums]:
        """Sums per strategy over all parts; the same in whatever order the parts came."""
        return dict(_rounded(self._sums))

    def add(self, part: Part) -> None:
        """One more part is published."""
        self._count(part)
        self._unwritten.append(part)
        if len(self._unwritten) >= PARTS_PER_FILE:
            self._write()

    def load(self, keys: Collection[str]) -> None:
        """Take in what files in `_parts/` say of these parts."""
        for name in self.folder.list_keys(FOLDER):
            for part in stored_parts(self.folder, name, self.fingerprint):
                if part.key in keys and part.key not in self:
                    self._count(part)

    def _count(self, part: Part) -> None:
        self.parts[part.key] = Listed(part.key, part.rows, part.ok, part.generated_tokens, part.sha256)
        self.errors += part.rows - part.ok
        self.truncated_prompts += part.truncated_prompts
        _add_exactly(self._sums, part.sums)

    def _write(self) -> None:
        parts = [{name: getattr(part, name) for name in WRITTEN} for part in self._unwritten]
        lines = [json.dumps(values) for values in ({"fingerprint": self.fingerprint}, *parts)]
        data = "".join(f"{line}\n" for line in lines).encode()
        self.folder.publish(f"{FOLDER}/{hashlib.sha256(data).hexdigest()[:16]}.jsonl", data)
        self._unwritten.clear()


def stored_parts(folder: Folder, name: str, fingerprint: str) -> list[Part]:
    """Parts that a file in `_parts/` knows; none if it is damaged or of another run."""
    try:
        head, *lines = (folder.read(name) or b"").splitlines()
        if json.loads(head)["fingerprint"] == fingerprint:
            return [Part(**json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be used (%s), so the parts that it lists are read", name, error)
    return []


class _Exact(int):
    """A sum of floats, in units of the smallest float there is."""

    UNITS = 1 << 1074


def _add_exactly(total: dict[str, Any], sums: Sums) -> None:
    """Add to `total`, in place; floats without rounding, so that their order does not matter."""
    for key, value in sums.items():
        if isinstance(value, dict):
            _add_exactly(total.setdefault(key, {}), value)
        elif isinstance(value, float):
            numerator, denominator = value.as_integer_ratio()
            total[key] = _Exact(total.get(key, 0) + numerator * (_Exact.UNITS // denominator))
        else:
            total[key] = total.get(key, 0) + value


def _rounded(total: Any) -> Any:
    """Floats again, and counts in the order of what they count."""
    if isinstance(total, _Exact):
        return total / _Exact.UNITS
    if not isinstance(total, dict):
        return total
    is_leaf = not any(isinstance(value, dict) for value in total.values())
    keys = sorted(total, key=lambda key: (int(key) if key.isdigit() else 0, key)) if is_leaf else total
    return {key: _rounded(total[key]) for key in keys}
