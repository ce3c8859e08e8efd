"""A folder on a local or network file system that knows hard links.

A file is written to `_tmp/`, flushed to disk, and hard-linked to its name; then the folder is flushed. The link is the
commit: whoever comes second changes nothing, and a reader never sees part of a file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from pipeline.errors import StorageError
from pipeline.faults import reach

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A `storage.Folder` of files.

    Attributes:
        root: absolute.
        link: the call that commits; a test may bring that of another file system.
    """

    root: Path
    link: Callable[[Path, Path], None] = os.link

    @property
    def name(self) -> str:
        """The path."""
        return str(self.root)

    @property
    def is_exclusive(self) -> bool:
        """A hard link never replaces a file."""
        return True

    def probed(self, key: str) -> Self:
        """The folder itself."""
        return self

    def prepare(self) -> None:
        """Make the folder and what it needs, where missing."""
        with _explained(self.root):
            for folder in (self.root / "_tmp", self.root / "data"):
                folder.mkdir(parents=True, exist_ok=True)

    def publish(self, key: str, data: bytes | memoryview) -> str:
        """Store `data` under `key` if the name is free; SHA-256 of what is stored there now.

        NFS may answer a link that it made with "exists" when the request was repeated; what is stored is read back in
        any case.
        """
        final = self.root / key
        reach(key, "before")
        with _explained(final), self._temporary(key) as temporary:
            final.parent.mkdir(exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                reach(key, "written")
                os.fsync(file.fileno())
            reach(key, "synced")
            with contextlib.suppress(FileExistsError):
                self.link(temporary, final)
            reach(key, "linked")
            _sync_folder(final.parent)
        reach(key, "published")
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

    def read_end(self, key: str, num_bytes: int) -> bytes | None:
        """The last bytes of the file, None if there is none."""
        with (
            _explained(self.root / key),
            contextlib.suppress(FileNotFoundError),
            open(self.root / key, "rb") as file,
        ):
            file.seek(-min(num_bytes, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return file.read()
        return None

    def stored_at(self, folder: str) -> dict[str, float]:
        """When each file was last written, as the file system says; one that goes meanwhile is left out."""
        found = {}
        for key in self.list_keys(folder):
            with _explained(self.root / key), contextlib.suppress(FileNotFoundError):
                found[key] = os.stat(self.root / key).st_mtime
        return found

    def replace(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, whatever lies there."""
        with _explained(self.root / key), self._temporary(key) as temporary:
            temporary.write_bytes(data)
            os.replace(temporary, self.root / key)

    def remove(self, key: str) -> None:
        """Remove the file, if it is there."""
        with _explained(self.root / key):
            (self.root / key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """A new name in `_tmp/`, free again in the end."""
        path = self.root / "_tmp" / f"{Path(key).name}.{uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


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
            advice = (
                "Write to a file system that supports hard links, by which files are published, or to s3://, gs:// or "
                "az://."
            )
        elif error.errno in DISK_FULL:
            advice = "Free some space and run the same command again; finished parts are kept."
        else:
            advice = "Check that the folder exists and is writable, then run the same command again."
        raise StorageError(f"cannot write or read {path}: {error.strerror or error}.", advice) from error
