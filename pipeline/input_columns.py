"""Columns of the input: what each may be used for, and the plain type and values it becomes.

Plain types are those every reader of the output takes: no dictionaries, large or view layouts, nanoseconds or
extension types. All rules are decided from the schema alone, before any data is read, because an extension type of
unknown origin may run code when it is; columns that are not used never matter.
"""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import InputError

MAX_NESTING = 16  # lists and structs in one another: DuckDB takes twice as long to read a column for each more
_EXTENSION_NAME = b"ARROW:extension:name"
_UNITS = {"ns": "us", "s": "ms"}  # Spark refuses files with nanoseconds; Parquet has no seconds
_PLAIN = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.date64(): pa.date32(),
    pa.null(): pa.string(),
}


class Use(NamedTuple):
    """What a column is needed for: the key that names it, and the plain types it may have there."""

    column: str
    key: str
    rule: str
    accepts: Callable[[pa.DataType], bool]


def is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_))


def is_key(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_integer(type_))


def is_scalar(type_: pa.DataType) -> bool:
    """Can be written into a template by `str`."""
    return is_key(type_) or bool(pa.types.is_floating(type_) or pa.types.is_boolean(type_))


def is_token_ids(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) and pa.types.is_integer(type_.value_type))


def is_writable(type_: pa.DataType) -> bool:
    """Every reader of the output takes it: not so float16, times, decimal256, durations, intervals, unions, empty
    structs, list views and run ends (Spark, Polars or the Parquet writer refuse a whole file for one of them), and
    what is nested too deeply."""
    return _nesting(type_) <= MAX_NESTING and _is_plain(type_)


def _is_plain(type_: pa.DataType) -> bool:
    types = pa.types
    refused = (
        types.is_float16(type_),
        types.is_time(type_),
        types.is_decimal256(type_),
        types.is_duration(type_),
        types.is_interval(type_),
        types.is_union(type_),
        types.is_struct(type_) and type_.num_fields == 0,
        types.is_list_view(type_) or types.is_large_list_view(type_),
        types.is_run_end_encoded(type_),
    )
    return not any(refused) and all(_is_plain(child.type) for child in _children(type_))


def _nesting(type_: pa.DataType) -> int:
    """Lists and structs in one another; 0 for a plain value."""
    return max((1 + _nesting(child.type) for child in _children(type_)), default=0)


def check_present(found: Iterable[str], uses: Iterable[Use], where: str) -> None:
    """Raise InputError for a used column that is not among `found`, or is there twice."""
    names = list(found)
    for use in uses:
        if use.column not in names:
            raise InputError(
                f"column `{use.column}` is missing in {where}; {_found(names, use.column)}", f"Set {use.key}."
            )
        if names.count(use.column) > 1:
            raise InputError(
                f"column `{use.column}` ({use.key}) is {names.count(use.column)} times in {where}.", "Rename one."
            )


def check_schema(schema: pa.Schema, uses: Sequence[Use], where: str) -> dict[str, pa.DataType]:
    """Plain types of the used columns of a file. A column of nulls alone, which fits any type, is left out.

    Raises:
        InputError: a column is missing, or its type does not do for its use.
    """
    check_present(schema.names, uses, where)
    types = {}
    for use in uses:
        field = schema.field(use.column)
        type_ = _plain_field_type(field, where)
        if not pa.types.is_null(field.type):
            check_type(type_, use, where)
            types[use.column] = type_
    return types


def check_type(type_: pa.DataType, use: Use, where: str) -> None:
    """Raise InputError if a column of this plain type cannot be used so."""
    if not use.accepts(type_):
        raise InputError(
            f"column `{use.column}` is {type_} in {where}, but {use.rule} ({use.key}).",
            "Cast it in the input, or use another column.",
        )


def plain_type(type_: pa.DataType) -> pa.DataType:
    """The type as it will be written; types with no plain form stay as they are."""
    types = pa.types
    if type_ in _PLAIN:
        return _PLAIN[type_]
    if types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return pa.list_(plain_type(type_.value_type))
    if types.is_map(type_):
        return pa.map_(plain_type(type_.key_type), plain_type(type_.item_type))
    if types.is_struct(type_):
        return pa.struct([pa.field(child.name, plain_type(child.type)) for child in _children(type_)])
    if types.is_timestamp(type_):
        return pa.timestamp(_UNITS.get(type_.unit, type_.unit), type_.tz)
    if types.is_decimal32(type_) or types.is_decimal64(type_):
        return pa.decimal128(type_.precision, type_.scale)
    return type_


def plain_array(column: pa.ChunkedArray, field: pa.Field, type_: pa.DataType, where: str) -> pa.Array:
    """The column in its plain type, as one array. InputError where that would lose digits."""
    extension = _extension_name(field)
    try:
        return pa.concat_arrays(
            [pa.nulls(0, type_), *(_plain_chunk(chunk, extension, type_) for chunk in column.chunks)]
        )
    except pa.ArrowException as error:
        raise InputError(
            f"column `{field.name}` of {where} cannot be written as {type_}: {error}.",
            "Cast it in the input, or leave it out of input.keep_columns.",
        ) from error


def python_values(column: pa.ChunkedArray, field: pa.Field, where: str) -> list[Any]:
    """Values of a prompt or id column. Bytes that are not UTF-8 become lone surrogates, as in `os.fsdecode`."""
    array = plain_array(column, field, _plain_field_type(field, where), where)
    if pa.types.is_float16(array.type) or pa.types.is_float32(array.type):
        array = array.cast(pa.string()).cast(pa.float64())  # 0.1 as float32 is 0.1 to a reader, not 0.10000000149
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        raw = array.cast(pa.binary()).to_pylist()
        values = [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    return values


def without_invalid_text(array: pa.Array) -> tuple[pa.Array, list[int]]:
    """The array with null for each value that holds text which is not UTF-8, and the positions of these."""
    if _is_valid(array):
        return array, []
    good = [_is_valid(array.take(pa.array([i]))) for i in range(len(array))]
    kept = pa.array([i if is_good else None for i, is_good in enumerate(good)], pa.int64())
    return array.take(kept), [i for i, is_good in enumerate(good) if not is_good]


def array_of(values: Sequence[Any], type_: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Python values as an array, with null for those that the type cannot hold, and the positions of these."""
    try:
        return pa.array(values, type_), []
    except (pa.ArrowException, UnicodeError, OverflowError):
        good = [_fits(value, type_) for value in values]
        kept = [value if is_good else None for value, is_good in zip(values, good, strict=True)]
        return pa.array(kept, type_), [i for i, is_good in enumerate(good) if not is_good]


def _fits(value: Any, type_: pa.DataType) -> bool:
    try:
        pa.array([value], type_)
    except (pa.ArrowException, UnicodeError, OverflowError):
        return False
    return True


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _plain_chunk(chunk: pa.Array, extension: str | None, type_: pa.DataType) -> pa.Array:
    if isinstance(chunk, pa.ExtensionArray):
        chunk = chunk.storage
    if extension == "arrow.uuid":
        return pa.array([None if key is None else str(uuid.UUID(bytes=key)) for key in chunk.to_pylist()], type_)
    if isinstance(chunk, pa.DictionaryArray):  # a cast from dictionaries of views is not implemented
        return chunk.dictionary.cast(type_).take(chunk.indices)
    return chunk.cast(type_)


def _plain_field_type(field: pa.Field, where: str) -> pa.DataType:
    """Plain type of a used column, or InputError for an extension type that we do not know to be harmless."""
    nested = next((name for child in _descendants(field.type) if (name := _extension_name(child))), None)
    known = _known_extension(field)
    if nested or (known is None and _extension_name(field)):
        raise InputError(
            f"column `{field.name}` of {where} has the extension type `{nested or _extension_name(field)}`, which is "
            "not read, because reading may run code.",
            "Store it as a plain type, or use another column.",
        )
    return known or plain_type(field.type)


def _known_extension(field: pa.Field) -> pa.DataType | None:
    """Plain type of arrow.uuid, arrow.json and arrow.bool8, if the storage is what the name promises."""
    storage = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    match _extension_name(field):
        case "arrow.uuid" if storage == pa.binary(16):
            return pa.string()
        case "arrow.json" if is_text(plain_type(storage)):
            return pa.string()
        case "arrow.bool8" if storage == pa.int8():
            return pa.bool_()
    return None


def _extension_name(field: pa.Field) -> str | None:
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    name: bytes | None = (field.metadata or {}).get(_EXTENSION_NAME)
    return name.decode("utf-8", "replace") if name is not None else None


def _children(type_: pa.DataType) -> list[pa.Field]:
    if pa.types.is_dictionary(type_):
        return [pa.field("values", type_.value_type)]
    return [type_.field(i) for i in range(type_.num_fields)]


def _descendants(type_: pa.DataType) -> Iterator[pa.Field]:
    for child in _children(type_):
        yield child
        yield from _descendants(child.type)


def _found(names: list[str], wanted: str) -> str:
    """`found ...` for a message, with the name that was perhaps meant; a whole sentence end."""
    if not names:
        return "found no columns."
    names = [name.encode("utf-8", "backslashreplace").decode() for name in names]  # a header in another encoding
    shown = ", ".join(f"`{name}`" for name in names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    close = [name for name in names if name.casefold() == wanted.casefold()]
    close += difflib.get_close_matches(wanted, names, n=1)
    return f"found {shown}" + (f"; did you mean `{close[0]}`?" if close else ".")
