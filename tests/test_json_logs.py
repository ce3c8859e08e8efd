"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
import sys

from pipeline.json_logs import JsonLines
from pipeline.records import Usage
from pipeline.shard import Part
from pipeline.terminal import ShardLines


def lines(records: list[logging.LogRecord]) -> list[dict[str, object]]:
    return [json.loads(JsonLines().format(record)) for record in records]


def test_a_shard_is_one_object_with_its_numbers() -> None:
    with CaughtLog("batchgen") as records:
        progress = ShardLines()
        progress.start(12, 2, [])
        sums = {"greedy": {"ok": 5, "generated_tokens": 20}}
        progress.part(
            Part("data/part-00000.parquet", 6, "", sums, 0, seconds=1.25, engine_s=1.0, usage=Usage(1, 9, 4, 6))
        )
    start, part = lines(records)
    assert (start["rows"], start["shards"], start["done"]) == (12, 2, 0)
    assert {key: part[key] for key in part if key not in ("time", "message")} == {
        "level": "info",
        "logger": "batchgen",
        "part": "data/part-00000.parquet",
        "rows": 6,
        "errors": 1,
        "tokens": 20,
        "seconds": 1.25,
        "engine_s": 1.0,
        "prefills": 1,
        "decode_steps": 9,
        "batch_occupancy": 0.6667,
        "done": 1,
        "shards": 2,
    }
    assert part["message"] == "data/part-00000.parquet rows=6 errors=1 tokens=20 seconds=1.2 done=1/2"


def test_times_are_utc_and_line_ends_are_escaped() -> None:
    record = logging.LogRecord("a", logging.WARNING, "", 0, "two\nlines %s", ("\x1b[1m",), None)
    record.created = 0.25
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "warning",
        "logger": "a",
        "message": "two\nlines \x1b[1m",
    }


def test_an_exception_keeps_its_traceback() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    assert lines([record])[0]["traceback"].endswith("ValueError: no")  # type: ignore[attr-defined]


class CaughtLog(logging.Handler):
    """The records of a logger while the context is open."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.log, self.records = logging.getLogger(name), list[logging.LogRecord]()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __enter__(self) -> list[logging.LogRecord]:
        self.level_before = self.log.level
        self.log.setLevel(logging.INFO)
        self.log.addHandler(self)
        return self.records

    def __exit__(self, *_: object) -> None:
        self.log.removeHandler(self)
        self.log.setLevel(self.level_before)
