"""How `--help` looks: commands under headings, and examples below each command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

SECTIONS = ("Make", "Look", "Compare and check", "Hand on", "Operate")


class Command(click.Command):
    """A command with its heading in the list of all, and lines to copy."""

    def __init__(self, *args: Any, section: str, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert section in SECTIONS, section
        self.section = section
        self.examples = [line.strip() for line in examples.strip().splitlines()]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, a line each."""
        _write_examples(self.examples, formatter)


class Sections(click.Group):
    """The commands under their headings, and how to begin."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = [line.strip() for line in examples.strip().splitlines()]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """In the order in which they were added."""
        width = max(map(len, self.commands))
        for section in SECTIONS:
            found = [each for each in self.commands.values() if isinstance(each, Command) and each.section == section]
            rows = [(f"{each.name:<{width}}", each.get_short_help_str(limit=formatter.width)) for each in found]
            with formatter.section(section):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, a line each."""
        _write_examples(self.examples, formatter)


def command(section: str, examples: str, name: str | None = None) -> Callable[[Callable[..., Any]], Command]:
    """A command from a function.

    Args:
        section: its heading.
        examples: lines as a user types them; a test holds them against the command.
        name: that of the function if None.
    """
    return click.command(name, cls=Command, section=section, examples=examples)


def _write_examples(examples: list[str], formatter: click.HelpFormatter) -> None:
    with formatter.section("Examples"):
        for line in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
