"""The output folder: publish a file under its final name only if the name is free, whole or not at all.

A file is written to `_tmp/`, flushed to disk, and hard-linked to its name; then the folder is flushed. The link is the
commit: whoever comes second changes nothing, and a reader never sees part of a file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pipeline.errors import StorageError

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder on a local or network file system that knows hard links. Keys are relative paths with `/`."""

    root: Path

    def prepare(self) -> None:
        """Make the folder and what it needs, where missing."""
        with _explained(self.root):
            for folder in (self.root / "_tmp", self.root / "data"):
                folder.mkdir(parents=True, exist_ok=True)

    def publish(self, key: str, data: bytes | memoryview) -> str:
        """Store `data` under `key` if the name is free.

        Returns:
            SHA-256 of what is stored under the key now, which may be what somebody else stored first.

        Raises:
            StorageError: the disk is full or refuses to write; nothing is stored then.
        """
        final = self.root / key
        temporary = self.root / "_tmp" / f"{final.name}.{uuid4().hex}"
        with _explained(final):
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, final)
                _sync_folder(final.parent)
            finally:
                temporary.unlink(missing_ok=True)
        return self.sha256(key)

    def read(self, key: str) -> bytes | None:
        """What is stored under the key, None if nothing is."""
        with _explained(self.root / key), contextlib.suppress(FileNotFoundError):
            return (self.root / key).read_bytes()
        return None

    def sha256(self, key: str) -> str:
        """SHA-256 of what is stored under the key."""
        with _explained(self.root / key), open(self.root / key, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def list_keys(self, folder: str = "") -> list[str]:
        """Keys directly in a folder of the output, sorted; none if it does not exist."""
        with _explained(self.root / folder), contextlib.suppress(FileNotFoundError):
            return sorted(f"{folder}/{name}".lstrip("/") for name in os.listdir(self.root / folder))
        return []


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_HARD_LINKS:
            advice = "The file system may not support hard links; write to one that does."
        elif error.errno in DISK_FULL:
            advice = "Free some space and run the same command again; finished parts are kept."
        else:
            advice = "Check that the folder exists and is writable, then run the same command again."
        raise StorageError(f"cannot write or read {path}: {error.strerror or error}. {advice}") from error
