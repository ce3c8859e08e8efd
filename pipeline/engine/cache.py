"""The slot KV cache: one slot per running hypothesis, left-aligned, so that a token's index is its position.

Slots 0..n-1 are always the active ones. Rows of different length share the tensors; what lies past a row's length is
stale and masked. `rearrange` is the one operation on slots: it drops finished rows, fills holes, spreads a prefilled
prompt over its samples and follows beams to their parents.

Shape letters: L layers, C slots, H heads, T positions, D head size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


class SlotCache:
    """Keys, values and token ids of every slot.

    Args:
        memory: for keys and values; new memory by default. No masked position may hold NaN: it holds zeros, or what an
            earlier cache of the same dtype left there.

    Attributes:
        keys, values: (L, C, H, T, D).
        token_ids: (C, T) int64, the tokens whose keys and values are stored.
        lengths: (C,) int64, tokens per slot.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        heads: int,
        positions: int,
        head_size: int,
        dtype: torch.dtype,
        device: str,
        memory: Memory | None = None,
    ) -> None:
        shape = (2, layers, slots, heads, positions, head_size)
        num_bytes = math.prod(shape) * dtype.itemsize
        self.keys, self.values = (memory or Memory()).take(num_bytes, device)[:num_bytes].view(dtype).view(shape)
        self.token_ids = torch.zeros((slots, positions), dtype=torch.int64, device=device)
        self.lengths = torch.zeros(slots, dtype=torch.int64, device=device)

    @property
    def num_slots(self) -> int:
        """Slots there are."""
        return self.token_ids.shape[0]

    @property
    def num_positions(self) -> int:
        """Tokens a slot can hold."""
        return self.token_ids.shape[1]

    def rearrange(self, sources: list[int]) -> None:
        """Make slot i hold what slot `sources[i]` held. A source may serve several slots, but must keep its own, or lie
        behind all of them, as `place` sees to.

        Only what differs is copied: beams share all but the end of their text, samples their prompt. The slots behind
        them are empty then.
        """
        if moved := [(slot, source) for slot, source in enumerate(sources) if slot != source]:
            self._move(moved)
        self.lengths[len(sources) :] = 0

    def _move(self, moved: list[tuple[int, int]]) -> None:
        """Pairs of a slot and its source."""
        to, from_ = (torch.tensor(column, device=self.lengths.device) for column in zip(*moved, strict=True))
        spans = zip(moved, self._num_shared(to, from_).tolist(), self.lengths[from_].tolist(), strict=True)
        for (slot, source), start, end in spans:
            self.keys[:, slot, :, start:end] = self.keys[:, source, :, start:end]
            self.values[:, slot, :, start:end] = self.values[:, source, :, start:end]
        self.token_ids[to] = self.token_ids[from_]
        self.lengths[to] = self.lengths[from_]

    def clear(self, slots: list[int]) -> None:
        """Empty slots that hold NaN: the mask hides what is stale, but NaN shows through."""
        self.keys[:, slots] = 0
        self.values[:, slots] = 0
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
        return torch.from_numpy(np.zeros(num_bytes, np.uint8))
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
