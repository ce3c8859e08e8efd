"""Proof of an output folder: everything that its plan, manifest and parts say of each other, checked.

Reads one part at a time, so memory is that of the largest part. Believes nothing but the plan, and that only if it
hashes to its fingerprint. Needs no input and no Ray, and the model only to rescore.
"""

from __future__ import annotations

from pathlib import Path

from pipeline import proofs
from pipeline.errors import StorageError
from pipeline.manifest import PLAN
from pipeline.proofs.endings import unknown_keys
from pipeline.recorded import Recorded, open_run
from pipeline.rescore import Rescorer
from pipeline.retries import retry_names
from pipeline.verify.folder import check_documents, check_plan, check_retries, run_target
from pipeline.verify.parts import Seen, Target, check_target
from pipeline.verify.report import Finding, Outcome, Report, Tally

__all__ = ["STATEMENTS", "Finding", "Outcome", "Report", "verify"]

STATEMENTS = {
    "plan": "the plan hashes to its fingerprint, and its shards cover every input row once",
    "names": "data/ holds planned parts and nothing else",
    "parts": "every planned part there once the run is finished",
    "digests": "SHA-256 of every part as in the manifest",
    "manifest": "the manifest's counts and sums those of the parts",
    "vocabulary": "a row for each token id of the model",
    "file": "each part whole, of this run, model and number format, and its own sums right",
    "schema": "the declared columns and types, the same in all parts",
    **proofs.STATEMENTS,
    "retries": "each retry plans exactly the rows that were errors before it",
    "rescore": "stored probabilities as the model gives them in one forward",
}


def verify(path: Path | str, num_rescored: int = 0) -> Report:
    """Check a run's folder, finished or not.

    Args:
        path: the folder.
        num_rescored: rows whose probabilities the model is asked for again.

    Raises:
        InputError: it is not the folder of a run.
        ModelError: the model is needed, and not where or what the plan says.
    """
    tally = Tally()
    try:
        run = open_run(path)
    except StorageError as error:
        tally.add([Finding("plan", str(error), PLAN)])
        unchecked = dict.fromkeys(STATEMENTS, "nothing is known without the plan")
        return Report(str(path), "damaged", _outcomes(tally, unchecked, {}))
    target = run_target(run)
    keys = [key for key in target.planned if key in target.found]
    rescorer = Rescorer(run, num_rescored, keys) if num_rescored and keys else None
    seen = Seen()
    tally.add(check_plan(run))
    tally.add(check_documents(run, target))
    tally.add(check_target(target, run, seen, rescorer))
    tally.add(check_retries(run, target, seen))
    return Report(
        folder=run.folder.name,
        state="finished" if target.is_finished else "running",
        outcomes=_outcomes(tally, _unchecked(run, target, rescorer), _notes(run, rescorer)),
        num_parts=len(seen.lines),
        num_planned_parts=len(target.planned),
        num_rows=seen.total("rows"),
    )


def _outcomes(tally: Tally, unchecked: dict[str, str], notes: dict[str, str]) -> tuple[Outcome, ...]:
    return tuple(
        tally.outcome(check, statement, unchecked.get(check), notes.get(check))
        for check, statement in STATEMENTS.items()
    )


def _unchecked(run: Recorded, target: Target, rescorer: Rescorer | None) -> dict[str, str]:
    """Checks that were not made, and why."""
    reasons: dict[str, str] = {}
    if not target.found & target.planned.keys():
        reasons |= dict.fromkeys(("file", "schema", *proofs.STATEMENTS), "there is no part yet")
    if target.vocabulary is None:
        reasons |= dict.fromkeys(("vocabulary", "text", "endings"), "there is no vocabulary to use")
    if (column := run.job.strategy_columns.get("seed")) and column not in run.job.input.keep_columns:
        reasons["seeds"] = f"rows may bring their own, in column `{column}`, which was not kept"
    if not target.is_finished:
        reasons["parts"] = "the run is not finished"
    if target.manifest is None:
        reasons |= dict.fromkeys(("digests", "manifest"), "there is no manifest yet")
    if not retry_names(run):
        reasons["retries"] = "there are none"
    if rescorer is None:
        reasons["rescore"] = "only with --rescore N"
    return reasons


def _notes(run: Recorded, rescorer: Rescorer | None) -> dict[str, str]:
    """What else there is to say of checks."""
    notes: dict[str, str] = {}
    unknown = {strategy.name: keys for strategy in run.job.strategies if (keys := unknown_keys(strategy, run))}
    if unknown:
        named = ", ".join(f"`{key}`" for key in dict.fromkeys(key for keys in unknown.values() for key in keys))
        notes["endings"] = f"not of {', '.join(unknown)}: columns that were not kept set {named}"
    if rescorer is not None:
        found = f"largest difference {rescorer.largest}; allowed are {rescorer.tolerance}"
        notes["rescore"] = f"{rescorer.num_done} rows; {found}"
    return notes
