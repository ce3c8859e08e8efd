"""A run opened for reading: each reader gives the same rows, those of retries in place of the errors they mended."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import boto3
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from pipeline.errors import InputError, OutputError
from pipeline.long_form import SCHEMA, explode
from pipeline.recorded import open_run as open_recorded
from pipeline.replay import find_rows
from pipeline.results import Results, open_run
from tests.flows import read_output
from tests.forgery import PROMPTS, STRATEGIES, run_demo
from tests.test_readers import assert_same, hand_made_in_parts, write_hand_made
from tests.test_retry import ILL, ill_on, retry

Rows = list[dict[str, Any]]

READ = """
import pickle, sys
from pipeline.results import open_run

def read(folder, cache):
    results = open_run(folder)
    query = results.to_duckdb()
    return {
        "pyarrow": results.to_pyarrow().to_table().to_pylist(),
        "polars": results.to_polars().collect().to_dicts(),
        "duckdb": [dict(zip(query.columns, row)) for row in query.fetchall()],
        "pandas": results.to_pandas().to_dict("records"),
        "datasets": list(results.to_datasets(cache_dir=cache)),
    }

folders, cache = sys.argv[1:-1], sys.argv[-1]
pickle.dump([read(folder, f"{cache}/{number}") for number, folder in enumerate(folders)], sys.stdout.buffer)
"""
READERS = ("pyarrow", "polars", "duckdb", "pandas", "datasets")
ORDER = [strategy["name"] for strategy in STRATEGIES]


def place(row: dict[str, Any]) -> tuple[int, int, int]:
    """Where a row stands in the output."""
    return row["row_index"], ORDER.index(row["strategy"]), row["sample_index"]


def in_order(rows: Rows) -> Rows:
    """The rows in the order of the output, without what only pyarrow adds."""
    return sorted(({name: row[name] for name in row if name != "_retry"} for row in rows), key=place)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with errors in every part, after a retry that mended some of them and one that mended one more."""
    folder = run_demo(tmp_path_factory.mktemp("twice"), engine_maker=ill_on(*ILL))
    retry(folder, engine_maker=ill_on(*ILL[1:]))
    retry(folder, "process_died", engine_maker=ill_on(*ILL[2:]))
    return folder


@pytest.fixture(scope="module")
def now(twice: Path) -> Rows:
    """The rows of `twice` as replay finds them, one input row after another."""
    run = open_recorded(twice)
    return [row for index in range(len(PROMPTS)) for row in find_rows(run, f"r{index}")]


def test_batches_give_the_newest_state_of_every_row_in_the_order_of_the_output(twice: Path, now: Rows) -> None:
    assert [row["status"] for row in now].count("error") == 16  # of r2, whose prompt is null, and of one that is ill
    rows = [row for batch in open_run(twice).batches() for row in batch.to_pylist()]
    assert_same(rows, now)


@pytest.fixture(scope="module")
def read(twice: Path, sound: Path, store: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Rows]]:
    """What every reader gives of a run with retries, here and in a bucket, and of one without.

    In a process of its own: `import datasets` changes how pyarrow reads files.
    """
    command = [sys.executable, "-c", READ, str(twice), store, str(sound), str(tmp_path_factory.mktemp("cache"))]
    found = pickle.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return dict(zip(("twice", "store", "sound"), found, strict=True))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("folder", ["twice", "store"])
def test_every_reader_gives_the_newest_state_of_every_row(
    folder: str, reader: str, read: dict[str, dict[str, Rows]], now: Rows
) -> None:
    assert_same(in_order(read[folder][reader]), now)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_gives_all_rows_of_a_run_without_retries(
    reader: str, read: dict[str, dict[str, Rows]], sound: Path
) -> None:
    assert_same(in_order(read["sound"][reader]), read_output(sound).to_pylist())


def test_the_arrow_dataset_is_lazy_and_says_which_retry_a_row_comes_from(twice: Path, sound: Path) -> None:
    dataset = open_run(twice).to_pyarrow()
    table = dataset.to_table(columns=["row_id", "_retry"])
    rounds = {row["row_id"]: row["_retry"] for row in table.to_pylist()}
    assert rounds == {"r0": 0, "r1": 1, "r2": 1, "r3": 0, "r4": 2, "r5": 2, "r6": 0}
    assert dataset.count_rows() == read_output(sound).num_rows
    assert open_run(sound).to_pyarrow().schema.equals(pq.read_schema(sound / "data" / "part-00000.parquet"))


def test_what_is_published_later_is_not_seen(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "out")
    last = folder / "data" / "part-00002.parquet"
    data = last.read_bytes()
    last.unlink()
    results = open_run(folder)
    last.write_bytes(data)
    seen = {row["row_id"] for batch in results.batches(["row_id"]) for row in batch.to_pylist()}
    assert seen == {f"r{index}" for index in range(6)}
    assert set(results.to_polars().collect()["row_id"]) == seen


def test_a_folder_without_parts_and_an_unknown_column_are_named(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "out")
    with pytest.raises(InputError, match="has no column `txt`; there are `row_id`"):
        list(open_run(folder).batches(["txt"]))
    shutil.rmtree(folder / "data")
    with pytest.raises(InputError, match="holds no parts yet"):
        open_run(folder)


RAY = """
import os, pickle, sys, warnings
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
from pipeline.results import open_run
rows = [open_run(folder).to_ray().take_all() for folder in sys.argv[2:]]
rows.append(ray.data.read_parquet(sys.argv[1]).take_all())
sys.stdout.buffer.write(b"ROWS" + pickle.dumps(rows))
"""


def test_ray_data_gives_every_value_and_the_newest_state_of_every_row(
    twice: Path, sound: Path, now: Rows, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", RAY, str(write_hand_made(tmp_path) / "data"), str(twice), str(sound)]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    mended, plain, raw = pickle.loads(output.partition(b"ROWS")[2])
    assert_same(in_order(mended), now)
    assert_same(in_order(plain), read_output(sound).to_pylist())
    key = itemgetter("strategy", "row_index", "sample_index")  # Ray reads files in any order
    assert_same(sorted(raw, key=key), sorted(hand_made_in_parts(), key=key))


@pytest.fixture(scope="module")
def store(twice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same run in an S3 bucket, as URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        for path in twice.rglob("*"):
            if path.is_file() and "_tmp" not in path.parts:
                client.upload_file(str(path), "bucket", f"runs/{path.relative_to(twice)}")
        yield "s3://bucket/runs"
    server.stop()


def expected_long(rows: Rows, tokens: list[str]) -> list[tuple[Any, ...]]:
    """The long form in plain Python."""
    return [
        (row["row_id"], row["strategy"], row["sample_index"], step, rank, token_id, tokens[token_id], prob)
        for row in rows
        for step, (ids, probs) in enumerate(zip(row["top_token_ids"] or [], row["top_probs"] or [], strict=True))
        for rank, (token_id, prob) in enumerate(zip(ids, probs, strict=True), start=1)
    ]


def test_the_long_form_has_a_row_per_step_and_alternative(twice: Path, now: Rows, tmp_path: Path) -> None:
    vocabulary = pq.read_table(twice / "_vocab.parquet").to_pylist()
    tokens = [row["bytes"].decode("utf-8", "replace") or row["token"] for row in vocabulary]
    expected = expected_long(now, tokens)
    assert explode(open_run(twice), tmp_path / "long.parquet", row_group=1000) == len(expected)
    table = pq.read_table(tmp_path / "long.parquet")
    assert [tuple(row.values()) for row in table.to_pylist()] == expected
    assert table.schema.equals(SCHEMA)
    assert pq.ParquetFile(tmp_path / "long.parquet").num_row_groups > 1
    assert [path.name for path in tmp_path.iterdir()] == ["long.parquet"]


def test_the_long_view_of_duckdb_has_the_same_rows(twice: Path, tmp_path: Path) -> None:
    explode(open_run(twice), tmp_path / "long.parquet")
    with duckdb.connect() as connection:
        open_run(twice).to_duckdb(connection)
        assert connection.sql("SELECT * FROM long").columns == SCHEMA.names
        both = f"SELECT count(*) FROM (SELECT * FROM long EXCEPT SELECT * FROM '{tmp_path}/long.parquet')"
        assert connection.sql(both).fetchall() == [(0,)]
        counts = f"SELECT (SELECT count(*) FROM long) - (SELECT count(*) FROM '{tmp_path}/long.parquet')"
        assert connection.sql(counts).fetchall() == [(0,)]


def test_a_run_without_alternatives_has_an_empty_long_form(tmp_path: Path) -> None:
    greedy = [{"name": "greedy", "type": "greedy", "max_new_tokens": 2}]
    output = {"path": str(tmp_path / "out"), "top_k": 0}
    folder = run_demo(tmp_path, strategies=greedy, output=output)
    assert explode(open_run(folder), tmp_path / "long.parquet") == 0
    assert pq.read_table(tmp_path / "long.parquet").equals(SCHEMA.empty_table())
    with duckdb.connect() as connection:
        open_run(folder).to_duckdb(connection)
        assert connection.sql("SELECT * FROM long").fetchall() == []


def test_the_long_form_replaces_no_file(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "long.parquet").write_text("mine")
    with pytest.raises(OutputError, match=r"long\.parquet is there already"):
        explode(open_run(sound), tmp_path / "long.parquet")
    assert (tmp_path / "long.parquet").read_text() == "mine"


def test_polars_plans_before_it_reads(twice: Path, now: Rows) -> None:
    frame = open_run(twice).to_polars()
    assert isinstance(frame, pl.LazyFrame)
    ok = frame.filter(pl.col("status") == "ok").select(pl.len()).collect().item()
    assert ok == sum(row["status"] == "ok" for row in now)


def test_results_name_their_folder_and_state(twice: Path) -> None:
    results = open_run(twice)
    assert isinstance(results, Results)
    assert (results.folder, results.is_finished, len(results.rounds)) == (str(twice), True, 3)
    assert isinstance(next(results.batches()), pa.Table)
