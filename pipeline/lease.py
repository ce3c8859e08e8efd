"""One driver to an output folder at a time, so that two do not do the same work twice.

A driver keeps a lease, a small file in `_tmp/` which it rewrites every 15 s and removes in the end. Whoever finds one
is refused, unless its driver is gone: known at once where it ran on this machine and its process has ended, else by
watching the file for 60 s and seeing no change, for which no two clocks need agree. The next lease has the next number,
and of several that want it one gets it. Only effort depends on all this: files are published once, whoever drives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from pipeline.errors import InUseError, StorageError
from pipeline.storage import Folder

RENEWAL_S = 15.0
EXPIRY_S = 60.0
POLL_S = 5.0
KEY = re.compile(r"_tmp/driver-(\d{5,})\.json")

log = logging.getLogger("batchgen")


@dataclass(frozen=True, slots=True)
class Driver:
    """A process that drives a run.

    Attributes:
        host: for people, and part of `place`.
        place: where its `pid` means this process: host, boot and namespace of pids.
        pid: of the process.
        started: clock ticks from boot to its start, so that a pid used again is not taken for it; None if unknown.
        since: when it took the lease.
        token: unlike that of any other lease.
    """

    host: str
    place: str
    pid: int
    started: int | None
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def has_ended(self, place: str) -> bool | None:
        """Whether the process has ended, as seen from `place`; None where that cannot be seen."""
        if self.place != place or self.started is None:
            return None
        return start_of(self.pid) != self.started


@dataclass(frozen=True, slots=True)
class Lease:
    """A driver's claim to a folder, the number of it, and how often it was renewed."""

    number: int
    driver: Driver
    renewals: int = 0

    @property
    def key(self) -> str:
        """Where it lies."""
        return f"_tmp/driver-{self.number:05d}.json"

    @property
    def document(self) -> bytes:
        """What lies there."""
        return json.dumps({"driver": asdict(self.driver), "renewals": self.renewals}).encode()


@contextlib.contextmanager
def hold(folder: Folder, wait: Callable[[float], None] = time.sleep) -> Iterator[Callable[[], None]]:
    """Hold the folder, which must be prepared, for as long as the context is open.

    Yields:
        A function that raises InUseError if another driver has taken the folder over.

    Raises:
        InUseError: another driver holds it.
    """
    keeper = _Keeper(folder, acquire(folder, this_driver(), wait))
    keeper.start()
    try:
        yield keeper.check
    finally:
        keeper.end()
        with contextlib.suppress(StorageError):  # found and taken over by the next driver then
            _release(folder, keeper.lease)


def acquire(folder: Folder, me: Driver, wait: Callable[[float], None]) -> Lease:
    """The lease of a folder, once its last holder is known to be gone.

    Raises:
        InUseError: a driver that is alive holds it.
    """
    while True:
        lease = Lease(wait_until_free(folder, me.place, wait), me)
        try:
            stored = folder.publish(lease.key, lease.document)
        except StorageError:
            _withdraw(folder, lease)
            raise
        if stored == hashlib.sha256(lease.document).hexdigest():
            return lease


def wait_until_free(folder: Folder, place: str, wait: Callable[[float], None]) -> int:
    """Make sure that nobody holds the folder; takes up to 60 s where that cannot be seen from here.

    Returns:
        The number of the next lease.

    Raises:
        InUseError: a driver that is alive holds it.
    """
    watched, waited_s = None, 0.0
    while (lease := latest(folder)) is not None:
        has_ended = lease.driver.has_ended(place)
        if has_ended is False or (has_ended is None and watched not in (None, lease)):
            raise InUseError(
                f"output folder {folder.name} is being worked on by {lease.driver}.",
                "Wait until it is done, or stop it and run the same command again.",
            )
        if has_ended or waited_s >= EXPIRY_S:
            why = "has ended" if has_ended else f"has not renewed its lease for {EXPIRY_S:g} s"
            log.warning("%s is free: %s, which held it, %s", folder.name, lease.driver, why)
            break
        if watched is None:
            log.warning("%s holds %s; watching for up to %g s if it is alive", lease.driver, folder.name, EXPIRY_S)
        watched = lease
        wait(POLL_S)
        waited_s += POLL_S
    return lease.number + 1 if lease else 1


def renew(folder: Folder, mine: Lease) -> Lease:
    """My lease, renewed.

    Raises:
        InUseError: another driver has taken the folder over.
    """
    holder = latest(folder)
    if holder is not None and holder.driver != mine.driver:
        raise InUseError(
            f"output folder {folder.name} was taken over by {holder.driver}, because this driver had not renewed its "
            f"lease for {EXPIRY_S:g} s. All finished parts are kept.",
            "Leave the rest to the other one.",
        )
    renewed = replace(mine, renewals=mine.renewals + 1)
    folder.replace(renewed.key, renewed.document)
    return renewed


def latest(folder: Folder) -> Lease | None:
    """The lease that counts, if there is any."""
    for key in reversed(lease_keys(folder)):
        document = folder.read(key)
        if document is not None:
            return _parsed(key, document)
    return None


def lease_keys(folder: Folder) -> list[str]:
    """Keys of all leases, oldest first."""
    return [key for key in folder.list_keys("_tmp") if KEY.fullmatch(key)]


def this_driver() -> Driver:
    """The driver that this process is."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Driver(socket.gethostname(), this_place(), os.getpid(), start_of(os.getpid()), now, uuid4().hex)


def this_place() -> str:
    """Host, boot and namespace of pids; processes of one place see each other under these pids."""
    boot, namespace = "", ""
    with contextlib.suppress(OSError):  # no Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {namespace}"


def start_of(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None if it has ended, or this is no Linux."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else int(fields[18])  # see proc(5): state, starttime


def _parsed(key: str, document: bytes) -> Lease:
    """A lease as stored; one that is damaged counts as that of an unknown driver, and may be watched."""
    number = int(key.removeprefix("_tmp/driver-").removesuffix(".json"))
    try:
        values = json.loads(document)
        return Lease(number, Driver(**values["driver"]), values["renewals"])
    except (ValueError, LookupError, TypeError):
        digest = hashlib.sha256(document).hexdigest()
        return Lease(number, Driver("an unknown host", "", 0, None, "an unknown time", digest))


def _withdraw(folder: Folder, mine: Lease) -> None:
    """Remove a lease that may be stored although that failed; it would lock out this process itself."""
    with contextlib.suppress(StorageError):
        if folder.read(mine.key) == mine.document:
            folder.remove(mine.key)


def _release(folder: Folder, mine: Lease) -> None:
    for key in lease_keys(folder):
        if key <= mine.key:
            folder.remove(key)


class _Keeper(threading.Thread):
    """Renews a lease in the background."""

    def __init__(self, folder: Folder, lease: Lease) -> None:
        super().__init__(name="batchgen-lease", daemon=True)
        self.folder, self.lease = folder, lease
        self._is_over = threading.Event()
        self._lost: InUseError | None = None

    def run(self) -> None:
        while not self._is_over.wait(RENEWAL_S):
            try:
                self.lease = renew(self.folder, self.lease)
            except InUseError as error:
                self._lost = error
                return
            except StorageError as error:
                log.warning("the lease could not be renewed: %s", error)

    def check(self) -> None:
        """Raise InUseError if the folder was taken over."""
        if self._lost is not None:
            raise self._lost

    def end(self) -> None:
        """Renew no more; a renewal that hangs is left behind."""
        self._is_over.set()
        self.join(timeout=POLL_S)
