"""A Python of its own for the blocks of a page, which share their names.

Not the Python of the tests: readers import `ray.data` and `datasets`, which change how pyarrow reads in a process.
As a program: for each line `[page, line, text]` on stdin it runs the text and answers `[printed, traceback or null]`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


class Notebook:
    """The process; starts at once, in a folder."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-m", __name__]
        env = {**env, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    def run(self, page: str, line: int, text: str) -> tuple[str, str | None]:
        """What the block printed, and the traceback if it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([page, line, text]) + "\n")
        self.process.stdin.flush()
        printed, failure = json.loads(self.process.stdout.readline())
        return printed, failure

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    names: dict[str, Any] = {"__name__": "__main__"}
    for request in sys.stdin:
        page, line, text = json.loads(request)
        printed, failure = io.StringIO(), None
        with redirect_stdout(printed):
            try:
                exec(compile("\n" * line + text, page, "exec"), names)
            except Exception:
                failure = traceback.format_exc()
        print(json.dumps([printed.getvalue(), failure]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
