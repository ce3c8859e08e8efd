"""Attention over the slot cache: of whole prompts, and of one new token per slot.

Shape letters: N tokens of all prompts together, B rows, T positions (padded), H heads, D head size, C slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.engine import native
from pipeline.engine.cache import LayerCache

KERNEL_TOKENS = 256  # longest prompt for which the kernel is faster than torch


class PromptTokens:
    """Where the tokens of some prompts stand: one after another in the stream, and in the slots from `first_slot` on.

    Attributes:
        slots, positions: (N,) int64, of each token of the stream.
    """

    def __init__(self, lengths: Sequence[int], first_slot: int, device: str) -> None:
        self.lengths = list(lengths)
        ends = torch.tensor(self.lengths, device=device)
        self._rows = torch.arange(len(self.lengths), device=device).repeat_interleave(ends)
        self._first_slot = first_slot
        self.slots = self._rows + first_slot
        self.positions = torch.arange(len(self._rows), device=device) - (ends.cumsum(0) - ends)[self._rows]

    @property
    def suit_kernels(self) -> bool:
        """Whether the kernels attend faster than torch."""
        return max(self.lengths) <= KERNEL_TOKENS

    def last(self, counts: Sequence[int]) -> Tensor:
        """Where in the stream the last tokens of each prompt are, so many of each, (M,)."""
        starts = torch.tensor(self.lengths, device=self.slots.device) - torch.tensor(counts, device=self.slots.device)
        return (self.positions >= starts[self._rows]).nonzero()[:, 0]

    def attend(self, fused: Tensor, layer: LayerCache, scale: float) -> Tensor:
        """Keep keys and values of all tokens, and attend from each to its prompt up to itself.

        Args:
            fused: (N, 3HD) queries, keys and values.

        Returns:
            (N, HD).
        """
        if self.suit_kernels and (kernels := native.for_tensor(fused)):
            return kernels.attend(fused, layer, self.slots, self.positions, scale)
        return self.plain_attend(fused, layer, scale)

    def plain_attend(self, fused: Tensor, layer: LayerCache, scale: float) -> Tensor:
        """`attend` in torch. Prompts are padded on the right: under the causal mask no token sees a pad, and what pads
        leave in the cache lies past the row's length. Theirs are zeros, since NaN shows through a mask.
        """
        heads, size, width = layer.heads, layer.head_size, max(self.lengths)
        padded = self._padded(fused.view(-1, 3, heads, size), width)  # (B, T, 3, H, D)
        query, key, value = padded.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        layer.keep(self._first_slot, self.lengths, key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return self._packed(mixed.transpose(1, 2)).reshape(len(fused), heads * size)

    def _padded(self, tokens: Tensor, width: int) -> Tensor:
        """(N, ...) -> (B, T, ...)."""
        shape = (len(self.lengths), width, *tokens.shape[1:])
        if len(tokens) == shape[0] * width:
            return tokens.view(shape)
        return tokens.new_zeros(shape).index_put_((self._rows, self.positions), tokens)

    def _packed(self, padded: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        if len(self._rows) == padded.shape[0] * padded.shape[1]:
            return padded.flatten(0, 1)
        return padded[self._rows, self.positions]


class NewTokens:
    """One new token in each of the first B slots, at `positions`, (B,) int64.

    Args:
        width: more than any of the positions. Not given, it is worked out, for which the host waits for a GPU.
    """

    suit_kernels = True

    def __init__(self, positions: Tensor, width: int | None = None) -> None:
        self.positions = positions
        self.slots = torch.arange(len(positions), device=positions.device)
        kernels = native.kernels() if positions.device.type == "cpu" else None
        self._attend = kernels.attend if kernels else partial(plain_attend, width=width or int(positions.max()) + 1)

    def attend(self, fused: Tensor, layer: LayerCache, scale: float) -> Tensor:
        """Keep the token's key and value, and attend from it to all of its slot; as `PromptTokens.attend`, N = B."""
        return self._attend(fused, layer, self.slots, self.positions, scale)


def plain_attend(
    fused: Tensor, layer: LayerCache, slots: Tensor, positions: Tensor, scale: float, width: int
) -> Tensor:
    """Write row i's key and value into slot i at `positions`, (B,), and attend to the slot up to there, in torch.

    Args:
        layer: of slots that are alike.
        slots: 0..B-1.
        width: more than any of the positions.
    """
    batch, heads, size = len(fused), layer.heads, layer.head_size
    keys, values = layer.in_order()
    query, key, value = fused.view(batch, 3, heads, size).unbind(1)  # (B, H, D) each
    keys[slots, :, positions] = key
    values[slots, :, positions] = value
    is_seen = torch.arange(width, device=fused.device) <= positions[:, None]  # (B, T)
    mixed = F.scaled_dot_product_attention(
        query[:, :, None], keys[:batch, :, :width], values[:batch, :, :width], is_seen[:, None, None], scale=scale
    )
    return mixed.reshape(batch, heads * size)
