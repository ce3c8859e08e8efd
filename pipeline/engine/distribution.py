"""The whole next-token distribution of each prompt, for tools that compare distributions.

A run never keeps the vocabulary; this does, so it is meant for a few prompts at a time. It knows no strategies and
no text: raw probabilities only.

Shape letters: B prompts, T prompt length (padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from pipeline.engine.model import GPT2
from pipeline.errors import ModelError

POSITIONS_PER_BATCH = 2048  # padded positions run together; their keys and values are held meanwhile


@torch.inference_mode()
def next_token_logprobs(model: GPT2, prompts: Sequence[tuple[int, ...]]) -> npt.NDArray[np.float64]:
    """Log-probability of every token as the next one after each prompt.

    The logits are float32; they are normalised in float64, so that unequal logits stay unequal and a divergence
    between near distributions is not lost in rounding.

    Args:
        model: the loaded checkpoint.
        prompts: at least one, of 1..n_positions tokens each, ids inside the vocabulary, of any mixture of lengths.

    Returns:
        (B, V) in nats, in the order of the prompts.

    Raises:
        ModelError: a logit is NaN or infinite.
    """
    per_batch = max(1, POSITIONS_PER_BATCH // max(len(prompt) for prompt in prompts))
    batches = [list(prompts[start : start + per_batch]) for start in range(0, len(prompts), per_batch)]
    return np.concatenate([_batch(model, batch) for batch in batches])


def _batch(model: GPT2, prompts: list[tuple[int, ...]]) -> npt.NDArray[np.float64]:
    cache = model.new_cache([max(map(len, prompts))] * len(prompts))
    states = model.prefill(cache, 0, prompts, num_last=[1] * len(prompts))
    logits = model.logits(torch.cat([each.last for each in states]))  # (B, V)
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the model gives logits that are NaN or infinite.", "Get its weights again: they are damaged.")
    logprobs: npt.NDArray[np.float64] = torch.log_softmax(logits.double(), dim=-1).cpu().numpy()
    return logprobs
