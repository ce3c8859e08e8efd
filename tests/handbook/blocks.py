"""A Markdown page as its blocks of code, in order, each with the output that stands in it or below it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent.parent
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
COMMENT = re.compile(r"<!-- (not run|first|file|exit code): (.*?) -->")


@dataclass(frozen=True)
class Shown:
    """Output on a page: its lines, and the place of the first, counted from 0."""

    lines: list[str]
    line: int


@dataclass(frozen=True)
class Command:
    """A line of shell, without the prompt, and the output below it; None where none is shown."""

    text: str
    shown: Shown | None


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path from the root.
        line: of its first line of text, counted from 0.
        language: as written.
        text: with a newline in the end.
        said: what comments above it say, as `not run`.
        below: the block of text that follows it at once.
    """

    page: str
    line: int
    language: str
    text: str
    said: dict[str, str] = field(default_factory=dict)
    below: Shown | None = None

    @property
    def place(self) -> str:
        """For messages, as `README.md:12`."""
        return f"{self.page}:{self.line + 1}"

    @cached_property
    def commands(self) -> list[Command]:
        """Of a console block."""
        lines = self.text.splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
        assert starts[:1] == [0], f"{self.place}: a block of commands begins with `$ `"
        return [
            Command(lines[start][2:], Shown(lines[start + 1 : end], self.line + start + 1) if end > start + 1 else None)
            for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)
        ]


def blocks(page: str) -> list[Block]:
    """All blocks of a page but those that show the output of the one above them."""
    return parse(page, (ROOT / page).read_text(encoding="utf-8"))


def parse(page: str, text: str) -> list[Block]:
    """The same of a text."""
    return list(_blocks(page, text))


def _blocks(page: str, text: str) -> Iterator[Block]:
    tokens = [each for each in MarkdownIt().parse(text) if each.type in ("fence", "html_block", "paragraph_open")]
    said: dict[str, str] = {}
    is_below = False
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "html_block":
            said |= dict(COMMENT.findall(token.content))
        if token.type != "fence":
            is_below = False
            continue
        below = following if following and following.type == "fence" and following.info == "text" else None
        is_code = token.info in ("python", "sql")
        if not is_below:
            shown = Shown(below.content.splitlines(), _line(below.map)) if below and is_code else None
            yield Block(page, _line(token.map), token.info, token.content, said, shown)
        said, is_below = {}, is_code and below is not None


def _line(place: list[int] | None) -> int:
    """The line below a fence."""
    assert place is not None
    return place[0] + 1
