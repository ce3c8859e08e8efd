"""`--help`: every command under a heading, on one line, and examples that the command would take as they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.cli_help import SECTIONS, Command

ROOT = Path(__file__).parent.parent
COMMANDS = [command for command in main.commands.values() if isinstance(command, Command)]
EXAMPLES = [*main.examples, *(line for command in COMMANDS for line in command.examples)]


def taken(line: str) -> str:
    """The command that a line calls, if click takes all of its arguments.

    Raises:
        click.UsageError: it does not.
    """
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    assert words.pop(0) == "batchgen", line
    for mark in (">", ">>", "<"):
        if mark in words:
            assert words.index(mark) == len(words) - 2, line
            words = words[:-2]
    with main.make_context("batchgen", words) as context:
        name, command, rest = main.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(name, rest, parent=context).close()
    return str(name)


@pytest.mark.parametrize("line", EXAMPLES)
def test_click_takes_every_example(line: str) -> None:
    assert taken(line) in main.commands


@pytest.mark.parametrize(
    "line", ["batchgen run", "batchgen head out --rows 3", "batchgen heda out", "batchgen next -k 0"]
)
def test_click_would_not_take_a_wrong_example(line: str) -> None:
    with pytest.raises(click.UsageError):
        taken(line)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_every_command_shows_examples_of_itself_that_fit(command: Command) -> None:
    shown = CliRunner().invoke(main, [str(command.name), "--help"], terminal_width=80, max_content_width=80).output
    listed = shown.partition("\nExamples:\n")[2].splitlines()
    assert listed == [f"  {line}" for line in command.examples]
    assert {taken(line) for line in command.examples} == {command.name}
    assert max(map(len, listed)) <= 100


def test_every_command_is_one_line_under_its_heading() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    found = {}
    for heading in SECTIONS:
        lines = shown.partition(f"\n{heading}:\n")[2].partition("\n\n")[0].splitlines()
        found[heading] = [line.split()[0] for line in lines]
        assert [line for line in lines if not re.fullmatch(r"  \S+ +[A-Z].*\.", line) or "..." in line] == []
    assert found == {
        "Make": ["init", "preview", "plan", "run"],
        "Look": ["head", "show", "report", "next", "tokenize"],
        "Compare and check": ["compare", "verify", "replay"],
        "Hand on": ["explode", "card"],
        "Operate": ["status", "retry-errors", "gc", "schema", "completion"],
    }
    assert sorted(name for names in found.values() for name in names) == sorted(main.commands)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_click_takes_every_command_of_the_pages(page: str) -> None:
    lines = re.findall(r"^\$ (.*\bbatchgen .*)$", (ROOT / page).read_text(), re.M)
    calls = [call.strip() for line in lines for call in re.split(r"&&|\||;", re.sub(r"\s#.*| 2>.*", "", line))]
    for call in calls:
        if re.match(r"([A-Z_]+=\S+ )*batchgen ", call):
            assert taken(call) in main.commands, call
