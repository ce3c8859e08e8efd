"""A run's rows in the reader's own tool: pyarrow, DuckDB, Polars, pandas, `datasets`, Ray Data.

Every function is lazy where its library is, knows folders and object stores, and leaves out the rows that a retry has
computed again. Libraries are imported where they are used; those that batchgen itself does not need come with
`pip install 'batchgen[readers]'`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.manifest import VOCABULARY
from pipeline.newest import KEY, Round
from pipeline.proofs.rows import row_codes
from pipeline.recorded import Recorded, Vocabulary
from pipeline.storage import Folder, ObjectFolder
from pipeline.storage_objects import ENDPOINTS
from pipeline.strategies import num_rows

if TYPE_CHECKING:
    import duckdb
    import polars

RETRY = "_retry"

LONG_FORM = """
WITH steps AS (
    SELECT row_id, strategy, sample_index, generate_subscripts(token_ids, 1) - 1 AS step,
           unnest(top_token_ids) AS ids, unnest(top_probs) AS probs
    FROM completions WHERE status = 'ok'
), entries AS (
    SELECT row_id, strategy, sample_index, step, generate_subscripts(ids, 1) AS rank,
           unnest(ids) AS token_id, unnest(probs) AS probability
    FROM steps
)
SELECT row_id, strategy, sample_index, step::INTEGER AS step, rank::INTEGER AS rank, token_id, token, probability
FROM entries JOIN token_texts USING (token_id)
"""


def to_pyarrow(run: Recorded, rounds: Sequence[Round]) -> Any:
    """A `pyarrow.dataset.Dataset`. After a retry it has one column more, `_retry`: the round that a row comes from.

    Raises:
        InputError: there was a retry, and a kept column is called `_retry`.
    """
    import pyarrow.dataset as ds

    file_format = ds.ParquetFileFormat()
    filesystem = _arrow_filesystem(run.folder)
    fragments = [
        file_format.make_fragment(
            _arrow_path(run.folder, file), filesystem, partition_expression=ds.field(RETRY) == _number(each)
        )
        for each in rounds
        for file in each.files
    ]
    schema = fragments[0].physical_schema.remove_metadata()
    if len(rounds) == 1:
        return ds.FileSystemDataset(fragments, schema, file_format, filesystem)
    if RETRY in schema.names:
        raise InputError(
            f"the kept column `{RETRY}` has the name of one that tells retries apart.", "Use another reader."
        )
    dataset = ds.FileSystemDataset(fragments, schema.append(pa.field(RETRY, pa.int32())), file_format, filesystem)
    for each in rounds:
        if len(each.stale):
            dataset = dataset.filter(~((ds.field(RETRY) == _number(each)) & _codes(run).isin(each.stale)))
    return dataset


def to_duckdb(
    run: Recorded, rounds: Sequence[Round], vocabulary: Vocabulary, connection: duckdb.DuckDBPyConnection | None
) -> Any:
    """A relation, with the views `completions`, `vocab` and `long` on its connection; see `Results.to_duckdb`."""
    duckdb = _needed("duckdb")
    connection = duckdb.connect() if connection is None else connection
    if isinstance(run.folder, ObjectFolder):
        connection.register_filesystem(_fsspec(run.folder))
    selects = []
    for each in rounds:
        query = f"SELECT * FROM read_parquet({_sql_list(each.files)})"
        if len(each.stale):
            _put(connection, f"stale_{each.number}", _keys(run, each.stale))
            query += f" ANTI JOIN stale_{each.number} USING ({', '.join(KEY)})"
        if each.keys:
            selects.append(query)
    connection.sql(f"CREATE OR REPLACE TEMP VIEW completions AS {' UNION ALL '.join(selects)}")
    tokens = pa.table({"token_id": pa.array(range(len(vocabulary.tokens)), pa.int32()), "token": vocabulary.texts})
    _put(connection, "token_texts", tokens)
    file = _sql_list([f"{run.folder.name}/{VOCABULARY}"])
    connection.sql(f"CREATE OR REPLACE TEMP VIEW vocab AS SELECT * FROM read_parquet({file})")
    connection.sql(f"CREATE OR REPLACE TEMP VIEW long AS {LONG_FORM}")
    return connection.view("completions")


def to_polars(run: Recorded, rounds: Sequence[Round]) -> polars.LazyFrame:
    """A LazyFrame."""
    pl = _needed("polars")
    options = {"aws_allow_http": "true"} if isinstance(run.folder, ObjectFolder) and _has_http() else None
    scans = []
    for each in rounds:
        if each.keys:
            scan = pl.scan_parquet(each.files, storage_options=options, glob=False)
            if len(each.stale):
                scan = scan.join(pl.from_arrow(_keys(run, each.stale)).lazy(), on=list(KEY), how="anti")
            scans.append(scan)
    frame: polars.LazyFrame = pl.concat(scans)
    return frame


def to_datasets(run: Recorded, rounds: Sequence[Round], cache_dir: str | None) -> Any:
    """A `datasets.Dataset`, copied into the cache of `datasets` as that library does."""
    import datasets

    pieces = []
    for each in rounds:
        if each.keys:
            with _local_files(each) as files:
                loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache_dir)
            pieces.append(loaded.select(_kept(loaded, each, run)) if len(each.stale) else loaded)
    return datasets.concatenate_datasets(pieces)


def to_ray(run: Recorded, rounds: Sequence[Round]) -> Any:
    """A `ray.data.Dataset`."""
    import ray.data

    filesystem = _arrow_filesystem(run.folder) if isinstance(run.folder, ObjectFolder) else None
    pieces = []
    for each in rounds:
        if each.keys:
            paths = [_arrow_path(run.folder, file) for file in each.files]
            read = ray.data.read_parquet(paths, filesystem=filesystem)
            if len(each.stale):
                without = partial(_without, stale=each.stale, run=run)
                read = read.map_batches(without, batch_format="pyarrow")
            pieces.append(read)
    return pieces[0].union(*pieces[1:]) if pieces[1:] else pieces[0]


def to_pandas(run: Recorded, rounds: Sequence[Round]) -> Any:
    """A DataFrame with Arrow types, whole in memory: without them integers with nulls become floats."""
    pd = _needed("pandas")
    dataset = to_pyarrow(run, rounds)
    table = dataset.to_table(columns=[name for name in dataset.schema.names if name != RETRY])
    return table.to_pandas(types_mapper=pd.ArrowDtype)


def _put(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """A temporary table with these rows."""
    types = {"int32": "INTEGER", "int64": "BIGINT", "string": "VARCHAR"}
    columns = ", ".join(f"{field.name} {types[str(field.type)]}" for field in table.schema)
    connection.sql(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
    connection.from_arrow(table).insert_into(name)


def _number(each: Round) -> pa.Scalar:
    return pa.scalar(each.number, pa.int32())


def _codes(run: Recorded) -> Any:
    """`row_codes` as an expression over the key columns."""
    import pyarrow.dataset as ds

    names = [strategy.name for strategy in run.job.strategies]
    counts = [num_rows(strategy) for strategy in run.job.strategies]
    strategy = pc.index_in(ds.field("strategy"), value_set=pa.array(names))
    firsts = pa.scalar(0, pa.int64())
    for index, first in enumerate(np.cumsum([0, *counts[:-1]]).tolist()):
        firsts = pc.if_else(pc.equal(strategy, index), pa.scalar(first, pa.int64()), firsts)
    return ds.field("row_index") * run.rows_per_prompt + firsts + ds.field("sample_index").cast("int64")


def _keys(run: Recorded, codes: pa.Int64Array) -> pa.Table:
    """The key columns of rows with these codes."""
    places = [(strategy.name, sample) for strategy in run.job.strategies for sample in range(num_rows(strategy))]
    row_index, place = np.divmod(codes.to_numpy(), run.rows_per_prompt)
    names, samples = zip(*(places[each] for each in place.tolist()), strict=True)
    columns = [pa.array(row_index, pa.int64()), pa.array(names, pa.string()), pa.array(samples, pa.int32())]
    return pa.table(columns, names=list(KEY))


def _without(batch: pa.Table, stale: pa.Int64Array, run: Recorded) -> pa.Table:
    return batch.filter(pc.invert(pc.is_in(pa.array(row_codes(batch, run)), stale)))


def _kept(loaded: Any, each: Round, run: Recorded) -> Any:
    """Places of the rows that no later round has computed again."""
    keys = loaded.select_columns(list(KEY)).with_format("arrow")[:]
    return np.flatnonzero(~np.isin(row_codes(keys, run), each.stale.to_numpy()))


def _sql_list(files: Sequence[str]) -> str:
    return "[" + ", ".join("'" + file.replace("'", "''") + "'" for file in files) + "]"


def _needed(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"this needs {library}. Install it: pip install 'batchgen[readers]'") from error


def _arrow_filesystem(folder: Folder) -> Any:
    import pyarrow.fs as fs

    return fs.PyFileSystem(fs.FSSpecHandler(_fsspec(folder))) if isinstance(folder, ObjectFolder) else _local()


def _local() -> Any:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


def _arrow_path(folder: Folder, file: str) -> str:
    """A file as the filesystem of its folder knows it: without a scheme."""
    return file.partition("://")[2] if isinstance(folder, ObjectFolder) else file


def _fsspec(folder: ObjectFolder) -> Any:
    from obstore.fsspec import FsspecStore

    return FsspecStore(_scheme(folder), client_options={"allow_http": _has_http()})


@contextmanager
def _local_files(each: Round) -> Iterator[list[str]]:
    """The parts as local files, fetched for the time being if they lie in an object store."""
    if not isinstance(each.folder, ObjectFolder):
        yield each.files
        return
    with TemporaryDirectory() as scratch:
        files = [Path(scratch, Path(key).name) for key in each.keys]
        for key, file in zip(each.keys, files, strict=True):
            file.write_bytes(each.folder.read(key) or b"")
        yield [str(file) for file in files]


def _scheme(folder: ObjectFolder) -> Any:
    return folder.url.partition("://")[0]


def _has_http() -> bool:
    return any(os.environ.get(variable, "").startswith("http://") for variable in ENDPOINTS)
