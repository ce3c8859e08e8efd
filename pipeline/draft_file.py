"""A drafted job file as text: the template filled in, values as YAML, tables and comments lined up."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from ruamel.yaml import YAML

from pipeline.text_templates import text_templates


def render(facts: Mapping[str, Any]) -> str:
    """The file; `facts` is what the template names."""
    templates = text_templates()
    templates.filters |= {"yaml": _yaml, "thousands": "{:,}".format}
    return _with_comments_below_each_other(templates.get_template("job.yaml.j2").render(facts))


def _yaml(value: Any) -> str:
    """A value as YAML on one line."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.width = 1_000_000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # it has no type of its own
    yaml.dump([list(value) if isinstance(value, tuple) else value], stream)
    return stream.getvalue().strip()[1:-1]


def lined_up(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, without what a comment cannot hold."""
    cells = [["".join(c if c.isprintable() else "�" for c in cell) for cell in row] for row in rows]
    widths = [max(cell_len(row[index]) for row in cells) for index in range(len(cells[0]))]
    return [
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _with_comments_below_each_other(text: str) -> str:
    """The text with the comments at the ends of neighbouring lines, marked by `  ## `, in one column."""
    lines = [line.split("  ## ", 1) for line in text.split("\n")]
    widths = [len(line[0]) if len(line) == 2 else 0 for line in lines]
    width = max(width for width in widths if width <= 48)
    return "\n".join(f"{line[0]:<{width}}  # {line[1]}" if len(line) == 2 else line[0] for line in lines)
