"""The benchmarks of very long jobs, small: what they measure is right, and grows as it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scale import drive_ledger, plan_footers, prepare_folder, resume_folder, write_footers
from pipeline.manifest import PLAN
from pipeline.tally import PARTS_PER_FILE


def test_a_plan_is_made_from_footers_alone_and_its_document_does_not_grow_with_the_shards(tmp_path: Path) -> None:
    write_footers(tmp_path / "footers", files=20, rows_per_file=1_000_000)
    coarse = plan_footers(tmp_path / "footers", tmp_path / "coarse", shard_rows=10_000)
    fine = plan_footers(tmp_path / "footers", tmp_path / "fine", shard_rows=100)
    assert (coarse["rows"], coarse["shards"], fine["shards"]) == (20_000_000, 2_000, 200_000)
    assert fine["document_bytes"] - coarse["document_bytes"] < 20
    assert json.loads((tmp_path / "fine" / PLAN).read_text())["shards"]["last"] == [
        "data/part-199999.parquet",
        19_999_900,
        20_000_000,
    ]


@pytest.mark.parametrize("replicas", [1, 64])
def test_a_ledger_is_driven_to_its_end(replicas: int) -> None:
    assert drive_ledger(shards=5_000, shard_rows=4_000, replicas=replicas)["shards"] == 5_000


def test_a_long_run_is_resumed_without_reading_its_parts(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "input.parquet", tmp_path / "out", shards=2 * PARTS_PER_FILE + 3)
    result = resume_folder(tmp_path / "input.parquet", tmp_path / "out")
    assert (result["parts"], result["parts_left"]) == (2 * PARTS_PER_FILE + 3, 3)
    assert (tmp_path / "out" / "_SUCCESS").exists()
