"""What rows have seen: which tokens lie in a span and how often, which n-grams came before, which phrases are begun.

Rows of uneven length stand in one tensor, `token_ids` (B, T) int64, of which the first `lengths` (B,) count; what lies
behind them is stale and never counts. Nothing here knows scores.

Shape letters: B rows, T longest history, P phrases.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Phrases = tuple[tuple[int, ...], ...]


class SameLength(NamedTuple):
    """Phrases of one length: their beginnings (P, length - 1), last tokens (P,), and places (P,) among all phrases."""

    beginnings: Tensor
    last_tokens: Tensor
    places: Tensor


def span(token_ids: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Each row's tokens from `start` to `end`, (B,) each, in a tensor (B, T) that holds no other token.

    What is outside the span is replaced by its first token. An empty span gives any one token of the row.
    """
    first = token_ids.gather(1, start.clamp(max=token_ids.shape[1] - 1)[:, None])
    return torch.where(_is_inside(token_ids, start, end), token_ids, first)


def count(token_ids: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that `span` gives, and how often each stands in the span, (B, T) each; 0 if the span is empty."""
    tokens = span(token_ids, start, end)
    in_order = torch.where(_is_inside(token_ids, start, end), token_ids, -1).sort(-1).values
    return tokens, torch.searchsorted(in_order, tokens, right=True) - torch.searchsorted(in_order, tokens)


def repeated(token_ids: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Last tokens of all n-grams of this size, and which of them stand after what the row now ends in.

    Returns:
        (B, T - size + 1) each; T must be at least `size`.
    """
    ngrams = token_ids.unfold(1, size, 1)  # (B, T - size + 1, size)
    is_complete = torch.arange(ngrams.shape[1], device=lengths.device) + size <= lengths[:, None]
    return ngrams[:, :, -1], is_complete & (ngrams[:, :, :-1] == _tails(token_ids, lengths, size - 1)[:, None]).all(-1)


@lru_cache(maxsize=64)
def by_length(phrases: Phrases, device: torch.device) -> tuple[SameLength, ...]:
    """Phrases as tensors, made once per strategy: there may be thousands of them."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, phrase in enumerate(phrases):
        places[len(phrase)].append(place)
    tables = [torch.tensor([phrases[place] for place in same], device=device) for same in places.values()]
    return tuple(
        SameLength(table[:, :-1], table[:, -1], torch.tensor(same, device=device))
        for table, same in zip(tables, places.values(), strict=True)
    )


def are_begun(token_ids: Tensor, lengths: Tensor, phrases: SameLength) -> Tensor:
    """Which rows end in the beginning of which phrases, (B, P): all in that of a one-token phrase, which is empty."""
    size = phrases.beginnings.shape[1]
    is_equal = (_tails(token_ids, lengths, size)[:, None] == phrases.beginnings).all(-1)
    return is_equal & (lengths >= size)[:, None]


def _tails(token_ids: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Last `size` tokens of each row, (B, size); rows shorter than that give tokens that must not be used."""
    positions = lengths[:, None] - size + torch.arange(size, device=lengths.device)
    return token_ids.gather(1, positions.clamp(min=0))


def _is_inside(token_ids: Tensor, start: Tensor, end: Tensor) -> Tensor:
    positions = torch.arange(token_ids.shape[1], device=token_ids.device)
    return (positions >= start[:, None]) & (positions < end[:, None])
