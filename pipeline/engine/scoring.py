"""Scores of given tokens: one forward, and the vocabulary-wide logits of a few positions at a time.

Shape letters: B rows, T tokens (padded), E width, V vocabulary, S scored tokens, K recorded alternatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.measure import measure, score, token_logprobs
from pipeline.engine.model import GPT2
from pipeline.records import Completion, FloatArray, Request, RowError

POSITIONS_PER_CHUNK = 64  # positions of a row whose logits exist at the same time
POSITIONS_PER_FORWARD = 4096  # padded positions that go through the model together


def score_targets(model: GPT2, requests: Sequence[Request], num_alternatives: int) -> list[Completion | RowError]:
    """Completions that hold the targets of the requests, each scored after its prompt; in order.

    Args:
        requests: under `score`, the prompt and the target together of at most n_positions + 1 tokens.
        num_alternatives: K.
    """
    longest_first = sorted(range(len(requests)), key=lambda index: -_num_fed(requests[index]))
    scored: dict[int, Completion | RowError] = {}
    for batch in _batches(longest_first, [_num_fed(request) for request in requests]):
        fed = [(*requests[index].prompt_token_ids, *requests[index].target_token_ids)[:-1] for index in batch]
        cache = model.new_cache([max(map(len, fed))] * len(fed))
        states = model.prefill(cache, 0, fed, num_last=[len(requests[index].target_token_ids) for index in batch])
        for index, hidden in zip(batch, states, strict=True):
            scored[index] = _completion(model, hidden.last, requests[index].target_token_ids, num_alternatives)
    return [scored[index] for index in range(len(requests))]


def prompt_logprobs(model: GPT2, prompt: tuple[int, ...], hidden: Tensor) -> FloatArray:
    """Log-probability of each prompt token given those before it, NaN first. `hidden` is (T, E)."""
    parts = [
        token_logprobs(model.logits(states), targets).cpu().numpy() for states, targets in _chunks(hidden, prompt[1:])
    ]
    return np.concatenate([np.array([np.nan], np.float32), *parts])


def _completion(model: GPT2, hidden: Tensor, target: tuple[int, ...], num_alternatives: int) -> Completion | RowError:
    """Measures of the target's tokens; `hidden` is (S, E), at the token before each."""
    logprobs, ranks, entropies, token_ids, probs = [], [], [], [], []
    for states, targets in _chunks(hidden, target):
        logits = model.logits(states)
        measures = measure(logits, num_alternatives)
        if not bool(measures.log_normalisers.isfinite().all()):
            return RowError("logits_not_finite", "the model's logits are not finite at a token of the text")
        chunk = score(logits, measures, torch.arange(len(targets), device=logits.device), targets)
        logprobs.extend(chunk[0])
        ranks.extend(chunk[1])
        entropies.append(measures.entropies)
        token_ids.append(measures.top_token_ids)
        probs.append(measures.top_probs)
    return Completion(
        token_ids=np.array(target, np.int32),
        finish_reason="scored",
        stop_match=None,
        token_logprobs=np.array(logprobs, np.float32),
        sampling_logprobs=None,
        token_ranks=np.array(ranks, np.int32),
        entropies=np.concatenate(entropies),
        top_token_ids=np.concatenate(token_ids),
        top_probs=np.concatenate(probs),
    )


def _chunks(hidden: Tensor, target: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of (T, E) hidden states and the tokens that follow them; states without one are left out."""
    targets = torch.tensor(target, dtype=torch.int64, device=hidden.device)
    for start in range(0, len(targets), POSITIONS_PER_CHUNK):
        chunk = targets[start : start + POSITIONS_PER_CHUNK]
        yield hidden[start : start + len(chunk)], chunk


def _num_fed(request: Request) -> int:
    return len(request.prompt_token_ids) + len(request.target_token_ids) - 1


def _batches(longest_first: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Runs of indices whose padded lengths fit one forward; a row of any length goes at least alone."""
    start = 0
    while start < len(longest_first):
        size = max(1, POSITIONS_PER_FORWARD // lengths[longest_first[start]])
        yield list(longest_first[start : start + size])
        start += size
