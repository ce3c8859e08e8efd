"""One shard with rows that must not be generated for: they are error rows, and nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import shard
from pipeline.plan import make_plan
from pipeline.records import Request, Response, RowError
from pipeline.shard import NO_ROWS, Setup, Shard, Worker, open_worker
from pipeline.storage import LocalFolder
from pipeline.tokenizer import Tokenizer
from tests.flows import EchoEngine, make_job, part_bytes, write_prompts

PROMPTS = ["The quiet fox", "Every bee", None, "Today", "In the stable"]
HUNG = RowError("hung", "it never ended")
KILLED = RowError("killed_replica", "it was killed")


class Witness(EchoEngine):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        self.asked += [request.prompt_token_ids for request in requests]
        return super().generate(requests)


def witness(_setup: Setup, _tokenizer: Tokenizer) -> Witness:
    return Witness()


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """For a folder `out`; the input starts with five rows that are not in the shards under test."""
    source = write_prompts(tmp_path / "p.parquet", ["!"] * 5 + PROMPTS, topic=list("abcdefghij"))
    kept = {"path": str(source), "id_column": "id", "keep_columns": ["topic"]}
    plan = make_plan(make_job(source, tmp_path / "out", input=kept, run={"shard_rows": 5}))
    folder = LocalFolder(tmp_path / "out")
    folder.prepare()
    return open_worker(plan.setup(folder), witness)


def rows(folder: Path, key: str) -> list[dict[str, object]]:
    return pq.read_table(folder / key).to_pylist()


def test_poisoned_rows_are_error_rows_with_their_prompt_and_key_and_the_others_are_unchanged(
    worker: Worker, tmp_path: Path
) -> None:
    worker(Shard("data/clean.parquet", 5, 10))
    part = worker(Shard("data/poisoned.parquet", 5, 10), {6: HUNG, 9: KILLED})
    assert (part.rows, part.ok) == (15, 6)
    assert {type_: sums["errors"] for type_, sums in part.sums.items()} == {
        "greedy": {"hung": 1, "killed_replica": 1, "prompt_null": 1},
        "samples": {"hung": 2, "killed_replica": 2, "prompt_null": 2},
    }
    clean = rows(tmp_path / "out", "data/clean.parquet")
    for row, other in zip(rows(tmp_path / "out", "data/poisoned.parquet"), clean, strict=True):
        error = {6: HUNG, 9: KILLED}.get(row["row_index"])
        if error is None:
            assert row == other
            continue
        assert (row["status"], row["error_type"], row["error_message"]) == ("error", error.type, error.message)
        same = ("row_id", "row_index", "strategy", "sample_index", "prompt", "seed", "topic")
        assert [row[name] for name in same] == [other[name] for name in same]
        assert row["token_ids"] is row["prompt_token_ids"] is row["text"] is None


def test_neither_the_engine_nor_the_tokenizer_is_given_a_poisoned_row(worker: Worker) -> None:
    class Deaf:
        """A tokenizer that would die of one text."""

        def encode(self, texts: Sequence[str]) -> list[list[int]]:
            assert "Every bee" not in texts
            return worker.tokenizer.encode(texts)

        def __getattr__(self, name: str) -> object:
            return getattr(worker.tokenizer, name)

    Worker(worker.setup, Deaf(), worker.engine)(Shard("data/x.parquet", 5, 10), {6: HUNG})
    forbidden = tuple(worker.tokenizer.encode(["Every bee"])[0])
    assert len(worker.engine.asked) == 3 * 2  # the null prompt is asked for by nobody either
    assert forbidden not in worker.engine.asked


def test_a_row_that_is_an_error_already_says_why_it_is_poisoned(worker: Worker, tmp_path: Path) -> None:
    worker(Shard("data/x.parquet", 7, 8), {7: HUNG})
    assert [row["error_type"] for row in rows(tmp_path / "out", "data/x.parquet")] == ["hung"] * 3


def test_an_attempt_generates_and_publishes_nothing(worker: Worker, tmp_path: Path) -> None:
    worker.attempt(Shard("data/x.parquet", 5, 7), NO_ROWS)
    assert len(worker.engine.asked) == 2 * 2
    assert part_bytes(tmp_path / "out") == {}


def test_the_steps_of_a_row_are_those_of_all_strategies_and_samples(worker: Worker) -> None:
    assert worker.steps_per_row == 4 + 2 * 4


def test_one_shard_is_read_while_another_is_decoded_and_written_while_the_next_one_is(
    worker: Worker, tmp_path: Path
) -> None:
    """Each waits for the other: if they came one after another, this would not end well."""
    first, second = Shard("data/first.parquet", 5, 7), Shard("data/second.parquet", 8, 10)
    is_read, is_decoded = threading.Event(), threading.Event()
    threads = set()

    class Tokens:
        def encode(self, texts: Sequence[str]) -> list[list[int]]:
            if "Today" in texts:
                is_read.set()
            return worker.tokenizer.encode(texts)

        def __getattr__(self, name: str) -> object:
            return getattr(worker.tokenizer, name)

    class Engine(EchoEngine):
        def generate(self, requests: Sequence[Request]) -> list[Response]:
            threads.add(threading.get_ident())
            assert is_read.wait(60)
            if requests[0].prompt_token_ids == today:
                is_decoded.set()
            return super().generate(requests)

    class SlowFolder(LocalFolder):
        def publish(self, key: str, data: bytes | memoryview) -> str:
            assert key != first.key or is_decoded.wait(60)
            return super().publish(key, data)

    today = tuple(worker.tokenizer.encode(["Today"])[0])
    alone = [worker(each) for each in (first._replace(key="data/1.parquet"), second._replace(key="data/2.parquet"))]
    setup = replace(worker.setup, folder=SlowFolder(tmp_path / "out"))
    with ThreadPoolExecutor(1) as turns, ThreadPoolExecutor(2) as calls:
        parts = list(calls.map(Worker(setup, Tokens(), Engine(), turns), [first, second]))
    assert is_read.is_set()
    assert is_decoded.is_set()
    assert len(threads) == 1  # the engine's memory belongs to a thread
    assert [part.sha256 for part in parts] == [part.sha256 for part in alone]
    assert [part.usage for part in parts] == [part.usage for part in alone]


def test_the_seconds_of_a_shard_are_not_those_in_which_it_waits_for_the_engine(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count()

    class LateTurn(Executor):
        """The engine is free a hundred looks at the clock later."""

        def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
            for _ in range(100):
                next(clock)
            answer: Future[Any] = Future()
            answer.set_result(call(*arguments, **named))
            return answer

    monkeypatch.setattr(shard.time, "perf_counter", lambda: next(clock))
    at_once, late = (
        replace(worker, turns=turns)(Shard(f"data/{name}.parquet", 5, 10))
        for name, turns in (("now", None), ("late", LateTurn()))
    )
    assert at_once.engine_s == late.engine_s == 1
    assert at_once.seconds == late.seconds
