"""A folder in an object store: S3 and what speaks like it, Google Cloud Storage, Azure.

A file is published by one conditional PUT, which the store refuses where the name is taken. An answer may be lost, and
a refusal may be about our own earlier request or about nothing at all: so what is stored is read back, and the request
repeated as long as nothing is. Endpoint and credentials come from the environment of each process and are never stored,
pickled or written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, Self
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from pipeline.errors import ConfigError, StorageError
from pipeline.faults import reach

SCHEMES = ("s3", "gs", "az")
ENDPOINTS = (
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AZURE_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
)
REFUSED = (PermissionDeniedError, UnauthenticatedError)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try: by default about three minutes with a store that does not answer at all.

    Attributes:
        timeout_s: for one request with its body.
        retries: of a request that fails in a way that may pass.
        attempts: to publish a file, each with its retries.
        pause_s: before the first retry or second attempt; doubles each time.
    """

    timeout_s: float = 600.0
    retries: int = 8
    attempts: int = 4
    pause_s: float = 0.1

    @property
    def pauses_s(self) -> list[float]:
        """Pause after each attempt to publish."""
        return [self.pause_s * 2**attempt for attempt in range(self.attempts)]


@dataclass(frozen=True)
class ObjectFolder:
    """A `storage.Folder` of objects under a common prefix."""

    url: str
    patience: Patience = Patience()
    is_exclusive: bool = True

    @classmethod
    def at(cls, url: str, patience: Patience = Patience()) -> Self:
        """The folder at `s3://bucket/path`, `gs://bucket/path` or `az://container/path`.

        Raises:
            ConfigError: the URL, an endpoint in the environment, or both together cannot be used.
        """
        folder = cls(_checked(url), patience)
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
        _check_endpoints()
        pause = timedelta(seconds=self.patience.pause_s)
        has_http = any(os.environ.get(variable, "").startswith("http://") for variable in ENDPOINTS)
        try:
            return from_url(
                self.url,
                client_options={
                    "timeout": timedelta(seconds=self.patience.timeout_s),
                    "connect_timeout": timedelta(seconds=min(10.0, self.patience.timeout_s)),
                    "allow_http": has_http,  # said by the endpoint itself
                },
                retry_config={
                    "max_retries": self.patience.retries,
                    "backoff": {"init_backoff": pause, "max_backoff": timedelta(seconds=15), "base": 2},
                },
            )
        except BaseError as error:
            raise ConfigError(
                f"output.path {self.url} cannot be opened: {_first_line(error)}.",
                "Set what is missing in the environment: AWS_*, GOOGLE_* or AZURE_*.",
            ) from error

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
        return StorageError(f"cannot write or read {self.url}/{key}: {_first_line(error)}.", advice)


def _checked(url: str) -> str:
    """The URL without a closing slash, if it is a bucket and a path and nothing else."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"output.path must be a folder, or begin with {' or '.join(f'{known}://' for known in SCHEMES)}, "
            f"but is {url!r}.",
            "Give one of these.",
        )
    if "@" in parts.netloc or ":" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"output.path must be {parts.scheme}://bucket/path and nothing more, but holds credentials, a port, `?` or "
            "`#`.",
            "Put endpoint and credentials into the environment.",
        )
    segments = parts.path.strip("/").split("/") if parts.path.strip("/") else []
    if not parts.netloc or any(segment in ("", ".", "..") for segment in segments):
        raise ConfigError(
            f"output.path must be {parts.scheme}://bucket/path with plain names, but is {url!r}.", "Write it so."
        )
    return "/".join([f"{parts.scheme}://{parts.netloc}", *segments])


def _check_endpoints() -> None:
    """Refuse endpoints that are no URL; the library would not raise an error but abort."""
    for variable in ENDPOINTS:
        value = os.environ.get(variable)
        if value and not _is_http_url(value):
            raise ConfigError(
                f"{variable} in the environment must be as https://host:port, but is {value!r}.",
                "Write it so, or unset it.",
            )


def _is_http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    is_plain = value.isascii() and value.isprintable() and " " not in value
    return is_plain and parts.scheme in ("http", "https") and bool(parts.hostname)


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300].rstrip(". ")
