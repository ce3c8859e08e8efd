"""The command `batchgen`: arguments in, one call, exit code out.

Exit codes: 0 done, 2 bad config or input, 3 past max_error_rate, 4 the cluster or the storage failed, another driver
holds the folder, or SIGTERM, 5 verify or replay found something wrong, 6 `status --exit-status` while a run may go on,
130 Ctrl-C. After 4 and 130 the same command goes on where this one stopped.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline import __version__
from pipeline.cli_compare import compare
from pipeline.cli_complete import into_folder, only_strategy, run_folder, strategy_names
from pipeline.cli_help import Sections, command
from pipeline.cli_look import head, preview, show, tokenize
from pipeline.cli_read import card, explode
from pipeline.cli_shared import (
    EXIT_WRONG,
    STOPPED_RUN,
    echo_json,
    exit_codes,
    may_replace,
    most_prompts,
    texts,
    waiting,
    with_output,
)
from pipeline.cli_start import completion, init, schema
from pipeline.cli_watch import plan, status
from pipeline.errors import ErrorRateError

if TYPE_CHECKING:  # heavy imports happen inside the commands, so that --help is quick
    from pipeline.job import Progress, Run


@click.group(
    cls=Sections,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples="""
    batchgen init prompts.parquet
    batchgen run jobs/demo.yaml --output out/demo
    batchgen show out/demo --row-id skip-00
    batchgen next "I skip across the"
    """,
)
@click.version_option(__version__)
def main() -> None:
    """Prompts in as Parquet, completions out as Parquet."""


@command(
    "Make",
    """
    batchgen run jobs/demo.yaml
    batchgen run jobs/demo.yaml --output out/hot --set strategies.nucleus.temperature=1.3
    RAY_ADDRESS=10.0.0.5:6379 batchgen run job.yaml
    """,
)
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.yaml")
@into_folder
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the job file.")
@click.option("--log-json", is_flag=True, help="Log as JSON, one object per line.")
def run(job_file: Path, output: str | None, overrides: tuple[str, ...], log_json: bool) -> None:
    """Do a job, or what is left of it.

    Uses the Ray cluster of RAY_ADDRESS where that is set, else the cores and GPUs of this machine. Run the same command
    again to resume: finished parts are kept.
    """
    with exit_codes(STOPPED_RUN):
        from pipeline import job
        from pipeline.cluster import RayExecutor
        from pipeline.jobfile import load_job
        from pipeline.submitted import check_output

        loaded = load_job(job_file, with_output(overrides, output))
        check_output(loaded.output.path, os.environ)
        with _progress(log_json) as progress:
            finished = job.run(loaded, RayExecutor(loaded.run), progress)
        _summarise(finished)
        if finished.error_rate > loaded.run.max_error_rate:
            raise ErrorRateError(
                f"{finished.error_rate:.1%} of the rows are errors, more than run.max_error_rate "
                f"({loaded.run.max_error_rate:.1%}). All results are kept.",
                "See columns error_type and error_message; `batchgen retry-errors` computes error rows again.",
            )


@command(
    "Look",
    """
    batchgen next "I skip across the" --model openai-community/gpt2
    batchgen next "It was a dark and stormy" "It was a sunny and bright"
    batchgen next --ids "40 14267 1973 262" -k 50 --json --model ./my-checkpoint
    batchgen next - < prompts.txt
    """,
    name="next",
)
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Candidates per prompt.")
@click.option("--model", default="demo", show_default=True, help="Hub id, local folder, or `demo`.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True, help="Number format."
)
@click.option("--ids", metavar="IDS", multiple=True, help="A prompt as token ids; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with exact numbers and bytes.")
def next_(prompts: tuple[str, ...], k: int, model: str, dtype: str, ids: tuple[str, ...], as_json: bool) -> None:
    """Show what may come next, and compare prompts.

    PROMPT - reads prompts from stdin, one per line. Several prompts are compared with the first: the candidates they
    share, and how far the distributions are apart over the whole vocabulary.
    """
    with exit_codes():
        with waiting(f"loading {model}"):
            from pipeline.next_screen import print_answer
            from pipeline.next_tokens import next_tokens, parse_ids, to_document

            answer = next_tokens([*texts(prompts), *map(parse_ids, ids)], model=model, dtype=dtype, k=k)
        if as_json:
            click.echo(json.dumps(to_document(answer)))
        else:
            print_answer(answer)


@command(
    "Operate",
    """
    batchgen gc out/demo
    batchgen gc out/demo --yes
    """,
)
@run_folder
@click.option("--yes", is_flag=True, help="Delete them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def gc(folder: str, yes: bool, as_json: bool) -> None:
    """List or delete what dead attempts left in an output folder.

    It lies in _tmp/. Refused while a run is under way there. Nothing outside _tmp/ is touched.
    """
    with exit_codes():
        from pipeline import leftovers
        from pipeline.storage import open_folder

        found = (leftovers.collect if yes else leftovers.find)(open_folder(folder))
        if as_json:
            echo_json({"leftovers": found, "deleted": yes})
            return
        for key in found:
            click.echo(key)
        said = "deleted" if yes else "to delete with --yes"
        click.echo(f"{len(found)} leftovers {said}" if found else "no leftovers", err=True)


@command(
    "Compare and check",
    """
    batchgen verify out/demo
    batchgen verify out/demo --rescore 100
    """,
)
@run_folder
@click.option("--rescore", type=click.IntRange(min=0), default=0, metavar="N", help="Ask the model again for N rows.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def verify(folder: str, rescore: int, as_json: bool) -> None:
    """Prove that a run's folder, finished or not, is whole and true.

    Exits with 5 if something is wrong. Docs: docs/verify.md.
    """
    with exit_codes():
        from pipeline.verify import verify as proof
        from pipeline.verify_screen import print_report

        report = proof(folder, rescore)
        if as_json:
            click.echo(json.dumps(report.to_json(), ensure_ascii=False))
        else:
            print_report(report)
        if not report.is_proven:
            sys.exit(EXIT_WRONG)


@command(
    "Compare and check",
    """
    batchgen replay out/demo --row-id skip-00
    batchgen replay out/demo --row-id skip-00 --strategy nucleus --sample 1
    """,
)
@run_folder
@click.option("--row-id", required=True, metavar="ID", help="Of the row, as in column row_id.")
@only_strategy
@click.option("--sample-index", "--sample", "sample", type=click.IntRange(min=0), metavar="N", help="Only this sample.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def replay(folder: str, row_id: str, strategy: str | None, sample: int | None, as_json: bool) -> None:
    """Generate a row of a run again and say what differs.

    Exits with 5 if something differs that the run's determinism does not allow. Docs: docs/verify.md.
    """
    with exit_codes():
        from pipeline.replay import DIFFERS
        from pipeline.replay import replay as again
        from pipeline.verify_screen import print_verdicts

        verdicts = again(folder, row_id, strategy, sample)
        if as_json:
            rows = [{**verdict._asdict(), "difference": verdict.difference._asdict()} for verdict in verdicts]
            echo_json({"row_id": row_id, "completions": rows})
        else:
            print_verdicts(verdicts)
        if any(verdict.result == DIFFERS for verdict in verdicts):
            sys.exit(EXIT_WRONG)


@command(
    "Look",
    """
    batchgen report out/demo
    batchgen report out/demo -o demo.html --prompts 1000 --row-id skip-00
    """,
)
@run_folder
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="report.html", show_default=True, metavar="FILE"
)
@most_prompts
@click.option("--row-id", "row_ids", metavar="ID", multiple=True, help="Show this prompt in any case; may be repeated.")
@click.option(
    "--baseline",
    metavar="NAME",
    shell_complete=strategy_names,
    help="Strategy to compare with; default: the first greedy one.",
)
@may_replace
def report(
    folder: str, output: Path, num_prompts: int, row_ids: tuple[str, ...], baseline: str | None, force: bool
) -> None:
    """Write a run as one HTML file that opens anywhere, offline.

    Finished or not. Metrics per strategy over all rows, and completions side by side with every token coloured by
    rank, probability or entropy. Docs: docs/report.md.
    """
    with exit_codes():
        from pipeline.report import write_report

        written = write_report(
            folder, output, num_prompts=num_prompts, row_ids=row_ids, baseline=baseline, may_replace=force
        )
        click.echo(written)


@command(
    "Operate",
    """
    batchgen retry-errors out/demo
    batchgen retry-errors out/demo --error-type logits_not_finite
    """,
    name="retry-errors",
)
@run_folder
@click.option("--error-type", "error_types", metavar="TYPE", multiple=True, help="Only errors of this type.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def retry_errors(folder: str, error_types: tuple[str, ...], as_json: bool) -> None:
    """Compute the error rows of a finished run again.

    Results go to OUT/retries/0001 (then 0002, ...), beside data/, which stays as it is. Run the same command again to
    resume. Docs: docs/verify.md.
    """
    with exit_codes(STOPPED_RUN):
        from pipeline import retry
        from pipeline.cluster import RayExecutor
        from pipeline.verify_screen import print_outlook, print_retried

        outlook = retry.look(folder, error_types)
        if outlook is None:
            nothing = {"retry": None, "totals": None, "errors_left": 0}
            echo_json(nothing) if as_json else click.echo(f"no error rows are left, nothing to do · {folder}")
            return
        print_outlook(outlook)
        limits = outlook.run.job.run
        with _progress() as progress:
            retried = retry.carry_out(outlook, RayExecutor(limits), progress)
        if as_json:
            document = {"retry": retried.folder, "totals": retried.manifest["totals"]}
            echo_json(document | {"errors_left": retried.num_errors})
        else:
            print_retried(retried)
        if retried.num_errors > limits.max_error_rate * outlook.run.num_output_rows:
            raise ErrorRateError(
                f"that is still more than run.max_error_rate ({limits.max_error_rate:.1%}).",
                "See columns error_type and error_message of what is left.",
            )


@contextmanager
def _progress(as_json: bool = False) -> Iterator[Progress]:
    """A bar on a terminal, else log lines on stderr."""
    from pipeline.json_logs import JsonLines
    from pipeline.terminal import Bar, ShardLines

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    with_bar = sys.stderr.isatty() and not as_json
    logging.getLogger("batchgen").setLevel(logging.WARNING if with_bar else logging.INFO)
    if not with_bar:
        yield ShardLines()
        return
    bar = Bar()
    try:
        yield bar
    finally:
        bar.stop()


def _summarise(finished: Run) -> None:
    """What came out, where it lies, and how to look at it."""
    from pipeline.status_screen import spent
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
    if said := spent(finished.manifest["timings"]):
        click.echo(said)
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


for each in (
    *(init, preview, plan, run),
    *(head, show, report, next_, tokenize),
    *(compare, verify, replay),
    *(explode, card),
    *(status, retry_errors, gc, schema, completion),
):
    main.add_command(each)


if __name__ == "__main__":
    main()
