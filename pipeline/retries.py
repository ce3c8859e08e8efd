"""Error rows that were computed again, as they lie in a run's folder: `retries/0001`, `retries/0002` and so on.

Each is a folder like the run's own, with a plan, parts and a manifest. A part holds exactly the rows of its namesake in
`data/` that were errors of the wanted types until then, so that no row is `ok` twice in all of them together.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.manifest import PLAN, SUCCESS, parse
from pipeline.proofs.columns import Array
from pipeline.proofs.rows import row_codes
from pipeline.recorded import Recorded
from pipeline.storage import Folder, open_folder

RETRIES = "retries"
KEY_COLUMNS = ["row_index", "strategy", "sample_index", "error_type"]


@dataclass(frozen=True, slots=True)
class Retry:
    """One retry, begun or finished.

    Attributes:
        name: `0001` and so on.
        fingerprint: of the run it belongs to.
        error_types: that it computes again; empty for all.
        parts: key -> rows, of all it will have.
    """

    name: str
    folder: Folder
    fingerprint: str
    error_types: tuple[str, ...]
    parts: dict[str, int]

    @property
    def is_finished(self) -> bool:
        """Whether its `_SUCCESS` is there."""
        return self.folder.read(SUCCESS) is not None

    def wants(self, error_type: str) -> bool:
        """Whether it computes errors of this type again."""
        return not self.error_types or error_type in self.error_types


def retry_names(run: Recorded) -> list[str]:
    """Names of what lies in `retries/`, oldest first."""
    return [key.removeprefix(f"{RETRIES}/") for key in run.folder.list_keys(RETRIES)]


def retry_folder(run: Recorded, name: str) -> Folder:
    """The folder of a retry."""
    return open_folder(f"{run.folder.name}/{RETRIES}/{name}")


def read_retry(run: Recorded, name: str) -> Retry | None:
    """A retry as its plan describes it; None if it has no plan, which is then nothing yet.

    Raises:
        StorageError: the plan is damaged.
    """
    folder = retry_folder(run, name)
    stored = folder.read(PLAN)
    if stored is None:
        return None
    plan = parse(stored)
    try:
        return Retry(name, folder, plan["fingerprint"], tuple(plan["error_types"]), dict(plan["parts"]))
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"`{PLAN}` of {folder.name} is damaged: {type(error).__name__}: {error}.", "Remove that folder."
        ) from error


def all_retries(run: Recorded) -> list[Retry]:
    """All retries, oldest first."""
    return [retry for name in retry_names(run) if (retry := read_retry(run, name))]


def errors_left(run: Recorded, key: str, retries: list[Retry]) -> dict[int, str]:
    """Rows of a part that are errors after these retries: code (see `row_codes`) -> error type."""
    errors = _errors(run, run.folder, key)
    for retry in retries:
        if key in retry.parts:
            again = _errors(run, retry.folder, key)
            is_left = {code: code in again or not retry.wants(type_) for code, type_ in errors.items()}
            errors = {code: again.get(code, type_) for code, type_ in errors.items() if is_left[code]}
    return errors


def planned_codes(run: Recorded, key: str, retry: Retry, earlier: list[Retry]) -> Array:
    """Codes of the rows of a part that a retry computes again, sorted."""
    errors = errors_left(run, key, earlier)
    return np.array(sorted(code for code, type_ in errors.items() if retry.wants(type_)), np.int64)


def _errors(run: Recorded, folder: Folder, key: str) -> dict[int, str]:
    stored = folder.read(key)
    if stored is None:
        raise StorageError(
            f"{folder.name}/{key} is missing, so its error rows are not known.", "Run the job to its end first."
        )
    try:
        table = pq.read_table(io.BytesIO(stored), columns=[*KEY_COLUMNS, "status"])
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"{folder.name}/{key} cannot be read: {error}.", "Remove it and run the job again."
        ) from error
    table = table.filter(pc.equal(table["status"], "error"))
    return dict(zip(row_codes(table, run).tolist(), table["error_type"].to_pylist(), strict=True))
