"""A few batches of a job, done in this process and thrown away: what a replica on this machine takes for a row.

Batches double in size until one is long enough or as large as a shard, because larger ones are faster per row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipeline.plan import Plan
from pipeline.shard import NO_ROWS, EngineMaker, Shard, Worker, make_engine, make_part, open_worker
from pipeline.storage import Folder

FIRST_ROWS = 8
ENOUGH_S = 10.0


class Trial(NamedTuple):
    """A batch: input rows, seconds from reading to the bytes of a part, tokens generated and those bytes."""

    rows: int
    seconds: float
    tokens: int
    part_bytes: int


def calibrate(
    plan: Plan,
    folder: Folder,
    engine_maker: EngineMaker = make_engine,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Trial]:
    """Trials of growing size, after one that is not counted because everything is new then.

    Raises:
        ModelError: the model cannot be loaded.
        InputError: the input cannot be read.
    """
    worker = open_worker(plan.setup(folder), engine_maker)
    _try(worker, 0, min(2, plan.dataset.num_rows), clock)
    trials: list[Trial] = []
    for lo, hi in _ranges(plan):
        trials.append(_try(worker, lo, hi, clock))
        if trials[-1].seconds >= ENOUGH_S:
            break
    return trials


def _ranges(plan: Plan) -> Iterator[tuple[int, int]]:
    """Ranges of the input of 8, 16, 32 ... rows up to a shard's, spread over it."""
    largest = min(plan.shard_rows, plan.dataset.num_rows)
    rows, index = min(FIRST_ROWS, largest), 0
    while True:
        lo = (index * plan.dataset.num_rows // 5) % (plan.dataset.num_rows - rows + 1)
        yield lo, lo + rows
        if rows == largest:
            return
        rows, index = min(2 * rows, largest), index + 1


def _try(worker: Worker, lo: int, hi: int, clock: Callable[[], float]) -> Trial:
    start = clock()
    part = make_part(Shard("trial", lo, hi), worker, NO_ROWS)
    return Trial(hi - lo, clock() - start, part.generated_tokens, len(part.unpublished or b""))


def device() -> str:
    """What a replica in this process would run on: `cpu`, or the name of the GPU."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
