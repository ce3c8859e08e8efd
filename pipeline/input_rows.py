"""From the values of an input row to its prompt and id, or to the RowError that says why it has none.

Values are plain Python: text with lone surrogates where bytes were not UTF-8, numbers, lists, None. `place` says where
a row is, for messages. Nothing here raises for what a row holds; only a template is checked once, at the start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import InputConfig
from pipeline.errors import InputError
from pipeline.records import RowError

Value = str | list[int] | RowError
Place = Callable[[int], str]

_MARKS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Template:
    """`literals[0] {columns[0]} literals[1] ...`: one literal more than there are columns."""

    literals: tuple[str, ...]
    columns: tuple[str, ...]


def parse_template(text: str) -> Template:
    """Split a template at its `{column}` marks; `{{` and `}}` are braces. There is no other syntax.

    Raises:
        InputError: a single brace, or no column at all.
    """
    literals, columns, position = [""], [], 0
    for mark in _MARKS.finditer(text):
        literals[-1] += text[position : mark.start()]
        position = mark.end()
        if mark[1] is not None:
            columns.append(mark[1])
            literals.append("")
        elif len(mark[0]) == 2:
            literals[-1] += mark[0][0]
        else:
            raise InputError(
                f"`input.prompt_template` has a single `{mark[0]}` at character {mark.start()}.",
                f"Write `{mark[0] * 2}` for the character itself.",
            )
    if not columns:
        raise InputError("`input.prompt_template` names no {column}, so all prompts would be the same.", "Name one.")
    return Template((*literals[:-1], literals[-1] + text[position:]), tuple(columns))


def prompt_columns(config: InputConfig) -> tuple[str, ...]:
    """Columns that a prompt is made of."""
    if config.prompt_template is not None:
        return tuple(dict.fromkeys(parse_template(config.prompt_template).columns))
    named = (config.prompt_column, config.token_ids_column)
    return (next((name for name in named if name is not None), "prompt"),)


def prompt_values(config: InputConfig, values: Mapping[str, Sequence[Any]], place: Place) -> list[Value]:
    """Text or token ids of each row of `values` (column -> values), or the reason why there are none."""
    column = prompt_columns(config)[0]
    if config.prompt_template is not None:
        template = parse_template(config.prompt_template)
        rows = zip(*(values[name] for name in template.columns), strict=True)
        return [_rendered(template, row, i, place) for i, row in enumerate(rows)]
    if config.token_ids_column is not None:
        return [_token_ids(value, column, i, place) for i, value in enumerate(values[column])]
    if _are_ascii(values[column]):
        return list(values[column])
    return [_text(value, column, i, place) for i, value in enumerate(values[column])]


def target_values(column: str, values: Sequence[Any], place: Place) -> list[Value]:
    """Text or token ids of each value of a column that is scored, or the reason why there are none."""
    return [
        _token_ids(value, column, i, place, "target")
        if isinstance(value, list)
        else _text(value, column, i, place, "target")
        for i, value in enumerate(values)
    ]


def row_ids(
    column: str | None, values: Sequence[Any], derived: Sequence[str], place: Place
) -> tuple[list[str], dict[int, RowError]]:
    """The id of each row, its key as text, or the derived id where it has none; and what is wrong with bad keys."""
    if column is None:
        return list(derived), {}
    if _are_ascii(values):
        return list(values), {}
    ids, errors = [], {}
    for i, value in enumerate(values):
        error = _key_error(value, column, i, place)
        ids.append(derived[i] if error else str(value))
        if error:
            errors[i] = error
    return ids, errors


def _text(value: Any, column: str, i: int, place: Place, what: str = "prompt") -> str | RowError:
    if value is None:
        return RowError(f"{what}_null", f"column `{column}` is null ({place(i)})")
    if not isinstance(value, str):
        return RowError(f"{what}_not_text", f"column `{column}` must be text, but is {_kind(value)} ({place(i)})")
    if not is_unicode(value):
        return RowError(f"{what}_not_unicode", f"column `{column}` is not valid Unicode ({place(i)})")
    return value


def _rendered(template: Template, row: tuple[Any, ...], i: int, place: Place) -> str | RowError:
    pieces = [template.literals[0]]
    for column, value, literal in zip(template.columns, row, template.literals[1:], strict=True):
        text = str(value) if isinstance(value, (int, float)) else _text(value, column, i, place)
        if isinstance(text, RowError):
            return text
        pieces += (text, literal)
    return "".join(pieces)


def _token_ids(value: Any, column: str, i: int, place: Place, what: str = "prompt") -> list[int] | RowError:
    if value is None:
        return RowError(f"{what}_null", f"column `{column}` is null ({place(i)})")
    if not isinstance(value, list) or not {int, type(None)}.issuperset(map(type, value)):
        return RowError(f"{what}_not_token_ids", f"column `{column}` must be a list of integers ({place(i)})")
    if None in value:
        return RowError("token_id_out_of_range", f"a token id in column `{column}` is null ({place(i)})")
    if value and min(value) < 0:
        return RowError("token_id_out_of_range", f"token id {min(value)} in column `{column}` is negative ({place(i)})")
    return value


def _key_error(value: Any, column: str, i: int, place: Place) -> RowError | None:
    if value is None:
        return RowError("id_null", f"column `{column}` is null ({place(i)})")
    if type(value) not in (str, int):
        return RowError("id_not_text", f"column `{column}` must be text or integer, but is {_kind(value)} ({place(i)})")
    if isinstance(value, str) and not is_unicode(value):
        return RowError("id_not_unicode", f"column `{column}` is not valid Unicode ({place(i)})")
    return None


def _are_ascii(values: Sequence[Any]) -> bool:
    """Whether all are text, and so plain that nothing can be wrong with any."""
    try:
        return all(map(str.isascii, values))
    except TypeError:  # something else is among them
        return False


def is_unicode(text: str) -> bool:
    """False if there is a lone surrogate in it, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    """What JSON calls a value that is not the wanted one."""
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
