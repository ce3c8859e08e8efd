"""A folder in an object store: S3 and what speaks like it, Google Cloud Storage, Azure.

A file is published by one conditional PUT, which the store refuses where the name is taken. An answer may be lost, and
a refusal may be about our own earlier request or about nothing at all: so what is stored is read back, and the request
repeated as long as nothing is. Endpoint and credentials come from the environment of each process and are never stored,
pickled or written.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from pipeline.errors import StorageError
from pipeline.faults import reach
from pipeline.object_store import PATIENT, REFUSED, Patience, checked, connect, first_line


@dataclass(frozen=True)
class ObjectFolder:
    """A `storage.Folder` of objects under a common prefix."""

    url: str
    patience: Patience = PATIENT
    is_exclusive: bool = True

    @classmethod
    def at(cls, url: str, patience: Patience = PATIENT) -> Self:
        """The folder at `s3://bucket/path`, `gs://bucket/path` or `az://container/path`.

        Raises:
            ConfigError: the URL, an endpoint in the environment, or both together cannot be used.
        """
        folder = cls(checked(url, "output.path"), patience)
        folder.store  # noqa: B018  # whatever is wrong with it is said now
        return folder

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.patience, self.is_exclusive)

    @property
    def name(self) -> str:
        """The URL."""
        return self.url

    @cached_property
    def store(self) -> Any:
        """The connection, made in each process anew."""
        return connect(self.url, "output.path", self.patience)

    def probed(self, key: str) -> Self:
        """The folder, with `is_exclusive` found out by publishing what lies under `key` a second time.

        The bytes are those that are stored, so that a store which ignores the condition loses nothing.
        """
        data = self.read(key) or b""
        with self._explained(key), contextlib.suppress(AlreadyExistsError):
            obstore.put(self.store, key, data, mode="create", use_multipart=False)
            return replace(self, is_exclusive=False)
        return self

    def prepare(self) -> None:
        """Nothing: an object needs no folder."""

    def publish(self, key: str, data: bytes | memoryview) -> str:
        """Store `data` under `key` if the name is free; SHA-256 of what is stored there now."""
        reach(key, "before")
        sha256 = self._create(key, data) if self.is_exclusive else self._put_where_free(key, data)
        reach(key, "published")
        return sha256

    def read(self, key: str) -> bytes | None:
        """What is stored under the key, None if nothing is."""
        with self._explained(key), contextlib.suppress(FileNotFoundError):
            return bytes(obstore.get(self.store, key).bytes())
        return None

    def sha256(self, key: str) -> str:
        """SHA-256 of what is stored under the key."""
        data = self.read(key)
        if data is None:
            raise StorageError(f"{self.url}/{key} is missing.", "Run the same command again.")
        return _sha256(data)

    def read_end(self, key: str, num_bytes: int) -> bytes | None:
        """The last bytes of what is stored under the key, None if nothing is."""
        with self._explained(key), contextlib.suppress(FileNotFoundError):
            size = obstore.head(self.store, key)["size"]  # Azure knows no ranges from the end
            return bytes(obstore.get_range(self.store, key, start=max(0, size - num_bytes), end=size))
        return None

    def stored_at(self, folder: str) -> dict[str, float]:
        """When each object directly in a folder was stored, as the store says."""
        return {entry["path"]: entry["last_modified"].timestamp() for entry in self._listed(folder)["objects"]}

    def list_keys(self, folder: str = "") -> list[str]:
        """Keys directly in a folder of the output, sorted; without the empty objects by which some tools mark one."""
        found = self._listed(folder)
        keys = [*(entry["path"] for entry in found["objects"]), *found["common_prefixes"]]
        return sorted(key for key in keys if key not in ("", folder))

    def replace(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, whatever lies there."""
        with self._explained(key):
            obstore.put(self.store, key, data, use_multipart=False)

    def remove(self, key: str) -> None:
        """Remove the object, if it is there."""
        with self._explained(key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self.store, key)

    def _listed(self, folder: str) -> Any:
        with self._explained(folder):
            return obstore.list_with_delimiter(self.store, folder or None)

    def _create(self, key: str, data: bytes | memoryview) -> str:
        error: Exception | None = None
        for pause_s in self.patience.pauses_s:
            try:
                obstore.put(self.store, key, data, mode="create", use_multipart=False)
                return _sha256(data)
            except (FileNotFoundError, *REFUSED) as refusal:
                raise self._error(key, refusal) from refusal
            except BaseError as doubt:  # the name is taken, by us or others; or nothing was stored; or nobody knows
                error = doubt
            with contextlib.suppress(StorageError):
                if (stored := self.read(key)) is not None:
                    return _sha256(stored)
            time.sleep(pause_s)
        assert error is not None
        raise self._error(key, error) from error

    def _put_where_free(self, key: str, data: bytes | memoryview) -> str:
        stored = self.read(key)
        if stored is not None:
            return _sha256(stored)
        with self._explained(key):
            obstore.put(self.store, key, data, use_multipart=False)
        return _sha256(data)

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turn an error of the store into a StorageError that says what to do."""
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            raise self._error(key, error) from error

    def _error(self, key: str, error: Exception) -> StorageError:
        """What happened, and what to do about it."""
        if isinstance(error, FileNotFoundError):
            advice = "Make the bucket, or choose another with --output."
        elif isinstance(error, REFUSED):
            advice = "Set credentials in the environment that may get, put, list and delete objects there."
        else:
            advice = "Check the endpoint and the network, then run the same command again; finished parts are kept."
        return StorageError(f"cannot write or read {self.url}/{key}: {first_line(error)}.", advice)


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
