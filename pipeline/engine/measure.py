"""What is recorded of each step: the model's own (raw) distribution in a few numbers, never the vocabulary itself.

Shape letters: B rows, V vocabulary, K recorded alternatives, N chosen tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.engine import native
from pipeline.engine.ranking import plain_top_k, rank
from pipeline.records import FloatArray, IntArray


class Measures(NamedTuple):
    """A step's raw distributions, one row each.

    Attributes:
        log_normalisers: (B,) log-sum-exp of the logits; NaN or infinite where the model broke down.
        best: (B,) most probable token.
        entropies: (B,) in nats.
        top_token_ids, top_probs: (B, K) in the order of `ranking`.
    """

    log_normalisers: Tensor
    best: Tensor
    entropies: FloatArray
    top_token_ids: IntArray
    top_probs: FloatArray

    @property
    def num_alternatives(self) -> int:
        """K."""
        return int(self.top_token_ids.shape[1])


def measure(logits: Tensor, k: int) -> Measures:
    """Summarise raw logits, (B, V); `k` may be 0."""
    log_normalisers, entropies, token_ids, probs = summarise(logits, k)
    return Measures(
        log_normalisers=log_normalisers,
        best=token_ids[:, 0].long(),
        entropies=entropies.cpu().numpy(),
        top_token_ids=token_ids[:, :k].cpu().numpy(),
        top_probs=probs[:, :k].cpu().numpy(),
    )


def summarise(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`plain_measure` of the k best tokens, or of one where k is 0, by the kernel where there is one."""
    kernels = native.for_tensor(logits)
    return (kernels.measure if kernels else plain_measure)(logits, min(max(k, 1), logits.shape[1]))


def plain_measure(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exps and entropies, (B,), and the k best tokens int32 with their probabilities, (B, K), in a few passes.

    A few rows at a time, so that all passes but the first find them in the processor's cache.
    """
    parts = [_measure_rows(rows, k) for rows in torch.split(logits, _ROWS_AT_ONCE.get(logits.device.type, 1024))]
    log_normalisers, entropies, token_ids, probs = (torch.cat(column) for column in zip(*parts, strict=True))
    return log_normalisers, entropies, token_ids, probs


_ROWS_AT_ONCE = {"cpu": 4}


def _measure_rows(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = logits.float()
    values, token_ids = plain_top_k(logits, k)
    below = logits - values[:, :1]  # at most 0
    shares = below.exp()
    sums = shares.sum(-1)
    means = shares.mul_(below).sum(-1) / sums
    log_normalisers = values[:, 0] + sums.log()
    return log_normalisers, sums.log() - means, token_ids.to(torch.int32), torch.exp(values - log_normalisers[:, None])


def score(logits: Tensor, measures: Measures, rows: Tensor, tokens: Tensor) -> tuple[list[float], list[int]]:
    """Raw log-probabilities and ranks of chosen tokens.

    Args:
        logits: (B, V).
        measures: of the same logits.
        rows, tokens: (N,) int64.
    """
    known = torch.from_numpy(measures.top_token_ids) if measures.num_alternatives else measures.best[:, None].int()
    kernels = native.for_tensor(logits)
    find = kernels.score if kernels else plain_score
    logprobs, ranks = find(logits, measures.log_normalisers, known, rows, tokens)
    return logprobs.tolist(), ranks.tolist()


def plain_score(
    logits: Tensor, log_normalisers: Tensor, best: Tensor, rows: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ranks, (N,) each.

    Args:
        log_normalisers: (B,).
        best: (B, K) int32, the best tokens in order: the rank of any other takes a look at its whole row.
        rows, tokens: (N,) int64.
    """
    logprobs = logits[rows, tokens].float() - log_normalisers[rows]
    is_found = best.to(rows.device)[rows] == tokens[:, None]  # (N, K)
    ranks = is_found.int().argmax(-1) + 1
    missing = (~is_found.any(-1)).nonzero()[:, 0]
    if len(missing):
        ranks[missing] = rank(logits, rows[missing], tokens[missing])
    return logprobs, ranks


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target token, (P, V) and (P,) -> (P,)."""
    logits = logits.float()
    return logits.gather(-1, targets[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
