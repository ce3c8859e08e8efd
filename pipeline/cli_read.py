"""Commands that hand a run on to other tools: explode, card."""

from __future__ import annotations

import click

from pipeline.cli_complete import run_folder
from pipeline.cli_help import command
from pipeline.cli_shared import echo_json, exit_codes


@command(
    "Hand on",
    """
    batchgen explode out/demo
    batchgen explode s3://bucket/out -o long.parquet
    """,
)
@run_folder
@click.option("-o", "--output", "target", default="long.parquet", show_default=True, metavar="FILE", help="To write.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def explode(folder: str, target: str, as_json: bool) -> None:
    """Write the alternatives of a run as one row per step and rank.

    Columns: row_id, strategy, sample_index, step, rank, token_id, token, probability. Docs: docs/reading.md.
    """
    with exit_codes():
        from pipeline.long_form import explode as write
        from pipeline.results import open_run

        num_rows = write(open_run(folder), target)
        if as_json:
            echo_json({"rows": num_rows, "file": target})
        else:
            click.echo(f"{num_rows:,} rows · {target}")


@command(
    "Hand on",
    """
    batchgen card out/demo
    batchgen card out/demo --write
    """,
)
@run_folder
@click.option("--write", is_flag=True, help="Put it in the place of OUT/README.md.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def card(folder: str, write: bool, as_json: bool) -> None:
    """Print the data card of a run as it is now, retries included.

    With it `datasets` loads the folder with no script, here and on the hub. Docs: docs/reading.md.
    """
    with exit_codes():
        from pipeline.card import data_card, write_card
        from pipeline.results import open_run

        results = open_run(folder)
        if write:
            file = write_card(results)
            echo_json({"file": file}) if as_json else click.echo(file)
        else:
            text = data_card(results)
            echo_json({"card": text}) if as_json else click.echo(text, nl=False)
