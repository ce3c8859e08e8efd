"""The input as one long table: `scan` looks at it once, `read` gives any range of its rows.

`scan` finds the files, checks names and types from the schema alone, counts and digests; the `Dataset` it returns is
small, can be pickled, and is all that `read` needs on another machine that sees the same paths. A row that cannot be
used is not an error here: its place among the prompts holds a RowError. Neither torch, ray nor `datasets` is imported:
the last two register Arrow types that run on every file opened after them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline import arrow_files, input_columns, text_files
from pipeline.config import InputConfig
from pipeline.errors import InputError
from pipeline.input_changes import changed, open_file, stamp_of, unchanged
from pipeline.input_columns import Use
from pipeline.input_files import TEXT_FORMATS, FoundFile, InputFile, Stamp, find, relative_names
from pipeline.input_rows import Place, Value, is_unicode, prompt_columns, prompt_values, row_ids
from pipeline.records import RowError
from pipeline.schema import output_schema
from pipeline.text_files import Typed

IDS_AT_A_TIME = 65_536

__all__ = ["Dataset", "InputFile", "Slice", "check_kept_names", "read", "scan"]


@dataclass(frozen=True)
class Dataset:
    """The whole input: its files in order, the columns passed through, in the types they will be written in, and those
    that are read for other uses than prompts and ids."""

    config: InputConfig
    files: tuple[InputFile, ...]
    kept_schema: pa.Schema
    others: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)


@dataclass(frozen=True)
class Slice:
    """Rows [first_row, first_row + n) of the input; everything here has n entries.

    `prompts` holds text, token ids, or why the row has none. `row_ids` is the key of the row, or file and position.
    `others` holds the plain values of the other columns that are used.
    """

    first_row: int
    row_ids: list[str]
    prompts: list[Value]
    kept: pa.Table
    others: dict[str, list[Any]]


class _Scanned(NamedTuple):
    file: InputFile
    types: dict[str, Typed]


class _Rows(NamedTuple):
    """A range of one file: the columns whose values are used, the kept ones with the positions of values that could not
    be kept, and the records that could not be parsed."""

    values: dict[str, list[Any]]
    kept: dict[str, tuple[pa.Array, list[int]]]
    unreadable: dict[int, RowError]


def scan(config: InputConfig, other_uses: Sequence[Use] = ()) -> Dataset:
    """Find the input and check that it is what the job says.

    Args:
        config: where it is, and the columns of prompts, ids and what is kept.
        other_uses: columns that are needed beside these.

    Raises:
        InputError: files, columns or types are missing or wrong, or there is not a single row.
    """
    uses = [*_uses(config), *other_uses]
    check_kept_names(config.keep_columns)
    found = find(config.path)
    names = relative_names([file.path for file in found])
    scanned = [_scan_file(file, name, uses, config) for file, name in zip(found, names, strict=True)]
    files = tuple(one.file for one in scanned)
    if not any(file.num_rows for file in files):
        num = f"{len(files)} file{'s' * (len(files) != 1)}"
        raise InputError(f"`input.path` has no rows ({num}, the first {files[0].path}).", "Point it at data that has.")
    types = _common_types(scanned)
    others = tuple(dict.fromkeys(use.column for use in other_uses))
    dataset = Dataset(config, files, _kept_schema(config, types, files), others)
    if config.id_column is not None:
        _check_unique_ids(dataset)
    return dataset


def read(dataset: Dataset, lo: int, hi: int) -> Slice:
    """Rows [lo, hi) of the whole input, 0 <= lo <= hi <= num_rows.

    Raises:
        InputError: a file is gone, changed or damaged, or a kept value would lose digits.
    """
    assert 0 <= lo <= hi <= dataset.num_rows, (lo, hi, dataset.num_rows)
    parts = [_read_file(dataset, file, start, stop) for file, start, stop in _spans(dataset.files, lo, hi)]
    kept = pa.concat_tables([dataset.kept_schema.empty_table(), *(part.kept for part in parts)])
    return Slice(
        lo,
        [row_id for part in parts for row_id in part.row_ids],
        [prompt for part in parts for prompt in part.prompts],
        kept if dataset.kept_schema.names else pa.table({"": pa.nulls(hi - lo)}).select([]),  # rows without columns
        {column: [value for part in parts for value in part.others[column]] for column in dataset.others},
    )


def _check_unique_ids(dataset: Dataset) -> None:
    """Refuse ids that occur twice: their rows would draw the same samples, and nobody could tell them apart.

    Keeps eight bytes per row, so that a large input fits; ids with equal hashes are then compared.
    """
    hashes = np.concatenate([np.fromiter(map(hash, ids), np.int64, len(ids)) for _, ids in _all_ids(dataset)])
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    first_rows: dict[str, int] = {}
    for first_row, ids in _all_ids(dataset) if suspects else ():
        for row, row_id in enumerate(ids, start=first_row):
            if hash(row_id) in suspects and first_rows.setdefault(row_id, row) != row:
                raise InputError(
                    f"id `{row_id}` stands twice in column `{dataset.config.id_column}`: in rows {first_rows[row_id]} "
                    f"and {row} of the input.",
                    "Make the ids unique, or leave input.id_column out to name rows by file and position.",
                )


def _all_ids(dataset: Dataset) -> Iterator[tuple[int, list[str]]]:
    """Row ids of the whole input, a range at a time with its first row; no other column is read."""
    only = {"prompt_column": dataset.config.id_column, "prompt_template": None, "token_ids_column": None}
    ids = Dataset(dataset.config.model_copy(update=only), dataset.files, pa.schema([]))
    for lo in range(0, dataset.num_rows, IDS_AT_A_TIME):
        yield lo, read(ids, lo, min(lo + IDS_AT_A_TIME, dataset.num_rows)).row_ids


def _uses(config: InputConfig) -> list[Use]:
    """Every column the job names, with what it is for."""
    uses = [Use(column, *_prompt_use(config)) for column in prompt_columns(config)]
    if config.id_column is not None:
        uses.append(Use(config.id_column, "input.id_column", "an id must be text or an integer", input_columns.is_key))
    return [*uses, *_kept_uses(config)]


def _prompt_use(config: InputConfig) -> tuple[str, str, Callable[[pa.DataType], bool]]:
    if config.prompt_template is not None:
        return "input.prompt_template", "a template takes text, numbers and booleans", input_columns.is_scalar
    if config.token_ids_column is not None:
        return "input.token_ids_column", "token ids must be lists of integers", input_columns.is_token_ids
    return "input.prompt_column", "a prompt must be text", input_columns.is_text


def _kept_uses(config: InputConfig) -> list[Use]:
    rule = "some readers of the output refuse such a type"
    return [Use(column, "input.keep_columns", rule, input_columns.is_writable) for column in config.keep_columns]


def check_kept_names(columns: Sequence[str]) -> None:
    """Refuse names that are in the output already. Spark and DuckDB do not tell `Text` from `text`.

    Raises:
        InputError: such a name, or one that is not valid Unicode.
    """
    taken = {name.casefold(): f"the output has its own `{name}`" for name in output_schema(pa.schema([])).names}
    for column in columns:
        if not is_unicode(column):
            raise InputError(
                f"`input.keep_columns` cannot have {column!r}: it is not valid Unicode.", "Rename the column."
            )
        if column.casefold() in taken:
            raise InputError(
                f"`input.keep_columns` cannot have `{column}`: {taken[column.casefold()]}, and case does not count.",
                "Rename the column in the input, or leave it out.",
            )
        taken[column.casefold()] = f"it has `{column}` already"


def _scan_file(found: FoundFile, name: str, uses: list[Use], config: InputConfig) -> _Scanned:
    stamp = stamp_of(found.path)
    scanned = _scan_content(found, name, stamp, uses, config)
    if stamp_of(found.path) != stamp:
        raise InputError(f"{found.path} changed while it was read.", "Wait until it is written, then start again.")
    return scanned


def _scan_content(found: FoundFile, name: str, stamp: Stamp, uses: list[Use], config: InputConfig) -> _Scanned:
    if found.format in TEXT_FORMATS:
        return _scan_text(found, name, stamp, uses, config)
    with arrow_files.readable(name, found.format):
        layout = arrow_files.inspect(found.path, found.format)
        types = input_columns.check_schema(layout.schema, uses, name)
        with open_file(found.path) as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    file = InputFile(found.path, name, layout.format, layout.num_rows, stamp[0], sha256, stamp, layout.seek_index)
    return _Scanned(file, {column: Typed(type_, name) for column, type_ in types.items()})


def _scan_text(found: FoundFile, name: str, stamp: Stamp, uses: list[Use], config: InputConfig) -> _Scanned:
    """A text file without rows has no columns to check."""
    with arrow_files.readable(name, found.format):
        if found.format == "csv":
            text = text_files.scan_csv(found.path, name)
        else:
            text = text_files.scan_jsonl(found.path, name, config.keep_columns)
    types = text.types
    if found.format == "csv" and text.names:
        input_columns.check_present(text.names, uses, name)
        for use in uses:
            input_columns.check_type(pa.string(), use, name)
        types = {use.column: Typed(pa.string(), name) for use in uses}
    elif text.num_rows:
        required = [use for use in uses if use.key != "input.keep_columns"]  # a kept key may be missing in one file
        input_columns.check_present(text.names, required, name)
    file = InputFile(found.path, name, found.format, text.num_rows, stamp[0], text.sha256, stamp, text.seek_index)
    return _Scanned(file, types)


def _common_types(scanned: Iterable[_Scanned]) -> dict[str, pa.DataType]:
    """The type of each used column over all files: the same in each, except that JSON types are widened."""
    types: dict[str, Typed] = {}
    for file, found in scanned:
        for column, typed in found.items():
            known = types.setdefault(column, typed)
            if file.format == "jsonl":
                types[column] = text_files.agree(known, typed, column)
            elif typed.type != known.type:
                raise InputError(
                    f"column `{column}` is {known.type} in {known.place}, but {typed.type} in {typed.place}.",
                    "Give it one type in all files.",
                )
    return {column: input_columns.plain_type(typed.type) for column, typed in types.items()}


def _kept_schema(config: InputConfig, types: dict[str, pa.DataType], files: tuple[InputFile, ...]) -> pa.Schema:
    """Types of the kept columns; text where all files hold only nulls. A JSON key must occur at least once."""
    if files[0].format == "jsonl":
        where = files[0].name if len(files) == 1 else f"all {len(files)} files"
        input_columns.check_present(types, _kept_uses(config), where)
        for use in _kept_uses(config):
            input_columns.check_type(types[use.column], use, where)
    return pa.schema([(column, types.get(column, pa.string())) for column in config.keep_columns])


def _spans(files: Iterable[InputFile], lo: int, hi: int) -> Iterator[tuple[InputFile, int, int]]:
    """The files that rows [lo, hi) lie in, with the rows of each, counted in the file."""
    start = 0
    for file in files:
        first, last = max(lo - start, 0), min(hi - start, file.num_rows)
        if first < last:
            yield file, first, last
        start += file.num_rows


def _read_file(dataset: Dataset, file: InputFile, lo: int, hi: int) -> Slice:
    config = dataset.config
    rows = _read_rows(dataset, file, lo, hi)
    place = functools.partial(_place, file.name, lo)
    derived = [f"{file.name}:{row}" for row in range(lo, hi)]
    ids, bad_ids = row_ids(config.id_column, rows.values.get(config.id_column or "", []), derived, place)
    prompts = prompt_values(config, rows.values, place)
    for i, error in _kept_errors(rows, place).items():
        prompts[i] = prompts[i] if isinstance(prompts[i], RowError) else error
    for i, error in {**bad_ids, **rows.unreadable}.items():
        prompts[i] = error
    kept = pa.table({column: array for column, (array, _) in rows.kept.items()}, schema=dataset.kept_schema)
    others = {column: rows.values[column] for column in dataset.others}
    return Slice(lo, ids, prompts, kept, others)


def _place(name: str, first_row: int, i: int) -> str:
    return f"{name}, row {first_row + i}"


def _kept_errors(rows: _Rows, place: Place) -> dict[int, RowError]:
    return {
        i: RowError("bad_kept_value", f"column `{column}` holds a value that cannot be written ({place(i)})")
        for column, (_, bad) in rows.kept.items()
        for i in bad
    }


def _read_rows(dataset: Dataset, file: InputFile, lo: int, hi: int) -> _Rows:
    config = dataset.config
    ids = [] if config.id_column is None else [config.id_column]
    used = dict.fromkeys([*prompt_columns(config), *ids, *dataset.others])
    with unchanged(file), arrow_files.readable(file.name, file.format):
        if file.format in TEXT_FORMATS:
            rows = _text_rows(file, list(used), dataset.kept_schema, lo, hi)
        else:
            rows = _arrow_rows(file, list(used), dataset.kept_schema, lo, hi)
    if any(len(values) != hi - lo for values in rows.values.values()):
        raise changed(file, "it has other rows")
    return rows


def _arrow_rows(file: InputFile, used: list[str], kept_schema: pa.Schema, lo: int, hi: int) -> _Rows:
    table = arrow_files.read_table(file, list(dict.fromkeys([*used, *kept_schema.names])), lo, hi)
    fields = {field.name: field for field in table.schema}
    values = {column: input_columns.python_values(table[column], fields[column], file.name) for column in used}
    plain = {
        kept.name: input_columns.plain_array(table[kept.name], fields[kept.name], kept.type, file.name)
        for kept in kept_schema
    }
    return _Rows(values, {name: input_columns.without_invalid_text(array) for name, array in plain.items()}, {})


def _text_rows(file: InputFile, used: list[str], kept_schema: pa.Schema, lo: int, hi: int) -> _Rows:
    rows = text_files.read_rows(file, lo, hi)
    unreadable = {i: row for i, row in enumerate(rows) if isinstance(row, RowError)}
    records: list[dict[str, Any]] = [{} if isinstance(row, RowError) else row for row in rows]
    values = {column: [record.get(column) for record in records] for column in used}
    kept = {
        field.name: input_columns.array_of([record.get(field.name) for record in records], field.type)
        for field in kept_schema
    }
    return _Rows(values, kept, unreadable)
