"""What is shown against what came out: alike but for what differs from run to run and from machine to machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBER = r"\d[\d,.]*"
VARYING = [
    (re.compile(pattern), word)
    for pattern, word in [
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.:+Z]*", "TIME"),
        (rf"{NUMBER} (ms|s|min|h)\b", "DURATION"),
        (rf"{NUMBER} (tok|rows|shards)/s", "RATE"),
        (rf"{NUMBER} ([KMG]i?B|B|bytes)\b", "SIZE"),
        (r"\b(DURATION|RATE|SIZE) to \1\b", r"\1"),
        (r"\b\d(\.\d+)?e-\d\d\b", "ROUNDING"),
        (r"\bidentical( +(0|ROUNDING)){2}", "identical but for ROUNDING"),
        (r"\b(?=\w*\d)(?=\w*[a-f])[0-9a-f]{7,64}\b", "HASH"),
        (r"\bprocess \d+ on \S+", "PROCESS"),
    ]
]


def alike(shown: Sequence[str], found: Sequence[str]) -> bool:
    """Whether output is what a page shows; a line `...` stands for any number of lines."""
    pattern = "".join(r"(.*\n)*?" if line.strip() == "..." else re.escape(constant(line)) + r"\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{constant(line)}\n" for line in found)) is not None


def constant(line: str) -> str:
    """A line with words in the place of what varies; blanks count as one where that moved what follows."""
    replaced = line.rstrip()
    for pattern, word in VARYING:
        replaced = pattern.sub(word, replaced)
    return replaced if replaced == line.rstrip() else re.sub(" +", " ", replaced)


def updated(shown: Sequence[str], found: Sequence[str]) -> list[str]:
    """What to show: what came out, as much of it as before where the end was left out."""
    lines = [line.rstrip() for line in found]
    if [line.strip() for line in shown[-1:]] == ["..."] and len(lines) >= len(shown):
        return [*lines[: len(shown) - 1], "..."]
    return lines
