"""The command `batchgen`: arguments in, one call, exit code out.

Exit codes: 0 done, 2 bad config or input, 3 finished past max_error_rate, 4 the cluster or storage failed, 130 Ctrl-C.
After 4 and 130 the same command goes on where this one stopped.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline import __version__
from pipeline.errors import BatchgenError

if TYPE_CHECKING:  # heavy imports happen inside the commands, so that --help is quick
    from pipeline.job import Progress, Run

EXIT_TOO_MANY_ERRORS = 3
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Prompts in as Parquet, completions out as Parquet.

    \b
    batchgen run jobs/demo.yaml --output out/demo
    batchgen head out/demo
    """


@main.command()
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.yaml")
@click.option("--output", metavar="DIR", help="Output folder, in place of output.path.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the job file.")
def run(job_file: Path, output: str | None, overrides: tuple[str, ...]) -> None:
    """Do a job, or what is left of it.

    \b
    batchgen run jobs/demo.yaml
    batchgen run jobs/demo.yaml --output out/hot --set strategies.nucleus.temperature=1.3
    RAY_ADDRESS=10.0.0.5:6379 batchgen run job.yaml

    Uses the Ray cluster of RAY_ADDRESS where that is set, else the cores and GPUs of this machine. Run the same command
    again to resume: finished parts are kept.
    """
    with _exit_codes():
        from pipeline import job
        from pipeline.cluster import RayExecutor
        from pipeline.jobfile import load_job

        output_override = [f"output.path={json.dumps(output, ensure_ascii=False)}"] if output is not None else []
        loaded = load_job(job_file, [*overrides, *output_override])
        with _progress() as progress:
            finished = job.run(loaded, RayExecutor(loaded.run), progress)
        _summarise(finished)
        if finished.error_rate > loaded.run.max_error_rate:
            click.echo(
                f"error: {finished.error_rate:.1%} of the rows are errors, more than run.max_error_rate "
                f"({loaded.run.max_error_rate:.1%}). All results are kept; see columns error_type and error_message.",
                err=True,
            )
            sys.exit(EXIT_TOO_MANY_ERRORS)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="OUT")
@click.option("-n", "num_rows", type=click.IntRange(min=1), default=12, show_default=True, help="Rows to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, with exact text.")
def head(folder: Path, num_rows: int, as_json: bool) -> None:
    """Show the first completions of a run, finished or not.

    \b
    batchgen head out/demo -n 20
    """
    with _exit_codes():
        from pipeline.preview import first_rows
        from pipeline.terminal import print_table

        rows = first_rows(folder, num_rows)
        if as_json:
            for row in rows:
                click.echo(json.dumps(row, ensure_ascii=False))
            return
        cells = [
            [row["row_id"], row["strategy"], row["sample_index"], row["prompt"], row["text"], row["ended_by"]]
            for row in rows
        ]
        print_table(["row_id", "strategy", "#", "prompt", "text", "ended by"], cells, wide=("prompt", "text"))


@main.command()
def schema() -> None:
    """Print the JSON Schema of the job file, for editors.

    \b
    batchgen schema > job.schema.json
    # yaml-language-server: $schema=job.schema.json     (first line of the job file)
    """
    from pipeline.jobfile import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors that are ours become one message and an exit code; others are bugs and keep their traceback."""
    try:
        yield
    except BatchgenError as error:
        text = str(error)
        click.echo(text if text.startswith("error:") else f"error: {text}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("\nstopped. Finished parts are kept; run the same command again to resume.", err=True)
        sys.exit(EXIT_INTERRUPTED)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, else log lines on stderr."""
    from pipeline.terminal import Bar, ShardLines

    on_terminal = sys.stderr.isatty()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("batchgen").setLevel(logging.WARNING if on_terminal else logging.INFO)
    if not on_terminal:
        yield ShardLines()
        return
    bar = Bar()
    try:
        yield bar
    finally:
        bar.stop()


def _summarise(finished: Run) -> None:
    """What came out, where it lies, and how to look at it."""
    from pipeline.terminal import print_table

    totals, folder = finished.manifest["totals"], finished.folder
    said = (
        "already finished, nothing to do"
        if finished.was_finished
        else f"done in {finished.manifest['timings']['elapsed_s']:.0f} s"
    )
    click.echo(
        f"{said} · {totals['rows']:,} rows: {totals['ok']:,} ok, {totals['errors']:,} errors · "
        f"{totals['generated_tokens']:,} tokens · {folder}"
    )
    rows = [
        [
            name,
            f"{sums['rows']:,}",
            f"{sums['generated_tokens']:,}",
            ", ".join(f"{reason} {count:,}" for reason, count in sums["finish_reasons"].items()),
            ", ".join(f"{error} {count:,}" for error, count in sums["errors"].items()),
        ]
        for name, sums in finished.manifest["strategies"].items()
    ]
    print_table(["strategy", "rows", "tokens", "ended by", "errors"], rows)
    query = (
        "SELECT strategy, count(*) AS rows, sum(num_generated_tokens) AS tokens, "
        "exp(-sum(cumulative_logprob) / sum(num_generated_tokens)) AS perplexity "
        f"FROM '{folder}/data/*.parquet' GROUP BY strategy"
    )
    click.echo(f'query it: {shlex.quote(sys.executable)} -c "import duckdb; print(duckdb.sql(\\"{query}\\"))"')


if __name__ == "__main__":
    main()
