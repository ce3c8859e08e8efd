"""How a peer is driven: a line of JSON in with the work, then a line in and a line out for every time it is done.

Nothing but these answers reaches stdout; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypedDict


class Work(TypedDict):
    """What a process is to do.

    Attributes:
        checkpoint: folder with `config.json` and safetensors.
        dtype: float32 or bfloat16.
        cores: numbers of the cores to run on, one thread on each.
        batch: most rows decoded together.
        device: `cpu` or `cuda`.
        prompts: token ids.
        limits: new tokens of each prompt; nothing else ends a row.
        options: what only this peer understands.
    """

    checkpoint: str
    dtype: str
    cores: list[int]
    batch: int
    device: str
    prompts: list[list[int]]
    limits: list[int]
    options: dict[str, Any]


Once = Callable[[], int]  # does the work and counts the new tokens
Prepare = Callable[[Work], Once]


def batches(work: Work) -> list[list[int]]:
    """Rows in batches, sorted by the length of the prompt, longest first: a static batch is padded least so."""
    order = sorted(range(len(work["prompts"])), key=lambda row: -len(work["prompts"][row]))
    return [order[start : start + work["batch"]] for start in range(0, len(order), work["batch"])]


def serve(prepare: Prepare, *libraries: str) -> None:
    """Read the work, get ready, answer with the versions of the libraries, and do it once per further line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work: Work = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, work["cores"])
    once = prepare(work)
    print(
        json.dumps({"python": platform.python_version()} | {name: version(name) for name in libraries}),
        file=answers,
        flush=True,
    )
    for _ in sys.stdin:
        print(json.dumps({"num_tokens": once()}), file=answers, flush=True)
