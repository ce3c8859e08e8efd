"""What is known of parts: counted in any order to the same sums, written now and then, found again by a later run."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from pipeline import job
from pipeline.manifest import known_parts
from pipeline.plan import make_plan
from pipeline.shard import Part
from pipeline.storage import LocalFolder
from pipeline.tally import PARTS_PER_FILE, Listed, Tally
from tests.flows import echo, make_job, part_bytes, write_prompts
from tests.test_job import StoppedError, stop_after


def part(index: int, **sums: object) -> Part:
    strategy = {"rows": 4, "ok": 3, "errors": {"hung": 1}, "generated_tokens": 7, "lengths": {str(index % 12): 3}}
    strategy |= {"sum_logprob": -0.1 * index, "ranks": {"<=1": 1, ">1000": 0}}
    return Part(f"data/part-{index:05d}.parquet", 4, f"{index:064x}", {"greedy": strategy | sums}, 2, seconds=1.5)


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    folder = LocalFolder(tmp_path / "out")
    folder.prepare()
    return folder


def stored(folder: LocalFolder) -> list[Path]:
    return sorted((folder.root / "_parts").glob("*"))


def test_parts_are_listed_and_counted(folder: LocalFolder) -> None:
    tally = Tally(folder, "f")
    for index in (1, 0):
        tally.add(part(index))
    assert sorted(tally) == [
        Listed("data/part-00000.parquet", 4, 3, 7, "0" * 64),
        Listed("data/part-00001.parquet", 4, 3, 7, "0" * 63 + "1"),
    ]
    assert (len(tally), tally.errors, tally.truncated_prompts) == (2, 2, 4)
    assert "data/part-00001.parquet" in tally
    assert "data/part-00002.parquet" not in tally


def test_the_sums_are_the_same_to_the_last_bit_in_whatever_order_the_parts_came(folder: LocalFolder) -> None:
    parts = [part(index) for index in range(200)]
    documents = set()
    for seed in range(5):
        Random(seed).shuffle(parts)
        tally = Tally(folder, "f")
        for each in parts:
            tally.add(each)
        documents.add(json.dumps(tally.strategies))
    [document] = documents
    sums = json.loads(document)["greedy"]
    assert list(sums) == ["rows", "ok", "errors", "generated_tokens", "lengths", "sum_logprob", "ranks"]
    assert list(sums["lengths"]) == [str(length) for length in range(12)]
    assert sums["sum_logprob"] == pytest.approx(-0.1 * 199 * 100)
    assert sums["ranks"] == {"<=1": 200, ">1000": 0}


def test_a_file_is_written_for_every_64_parts_and_none_for_a_few(folder: LocalFolder) -> None:
    tally = Tally(folder, "f")
    for index in range(2 * PARTS_PER_FILE + 5):
        tally.add(part(index))
    lines = [path.read_text().splitlines() for path in stored(folder)]
    assert [len(each) for each in lines] == [1 + PARTS_PER_FILE] * 2
    assert all(json.loads(each[0]) == {"fingerprint": "f"} for each in lines)


def test_another_tally_knows_what_was_written_as_far_as_the_parts_are_there(folder: LocalFolder) -> None:
    parts = [part(index) for index in range(PARTS_PER_FILE)]
    first = Tally(folder, "f")
    for each in parts:
        first.add(each)
    second = Tally(folder, "f")
    second.load({each.key for each in parts})
    assert second.parts == first.parts
    assert second.strategies == first.strategies
    assert second.truncated_prompts == first.truncated_prompts
    third = Tally(folder, "f")
    third.load({parts[3].key, "data/part-99999.parquet"})
    assert list(third.parts) == [parts[3].key]
    assert third.strategies["greedy"]["rows"] == 4


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"fingerprint": "f"}\n{"key": 1}\n', b"[]\n", b"7\n"])
def test_a_damaged_file_is_left_aside_with_a_word(
    folder: LocalFolder, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder.publish("_parts/x.jsonl", damage)
    tally = Tally(folder, "f")
    tally.load({"data/part-00000.parquet"})
    assert len(tally) == 0
    assert "_parts/x.jsonl cannot be used" in caplog.text


def test_a_file_of_another_run_is_left_aside(folder: LocalFolder) -> None:
    other = Tally(folder, "other")
    for index in range(PARTS_PER_FILE):
        other.add(part(index))
    tally = Tally(folder, "f")
    tally.load(set(other.parts))
    assert len(tally) == 0


def test_a_resumed_run_reads_only_the_parts_that_no_file_tells_of(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["Every bee"] * (PARTS_PER_FILE + 20))
    greedy = {"name": "g", "type": "greedy", "max_new_tokens": 2}
    jobs = [
        make_job(source, tmp_path / name, strategies=[greedy], run={"shard_rows": 1}) for name in ("out", "undisturbed")
    ]
    with pytest.raises(StoppedError):
        job.run(jobs[0], stop_after(PARTS_PER_FILE + 10), engine_maker=echo)
    plan, folder = make_plan(jobs[0]), LocalFolder(tmp_path / "out")
    known = known_parts(folder, plan.fingerprint, plan.part_rows)
    assert len(known) == PARTS_PER_FILE + 10

    seen = []

    class Watched(LocalFolder):
        def read(self, key: str) -> bytes | None:
            seen.append(key.split("/")[0])
            return super().read(key)

    assert known_parts(Watched(folder.root), plan.fingerprint, plan.part_rows).parts == known.parts
    assert seen == ["_parts"] + ["data"] * 10
    finished = job.run(jobs[0], job.here, engine_maker=echo)
    undisturbed = job.run(jobs[1], job.here, engine_maker=echo)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")
    assert finished.manifest | {"timings": None} == undisturbed.manifest | {"timings": None}
