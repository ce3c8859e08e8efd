"""The commands that look at a run from outside: what it will take, and how it stands."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli_complete import into_folder, run_folder
from pipeline.cli_help import command
from pipeline.cli_shared import EXIT_STOPPED, echo_json, exit_codes, with_output
from pipeline.errors import ErrorRateError

if TYPE_CHECKING:
    from pipeline.status import Observer, Status

EXIT_UNFINISHED = 6


@command(
    "Make",
    """
    batchgen plan jobs/demo.yaml
    batchgen plan jobs/demo.yaml --calibrate --set run.replicas=4
    """,
)
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.yaml")
@into_folder
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the job file.")
@click.option("--sample", type=click.IntRange(min=1), default=1000, show_default=True, help="Input rows to look at.")
@click.option("--calibrate", "is_calibrating", is_flag=True, help="Do a few batches here to estimate time and size.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def plan(
    job_file: Path, output: str | None, overrides: tuple[str, ...], sample: int, is_calibrating: bool, as_json: bool
) -> None:
    """Say what a job will take, and refuse what would fail.

    Nothing is started or written. Docs: docs/watching.md.
    """
    with exit_codes():
        from pipeline import calibration
        from pipeline.forecast import calibrated, forecast
        from pipeline.job import checked_output
        from pipeline.jobfile import load_job
        from pipeline.plan import make_plan
        from pipeline.plan_screen import print_forecast

        planned = make_plan(load_job(job_file, with_output(overrides, output)))
        folder = checked_output(planned)
        found = forecast(planned, folder, sample)
        if is_calibrating:
            found = calibrated(found, calibration.device(), calibration.calibrate(planned, folder))
        echo_json(found.to_json()) if as_json else print_forecast(found)


@command(
    "Operate",
    """
    batchgen status out/demo
    batchgen status s3://bucket/out --watch --exit-status
    """,
)
@run_folder
@click.option("--watch", is_flag=True, help="Look again and again, until nobody works on the run any more.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=5, show_default=True, help="Seconds between looks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document for each look.")
@click.option("--exit-status", is_flag=True, help="Exit with 3, 4 or 6 unless the run is finished.")
def status(folder: str, watch: bool, interval: float, as_json: bool, exit_status: bool) -> None:
    """Say how a run stands, from its output folder alone.

    With --exit-status: 0 finished, 3 past run.max_error_rate, 4 nobody works on it (run its job again to resume),
    6 somebody may work on it. Docs: docs/watching.md.
    """
    with exit_codes():
        from pipeline.status import observe
        from pipeline.status_screen import follow, print_status

        observer = observe(folder)
        if watch:
            seen = follow(_looks(observer, interval), (lambda look: echo_json(look.to_json())) if as_json else None)
        else:
            seen = observer.look()
            echo_json(seen.to_json()) if as_json else print_status(seen)
        if exit_status:
            sys.exit(_exit_status(seen))


def _looks(observer: Observer, interval_s: float) -> Iterator[Status]:
    """One look after another, as long as somebody may work on the run."""
    while True:
        look = observer.look()
        yield look
        if look.state not in ("in progress", "quiet"):
            return
        time.sleep(interval_s)


def _exit_status(seen: Status) -> int:
    if seen.is_past_max_error_rate and seen.state in ("finished", "failed"):
        return ErrorRateError.exit_code
    return {"finished": 0, "stopped": EXIT_STOPPED, "failed": ErrorRateError.exit_code}.get(seen.state, EXIT_UNFINISHED)
