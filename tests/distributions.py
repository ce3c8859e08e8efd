"""What tokens are drawn from, worked out token by token in float64, as a reader would with pencil and paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.strategies import Drawing

Probs = npt.NDArray[np.float64]


def distribution(strategy: Drawing, logits: npt.ArrayLike, num_kept: int = 1) -> Probs:
    """Probability of each token, (V,), after temperature and filters."""
    scores = np.asarray(logits, np.float64) / strategy.temperature
    weights = np.exp(scores - scores.max())
    tokens = sorted(np.flatnonzero(weights), key=lambda token: (-weights[token], token))
    for key, keep in KEEP.items():
        if (setting := getattr(strategy, key)) is not None:
            probs = weights[tokens] / weights[tokens].sum()
            tokens = [tokens[place] for place in keep(probs, setting, num_kept)]
            tokens.sort(key=lambda token: (-weights[token], token))
    result = np.zeros_like(weights)
    result[tokens] = weights[tokens] / weights[tokens].sum()
    return result


def top_h(probs: Probs, setting: float, _: int) -> list[int]:
    probs = probs[:100] / probs[:100].sum()
    entropies = np.cumsum(-probs * np.log(probs))
    return [place for place in range(len(probs)) if place == 0 or entropies[place] <= setting * entropies[-1]]


def top_k(probs: Probs, setting: int, num_kept: int) -> list[int]:
    return list(range(min(max(setting, num_kept), len(probs))))


def top_p(probs: Probs, setting: float, num_kept: int) -> list[int]:
    return until(probs, list(range(len(probs))), setting, num_kept)


def min_p(probs: Probs, setting: float, num_kept: int) -> list[int]:
    return [place for place, prob in enumerate(probs) if prob >= setting * probs[0] or place < num_kept]


def typical_p(probs: Probs, setting: float, num_kept: int) -> list[int]:
    distances = abs(-np.log(probs) - entropy(probs))
    return until(probs, sorted(range(len(probs)), key=lambda place: distances[place]), setting, num_kept)


def epsilon_cutoff(probs: Probs, setting: float, num_kept: int) -> list[int]:
    worst = probs[min(num_kept, len(probs)) - 1]
    return [place for place, prob in enumerate(probs) if prob >= min(setting, worst)]


def eta_cutoff(probs: Probs, setting: float, num_kept: int) -> list[int]:
    return epsilon_cutoff(probs, min(setting, math.sqrt(setting) * math.exp(-entropy(probs))), num_kept)


def until(probs: Probs, order: list[int], mass: float, num_kept: int) -> list[int]:
    """The first places of `order` whose probabilities reach `mass`."""
    total = 0.0
    for rank, place in enumerate(order):
        if total >= mass and rank >= num_kept:
            return order[:rank]
        total += probs[place]
    return order


def entropy(probs: Probs) -> float:
    return float(-(probs * np.log(probs)).sum())


KEEP: dict[str, Callable[[Probs, Any, int], list[int]]] = {
    "top_h": top_h,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "epsilon_cutoff": epsilon_cutoff,
    "eta_cutoff": eta_cutoff,
}
