"""The order of tokens: by score descending, then token id ascending, everywhere and on every device.

`torch.topk` leaves the order of equal scores open, and in bfloat16 one position in ten has an exact tie at the top.

Shape letters: B rows, V vocabulary, K tokens kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.engine import native
from pipeline.engine.devices import is_static

_MOST_FOR_KERNELS = 1024  # beyond that, to sort is quicker
_BLOCK = 32  # tokens


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best tokens of each row, ties by lower token id.

    Args:
        scores: (B, V).
        k: 1..V.

    Returns:
        Their scores and ids, (B, K) each, best first.
    """
    kernels = native.for_tensor(scores) if k <= _MOST_FOR_KERNELS else None
    return (kernels.top_k if kernels else plain_top_k)(scores, min(k, scores.shape[1]))


def plain_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`top_k` in plain torch.

    Of a row that is long enough it looks at k blocks only, those whose maxima come first in the same order: a token of
    any other block comes after the first token of each of them.
    """
    if 2 * k * _BLOCK > scores.shape[1]:
        return _top_k_of_all(scores, k)
    blocks = F.pad(scores, (0, -scores.shape[1] % _BLOCK), value=-torch.inf).reshape(len(scores), -1, _BLOCK)
    chosen = _top_k_of_all(blocks.amax(-1), k)[1].sort(-1).values  # (B, K), so that places are in the order of ids
    values, places = _top_k_of_all(blocks.gather(1, chosen[..., None].expand(-1, -1, _BLOCK)).flatten(1), k)
    return values, _BLOCK * chosen.gather(-1, places // _BLOCK) + places % _BLOCK


def _top_k_of_all(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k >= scores.shape[1]:
        return torch.sort(scores, dim=-1, descending=True, stable=True)
    values, ids = torch.topk(scores, k + 1, dim=-1)
    # Equal scores inside the list: order by id, then stably by score.
    ids, by_id = torch.sort(ids, dim=-1)
    values, by_score = torch.sort(values.gather(-1, by_id), dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_score)
    cut = values[:, k - 1] == values[:, k]
    values, ids = values[:, :k], ids[:, :k]
    if is_static(scores) or bool(cut.any()):
        ids = torch.where(cut[:, None], _lowest_ids(scores, values, ids), ids)
    return values, ids


def _lowest_ids(scores: Tensor, values: Tensor, ids: Tensor) -> Tensor:
    """Ids (B, K) where the last score is tied with tokens outside the list, of which `topk` may have kept any."""
    last = values[:, -1:]
    backwards = torch.arange(scores.shape[1], 0, -1, dtype=torch.int32, device=scores.device)  # more for lower ids
    tied = torch.where(scores == last, backwards, 0).topk(values.shape[1]).indices  # lowest ids first
    order = torch.arange(values.shape[1], device=scores.device) - (values > last).sum(-1, keepdim=True)
    return torch.where(order < 0, ids, tied.gather(-1, order.clamp(min=0)))


def rank(scores: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Rank of `tokens` in `scores[rows]`, from 1, ties by lower token id.

    Args:
        scores: (B, V).
        rows, tokens: (N,) int64; a row may occur more than once.

    Returns:
        (N,) int64.
    """
    kernels = native.for_tensor(scores)
    return (kernels.rank if kernels else plain_rank)(scores, rows, tokens)


def plain_rank(scores: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """`rank` in plain torch."""
    chosen = scores[rows, tokens][:, None]  # (N, 1)
    others = scores[rows]  # (N, V)
    lower_ids = torch.arange(scores.shape[1], device=scores.device) < tokens[:, None]
    return 1 + (others > chosen).sum(-1) + ((others == chosen) & lower_ids).sum(-1)
