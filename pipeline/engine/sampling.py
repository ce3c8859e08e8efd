"""Drawing tokens with counter-based noise: what a row draws depends on its seed, its step and token ids alone.

Gumbel-max: the argmax of scores + Gumbel noise is a draw from their softmax. The noise of a token is a hash of (seed,
step, token id), so batch, order, replica and the filters in use cannot change it.

Shape letters: B rows, V vocabulary, C candidates that survive the first filter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.engine.processors import BANNED
from pipeline.engine.ranking import top_k
from pipeline.strategies import Sampling


def sample(strategy: Sampling, scores: Tensor, seeds: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row after temperature, top_k, top_p and min_p, in this order.

    Args:
        strategy: its four parameters are used.
        scores: (B, V) float32 processed logits, at least one finite per row.
        seeds, steps: (B,) int64.

    Returns:
        Token ids (B,), and their log-probabilities (B,) under the distribution they were drawn from.
    """
    scores = (scores - scores.amax(-1, keepdim=True)) / strategy.temperature  # at most 0: nothing overflows
    if strategy.top_k is None and strategy.top_p is None:
        token_ids = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    else:
        scores, token_ids = top_k(scores, strategy.top_k or scores.shape[1])  # (B, C), best first
    if strategy.top_p is not None and strategy.top_p < 1:  # rounded sums of probabilities reach 1 before the last token
        scores = keep_top_p(scores, strategy.top_p)
    if strategy.min_p is not None:
        scores = keep_min_p(scores, strategy.min_p)
    drawn = (scores + gumbel(seeds, steps, token_ids)).argmax(-1, keepdim=True)  # (B, 1)
    logprobs = torch.log_softmax(scores, dim=-1).gather(-1, drawn)
    return token_ids.gather(-1, drawn)[:, 0], logprobs[:, 0]


def keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Ban all but the fewest tokens whose probabilities reach `top_p`; the token that crosses it is kept.

    Args:
        scores: (B, C) best first.
    """
    probs = torch.softmax(scores, dim=-1)
    before = probs.cumsum(-1) - probs
    keep = before < top_p
    keep[:, 0] = True
    return scores.masked_fill(~keep, BANNED)


def keep_min_p(scores: Tensor, min_p: float) -> Tensor:
    """Ban tokens less than `min_p` times as probable as the best one, (B, C)."""
    best = scores.amax(-1, keepdim=True)
    return scores.masked_fill(torch.exp(scores - best) < min_p, BANNED)


def gumbel(seeds: Tensor, steps: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise as a pure function of (seed, step, token id).

    Args:
        seeds, steps: (B,) int64.
        token_ids: (B, C) int64.

    Returns:
        (B, C) float64. The uniform behind it lies in the open interval (0, 1), so the noise is finite: 52 bits, because
        with 53 the largest one and its half round up to 1.
    """
    keys = _mix(_mix(seeds + _GOLDEN) ^ steps)[:, None]
    bits = _mix(keys + token_ids * _GOLDEN)
    uniform = (_shift(bits, 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) on int64 bit patterns; products wrap around."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
