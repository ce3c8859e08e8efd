"""A few rows as a table: plain text, rich, or HTML in a notebook. No byte of text is taken on trust."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pipeline.terminal import visible

WIDTH = 120
MOST_CHARACTERS = 200  # of a cell in HTML

Cells = Sequence[Sequence[object]]


def as_rich(title: str, columns: Sequence[str], rows: Cells) -> Group:
    """A heading and a table that fits where it is printed; cells of text are folded."""
    return Group(Text(visible(title), style="bold"), _table(columns, rows))


def as_text(title: str, columns: Sequence[str], rows: Cells, width: int = WIDTH) -> str:
    """The same as plain text; the heading is one line, whatever the folder it names."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(_table(columns, rows))
    return "\n".join([visible(title), *(line.rstrip() for line in stream.getvalue().splitlines())])


def _table(columns: Sequence[str], rows: Cells) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(Text(column), overflow="fold", no_wrap=column in ("row_id", "strategy", "#"))
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))
    return table


def as_html(title: str, columns: Sequence[str], rows: Cells) -> str:
    """The same as a table of HTML with everything escaped."""
    head = "".join(f"<th style='text-align:left'>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    caption = f"<caption style='text-align:left;font-weight:bold'>{escape(visible(title))}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    shown = _shown(value)
    cut = shown if len(shown) <= MOST_CHARACTERS else f"{shown[:MOST_CHARACTERS]}…"
    return f"<td style='text-align:left;white-space:pre-wrap'>{escape(cut)}</td>"


def _shown(value: Any) -> str:
    return "" if value is None else visible(str(value))
