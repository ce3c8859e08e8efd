"""How tokens look in a terminal: their text made visible, and painted by rank.

Pieces of text hide nothing and do nothing: a space is `·`, control characters are pictures, and bytes that are only
part of a character are written as `⟨E2 82⟩`. Ink grows with surprise, and colour is never the only sign: the rarest
ranks are underlined too, and without colour they carry ¹, ² or ³.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.recorded import Vocabulary
from pipeline.terminal import visible

BYTES_OR_CHARACTER = re.compile(r"[\udc80-\udcff]+|.", re.DOTALL)  # surrogates: bytes that are not UTF-8


class Band(NamedTuple):
    """Ranks that look alike: up to `most`, None for no limit."""

    most: int | None
    name: str
    style: str
    mark: str


BANDS = (
    Band(1, "1", "", ""),
    Band(10, "2–10", "#1b1f24 on #ffe9a6", ""),
    Band(100, "11–100", "#1b1f24 on #fdbd4e", "¹"),
    Band(1000, "101–1000", "underline #1b1f24 on #e58420", "²"),
    Band(None, "> 1000", "underline2 #ffffff on #963300", "³"),
)


def piece(token_bytes: bytes, token: str | None) -> str:
    """What a token adds to a text, or the name of a token that adds nothing."""
    if not token_bytes:
        return visible(token or "⟨no token⟩")
    text = token_bytes.decode("utf-8", "surrogateescape")
    return BYTES_OR_CHARACTER.sub(_shown, text)


def pieces(vocabulary: Vocabulary, token_ids: Sequence[int]) -> list[str]:
    """The piece of each token."""
    return [piece(vocabulary.token_bytes[token_id], vocabulary.tokens[token_id]) for token_id in token_ids]


def painted(shown: str, rank: int, *, has_colour: bool) -> Text:
    """A piece in the look of its rank."""
    band = next(band for band in BANDS if band.most is None or rank <= band.most)
    return Text(shown, style=band.style) if has_colour else Text(f"{shown}{band.mark}")


def legend(*, has_colour: bool) -> Text:
    """What the looks mean."""
    if not has_colour:
        return Text("· is a space; rank of the token: ¹ above 10, ² above 100, ³ above 1000", style="dim")
    shown = [Text(f" {band.name} ", style=band.style or "dim") for band in BANDS]
    return Text.assemble(("· is a space; rank of the token ", "dim"), Text(" ").join(shown))


def has_colour(console: Console) -> bool:
    """Whether the console shows colours."""
    return console.color_system is not None and not console.no_color


def gloss(label_rows: Sequence[tuple[str, Sequence[Text]]], width: int, indent: int = 2) -> list[Text]:
    """Rows of cells below each other, each column as wide as its widest cell, wrapped where the width ends.

    Args:
        label_rows: a name and a cell per token, of each row.
        width: of the terminal.
        indent: blanks before the names.
    """
    labels = [label for label, _ in label_rows]
    left = indent + max(map(cell_len, labels)) + 2
    columns = list(zip(*(cells for _, cells in label_rows), strict=True))
    widths = [max(cell_len(cell.plain) for cell in column) for column in columns]
    lines: list[Text] = []
    for start, end in _wrapped(widths, width - left):
        lines += [Text()] if lines else []
        for label, row in zip(labels, zip(*columns[start:end], strict=True), strict=True):
            cells = [
                _right(cell, size) if label != labels[0] else _left(cell, size)
                for cell, size in zip(row, widths[start:end], strict=True)
            ]
            name = Text(" " * indent + label.ljust(left - indent), style="dim")
            lines.append(Text.assemble(name, Text("  ").join(cells)))
    return lines


def _wrapped(widths: Sequence[int], available: int) -> list[tuple[int, int]]:
    """Ranges of columns, two blanks apart, that fit; a column that fits nowhere has a line of its own."""
    ranges, start, used = [], 0, 0
    for index, width in enumerate(widths):
        if index > start and used + 2 + width > available:
            ranges.append((start, index))
            start, used = index, 0
        used += width + (2 if index > start else 0)
    return [*ranges, (start, len(widths))] if widths else []


def _left(cell: Text, size: int) -> Text:
    return Text.assemble(cell, " " * (size - cell_len(cell.plain)))


def _right(cell: Text, size: int) -> Text:
    return Text.assemble(" " * (size - cell_len(cell.plain)), cell)


def _shown(match: re.Match[str]) -> str:
    part = match[0]
    if "\udc80" <= part[0] <= "\udcff":
        return f"⟨{part.encode('utf-8', 'surrogateescape').hex(' ').upper()}⟩"
    if part == " ":
        return "·"
    if part == "·" or unicodedata.category(part) == "Zs":
        return f"⟨U+{ord(part):04X}⟩"
    return visible(part)
