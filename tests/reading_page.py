"""docs/reading.md as the tests need it: its blocks of code, each under the heading of its tool."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parent.parent / "docs" / "reading.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """Language and text of every block, in order."""
    return [(match[1], match[2]) for match in BLOCK.finditer(TEXT)]


def block(tool: str) -> str:
    """The block that gives the long form in a tool: the one that names it in a comment on its first line."""
    (found,) = (code for _, code in blocks() if re.match(rf"(--|#) {tool}\b", code))
    return found
