"""Finding stop strings. Works on bytes: a token may end inside a character."""

from __future__ import annotations

from collections.abc import Sequence


def find_stop(text: bytes, num_new: int, stops: Sequence[str]) -> tuple[int, str] | None:
    """First stop string that ends within the last `num_new` bytes of `text`.

    Returns:
        Where it starts and the string itself: the earliest start, on a tie the first in `stops`. None if there is none.

    >>> find_stop(b"one. two", 4, ["two", "."])
    (5, 'two')
    """
    found = [
        (start, order)
        for order, stop in enumerate(stops)
        if (start := text.find(pattern := stop.encode(), max(0, len(text) - num_new - len(pattern) + 1))) >= 0
    ]
    if not found:
        return None
    start, order = min(found)
    return start, stops[order]
