"""Progress of a run in a notebook: one line of HTML that is drawn anew, with nothing but IPython."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from html import escape
from typing import Any, Protocol

from pipeline.shard import Part
from pipeline.tally import Listed

FEWEST_SECONDS = 0.25  # between two drawings


class Handle(Protocol):
    """What `IPython.display.display` gives."""

    def update(self, html: Any) -> None:
        """Draw something else in the same place."""


def is_notebook() -> bool:
    """Whether this runs in a notebook's kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def draw(html: str, handle: Handle | None) -> Handle:
    """Draw below the cell, or in the place of an earlier drawing."""
    from IPython.display import HTML, display

    if handle is not None:
        handle.update(HTML(html))
        return handle
    drawn: Handle = display(HTML(html), display_id=True)
    return drawn


class NotebookBar:
    """Rows, tokens per second, errors and time so far, as `Progress` tells them.

    Args:
        drawer: draws.
        clock: seconds, from any point.
    """

    def __init__(
        self,
        drawer: Callable[[str, Handle | None], Handle] = draw,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.drawer, self.clock = drawer, clock
        self.handle: Handle | None = None

    def start(self, num_rows: int, num_shards: int, done: Collection[Listed]) -> None:
        """Draw it."""
        self.began, self.drawn_at = self.clock(), -1.0
        self.total, self.tokens = num_rows, 0
        self.rows = sum(part.rows for part in done)
        self.errors = sum(part.rows - part.ok for part in done)
        self._draw()

    def part(self, part: Part) -> None:
        """Move it."""
        self.rows += part.rows
        self.tokens += part.generated_tokens
        self.errors += part.rows - part.ok
        if self.rows == self.total or self.clock() - self.drawn_at >= FEWEST_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self.drawn_at = self.clock()
        elapsed = self.drawn_at - self.began
        rate = f" · {self.tokens / elapsed:,.0f} tok/s" if self.tokens and elapsed else ""
        errors = f" · {self.errors:,} errors" if self.errors else ""
        text = f"{self.rows:,}/{self.total:,} rows{rate}{errors} · {elapsed:.0f} s"
        bar = f"<progress value='{self.rows}' max='{self.total}' style='width:20em'></progress>"
        self.handle = self.drawer(f"{bar} {escape(text)}", self.handle)
