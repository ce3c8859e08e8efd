"""What is recorded of each step: the model's own (raw) distribution in a few numbers, never the vocabulary itself.

Shape letters: B rows, V vocabulary, K recorded alternatives, N chosen tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.ranking import rank, top_k
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
    """Summarise raw logits, (B, V) float32; `k` may be 0."""
    log_normalisers = torch.logsumexp(logits, dim=-1)
    logprobs = logits - log_normalisers[:, None]  # at most 0
    entropies = (logprobs.exp() * logprobs).sum(-1).abs()
    values, ids = top_k(logits, min(max(k, 1), logits.shape[1]))
    return Measures(
        log_normalisers=log_normalisers,
        best=ids[:, 0],
        entropies=entropies.cpu().numpy(),
        top_token_ids=ids[:, :k].to(torch.int32).cpu().numpy(),
        top_probs=torch.exp(values[:, :k] - log_normalisers[:, None]).cpu().numpy(),
    )


def score(logits: Tensor, measures: Measures, rows: Tensor, tokens: Tensor) -> tuple[list[float], list[int]]:
    """Raw log-probabilities and ranks of chosen tokens.

    Args:
        logits: (B, V) float32.
        measures: of the same logits.
        rows, tokens: (N,) int64.
    """
    logprobs = logits[rows, tokens] - measures.log_normalisers[rows]
    recorded = measures.top_token_ids[rows.cpu().numpy()] == tokens.cpu().numpy()[:, None]  # (N, K)
    ranks = recorded.argmax(-1) + 1 if recorded.shape[1] else np.zeros(len(tokens), np.int64)
    missing = torch.from_numpy(np.flatnonzero(~recorded.any(-1))).to(rows.device)
    if len(missing):
        ranks[missing.cpu().numpy()] = rank(logits, rows[missing], tokens[missing]).cpu().numpy()
    return logprobs.tolist(), ranks.tolist()


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target token, (P, V) and (P,) -> (P,)."""
    return logits.gather(-1, targets[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
