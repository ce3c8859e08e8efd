"""What a reader sees of a run at any moment: whole parts and nothing else, provable as far as they go."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.dataset as ds

from pipeline.verify import verify
from tests.forgery import run_demo

ROWS_PER_PROMPT = 8
STEPS = ("open", "os.link", "os.remove", "os.mkdir")  # what Python announces before it asks the system to do it


class Watcher:
    """Takes a snapshot before every step on files below a folder, whoever takes it in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_active = False
        self.snapshots: list[tuple[str, int]] = []
        sys.addaudithook(self._hook)  # cannot be removed, but does nothing while it is not active

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.is_active = True
        yield
        self.is_active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_active and event in STEPS and str(arguments[0]).startswith(str(self.folder)):
            self.is_active = False  # reading opens files too
            self.snapshots.append((event, look(self.folder)))
            self.is_active = True


def look(folder: Path) -> int:
    """Rows that readers find in `data/`, which must be those of its parts, whole; -1 if there is no part."""
    if not list((folder / "data").glob("*")):
        return -1
    wanted = sum(
        {"part-00000.parquet": 3, "part-00001.parquet": 3, "part-00002.parquet": 1}[path.name] * ROWS_PER_PROMPT
        for path in (folder / "data").iterdir()
    )
    assert ds.dataset(folder / "data").to_table().num_rows == wanted
    assert duckdb.sql(f"SELECT count(*) FROM '{folder}/data/*.parquet'").fetchall() == [(wanted,)]
    assert pl.read_parquet(folder / "data", use_pyarrow=False).height == wanted
    report = verify(folder)
    assert (report.is_proven, report.num_rows) == (True, wanted)
    return wanted


def test_readers_see_whole_parts_at_every_step_of_a_run(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "out")
    with watcher.watching():
        run_demo(tmp_path)
    seen = [rows for _, rows in watcher.snapshots]
    assert seen == sorted(seen)
    assert set(seen) == {-1, 24, 48, 56}
    assert {event for event, _ in watcher.snapshots} == set(STEPS)
    assert [event for event, rows in watcher.snapshots if rows == 24].count("os.link") == 1
    assert verify(tmp_path / "out").state == "finished"
