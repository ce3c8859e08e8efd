"""The slot cache on hand-made slots, and the laws of moving rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.cache import SlotCache, place


def cache_of(*rows: list[int], positions: int = 4) -> SlotCache:
    """A cache of two layers and two heads whose keys show token and layer, and whose values are their negatives."""
    cache = SlotCache(
        layers=2, slots=len(rows), heads=2, positions=positions, head_size=3, dtype=torch.float32, device="cpu"
    )
    for slot, row in enumerate(rows):
        cache.token_ids[slot, : len(row)] = torch.tensor(row)
        cache.lengths[slot] = len(row)
        for layer in range(2):
            shown = torch.tensor(row)[None, :, None] + 100 * layer
            cache.keys[layer, slot, :, : len(row)] = shown
            cache.values[layer, slot, :, : len(row)] = -shown
    return cache


def contents(cache: SlotCache) -> list[list[int]]:
    """Tokens of each slot; their keys and values must be those of the same tokens."""
    rows = [row[:length] for row, length in zip(cache.token_ids.tolist(), cache.lengths.tolist(), strict=True)]
    for slot, row in enumerate(rows):
        for layer in range(2):
            shown = (torch.tensor(row)[None, :, None] + 100 * layer).expand(2, -1, 3).tolist()
            assert cache.keys[layer, slot, :, : len(row)].tolist() == shown
            assert (-cache.values[layer, slot, :, : len(row)]).tolist() == shown
    return rows


def test_a_new_cache_is_empty_and_zero() -> None:
    cache = SlotCache(layers=2, slots=3, heads=4, positions=5, head_size=6, dtype=torch.bfloat16, device="cpu")
    assert (cache.num_slots, cache.num_positions) == (3, 5)
    assert cache.lengths.tolist() == [0, 0, 0]
    for tensor in (cache.keys, cache.values):
        assert tensor.shape == (2, 3, 4, 5, 6)
        assert tensor.dtype == torch.bfloat16
        assert not tensor.any()


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([], [[], [], [], []]),
        ([0, 1, 2, 3], [[1, 2], [3], [4, 5, 6], [7, 8]]),
        ([0, 3], [[1, 2], [7, 8], [], []]),
        ([2, 3], [[4, 5, 6], [7, 8], [], []]),
        ([1, 1, 1, 1], [[3], [3], [3], [3]]),
        ([0, 0, 2], [[1, 2], [1, 2], [4, 5, 6], []]),
    ],
    ids=["nothing-left", "all-stay", "hole-filled", "all-moved", "spread", "beams"],
)
def test_rearrange_gives_each_slot_what_its_source_held_and_empties_those_behind(
    sources: list[int], expected: list[list[int]]
) -> None:
    cache = cache_of([1, 2], [3], [4, 5, 6], [7, 8])
    cache.rearrange(sources)
    assert contents(cache) == expected


def test_clear_zeroes_the_keys_and_values_of_some_slots_only() -> None:
    cache = cache_of([1, 2], [3], [4, 5, 6])
    cache.keys[:, [0, 2]] = float("nan")
    cache.values[:, [0, 2]] = float("nan")
    cache.clear([0, 2])
    assert not cache.keys[:, [0, 2]].any()
    assert not cache.values[:, [0, 2]].any()
    assert cache.keys[:, 1, :, 0].flatten().tolist() == [3] * 6 + [103] * 6


@pytest.mark.parametrize(
    ("sources", "slots"),
    [
        ([], []),
        ([0, 1, 2], [0, 1, 2]),
        ([2, 1, 0], [2, 1, 0]),
        ([5], [0]),
        ([0, 0, 0], [0, 1, 2]),
        ([1, 1, 1], [1, 0, 2]),
        ([3, 0, 7, 1], [3, 0, 2, 1]),
        ([4, 4, 1], [0, 2, 1]),
    ],
)
def test_rows_stay_where_they_can_and_fill_holes_where_they_cannot(sources: list[int], slots: list[int]) -> None:
    assert place(sources) == slots


slots_of_rows = st.lists(st.integers(0, 7), max_size=8)


@settings(max_examples=300)
@given(sources=slots_of_rows)
def test_place_gives_every_row_its_own_slot_and_moves_as_few_as_possible(sources: list[int]) -> None:
    slots = place(sources)
    assert sorted(slots) == list(range(len(sources)))
    stayed = [slot for slot, source in zip(slots, sources, strict=True) if slot == source]
    assert len(stayed) == len({source for source in sources if source < len(sources)})


@settings(max_examples=100)
@given(
    rows=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=8, max_size=8),
    moves=st.lists(slots_of_rows, max_size=4),
)
def test_a_chain_of_rearrangements_equals_one_on_plain_lists(rows: list[list[int]], moves: list[list[int]]) -> None:
    cache = cache_of(*rows, positions=6)
    for wanted in moves:
        in_slots = sorted(zip(place(wanted), wanted, strict=True))
        sources = [source for _, source in in_slots]
        cache.rearrange(sources)
        rows = [rows[source] for source in sources] + [[] for _ in rows[len(sources) :]]
        assert contents(cache) == rows
