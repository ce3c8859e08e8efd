"""What commands share: options, exit codes, JSON on stdout, prompts from stdin, a sign of life while a model loads."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from pipeline.errors import BatchgenError

EXIT_STOPPED = 4
EXIT_WRONG = 5
EXIT_INTERRUPTED = 130
STOPPED_RUN = "stopped. Finished parts are kept; run the same command again to resume."

most_prompts = click.option(
    "--prompts",
    "num_prompts",
    type=click.IntRange(min=1),
    default=400,
    show_default=True,
    metavar="N",
    help="Most prompts to show; the numbers are of all rows.",
)
may_replace = click.option("--force", is_flag=True, help="Replace the file if it is there.")


@contextmanager
def exit_codes(stopped: str = "stopped.") -> Iterator[None]:
    """Errors that are ours become one message and an exit code; others are bugs and keep their traceback."""

    def terminate(*_: object) -> None:
        click.echo(f"SIGTERM: {stopped}", err=True)
        sys.exit(EXIT_STOPPED)

    signal.signal(signal.SIGTERM, terminate)  # while replicas work, the executor takes it and lets them finish
    try:
        yield
    except BatchgenError as error:
        text = str(error)
        click.echo(text if text.startswith("error:") else f"error: {text}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo(f"\n{stopped}", err=True)
        sys.exit(EXIT_INTERRUPTED)


def with_output(overrides: Sequence[str], output: str | None) -> list[str]:
    """Overrides as `--set` takes them, `--output` among them; it comes last and wins."""
    return [*overrides, *([f"output.path={json.dumps(output, ensure_ascii=False)}"] if output is not None else [])]


def echo_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout, with exact text and the version of its shape first."""
    click.echo(json.dumps({"schema": 1} | document, ensure_ascii=False))


def texts(prompts: Sequence[str]) -> Iterator[str]:
    """The prompts, `-` replaced by the lines of stdin; bytes that are not UTF-8 become lone surrogates, as in argv."""
    for prompt in prompts:
        if prompt != "-":
            yield prompt
        elif lines := sys.stdin.buffer.read().removesuffix(b"\n"):
            yield from (line.removesuffix(b"\r").decode("utf-8", "surrogateescape") for line in lines.split(b"\n"))


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A sign of life on a terminal, as `loading gpt2`."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)):
        yield
