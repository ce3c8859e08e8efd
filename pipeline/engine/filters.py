"""Narrowing a distribution before a token is drawn: temperature, then filters that drop tokens. Dropped is -inf.

Each filter says which tokens it keeps, from their scores alone; `FILTERS` lists them in the order in which they act,
which with the meaning of each is transformers'. After a filter only the tokens it kept are looked at. All is settled
per row and ties go by lower token id, so that a row keeps the same tokens in any batch. Nothing here draws.

Shape letters: B rows, V vocabulary, C candidates: what is left of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.engine import native
from pipeline.engine.devices import is_static
from pipeline.engine.processors import BANNED, log_softmax
from pipeline.engine.ranking import top_k
from pipeline.strategies import Drawing

_MOST_FOR_TOP_H = 100
_FIRST_LOOK = 256  # candidates looked at before all of a row is: most rows need no more


def narrow(strategy: Drawing, scores: Tensor, num_kept: int = 1) -> tuple[Tensor, Tensor]:
    """Apply the strategy's temperature and filters, in the order of `strategies.SAMPLERS`.

    Args:
        strategy: `temperature` and the keys of `FILTERS` are used.
        scores: (B, V) float32, left as they are.
        num_kept: least number of tokens that each filter keeps, `top_h` apart; transformers' `min_tokens_to_keep`.

    Returns:
        Scores (B, C) over temperature, not normalised, and their token ids (B, C), which ascend along a row. A row with
        fewer candidates than others is filled up with banned ones, whose ids mean nothing. On a GPU C is V.
    """
    token_ids = None
    if strategy.temperature != 1:
        scores = scores / strategy.temperature
    for key, setting in active(strategy).items():
        is_kept, kernels = FILTERS[key](scores, setting, num_kept), native.for_tensor(scores)
        if is_static(scores):
            scores = scores.masked_fill(~is_kept, BANNED)
        else:
            scores, token_ids = (kernels.pack if kernels else plain_pack)(scores, token_ids, is_kept)
    return scores, all_ids(scores) if token_ids is None else token_ids


def all_ids(scores: Tensor) -> Tensor:
    """Ids of all tokens, in every row, (B, V)."""
    return torch.arange(scores.shape[1], device=scores.device).expand_as(scores)


def active(strategy: Drawing) -> dict[str, Any]:
    """Settings of the filters that are on, in the order in which they act."""
    settings = {key: getattr(strategy, key) for key in FILTERS}
    return {key: value for key, value in settings.items() if value is not None and value != NEUTRAL.get(key)}


def keep_top_h(scores: Tensor, top_h: float, num_kept: int) -> Tensor:
    """Of the 100 best, keep the best as long as the entropy they add up to is at most `top_h` of that of all 100.

    arXiv:2509.02510; transformers' `TopHLogitsWarper`, which does not know `num_kept`. The best is always kept.
    """
    values, places = top_k(scores, min(_MOST_FOR_TOP_H, scores.shape[1]))  # best first
    entropies = _entropy_terms(log_softmax(values)).cumsum(-1)
    is_kept = (entropies <= top_h * entropies[:, -1:]) & (values > BANNED)
    is_kept[:, 0] = True
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, is_kept)


def keep_top_k(scores: Tensor, k: int, num_kept: int) -> Tensor:
    """Keep the k best, ties by lower token id.

    arXiv:1805.04833; transformers' `TopKLogitsWarper`, which keeps all that are tied with the last.
    """
    places = top_k(scores, min(max(k, num_kept), scores.shape[1]))[1]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, True)


def keep_top_p(scores: Tensor, top_p: float, num_kept: int) -> Tensor:
    """Keep the fewest tokens, best first, whose probabilities reach `top_p`; the one that crosses it included.

    arXiv:1904.09751; transformers' `TopPLogitsWarper`.
    """
    return _keep_mass(scores, scores, top_p, num_kept)


def keep_min_p(scores: Tensor, min_p: float, num_kept: int) -> Tensor:
    """Keep tokens at least `min_p` times as probable as the best.

    arXiv:2407.01082; transformers' `MinPLogitsWarper`.
    """
    is_kept = scores >= _best(scores) + math.log(min_p)
    return is_kept if num_kept == 1 else is_kept | keep_top_k(scores, num_kept, num_kept)


def keep_typical(scores: Tensor, mass: float, num_kept: int) -> Tensor:
    """Keep the fewest tokens, those of a surprise nearest to the entropy first, whose probabilities reach `mass`.

    arXiv:2202.00666; transformers' `TypicalLogitsWarper`, which keeps all that are tied with the last.
    """
    logprobs = log_softmax(scores)
    entropies = _entropy_terms(logprobs).sum(-1, keepdim=True)
    return _keep_mass(scores, -(logprobs + entropies).abs(), mass, num_kept)


def keep_epsilon(scores: Tensor, epsilon: float, num_kept: int) -> Tensor:
    """Keep tokens of a probability of at least `epsilon`, and those not below the best `num_kept`.

    arXiv:2210.15191; transformers' `EpsilonLogitsWarper`.
    """
    return (log_softmax(scores) >= math.log(epsilon)) | _are_best(scores, num_kept)


def keep_eta(scores: Tensor, eta: float, num_kept: int) -> Tensor:
    """Keep tokens of a probability of at least min(eta, sqrt(eta) * exp(-entropy)), and those of the best `num_kept`.

    arXiv:2210.15191; transformers' `EtaLogitsWarper`.
    """
    logprobs = log_softmax(scores)
    entropies = _entropy_terms(logprobs).sum(-1, keepdim=True)
    least = (math.log(eta) / 2 - entropies).clamp(max=math.log(eta))
    return (logprobs >= least) | _are_best(scores, num_kept)


# In the order in which they act, after the temperature.
FILTERS: Mapping[str, Callable[[Tensor, Any, int], Tensor]] = {
    "top_h": keep_top_h,
    "top_k": keep_top_k,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
    "typical_p": keep_typical,
    "epsilon_cutoff": keep_epsilon,
    "eta_cutoff": keep_eta,
}

# Settings at which a filter keeps everything, though rounded sums may say otherwise.
NEUTRAL = {"top_p": 1, "min_p": 0, "typical_p": 1}


def _keep_mass(scores: Tensor, preferences: Tensor, mass: float, num_kept: int) -> Tensor:
    """Keep the fewest tokens, most preferred first, whose probabilities reach `mass`: (B, C) twice -> (B, C).

    Looks at as much of a row as it needs to, on a GPU at all of it. Sums are in float64, so that the device cannot
    change what is kept.
    """
    weights = torch.exp(scores - _best(scores))
    goals = mass * weights.sum(-1, keepdim=True, dtype=torch.float64)
    if is_static(scores):
        return plain_keep_mass(preferences, weights, goals, num_kept)
    width = min(max(_FIRST_LOOK, num_kept + 1), scores.shape[1])
    _, places = top_k(preferences, width)
    is_needed = _is_before(goals, weights.gather(-1, places))
    is_needed[:, :num_kept] = True
    is_kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, is_needed)
    rows = torch.nonzero(is_needed[:, -1])[:, 0]
    if len(rows) and width < scores.shape[1]:
        kernels = native.for_tensor(scores)
        keep = kernels.keep_mass if kernels else plain_keep_mass
        is_kept[rows] = keep(preferences[rows], weights[rows], goals[rows])
    return is_kept


def plain_keep_mass(preferences: Tensor, weights: Tensor, goals: Tensor, num_kept: int = 0) -> Tensor:
    """The fewest tokens, most preferred first, whose weights reach the goals: (B, C) twice and (B, 1) -> (B, C)."""
    _, places = top_k(preferences, preferences.shape[1])
    is_needed = _is_before(goals, weights.gather(-1, places))
    is_needed[:, :num_kept] = True
    return torch.zeros_like(is_needed).scatter_(1, places, is_needed)


def _is_before(goals: Tensor, weights: Tensor) -> Tensor:
    """Whether the weights before a place, summed along the row, (B, C), do not reach the goal, (B, 1)."""
    sums = weights.double().cumsum(-1)
    return sums - weights.double() < goals


def _are_best(scores: Tensor, num_kept: int) -> Tensor:
    """Which tokens are not below the `num_kept`-th best, (B, C); no banned one is."""
    return (scores >= scores.topk(min(num_kept, scores.shape[1])).values[:, -1:]) & (scores > BANNED)


def _best(scores: Tensor) -> Tensor:
    """Best score of each row, (B, 1), finite even if all are banned: what is subtracted from them then changes none."""
    return scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)


def _entropy_terms(logprobs: Tensor) -> Tensor:
    """-p log p of each, in nats; 0 for banned ones."""
    return -logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)


def plain_pack(scores: Tensor, token_ids: Tensor | None, is_kept: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and ids of the tokens kept, as narrow as the row with most of them; without `token_ids` of all tokens."""
    rows, places = torch.nonzero(is_kept, as_tuple=True)
    counts = torch.bincount(rows, minlength=len(scores))
    columns = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = (len(scores), max(1, int(counts.max())))
    packed, packed_ids = scores.new_full(shape, BANNED), rows.new_zeros(shape)
    packed[rows, columns] = scores[rows, places]
    packed_ids[rows, columns] = places if token_ids is None else token_ids[rows, places]
    return packed, packed_ids
