"""The slot KV cache: one slot per running hypothesis, left-aligned, so that a token's index is its position.

Slots 0..n-1 are always the active ones. Each has room for as many positions as its row needs at most; what lies past a
row's end is stale and masked. `rearrange` is the one operation on slots: it drops finished rows, fills holes, spreads a
prefilled prompt over its samples and follows beams to their parents.

Shape letters: L layers, C slots, H heads, D head size, T positions of a slot, P of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PAGE = 4096  # bytes; keys and values begin at a whole one


class LayerCache(NamedTuple):
    """Keys and values of a layer.

    Attributes:
        kept: (2P * H, D), one slot after the other, of each the heads, of each (2T, D), the keys and then the values.
        starts, capacities: (C,) int64, on the host: of a slot's positions the first among all, and their number.
        is_mirrored: whether keys lie backwards, as the kernels want them. If not, all slots have the same room, and lie
            in their order.
    """

    kept: Tensor
    heads: int
    starts: Tensor
    capacities: Tensor
    is_mirrored: bool

    @property
    def head_size(self) -> int:
        """D."""
        return self.kept.shape[1]

    def in_order(self) -> tuple[Tensor, Tensor]:
        """Keys and values of slots that are not mirrored, (C, H, T, D) each."""
        keys, values = self.kept.view(len(self.capacities), self.heads, 2, -1, self.head_size).unbind(2)
        return keys, values

    def keep(self, first_slot: int, lengths: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Store prompts of these lengths, (B, H, T, D) padded on the right, in the slots from `first_slot` on."""
        if not self.is_mirrored:
            for kept, new in zip(self.in_order(), (keys, values), strict=True):
                kept[first_slot : first_slot + len(new), :, : new.shape[2]] = new
            return
        for row, length in enumerate(lengths):
            own_keys, own_values = span(self, first_slot + row, 0, length)
            own_keys[:] = keys[row, :, :length].flip(1)
            own_values[:] = values[row, :, :length]


def span(cache: LayerCache | SlotCache, slot: int, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Keys and values at some positions of a slot, (..., H, N, D) each; mirrored keys are the last first."""
    first, capacity = int(cache.starts[slot]), int(cache.capacities[slot])
    of_slot = cache.kept.narrow(-2, 2 * first * cache.heads, 2 * capacity * cache.heads)
    keys, values = of_slot.view(*of_slot.shape[:-2], cache.heads, 2, capacity, -1).unbind(-3)
    of_keys = slice(capacity - end, capacity - start) if cache.is_mirrored else slice(start, end)
    return keys[..., of_keys, :], values[..., start:end, :]


class SlotCache:
    """Keys, values and token ids of every slot.

    Slots stay where they are, in order, as a GPU wants them; but those that are mirrored change places with each other:
    what a row holds goes with it, and nothing is copied but for rows that part.

    Args:
        capacities: positions of each slot, descending; all the same, unless they are mirrored.
        memory: for keys and values; new memory by default. No masked position may hold NaN: it holds zeros, or what an
            earlier cache of the same dtype left there.

    Attributes:
        kept: (L, 2P * H, D), of each layer as in `LayerCache`.
        heads, starts, capacities, is_mirrored: as in `LayerCache`.
        token_ids: (C, T) int64, the tokens whose keys and values are stored; T of the longest slot.
        lengths: (C,) int64, tokens per slot.
    """

    def __init__(
        self,
        *,
        layers: int,
        capacities: Sequence[int],
        heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: str,
        memory: Memory | None = None,
        is_mirrored: bool = False,
    ) -> None:
        self.heads, self.is_mirrored = heads, is_mirrored
        shape = (layers, 2 * sum(capacities) * heads, head_size)
        num_bytes = math.prod(shape) * dtype.itemsize
        self.kept = (memory or Memory()).take(num_bytes, device)[:num_bytes].view(dtype).view(shape)
        self.capacities = torch.tensor(capacities)
        self.starts = self.capacities.cumsum(0) - self.capacities
        self.token_ids = torch.zeros((len(capacities), capacities[0]), dtype=torch.int64, device=device)
        self.lengths = torch.zeros(len(capacities), dtype=torch.int64, device=device)

    @property
    def num_slots(self) -> int:
        """Slots there are."""
        return self.token_ids.shape[0]

    @property
    def num_positions(self) -> int:
        """Tokens that the longest slot can hold."""
        return self.token_ids.shape[1]

    def layer(self, index: int) -> LayerCache:
        """Of one layer."""
        return LayerCache(self.kept[index], self.heads, self.starts, self.capacities, self.is_mirrored)

    def make_room(self, first_slot: int, needs: Sequence[int]) -> None:
        """Give the slots from `first_slot` on room for rows that need so many positions; those before stay."""
        if self.is_mirrored:
            self._exchange([*range(first_slot), *[None] * len(needs)], [*[0] * first_slot, *needs])

    def rearrange(self, sources: Sequence[int], needs: Sequence[int]) -> None:
        """Make slot i hold what slot `sources[i]` held, for a row that needs `needs[i]` positions. A source may serve
        several slots, but must keep its own, or lie behind all of them, as `place` sees to.

        Only what differs is copied: beams share all but the end of their text, samples their prompt. The slots behind
        them are empty then.
        """
        if self.is_mirrored and any(slot != source for slot, source in enumerate(sources)):
            sources = self._exchange(sources, needs)
        if moved := [(slot, source) for slot, source in enumerate(sources) if slot != source]:
            self._copy(moved)
        self.lengths[len(sources) :] = 0

    def _exchange(self, sources: Sequence[int | None], needs: Sequence[int]) -> list[int]:
        """Let slots change places so that slot i has room for `needs[i]` positions, and that of each source the row
        that needs most is where it was. The others get the smallest place that will do: that leaves enough for all
        rows that are yet to come, as long as they come in the order of their needs.

        Returns:
            `sources`, as they are numbered now; of a slot without one itself.
        """
        order = sorted(range(len(sources)), key=lambda slot: (-needs[slot], sources[slot] != slot))
        places: dict[int, int] = {}  # of a slot, by the slot that had it
        heirs: dict[int, int] = {}  # of sources
        for slot in order:
            if (source := sources[slot]) is not None and heirs.setdefault(source, slot) == slot:
                places[slot] = source
        rooms = self.capacities.tolist()
        free = sorted({*range(len(rooms))} - {*heirs}, key=lambda place: (rooms[place], -place))
        for slot in order:
            if slot not in places:
                least = next(place for place in free if rooms[place] >= needs[slot])
                places[slot] = slot if slot in free and rooms[slot] == rooms[least] else least
                free.remove(places[slot])
        rest = iter(sorted(free))
        for slot in range(len(sources), len(rooms)):
            places[slot] = next(rest)
        if moved := [(slot, place) for slot, place in places.items() if slot != place]:
            to, from_ = (torch.tensor(column) for column in zip(*moved, strict=True))
            for each in (self.starts, self.capacities, self.lengths, self.token_ids):
                each[to] = each[from_]
        return [slot if source is None else heirs[source] for slot, source in enumerate(sources)]

    def _copy(self, moved: Sequence[tuple[int, int]]) -> None:
        """Pairs of a slot and its source."""
        to, from_ = (torch.tensor(column, device=self.lengths.device) for column in zip(*moved, strict=True))
        spans = zip(moved, self._num_shared(to, from_).tolist(), self.lengths[from_].tolist(), strict=True)
        for (slot, source), start, end in spans:
            for kept, new in zip(span(self, slot, start, end), span(self, source, start, end), strict=True):
                kept[:] = new
        self.token_ids[to] = self.token_ids[from_]
        self.lengths[to] = self.lengths[from_]

    def clear(self, slots: list[int]) -> None:
        """Empty slots that hold NaN: the mask hides what is stale, but NaN shows through."""
        for slot in slots:
            for kept in span(self, slot, 0, int(self.capacities[slot])):
                kept.zero_()
        self.lengths[slots] = 0

    def _num_shared(self, left: Tensor, right: Tensor) -> Tensor:
        """Leading tokens that pairs of slots have in common, whose keys and values are then the same, (M,) each."""
        is_same = self.token_ids[left] == self.token_ids[right]
        is_same &= torch.arange(self.num_positions, device=left.device) < self.lengths[left][:, None]
        return is_same.cumprod(-1).sum(-1)


class Memory:
    """Bytes that caches use one after another, as many as the largest so far needed."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    @property
    def num_bytes(self) -> int:
        """Bytes there are."""
        return len(self._bytes)

    def take(self, num_bytes: int, device: str) -> Tensor:
        """At least so many bytes, uint8: zeros, or what the last cache left."""
        if len(self._bytes) < num_bytes:
            self._bytes = self._bytes[:0].clone()  # gone before more is taken
            self._bytes = _zeros(num_bytes, device)
        return self._bytes


def _zeros(num_bytes: int, device: str) -> Tensor:
    """Zeros, uint8; of a CPU, taken page by page when they are first used, in huge pages where the system has them."""
    if torch.device(device).type == "cpu":
        memory = torch.from_numpy(np.zeros(num_bytes + PAGE, np.uint8))
        return memory[-memory.data_ptr() % PAGE :][:num_bytes]
    return torch.zeros(num_bytes, dtype=torch.uint8, device=device)


def place(sources: list[int]) -> list[int]:
    """Slots 0..n-1 for n rows that now lie in `sources`, moving as few as possible.

    Returns:
        For each row its new slot. The first row of a source below n stays where it is; the others fill the holes.

    >>> place([0, 3, 2, 2])
    [0, 1, 2, 3]
    """
    slots = [-1] * len(sources)
    taken: set[int] = set()
    for row, source in enumerate(sources):
        if source < len(sources) and source not in taken:
            slots[row] = source
            taken.add(source)
    holes = iter(slot for slot in range(len(sources)) if slot not in taken)
    return [next(holes) if slot < 0 else slot for slot in slots]
