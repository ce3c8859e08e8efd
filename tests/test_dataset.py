"""The input: every format gives the same rows, any range of them, and what is wrong is said where it is."""

from __future__ import annotations

import csv
import datetime
import decimal
import hashlib
import json
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import hub_dataset
from pipeline.config import InputConfig
from pipeline.dataset import Dataset, Slice, read, scan
from pipeline.errors import InputError
from pipeline.hub_dataset import HubDataset
from pipeline.records import RowError
from pipeline.schema import output_schema

NUM_ROWS = 2500  # more than two entries of the index of text files
TEXTS = ("plain", "with, comma", 'a "quoted" word', "two\nlines", "crlf\r\nline", "", "naïve 🦜", " spaces ")
IDS = [f"k{i}" for i in range(NUM_ROWS)]
PROMPTS = [f"{TEXTS[i % len(TEXTS)]}" + (f" {i}" if TEXTS[i % len(TEXTS)] else "") for i in range(NUM_ROWS)]
TOPICS = ["birds" if i % 3 else "trees" for i in range(NUM_ROWS)]
TABLE = pa.table({"other": pa.nulls(NUM_ROWS, pa.int8()), "id": IDS, "topic": TOPICS, "prompt": PROMPTS})


def write_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, row_group_size=300)


def write_arrow(path: Path, table: pa.Table, **options: Any) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=170)


def write_stream(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=170)


def write_feather(path: Path, table: pa.Table) -> None:
    write_arrow(path, table, options=pa.ipc.IpcWriteOptions(compression="zstd"))


def write_jsonl(path: Path, table: pa.Table) -> None:
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(table.to_pylist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_csv(path: Path, table: pa.Table) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(table.schema.names)
        writer.writerows(row.values() for row in table.to_pylist())


WRITERS: dict[str, Callable[[Path, pa.Table], None]] = {
    "rows.parquet": write_parquet,
    "rows.arrow": write_arrow,
    "stream.arrow": write_stream,
    "rows.feather": write_feather,
    "rows.jsonl": write_jsonl,
    "rows.csv": write_csv,
}


def config(path: Path | str | Sequence[Path | str], **keys: Any) -> InputConfig:
    paths = str(path) if isinstance(path, (str, Path)) else tuple(str(one) for one in path)
    return InputConfig(path=paths, **keys)


def read_all(path: Path | str | Sequence[Path | str], **keys: Any) -> Slice:
    dataset = scan(config(path, **keys))
    return read(dataset, 0, dataset.num_rows)


def error(path: Path | str | Sequence[Path | str], **keys: Any) -> str:
    """The message of the InputError that scanning must raise."""
    with pytest.raises(InputError) as caught:
        scan(config(path, **keys))
    return str(caught.value)


def parquet(folder: Path, name: str = "a.parquet", **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def lines(folder: Path, *rows: str | bytes, name: str = "a.jsonl") -> Path:
    data = [row.encode() if isinstance(row, str) else row for row in rows]
    (folder / name).write_bytes(b"".join(row + b"\n" for row in data))
    return folder / name


def not_utf8(*values: bytes | None) -> pa.Array:
    """A string array over bytes that need not be UTF-8."""
    array = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


def kinds(rows: Slice) -> list[Any]:
    """The prompts, with only the type of an error."""
    return [prompt.type if isinstance(prompt, RowError) else prompt for prompt in rows.prompts]


def run_python(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


# The same rows from every format


@pytest.fixture(scope="module", params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("format") / request.param
    WRITERS[request.param](path, TABLE)
    return scan(config(path, id_column="id", keep_columns=("topic",)))


def test_every_format_gives_the_same_slice(written: Dataset) -> None:
    rows = read(written, 0, written.num_rows)

    assert written.num_rows == NUM_ROWS
    assert rows.first_row == 0
    assert rows.row_ids == IDS
    assert rows.prompts == PROMPTS
    assert rows.kept == pa.table({"topic": TOPICS})
    assert rows.kept.schema == written.kept_schema == pa.schema([("topic", pa.string())])


@settings(max_examples=50)
@given(st.tuples(st.integers(0, NUM_ROWS), st.integers(0, NUM_ROWS)).map(sorted))
def test_any_range_of_a_file_equals_the_full_read_sliced(written: Dataset, bounds: list[int]) -> None:
    lo, hi = bounds

    rows = read(written, lo, hi)

    assert (rows.first_row, rows.row_ids, rows.prompts) == (lo, IDS[lo:hi], PROMPTS[lo:hi])
    assert rows.kept.to_pydict() == {"topic": TOPICS[lo:hi]}


@pytest.fixture(scope="module", params=WRITERS)
def spread(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The rows over files of 700, 0, 1, 1024 and 775 rows."""
    folder = tmp_path_factory.mktemp("spread")
    for number, (lo, hi) in enumerate([(0, 700), (700, 700), (700, 701), (701, 1725), (1725, NUM_ROWS)]):
        WRITERS[request.param](folder / f"{number}-{request.param}", TABLE.slice(lo, hi - lo))
    return scan(config(folder, keep_columns=("topic",)))


@settings(max_examples=50)
@given(st.tuples(st.integers(0, NUM_ROWS), st.integers(0, NUM_ROWS)).map(sorted))
def test_any_range_over_files_equals_the_full_read_sliced(spread: Dataset, bounds: list[int]) -> None:
    lo, hi = bounds
    derived = [f"{file.name}:{row}" for file in spread.files for row in range(file.num_rows)]

    rows = read(spread, lo, hi)

    assert [file.num_rows for file in spread.files] == [700, 0, 1, 1024, 775]
    assert (rows.row_ids, rows.prompts) == (derived[lo:hi], PROMPTS[lo:hi])
    assert rows.kept.to_pydict() == {"topic": TOPICS[lo:hi]}


def test_a_folder_saved_by_datasets_is_read_in_the_order_of_its_state(tmp_path: Path) -> None:
    parquet(tmp_path, "in.parquet", prompt=PROMPTS, id=IDS, topic=TOPICS)
    save = (
        "import sys, datasets; s = datasets.load_dataset('parquet', data_files=sys.argv[1], split='train', "
        "cache_dir=sys.argv[2]); s.save_to_disk(sys.argv[3], num_shards=3)"
    )
    run_python(save, str(tmp_path / "in.parquet"), str(tmp_path / "cache"), str(tmp_path / "saved"))
    state = json.loads((tmp_path / "saved/state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "saved/cache-1234.arrow").write_bytes(b"left by map")
    saved = scan(config(tmp_path / "saved", id_column="id", keep_columns=("topic",)))
    (tmp_path / "saved/state.json").write_text(json.dumps(state))
    reversed_ = scan(config(tmp_path / "saved"))

    names = [f"data-0000{i}-of-00003.arrow" for i in range(3)]
    assert [(file.name, file.format) for file in saved.files] == [(name, "arrow_stream") for name in names]
    assert [file.name for file in reversed_.files] == names[::-1]
    assert read(saved, 800, 1700).prompts == PROMPTS[800:1700]
    assert read(saved, 0, NUM_ROWS).row_ids == IDS
    assert read(saved, 0, NUM_ROWS).kept.to_pydict() == {"topic": TOPICS}


def test_a_saved_datasetdict_is_refused_and_its_splits_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')

    assert error(tmp_path) == (
        f"{tmp_path} is a saved DatasetDict with the splits `train`, `test`. "
        f"Point input.path at one of them, as {tmp_path}/train."
    )


# Files


def test_files_have_names_relative_to_their_common_folder_sizes_and_digests(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    second = parquet(tmp_path / "b", "x.PQ", prompt=["c"])
    first = parquet(tmp_path, "a.parquet", prompt=["a", "b"])

    files = scan(config(tmp_path)).files

    assert [(file.path, file.name, file.num_rows) for file in files] == [
        (str(first), "a.parquet", 2),
        (str(second), "b/x.PQ", 1),
    ]
    assert [file.sha256 for file in files] == [hashlib.sha256(p.read_bytes()).hexdigest() for p in (first, second)]
    assert [file.size_bytes for file in files] == [first.stat().st_size, second.stat().st_size]
    assert read_all(tmp_path).row_ids == ["a.parquet:0", "a.parquet:1", "b/x.PQ:0"]
    assert read_all(second).row_ids == ["x.PQ:0"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_text_files_are_digested_in_the_pass_that_indexes_them(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, TABLE)

    (file,) = scan(config(tmp_path / name)).files

    assert file.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert np.frombuffer(file.seek_index, np.int64).reshape(-1, 2).shape == (3, 2)


def test_globs_lists_and_folders_give_each_file_once_sorted_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/2.parquet", "b/c/3.parquet", "1.parquet", "_old/4.parquet", ".git/5.parquet", "b/_6.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        parquet((tmp_path / name).parent, Path(name).name, prompt=[name])
    (tmp_path / "README.md").write_text("not data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    three = ["1.parquet", "b/2.parquet", "b/c/3.parquet"]

    assert read_all(tmp_path).prompts == three
    assert read_all(f"{tmp_path}/b/*.parquet").prompts == ["b/2.parquet", "b/_6.parquet"]
    assert read_all("**/[0-9].parquet").prompts == ["1.parquet", "_old/4.parquet", "b/2.parquet", "b/c/3.parquet"]
    assert read_all(["b", "1.parquet", "./b/2.parquet", "~/1.parquet"]).prompts == three


def test_a_folder_named_like_a_file_is_found_by_a_glob(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()
    parquet(tmp_path / "x.parquet", "part-0.parquet", prompt=["by Spark"])
    (tmp_path / "x.parquet/_SUCCESS").touch()

    assert read_all(f"{tmp_path}/*.parquet").prompts == ["by Spark"]


def test_a_link_loop_does_not_repeat_rows(tmp_path: Path) -> None:
    parquet(tmp_path, prompt=["once"])
    (tmp_path / "loop").symlink_to(tmp_path)

    assert read_all(tmp_path).prompts == ["once"]


def test_what_cannot_be_found_or_has_no_known_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.csv.gz", "c.txt", "sub/d.csv.zst", "text/e.md"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("empty").mkdir()

    assert (
        error("no.parquet")
        == f"`input.path` is no.parquet, but there is no such file or folder from {tmp_path}. Check the name."
    )
    assert error("no-*.parquet") == "the glob no-*.parquet (input.path) matches no files. Check the name."
    assert error("em*") == "the glob em* (input.path) matches no files, only folders. Add `/*.parquet` or the like."
    known = ".parquet, .pq, .arrow, .feather, .ipc, .jsonl, .ndjson, .csv"
    assert error("empty") == f"the folder empty (input.path) holds no {known} file; it is empty. Give another."
    assert error("text") == f"the folder text (input.path) holds no {known} file; it holds `e.md`. Give another."
    assert error("a.json") == (
        f"{tmp_path}/a.json (input.path) is JSON. Write one object per line into a .jsonl file instead."
    )
    compressed = "(input.path) is compressed, so ranges of it cannot be read. Decompress it, or use Parquet."
    assert error("b.csv.gz") == f"{tmp_path}/b.csv.gz {compressed}"
    assert error("sub") == f"{tmp_path}/sub/d.csv.zst {compressed}"
    assert error("c.*") == (
        f"the format of {tmp_path}/c.txt (input.path) is unknown. Give a file of a known one: {known}."
    )
    assert error("ftp://host/x.parquet") == (
        "`input.path` is ftp://host/x.parquet, but only local paths, s3://, gs://, az:// and hf:// can be read. "
        "Mount or copy the data, and give its path."
    )
    assert "https://…host/x.parquet…, but" in error("https://key:secret@host/x.parquet?sig=secret")


def test_mixed_formats_are_refused(tmp_path: Path) -> None:
    a, b = parquet(tmp_path, prompt=["x"]), lines(tmp_path, '{"prompt": "x"}', name="b.jsonl")

    assert error(tmp_path) == (
        f"`input.path` mixes formats: {a} is parquet, {b} is jsonl. Point it at files of one format."
    )


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path, prompt=pa.array([], pa.string()))

    assert error(path) == f"`input.path` has no rows (1 file, the first {path}). Point it at data that has."


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"ARROW1 and then nothing")

    assert error(tmp_path).startswith(f"{name} cannot be read as {Path(name).suffix[1:]}: ")
    assert error(tmp_path).endswith("Check that it was written completely.")


def test_feather_version_1_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1....")

    assert "is a Feather V1 file" in error(tmp_path)


def test_a_file_that_changed_or_vanished_after_the_scan_is_refused_at_read(tmp_path: Path) -> None:
    path = parquet(tmp_path, prompt=["a"])
    dataset = scan(config(path))

    parquet(tmp_path, prompt=["a", "more"])
    with pytest.raises(InputError, match=r"a\.parquet has changed since the job was planned"):
        read(dataset, 0, 1)
    path.unlink()
    with pytest.raises(InputError, match="Make every machine see the input under the same path"):
        read(dataset, 0, 1)


def test_a_dataset_survives_pickling(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TABLE)
    dataset = scan(config(tmp_path, keep_columns=("topic",)))

    copy = pickle.loads(pickle.dumps(dataset))

    assert copy == dataset
    assert read(copy, 1500, 1502).prompts == PROMPTS[1500:1502]


def test_without_kept_columns_the_kept_table_still_has_its_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path, prompt=["a", "b", "c"])

    assert (read_all(path).kept.num_rows, read_all(path).kept.num_columns) == (3, 0)


def test_importing_the_module_loads_no_heavy_library() -> None:
    code = (
        "import sys, pipeline.dataset; print([m for m in ('torch', 'ray', 'datasets', 'pandas') if m in sys.modules])"
    )

    assert run_python(code) == "[]\n"


# Columns and types


def test_a_missing_column_is_named_with_what_was_found(tmp_path: Path) -> None:
    path = parquet(tmp_path, "prompts-03.parquet", id=["a"], text=["b"])

    assert error(path) == (
        "column `prompt` is missing in prompts-03.parquet; found `id`, `text`. Set input.prompt_column."
    )
    assert error(path, prompt_column="texts") == (
        "column `texts` is missing in prompts-03.parquet; found `id`, `text`; did you mean `text`? "
        "Set input.prompt_column."
    )
    assert error(path, prompt_column="text", id_column="ID").endswith("did you mean `id`? Set input.id_column.")
    assert error(path, prompt_column="text", keep_columns=("topic",)).endswith("Set input.keep_columns.")


def test_a_column_missing_in_one_of_the_files_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path, "a.parquet", prompt=["x"])
    parquet(tmp_path, "b.parquet", Prompt=["x"])

    assert error(tmp_path) == (
        "column `prompt` is missing in b.parquet; found `Prompt`; did you mean `Prompt`? Set input.prompt_column."
    )


def test_a_used_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,prompt,x,x\na,b,c,d\n")

    assert error(tmp_path) == "column `prompt` (input.prompt_column) is 2 times in a.csv. Rename one."
    assert error(tmp_path, prompt_column="x").startswith("column `x`")


@pytest.mark.parametrize(
    ("array", "keys", "message"),
    [
        (
            pa.array([1]),
            {"prompt_column": "x"},
            "is int64 in a.parquet, but a prompt must be text (input.prompt_column)",
        ),
        (pa.array([b"1"]), {"prompt_column": "x"}, "is binary in a.parquet, but a prompt must be text"),
        (pa.array([1.5]), {"id_column": "x"}, "is double in a.parquet, but an id must be text or an integer"),
        (pa.array(["1"]), {"token_ids_column": "x"}, "is string in a.parquet, but token ids must be lists of integers"),
        (pa.array([[1.5]]), {"token_ids_column": "x"}, "is list<item: double> in a.parquet, but token ids"),
        (pa.array([[1]]), {"prompt_template": "{x}"}, "but a template takes text, numbers and booleans"),
        (pa.array([1], pa.date32()), {"prompt_template": "{x}"}, "but a template takes text, numbers and booleans"),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(
    tmp_path: Path, array: pa.Array, keys: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path, x=array, prompt=["p"])

    assert error(path, **keys).startswith("column `x` ")
    assert message in error(path, **keys)
    assert error(path, **keys).endswith("Cast it in the input, or use another column.")


def test_types_that_differ_between_files_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path, "a.parquet", prompt=["x"], topic=["t"])
    parquet(tmp_path, "b.parquet", prompt=["x"], topic=[1])

    assert error(tmp_path, keep_columns=("topic",)) == (
        "column `topic` is string in a.parquet, but int64 in b.parquet. Give it one type in all files."
    )


def test_types_that_differ_only_in_layout_go_together(tmp_path: Path) -> None:
    parquet(tmp_path, "a.parquet", prompt=pa.array(["a"]), topic=pa.array(["s"], pa.large_string()))
    parquet(tmp_path, "b.parquet", prompt=pa.array(["b"]).dictionary_encode(), topic=pa.array(["t"], pa.string_view()))
    parquet(tmp_path, "c.parquet", prompt=pa.array(["c"], pa.large_string()), topic=pa.nulls(1))

    rows = read_all(tmp_path, keep_columns=("topic",))

    assert rows.prompts == ["a", "b", "c"]
    assert rows.kept == pa.table({"topic": ["s", "t", None]})


NOON = datetime.datetime(2026, 1, 2, 12)
KEPT_TYPES = [
    (pa.array(["a", None]).dictionary_encode(), pa.string(), ["a", None]),
    (pa.array(["a", None], pa.large_string()), pa.string(), ["a", None]),
    (pa.array(["a", None], pa.string_view()), pa.string(), ["a", None]),
    (pa.array(["a", None], pa.string_view()).dictionary_encode(), pa.string(), ["a", None]),
    (pa.array([b"\xff", None], pa.large_binary()), pa.binary(), [b"\xff", None]),
    (pa.array([b"ab", None], pa.binary(2)), pa.binary(2), [b"ab", None]),
    (pa.array([NOON, None], pa.timestamp("ns")), pa.timestamp("us"), [NOON, None]),
    (pa.array([NOON, None], pa.timestamp("s")), pa.timestamp("ms"), [NOON, None]),
    (pa.array([NOON.date(), None], pa.date64()), pa.date32(), [NOON.date(), None]),
    (pa.array([2**64 - 1, None], pa.uint64()), pa.uint64(), [2**64 - 1, None]),
    (pa.array([decimal.Decimal("1.5"), None], pa.decimal32(4, 1)), pa.decimal128(4, 1), [decimal.Decimal("1.5"), None]),
    (pa.nulls(2), pa.string(), [None, None]),
    (pa.array([[1], None], pa.large_list(pa.int8())), pa.list_(pa.int8()), [[1], None]),
    (pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), pa.list_(pa.int8()), [[1, 2], None]),
    (
        pa.array(
            [[{"t": NOON, "s": "x"}], None], pa.list_(pa.struct([("t", pa.timestamp("ns")), ("s", pa.large_string())]))
        ),
        pa.list_(pa.struct([("t", pa.timestamp("us")), ("s", pa.string())])),
        [[{"t": NOON, "s": "x"}], None],
    ),
    (
        pa.array([[("k", 1)], None], pa.map_(pa.large_string(), pa.int8())),
        pa.map_(pa.string(), pa.int8()),
        [[("k", 1)], None],
    ),
]


@pytest.mark.parametrize(("array", "type_", "values"), KEPT_TYPES, ids=[str(case[0].type) for case in KEPT_TYPES])
def test_kept_columns_become_plain_types_with_the_same_values(
    tmp_path: Path, array: pa.Array, type_: pa.DataType, values: list[Any]
) -> None:
    write_arrow(tmp_path / "a.arrow", pa.table({"prompt": ["p", "q"], "x": array}))

    rows = read_all(tmp_path, keep_columns=("x",))

    assert rows.kept.schema == pa.schema([("x", type_)])
    assert rows.kept["x"].to_pylist() == values
    pq.write_table(rows.kept, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet") == rows.kept


REFUSED_TYPES = [
    pa.float16(),
    pa.time32("s"),
    pa.time64("us"),
    pa.decimal256(50, 1),
    pa.duration("s"),
    pa.month_day_nano_interval(),
    pa.dense_union([pa.field("a", pa.int8())]),
    pa.struct([]),
    pa.list_view(pa.int8()),
    pa.run_end_encoded(pa.int32(), pa.string()),
    pa.list_(pa.struct([("deep", pa.time32("s"))])),
]


@pytest.mark.parametrize("type_", REFUSED_TYPES, ids=str)
def test_kept_types_that_readers_cannot_take_are_refused_and_otherwise_ignored(
    tmp_path: Path, type_: pa.DataType
) -> None:
    schema = pa.schema([("prompt", pa.string()), ("x", type_)])
    write_arrow(tmp_path / "a.arrow", pa.Table.from_batches([], schema))

    assert error(tmp_path, keep_columns=("x",)) == (
        f"column `x` is {type_} in a.arrow, but some readers of the output refuse such a type (input.keep_columns). "
        "Cast it in the input, or use another column."
    )
    assert error(tmp_path).startswith("`input.path` has no rows")


@pytest.mark.parametrize("nested", [False, True])
def test_nanoseconds_that_microseconds_cannot_hold_are_refused_at_read(tmp_path: Path, nested: bool) -> None:
    array = pa.array([1_001, 2_000], pa.timestamp("ns"))
    path = parquet(tmp_path, prompt=["p", "q"], at=pa.ListArray.from_arrays([0, 1, 2], array) if nested else array)
    dataset = scan(config(path, keep_columns=("at",)))

    assert read(dataset, 1, 2).kept.num_rows == 1
    with pytest.raises(InputError) as caught:
        read(dataset, 0, 2)
    assert str(caught.value).startswith("column `at` of a.parquet cannot be written as ")
    assert str(caught.value).endswith("Cast it in the input, or leave it out of input.keep_columns.")


def test_a_kept_column_named_like_an_output_column_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path, prompt=["p"], Text=["x"], a=["x"], A=["y"])

    for name in output_schema(pa.schema([])).names:
        assert "the output has its own" in error(path, keep_columns=(name,))
    assert error(path, keep_columns=("Text",)) == (
        "`input.keep_columns` cannot have `Text`: the output has its own `text`, and case does not count. "
        "Rename the column in the input, or leave it out."
    )
    assert "it has `a` already" in error(path, keep_columns=("a", "A"))


# Extension types

FOREIGN = {b"ARROW:extension:name": b"ray.data.arrow_tensor", b"ARROW:extension:metadata": b"\x80\x04}."}


@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_stream])
def test_an_extension_type_is_refused_only_where_it_is_used(
    tmp_path: Path, write: Callable[[Path, pa.Table], None]
) -> None:
    inner = pa.field("item", pa.int64(), metadata=FOREIGN)
    schema = pa.schema(
        [
            pa.field("prompt", pa.string()),
            pa.field("bad", pa.string(), metadata=FOREIGN),
            pa.field("deep", pa.list_(inner)),
            pa.field("opaque", pa.opaque(pa.int64(), "t", "v")),
        ]
    )
    opaque = pa.ExtensionArray.from_storage(schema.field("opaque").type, pa.array([1]))
    suffix = "parquet" if write is write_parquet else "arrow"
    write(tmp_path / f"a.{suffix}", pa.table([["p"], ["x"], pa.array([[1]], pa.list_(inner)), opaque], schema=schema))

    assert read_all(tmp_path).prompts == ["p"]
    assert error(tmp_path, keep_columns=("bad",)) == (
        f"column `bad` of a.{suffix} has the extension type `ray.data.arrow_tensor`, which is not read, because "
        "reading may run code. Store it as a plain type, or use another column."
    )
    assert "`ray.data.arrow_tensor`" in error(tmp_path, prompt_column="bad")
    assert "`ray.data.arrow_tensor`" in error(tmp_path, keep_columns=("deep",))
    assert "`arrow.opaque" in error(tmp_path, keep_columns=("opaque",))


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_uuid_json_and_bool8_become_text_and_booleans(tmp_path: Path, write: Callable[[Path, pa.Table], None]) -> None:
    key = uuid.UUID("12345678-1234-5678-1234-567812345678")
    columns = {
        "prompt": pa.array(["p", "q"]),
        "u": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([key.bytes, None], pa.binary(16))),
        "j": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', None])),
        "b": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8())),
    }
    path = tmp_path / ("a.parquet" if write is write_parquet else "a.arrow")
    write(path, pa.table(columns))

    rows = read_all(path, id_column="u", keep_columns=("u", "j", "b"))

    assert rows.kept == pa.table({"u": [str(key), None], "j": ['{"a": 1}', None], "b": [True, None]})
    assert rows.row_ids == [str(key), f"{path.name}:1"]
    assert read_all(path, prompt_column="j").prompts[0] == '{"a": 1}'


def test_a_uuid_written_by_duckdb_is_read_as_text(tmp_path: Path) -> None:
    key = "12345678-1234-5678-1234-567812345678"
    duckdb.sql(f"copy (select '{key}'::uuid id, 'p' prompt) to '{tmp_path}/a.parquet'")

    assert read_all(tmp_path, id_column="id", keep_columns=("id",)).row_ids == [key]


# Prompts, ids and rows that cannot be used


def test_an_integer_key_becomes_text_and_a_null_key_is_an_error_row(tmp_path: Path) -> None:
    path = parquet(tmp_path, prompt=["p", "q", "r"], key=pa.array([7, None, -1], pa.int16()))

    rows = read_all(path, id_column="key")

    assert rows.row_ids == ["7", "a.parquet:1", "-1"]
    assert rows.prompts == ["p", RowError("id_null", "column `key` is null (a.parquet, row 1)"), "r"]


def test_a_null_prompt_is_an_error_row_and_an_empty_one_is_not(tmp_path: Path) -> None:
    path = parquet(tmp_path, prompt=["", None])

    assert read_all(path).prompts == ["", RowError("prompt_null", "column `prompt` is null (a.parquet, row 1)")]


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_bytes_that_are_not_utf8_spoil_only_their_row(tmp_path: Path, as_dictionary: bool) -> None:
    array = not_utf8(b"good", b"\xff\xfe", None, "naïve".encode())
    path = parquet(tmp_path, prompt=array.dictionary_encode() if as_dictionary else array, topic=array)

    rows = read_all(path, keep_columns=("topic",))

    assert rows.prompts == [
        "good",
        RowError("prompt_not_unicode", "column `prompt` is not valid Unicode (a.parquet, row 1)"),
        RowError("prompt_null", "column `prompt` is null (a.parquet, row 2)"),
        "naïve",
    ]
    assert rows.kept.to_pydict() == {"topic": ["good", None, None, "naïve"]}
    assert kinds(read_all(path, prompt_template="<{prompt}>"))[1] == "prompt_not_unicode"
    assert kinds(read_all(path, id_column="prompt"))[1] == "id_not_unicode"


def test_a_kept_value_that_is_not_utf8_is_an_error_row_with_null(tmp_path: Path) -> None:
    nested = pa.ListArray.from_arrays([0, 1, 2, 3], not_utf8(b"a", b"\xff", b"c"))
    path = parquet(tmp_path, prompt=["p", "q", "r"], tags=nested)

    rows = read_all(path, keep_columns=("tags",))

    message = "column `tags` holds a value that cannot be written (a.parquet, row 1)"
    assert rows.prompts == ["p", RowError("bad_kept_value", message), "r"]
    assert rows.kept.to_pydict() == {"tags": [["a"], None, ["c"]]}


@pytest.mark.parametrize("type_", [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.int16(), 2)])
def test_token_ids_are_lists_of_integers_that_are_not_negative(tmp_path: Path, type_: pa.DataType) -> None:
    path = parquet(tmp_path, ids=pa.array([[1, 50256 % 2**15], None, [3, -1], [4, None]], type_))

    assert read_all(path, token_ids_column="ids").prompts == [
        [1, 17488],
        RowError("prompt_null", "column `ids` is null (a.parquet, row 1)"),
        RowError("token_id_out_of_range", "token id -1 in column `ids` is negative (a.parquet, row 2)"),
        RowError("token_id_out_of_range", "a token id in column `ids` is null (a.parquet, row 3)"),
    ]


def test_an_empty_list_of_token_ids_is_passed_through(tmp_path: Path) -> None:
    assert read_all(parquet(tmp_path, ids=[[1], []]), token_ids_column="ids").prompts == [[1], []]


def test_json_prompts_and_keys_of_other_kinds_are_error_rows(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        '{"prompt": "good", "id": 1, "ids": [1, 2]}',
        '{"prompt": 5, "id": true, "ids": "no"}',
        '{"prompt": ["x"], "id": 1.5, "ids": [true]}',
        '{"id": "a", "ids": [1, -2]}',
        r'{"prompt": "\ud800", "id": "\udfff", "ids": [null]}',
        b'{"prompt": "\xff", "id": "b"}',
    )

    assert read_all(path).prompts == [
        "good",
        RowError("prompt_not_text", "column `prompt` must be text, but is a number (a.jsonl, row 1)"),
        RowError("prompt_not_text", "column `prompt` must be text, but is a list (a.jsonl, row 2)"),
        RowError("prompt_null", "column `prompt` is null (a.jsonl, row 3)"),
        RowError("prompt_not_unicode", "column `prompt` is not valid Unicode (a.jsonl, row 4)"),
        RowError("prompt_not_unicode", "column `prompt` is not valid Unicode (a.jsonl, row 5)"),
    ]
    keyed = read_all(path, id_column="id")
    assert keyed.row_ids == ["1", "a.jsonl:1", "a.jsonl:2", "a", "a.jsonl:4", "b"]
    assert keyed.prompts[1] == RowError(
        "id_not_text", "column `id` must be text or integer, but is a boolean (a.jsonl, row 1)"
    )
    assert kinds(keyed) == ["good", "id_not_text", "id_not_text", "prompt_null", "id_not_unicode", "prompt_not_unicode"]
    tokens = kinds(read_all(path, token_ids_column="ids"))
    wrong = "prompt_not_token_ids"
    assert tokens == [[1, 2], wrong, wrong, "token_id_out_of_range", "token_id_out_of_range", "prompt_null"]


# Templates


def test_a_template_is_filled_with_the_values_as_python_writes_them(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        q=pa.array(["why {x}?"]).dictionary_encode(),
        n=[7],
        f=pa.array([0.1], pa.float32()),
        d=[1e20],
        ok=[True],
    )

    rows = read_all(path, prompt_template="{{{q}}} {n}/{n} {f} {d} {ok}\nA: {{}}")

    assert rows.prompts == ["{why {x}?} 7/7 0.1 1e+20 True\nA: {}"]


def test_a_null_in_a_template_is_an_error_row(tmp_path: Path) -> None:
    path = lines(tmp_path, '{"a": "x", "b": 1}', '{"a": "x", "b": null}', '{"a": [], "b": 1}')

    assert read_all(path, prompt_template="{a}{b}").prompts == [
        "x1",
        RowError("prompt_null", "column `b` is null (a.jsonl, row 1)"),
        RowError("prompt_not_text", "column `a` must be text, but is a list (a.jsonl, row 2)"),
    ]


@pytest.mark.parametrize("mark", ["a.b", "a[0]", "a!r", "a:>10", "", "0", " a"])
def test_a_template_has_no_syntax_but_column_names(tmp_path: Path, mark: str) -> None:
    path = parquet(tmp_path, a=["x"])

    assert error(path, prompt_template=f"Q: {{{mark}}}").startswith(
        f"column `{mark}` is missing in a.parquet; found `a`"
    )
    assert error(path, prompt_template=f"Q: {{{mark}}}").endswith("Set input.prompt_template.")


def test_a_template_may_name_any_column_literally(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a.b": ["x"], "a[0]": ["y"], "a:1": ["z"], "a": [1]}), tmp_path / "a.parquet")

    assert read_all(tmp_path, prompt_template="{a.b}{a[0]}{a:1}{a}").prompts == ["xyz1"]


def test_a_template_with_a_single_brace_or_without_a_column_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path, a=["x"])

    assert error(path, prompt_template="{a} }") == (
        "`input.prompt_template` has a single `}` at character 4. Write `}}` for the character itself."
    )
    assert error(path, prompt_template="{a} {b").startswith("`input.prompt_template` has a single `{` at character 4.")
    assert error(path, prompt_template="{{a}}") == (
        "`input.prompt_template` names no {column}, so all prompts would be the same. Name one."
    )


# JSONL


def test_json_types_are_inferred_over_all_lines_and_files(tmp_path: Path) -> None:
    lines(
        tmp_path,
        '{"prompt": "a", "n": 1, "x": 1, "tags": [], "o": {"a": 1}, "none": null, "yes": true}',
        '{"prompt": "b"}',
        '{"prompt": "c", "n": null, "x": 2.5, "tags": ["t"], "o": {"b": [null]}}',
        name="1.jsonl",
    )
    lines(tmp_path, '{"prompt": "d", "o": {"b": [1.5]}, "late": "x"}', name="2.jsonl")

    rows = read_all(tmp_path, keep_columns=("n", "x", "tags", "o", "none", "yes", "late"))

    assert rows.kept.schema == pa.schema(
        [
            ("n", pa.int64()),
            ("x", pa.float64()),
            ("tags", pa.list_(pa.string())),
            ("o", pa.struct([("a", pa.int64()), ("b", pa.list_(pa.float64()))])),
            ("none", pa.string()),
            ("yes", pa.bool_()),
            ("late", pa.string()),
        ]
    )
    assert rows.kept.to_pydict() == {
        "n": [1, None, None, None],
        "x": [1.0, None, 2.5, None],
        "tags": [[], None, ["t"], None],
        "o": [{"a": 1, "b": None}, None, {"a": None, "b": [None]}, {"a": None, "b": [1.5]}],
        "none": [None] * 4,
        "yes": [True, None, None, None],
        "late": [None, None, None, "x"],
    }


def test_json_types_that_clash_are_refused_with_their_lines(tmp_path: Path) -> None:
    rows = ['{"prompt": "a", "t": "x", "o": [1, "y"]}', "", '{"prompt": "b", "t": 5}']
    lines(tmp_path, *rows, name="1.jsonl")

    assert error(tmp_path, keep_columns=("t",)) == (
        "column `t` has values that do not go together: string and int64 (line 1 of 1.jsonl, line 3 of 1.jsonl). "
        "Use one type for it, or leave it out of input.keep_columns."
    )
    assert error(tmp_path, keep_columns=("o",)) == (
        "column `o` has int64 and string (line 1 of 1.jsonl). Change it, or leave it out of input.keep_columns."
    )
    lines(tmp_path, rows[0], name="1.jsonl")
    lines(tmp_path, rows[2], name="2.jsonl")
    assert "string and int64 (line 1 of 1.jsonl, line 1 of 2.jsonl)" in error(tmp_path, keep_columns=("t",))
    lines(tmp_path, '{"prompt": "a", "t": 9223372036854775808}', name="1.jsonl")
    assert "has the integer 9223372036854775808, which does not fit 64 bits (line 1 of 1.jsonl)" in error(
        tmp_path, keep_columns=("t",)
    )


def test_json_values_that_the_common_type_cannot_hold_are_error_rows(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        '{"prompt": "a", "x": 9007199254740993, "s": "ok"}',
        r'{"prompt": "b", "x": 0.5, "s": "\ud800"}',
        '{"prompt": "c", "x": 1, "s": "fine"}',
    )

    rows = read_all(path, keep_columns=("x", "s"))

    assert rows.kept.to_pydict() == {"x": [None, 0.5, 1.0], "s": ["ok", None, "fine"]}
    assert kinds(rows) == ["bad_kept_value", "bad_kept_value", "c"]


def test_a_json_key_must_be_in_each_file_for_prompts_and_in_any_for_kept_columns(tmp_path: Path) -> None:
    lines(tmp_path, '{"prompt": "a", "topic": "t"}', name="1.jsonl")
    lines(tmp_path, '{"text": "b"}', name="2.jsonl")

    assert error(tmp_path) == ("column `prompt` is missing in 2.jsonl; found `text`. Set input.prompt_column.")
    lines(tmp_path, '{"prompt": "b"}', name="2.jsonl")
    assert read_all(tmp_path, keep_columns=("topic",)).kept.to_pydict() == {"topic": ["t", None]}
    assert error(tmp_path, keep_columns=("topics",)).startswith("column `topics` is missing in all 2 files;")


def test_malformed_json_lines_are_error_rows_and_blank_ones_are_none(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        b'\xef\xbb\xbf{"prompt": "a", "n": 1}\r',
        "   ",
        '{"prompt": "b", ',
        "[1]",
        "[" * 100_000,
        '{"prompt": "c", "n": 2}',
    )

    rows = read_all(path, keep_columns=("n",))

    assert rows.prompts == [
        "a",
        RowError(
            "bad_json",
            "Expecting property name enclosed in double quotes at character 16 (a.jsonl, line 3)",
        ),
        RowError("bad_json", "not an object, but list (a.jsonl, line 4)"),
        RowError("bad_json", "nested too deeply, or a number is too long (a.jsonl, line 5)"),
        "c",
    ]
    assert rows.kept.to_pydict() == {"n": [1, None, None, None, 2]}
    assert rows.row_ids == [f"a.jsonl:{i}" for i in range(5)]


def test_a_file_whose_lines_are_no_objects_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path, "[", "]")

    assert error(path) == "no line of a.jsonl is a JSON object with keys. Write one object per line."


def test_an_empty_text_file_beside_others_is_fine(tmp_path: Path) -> None:
    for name, row in (("json", '{"prompt": "a"}'), ("csv", "prompt\na")):
        (tmp_path / name).mkdir()
        suffix = "jsonl" if name == "json" else "csv"
        (tmp_path / name / f"0.{suffix}").touch()
        lines(tmp_path / name, row, name=f"1.{suffix}")

        assert read_all(tmp_path / name).prompts == ["a"]


# CSV


def test_csv_columns_are_text_and_quoted_fields_may_hold_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfid,"the ""prompt""",n\r\n1,"two\r\nlines, ""quoted""",007\r\n\r\n2,,\r\n3,"",x'
    )

    rows = read_all(tmp_path, id_column="id", prompt_column='the "prompt"', keep_columns=("n",))

    assert rows.row_ids == ["1", "2", "3"]
    assert rows.prompts == ['two\r\nlines, "quoted"', "", ""]
    assert rows.kept == pa.table({"n": ["007", "", "x"]})


@pytest.mark.parametrize("ids", [["a", "b", "c", "b"], [7, 8, 9, 8]])
def test_an_id_that_stands_twice_is_refused_with_both_rows(tmp_path: Path, ids: list[Any]) -> None:
    pq.write_table(pa.table({"id": ids, "prompt": ["p"] * 4}), tmp_path / "a.parquet")

    with pytest.raises(InputError, match=f"id `{ids[1]}` stands twice in column `id`: in rows 1 and 3 of the input"):
        scan(InputConfig(path=str(tmp_path), id_column="id"))
    assert scan(InputConfig(path=str(tmp_path))).num_rows == 4


def test_ids_are_compared_over_files_and_missing_ones_never_clash(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", None, None], "prompt": ["p"] * 3}), tmp_path / "1.parquet")
    assert scan(InputConfig(path=str(tmp_path), id_column="id")).num_rows == 3
    pq.write_table(pa.table({"id": ["b", "a"], "prompt": ["p"] * 2}), tmp_path / "2.parquet")

    with pytest.raises(InputError, match=r"id `a` stands twice .* rows 0 and 4"):
        scan(InputConfig(path=str(tmp_path), id_column="id"))


def test_quotes_inside_csv_fields_do_not_swallow_the_rows_between_them(tmp_path: Path) -> None:
    """Records were once cut by quote parity: all rows between two stray quotes became one."""
    rows = ['1,a 5" nail', *(f"{i},clean" for i in range(2, 5000)), '5000,a 6" nail', "5001,x"]
    (tmp_path / "a.csv").write_text("\n".join(["id,prompt", *rows]) + "\n")

    read_back = read_all(tmp_path, id_column="id")

    assert read_back.row_ids == [str(i) for i in range(1, 5002)]
    assert read_back.prompts[0] == 'a 5" nail'


def test_a_csv_quote_that_opens_a_field_and_swallows_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,prompt\n1,"never closed\n2,clean\n3,"closed here\n')

    with pytest.raises(InputError, match=r"a quote opens a field and swallows lines: .*a\.csv, line 2"):
        read_all(tmp_path, id_column="id")


def test_malformed_csv_records_are_error_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'prompt,n\n"a\nb",1\nshort\nx,y,z\n5" pipe,2\n6" tube,3\nbad \xff,4\nlast,5\n')

    rows = read_all(tmp_path, keep_columns=("n",))

    assert rows.prompts == [
        "a\nb",
        RowError("bad_csv", "the record has 1 fields where the header has 2 (a.csv, line 4)"),
        RowError("bad_csv", "the record has 3 fields where the header has 2 (a.csv, line 5)"),
        '5" pipe',
        '6" tube',
        RowError("prompt_not_unicode", "column `prompt` is not valid Unicode (a.csv, row 5)"),
        "last",
    ]
    assert rows.kept.to_pydict() == {"n": ["1", None, None, "2", "3", "4", "5"]}


def test_a_csv_quote_that_is_never_closed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt\nfine\n"open\nand so on\n')

    assert error(tmp_path) == (
        'a `"` in the record at line 3 of a.csv is never closed. Quote the field, and write a quote inside it as `""`.'
    )


def test_a_csv_field_may_be_longer_than_the_default_limit_of_the_csv_module(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"prompt\n{'x' * 200_000}\n")

    assert read_all(tmp_path).prompts == ["x" * 200_000]


def test_a_csv_header_in_another_encoding_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("prompt,größe\nx,1\n".encode("latin-1"))

    assert read_all(tmp_path).prompts == ["x"]
    assert error(tmp_path, id_column="größe") == (
        "column `größe` is missing in a.csv; found `prompt`, `gr\\udcf6\\udcdfe`. Set input.id_column."
    )


def test_token_ids_cannot_come_from_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('ids\n"[1, 2]"\n')

    assert error(tmp_path, token_ids_column="ids").startswith("column `ids` is string in a.csv, but token ids must be")


# The hub


def test_a_hub_uri_is_split_into_its_parts() -> None:
    assert hub_dataset.parse("hf://user/set") == HubDataset("user/set", None, "train", None)
    assert hub_dataset.parse("hf://u/s.1@refs/pr/2?split=test&name=en") == HubDataset(
        "u/s.1", "refs/pr/2", "test", "en"
    )


@pytest.mark.parametrize("uri", ["hf://", "hf://a/b/c", "hf://a/b?splits=x", "hf://a/../b", "hf://a/b?split=train[:9]"])
def test_a_malformed_hub_uri_is_refused(uri: str) -> None:
    assert f"{uri}" in error(uri)


def test_a_hub_set_is_read_from_the_cached_arrow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    parquet(tmp_path / "set", "train.parquet", prompt=PROMPTS)

    before = set(sys.modules)
    files = hub_dataset.fetch(HubDataset(str(tmp_path / "set")))

    assert read_all(files).prompts == PROMPTS
    assert "datasets" not in {*sys.modules} - before
    with pytest.raises(InputError, match=r"cannot be loaded: Unknown split \"test\""):
        hub_dataset.fetch(HubDataset(str(tmp_path / "set"), split="test"))


def test_a_hub_set_that_cannot_be_reached_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert error("hf://nobody/nothing") == (
        "hf://nobody/nothing (input.path) cannot be loaded: Couldn't reach 'nobody/nothing' on the Hub "
        "(OfflineModeIsEnabled). Check its name, split and the network, or save it once with `save_to_disk` and give "
        "that folder."
    )


def test_a_local_folder_never_stands_in_for_a_hub_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user/set").mkdir(parents=True)
    parquet(tmp_path / "user/set", prompt=["local"])
    monkeypatch.chdir(tmp_path)

    assert "the local folder `user/set` would be read in its place" in error("hf://user/set")
