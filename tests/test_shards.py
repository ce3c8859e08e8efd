"""Shards made on demand: the same names and ranges as a list of them would have."""

from __future__ import annotations

import sys

import pytest

from pipeline.shard import Shard
from pipeline.shards import all_shards


def test_shards_cut_the_input_in_order_and_the_last_may_be_shorter() -> None:
    assert list(all_shards(8, 3)) == [
        Shard("data/part-00000.parquet", 0, 3),
        Shard("data/part-00001.parquet", 3, 6),
        Shard("data/part-00002.parquet", 6, 8),
    ]
    assert list(all_shards(6, 3)) == [Shard("data/part-00000.parquet", 0, 3), Shard("data/part-00001.parquet", 3, 6)]
    assert list(all_shards(2, 1000)) == [Shard("data/part-00000.parquet", 0, 2)]


def test_names_sort_as_numbers_do_however_many_there_are() -> None:
    assert all_shards(99_999, 1)[-1].key == "data/part-99998.parquet"
    assert all_shards(100_000, 1)[-1].key == "data/part-99999.parquet"
    assert [all_shards(100_001, 1)[index].key for index in (0, -1)] == [
        "data/part-000000.parquet",
        "data/part-100000.parquet",
    ]


def test_a_slice_and_what_is_left_behave_as_lists_of_shards() -> None:
    shards = all_shards(10, 2)
    assert list(shards[1:3]) == list(shards)[1:3]
    left = shards.without({"data/part-00000.parquet", "data/part-00003.parquet", "data/stranger.parquet"})
    assert [shard.lo for shard in left] == [2, 4, 8]
    assert left[-1] == Shard("data/part-00004.parquet", 8, 10)
    assert [shard.lo for shard in left[:2].without({"data/part-00001.parquet"})] == [4]
    assert len(left) == 3
    with pytest.raises(IndexError):
        left[3]


def test_a_million_shards_take_no_memory_and_what_is_left_of_them_eight_bytes_each() -> None:
    shards = all_shards(10**9, 1000)
    assert len(shards) == 10**6
    assert sys.getsizeof(shards.indexes) < 100
    left = shards.without({shards[0].key})
    assert len(left) == 10**6 - 1
    assert sys.getsizeof(left.indexes) < 10 * 10**6
