"""What dead attempts left in an output folder: unfinished writes and leases in `_tmp/`. Runs never collect them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from pipeline.errors import InputError
from pipeline.lease import hold, lease_keys, this_place, wait_until_free
from pipeline.manifest import PLAN
from pipeline.storage import Folder

UNFINISHED = re.compile(r"_tmp/.+\.[0-9a-f]{32}")  # as `storage_local` names them


def find(folder: Folder, wait: Callable[[float], None] = time.sleep) -> list[str]:
    """Keys of all leftovers.

    Raises:
        InputError: the folder is not the output of a run.
        InUseError: a driver holds the folder, so that they may be in use.
    """
    if folder.read(PLAN) is None:
        raise InputError(f"{folder.name} holds no `{PLAN}`.", "Give the output folder of a run.")
    wait_until_free(folder, this_place(), wait)
    return [*_unfinished(folder), *lease_keys(folder)]


def collect(folder: Folder, wait: Callable[[float], None] = time.sleep) -> list[str]:
    """Remove the leftovers, and nothing else, while no driver can start; returns their keys."""
    found = find(folder, wait)
    if found:
        with hold(folder, wait):  # removes the leases of the dead with its own
            for key in _unfinished(folder):
                folder.remove(key)
    return found


def _unfinished(folder: Folder) -> list[str]:
    return [key for key in folder.list_keys("_tmp") if UNFINISHED.fullmatch(key)]
