"""Whether an input file is still the one that was planned.

Its bytes are digested once, when the job is planned. Later each read compares size and times before and after, which
costs two looks at the folder; only where the times differ, as in a copy on another machine, do the bytes decide.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import InputError
from pipeline.input_files import InputFile, Stamp


def stamp_of(path: str) -> Stamp:
    """Size in bytes, and the times in ns when the content and the entry of the file last changed."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened: {error.strerror}.", "Make every machine see the input under the same path."
        ) from error
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextmanager
def unchanged(file: InputFile) -> Iterator[None]:
    """Raise InputError if the file is not the planned one, before and after what is done with it."""
    _check(file)
    try:
        yield
    finally:
        _check(file)


def changed(file: InputFile, what: str) -> InputError:
    """The error that names the file and what changed."""
    return InputError(
        f"{file.path} has changed since the job was planned: {what}.",
        "Put the old file back, or give the job a new output folder.",
    )


def _check(file: InputFile) -> None:
    stamp = stamp_of(file.path)
    if stamp[0] != file.size_bytes:
        raise changed(file, f"it had {file.size_bytes:,} bytes and has {stamp[0]:,}")
    if stamp != file.stamp and (sha256 := _digest(file.path, stamp)) != file.sha256:
        raise changed(file, f"its SHA-256 was {file.sha256[:12]}… and is {sha256[:12]}…")


@functools.lru_cache(maxsize=4096)
def _digest(path: str, stamp: Stamp) -> str:
    """SHA-256 of a file, once for each stamp."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
