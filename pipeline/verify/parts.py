"""One folder of parts, the run's own or a retry's, held against its plan and manifest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.manifest import MANIFEST
from pipeline.metrics import Sums, add, part_sums
from pipeline.proofs import Problem, check_rows, check_schema
from pipeline.proofs.columns import Array
from pipeline.recorded import Recorded, Vocabulary
from pipeline.rescore import Rescorer
from pipeline.storage import Folder
from pipeline.verify.report import Finding

UNSOUND = ("status", "lists", "tokens")  # after these a row cannot be computed with


@dataclass(frozen=True)
class Target:
    """A folder of parts and what it must hold.

    Attributes:
        name: as `retries/0001`; empty for the run's own.
        planned: key -> codes of its rows (see `proofs.row_codes`).
        metadata: that every part must carry.
        manifest: as stored, None if there is none.
        vocabulary: as stored, None if there is none to use.
        found: keys in `data/`, listed after `is_finished` was asked: what a finished folder lacks then, it lacks.
    """

    name: str
    folder: Folder
    planned: Mapping[str, Callable[[], Array]]
    metadata: Mapping[str, str]
    is_finished: bool
    manifest: dict[str, Any] | None
    vocabulary: Vocabulary | None
    found: frozenset[str]

    def part(self, key: str) -> str:
        """A key from the root of the run."""
        return f"{self.name}/{key}".lstrip("/")


@dataclass
class Seen:
    """What the parts read so far add up to.

    Attributes:
        lines: key -> what the manifest must say of a part; of a part that cannot be read, its digest alone.
        sums: of all of them that could be summed.
        num_summed: how many those are.
        kept: types of the kept columns, from the first part.
    """

    kept: pa.Schema | None = None
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    num_summed: int = 0
    num_truncated: int = 0

    def total(self, key: str) -> int:
        """Sum of a number over the parts."""
        return sum(line.get(key, 0) for line in self.lines.values())


class PartFile(NamedTuple):
    """What a part's file holds."""

    table: pa.Table
    facts: dict[str, str]
    sums: dict[str, Sums]
    num_truncated: int


def check_target(target: Target, run: Recorded, seen: Seen, rescorer: Rescorer | None = None) -> Iterator[Finding]:
    """Everything wrong with a folder of parts; `seen` is filled on the way."""
    for key in sorted(target.found - target.planned.keys()):
        yield Finding("names", "it is no planned part, and readers of the folder take it for one", target.part(key))
    for key in target.planned if target.is_finished else ():
        if key not in target.found:
            yield Finding("parts", "it is missing, though the run is finished", target.part(key))
    for key in target.planned:
        if key in target.found:
            yield from _check_part(target, key, run, seen, rescorer)
    if target.manifest is not None:
        yield from _check_manifest(target, target.manifest, run, seen)
    elif target.is_finished:
        yield Finding("manifest", "it is missing, though the run is finished", target.part(MANIFEST))


def differing(stored: Any, found: Any, path: str = "") -> str | None:
    """Where two JSON values first differ, numbers beyond rounding; None if nowhere."""
    if isinstance(stored, dict) and isinstance(found, dict):
        keys = (*stored, *(key for key in found if key not in stored))
        differences = (differing(stored.get(key), found.get(key), f"{path}.{key}".lstrip(".")) for key in keys)
        return next((difference for difference in differences if difference), None)
    if isinstance(stored, (int, float)) and isinstance(found, (int, float)):
        is_same = math.isclose(stored, found, rel_tol=1e-9, abs_tol=1e-9)
    else:
        is_same = stored == found
    return None if is_same else f"{path} is {stored}, but must be {found}"


def _check_part(target: Target, key: str, run: Recorded, seen: Seen, rescorer: Rescorer | None) -> Iterator[Finding]:
    part, data = target.part(key), target.folder.read(key) or b""
    line = seen.lines[key] = {"key": key, "sha256": hashlib.sha256(data).hexdigest()}
    try:
        file = _read(data)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        yield Finding("file", f"it cannot be read whole: {type(error).__name__}: {error}", part)
        return
    for name, wanted in target.metadata.items():
        if file.facts.get(name) != wanted:
            yield Finding("file", f"its `{name}` is {file.facts.get(name)}, but must be {wanted}", part)
    if problem := check_schema(file.table.schema, run) or _check_kept(file.table.schema, run, seen):
        yield Finding("schema", problem, part)
        return
    problems = list(check_rows(file.table, target.planned[key](), run, target.vocabulary))
    yield from _placed(part, file.table, problems)
    line |= _counts(file.table)
    seen.num_truncated += file.num_truncated
    if any(problem.check in UNSOUND for problem in problems):
        return
    sums = part_sums(file.table)
    seen.sums, seen.num_summed = add(seen.sums, sums), seen.num_summed + 1
    if difference := differing(file.sums, sums):
        yield Finding("file", f"its `batchgen.sums` are not those of its rows: {difference}", part)
    if rescorer:
        yield from _placed(part, file.table, rescorer.check(part, file.table))


def _read(data: bytes) -> PartFile:
    """All of a part, page checksums included."""
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    facts = {name.decode(): value.decode() for name, value in (file.metadata.metadata or {}).items()}
    sums, num_truncated = json.loads(facts["batchgen.sums"]), int(facts["batchgen.truncated_prompts"])
    return PartFile(file.read(), facts, sums, num_truncated)


def _check_kept(schema: pa.Schema, run: Recorded, seen: Seen) -> str | None:
    """What is wrong with the kept columns: their types are those of the first part, for the plan has none."""
    kept = pa.schema([schema.field(name) for name in run.job.input.keep_columns])
    seen.kept = seen.kept if seen.kept is not None else kept
    changed = [name for name in kept.names if kept.field(name).type != seen.kept.field(name).type]
    if not changed:
        return None
    types = (kept.field(changed[0]).type, seen.kept.field(changed[0]).type)
    return f"kept column `{changed[0]}` is {types[0]}, but {types[1]} in the first part"


def _placed(part: str, table: pa.Table, problems: Iterator[Problem] | list[Problem]) -> Iterator[Finding]:
    """Problems with the names of their rows."""
    for check, row, message in problems:
        names = ("row_id", "strategy", "sample_index")
        keys = {name: table[name][row].as_py() for name in names} if row is not None else {}
        yield Finding(check, message, part, row, **keys)


def _counts(table: pa.Table) -> dict[str, int]:
    num_ok = pc.sum(pc.equal(table["status"], "ok"), min_count=0).as_py()
    tokens = pc.sum(table["num_generated_tokens"], min_count=0).as_py()
    return {"rows": table.num_rows, "ok": num_ok, "errors": table.num_rows - num_ok, "generated_tokens": tokens}


def _check_manifest(target: Target, manifest: dict[str, Any], run: Recorded, seen: Seen) -> Iterator[Finding]:
    """What the manifest says of the parts and of them together."""
    place = target.part(MANIFEST)
    if manifest.get("fingerprint") != run.fingerprint:
        yield Finding(
            "manifest", f"its fingerprint is {manifest.get('fingerprint')}, the plan's {run.fingerprint}", place
        )
    stored = {line.get("key"): line for line in manifest.get("parts", ())}
    for key in {**dict.fromkeys(target.planned), **stored}:
        if key not in stored or key not in target.planned:
            yield Finding("manifest", f"it {'has' if key in stored else 'lacks'} {key}, against the plan", place)
    for key, line in seen.lines.items():
        for name, value in line.items() if key in stored else ():
            if stored[key].get(name) != value:
                check = "digests" if name == "sha256" else "manifest"
                yield Finding(
                    check, f"its {name} is {value}, in the manifest {stored[key].get(name)}", target.part(key)
                )
    if all("rows" in seen.lines.get(key, ()) for key in target.planned):
        totals = {name: seen.total(name) for name in ("rows", "ok", "errors", "generated_tokens")}
        totals["truncated_prompts"] = seen.num_truncated
        said = {name: manifest.get("totals", {}).get(name) for name in totals}
        if difference := differing(said, totals, "totals"):
            yield Finding("manifest", difference, place)
    is_summed = seen.num_summed == len(target.planned)
    if is_summed and (difference := differing(manifest.get("strategies"), seen.sums, "strategies")):
        yield Finding("manifest", difference, place)
