"""What a data set holds, so that a job can be written for it: columns with plain types, rows, and some of the values.

A column that a job could not name is there too, without a type. Values are read of the columns that are flat: text,
numbers, times, and lists of token ids.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline import arrow_files, text_files
from pipeline.config import InputConfig
from pipeline.dataset import read, scan
from pipeline.errors import InputError
from pipeline.forecast import SAMPLED_ROWS, SPANS, spread
from pipeline.input_columns import Use, check_schema, is_text, is_token_ids, is_writable, plain_type
from pipeline.input_files import FoundFile, find, relative_names
from pipeline.input_rows import is_unicode
from pipeline.text_files import Typed


class Survey(NamedTuple):
    """A data set.

    Attributes:
        path: as `input.path` takes it.
        format: of its files.
        num_files, num_rows: of all.
        types: of the columns that all files have; None if the files disagree, or the column cannot be read.
        values: of the sampled rows, by column, where the column is flat.
    """

    path: str | tuple[str, ...]
    format: str
    num_files: int
    num_rows: int
    types: dict[str, pa.DataType | None]
    values: dict[str, list[Any]]

    @property
    def num_sampled(self) -> int:
        """Rows whose values are there."""
        return len(next(iter(self.values.values())))

    def mean_length(self, column: str) -> float:
        """Characters of the texts in a column."""
        return sum(len(value) for value in self.values[column] if isinstance(value, str)) / self.num_sampled


def survey(path: str | Sequence[str], num_rows: int = SAMPLED_ROWS) -> Survey:
    """Look at a data set.

    Args:
        path: as `input.path` takes it.
        num_rows: to read values of, at most, spread over the whole.

    Raises:
        InputError: there is nothing to read, or no column that could hold prompts.
    """
    path = path if isinstance(path, str) else tuple(path)
    found = find(path)
    types = _types(found)
    flat = [column for column, type_ in types.items() if type_ is not None and (is_flat(type_) or is_token_ids(type_))]
    dataset = scan(_any_prompts(path, types, found[0].path), [Use(column, "DATA", "", _anything) for column in flat])
    slices = [read(dataset, lo, hi) for lo, hi in spread(dataset.num_rows, num_rows, SPANS)]
    values = {column: [value for rows in slices for value in rows.others[column]] for column in flat}
    return Survey(path, found[0].format, len(found), dataset.num_rows, types, values)


def is_flat(type_: pa.DataType) -> bool:
    """One plain value a row, which people can read."""
    is_binary = pa.types.is_binary(type_) or pa.types.is_fixed_size_binary(type_)
    return is_writable(type_) and type_.num_fields == 0 and not is_binary


def _anything(_: pa.DataType) -> bool:
    return True


def _any_prompts(path: str | tuple[str, ...], types: dict[str, pa.DataType | None], first: str) -> InputConfig:
    """A source of prompts, so that the data can be read before the real one is chosen."""
    known = {column: type_ for column, type_ in types.items() if type_ is not None}
    for column, type_ in known.items():
        if is_text(type_):
            return InputConfig(path=path, prompt_column=column)
        if is_token_ids(type_):
            return InputConfig(path=path, token_ids_column=column)
    seen = ", ".join(f"`{column}` ({type_ or 'not readable'})" for column, type_ in types.items()) or "no columns"
    raise InputError(
        f"no column of {first} can hold prompts, which are text or lists of token ids; found {seen}.",
        "Write them into a column of such a type.",
    )


def _types(found: Sequence[FoundFile]) -> dict[str, pa.DataType | None]:
    names = relative_names([file.path for file in found])
    of_files = [types for file, name in zip(found, names, strict=True) if (types := _of_file(file, name))]
    common = [column for column in (of_files[0] if of_files else ()) if all(column in types for types in of_files)]
    return {column: _agreed(column, [types[column] for types in of_files], found[0].format) for column in common}


def _agreed(column: str, seen: Sequence[Typed | None], format_: str) -> pa.DataType | None:
    """The one type; JSON types are widened."""
    known = [typed for typed in seen if typed is not None]
    if not is_unicode(column) or len(known) < len(seen):
        return None
    try:
        merged = functools.reduce(functools.partial(text_files.agree, column=column), known)
    except InputError:
        return None
    is_one = format_ == "jsonl" or all(typed.type == merged.type for typed in known)
    return plain_type(merged.type) if is_one else None


def _of_file(found: FoundFile, name: str) -> dict[str, Typed | None]:
    with arrow_files.readable(name, found.format):
        if found.format == "csv":
            return dict.fromkeys(text_files.scan_csv(found.path, name).names, Typed(pa.string(), name))
        if found.format == "jsonl":
            return _of_jsonl(found.path, name)
        schema = arrow_files.inspect(found.path, found.format).schema
        return {column: _of_column(schema, column, name) for column in schema.names}


def _of_column(schema: pa.Schema, column: str, name: str) -> Typed | None:
    try:
        types = check_schema(schema, [Use(column, "DATA", "", _anything)], name)
    except InputError:
        return None
    return Typed(types.get(column, pa.string()), name)


def _of_jsonl(path: str, name: str) -> dict[str, Typed | None]:
    """One pass, or one for each column where values of some column do not go together."""
    try:
        return {**text_files.scan_jsonl(path, name, None).types}
    except InputError:
        columns = text_files.scan_jsonl(path, name, ()).names
    return {column: _of_key(path, name, column) for column in columns}


def _of_key(path: str, name: str, column: str) -> Typed | None:
    try:
        return text_files.scan_jsonl(path, name, [column]).types[column]
    except InputError:
        return None
