"""The output folder: publish a file under its final name only if the name is free, whole or not at all.

Two kinds of folder keep that promise, each by its own means: one on a file system (`storage_local`), one in an object
store (`storage_objects`). Everybody else knows only `Folder`. Keys are relative paths with `/`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, Self

from pipeline.errors import OutputError
from pipeline.storage_local import LocalFolder
from pipeline.storage_objects import ObjectFolder

__all__ = ["Folder", "LocalFolder", "ObjectFolder", "open_folder"]


class Folder(Protocol):
    """Where the output goes. Can be pickled; holds no credentials.

    Every method raises StorageError, with what to do, where the storage does not answer or refuses.
    """

    @property
    def name(self) -> str:
        """Absolute path or URL, as people write it."""

    @property
    def is_exclusive(self) -> bool:
        """Whether of several that publish under one key at the same time only the first one stores anything.

        Where it is not, only one process may publish.
        """

    def probed(self, key: str) -> Self:
        """The folder, with `is_exclusive` found out by publishing what lies under `key` a second time."""

    def prepare(self) -> None:
        """Make the folder and what it needs, where missing."""

    def publish(self, key: str, data: bytes | memoryview) -> str:
        """Store `data` under `key` if the name is free.

        Returns:
            SHA-256 of what is stored under the key now, which may be what somebody else stored first.
        """

    def read(self, key: str) -> bytes | None:
        """What is stored under the key, None if nothing is."""

    def sha256(self, key: str) -> str:
        """SHA-256 of what is stored under the key."""

    def list_keys(self, folder: str = "") -> list[str]:
        """Keys directly in a folder of the output, folders among them, sorted; none if it does not exist."""

    def read_end(self, key: str, num_bytes: int) -> bytes | None:
        """The last bytes of what is stored under the key, all of it if there are fewer; None if nothing is."""

    def stored_at(self, folder: str) -> dict[str, float]:
        """When each file directly in a folder was stored, by key, in seconds since 1970 by the clock of the store."""

    def replace(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, whatever lies there. For leases; nothing that a run produces is replaced."""

    def remove(self, key: str) -> None:
        """Remove what lies under the key, if anything does. For leases and leftovers."""


def open_folder(path: str) -> Folder:
    """The folder that `output.path` means; nothing is made or written.

    Raises:
        ConfigError: the URL, or an endpoint in the environment, cannot be used.
        OutputError: the path is a file.
    """
    if "://" in path:
        return ObjectFolder.at(path)
    root = Path(os.path.expanduser(path)).absolute()
    if root.exists() and not root.is_dir():
        raise OutputError(f"output.path {root} is a file.", "Choose a folder with --output.")
    return LocalFolder(root)
