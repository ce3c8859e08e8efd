"""Jobs from Python: `run(Job(...))` does what `batchgen run` does and gives back the results.

    from pipeline import Job, run

    run(Job(model="demo", input={"path": "prompts.parquet"}, output={"path": "out"}, strategies=[...]))

`Job` takes the keys of the job file, by its rules and with its messages.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import config, job
from pipeline.config import InputConfig, ModelConfig, OutputConfig, RunConfig
from pipeline.jobfile import load_job, parse_job
from pipeline.notebook import NotebookBar, is_notebook
from pipeline.results import Results, open_run
from pipeline.shard import EngineMaker, make_engine
from pipeline.strategies import Frozen, Strategy
from pipeline.terminal import Bar


class Job(config.Job):
    """A job, key by key as in the job file; see README.md for all of them.

    Args:
        model: a name, or `{"name": ..., "revision": ..., "dtype": ...}`.
        input: `{"path": ..., "id_column": ..., "prompt_column": ..., ...}`.
        output: `{"path": ..., "top_k": ..., ...}`.
        strategies: `{"name": ..., "type": ..., ...}` each.
        strategy_columns: keys of strategies and the columns that set them.
        seed: of all sampling.
        run: `{"replicas": ..., "shard_rows": ..., ...}`.

    Raises:
        ConfigError: about everything that is wrong, each with its place and a way out.
    """

    def __init__(
        self,
        *,
        model: str | Mapping[str, Any] | ModelConfig,
        input: str | Mapping[str, Any] | InputConfig,
        output: str | Mapping[str, Any] | OutputConfig,
        strategies: Sequence[Mapping[str, Any] | Strategy],
        strategy_columns: Mapping[str, str] | None = None,
        seed: int = 0,
        run: Mapping[str, Any] | RunConfig | None = None,
        **unknown: Any,
    ) -> None:
        given = {
            "model": model,
            "input": input,
            "output": output,
            "strategies": strategies,
            "strategy_columns": strategy_columns or {},
            "seed": seed,
            "run": run or {},
        }
        parsed = parse_job({key: _plain(value) for key, value in {**given, **unknown}.items()})
        super().__init__(**{key: getattr(parsed, key) for key in type(parsed).model_fields})


def run(
    work: config.Job | Mapping[str, Any] | Path | str,
    *,
    has_ray: bool = True,
    has_progress: bool = True,
    engine_maker: EngineMaker = make_engine,
) -> Results:
    """Do a job, or what is left of it, and open its results.

    Args:
        work: a `Job`, a dict of the same keys, or the path of a job file.
        has_ray: on the Ray cluster of RAY_ADDRESS, or a local one; otherwise in this process, one shard after another.
        has_progress: whether a bar shows how far it is: in a notebook below the cell, in a terminal on stderr.
        engine_maker: makes each worker's engine; picklable.

    Raises:
        BatchgenError: with what to do; all published parts are kept, and the same call goes on.
    """
    loaded = _loaded(work)
    with _bar(has_progress) as bar:
        finished = job.run(loaded, _executor(loaded, has_ray), bar, engine_maker)
    return open_run(finished.folder)


def _loaded(work: config.Job | Mapping[str, Any] | Path | str) -> config.Job:
    match work:
        case config.Job():
            return work
        case Path() | str():
            return load_job(work)
        case _:
            return parse_job(dict(work))


def _executor(work: config.Job, has_ray: bool) -> job.Executor:
    if not has_ray:
        return job.here
    from pipeline.cluster import RayExecutor

    return RayExecutor(work.run)


@contextmanager
def _bar(has_progress: bool) -> Iterator[job.Progress | None]:
    """The bar for where this runs; none where nobody would see it."""
    if has_progress and is_notebook():
        yield NotebookBar()
    elif has_progress and sys.stderr.isatty():
        bar = Bar()
        try:
            yield bar
        finally:
            bar.stop()
    else:
        yield None


def _plain(value: Any) -> Any:
    """A value as a job file holds it."""
    match value:
        case Frozen():
            return value.model_dump(exclude_unset=True)
        case Mapping():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case _:
            return value
