"""A working folder of a page, in which its blocks are done one after another, as a reader would.

`batchgen` runs in this process, as if on a terminal as wide as the longest line shown; other commands run in bash, and
Python in one process of its own. All use the Ray that this process is connected to.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import duckdb
import ray
from jsonschema import Draft7Validator
from ruamel.yaml import YAML

from pipeline.cli import main
from pipeline.errors import ConfigError
from pipeline.jobfile import parse_job
from pipeline.jobfile_schema import json_schema
from tests.handbook.blocks import ROOT, Block, Command, Shown
from tests.handbook.compare import alike
from tests.handbook.notebook import Notebook

LENT = ("jobs", "Makefile", "README.md", "docs")
NARROWEST = 80
STYLES = re.compile(r"\x1b\[[0-9;]*m")
BASE = {
    "model": "demo",
    "input": {"path": "prompts.parquet"},
    "output": {"path": "out"},
    "strategies": [{"name": "any", "type": "sampling", "max_new_tokens": 8}],
}


class Difference(NamedTuple):
    """A place where a page shows something else than what came out."""

    shown: Shown
    found: list[str]


class BlockError(AssertionError):
    """A block that did not do what it should."""


class Reader:
    """Does the blocks of a page in a folder of its own.

    Args:
        folder: empty; gets what the root has that pages name.
        demo_run: output of jobs/demo.yaml, `$DEMO` in commands.
    """

    def __init__(self, folder: Path, demo_run: Path) -> None:
        self.folder = folder
        self._open = ExitStack()
        for name in LENT:
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
        (folder / "out").mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = {"DEMO": str(demo_run), "PATH": path, "NO_COLOR": "1", "TERM": "xterm", "LINES": "50"}
        self.env["HF_DATASETS_CACHE"] = str(folder / ".datasets")
        self.env["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def do(self, block: Block) -> Iterator[Difference]:
        """Do a block; gives what came out where the page shows something else.

        Raises:
            BlockError: it cannot be done.
        """
        if "first" in block.said:
            self._command(block, Command(block.said["first"], None), 0)
        if "not run" in block.said:
            return
        if "file" in block.said:
            (self.folder / block.said["file"]).write_text(block.text, encoding="utf-8")
        match block.language:
            case "console":
                for command in block.commands:
                    is_last = command is block.commands[-1]
                    found = self._command(block, command, int(block.said.get("exit code", "0")) if is_last else 0)
                    yield from _differences(command.shown, found)
            case "python":
                yield from _differences(block.below, self._python(block))
            case "sql":
                yield from _differences(block.below, self._query(block))
            case "yaml":
                check_job(block)
            case "json":
                json.loads(block.text)
            case "text" | "" | "{toctree}":
                pass
            case other:
                raise BlockError(f"{block.place}: nothing is known of blocks of `{other}`")

    def _command(self, block: Block, command: Command, exit_code: int) -> list[str]:
        width = max([NARROWEST, *map(len, command.shown.lines if command.shown else [])])
        text = command.text.strip()
        lines = _recipe(text) if text.startswith("make ") else [text]
        done = [self._batchgen(line, width) if _is_plain(line) else self._shell(line, width) for line in lines]
        ended_with = max(code for code, _, _ in done)
        if ended_with != exit_code:
            raise BlockError(f"{block.place}: `{text}` ended with {ended_with}:\n{done[-1][2]}")
        return [line for code, output, messages in done for line in (output + (messages if code else "")).splitlines()]

    def _batchgen(self, line: str, width: int) -> tuple[int, str, str]:
        """Exit code, output and messages of the command, run in this process."""
        _, *arguments = shlex.split(line, comments=True)
        output, messages = Terminal(), io.StringIO()
        with self._inside(COLUMNS=str(width)), redirect_stdout(output), redirect_stderr(messages):
            try:
                main.main(arguments, prog_name="batchgen")
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
        return code, self._as_shown(output.getvalue()), messages.getvalue()

    def _shell(self, line: str, width: int) -> tuple[int, str, str]:
        env = os.environ | self.env | {"COLUMNS": str(width)}
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )
        return done.returncode, self._as_shown(done.stdout), done.stderr

    def _python(self, block: Block) -> list[str]:
        """What a block prints."""
        printed, failure = self._notebook.run(block.page, block.line, block.text)
        if failure:
            raise BlockError(f"{block.place}:\n{failure}")
        if printed and block.below is None:
            raise BlockError(f"{block.place}: prints what the page does not show:\n{printed}")
        return self._as_shown(printed).splitlines()

    @cached_property
    def _notebook(self) -> Notebook:
        notebook = Notebook(self.folder, os.environ | self.env)
        self._open.callback(notebook.close)
        return notebook

    def _query(self, block: Block) -> list[str]:
        """What DuckDB prints for a query."""
        with self._inside(), duckdb.connect() as connection:
            relation = connection.sql(block.text)
            if block.below is None and not relation.fetchall():
                raise BlockError(f"{block.place}: finds nothing")
            return str(relation).splitlines() if block.below else []

    def _as_shown(self, text: str) -> str:
        """Output without styles and without the name of the folder."""
        return STYLES.sub("", text).replace(str(self.folder), "/home/me/batchgen")

    @contextmanager
    def _inside(self, **more: str) -> Iterator[None]:
        """This process in the folder, with the variables of commands."""
        before, folder = dict(os.environ), Path.cwd()
        os.chdir(self.folder)
        os.environ.update(self.env | more)
        try:
            yield
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(before)


class Terminal(io.StringIO):
    """Output that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def check_job(block: Block) -> None:
    """A job file, or the part of one that is shown, is one that the schema and the loader take.

    Raises:
        BlockError: it is not.
    """
    match YAML(typ="safe").load(block.text):
        case list() as strategies:
            shown = BASE | {"strategies": strategies}
        case {"type": str(), **_rest} as strategy:
            shown = BASE | {"strategies": [strategy]}
        case values:
            shown = BASE | values
    try:
        parse_job(shown)
    except ConfigError as error:
        raise BlockError(f"{block.place}: {error}") from None
    for wrong in Draft7Validator(json_schema()).iter_errors(shown):
        raise BlockError(f"{block.place}: {wrong.message}")


def _differences(shown: Shown | None, found: list[str]) -> Iterator[Difference]:
    """Empty lines before and after the output do not count."""
    lines = "\n".join(line.rstrip() for line in found).strip("\n").splitlines()
    if shown is not None and not alike(shown.lines, lines):
        yield Difference(shown, lines)


def _is_plain(line: str) -> bool:
    """Whether a line is one call of `batchgen` that needs no shell."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    first, *rest = words
    return first == "batchgen" and not any(word in ("|", ">", "<", "&&", "&", ";") for word in rest)


def _recipe(line: str) -> list[str]:
    """The commands of a goal of the Makefile, without the environment that it makes."""
    command = ["make", "--dry-run", "--no-print-directory", "VENV=.venv", "--assume-old=.venv/.ready"]
    printed = subprocess.run(
        [*command, *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [each.removeprefix(".venv/bin/") for each in printed.splitlines()]
