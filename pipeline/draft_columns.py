"""Which columns of a data set hold the prompts and the ids of its rows: by their names, types and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.input_columns import is_key, is_text, is_token_ids
from pipeline.survey import Survey

# Names of columns that hold prompts or token ids or keys, the likeliest first.
PROMPTS = ("prompt", "prompts", "text", "input", "instruction", "question", "query", "problem", "sentence", "content")
TOKEN_IDS = ("prompt_token_ids", "input_ids", "token_ids", "tokens")
KEYS = ("id", "row_id", "uid", "uuid", "guid", "key", "prompt_id", "question_id", "idx", "index")

ALIKE = 0.8  # a second text column of this share of the longest one's length may be meant as well


class Choice(NamedTuple):
    """The column that holds the prompts, the key of the job file that names it, and why it was chosen."""

    column: str
    key: str
    why: str


def prompt_of(data: Survey, named: str | None) -> Choice:
    """The column that holds the prompts: the one that is named, or the likeliest.

    Raises:
        InputError: the one that is named cannot, or it cannot be told which does.
    """
    return _named(data, named) if named is not None else _guessed(data)


def keys_of(data: Survey, prompt: Choice) -> list[str]:
    """Columns that may name rows, the likeliest first: of a usual name, and different in every row of the sample."""
    fit = {
        column.casefold(): column
        for column, type_ in data.types.items()
        if type_ is not None and is_key(type_) and column != prompt.column
    }
    usual = [fit[name] for name in KEYS if name in fit]
    return [column for column in usual if len({*data.values[column]} - {None}) == data.num_sampled]


def _sources(data: Survey) -> dict[str, str]:
    """Columns that could hold prompts, with the key of the job file for each."""
    known = {column: type_ for column, type_ in data.types.items() if type_ is not None}
    texts = {column: "prompt_column" for column, type_ in known.items() if is_text(type_)}
    return texts | {column: "token_ids_column" for column, type_ in known.items() if is_token_ids(type_)}


def _named(data: Survey, column: str) -> Choice:
    sources = _sources(data)
    if column not in sources:
        fit = ", ".join(f"`{name}`" for name in sources)
        is_there = f"is {data.types[column] or 'not readable'}" if column in data.types else "is missing"
        raise InputError(f"column `{column}` (--prompt-column) {is_there}; these can hold prompts: {fit}.", "Name one.")
    return Choice(column, sources[column], "as named")


def _guessed(data: Survey) -> Choice:
    """The column with a usual name, else the one with the longest texts, else token ids. A key is no prompt."""
    sources = {column: key for column, key in _sources(data).items() if column.casefold() not in KEYS}
    texts = [column for column, key in sources.items() if key == "prompt_column"]
    if column := _usual(texts, PROMPTS):
        return Choice(column, "prompt_column", "by its name")
    if not texts:
        if column := _usual(sources, TOKEN_IDS) or (next(iter(sources)) if len(sources) == 1 else None):
            return Choice(column, "token_ids_column", "no texts, but lists of integers")
        raise _unclear(data, list(sources or data.types), "do not look like prompts by their names and types")
    first, *others = sorted(texts, key=lambda column: data.mean_length(column), reverse=True)
    if not others:
        return Choice(first, "prompt_column", "the only text")
    size, next_size = data.mean_length(first), data.mean_length(others[0])
    if next_size >= ALIKE * size:
        raise _unclear(data, [first, others[0]], "hold texts of about the same length")
    return Choice(first, "prompt_column", f"longest texts: {size:,.0f} characters, `{others[0]}` {next_size:,.0f}")


def _unclear(data: Survey, columns: Sequence[str], why: str) -> InputError:
    path = data.path if isinstance(data.path, str) else data.path[0]
    names = " and ".join(f"`{column}`" for column in columns)
    return InputError(
        f"columns {names} of {path} {why}.", f"Say which one has the prompts: --prompt-column {columns[0]}."
    )


def _usual(columns: Sequence[str] | Mapping[str, str], names: Sequence[str]) -> str | None:
    by_name = {column.casefold(): column for column in columns}
    return next((by_name[name] for name in names if name in by_name), None)
