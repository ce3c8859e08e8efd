"""DoLa (Chuang et al., arXiv:2309.03883): what the last layer believes more firmly than an early one.

Early layers are read through the final norm and the head, as the logit lens does; transformers left out the norm, which
GPT-2's unscaled stream needs, and chose one layer for a whole batch.

Shape letters: L early layers, N rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.engine.processors import BANNED
from pipeline.strategies import Dola

DEEP, WINDOW = 40, 20  # of a model with more than 40 layers, the first or the last 20 are looked at
RELATIVE_TOP = 0.1  # tokens less probable than this share of the best are out, as in the paper


def early_layers(strategy: Dola, num_layers: int) -> tuple[int, ...]:
    """Candidate layers, ascending; `low` and `high` by transformers' rule for tied embeddings."""
    if not isinstance(strategy.dola_layers, str):
        return tuple(sorted(set(strategy.dola_layers)))
    first = min(2, num_layers - 1)
    if strategy.dola_layers == "low":
        end = num_layers // 2 if num_layers <= DEEP else WINDOW
        return tuple(range(first, max(end, first + 1), 2))
    return tuple(range(num_layers // 2 if num_layers <= DEEP else num_layers - WINDOW, num_layers, 2))


def contrast(logits: Tensor, early: Tensor) -> Tensor:
    """Scores of each row against the early layer that diverges most from the last, the lower one on a tie.

    Args:
        logits: (N, V) of the last layer.
        early: (L, N, V) of the early ones.

    Returns:
        (N, V) log-probability minus the early layer's; BANNED below `RELATIVE_TOP` of the best.
    """
    final, others = torch.log_softmax(logits.float(), dim=-1), torch.log_softmax(early.float(), dim=-1)
    chosen = jensen_shannon(final, others).argmax(0)  # (N,)
    contrasted = final - others[chosen, torch.arange(len(final), device=final.device)]
    return contrasted.masked_fill(final < final.amax(-1, keepdim=True) + math.log(RELATIVE_TOP), BANNED)


def jensen_shannon(one: Tensor, others: Tensor) -> Tensor:
    """Divergence in nats between log-probabilities (N, V) and each of (L, N, V) -> (L, N)."""
    mean = torch.logaddexp(one, others) - math.log(2)
    towards = (one.exp() * (one - mean)).sum(-1) + (others.exp() * (others - mean)).sum(-1)
    return towards / 2
