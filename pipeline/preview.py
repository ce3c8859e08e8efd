"""The first rows of a job, computed here and now: to see what a run would give before it is started.

The whole job is planned and checked as for a run; nothing is written, and Ray is not started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import Job
from pipeline.dataset import read
from pipeline.in_process import generated
from pipeline.plan import make_plan
from pipeline.recorded import Vocabulary
from pipeline.shard import EngineMaker, make_engine
from pipeline.storage import LocalFolder

Row = dict[str, Any]


class Preview(NamedTuple):
    """Output rows of the first input rows, and how many input rows there are in all."""

    rows: list[Row]
    vocabulary: Vocabulary
    num_input_rows: int


def preview(job: Job, num_rows: int, engine_maker: EngineMaker = make_engine) -> Preview:
    """Compute the first rows of a job.

    Args:
        job: as for a run; its output folder is not looked at.
        num_rows: most input rows.
        engine_maker: makes the engine.

    Raises:
        ConfigError, InputError, ModelError: whatever would make the run fail.
    """
    plan = make_plan(job)
    setup = plan.setup(LocalFolder(Path.cwd()))
    rows = read(plan.dataset, 0, min(num_rows, plan.dataset.num_rows))
    table = generated(rows, setup, plan.tokenizer, engine_maker(setup, plan.tokenizer))
    vocabulary = Vocabulary(plan.tokenizer.tokens, plan.tokenizer.token_bytes)
    return Preview(table.to_pylist(), vocabulary, plan.dataset.num_rows)
