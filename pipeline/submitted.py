"""Jobs that were submitted to a Ray cluster: what they may not do, and the line that scripts read. It knows no Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

from pipeline.errors import ConfigError

MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a submitted job
RESULTS = {
    0: "done",
    1: "bug",
    2: "config or input refused",
    3: "too many errors",
    4: "safe to run again",
    5: "something is wrong",
    130: "interrupted, safe to run again",
}


def check_output(path: str, environ: Mapping[str, str]) -> None:
    """Refuse an output that would be lost with the folder of a submitted job.

    Raises:
        ConfigError: `path` is relative, and this is such a job.
    """
    if MARK in environ and "://" not in path and not os.path.isabs(path):
        raise ConfigError(
            f"output.path must not be relative in a submitted job, but is {path!r}: it would lie in the job's working "
            f"directory, {os.getcwd()}, which Ray deletes.",
            "Use a URL such as s3://bucket/out, or an absolute path in a folder that all nodes share.",
        )


def told(command: Callable[[], object]) -> None:
    """Do a command and print, as the last line, how it ended: Ray itself tells submitters only 0 or 1.

    Raises:
        SystemExit: as the command does.
    """
    code = 1
    try:
        command()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        raise
    finally:
        line = {"exit_code": code, "result": RESULTS.get(code, "unknown")}
        print(f"BATCHGEN {json.dumps(line)}", flush=True)
