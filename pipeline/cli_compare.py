"""The command compare: two runs, or two strategies of one, and an exit code for upgrade checks."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.cli_complete import RunFolder, strategy_names
from pipeline.cli_help import command
from pipeline.cli_shared import EXIT_WRONG, echo_json, exit_codes, may_replace, most_prompts

MAX_CHANGED, MAX_KL = 0.0, 0.001


@command(
    "Compare and check",
    """
    batchgen compare out/before out/after -o compare.html
    batchgen compare out/float32 out/bfloat16 --max-changed 0.1 --max-kl 0.01
    batchgen compare out/demo --strategies greedy,beam5
    """,
)
@click.argument("folders", nargs=-1, required=True, metavar="A [B]", type=RunFolder())
@click.option(
    "--strategies",
    metavar="A,B",
    shell_complete=strategy_names,
    help="Two strategies of one run, in place of a second run.",
)
@click.option("--max-changed", type=click.FloatRange(0, 1), metavar="SHARE", help="Of rows that may change.  [0]")
@click.option("--max-kl", type=click.FloatRange(0), metavar="NATS", help="Of a step that saw the same text.  [0.001]")
@click.option(
    "-n", "num_examples", type=click.IntRange(0, 20), default=3, show_default=True, help="Changed rows shown."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with exact numbers.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write a page that opens offline."
)
@most_prompts
@may_replace
def compare(
    folders: tuple[str, ...],
    strategies: str | None,
    max_changed: float | None,
    max_kl: float | None,
    num_examples: int,
    as_json: bool,
    output: Path | None,
    num_prompts: int,
    force: bool,
) -> None:
    """Compare two runs, or two strategies of one run, row by row.

    Exits with 5 if two runs differ by more than --max-changed or --max-kl; two strategies only where one of these is
    given. Docs: docs/compare.md.
    """
    with exit_codes():
        from pipeline import new_file
        from pipeline.compare import compare_runs, compare_strategies, to_document
        from pipeline.compare_screen import print_comparison, print_verdict, verdict
        from pipeline.report.comparison import write_comparison
        from pipeline.report.selection import ChangePicker
        from pipeline.results import open_run

        names = _asked(folders, strategies)
        if output is not None:
            new_file.check_free(output, may_replace=force)
        picker = ChangePicker(num_prompts)
        watch = picker.add if output is not None else None
        if strategies is None:
            first, second = map(open_run, folders)
            comparison = compare_runs(first, second, watch)
            max_changed = MAX_CHANGED if max_changed is None else max_changed
            max_kl = MAX_KL if max_kl is None else max_kl
        else:
            comparison = compare_strategies(open_run(folders[0]), names[0], names[1], watch)
        found = verdict(comparison, max_changed, max_kl)
        exit_code = EXIT_WRONG if found.beyond else 0
        if as_json:
            limits = {"max_changed": max_changed, "max_kl": max_kl}
            echo_json(to_document(comparison) | limits | {"agrees": not found.beyond})
        else:
            print_comparison(comparison, num_examples)
            print_verdict(found)
        if output is not None:
            click.echo(write_comparison(output, comparison, found, picker, exit_code), err=True)
        sys.exit(exit_code)


def _asked(folders: tuple[str, ...], strategies: str | None) -> tuple[str, ...]:
    """The names of the strategies, if the arguments make sense."""
    names = tuple(strategies.split(",")) if strategies is not None else ()
    if strategies is None and len(folders) != 2:
        raise click.UsageError("give two runs, or one and --strategies A,B")
    if strategies is not None and (len(folders) != 1 or len(names) != 2):
        raise click.UsageError("--strategies takes two names, as greedy,beam5, and goes with one run")
    return names
