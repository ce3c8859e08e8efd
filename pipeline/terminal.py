"""What people see in a terminal: progress on stderr, tables on stdout, and no byte of generated text taken on trust.

On a terminal: a bar and fitted tables. Otherwise: a line per shard and tab-separated rows, nothing cut, no colour.
"""

from __future__ import annotations

import logging
import sys
import time
import unicodedata
from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline.shard import Part
from pipeline.tally import Listed

log = logging.getLogger("batchgen")

CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421", 0x0A: "⏎"}


def visible(text: str) -> str:
    """Text that cannot act on the terminal: control characters become pictures, invisible ones their code."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if picture := CONTROL_PICTURES.get(ord(character)):
        return picture
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, wide: Sequence[str] = ()) -> None:
    """A table on stdout: fitted to a terminal, else tab-separated with a header.

    Args:
        columns: their names.
        rows: their values; None shows as nothing.
        wide: columns of free text, the only ones that may be cut.
    """
    cells = [["" if value is None else visible(str(value)) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for line in [list(columns), *cells]:
            print("\t".join(line))
        return
    console = Console()
    widths = [max(cell_len(line[index]) for line in [list(columns), *cells]) for index in range(len(columns))]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, width in zip(columns, _fitted(widths, [name in wide for name in columns], console.width), strict=True):
        table.add_column(Text(column), no_wrap=True, width=width)
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    console.print(table)


def _fitted(widths: list[int], is_wide: list[bool], available: int) -> list[int]:
    """Widths of columns, two blanks apart, that fit; only wide ones shrink, the widest first."""
    fitted = list(widths)
    while sum(fitted) + 2 * (len(fitted) - 1) > available:
        width, index = max(
            (width if wide else 0, index) for index, (width, wide) in enumerate(zip(fitted, is_wide, strict=True))
        )
        if width <= 8:
            break
        fitted[index] -= 1
    return fitted


class ShardLines:
    """Progress as a log line per shard."""

    def start(self, num_rows: int, num_shards: int, done: Collection[Listed]) -> None:
        """Say what there is to do."""
        self.num_shards, self.num_done = num_shards, len(done)
        fields = {"rows": num_rows, "shards": num_shards, "done": len(done)}
        words = "%s rows, %s shards, %s of them already done"
        log.info(words, f"{num_rows:,}", num_shards, len(done), extra={"fields": fields})

    def part(self, part: Part) -> None:
        """One line."""
        self.num_done += 1
        log.info(
            "%s rows=%d errors=%d tokens=%d seconds=%.1f done=%d/%d",
            part.key,
            part.rows,
            part.rows - part.ok,
            part.generated_tokens,
            part.seconds,
            self.num_done,
            self.num_shards,
            extra={"fields": self._fields(part)},
        )

    def _fields(self, part: Part) -> dict[str, object]:
        """The same and more, for logs that machines read."""
        occupancy = part.usage.occupancy
        return {
            "part": part.key,
            "rows": part.rows,
            "errors": part.rows - part.ok,
            "tokens": part.generated_tokens,
            "seconds": round(part.seconds, 3),
            "engine_s": round(part.engine_s, 3),
            "prefills": part.usage.num_prefills,
            "decode_steps": part.usage.num_decode_steps,
            "batch_occupancy": None if occupancy is None else round(occupancy, 4),
            "done": self.num_done,
            "shards": self.num_shards,
        }


class Bar:
    """Progress as one line that is redrawn: rows, tokens per second, time left, errors."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("generating"),
            BarColumn(),
            TextColumn(
                "{task.percentage:>3.0f} % · {task.completed:,.0f}/{task.total:,.0f} rows{task.fields[more]} · eta"
            ),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            refresh_per_second=4,
        )

    def start(self, num_rows: int, num_shards: int, done: Collection[Listed]) -> None:
        """Draw it."""
        self.began, self.tokens, self.errors = time.monotonic(), 0, sum(part.rows - part.ok for part in done)
        completed = sum(part.rows for part in done)
        self.task = self.bar.add_task("", total=num_rows, completed=completed, more=" · starting replicas")
        self.bar.start()

    def part(self, part: Part) -> None:
        """Move it."""
        self.tokens += part.generated_tokens
        self.errors += part.rows - part.ok
        rate = self.tokens / (time.monotonic() - self.began)
        errors = f" · {self.errors:,} errors" if self.errors else ""
        self.bar.update(self.task, advance=part.rows, more=f" · {rate:,.0f} tok/s{errors}")

    def stop(self) -> None:
        """Leave the line as it is."""
        self.bar.stop()
