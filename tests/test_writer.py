"""A part from hand-made rows: every value of the table, and how each column lies in the Parquet file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import writer
from pipeline.records import Completion, RowError
from pipeline.schema import output_schema
from pipeline.writer import OutputRow, build_table, encode_part

METADATA = {"batchgen.schema_version": "1", "batchgen.model": "demo", "batchgen.sums": '{"a": 1}'}
NAN = float("nan")


def completion(token_ids: list[int], num_alternatives: int = 2, **changes: Any) -> Completion:
    """A completion that drew its tokens; logprobs are -0.5 each under the model, -0.25 where they were drawn."""
    count = len(token_ids)
    probs = 2.0 ** -np.arange(1, 2 * count + 1).reshape(count, 2)  # exact in float32
    values: dict[str, Any] = {
        "token_ids": np.array(token_ids, np.int32),
        "finish_reason": "length",
        "stop_match": None,
        "token_logprobs": np.full(count, -0.5, np.float32),
        "sampling_logprobs": np.full(count, -0.25, np.float32),
        "token_ranks": np.arange(1, count + 1, dtype=np.int32),
        "entropies": np.full(count, 1.5, np.float32),
        "top_token_ids": np.tile(np.array([7, 8], np.int32), (count, 1))[:, :num_alternatives],
        "top_probs": probs.astype(np.float32)[:, :num_alternatives],
    }
    return Completion(**values | changes)


def row(position: int, strategy: str, sample: int, result: Completion | RowError, **values: Any) -> OutputRow:
    return OutputRow(
        position=position,
        row_id=f"r{position}",
        row_index=100 + position,
        strategy=strategy,
        sample_index=sample,
        seed=2**62 + position,
        result=result,
        **{"prompt": "One", "prompt_token_ids": (1, 2, 3)} | values,
    )


def hand_made_rows() -> list[OutputRow]:
    """Two samples and a beam, an empty completion, and three ways to have none."""
    asked = np.array([NAN, -1.0, -2.0], np.float32)
    stopped = completion([4, 5], finish_reason="stop", stop_match=".")
    beam = completion([6], finish_reason="eos", sampling_logprobs=None, sequence_score=-0.125)
    empty = {"prompt": "", "prompt_token_ids": (9,), "text": "", "prompt_logprobs": np.array([NAN], np.float32)}
    return [
        row(0, "draw", 0, stopped, text="日本 \N{GRINNING FACE}", stop_match=".", prompt_logprobs=asked),
        row(0, "draw", 1, completion([4, 5]), text="half a \N{REPLACEMENT CHARACTER}", prompt_logprobs=asked),
        row(0, "beam", 0, beam, text=" \n\t\0'\"", prompt_logprobs=asked),
        row(1, "draw", 0, completion([]), **empty),
        row(2, "draw", 0, RowError("prompt_null", "it is null"), prompt=None, prompt_token_ids=()),
        row(2, "beam", 0, RowError("prompt_too_long", "129 tokens"), prompt="One " * 99, prompt_token_ids=()),
        row(3, "draw", 0, RowError("no_token_left", "at step 1"), prompt_token_ids=(0,), prompt_logprobs=None),
    ]


def kept_columns() -> pa.Table:
    """One row per position, with every kind of type that may be kept."""
    noon = datetime(2024, 2, 29, 12, 0, 0, 123456)
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {
        "topic": (pa.string(), ["a", "ä \N{GRINNING FACE}", None, ""]),
        "tags": (pa.list_(pa.string()), [["x", None], [], None, ["y"]]),
        "nested": (pa.list_(pa.list_(pa.float64())), [[[0.1], []], None, [None], []]),
        "meta": (
            pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.float32())]))]),
            [{"a": 1, "b": {"c": 0.5}}, {"a": None, "b": None}, None, {"a": 2**62, "b": {"c": None}}],
        ),
        "price": (pa.decimal128(10, 2), [Decimal("1.50"), Decimal("-99999999.99"), None, Decimal("0.00")]),
        "when": (pa.timestamp("us"), [noon, datetime(1970, 1, 1), None, noon]),
        "when_utc": (pa.timestamp("us", "UTC"), [noon.replace(tzinfo=UTC), None, None, noon.replace(tzinfo=UTC)]),
        "day": (pa.date32(), [date(2024, 2, 29), None, date(1969, 12, 31), None]),
        "big": (pa.uint64(), [2**64 - 1, 0, None, 1]),
        "small": (pa.int8(), [-128, 127, 0, 1]),
        "is_odd": (pa.bool_(), [True, False, None, True]),
        "raw": (pa.binary(), [b"\0\xff", b"", None, b"x"]),
        "score": (pa.float64(), [0.1, float("inf"), None, -0.0]),
        "nothing": (pa.string(), [None] * 4),
    }
    return pa.table({name: pa.array(values, type_) for name, (type_, values) in columns.items()})


def hand_made_table() -> pa.Table:
    return build_table(hand_made_rows(), kept_columns())


def hand_made_part() -> memoryview:
    return encode_part(hand_made_table(), METADATA)


@pytest.fixture(scope="module")
def part() -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(hand_made_part()))


def leaves(file: pq.ParquetFile) -> dict[str, pq.ColumnChunkMetaData]:
    group = file.metadata.row_group(0)
    return {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}


# The table


def test_every_value_of_hand_made_rows() -> None:
    table = build_table(hand_made_rows(), kept_columns().select([]))
    first, second, ids, n = [0.5, 0.25], [0.125, 0.0625], [7, 8], None
    expected = {
        "row_id": ["r0", "r0", "r0", "r1", "r2", "r2", "r3"],
        "row_index": [100, 100, 100, 101, 102, 102, 103],
        "strategy": ["draw", "draw", "beam", "draw", "draw", "beam", "draw"],
        "sample_index": [0, 1, 0, 0, 0, 0, 0],
        "status": ["ok", "ok", "ok", "ok", "error", "error", "error"],
        "error_type": [n, n, n, n, "prompt_null", "prompt_too_long", "no_token_left"],
        "error_message": [n, n, n, n, "it is null", "129 tokens", "at step 1"],
        "prompt": ["One", "One", "One", "", n, "One " * 99, "One"],
        "text": ["日本 \N{GRINNING FACE}", "half a \N{REPLACEMENT CHARACTER}", " \n\t\0'\"", "", n, n, n],
        "prompt_token_ids": [[1, 2, 3], [1, 2, 3], [1, 2, 3], [9], n, n, n],
        "token_ids": [[4, 5], [4, 5], [6], [], n, n, n],
        "finish_reason": ["stop", "length", "eos", "length", n, n, n],
        "stop_match": [".", n, n, n, n, n, n],
        "num_prompt_tokens": [3, 3, 3, 1, 0, 0, 0],
        "num_generated_tokens": [2, 2, 1, 0, 0, 0, 0],
        "token_logprobs": [[-0.5, -0.5], [-0.5, -0.5], [-0.5], [], n, n, n],
        "sampling_logprobs": [[-0.25, -0.25], [-0.25, -0.25], n, [], n, n, n],
        "token_ranks": [[1, 2], [1, 2], [1], [], n, n, n],
        "entropies": [[1.5, 1.5], [1.5, 1.5], [1.5], [], n, n, n],
        "top_token_ids": [[ids, ids], [ids, ids], [ids], [], n, n, n],
        "top_probs": [[first, second], [first, second], [first], [], n, n, n],
        "cumulative_logprob": [-1.0, -1.0, -0.5, 0.0, n, n, n],
        "sequence_score": [n, n, -0.125, n, n, n, n],
        "perplexity": [float(np.exp(0.5))] * 3 + [n, n, n, n],
        "prompt_logprobs": [[n, -1.0, -2.0], [n, -1.0, -2.0], [n, -1.0, -2.0], [n], n, n, n],
        "seed": [2**62, 2**62, 2**62, 2**62 + 1, 2**62 + 2, 2**62 + 2, 2**62 + 3],
    }
    assert table.to_pydict() == expected
    assert table.schema == output_schema(pa.schema([]))
    table.validate(full=True)


def test_kept_columns_follow_their_row_and_keep_their_types() -> None:
    kept, table = kept_columns(), hand_made_table()
    assert table.schema == output_schema(kept.schema)
    for name in kept.column_names:
        values = kept[name].to_pylist()
        assert table[name].to_pylist() == [values[position] for position in (0, 0, 0, 1, 2, 2, 3)]


def test_a_kept_column_in_several_chunks_is_one_in_the_table() -> None:
    kept = pa.concat_tables([kept_columns().slice(0, 2), kept_columns().slice(2)])
    assert build_table(hand_made_rows(), kept).equals(hand_made_table())


def test_without_alternatives_their_columns_are_null() -> None:
    table = build_table([row(0, "draw", 0, completion([4, 5], num_alternatives=0))], kept_columns())
    assert table.select(["token_ids", "top_token_ids", "top_probs"]).to_pylist() == [
        {"token_ids": [4, 5], "top_token_ids": None, "top_probs": None}
    ]


def test_no_rows_make_an_empty_part_with_the_whole_schema() -> None:
    kept = kept_columns()
    table = build_table([], kept)
    assert (table.num_rows, table.schema) == (0, output_schema(kept.schema))
    assert pq.read_table(pa.BufferReader(encode_part(table, {}))).schema == table.schema


def test_only_error_rows_make_a_part() -> None:
    rows = [row(0, "draw", 0, RowError("prompt_null", "it is null"), prompt=None, prompt_token_ids=())]
    table = build_table(rows, kept_columns())
    assert table.slice(0, 1)["status"].to_pylist() == ["error"]
    assert pq.read_table(pa.BufferReader(encode_part(table, {}))).equals(table)


def test_a_logprob_of_minus_infinity_stays_what_it_is() -> None:
    rows = [row(0, "draw", 0, completion([4], token_logprobs=np.array([-np.inf], np.float32)))]
    table = pq.read_table(pa.BufferReader(encode_part(build_table(rows, kept_columns()), {})))
    assert table["token_logprobs"].to_pylist() == [[-np.inf]]
    assert table["cumulative_logprob"].to_pylist() == [-np.inf]
    assert table["perplexity"].to_pylist() == [np.inf]


def test_logprobs_are_summed_in_double_precision() -> None:
    values = np.array([-16777216.0, -1.0, -1.0], np.float32)  # 2**24: in float32 the ones would be lost
    table = build_table([row(0, "draw", 0, completion([4, 5, 6], token_logprobs=values))], kept_columns())
    assert table["cumulative_logprob"].to_pylist() == [-16777218.0]


def test_the_perplexity_is_of_the_mean_over_all_tokens_of_the_row() -> None:
    logprobs = np.array([-1.0, -2.0, -6.0], np.float32)
    rows = [row(0, "draw", 0, completion([4, 5, 6], token_logprobs=logprobs))]
    rows += [row(1, "draw", 0, completion([4], token_logprobs=np.array([-1000.0], np.float32)))]
    assert build_table(rows, kept_columns())["perplexity"].to_pylist() == [float(np.exp(3.0)), np.inf]


# The file


def test_a_part_reads_back_as_it_was(part: pq.ParquetFile) -> None:
    assert part.read().equals(hand_made_table())
    assert part.schema_arrow.equals(hand_made_table().schema)


STRINGS = ("row_id", "error_message", "prompt", "text", "topic", "tags.list.element", "nothing", "raw")
NUMBERS = ("row_index", "sample_index", "num_prompt_tokens", "num_generated_tokens", "seed", "meta.a", "price", "when")
NUMBERS += ("when_utc", "day", "big", "small", "is_odd", "token_ranks.list.element")
ENCODINGS = {
    "PLAIN": {*STRINGS, *NUMBERS},
    "RLE_DICTIONARY": {
        "strategy",
        "status",
        "error_type",
        "finish_reason",
        "stop_match",
        "prompt_token_ids.list.element",
        "token_ids.list.element",
        "top_token_ids.list.element.list.element",
    },
    "BYTE_STREAM_SPLIT": {
        "token_logprobs.list.element",
        "sampling_logprobs.list.element",
        "entropies.list.element",
        "top_probs.list.element.list.element",
        "cumulative_logprob",
        "sequence_score",
        "perplexity",
        "prompt_logprobs.list.element",
        "nested.list.element.list.element",
        "meta.b.c",
        "score",
    },
}


def test_each_leaf_has_its_encoding(part: pq.ParquetFile) -> None:
    """pyarrow passes over a wrong leaf name without a word, so every one is looked up in the file."""
    found = {path: encoding_of(column) for path, column in leaves(part).items()}
    assert found == {path: encoding for encoding, paths in ENCODINGS.items() for path in paths}


def encoding_of(column: pq.ColumnChunkMetaData) -> str:
    """Encoding of the values; the dictionary itself is plain, and levels are RLE."""
    for encoding in ("RLE_DICTIONARY", "BYTE_STREAM_SPLIT"):
        if encoding in column.encodings:
            return encoding
    assert set(column.encodings) <= {"PLAIN", "RLE"}
    return "PLAIN"


def test_every_column_is_compressed_and_indexed(part: pq.ParquetFile) -> None:
    for column in leaves(part).values():
        assert column.compression == "ZSTD"
        assert column.has_offset_index
        assert column.has_column_index


def test_rows_are_declared_sorted_by_row_index_only(part: pq.ParquetFile) -> None:
    (sorting,) = part.metadata.row_group(0).sorting_columns
    assert part.schema.column(sorting.column_index).name == "row_index"
    assert (sorting.descending, part.schema.names[1]) == (False, "row_index")


def test_metadata_is_what_was_given_and_the_schema(part: pq.ParquetFile) -> None:
    found = dict(part.metadata.metadata)
    found.pop(b"ARROW:schema")
    assert found == {key.encode(): value.encode() for key, value in METADATA.items()}
    assert part.metadata.format_version == "2.6"


def test_declared_columns_are_plain_types_that_every_reader_knows(part: pq.ParquetFile) -> None:
    def plain(type_: pa.DataType) -> bool:
        if pa.types.is_list(type_):
            return plain(type_.value_type)
        return type_ in (pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64())

    assert all(plain(field.type) for field in output_schema(pa.schema([])))


def test_a_flipped_bit_is_noticed_by_its_checksum(part: pq.ParquetFile) -> None:
    data = bytearray(hand_made_part())
    column = leaves(part)["row_index"]
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


def test_row_groups_are_sized_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    table = build_table(hand_made_rows() * 100, kept_columns())
    assert 64 << 20 <= writer.ROW_GROUP_BYTES <= 128 << 20
    monkeypatch.setattr(writer, "ROW_GROUP_BYTES", -(-table.nbytes // 7))
    metadata = pq.read_metadata(pa.BufferReader(encode_part(table, {})))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100] * 7


def test_a_row_larger_than_a_row_group_has_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROW_GROUP_BYTES", 1)
    metadata = pq.read_metadata(pa.BufferReader(hand_made_part()))
    assert metadata.num_row_groups == len(hand_made_rows())


def test_two_processes_write_the_same_bytes_whatever_their_hash_seed() -> None:
    script = "import sys; from tests.test_writer import hand_made_part; sys.stdout.buffer.write(hand_made_part())"
    parts = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "4"))
    ]
    assert {hashlib.sha256(data).hexdigest() for data in parts} == {hashlib.sha256(hand_made_part()).hexdigest()}


def test_chunks_of_the_table_do_not_change_the_bytes() -> None:
    table = hand_made_table()
    chunked = pa.concat_tables([table.slice(i, 1) for i in range(table.num_rows)])
    assert bytes(encode_part(chunked, METADATA)) == bytes(hand_made_part())
