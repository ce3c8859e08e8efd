"""The slot cache on hand-made slots, and the laws of moving rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.cache import PAGE, SlotCache, place, span

Rows = Sequence[Sequence[int]]


def cache_of(*rows: Sequence[int], capacities: Sequence[int], is_mirrored: bool = True) -> SlotCache:
    """A cache of two layers and two heads whose keys show token and layer, and whose values are their negatives."""
    cache = SlotCache(
        layers=2,
        capacities=capacities,
        heads=2,
        head_size=3,
        dtype=torch.float32,
        device="cpu",
        is_mirrored=is_mirrored,
    )
    for slot, row in enumerate(rows):
        write(cache, slot, row)
    return cache


def write(cache: SlotCache, slot: int, row: Sequence[int]) -> None:
    """Put these tokens into a slot."""
    tokens, (keys, values) = torch.tensor(row, dtype=torch.int64), span(cache, slot, 0, len(row))
    cache.token_ids[slot, : len(row)], cache.lengths[slot] = tokens, len(row)
    shown = tokens[:, None] + torch.tensor([0, 100])[:, None, None, None]
    keys[:] = shown.flip(2) if cache.is_mirrored else shown
    values[:] = -shown


def contents(cache: SlotCache) -> list[list[int]]:
    """Tokens of each slot; their keys and values must be those of the same tokens."""
    rows = [row[:length] for row, length in zip(cache.token_ids.tolist(), cache.lengths.tolist(), strict=True)]
    for slot, row in enumerate(rows):
        shown = torch.tensor(row).view(-1, 1) + torch.tensor([0.0, 100.0]).view(2, 1, 1, 1)
        keys, values = span(cache, slot, 0, len(row))
        assert torch.equal(keys.flip(2) if cache.is_mirrored else keys, shown.expand(2, 2, -1, 3))
        assert torch.equal(values, -shown.expand(2, 2, -1, 3))
    return rows


@pytest.mark.parametrize("capacities", [[5, 5, 5], [5, 3, 1]])
def test_a_new_cache_is_empty_and_zero(capacities: list[int]) -> None:
    cache = SlotCache(
        layers=2,
        capacities=capacities,
        heads=4,
        head_size=6,
        dtype=torch.bfloat16,
        device="cpu",
        is_mirrored=capacities[0] != capacities[-1],
    )
    assert (cache.num_slots, cache.num_positions) == (3, 5)
    assert cache.lengths.tolist() == [0, 0, 0]
    assert cache.kept.shape == (2, 2 * 4 * sum(capacities), 6)
    assert cache.kept.dtype == torch.bfloat16
    assert not cache.kept.any()
    assert cache.kept.data_ptr() % PAGE == 0
    for slot, room in enumerate(capacities):
        assert [each.shape for each in span(cache, slot, 0, room)] == [(2, 4, room, 6)] * 2


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_layer_keeps_prompts_as_the_cache_reads_them(is_mirrored: bool) -> None:
    capacities, lengths = [4, 3, 2] if is_mirrored else [4, 4, 4], [3, 1]
    cache = cache_of(capacities=capacities, is_mirrored=is_mirrored)
    keys, values = torch.randn(2, 2, 2, 3, 3)
    cache.layer(1).keep(1, lengths, keys, values)
    for row, length in enumerate(lengths):
        own_keys, own_values = (each[1] for each in span(cache, 1 + row, 0, length))
        assert torch.equal(own_keys.flip(1) if is_mirrored else own_keys, keys[row, :, :length])
        assert torch.equal(own_values, values[row, :, :length])
    assert not cache.kept[0].any()
    assert not any(each.any() for each in span(cache, 0, 0, 4))


def test_where_keys_lie_backwards_those_of_a_head_end_where_its_values_begin() -> None:
    cache = cache_of([1, 2, 3], capacities=[4, 2])
    of_head = cache.kept[0].view(2, 6, 2, 3)[0, :4].flatten(0, 1)[:, 0]
    assert of_head.tolist() == [0, 3, 2, 1, -1, -2, -3, 0]


@pytest.mark.parametrize(
    ("capacities", "is_mirrored"),
    [([4, 4, 4, 4], False), ([4, 4, 4, 4], True), ([7, 6, 5, 4], True)],
    ids=["alike", "mirrored", "uneven"],
)
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
    sources: list[int], expected: list[list[int]], capacities: list[int], is_mirrored: bool
) -> None:
    cache = cache_of([1, 2], [3], [4, 5, 6], [7, 8], capacities=capacities, is_mirrored=is_mirrored)
    cache.rearrange(sources, [4] * len(sources))
    assert contents(cache) == expected


def test_rows_take_their_room_with_them_and_those_that_part_get_the_least_that_will_do() -> None:
    cache = cache_of([1, 2], [3], [4, 5, 6], [7, 8], capacities=[9, 7, 5, 3])
    cache.rearrange([3, 1], [3, 7])
    assert cache.capacities.tolist() == [3, 7, 9, 5]
    cache.rearrange([0, 1, 1, 0], [3, 7, 7, 3])
    assert contents(cache) == [[7, 8], [3], [3], [7, 8]]
    assert cache.capacities.tolist() == [3, 7, 9, 5]


def test_of_rows_that_part_the_one_that_needs_most_stays() -> None:
    cache = cache_of([1, 2], [3], capacities=[5, 3])
    cache.rearrange([0, 0], [3, 4])
    assert contents(cache) == [[1, 2], [1, 2]]
    assert cache.capacities.tolist() == [3, 5]


def test_new_rows_get_the_least_room_that_will_do() -> None:
    cache = cache_of([1], capacities=[9, 7, 5, 3])
    cache.make_room(1, [2, 4])
    assert cache.capacities.tolist() == [9, 3, 5, 7]


def test_clear_zeroes_the_keys_and_values_of_some_slots_only() -> None:
    cache = cache_of([1, 2], [3], [4, 5, 6], capacities=[5, 4, 3])
    whole = [each for slot, room in ((0, 5), (2, 3)) for each in span(cache, slot, 0, room)]
    for each in whole:
        each.fill_(float("nan"))
    cache.clear([0, 2])
    assert contents(cache) == [[], [3], []]
    assert not any(each.any() for each in whole)


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
    capacities=st.sampled_from([[6] * 8, [13, 12, 11, 10, 9, 8, 7, 6]]),
)
def test_a_chain_of_rearrangements_equals_one_on_plain_lists(
    rows: list[list[int]], moves: list[list[int]], capacities: list[int]
) -> None:
    cache = cache_of(*rows, capacities=capacities, is_mirrored=capacities[0] != capacities[-1])
    for wanted in moves:
        in_slots = sorted(zip(place(wanted), wanted, strict=True))
        sources = [source for _, source in in_slots]
        cache.rearrange(sources, [6] * len(sources))
        rows = [rows[source] for source in sources] + [[] for _ in rows[len(sources) :]]
        assert contents(cache) == rows


class Group:
    """Rows that need the same: as many as `width` at a time, and one at first."""

    def __init__(self, need: int, width: int) -> None:
        self.need, self.width, self.slots = need, width, [-1]


@settings(max_examples=200)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=14),
    num_slots=st.integers(3, 8),
    data=st.data(),
)
def test_rows_that_come_in_the_order_of_their_needs_always_find_room(
    sizes: list[tuple[int, int]], num_slots: int, data: st.DataObject
) -> None:
    """Slots are no longer than the longest rows, yet groups may part, shrink and end as they like."""
    waiting = [Group(*size) for size in sorted(sizes, reverse=True)]
    needs = [group.need for group in waiting for _ in range(group.width)][:num_slots]
    cache, running, token = cache_of(capacities=needs), list[Group](), 0
    while waiting or running:
        first_slot, taken = sum(len(group.slots) for group in running), list[Group]()
        while waiting and sum(group.width for group in [*running, *taken, waiting[0]]) <= len(needs):
            taken.append(waiting.pop(0))
        taken = data.draw(st.permutations(taken))
        cache.make_room(first_slot, [group.need for group in taken])
        for slot, group in enumerate(taken, start=first_slot):
            token, group.slots = token + 1, [slot]
            write(cache, slot, [token] * group.need)
        running = [group for group in [*running, *taken] if not data.draw(st.booleans()) or waiting]
        if len(running) == len(needs) or not taken:
            running = running[1:]
        for group in running:
            group.slots = data.draw(st.lists(st.sampled_from(group.slots), min_size=1, max_size=group.width))
        before = contents(cache)
        rows = [(slot, group) for group in running for slot in group.slots]
        moved = sorted(zip(place([slot for slot, _ in rows]), range(len(rows)), strict=True))
        in_slots = [rows[row] for _, row in moved]
        cache.rearrange([slot for slot, _ in in_slots], [group.need for _, group in in_slots])
        assert contents(cache)[: len(rows)] == [before[slot] for slot, _ in in_slots]
        assert all(room >= group.need for room, (_, group) in zip(cache.capacities.tolist(), in_slots, strict=False))
        for group in running:
            group.slots = [slot for slot, (_, owner) in enumerate(in_slots) if owner is group]
