"""Every block of docs/reading.md runs on the demo job and prints what stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tests.reading_page import TEXT, blocks

PYTHON = [code for language, code in blocks() if language == "python"]
SQL = [code for language, code in blocks() if language == "sql" and not code.startswith("-- Spark")]
PRINTED = re.compile(r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```\n", re.DOTALL)


@pytest.fixture
def place(demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that has `out/demo`."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "demo").symlink_to(demo_run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("query", SQL)
def test_every_query_finds_rows(query: str, place: Path) -> None:
    with duckdb.connect() as connection:
        rows = connection.sql(query).fetchall()
    assert rows or "status = 'error'" in query  # the demo has none


def test_every_block_of_python_prints_what_the_page_says(place: Path) -> None:
    shown = dict(PRINTED.findall(TEXT))
    for code in PYTHON:
        command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip("\n") == shown.get(code, "").strip("\n")
    assert len(shown) == 4


@pytest.mark.parametrize("line", re.findall(r"^\$ batchgen (.*)$", TEXT, re.MULTILINE))
def test_every_command_of_the_page_works(line: str, place: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"[\d,]+ rows · long\.parquet\n", done.stdout)
