"""From records to a part: one declared schema in, the bytes of a Parquet file out.

Nothing is inferred, and nothing in the bytes depends on time, host or replica: two writes of the same rows by one
pyarrow version are identical.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import Completion, FloatArray, RowError
from pipeline.schema import output_schema

ROW_GROUP_BYTES = 96 << 20
DICTIONARY_COLUMNS = ("strategy", "status", "error_type", "finish_reason", "stop_match")
DICTIONARY_LISTS = ("prompt_token_ids", "token_ids", "top_token_ids")


class OutputRow(NamedTuple):
    """One row of the output before it becomes columns.

    Attributes:
        position: of the input row in its shard.
        result: the completion, or why there is none.
        text, stop_match: of the completion.
    """

    position: int
    row_id: str
    row_index: int
    strategy: str
    sample_index: int
    seed: int
    prompt: str | None
    prompt_token_ids: Sequence[int]
    result: Completion | RowError
    text: str | None = None
    stop_match: str | None = None
    prompt_logprobs: FloatArray | None = None


def build_table(rows: Sequence[OutputRow], kept: pa.Table) -> pa.Table:
    """Columns of the output rows.

    Args:
        rows: in the order in which they are to be stored.
        kept: kept columns of the shard, one row per position.
    """
    schema = output_schema(kept.schema)
    kept_rows = kept.take(pa.array([row.position for row in rows], pa.int64()))
    arrays = {name: _typed(values, schema.field(name).type) for name, values in _columns(rows).items()}
    arrays["cumulative_logprob"], arrays["perplexity"] = _totals(arrays["token_logprobs"])
    arrays |= {name: kept_rows[name].combine_chunks() for name in kept.column_names}
    return pa.Table.from_arrays([arrays[field.name] for field in schema], schema=schema)


def encode_part(table: pa.Table, metadata: Mapping[str, str]) -> memoryview:
    """Parquet bytes of a part, with `metadata` in the file's key-value metadata."""
    table = table.replace_schema_metadata(dict(metadata)).combine_chunks()
    schema = table.schema
    leaves = [leaf for field in schema for leaf in _leaves(field.name, field.type)]
    dictionary = [path for path, _ in leaves if path in DICTIONARY_COLUMNS or path.split(".")[0] in DICTIONARY_LISTS]
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(
        buffer,
        schema,
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=dictionary,
        column_encoding={path: "BYTE_STREAM_SPLIT" for path, type_ in leaves if pa.types.is_floating(type_)},
        write_page_index=True,
        write_page_checksum=True,
        sorting_columns=pq.SortingColumn.from_ordering(schema, [("row_index", "ascending")]),
    ) as writer:
        writer.write_table(table, row_group_size=max(1, ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes)))
    return memoryview(buffer.getvalue()).cast("B")


def _columns(rows: Sequence[OutputRow]) -> dict[str, Any]:
    """Values of the declared columns but those of `_totals`; None is null."""
    done = [row.result if isinstance(row.result, Completion) else None for row in rows]
    both = list(zip(rows, done, strict=True))
    errors = [row.result if isinstance(row.result, RowError) else None for row in rows]
    return {
        "row_id": [row.row_id for row in rows],
        "row_index": [row.row_index for row in rows],
        "strategy": [row.strategy for row in rows],
        "sample_index": [row.sample_index for row in rows],
        "status": ["error" if error else "ok" for error in errors],
        "error_type": [error.type if error else None for error in errors],
        "error_message": [error.message if error else None for error in errors],
        "prompt": [row.prompt for row in rows],
        "text": [row.text for row in rows],
        "prompt_token_ids": [row.prompt_token_ids if each else None for row, each in both],
        "token_ids": [each.token_ids if each else None for each in done],
        "finish_reason": [each.finish_reason if each else None for each in done],
        "stop_match": [row.stop_match for row in rows],
        "num_prompt_tokens": [len(row.prompt_token_ids) if each else 0 for row, each in both],
        "num_generated_tokens": [len(each.token_ids) if each else 0 for each in done],
        "token_logprobs": [each.token_logprobs if each else None for each in done],
        "sampling_logprobs": [each.sampling_logprobs if each else None for each in done],
        "token_ranks": [each.token_ranks if each else None for each in done],
        "entropies": [each.entropies if each else None for each in done],
        "top_token_ids": [each.top_token_ids if each else None for each in done],
        "top_probs": [each.top_probs if each else None for each in done],
        "sequence_score": [each.sequence_score if each else None for each in done],
        "prompt_logprobs": [row.prompt_logprobs if each else None for row, each in both],
        "seed": [row.seed for row in rows],
    }


def _totals(token_logprobs: pa.ListArray) -> tuple[pa.Array, pa.Array]:
    """The sum of each row in float64, and its perplexity: exp of the mean negative one, null of no tokens."""
    is_null = token_logprobs.is_null().to_numpy(zero_copy_only=False)
    lengths = token_logprobs.value_lengths().fill_null(0).to_numpy()
    starts = np.cumsum(lengths) - lengths
    values = token_logprobs.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    padded = np.insert(values, starts, 0.0)  # no row is empty, for which `reduceat` has no sum
    sums = np.add.reduceat(padded, starts + np.arange(len(starts)))
    with np.errstate(over="ignore", invalid="ignore"):  # infinite below a mean of -709; 0 / 0 is masked
        perplexities = np.exp(-sums / lengths)
    return pa.array(sums, mask=is_null), pa.array(perplexities, mask=lengths == 0)


def _typed(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """An array of the declared type. In lists NaN becomes null."""
    if not pa.types.is_list(type_):
        return pa.array(values, type_)
    if not pa.types.is_list(type_.value_type):
        return pa.array(values, type_, from_pandas=True)
    tables = [None if value is None or not value.shape[1] else value for value in values]  # nothing recorded: null
    flat = pa.array([None if table is None else table.ravel() for table in tables], type_.value_type, from_pandas=True)
    width = next((table.shape[1] for table in tables if table is not None), 1)
    steps = pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat.values) + 1, width), pa.int32()), flat.values)
    return pa.ListArray.from_arrays(pa.array(flat.offsets.to_numpy() // width), steps, mask=flat.is_null())


def _leaves(name: str, type_: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Parquet leaf columns, as `top_probs.list.element.list.element`."""
    if pa.types.is_list(type_):
        yield from _leaves(f"{name}.list.element", type_.value_type)
    elif pa.types.is_struct(type_):
        for child in type_:
            yield from _leaves(f"{name}.{child.name}", child.type)
    else:
        yield name, type_
