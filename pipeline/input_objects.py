"""Input files in an object store: found, looked at, and read like files on a disk, a range at a time.

Paths are URLs, `s3://bucket/key`. Nothing is copied to a disk; what is read lies in memory as long as it is used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
from collections.abc import Iterator
from typing import Any

import obstore
from obstore.exceptions import BaseError

from pipeline.errors import InputError, StorageError
from pipeline.object_store import PATIENT, REFUSED, SCHEMES, checked, connect, first_line

BUFFER_BYTES = 1 << 20  # of a request
SETTINGS = ("AWS_", "AZURE_", "GOOGLE_")  # how variables begin that say how to reach a store

_URL = re.compile(rf"({'|'.join(SCHEMES)})://")


def is_url(path: str) -> bool:
    """Whether a path means an object."""
    return _URL.match(path) is not None


def find(url: str) -> tuple[list[str], bool]:
    """URLs of the objects that `input.path` means, sorted, and whether it names them itself.

    It is an object, a folder, or a pattern in which `*` stands for any name or part of one, `**/` for any folders;
    names that begin with a dot match none. Empty objects are left out: some tools mark folders by them.

    Raises:
        ConfigError: the URL, or the environment, cannot be used.
        InputError: nothing is there.
    """
    store, bucket, key = _reached(checked(url, "input.path"))
    folder = key.partition("*")[0].rpartition("/")[0] if "*" in key else key
    with _explained(url):
        pages = obstore.list(store, prefix=folder or None)
        keys = sorted(entry["path"] for page in pages for entry in page if entry["size"])
        if key and not keys:
            with contextlib.suppress(FileNotFoundError):
                obstore.head(store, key)
                return [f"{bucket}/{key}"], True
    if "*" in key:
        pattern = re.compile(re.escape(key).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*"))
        keys = [found for found in keys if pattern.fullmatch(found) and "/." not in f"/{found}"[len(folder) :]]
    if not keys:
        raise InputError(f"`input.path` is {url}, but there is no such object or folder.", "Look up its name.")
    return [f"{bucket}/{found}" for found in keys], "*" in key


def stamp(url: str) -> tuple[int, int, int]:
    """Size in bytes, when the object was stored in ns, and a number of its ETag."""
    store, _, key = _reached(url)
    with _explained(url):
        found = obstore.head(store, key)
    tag = hashlib.sha256(str(found["e_tag"]).encode()).digest()
    return found["size"], int(found["last_modified"].timestamp() * 1e9), int.from_bytes(tag[:6], "big")


def open_object(url: str) -> io.BufferedReader:
    """A stream of the bytes of an object, which can be read from any place."""
    return io.BufferedReader(_Object(url), BUFFER_BYTES)


class _Object(io.RawIOBase):
    """Reads by requests for ranges."""

    def __init__(self, url: str) -> None:
        self.url, self.position, self.size = url, 0, stamp(url)[0]
        self.store, _, self.key = _reached(url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        end = min(self.position + len(buffer), self.size)
        if end <= self.position:
            return 0
        with _explained(self.url):
            data = memoryview(obstore.get_range(self.store, self.key, start=self.position, end=end))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _reached(url: str) -> tuple[Any, str, str]:
    """The store, the URL of the bucket, and the key."""
    scheme, _, path = url.partition("://")
    bucket, _, key = path.partition("/")
    settings = frozenset(item for item in os.environ.items() if item[0].startswith(SETTINGS))
    return _store(f"{scheme}://{bucket}", settings), f"{scheme}://{bucket}", key


@functools.lru_cache(maxsize=16)
def _store(url: str, _settings: frozenset[tuple[str, str]]) -> Any:
    """One connection in a process as long as the environment is the same: a new one asks for a role's token again."""
    return connect(url, "input.path", PATIENT)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn an error of the store into one that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{url} (input.path) cannot be opened: there is no such object.", "Put it back.") from error
    except REFUSED as error:
        raise InputError(
            f"{url} (input.path) cannot be opened: {first_line(error)}.",
            "Set credentials in the environment that may get and list objects there.",
        ) from error
    except BaseError as error:
        raise StorageError(
            f"cannot read {url}: {first_line(error)}.",
            "Check the endpoint and the network, then run the same command again; finished parts are kept.",
        ) from error
