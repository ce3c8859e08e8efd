"""A hook for tests: this process is killed at a named step of the publishing of a file.

`BATCHGEN_FAULT=data/*:linked:2` kills it, as `kill -9` would, when a file whose key matches the pattern comes to the
step for the second time in this process; keys are those of the output folder, such as `_plan.json`. Unset, nothing
happens.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from fnmatch import fnmatchcase

VARIABLE = "BATCHGEN_FAULT"
STEPS = ("before", "written", "synced", "linked", "published")  # an object store knows the first and the last

_reached: Counter[str] = Counter()


def reach(key: str, step: str) -> None:
    """A file comes to a step; the process may end here."""
    fault = os.environ.get(VARIABLE)
    if fault is None:
        return
    pattern, wanted, count = fault.rsplit(":", 2)
    assert wanted in STEPS, f"{VARIABLE} is {fault!r}, but the steps are {', '.join(STEPS)}"
    if step == wanted and fnmatchcase(key, pattern):
        _reached[fault] += 1
        if _reached[fault] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
