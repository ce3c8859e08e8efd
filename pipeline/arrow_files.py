"""Parquet and Arrow files: their schema, and exact ranges of their rows.

A range costs memory for itself and one batch, whatever the size of the file: Parquet is read page by page, Arrow is
mapped. Only the needed columns and row groups are touched. Types are as stored; `input_columns` makes them plain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, StorageError
from pipeline.input_changes import open_file
from pipeline.input_files import InputFile
from pipeline.input_objects import is_url

_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_BATCH_ROWS = 1024  # as fast as larger ones, and a batch of documents must fit


class Layout(NamedTuple):
    """What `InputFile` needs to know of a file, and its schema."""

    format: str
    schema: pa.Schema
    num_rows: int
    seek_index: bytes = b""


@contextmanager
def readable(name: str, format_: str) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged or foreign file into an InputError that names it."""
    try:
        yield
    except StorageError:  # of an object store
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
        raise InputError(
            f"{name} cannot be read as {format_}: {error}.", "Check that it was written completely."
        ) from error


def inspect(path: str, format_: str) -> Layout:
    """Layout of a file of format `parquet` or `arrow`; the latter becomes `arrow_stream` if it is one."""
    if format_ == "parquet":
        with _open_parquet(path) as parquet:
            return Layout("parquet", _parquet_schema(parquet), parquet.metadata.num_rows)
    if _is_stream(path):
        return _inspect_stream(path)
    with _mapped(path) as source:
        schema = pa.ipc.open_file(source).schema
        reader = pa.ipc.open_file(source, options=_options(schema, schema.names[:1]))
        ends = np.cumsum([reader.get_batch(i).num_rows for i in range(reader.num_record_batches)], dtype=np.int64)
        return Layout("arrow", schema, int(ends[-1]) if len(ends) else 0, ends.tobytes())


def read_table(file: InputFile, columns: Sequence[str], lo: int, hi: int) -> pa.Table:
    """Rows [lo, hi) of one file, 0 <= lo < hi <= num_rows; field metadata as `inspect` gave it."""
    match file.format:
        case "parquet":
            return _read_parquet(file, columns, lo, hi)
        case "arrow":
            return _read_arrow(file, columns, lo, hi)
        case _:
            return _read_stream(file, columns, lo, hi)


@dataclass(slots=True)
class _Onward:
    """A Parquet file that is being read from the start of some row group on.

    Attributes:
        schema: of the wanted columns.
        starts: row at which each row group starts; the last entry is the number of rows.
        batches: that were not read yet; of the next row group when it is come to.
        position: row that comes next.
        rest: of the batch that it lies in.
    """

    schema: pa.Schema
    starts: npt.NDArray[np.int64]
    batches: Iterator[pa.RecordBatch]
    position: int
    rest: pa.RecordBatch | None = None

    def leads_to(self, row: int) -> bool:
        """Whether to go on is the shortest way to a row: a row group can only be decoded from its start."""
        return bool(self.starts[_group_of(row, self.starts)] <= self.position <= row)

    def until(self, hi: int) -> Iterator[pa.RecordBatch]:
        """All before row hi."""
        while self.position < hi:
            batch = self.rest or next(self.batches)
            count = min(batch.num_rows, hi - self.position)
            self.position, self.rest = self.position + count, batch.slice(count)
            yield batch.slice(0, count)


_onward: dict[tuple[InputFile, tuple[str, ...]], _Onward] = {}  # what was read last, while nobody reads it


def _read_parquet(file: InputFile, columns: Sequence[str], lo: int, hi: int) -> pa.Table:
    """Goes on from the last range where it can, or else the shards of a large row group would each decode all of it."""
    key = file, tuple(columns)
    reader = _onward.pop(key, None)
    if reader is None or not reader.leads_to(lo):
        reader = _open_at(lo, file.path, columns)
    start = reader.position
    table = _cut(reader.until(hi), reader.schema, lo - start, hi - start)
    _onward.clear()
    _onward[key] = reader
    return table


def _open_at(row: int, path: str, columns: Sequence[str]) -> _Onward:
    parquet = _open_parquet(path)
    meta = parquet.metadata
    starts = np.cumsum([0, *(meta.row_group(group).num_rows for group in range(meta.num_row_groups))])
    first = _group_of(row, starts)
    batches = (
        batch
        for group in range(first, meta.num_row_groups)
        for batch in parquet.iter_batches(_BATCH_ROWS, [group], list(columns), use_threads=False)
    )
    return _Onward(_select(_parquet_schema(parquet), columns), starts, batches, int(starts[first]))


def _group_of(row: int, starts: npt.NDArray[np.int64]) -> int:
    return int(np.searchsorted(starts, row, "right")) - 1


def _read_arrow(file: InputFile, columns: Sequence[str], lo: int, hi: int) -> pa.Table:
    ends = np.frombuffer(file.seek_index, np.int64)
    first = int(np.searchsorted(ends, lo, "right"))
    start = int(ends[first - 1]) if first else 0
    with _mapped(file.path) as source:
        schema = pa.ipc.open_file(source).schema
        reader = pa.ipc.open_file(source, options=_options(schema, columns))
        batches = (reader.get_batch(i) for i in range(first, len(ends)))
        return _cut(batches, _select(schema, columns), lo - start, hi - start)


def _read_stream(file: InputFile, columns: Sequence[str], lo: int, hi: int) -> pa.Table:
    """A stream has no index; walking it touches only the headers of its batches."""
    schema = _stream_schema(file.path)
    with _mapped(file.path) as source, pa.ipc.open_stream(source, options=_options(schema, columns)) as reader:
        return _cut(reader, _select(schema, columns), lo, hi)


def _cut(batches: Iterable[pa.RecordBatch], schema: pa.Schema, lo: int, hi: int) -> pa.Table:
    """Rows [lo, hi) counted from the first batch. Stops reading at hi."""
    pieces, position = [], 0
    for batch in batches:
        start, stop = max(lo - position, 0), min(hi - position, batch.num_rows)
        if start < stop:
            piece = batch.select(schema.names).slice(start, stop - start)
            for column in piece.columns:
                _check_layout(column)
            pieces.append(pa.record_batch(piece.columns, schema=schema))
        position += batch.num_rows
        if position >= hi:
            break
    return pa.Table.from_batches(pieces, schema)


def _check_layout(array: pa.Array) -> None:
    """Raise ArrowInvalid if offsets or indices of a damaged file point outside its data: to follow them may crash.

    Text is looked at as bytes, for what is not UTF-8 spoils only its own row.
    """
    array.view(_without_text(array.type)).validate(full=True)


def _without_text(type_: pa.DataType) -> pa.DataType:
    """The type with the same layout that holds bytes where there is text."""
    types = pa.types
    if type_ in _BYTES:
        return _BYTES[type_]
    if types.is_list(type_):
        return pa.list_(_without_text(type_.value_type))
    if types.is_large_list(type_):
        return pa.large_list(_without_text(type_.value_type))
    if types.is_fixed_size_list(type_):
        return pa.list_(_without_text(type_.value_type), type_.list_size)
    if types.is_map(type_):
        return pa.map_(_without_text(type_.key_type), _without_text(type_.item_type))
    if types.is_struct(type_):
        return pa.struct([(field.name, _without_text(field.type)) for field in type_])
    if types.is_dictionary(type_):
        return pa.dictionary(type_.index_type, _without_text(type_.value_type), type_.ordered)
    return type_


def _open_parquet(path: str) -> Any:
    # pre_buffer=True, the default, would hold whole column chunks of a row group.
    return pq.ParquetFile(
        open_file(path) if is_url(path) else path, arrow_extensions_enabled=False, pre_buffer=False, buffer_size=1 << 18
    )


def _mapped(path: str) -> Any:
    """The bytes of an Arrow file, read as they are needed."""
    return pa.PythonFile(open_file(path)) if is_url(path) else pa.memory_map(path)


def _parquet_schema(parquet: Any) -> pa.Schema:
    """Arrow schema with the name arrow.uuid on columns that only Parquet's own types mark as UUID (DuckDB, Spark)."""
    leaves = [parquet.schema.column(i) for i in range(len(parquet.schema.names))]
    uuids = {leaf.path for leaf in leaves if leaf.logical_type.type == "UUID"}
    mark = {b"ARROW:extension:name": b"arrow.uuid"}
    schema = parquet.schema_arrow
    return pa.schema(
        [
            field.with_metadata(mark) if field.name in uuids and field.type == pa.binary(16) else field
            for field in schema
        ]
    )


def _is_stream(path: str) -> bool:
    with open_file(path) as stream:
        magic = stream.read(6)
    if magic.startswith(b"FEA1"):
        raise InputError(f"{path} is a Feather V1 file, which is not read.", "Write it again with a current pyarrow.")
    return magic != b"ARROW1"


def _inspect_stream(path: str) -> Layout:
    schema = _stream_schema(path)
    options = _options(schema, schema.names[:1])
    with _mapped(path) as source, pa.ipc.open_stream(source, options=options) as reader:
        return Layout("arrow_stream", schema, sum(batch.num_rows for batch in reader))


def _stream_schema(path: str) -> pa.Schema:
    with _mapped(path) as source, pa.ipc.open_stream(source) as reader:
        return reader.schema


def _options(schema: pa.Schema, columns: Sequence[str]) -> Any:
    """Only these columns, in the order of the file; others are neither decompressed nor decoded."""
    fields = [index for name in columns for index in schema.get_all_field_indices(name)]
    return pa.ipc.IpcReadOptions(included_fields=sorted(fields), use_threads=False)


def _select(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in columns])
