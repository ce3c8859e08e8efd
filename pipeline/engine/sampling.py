"""Drawing tokens with counter-based noise: what a row draws depends on its seed, its step and token ids alone.

Gumbel-max: the argmax of scores + Gumbel noise is a draw from their softmax. The noise of a token is a hash of (seed,
step, token id), so batch, order, replica and the filters in use cannot change it.

Shape letters: B rows, V vocabulary, C candidates that the filters leave.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.engine import native
from pipeline.engine.filters import active, all_ids, narrow
from pipeline.engine.processors import log_softmax
from pipeline.strategies import Drawing


def sample(
    strategy: Drawing, scores: Tensor, seeds: Tensor, steps: Tensor, log_normalisers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one token per row from what temperature and filters leave.

    Args:
        strategy: see `narrow`.
        scores: (B, V) logits, processed or as the model gives them. A row without a finite one gives a token that means
            nothing, at -inf.
        seeds, steps: (B,) int64.
        log_normalisers: (B,) log-sum-exps of the scores, where they are known.

    Returns:
        Token ids (B,), and their log-probabilities (B,) under the distribution they were drawn from.
    """
    is_whole = not active(strategy)
    known = log_normalisers if is_whole and strategy.temperature == 1 else None  # drawn from as they are
    if is_whole and native.for_tensor(scores):  # one pass, which goes row by row itself
        return _sample(strategy, scores, seeds, steps, known)
    columns = [
        torch.split(column, rows_at_once(scores)) for column in (scores, seeds, steps, known) if column is not None
    ]
    parts = [_sample(strategy, *part) for part in zip(*columns, strict=True)]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def rows_at_once(scores: Tensor) -> int:
    """Rows of a vocabulary to do all work on before the next: on a CPU as many as its caches hold."""
    return 8 if scores.device.type == "cpu" else 1024


def _sample(
    strategy: Drawing, scores: Tensor, seeds: Tensor, steps: Tensor, log_normalisers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    kernels, temperature = native.for_tensor(scores), strategy.temperature
    token_ids = None
    if active(strategy):
        scores, token_ids = narrow(strategy, _below_best(scores))
        temperature = 1.0  # it is applied
    return (kernels.draw if kernels else plain_draw)(scores, token_ids, temperature, seeds, steps, log_normalisers)


def plain_draw(
    scores: Tensor,
    token_ids: Tensor | None,
    temperature: float,
    seeds: Tensor,
    steps: Tensor,
    log_normalisers: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token per row, (B, C) -> (B,), and its log-probability, (B,).

    The kernel of the same name works out the noise of a token only where its hash is high enough to win.

    Args:
        token_ids: (B, C), ascending; None where the columns are the vocabulary.
        log_normalisers: (B,) log-sum-exps of scores over temperature; None where they are to be worked out.
    """
    token_ids = all_ids(scores) if token_ids is None else token_ids
    below = _below_best(scores) / temperature
    places = (below + gumbel(seeds, steps, token_ids)).argmax(-1, keepdim=True)  # (B, 1)
    tokens = token_ids.gather(-1, places)[:, 0]
    if log_normalisers is None:
        return tokens, log_softmax(below).gather(-1, places)[:, 0]
    return tokens, scores.gather(-1, places)[:, 0].float() / temperature - log_normalisers


def _below_best(scores: Tensor) -> Tensor:
    """Scores in float32 less the best of their row: at most 0, so that no temperature makes them overflow."""
    scores = scores.float()
    return scores - scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)


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
    bits = _mix((token_ids * _GOLDEN).add_(keys))
    uniform = _shift(bits, 12).double().add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_().log_().neg_()


def branch(seeds: Tensor, index: Tensor) -> Tensor:
    """Seeds of numbered branches of rows, such as beams, (B,) int64 twice -> (B,); branch 0 has the row's own seed.

    Their noise is unrelated, between the branches of a row as between rows.
    """
    return torch.where(index == 0, seeds, _mix(_mix(seeds ^ _BRANCH) + index * _GOLDEN))


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_BRANCH = _signed(0xD1B54A32D192ED03)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) on int64 bit patterns; products wrap around.

    In place from the second operation on: over a vocabulary, fresh memory costs more than the arithmetic.
    """
    x = _shift(x, 30).bitwise_xor_(x).mul_(_MIX_1)
    x = _shift(x, 27).bitwise_xor_(x).mul_(_MIX_2)
    return _shift(x, 31).bitwise_xor_(x)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
