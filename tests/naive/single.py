"""Strategies of one row: greedy, sampling, contrastive search and DoLa, each a choice of the next token."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.strategies import ContrastiveSearch, Decoding, Dola, Sampling
from tests.naive.processors import narrow, process
from tests.naive.values import Completed, Naive, Strategy

Choice = tuple[int, float | None]  # a token and its log-probability under the distribution it was taken from, if any
RELATIVE_TOP = 0.1  # DoLa's plausibility threshold: the share of the best token's probability


def decode(
    naive: Naive[Strategy], choose: Callable[[Naive[Strategy], list[int]], Choice | None]
) -> list[Completed] | str:
    """One token after the other until the completion ends, or `no_token_left` where the bans left none."""
    generated: list[int] = []
    logprobs: list[float] = []
    reason = None
    while reason is None:
        chosen = choose(naive, generated)
        if chosen is None:
            return "no_token_left"
        generated.append(chosen[0])
        logprobs += [] if chosen[1] is None else [chosen[1]]
        reason = naive.ending(generated)
    return [naive.completed(generated, reason, sampling_logprobs=logprobs or None)]


def best(scores: torch.Tensor) -> Choice | None:
    """The highest score, the lower token id on a tie."""
    values = scores.tolist()
    token = values.index(max(values))
    return (token, float(scores.log_softmax(-1)[token])) if values[token] != -torch.inf else None


def greedy(naive: Naive[Decoding], generated: list[int]) -> Choice | None:
    return best(process(naive, naive.logits(generated), generated))


def sampled(naive: Naive[Sampling], generated: list[int]) -> Choice | None:
    """Gumbel-max: the highest of log-probability + noise is a draw from the distribution."""
    assert naive.noise is not None
    logprobs = narrow(naive, process(naive, naive.logits(generated), generated)).log_softmax(-1).tolist()
    kept = [token for token, logprob in enumerate(logprobs) if logprob > -torch.inf]  # NaN where all are banned
    if not kept:
        return None
    noise = naive.noise
    token = max(kept, key=lambda token: (logprobs[token] + noise(len(generated), 0, token), -token))
    return token, logprobs[token]


def contrastive(naive: Naive[ContrastiveSearch], generated: list[int]) -> Choice | None:
    """Contrastive search (Su et al. 2022, arXiv:2202.06417): argmax (1 - alpha) p - alpha max_j cos(h_v, h_j).

    Candidates are the `top_k` most probable tokens of the processed distribution, and p their probability in it; banned
    tokens never are, so there may be fewer. h is the last hidden state (after ln_f), j runs over all tokens before, the
    prompt's included. End of text takes part like any other token. Ties go to the more probable candidate, then to the
    lower id.
    """
    strategy = naive.strategy
    probs = process(naive, naive.logits(generated), generated).softmax(-1).tolist()
    candidates = sorted((token for token, prob in enumerate(probs) if prob > 0), key=lambda token: -probs[token])
    scored = []
    for token in candidates[: strategy.top_k]:
        states = naive.hidden_states([*generated, token])[-1]
        similarity = torch.nn.functional.cosine_similarity(states[:-1], states[-1:], dim=-1).max()
        penalty = strategy.penalty_alpha
        scored.append(((1 - penalty) * probs[token] - penalty * float(similarity), token))
    return (max(scored, key=lambda one: one[0])[1], None) if scored else None


def dola(naive: Naive[Dola], generated: list[int]) -> Choice | None:
    """DoLa (Chuang et al. 2023, arXiv:2309.03883): the token that the last layer likes more than an early one does.

    The early layer is, per step, the one of `dola_layers` whose distribution lies furthest from the last one by
    Jensen-Shannon divergence (summed over the vocabulary; the lower layer on a tie). Tokens less than `RELATIVE_TOP`
    times as probable as the best in the last layer are out. Processors act on the contrasted scores.
    """
    strategy = naive.strategy
    *early, final = layer_logprobs(naive, generated)
    layers = [early[layer] for layer in dola_layers(strategy, len(early))]
    furthest = max(layers, key=lambda logprobs: jensen_shannon(final, logprobs))
    plausible = final >= final.max() + torch.tensor(RELATIVE_TOP).log()
    scores = torch.where(plausible, final - furthest, -torch.inf)
    return best(process(naive, scores, generated))


def layer_logprobs(naive: Naive[Dola], generated: list[int]) -> list[torch.Tensor]:
    """What each layer says of the next token, (V,) log-probabilities: through ln_f, which the last has behind it."""
    *early, last = (states[-1] for states in naive.hidden_states(generated))
    with torch.no_grad():
        read = [*(naive.model.transformer.ln_f(state) for state in early), last]
        return [naive.model.lm_head(state).log_softmax(-1) for state in read]


def jensen_shannon(one: torch.Tensor, other: torch.Tensor) -> float:
    """Divergence of two distributions given as log-probabilities, in nats."""
    middle = ((one.exp() + other.exp()) / 2).log()
    return float((one.exp() * (one - middle)).sum() + (other.exp() * (other - middle)).sum()) / 2


def dola_layers(strategy: Dola, num_layers: int) -> list[int]:
    """Early layers in ascending order (0: the embedding), as transformers takes them where embeddings are tied.

    Where `low` would be empty, in a model of three layers, it is the start.
    """
    if not isinstance(strategy.dola_layers, str):
        return sorted(strategy.dola_layers)
    start = 2 if num_layers > 2 else num_layers - 1
    if strategy.dola_layers == "high":
        return list(range(num_layers // 2 if num_layers <= 40 else num_layers - 20, num_layers, 2))
    return list(range(start, num_layers // 2 if num_layers <= 40 else 20, 2)) or [start]
