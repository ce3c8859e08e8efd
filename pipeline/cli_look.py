"""Commands for people who want to see: preview, head, show, tokenize."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli_complete import only_strategy, run_folder
from pipeline.cli_help import command
from pipeline.cli_shared import echo_json, exit_codes, texts, waiting


@command(
    "Make",
    """
    batchgen preview jobs/demo.yaml -n 1
    batchgen preview jobs/demo.yaml --set strategies.nucleus.temperature=1.3 --steps
    """,
)
@click.argument("job_file", type=click.Path(path_type=Path), metavar="JOB.yaml")
@click.option("-n", "num_rows", type=click.IntRange(min=1), default=3, show_default=True, help="Input rows.")
@click.option("--steps", "has_steps", is_flag=True, help="Step by step, with alternatives.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the job file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with exact numbers and bytes.")
def preview(job_file: Path, num_rows: int, has_steps: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what the first rows of a job would give.

    Tokens, ids, candidates and text. The whole job is checked as for a run. Nothing is written, and Ray is not started.
    """
    with exit_codes():
        from pipeline.jobfile import load_job
        from pipeline.preview import preview as look
        from pipeline.steps import rows_document
        from pipeline.steps_screen import print_preview, print_steps

        job = load_job(job_file, [*overrides])
        with waiting(f"generating with {job.model.name}"):
            found = look(job, num_rows)
        if as_json:
            echo_json({"input_rows": found.num_input_rows, "rows": rows_document(found.rows, found.vocabulary)})
        else:
            (print_steps if has_steps else print_preview)(found.rows, found.vocabulary)


@command(
    "Look",
    """
    batchgen head out/demo -n 20
    batchgen head out/demo --strategy nucleus
    """,
)
@run_folder
@click.option("-n", "num_rows", type=click.IntRange(min=1), default=12, show_default=True, help="Rows to show.")
@only_strategy
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with exact text.")
def head(folder: str, num_rows: int, strategy: str | None, as_json: bool) -> None:
    """Show the first completions of a run, finished or not."""
    with exit_codes():
        from pipeline.head import SHOWN, cells
        from pipeline.results import open_run
        from pipeline.terminal import print_table

        rows = open_run(folder).head(num_rows, strategy)
        if as_json:
            echo_json({"rows": rows})
        else:
            print_table(SHOWN, cells(rows), wide=("prompt", "text"))


@command(
    "Look",
    """
    batchgen show out/demo --row-id skip-00 --strategy greedy
    batchgen show out/demo --row-id skip-00 --strategy nucleus --sample-index 1
    """,
)
@run_folder
@click.option("--row-id", required=True, metavar="ID", help="Of the row, as in column row_id.")
@only_strategy
@click.option("--sample-index", "--sample", type=click.IntRange(min=0), metavar="N", help="Only this sample.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with exact numbers and bytes.")
def show(folder: str, row_id: str, strategy: str | None, sample_index: int | None, as_json: bool) -> None:
    """Show a row of a run step by step.

    Of each step the chosen token, its probability and rank, and the alternatives.
    """
    with exit_codes():
        from pipeline.replay import chosen, find_rows
        from pipeline.results import open_run
        from pipeline.steps import rows_document
        from pipeline.steps_screen import print_steps

        results = open_run(folder)
        rows = chosen(find_rows(results.run, row_id), strategy, sample_index)
        if as_json:
            echo_json({"rows": rows_document(rows, results.vocabulary)})
        else:
            print_steps(rows, results.vocabulary)


@command(
    "Look",
    """
    batchgen tokenize "I skip across the" --model openai-community/gpt2
    batchgen tokenize --ids "40 294 295 259"
    batchgen tokenize - < texts.txt
    """,
)
@click.argument("prompts", nargs=-1, metavar="TEXT...")
@click.option("--model", default="demo", show_default=True, help="Hub id, local folder, or `demo`.")
@click.option("--ids", metavar="IDS", multiple=True, help="Token ids to turn into text; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with exact bytes.")
def tokenize(prompts: tuple[str, ...], model: str, ids: tuple[str, ...], as_json: bool) -> None:
    """Show how a text is cut into tokens: ids, pieces, bytes.

    TEXT - reads texts from stdin, one per line.
    """
    with exit_codes():
        from pipeline.next_tokens import parse_ids
        from pipeline.tokenise import to_document, tokenise
        from pipeline.tokenise_screen import print_tokens

        tokenised = tokenise([*texts(prompts), *map(parse_ids, ids)], model)
        if as_json:
            echo_json(to_document(tokenised))
        else:
            print_tokens(tokenised)
