"""Commands for the first minutes: init, schema, completion."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from pipeline.cli_help import command
from pipeline.cli_shared import exit_codes, may_replace, waiting

SCHEMA = "job.schema.json"
COMPLETE = "_BATCHGEN_COMPLETE"  # the variable by which click knows that it is asked


@command(
    "Make",
    """
    batchgen init prompts.parquet
    batchgen init data/*.jsonl -o jobs/mine.yaml --model openai-community/gpt2
    batchgen init prompts.csv --prompt-column question -o -
    """,
)
@click.argument("data", nargs=-1, required=True, type=click.Path(), metavar="DATA...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="job.yaml",
    show_default=True,
    metavar="FILE",
    help="Job file to write; - prints it.",
)
@click.option("--prompt-column", metavar="NAME", help="Column with the prompts, if the guess is wrong.")
@click.option("--model", default="demo", show_default=True, help="Hub id, local folder, or `demo`.")
@may_replace
def init(data: tuple[str, ...], output: Path, prompt_column: str | None, model: str, force: bool) -> None:
    """Write a job file for a data set, by what is in it.

    DATA is what input.path takes: Parquet, Arrow, JSONL, CSV, folders, s3://bucket/path, gs:// or az://, hf://user/set.
    The file has comments with what was found, and is ready to run; job.schema.json beside it lets editors complete it.
    """
    with exit_codes():
        from pipeline import new_file
        from pipeline.draft import draft
        from pipeline.draft_screen import print_draft

        is_printed = str(output) == "-"
        if not is_printed:
            new_file.check_free(output, may_replace=force)
        with waiting(f"looking at {data[0]}"):
            found = draft(data[0] if len(data) == 1 else data, prompt_column=prompt_column, model=model)
        if is_printed:
            click.echo(found.text, nl=False)
            return
        new_file.write(output, found.text)
        beside = output.parent / SCHEMA
        is_new = force or not beside.exists()
        if is_new:
            new_file.write(beside, _schema_text())
        print_draft(found, [output, beside] if is_new else [output])


@command(
    "Operate",
    """
    batchgen schema > job.schema.json
    """,
)
def schema() -> None:
    """Print the JSON Schema of the job file, for editors.

    With `# yaml-language-server: $schema=job.schema.json` as first line of a job file they complete and check it.
    """
    click.echo(_schema_text(), nl=False)


@command(
    "Operate",
    """
    batchgen completion bash >> ~/.bashrc
    batchgen completion zsh >> ~/.zshrc
    batchgen completion fish > ~/.config/fish/completions/batchgen.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete the line.

    Commands, options, files and folders, and after --strategy the strategies of the run that is on the line.
    """
    found = get_completion_class(shell)
    assert found is not None, shell  # click has all three
    click.echo(found(click.get_current_context().find_root().command, {}, "batchgen", COMPLETE).source())


def _schema_text() -> str:
    from pipeline.jobfile import json_schema

    return json.dumps(json_schema(), indent=2) + "\n"
