"""A strategy with a `grid` as the strategies it stands for: one for each combination of values, named after them.

Works on the values of a job before they are checked, so that each value is checked in the strategy it ends up in;
`Expanded` leads back from there. It knows no keys but those that a grid cannot vary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from pydantic_core import PydanticCustomError

from pipeline.strategies import broken_rule

MOST_STRATEGIES = 1000
LONGEST_NAME = 64  # of any strategy
NOT_VARIED = {
    "name": "it is made of the values",
    "type": "each type has keys of its own, so write a strategy for each",
    "grid": "it holds keys of its strategy",
}


class Expanded(NamedTuple):
    """A strategy as it will be checked, and where it comes from.

    Attributes:
        values: its keys, `grid` not among them.
        item: index of what stands for it in `strategies`.
        picks: key of the grid -> position of its value there.
    """

    values: Any
    item: int
    picks: Mapping[Any, int] = {}


def expand(strategies: Sequence[Any]) -> list[Expanded]:
    """The strategies that these stand for, in order, the last key of a grid changing fastest.

    An item whose grid has a fault stays as it is; `fault` says which.
    """
    return [expanded for index, item in enumerate(strategies) for expanded in _expanded(index, item)]


def fault(item: Any) -> PydanticCustomError | None:
    """The first thing wrong with the grid of a strategy, None if nothing is or it has none."""
    return next(_faults(item, item["grid"]), None) if _has_grid(item) else None


def _has_grid(item: Any) -> bool:
    return isinstance(item, dict) and item.get("grid") is not None


def _expanded(index: int, item: Any) -> Iterator[Expanded]:
    if not isinstance(item, dict) or fault(item):
        yield Expanded(item, index)
        return
    values = {key: value for key, value in item.items() if key != "grid"}
    if not _has_grid(item):
        yield Expanded(values, index)
        return
    for picks in _combinations(item["grid"]):
        name = {"name": _name(values["name"], item["grid"], picks)} if isinstance(values.get("name"), str) else {}
        chosen = {key: item["grid"][key][position] for key, position in picks.items()}
        yield Expanded(values | name | chosen, index, picks)


def _combinations(grid: Mapping[Any, Sequence[Any]]) -> Iterator[dict[Any, int]]:
    for positions in product(*(range(len(values)) for values in grid.values())):
        yield dict(zip(grid, positions, strict=True))


def _faults(item: dict[Any, Any], grid: Any) -> Iterator[PydanticCustomError]:
    if not isinstance(grid, dict) or not grid:
        message = f"`grid` must give keys their lists of values, but is {grid!r:.60}"
        yield broken_rule(message, "Write it as {temperature: [0.5, 1.0]}.", "grid")
        return
    for key, values in grid.items():
        if key in NOT_VARIED:
            yield broken_rule(f"`grid` cannot vary `{key}`: {NOT_VARIED[key]}", "Leave it out there.", "grid", key)
        elif key in item:
            yield broken_rule(f"`{key}` is in the strategy and in its `grid`", "Keep one of them.", "grid", key)
        elif not isinstance(values, list | tuple) or not values:
            message = f"`grid.{key}` must be a non-empty list of values, but is {values!r:.60}"
            yield broken_rule(message, "Write them as [1, 2].", "grid", key)
        else:
            yield from _repeated(key, values)
    yield from _too_large(item, grid)


def _repeated(key: Any, values: Sequence[Any]) -> Iterator[PydanticCustomError]:
    labels = [_label(value, position) for position, value in enumerate(values)]
    for position, label in enumerate(labels):
        if label in labels[:position]:
            message = f"`grid.{key}` makes two names with `{label}`, but names must be unique"
            yield broken_rule(message, "Take one of the two values out.", "grid", key, position)


def _too_large(item: dict[Any, Any], grid: Mapping[Any, Sequence[Any]]) -> Iterator[PydanticCustomError]:
    count = math.prod(map(len, grid.values()))
    if count > MOST_STRATEGIES:
        message = f"a `grid` makes at most {MOST_STRATEGIES:,} strategies, but this one {count:,}"
        yield broken_rule(message, "Give it fewer values.", "grid")
        return
    longest = max((_name(str(item.get("name")), grid, picks) for picks in _combinations(grid)), key=len)
    if len(longest) > LONGEST_NAME:
        message = f"the name `{longest}`, which this `grid` makes, has {len(longest)} characters"
        yield broken_rule(f"{message}, and may have {LONGEST_NAME}", "Shorten `name`.", "grid")


def _name(base: str, grid: Mapping[Any, Sequence[Any]], picks: Mapping[Any, int]) -> str:
    """As `nucleus-temperature0.4-top_p0.9`; an unknown key cannot make a name that is refused before the key is."""
    parts = [f"{key}{_label(grid[key][position], position)}" for key, position in picks.items()]
    return "-".join([base, *(re.sub(r"[^A-Za-z0-9._-]", "_", part) for part in parts)])


def _label(value: Any, position: int) -> str:
    """How a value shows in a name: a number or a plain word as itself, `off` for null, else by its position."""
    match value:
        case None:
            return "off"
        case bool():
            return str(value).lower()
        case int() | float() | str() if re.fullmatch(r"[A-Za-z0-9._-]+", text := f"{value}".replace("+", "")):
            return text
        case _:
            return str(position)
