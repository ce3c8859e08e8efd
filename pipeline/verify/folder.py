"""A run's folder as a whole: the plan in itself, the vocabulary, and the run and its retries as targets to check."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np

from pipeline.errors import StorageError
from pipeline.manifest import MANIFEST, PLAN, VOCABULARY, parse
from pipeline.plan import fingerprint_of, job_identity
from pipeline.proofs.columns import Array
from pipeline.recorded import Recorded
from pipeline.retries import RETRIES, Retry, planned_codes, read_retry, retry_names
from pipeline.shard import Shard
from pipeline.verify.parts import Seen, Target, check_target
from pipeline.verify.report import Finding

Document = TypeVar("Document")


def run_target(run: Recorded) -> Target:
    """The run's own parts, as they lie there now."""
    is_finished, manifest = run.is_finished, _if_sound(run.manifest)
    return Target(
        name="",
        folder=run.folder,
        planned={shard.key: partial(_shard_codes, run, shard) for shard in run.shards},
        metadata=run.metadata,
        is_finished=is_finished,
        manifest=manifest,
        vocabulary=_if_sound(run.vocabulary),
        found=frozenset(run.folder.list_keys("data")),
    )


def check_plan(run: Recorded) -> Iterator[Finding]:
    """What the plan says against itself."""
    if (found := fingerprint_of(run.identity)) != run.fingerprint:
        yield Finding("plan", f"its identity hashes to {found}, but its fingerprint is {run.fingerprint}", PLAN)
    for name, value in job_identity(run.job).items():
        if run.identity.get(name) != value:
            yield Finding("plan", f"`{name}` of its job is not that of its identity", PLAN)
    if run.stated_shards != run.shards.summary:
        facts = f"it says its shards are {json.dumps(run.stated_shards)}"
        yield Finding("plan", f"{facts}, but its inputs make {json.dumps(run.shards.summary)}", PLAN)
    if run.num_output_rows != run.num_input_rows * run.rows_per_prompt:
        facts = f"it says {run.num_output_rows} rows of output of {run.num_input_rows} rows of input"
        yield Finding("plan", f"{facts}, but each makes {run.rows_per_prompt}", PLAN)
    num_rows = sum(file["rows"] for file in run.identity["inputs"])
    if num_rows != run.num_input_rows:
        yield Finding("plan", f"its inputs have {num_rows} rows, it says {run.num_input_rows}", PLAN)


def check_documents(run: Recorded, target: Target) -> Iterator[Finding]:
    """Documents that are damaged, and a vocabulary that is missing."""
    for check, key, read in (("manifest", MANIFEST, run.manifest), ("vocabulary", VOCABULARY, run.vocabulary)):
        try:
            read()
        except StorageError as error:
            yield Finding(check, str(error), key)
    if target.is_finished and run.folder.read(VOCABULARY) is None:
        yield Finding("vocabulary", "it is missing, though the run is finished", VOCABULARY)


def check_retries(run: Recorded, target: Target, seen: Seen) -> Iterator[Finding]:
    """Everything wrong with the retries, each held against the run and the retries before it."""
    earlier: list[Retry] = []
    for name in retry_names(run):
        try:
            retry = read_retry(run, name)
            if retry is not None:
                yield from _check_retry(run, target, retry, earlier, seen)
                earlier.append(retry)
        except StorageError as error:
            yield Finding("retries", str(error), f"{RETRIES}/{name}")


def _check_retry(run: Recorded, target: Target, retry: Retry, earlier: list[Retry], seen: Seen) -> Iterator[Finding]:
    place = f"{RETRIES}/{retry.name}"
    codes = {
        key: found
        for key, line in seen.lines.items()
        if line.get("errors") and len(found := planned_codes(run, key, retry, earlier))
    }
    planned = {key: len(found) for key, found in codes.items()}
    if retry.fingerprint != run.fingerprint:
        yield Finding("retries", f"it belongs to the run {retry.fingerprint}, this is {run.fingerprint}", place)
    for key in sorted({*planned, *retry.parts}):
        if planned.get(key, 0) != retry.parts.get(key, 0):
            wrong = f"it plans {retry.parts.get(key, 0)} rows of {key}, but {planned.get(key, 0)} were errors"
            yield Finding("retries", wrong, place)
    stored = retry.folder.read(MANIFEST)
    again = Target(
        name=place,
        folder=retry.folder,
        planned={key: partial(codes.__getitem__, key) for key in codes},
        metadata={**run.metadata, "batchgen.retry": retry.name},
        is_finished=retry.is_finished,
        manifest=None if stored is None else parse(stored),
        vocabulary=target.vocabulary,
        found=frozenset(retry.folder.list_keys("data")),
    )
    yield from check_target(again, run, Seen(kept=seen.kept))


def _shard_codes(run: Recorded, shard: Shard) -> Array:
    return np.arange(shard.lo * run.rows_per_prompt, shard.hi * run.rows_per_prompt)


def _if_sound(read: Callable[[], Document | None]) -> Document | None:
    """A document if it can be used; `check_documents` says what is wrong with it."""
    try:
        return read()
    except StorageError:
        return None
