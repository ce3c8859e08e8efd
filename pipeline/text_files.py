"""JSONL and CSV files: one pass that counts, digests and indexes them, and exact ranges of their records.

JSONL is one object per line; blank lines are skipped. CSV has a header, commas, `"` quotes and text in every column; a
record ends at a line end outside quotes, told by the parity of the quotes so far. A record that cannot be parsed is a
RowError in its place. Bytes that are not UTF-8 become lone surrogates, so that they spoil only the value they are in.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.input_columns import MAX_NESTING
from pipeline.input_files import InputFile
from pipeline.records import RowError

_STRIDE = 1024  # records between two entries of the index
_MAX_RECORD_BYTES = 64 << 20  # a longer CSV record is a quote that was never closed
_BOM = b"\xef\xbb\xbf"
_OPENING_QUOTE = re.compile(rb'(?:\A(?:\xef\xbb\xbf)?|,)"')
_SCALARS = {type(None): pa.null(), bool: pa.bool_(), float: pa.float64(), str: pa.string()}

Row = dict[str, Any] | RowError


class Record(NamedTuple):
    """The bytes of a record, where they start and on which line, from 1."""

    offset: int
    line: int
    data: bytes


class Typed(NamedTuple):
    """The type of a column, and a place where it was seen."""

    type: pa.DataType
    place: str


class TextScan(NamedTuple):
    """What one pass over a text file gives. `types` holds the kept JSONL columns that occur in it."""

    names: tuple[str, ...]
    num_rows: int
    sha256: str
    seek_index: bytes
    types: dict[str, Typed]


class _SeekIndex:
    """Counts records and remembers where every 1024th of them starts."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._entries: list[tuple[int, int]] = []

    def add(self, record: Record) -> None:
        if self.num_rows % _STRIDE == 0:
            self._entries.append((record.offset, record.line))
        self.num_rows += 1

    def pack(self) -> bytes:
        return np.array(self._entries, np.int64).tobytes()


class _TypeClashError(Exception):
    """Two JSON values that no one column type holds."""


def scan_csv(path: str, name: str) -> TextScan:
    """Header, number of records, digest and index of a CSV file. An empty file has no rows and no columns."""
    digest = hashlib.sha256()
    index = _SeekIndex()
    with open(path, "rb") as stream:
        records = _records(_hashed(stream, digest), name, quoted=True)
        header = next(records, None)
        names = _header(header, name) if header else ()
        for record in records:
            index.add(record)
            if b"\n" in record.data and isinstance(row := _parse_csv(record, names, name), RowError):
                raise InputError(f"a quote opens a field and swallows lines: {row.message}.", "Mend the quotes there.")
    return TextScan(names, index.num_rows, digest.hexdigest(), index.pack(), {})


def scan_jsonl(path: str, name: str, kept: Collection[str] | None) -> TextScan:
    """Keys, number of records, digest and index of a JSONL file, and the types of the kept columns over all of it.

    Args:
        path: of the file.
        name: of the file in messages.
        kept: columns whose types are found out; None for all there are.

    Raises:
        InputError: a kept column holds types that do not go together, or no line is an object.
    """
    digest, index = hashlib.sha256(), _SeekIndex()
    names: dict[str, None] = {}
    types: dict[str, Typed] = {}
    with open(path, "rb") as stream:
        for record in _records(_hashed(stream, digest), name, quoted=False):
            index.add(record)
            row = _parse_json(record, name)
            if isinstance(row, RowError):
                continue
            names.update(dict.fromkeys(row))
            for column in row if kept is None else kept:
                if column in row:
                    types[column] = _widened(types.get(column), row[column], column, record.line, name)
    if index.num_rows and not names:
        raise InputError(f"no line of {name} is a JSON object with keys.", "Write one object per line.")
    return TextScan(tuple(names), index.num_rows, digest.hexdigest(), index.pack(), types)


def read_rows(file: InputFile, lo: int, hi: int) -> list[Row]:
    """Records [lo, hi) of a text file as dictionaries, 0 <= lo < hi <= num_rows."""
    quoted = file.format == "csv"
    offset, line = np.frombuffer(file.seek_index, np.int64).reshape(-1, 2)[lo // _STRIDE].tolist()
    with open(file.path, "rb") as stream:
        header = _header(next(_records(stream, file.name, quoted=True)), file.name) if quoted else ()
        stream.seek(offset)
        skipped = lo % _STRIDE
        records = islice(_records(stream, file.name, quoted, offset, line), skipped, skipped + hi - lo)
        if quoted:
            return [_parse_csv(record, header, file.name) for record in records]
        return [_parse_json(record, file.name) for record in records]


def agree(a: Typed, b: Typed, column: str) -> Typed:
    """The type that holds the values of both; InputError if there is none."""
    try:
        merged = _merge(a.type, b.type)
    except _TypeClashError as error:
        raise InputError(
            f"column `{column}` has values that do not go together: {error} ({a.place}, {b.place}).",
            "Use one type for it, or leave it out of input.keep_columns.",
        ) from None
    return a if merged == a.type else Typed(merged, b.place)


def _records(lines: Iterable[bytes], name: str, quoted: bool, offset: int = 0, line: int = 1) -> Iterator[Record]:
    """Records from the lines that start at `offset`, without blank ones and the byte-order mark."""
    parts: list[bytes] = []
    size, first_line, is_open = 0, line, False
    for raw in lines:
        parts.append(raw)
        size, line = size + len(raw), line + 1
        is_open = quoted and _is_open_after(raw, is_open)
        if is_open and size <= _MAX_RECORD_BYTES:
            continue
        if is_open:
            break
        data = b"".join(parts)
        if offset == 0:
            data = data.removeprefix(_BOM)
        data = data.rstrip(b"\r\n")
        if data if quoted else data.strip():
            yield Record(offset, first_line, data)
        parts, size, offset, first_line = [], 0, offset + size, line
    if is_open:
        raise InputError(
            f'a `"` in the record at line {first_line} of {name} is never closed.',
            'Quote the field, and write a quote inside it as `""`.',
        )


def _is_open_after(line: bytes, is_open: bool) -> bool:
    """Whether a quoted field is open at the end of a CSV line. A quote opens a field only at its start: the one in
    `5" nail` is a character like others."""
    position = 0
    while True:
        if is_open:
            closing = line.find(b'"', position)
            if closing < 0:
                return True
            is_doubled = line[closing + 1 : closing + 2] == b'"'
            is_open, position = is_doubled, closing + (2 if is_doubled else 1)
        else:
            opening = _OPENING_QUOTE.search(line, position)
            if opening is None:
                return False
            is_open, position = True, opening.end()


def _hashed(stream: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for raw in stream:
        digest.update(raw)
        yield raw


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _parse_json(record: Record, name: str) -> Row:
    try:
        row = json.loads(_decode(record.data))
    except json.JSONDecodeError as error:
        return RowError("bad_json", f"{error.msg} at character {error.pos} ({name}, line {record.line})")
    except (ValueError, RecursionError):
        return RowError("bad_json", f"nested too deeply, or a number is too long ({name}, line {record.line})")
    if not isinstance(row, dict):
        return RowError("bad_json", f"not an object, but {type(row).__name__} ({name}, line {record.line})")
    return row


def _parse_csv(record: Record, header: tuple[str, ...], name: str) -> Row:
    try:
        fields = _fields(record.data)
    except csv.Error:
        why = "a quote stands inside a field; quote the whole field and write the inner quote twice"
        return RowError("bad_csv", f"{why} ({name}, line {record.line})")
    if len(fields) != len(header):
        return RowError(
            "bad_csv",
            f"the record has {len(fields)} fields where the header has {len(header)} ({name}, line {record.line})",
        )
    return dict(zip(header, fields, strict=True))


def _fields(data: bytes) -> list[str]:
    csv.field_size_limit(_MAX_RECORD_BYTES)  # the default of 131,072 is less than some documents
    return next(csv.reader([_decode(data)], strict=True))


def _header(record: Record, name: str) -> tuple[str, ...]:
    try:
        return tuple(_fields(record.data))
    except csv.Error as error:
        raise InputError(
            f"the header of {name} is not a CSV record: {error}.", "Name the columns in the first line."
        ) from None


def _widened(known: Typed | None, value: Any, column: str, line: int, name: str) -> Typed:
    """The type that holds what was seen before and this value."""
    try:
        type_ = _infer(value)
        if known and type_ == known.type:
            return known
    except _TypeClashError as error:
        raise InputError(
            f"column `{column}` has {error} (line {line} of {name}).",
            "Change it, or leave it out of input.keep_columns.",
        ) from None
    seen = Typed(type_, f"line {line} of {name}")
    return agree(known, seen, column) if known else seen


def _infer(value: Any, nesting: int = 0) -> pa.DataType:
    if nesting > MAX_NESTING:
        raise _TypeClashError(f"values nested more than {MAX_NESTING} deep")
    if type(value) is int:
        if -(2**63) <= value < 2**63:
            return pa.int64()
        raise _TypeClashError(f"the integer {value}, which does not fit 64 bits")
    if isinstance(value, list):
        items = (_infer(item, nesting + 1) for item in value)
        return pa.list_(functools.reduce(_merge, items, pa.null()))
    if isinstance(value, dict):
        return pa.struct([pa.field(_checked_key(key), _infer(child, nesting + 1)) for key, child in value.items()])
    return _SCALARS[type(value)]


def _checked_key(key: str) -> str:
    try:
        key.encode()
    except UnicodeEncodeError:
        raise _TypeClashError(f"the key {key!r}, which is not valid Unicode") from None
    return key


def _merge(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type that holds values of both: null fits all, integers fit float64, structs unite their keys."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(a) and pa.types.is_list(b):
        return pa.list_(_merge(a.value_type, b.value_type))
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        fields: Mapping[str, pa.DataType] = {child.name: child.type for child in a.fields}
        others = {child.name: child.type for child in b.fields}
        return pa.struct(
            [(key, _merge(fields.get(key, pa.null()), others.get(key, pa.null()))) for key in {**fields, **others}]
        )
    raise _TypeClashError(f"{a} and {b}")
