"""Hostile and broken inputs, made by hand and at random: refused with a clear error, or an error row per bad row.

Never a crash, never code executed, never a row lost: what can be read goes through a whole shard, and every input row
must come out. The long version (`make fuzz-inputs`) does the same for minutes; a crash there leaves the file behind.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import pickle
import random
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import InputConfig
from pipeline.dataset import scan
from pipeline.errors import InputError
from pipeline.plan import make_plan
from pipeline.shard import Setup, Shard, Worker
from pipeline.storage import LocalFolder
from pipeline.tokenizer import Tokenizer
from tests.flows import EchoEngine, make_job
from tests.test_dataset import WRITERS, not_utf8, write_arrow, write_parquet, write_stream

ROWS_PER_PROMPT = 3  # of `flows.make_job`: greedy, and two samples
FUZZ_EXAMPLES = 1500


@cache
def worker_facts() -> tuple[Setup, Tokenizer]:
    """What a worker needs, but for the input and the folder."""
    plan = make_plan(make_job(Path("jobs/demo_prompts.parquet").absolute(), Path("unused")))
    return plan.setup(LocalFolder(Path("unused"))), plan.tokenizer


def shards_done(path: Path, shards: Callable[[int], Iterable[tuple[int, int]]], **keys: Any) -> pa.Table:
    """The parts of some ranges of rows of an input, by a fake engine.

    Raises:
        InputError: refused, before or while it is read.
    """
    dataset = scan(InputConfig(path=str(path), **keys))
    setup, tokenizer = worker_facts()
    folder = LocalFolder(Path(tempfile.mkdtemp(dir=path.parent)))
    folder.prepare()
    for lo, hi in shards(dataset.num_rows):
        shard = Shard(f"data/part-{lo:09d}.parquet", lo, hi)
        Worker(replace(setup, dataset=dataset, folder=folder), tokenizer, EchoEngine())(shard)
    tables = [pq.read_table(part).replace_schema_metadata(None) for part in sorted((folder.root / "data").iterdir())]
    return pa.concat_tables(tables)


def complete(path: Path, **keys: Any) -> pa.Table:
    """The output of a whole run, every row accounted for.

    Raises:
        InputError: refused.
    """
    table = shards_done(path, lambda size: [(lo, min(lo + 17, size)) for lo in range(0, size, 17)], **keys)
    found = table["row_index"].to_pylist()
    assert found == [row for row in range(len(found) // ROWS_PER_PROMPT) for _ in range(ROWS_PER_PROMPT)]
    assert len(found) == scan(InputConfig(path=str(path), **keys)).num_rows * ROWS_PER_PROMPT
    assert set(table["status"].to_pylist()) <= {"ok", "error"}
    return table


def rows_of(table: pa.Table, column: str) -> list[Any]:
    """A column, once per input row."""
    values: list[Any] = table[column].to_pylist()[::ROWS_PER_PROMPT]
    return values


def outcome(path: Path, **keys: Any) -> list[str | None] | str:
    """The error type of each input row, or the message of the refusal."""
    try:
        return rows_of(complete(path, **keys), "error_type")
    except InputError as error:
        return str(error)


def parquet(folder: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, folder / "a.parquet", **options)
    return folder / "a.parquet"


def text(folder: Path, name: str, *lines: str | bytes) -> Path:
    data = [line.encode() if isinstance(line, str) else line for line in lines]
    (folder / name).write_bytes(b"\n".join(data) + b"\n")
    return folder / name


# Broken files


def small_table(name: str) -> pa.Table:
    """40 rows with every layout that a format can hold."""
    numbers = range(40)
    plain = {"id": [f"k{i}" for i in numbers], "prompt": ["hello wörld " * (i % 5) if i % 7 else None for i in numbers]}
    if name.endswith("csv"):
        return pa.table(plain | {"topic": ["a"] * 40, "nest": ["b"] * 40, "ids": ["c"] * 40})
    topics = pa.array(["a", "b"] * 20)
    return pa.table(
        plain
        | {
            "topic": topics if name.endswith("jsonl") else topics.dictionary_encode(),
            "nest": [[{"a": i, "b": "x"}] * (i % 3) for i in numbers],
            "ids": [[1, 2, i] for i in numbers],
        }
    )


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut short, bytes changed (half of the time near the end, where the footer is), bytes put in or taken out."""
    changed, at = bytearray(data), rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            del changed[at:]
        case 1:
            changed[at:at] = rng.randbytes(rng.randrange(1, 64))
        case 2:
            del changed[at : at + rng.randrange(1, 200)]
        case _:
            for _ in range(rng.choice([1, 1, 2, 5, 20])):
                near_the_end = len(data) - 1 - rng.randrange(min(len(data), 1500))
                changed[rng.choice([rng.randrange(len(data)), near_the_end])] = rng.randrange(256)
    return bytes(changed)


USES: list[dict[str, Any]] = [
    {},
    {"id_column": "id"},
    {"keep_columns": ("topic", "nest")},
    {"token_ids_column": "ids"},
    {"prompt_template": "{id} {prompt}"},
]


def survive(folder: Path, name: str, seed: int) -> list[str | None] | str:
    """What becomes of a damaged file; it stays behind if this process does not survive it."""
    rng = random.Random(seed)
    WRITERS[name](folder / name, small_table(name))
    (folder / name).write_bytes(damaged((folder / name).read_bytes(), rng))
    return outcome(folder / name, **rng.choice(USES))


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_refused_or_read_and_never_crash(tmp_path: Path, name: str) -> None:
    found = [survive(tmp_path, name, seed) for seed in range(25)]
    assert any(isinstance(result, str) or "bad_json" in result for result in found)
    assert all(name in result or "input" in result for result in found if isinstance(result, str))


@pytest.mark.fuzz
@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_refused_or_read_and_never_crash_for_long(tmp_path: Path, name: str) -> None:
    for seed in range(1000, 1000 + FUZZ_EXAMPLES):
        survive(tmp_path, name, seed)


def test_offsets_that_point_outside_the_data_are_refused(tmp_path: Path) -> None:
    """Once such a file crashed the process: Arrow's own quick check looks at the first and the last offset only."""
    offsets = pa.py_buffer(np.array([0, 1 << 30, 2, 3], np.int32).tobytes())
    bad = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abc")])
    inner = pa.ListArray.from_arrays(pa.array([0, 3], pa.int32()), bad)
    write_arrow(tmp_path / "a.arrow", pa.table({"prompt": ["p"], "bad": inner}))
    assert outcome(tmp_path / "a.arrow") == [None]
    message = outcome(tmp_path / "a.arrow", keep_columns=("bad",))
    assert str(message).startswith("a.arrow cannot be read as arrow: ")
    write_stream(tmp_path / "a.arrow", pa.table({"prompt": bad}))
    assert str(outcome(tmp_path / "a.arrow")).startswith("a.arrow cannot be read as arrow_stream: ")


def test_dictionary_indices_that_point_outside_the_dictionary_are_refused(tmp_path: Path) -> None:
    indices = pa.array([0, 7], pa.int32())
    bad = pa.DictionaryArray.from_arrays(indices, pa.array(["a"]), safe=False)
    write_arrow(tmp_path / "a.arrow", pa.table({"prompt": bad}))
    assert "cannot be read as arrow" in str(outcome(tmp_path / "a.arrow"))


def test_a_column_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Once a UnicodeDecodeError."""
    write_arrow(tmp_path / "a.arrow", pa.table({"prompt": ["p"], "naïve": ["x"]}))
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data.replace("naïve".encode(), b"na\xff\xffve"))
    assert str(outcome(tmp_path / "a.arrow")).startswith("a.arrow cannot be read as arrow: 'utf-8' codec can't decode")


@pytest.mark.parametrize("kind", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), lambda path: os.mkdir(path)])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(
    tmp_path: Path, kind: Callable[[Path], None], name: str
) -> None:
    kind(tmp_path / name)
    assert "is no regular file" in str(outcome(tmp_path / name)) or "holds no" in str(outcome(tmp_path / name))


# Wrong types

WRONG = {
    "prompt_column": [[1], [1.5], [True], [b"a"], [["a"]], [{"a": "b"}], [datetime.date(2020, 1, 1)], [Decimal("1.5")]],
    "token_ids_column": [[1], ["a"], [[1.5]], [["a"]], [[[1]]], [{"a": 1}], [b"a"]],
    "prompt_template": [[b"a"], [["a"]], [{"a": "b"}], [datetime.date(2020, 1, 1)], [Decimal("1.5")]],
    "id_column": [[1.5], [True], [b"a"], [["a"]], [{"a": "b"}], [datetime.date(2020, 1, 1)]],
}


@pytest.mark.parametrize(("use", "values"), [(use, values) for use, cases in WRONG.items() for values in cases])
def test_a_column_of_the_wrong_type_is_refused_and_named(tmp_path: Path, use: str, values: list[Any]) -> None:
    path = parquet(tmp_path, pa.table({"c": values, "prompt": ["p"]}))
    name = "{c}" if use == "prompt_template" else "c"
    assert str(outcome(path, **{use: name})).startswith(f"column `c` is {pa.array(values).type} in a.parquet, but ")


def nested(depth: int) -> tuple[pa.DataType, Any]:
    """A list in a list in a list, and a value of that type."""
    type_, value = pa.int32(), 1
    for _ in range(depth):
        type_, value = pa.list_(type_), [value]
    return type_, value


def test_kept_columns_may_be_nested_as_deeply_as_all_readers_take(tmp_path: Path) -> None:
    """Once a part was written that no reader opened again: Parquet's own limit is met when reading."""
    type_, value = nested(16)
    path = parquet(tmp_path, pa.table({"prompt": ["p"], "k": pa.array([value], type_)}))
    table = complete(path, keep_columns=("k",))
    assert table["k"].to_pylist() == [value] * 3
    pq.write_table(table, tmp_path / "part.parquet")
    assert duckdb.sql(f"SELECT k FROM '{tmp_path}/part.parquet'").fetchall() == [(value,)] * 3
    assert pl.read_parquet(tmp_path / "part.parquet")["k"].to_list() == [value] * 3


@pytest.mark.parametrize("depth", [17, 40])
def test_kept_columns_nested_more_deeply_are_refused(tmp_path: Path, depth: int) -> None:
    type_, value = nested(depth)
    path = parquet(tmp_path, pa.table({"prompt": ["p"], "k": pa.array([value], type_)}))
    assert "some readers of the output refuse such a type" in str(outcome(path, keep_columns=("k",)))
    assert outcome(path) == [None]
    line = json.dumps({"prompt": "p", "k": value})
    assert outcome(text(tmp_path, "a.jsonl", line), keep_columns=("k",)) == (
        "column `k` has values nested more than 16 deep (line 1 of a.jsonl). Change it, or leave it out of "
        "input.keep_columns."
    )


@pytest.mark.parametrize("depth", [900, 5000, 100_000])
def test_json_nested_beyond_reason_is_an_error_row_or_refused(tmp_path: Path, depth: int) -> None:
    """Once a RecursionError."""
    line = '{"prompt": "p", "k": ' + "[" * depth + "]" * depth + "}"
    path = text(tmp_path, "a.jsonl", '{"prompt": "q", "k": []}', line)
    assert outcome(path) in ([None, None], [None, "bad_json"])
    kept = outcome(path, keep_columns=("k",))
    assert kept == [None, "bad_json"] or "nested more than 16 deep" in str(kept)


class Payload:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_stream])
@pytest.mark.parametrize("name", ["arrow.py_extension_type", "ray.data.arrow_tensor", "datasets.features.Array2D", "x"])
def test_a_pickled_extension_type_is_never_unpickled(
    tmp_path: Path, write: Callable[[Path, pa.Table], None], name: str
) -> None:
    marker = tmp_path / "executed"
    pickled = pickle.dumps(Payload(f"touch {marker}"))
    metadata = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": pickled}
    bad = pa.field("item", pa.string(), metadata=metadata)
    types = {
        "bad": pa.string(),
        "inside": pa.list_(bad),
        "deep": pa.struct([pa.field("a", pa.list_(bad))]),
        "map": pa.map_(pa.string(), bad),
    }
    fields = [pa.field(key, type_, metadata=metadata if key == "bad" else None) for key, type_ in types.items()]
    schema = pa.schema([pa.field("prompt", pa.string()), *fields], metadata={b"pandas": pickled, b"x": pickled})
    path = tmp_path / ("a.parquet" if write is write_parquet else "a.arrow")
    write(
        path, pa.Table.from_arrays([pa.array(["p"]), *(pa.nulls(1, type_) for type_ in types.values())], schema=schema)
    )

    assert outcome(path) == [None]
    for column in types:
        assert f"extension type `{name}`, which is not read" in str(outcome(path, keep_columns=(column,)))
    assert f"extension type `{name}`" in str(outcome(path, prompt_column="bad"))
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists()  # so that it would have been seen


# Hostile text


@pytest.mark.parametrize("character", ["x", "日", " ", "x ", "😀", "e\u0301", "\0"])
def test_a_prompt_of_a_million_characters_is_an_error_row_beside_a_good_one(tmp_path: Path, character: str) -> None:
    path = parquet(tmp_path, pa.table({"prompt": [character * (1_000_000 // len(character)), "Today"]}))
    assert outcome(path) == ["prompt_too_long", None]


def test_every_unicode_plane_comes_through_as_it_was(tmp_path: Path) -> None:
    """Assigned or not, private, combining, noncharacters: only surrogates are no text."""
    offsets = (0x00, 0x41, 0x300, 0x1234, 0xE000, 0xFDD0, 0xFFFE, 0xFFFF)
    planes = [f"{plane}:{chr(plane * 0x10000 + offset)}" for plane in range(17) for offset in offsets]
    columns = {"prompt": planes, "id": planes, "k": planes}
    files = [
        parquet(tmp_path, pa.table(columns)),
        text(tmp_path, "a.jsonl", *(json.dumps({"prompt": one, "id": one, "k": one}) for one in planes)),
    ]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([list(columns), *([one] * 3 for one in planes)])
    for path in (*files, tmp_path / "a.csv"):
        table = complete(path, id_column="id", keep_columns=("k",))
        assert rows_of(table, "error_type") == [None] * len(planes)
        assert rows_of(table, "prompt") == rows_of(table, "row_id") == rows_of(table, "k") == planes


def test_lone_surrogates_spoil_only_what_they_stand_in(tmp_path: Path) -> None:
    rows = [
        {"prompt": "\ud800", "id": "a", "k": "x"},
        {"prompt": "b", "id": "\udfff", "k": "x"},
        {"prompt": "c", "id": "c", "k": "\ud800x"},
        {"prompt": "d", "id": "d", "k": "x", "\ud800": 1},
    ]
    expected = ["prompt_not_unicode", "id_not_unicode", "bad_kept_value", None]
    path = text(tmp_path, "a.jsonl", *map(json.dumps, rows))
    assert outcome(path, id_column="id", keep_columns=("k",)) == expected
    columns = {
        name: not_utf8(*(str(row[name]).encode("utf-8", "surrogatepass") for row in rows))
        for name in ("prompt", "id", "k")
    }
    for write in (write_parquet, write_arrow):
        path = tmp_path / ("a.parquet" if write is write_parquet else "a.arrow")
        write(path, pa.table(columns))
        assert outcome(path, id_column="id", keep_columns=("k",)) == expected


def test_a_kept_column_whose_name_is_not_unicode_is_refused(tmp_path: Path) -> None:
    """Once a UnicodeEncodeError."""
    path = text(tmp_path, "a.jsonl", '{"prompt": "p", "\\ud800": 1}')
    assert outcome(path, keep_columns=("\ud800",)) == (
        r"`input.keep_columns` cannot have '\ud800': it is not valid Unicode. Rename the column."
    )


def test_nul_characters_are_text_like_any_other(tmp_path: Path) -> None:
    values = ["\0", "a\0b", "\0\0\0"]
    path = parquet(tmp_path, pa.table({"p\0": values, "id": values, "k\0": values}))
    table = complete(path, prompt_column="p\0", id_column="id", keep_columns=("k\0",))
    assert rows_of(table, "prompt") == rows_of(table, "row_id") == rows_of(table, "k\0") == values
    assert outcome(text(tmp_path, "a.csv", "prompt", "a\0b")) == [None]
    assert outcome(text(tmp_path, "a.jsonl", '{"prompt": "a\\u0000b"}', b'{"prompt": "\0"}')) == [None, "bad_json"]


@pytest.mark.parametrize(
    "name", ["", " ", "a.b", "a b", "ü", "😀", "'; DROP TABLE x", "*", "`", "{x}", "\n", "\x1b[31m"]
)
def test_any_name_of_a_column_will_do(tmp_path: Path, name: str) -> None:
    others = {"a": [{"b": "no"}], "b": ["no"]}  # `a.b` is also how Parquet names the field of `a`
    for write, file in ((write_parquet, "a.parquet"), (write_arrow, "a.arrow")):
        write(tmp_path / file, pa.table({**others, name: ["yes"]}))
        table = complete(tmp_path / file, prompt_column=name, id_column=name, keep_columns=(name,))
        assert rows_of(table, "prompt") == rows_of(table, "row_id") == rows_of(table, name) == ["yes"]


# Odd shapes of files


def test_huge_row_groups_are_read_by_range(tmp_path: Path) -> None:
    numbers = range(300_000)
    path = parquet(tmp_path, pa.table({"prompt": pa.array(map(str, numbers))}), row_group_size=len(numbers))
    assert pq.read_metadata(path).num_row_groups == 1
    table = shards_done(path, lambda size: [(size - 10, size)])
    assert rows_of(table, "prompt") == [str(number) for number in numbers[-10:]]


def test_empty_row_groups_and_batches_between_others_lose_nothing(tmp_path: Path) -> None:
    schema = pa.schema([("prompt", pa.string())])
    pieces: list[list[str]] = [[], ["a", "b"], [], [], ["c"], []]
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for piece in pieces:
            writer.write_table(pa.table({"prompt": pa.array(piece, pa.string())}))
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for piece in pieces:
            writer.write_batch(pa.record_batch([pa.array(piece, pa.string())], schema=schema))
    for name in ("a.parquet", "b.arrow"):
        assert rows_of(complete(tmp_path / name), "prompt") == ["a", "b", "c"]


@pytest.mark.parametrize("table", [pa.table({"prompt": pa.array([], pa.string())}), pa.table({})])
def test_inputs_without_rows_or_columns_are_refused(tmp_path: Path, table: pa.Table) -> None:
    message = outcome(parquet(tmp_path, table))
    assert "has no rows" in str(message) or "is missing in a.parquet; found no columns" in str(message)


@pytest.mark.parametrize("use", ["prompt_column", "id_column", "keep_columns"])
def test_a_column_that_is_there_twice_is_refused_only_where_it_is_used(tmp_path: Path, use: str) -> None:
    arrays = [pa.array(["p"]), pa.array(["x"]), pa.array(["y"])]
    table = pa.Table.from_arrays(arrays, names=["prompt", "twice", "twice"])
    write_parquet(tmp_path / "a.parquet", table)
    write_arrow(tmp_path / "a.arrow", table)
    text(tmp_path, "a.csv", "prompt,twice,twice", "p,x,y")
    for name in ("a.parquet", "a.arrow", "a.csv"):
        assert outcome(tmp_path / name) == [None]
        value: Any = ("twice",) if use == "keep_columns" else "twice"
        assert outcome(tmp_path / name, **{use: value}) == (
            f"column `twice` (input.{use}) is 2 times in {name}. Rename one."
        )


def test_thousands_of_columns_are_no_obstacle(tmp_path: Path) -> None:
    path = parquet(tmp_path, pa.table({"prompt": ["p"], **{f"c{i}": [i] for i in range(3000)}}))
    table = complete(path, keep_columns=tuple(f"c{i}" for i in range(0, 3000, 500)))
    assert table.schema.names[-6:] == [f"c{i}" for i in range(0, 3000, 500)]


# Random tables: what must come out is known

TEXT = st.none() | st.text(st.characters(categories=("L", "N", "P", "S", "Z", "C")), max_size=12)
KEPT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def expected_error(prompt: str | None) -> str | None:
    """The error type that a prompt must get."""
    if prompt is None:
        return "prompt_null"
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return "prompt_not_unicode"
    return None


def check_prompts(table: pa.Table, prompts: list[str | None]) -> None:
    """Every prompt is an ok row with the very same text, or the right error."""
    wanted = [expected_error(prompt) for prompt in prompts]
    fake = "no_token_left"  # the fake engine's own, for prompts that begin with token 0
    assert [None if error == fake else error for error in rows_of(table, "error_type")] == wanted
    assert [text for text, error in zip(rows_of(table, "prompt"), wanted, strict=True) if error is None] == [
        prompt for prompt, error in zip(prompts, wanted, strict=True) if error is None
    ]


def check_random_prompts(folder: Path, prompts: list[str | None]) -> None:
    encoded = [None if prompt is None else prompt.encode("utf-8", "surrogatepass") for prompt in prompts]
    table = pa.table({"prompt": not_utf8(*encoded)})
    write_parquet(folder / "a.parquet", table)
    write_arrow(folder / "a.arrow", table)
    text(folder, "a.jsonl", *(json.dumps({"prompt": prompt}) for prompt in prompts))
    for name in ("a.parquet", "a.arrow", "a.jsonl"):
        check_prompts(complete(folder / name), prompts)


def check_random_values(folder: Path, values: list[Any]) -> None:
    """Any JSON value may stand in a kept key: it is refused for its type, or every row comes out."""
    path = text(folder, "a.jsonl", *(json.dumps({"prompt": "p", "k": value}) for value in values))
    found = outcome(path, keep_columns=("k",))
    if isinstance(found, str):
        assert "`k`" in found
    else:
        assert set(found) <= {None, "bad_kept_value"}
        assert len(found) == len(values)


RANDOM: dict[str, Any] = {
    "prompts": (check_random_prompts, st.lists(TEXT, min_size=1, max_size=40)),
    "values": (check_random_values, st.lists(KEPT, min_size=1, max_size=6)),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_columns_come_out_as_they_must(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    check, values = RANDOM[kind]
    folder = tmp_path_factory.mktemp(kind)

    @settings(max_examples=25)
    @given(values)
    def run(drawn: list[Any]) -> None:
        check(folder, drawn)

    run()


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", RANDOM)
def test_random_columns_come_out_as_they_must_for_long(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    check, values = RANDOM[kind]
    folder = tmp_path_factory.mktemp(kind)

    @settings(max_examples=FUZZ_EXAMPLES, derandomize=False)
    @given(values)
    def run(drawn: list[Any]) -> None:
        check(folder, drawn)

    run()
