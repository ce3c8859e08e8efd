"""Commands in processes of their own, which cannot run away from the test that reads what they say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def started(command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """A command from the root, in a session of its own.

    Its log is a pipe of 4 KiB that is read byte by byte: a run that is some fifty shards ahead of the test waits for
    it, so one of more shards is not over when a signal comes at a line of its log, however slow the test is.
    """
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pipesize=4096,
        cwd=ROOT,
        env=os.environ | environment,
        start_new_session=True,
    )


def wait_for_line(process: subprocess.Popen[bytes], words: str) -> str:
    """Read the log up to a line with these words."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line.decode())
        if words in said[-1]:
            return said[-1]
    raise AssertionError(f"the command ended without saying {words!r}: {said}")


def last_words(process: subprocess.Popen[bytes]) -> str:
    """The rest of the log, once the command has ended."""
    return process.communicate()[1].decode()
