"""A part in the hands of the readers that users have: all values, one by one, as they were written."""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.schema import output_schema
from pipeline.writer import build_table, encode_part
from tests.handbook.blocks import blocks
from tests.test_writer import hand_made_rows, hand_made_table, kept_columns

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with only `data/`."""
    return write_hand_made(tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def written() -> Rows:
    """The rows of both parts, in order."""
    return hand_made_in_parts()


def write_hand_made(folder: Path) -> Path:
    """Write `data/` with two parts, the second with strategies that the first does not have."""
    (folder / "data").mkdir()
    rows, kept = hand_made_rows(), kept_columns()
    for number, strategy in enumerate(("draw", "beam")):
        part = build_table([row for row in rows if row.strategy == strategy], kept)
        data = encode_part(part, {"batchgen.schema_version": "1"})
        (folder / "data" / f"part-{number:05d}.parquet").write_bytes(data)
    return folder


def hand_made_in_parts() -> Rows:
    """The rows of these parts, in order."""
    rows = hand_made_table().to_pylist()
    return [row for strategy in ("draw", "beam") for row in rows if row["strategy"] == strategy]


def assert_same(found: Rows, written: Rows) -> None:
    assert len(found) == len(written)
    for found_row, written_row in zip(found, written, strict=True):
        assert list(found_row) == list(written_row)
        for name, value in written_row.items():
            assert plain(found_row[name]) == plain(value), name


def plain(value: Any) -> Any:
    """A value as Python writes it, whatever array or wrapper a reader has for it. No value of the part is NaN."""
    match value:
        case np.ndarray() | list() | tuple():
            return [plain(item) for item in value]
        case Mapping():
            return {key: plain(item) for key, item in value.items()}
        case pd.Timestamp() | np.datetime64():
            return plain(pd.Timestamp(value).to_pydatetime()) if not pd.isna(value) else None
        case datetime():
            return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        case np.generic():
            return plain(value.item())
        case float():
            return None if math.isnan(value) else value
        case _:
            return None if value is pd.NaT or value is pd.NA else value


def test_pyarrow_reads_every_value(folder: Path, written: Rows) -> None:
    table = ds.dataset(folder / "data").to_table()
    assert_same(table.to_pylist(), written)
    assert table.schema.remove_metadata() == hand_made_table().schema.remove_metadata()
    assert pq.read_table(folder / "data").equals(table)


def test_duckdb_reads_every_value(folder: Path, written: Rows) -> None:
    with duckdb.connect() as connection:
        query = connection.sql(
            # as a naive timestamp: DuckDB's Python would want pytz
            "SELECT * REPLACE (make_timestamp(epoch_us(when_utc)) AS when_utc) "
            f"FROM '{folder}/data/*.parquet' ORDER BY filename, row_index, sample_index"
        )
        rows = [dict(zip(query.columns, row, strict=True)) for row in query.fetchall()]
    assert_same(rows, written)


@pytest.mark.parametrize("streaming", [False, True])
def test_polars_reads_every_value(folder: Path, written: Rows, streaming: bool) -> None:
    scan = pl.scan_parquet(folder / "data" / "*.parquet")
    assert_same(scan.collect(engine="streaming" if streaming else "in-memory").to_dicts(), written)
    assert_same(pl.read_parquet(folder / "data").to_dicts(), written)


def test_pandas_reads_every_value(folder: Path, written: Rows) -> None:
    frame = pd.read_parquet(folder / "data")
    declared = [{name: row[name] for name in output_schema(pa.schema([])).names} for row in written]
    assert_same(frame[list(declared[0])].to_dict("records"), declared)
    assert str(frame["num_generated_tokens"].dtype) == "int32"  # never null, so that pandas keeps integers
    probs = np.stack(frame["top_probs"][0])
    assert (probs.tolist(), probs.dtype) == ([[0.5, 0.25], [0.125, 0.0625]], np.float32)


def test_pandas_with_arrow_types_reads_every_value_of_kept_columns_too(folder: Path, written: Rows) -> None:
    """Without them it makes floats of integers with nulls."""
    frame = pd.read_parquet(folder / "data", dtype_backend="pyarrow")
    assert_same(frame.to_dict("records"), written)


LOAD = """
import pickle, sys, datasets
for streaming in (False, True):
    loaded = datasets.load_dataset(sys.argv[1], split="train", cache_dir=sys.argv[2], streaming=streaming)
    pickle.dump(list(loaded), sys.stdout.buffer)
"""


def test_datasets_reads_every_value_of_a_folder_with_only_data(folder: Path, tmp_path: Path, written: Rows) -> None:
    """In a process of its own: `import datasets` changes how pyarrow reads files."""
    command = [sys.executable, "-c", LOAD, str(folder), str(tmp_path)]
    output = io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout)
    whole, streamed = pickle.load(output), pickle.load(output)
    assert_same(whole, written)
    assert_same(streamed, written)


def block(tool: str) -> str:
    """The block of docs/reading.md that gives the long form in a tool: the one that names it on its first line."""
    (found,) = (each.text for each in blocks("docs/reading.md") if re.match(rf"(--|#) {tool}\b", each.text))
    return found


SPARK = """
import pickle, sys, warnings
warnings.simplefilter("ignore")
from pyspark.sql import SparkSession
settings = {
    "spark.ui.enabled": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.files.openCostInBytes": "0",
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.warehouse.dir": sys.argv[2],
}
builder = SparkSession.builder.master("local[1]").config(map=settings)
session = builder.getOrCreate()
rows = session.read.parquet(sys.argv[1] + "/data")
rows.createOrReplaceTempView("completions")
whole = [row.asDict(recursive=True) for row in rows.orderBy("row_index", "sample_index").collect()]
long = [tuple(row) for row in session.sql(sys.argv[3]).collect()]
sys.stdout.buffer.write(b"ROWS" + pickle.dumps((whole, long)))
"""


def test_spark_reads_every_value(folder: Path, written: Rows, tmp_path: Path) -> None:
    pytest.importorskip("pyspark", reason="pip install 'batchgen[spark]' was not done")
    if shutil.which("java") is None:
        pytest.skip("Spark needs a Java runtime")
    query = block("Spark")
    command = [sys.executable, "-c", SPARK, str(folder), str(tmp_path), query]
    brisk = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}  # for a program of seconds
    environment = os.environ | {"TZ": "UTC", "PYARROW_IGNORE_TIMEZONE": "1"} | brisk
    output = subprocess.run(command, capture_output=True, check=True, env=environment, cwd=tmp_path).stdout
    whole, long = pickle.loads(output.partition(b"ROWS")[2])

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["row_index"], row["sample_index"], row["strategy"]

    assert_same(sorted(whole, key=place), sorted(written, key=place))
    assert sorted(long) == sorted(long_form(written))


def test_each_reader_groups_by_strategy_over_parts(folder: Path) -> None:
    """Arrow dictionary columns would fail here in pyarrow, as each part has its own."""
    path = folder / "data"
    counts = pq.read_table(path).group_by("strategy").aggregate([("row_id", "count")]).to_pylist()
    assert {row["strategy"]: row["row_id_count"] for row in counts} == {"draw": 5, "beam": 2}
    with duckdb.connect() as connection:
        grouped = connection.sql(f"SELECT strategy, count(*) FROM '{path}/*.parquet' GROUP BY strategy").fetchall()
    assert dict(grouped) == {"draw": 5, "beam": 2}
    assert dict(pl.read_parquet(path).group_by("strategy").len().iter_rows()) == {"draw": 5, "beam": 2}
    assert pd.read_parquet(path).groupby("strategy").size().to_dict() == {"draw": 5, "beam": 2}


def long_form(rows: Rows) -> list[tuple[Any, ...]]:
    """Row id, strategy, sample, step, rank, token id and probability of every alternative, in plain Python."""
    return [
        (row["row_id"], row["strategy"], row["sample_index"], step, rank, token_id, prob)
        for row in rows
        for step, (ids, probs) in enumerate(zip(row["top_token_ids"] or [], row["top_probs"] or [], strict=True))
        for rank, (token_id, prob) in enumerate(zip(ids, probs, strict=True), start=1)
    ]


def test_parallel_lists_unfold_into_one_row_per_step_and_alternative(folder: Path, written: Rows) -> None:
    """By the queries of docs/reading.md, in each tool that it has one for."""
    with duckdb.connect() as connection:
        rows = connection.sql(block("DuckDB").replace("out/demo", str(folder))).fetchall()
    assert sorted(rows) == sorted(long_form(written))
    for tool in ("Polars", "pandas"):
        names: dict[str, Any] = {}
        exec(block(tool).replace("out/demo", str(folder)), names)
        rows = names["long"].rows() if tool == "Polars" else list(names["long"].itertuples(index=False, name=None))
        assert sorted(map(plain_row, rows)) == sorted(long_form(written)), tool


def plain_row(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(plain(value) for value in row)
