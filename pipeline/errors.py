"""The errors a user can meet, each with the exit code of the command.

    BatchgenError
    ├── ConfigError    2  the job file is wrong
    ├── InputError     2  the input cannot be read as the job says
    ├── ModelError     2  the checkpoint cannot be used
    ├── OutputError    2  the output folder belongs to another job
    ├── StorageError   4  the output could not be written; safe to run again
    ├── InUseError     4  another driver works on the output folder; safe to run again
    ├── ClusterError   4  replicas could not do the work; safe to run again
    ├── StoppedError   4  told to stop by SIGTERM; safe to run again
    └── ErrorRateError 3  more rows are errors than the job allows

A bad *prompt* is none of these: it becomes a row with status `error` (`records.RowError`).
"""

from __future__ import annotations

EXIT_CODES = {
    0: "done",
    2: "bad job file, input, model or size of cluster; the message says what to change",
    3: "more error rows than `run.max_error_rate`: stopped as soon as that was certain, or finished; results are kept",
    4: "the cluster or the storage failed, another driver works on the folder, or SIGTERM came; safe to run again",
    5: "`verify` or `replay` found something wrong, or `compare` a difference",
    6: "`status --exit-status` of a run that somebody may work on",
    130: "stopped by Ctrl-C; safe to run again",
}


class BatchgenError(Exception):
    """Base of all errors this package raises on purpose; the message is written for the user.

    Attributes:
        what: is wrong, where, and against which rule.
        way_out: what the user can do about it, as one or more sentences; no error is without.
    """

    exit_code = 4

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__("\n".join((what, way_out)) if "\n" in what else f"{what} {way_out}")
        self.what, self.way_out = what, way_out

    def __reduce__(self) -> tuple[type[BatchgenError], tuple[str, str]]:
        """An error of a replica reaches the driver whole."""
        return type(self), (self.what, self.way_out)


class ConfigError(BatchgenError, ValueError):
    """A key, a value or a combination in the job file breaks a rule."""

    exit_code = 2


class InputError(BatchgenError, ValueError):
    """The input is missing, or is not what the job file says it is."""

    exit_code = 2


class ModelError(BatchgenError, ValueError):
    """The checkpoint is missing, incomplete, unsafe or of another architecture."""

    exit_code = 2


class OutputError(BatchgenError, FileExistsError):
    """The output folder holds something that this job must not touch."""

    exit_code = 2


class StorageError(BatchgenError, OSError):
    """Writing or reading back the output failed."""


class InUseError(BatchgenError, BlockingIOError):
    """Another driver works on the output folder, or has taken it over."""


class ClusterError(BatchgenError, RuntimeError):
    """Replicas could not be started, or died too often."""


class StoppedError(BatchgenError):
    """The process was told to stop and did, in good order."""


class ErrorRateError(BatchgenError):
    """More rows are errors than run.max_error_rate allows, or will be."""

    exit_code = 3
