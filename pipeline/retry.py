"""Error rows computed again: which they are, and a run over just these, beside the parts they stand in.

A retry is planned from the parts alone, so that it means the same rows whenever it is taken up again; the plan is
published before a row is computed. Nothing that was there before is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import manifest
from pipeline.errors import InputError, OutputError
from pipeline.job import Executor, OpenWorker, Progress, Spent
from pipeline.lease import hold
from pipeline.plan import Plan, library_versions
from pipeline.proofs.columns import Array
from pipeline.recorded import Recorded, open_run
from pipeline.reopen import plan_again
from pipeline.retries import Retry, all_retries, errors_left, read_retry, retry_folder
from pipeline.shard import EngineMaker, Setup, make_engine, published
from pipeline.storage import Folder
from pipeline.strategies import num_rows
from pipeline.tally import Tally

# Types of errors that lie in the row, the job or the model: the same row gets the same one each time it is computed.
CERTAIN = ("no_token_left", "too_few_beams", "force_words_unmet")
CERTAIN_PREFIXES = ("prompt_", "target_", "id_", "token_id_", "bad_")


@dataclass(frozen=True)
class Outlook:
    """A retry that can begin, or go on.

    Attributes:
        counts: error type -> rows that it computes again.
        num_left_out: error rows of other types.
        codes: of these rows (see `proofs.row_codes`), in order.
        is_resumed: whether it was begun before.
    """

    run: Recorded
    retry: Retry
    counts: Counter[str]
    num_left_out: int
    codes: Array
    is_resumed: bool

    @property
    def certain(self) -> dict[str, int]:
        """Error type -> rows that will fail again the same way."""
        return {
            type_: count
            for type_, count in self.counts.items()
            if type_ in CERTAIN or type_.startswith(CERTAIN_PREFIXES)
        }


class Retried(NamedTuple):
    """A finished retry.

    Attributes:
        manifest: of the retry, as stored.
        num_errors: rows that are errors now, in the whole run.
    """

    folder: str
    manifest: dict[str, Any]
    num_errors: int


def look(path: Path | str, error_types: Sequence[str] = ()) -> Outlook | None:
    """Find the rows to compute again; writes nothing.

    Args:
        path: folder of a finished run.
        error_types: only errors of these types; none means all.

    Returns:
        None if there are no error rows at all.

    Raises:
        InputError: there is no run, or no error of a type.
        OutputError: the run, or a retry of other types, is not finished.
    """
    run = open_run(path)
    if not run.is_finished:
        raise OutputError(
            f"{run.folder.name} is not finished, so its error rows are not all known.", "Run its job to the end first."
        )
    retries = all_retries(run)
    begun = retries[-1] if retries and not retries[-1].is_finished else None
    if begun and error_types and set(error_types) != set(begun.error_types):
        options = "".join(f" --error-type {type_}" for type_ in begun.error_types)
        raise OutputError(
            f"retry {begun.name} of {run.folder.name} is not finished, and is not for these types of errors.",
            f"Finish it first: `batchgen retry-errors {run.folder.name}{options}`.",
        )
    earlier = [retry for retry in retries if retry is not begun]
    name = f"{len(earlier) + 1:04d}"
    types = begun.error_types if begun else tuple(sorted(set(error_types)))
    retry = Retry(name, retry_folder(run, name), run.fingerprint, types, {})
    return _outlook(run, retry, earlier, is_resumed=begun is not None)


def carry_out(
    outlook: Outlook, execute: Executor, progress: Progress | None = None, engine_maker: EngineMaker = make_engine
) -> Retried:
    """Compute the rows, or what is left of them.

    Args:
        outlook: from `look`.
        execute: who does the shards.
        progress: who is told.
        engine_maker: makes each worker's engine; picklable.

    Raises:
        BatchgenError: with what to do; published parts are kept, and the same command goes on.
    """
    spent = Spent()
    run, retry = outlook.run, outlook.retry
    plan = plan_again(run)
    retry.folder.prepare()
    with hold(retry.folder) as still_mine:
        folder = _claim(retry, run)
        tally = manifest.known_parts(folder, run.fingerprint, retry.parts.items())
        todo = [shard for shard in run.shards if shard.key in retry.parts and shard.key not in tally]
        if progress:
            progress.start(sum(retry.parts.values()), len(retry.parts), tally)
        setup = _setup(plan, outlook, folder)
        for part in spent.heard(execute(OpenWorker(setup, engine_maker), todo)) if todo else ():
            still_mine()
            tally.add(published(part, folder))
            spent.add(part)
            if progress:
                progress.part(part)
        manifest.check_complete(folder, set(retry.parts))
        summary = _summary(plan, outlook, tally, spent.timings(), folder.is_exclusive)
        return Retried(folder.name, manifest.publish_manifest(folder, summary, tally), _num_errors(run))


def _outlook(run: Recorded, retry: Retry, earlier: list[Retry], is_resumed: bool) -> Outlook | None:
    """The retry with its rows: of the parts with errors, all that are left after the earlier retries."""
    lines = (run.manifest() or {"parts": []})["parts"]
    counts: Counter[str] = Counter()
    parts: dict[str, int] = {}
    codes: list[int] = []
    for key in (line["key"] for line in lines if line["errors"]):
        left = errors_left(run, key, earlier)
        wanted = sorted(code for code, type_ in left.items() if retry.wants(type_))
        counts.update(left.values())
        codes += wanted
        if wanted:
            parts[key] = len(wanted)
    if not counts:
        return None
    unknown = [type_ for type_ in retry.error_types if type_ not in counts]
    if unknown:
        there = ", ".join(f"`{type_}` {count:,}" for type_, count in sorted(counts.items()))
        raise InputError(
            f"no row of {run.folder.name} has the error type `{unknown[0]}`; there are {there}.", "Name one of these."
        )
    wanted_counts = Counter({type_: count for type_, count in sorted(counts.items()) if retry.wants(type_)})
    return Outlook(
        run=run,
        retry=replace(retry, parts=parts),
        counts=wanted_counts,
        num_left_out=counts.total() - wanted_counts.total(),
        codes=np.array(codes, np.int64),
        is_resumed=is_resumed,
    )


def _claim(retry: Retry, run: Recorded) -> Folder:
    """Publish the plan, or find the same one there; returns the folder as `manifest.claim` does."""
    plan = {
        "schema_version": 1,
        "retry": retry.name,
        "fingerprint": retry.fingerprint,
        "error_types": list(retry.error_types),
        "versions": library_versions(),
        "parts": [list(part) for part in retry.parts.items()],
    }
    retry.folder.publish(manifest.PLAN, manifest.to_json(plan))
    if read_retry(run, retry.name) != retry:
        raise OutputError(f"{retry.folder.name} holds another retry, begun at the same time.", "Run the command again.")
    return retry.folder.probed(manifest.PLAN)


def _setup(plan: Plan, outlook: Outlook, folder: Folder) -> Setup:
    """What workers need to compute only these rows, into the folder of the retry."""
    setup = plan.setup(folder)
    metadata = setup.metadata | {"batchgen.retry": outlook.retry.name}
    owners = np.repeat(np.arange(len(plan.strategies)), [num_rows(strategy) for strategy in plan.strategies])
    row_index, place = np.divmod(outlook.codes, plan.rows_per_prompt)
    return replace(setup, metadata=metadata, only=np.unique(row_index * len(plan.strategies) + owners[place]))


def _summary(plan: Plan, outlook: Outlook, tally: Tally, timings: dict[str, Any], is_exclusive: bool) -> dict[str, Any]:
    """As a run's, of the rows of the retry."""
    summary = manifest.summarise(plan, tally, timings, is_exclusive)
    num_input_rows = len(np.unique(outlook.codes // plan.rows_per_prompt))
    totals = {**summary["totals"], "input_rows": num_input_rows}
    return {**summary, "retry": outlook.retry.name, "error_types": list(outlook.retry.error_types), "totals": totals}


def _num_errors(run: Recorded) -> int:
    """Error rows of the whole run that no retry has mended."""
    documents = [retry.folder.read(manifest.MANIFEST) for retry in all_retries(run)]
    mended = sum(manifest.parse(document)["totals"]["ok"] for document in documents if document is not None)
    return int((run.manifest() or {})["totals"]["errors"] - mended)
