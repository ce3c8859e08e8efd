"""The probabilities of each step: alternatives in order, the chosen token among them where its rank says, sums right.

Shape letters: N whole completions, T steps of all of them one after another, K recorded alternatives, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.proofs.columns import Array, Problem, entries, is_null, lengths, values

ROUNDING = 1e-5  # between two float32 numbers made of the same logits


@dataclass(frozen=True)
class Steps:
    """The steps of whole completions.

    Attributes:
        rows: the N completions.
        positions: (N,) where they stand in the part.
        lengths: (N,) steps of each.
    """

    rows: pa.Table
    positions: Array
    lengths: Array

    @classmethod
    def of(cls, table: pa.Table, positions: Array) -> Steps:
        """The steps of these rows of a part."""
        rows = table.take(pa.array(positions))
        return cls(rows, positions, lengths(rows["token_ids"]))

    @cached_property
    def owners(self) -> Array:
        """(T,) the row that each step belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def flat(self, name: str) -> Array:
        """A column of lists as (T,); 0 for the steps of a null."""
        flat = np.zeros(len(self.owners))
        flat[~is_null(self.rows[name])[self.owners]] = entries(self.rows[name])
        return flat

    def table(self, name: str) -> Array:
        """A column of lists of lists as (T, K); K is 0 where nothing was recorded."""
        flat = entries(self.rows[name])
        return flat.reshape(len(self.owners), len(flat) // max(1, len(self.owners)))

    def problems(self, check: str, is_wrong: Array, message: Callable[[int], str]) -> Iterator[Problem]:
        """A problem for each row with a wrong step, (T,) bool, about the first of its steps."""
        wrong = np.flatnonzero(is_wrong)
        owners, first = np.unique(self.owners[wrong], return_index=True)
        starts = np.cumsum(self.lengths) - self.lengths
        for owner, step in zip(owners.tolist(), wrong[first].tolist(), strict=True):
            yield Problem(check, int(self.positions[owner]), f"step {step - starts[owner]}: {message(step)}")


def check_alternatives(steps: Steps) -> Iterator[Problem]:
    """Alternatives out of order, twice in a step, or with impossible probabilities."""
    ids, probs = steps.table("top_token_ids"), steps.table("top_probs")
    falls = probs[:, :-1] > probs[:, 1:]
    is_tie_in_order = (probs[:, :-1] == probs[:, 1:]) & (ids[:, :-1] < ids[:, 1:])
    is_sorted = (falls | is_tie_in_order).all(-1)
    in_order = np.sort(ids, axis=-1)
    is_repeated = (in_order[:, :-1] == in_order[:, 1:]).any(-1)
    sums = probs.sum(-1, dtype=np.float64)
    is_impossible = (probs < 0).any(-1) | (sums > 1 + ROUNDING)
    yield from steps.problems("top_k", ~is_sorted, lambda step: f"{_pairs(ids, probs, step)} is not in order")
    yield from steps.problems("top_k", is_repeated, lambda step: f"{_pairs(ids, probs, step)} has a token twice")
    yield from steps.problems("top_k", is_impossible, lambda step: f"{_pairs(ids, probs, step)} sums to {sums[step]}")


def check_chosen(steps: Steps, vocab_size: int) -> Iterator[Problem]:
    """Steps whose rank, log-probability, entropy and alternatives cannot all be true."""
    logprobs, drawn = steps.flat("token_logprobs"), steps.flat("sampling_logprobs")
    ranks, entropies = steps.flat("token_ranks").astype(np.int64), steps.flat("entropies")
    is_possible = (logprobs <= ROUNDING) & (drawn <= ROUNDING) & (ranks >= 1) & (ranks <= vocab_size)
    is_possible &= (entropies >= 0) & (entropies <= np.log(vocab_size) * (1 + ROUNDING))
    yield from steps.problems(
        "chosen",
        ~is_possible,
        lambda step: (
            f"log-probabilities {logprobs[step]} and {drawn[step]}, rank {ranks[step]} and entropy "
            f"{entropies[step]} are not possible"
        ),
    )
    ids, probs = steps.table("top_token_ids"), steps.table("top_probs")
    if not ids.shape[1]:
        return
    tokens, chosen = steps.flat("token_ids").astype(np.int64), np.exp(logprobs)
    fits = _fits_alternatives(tokens, chosen, ranks, ids, probs)
    yield from steps.problems(
        "chosen",
        is_possible & ~fits,
        lambda step: (
            f"token {tokens[step]} of rank {ranks[step]} and probability {chosen[step]:.6f} does not fit "
            f"{_pairs(ids, probs, step)}"
        ),
    )


def check_totals(steps: Steps) -> Iterator[Problem]:
    """Rows whose cumulative_logprob is not the sum, and beams that are better than the one before."""
    stored = values(steps.rows["cumulative_logprob"])
    sums = np.bincount(steps.owners, steps.flat("token_logprobs"), minlength=len(stored))
    for row in np.flatnonzero(~(np.abs(stored - sums) <= 1e-9 * (1 + np.abs(sums)))).tolist():
        yield Problem(
            "totals", int(steps.positions[row]), f"cumulative_logprob is {stored[row]}, but the sum {sums[row]}"
        )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        means = np.where(steps.lengths > 0, np.exp(-sums / steps.lengths), np.nan)  # NaN: null, of no tokens
    found = values(steps.rows["perplexity"]).astype(np.float64)
    for row in np.flatnonzero(~np.isclose(found, means, rtol=1e-9, equal_nan=True)).tolist():
        yield Problem("totals", int(steps.positions[row]), f"perplexity is {found[row]}, but must be {means[row]}")
    keys = zip(*(steps.rows[name].to_pylist() for name in ("row_index", "strategy", "sequence_score")), strict=True)
    before: tuple[Any, ...] = (None, None, None)
    for row, key in enumerate(keys):
        if key[:2] == before[:2] and key[2] is not None and not key[2] <= before[2]:
            message = f"sequence_score is {key[2]}, above {before[2]} of the beam before it"
            yield Problem("totals", int(steps.positions[row]), message)
        before = key


def _fits_alternatives(tokens: Array, chosen: Array, ranks: Array, ids: Array, probs: Array) -> Array:
    """(T,) whether the chosen token stands where its rank says with its probability, or is rightly not listed."""
    is_it = ids == tokens[:, None]  # (T, K)
    places = np.where(is_it.any(-1), is_it.argmax(-1) + 1, 0)
    at_rank = np.take_along_axis(probs, np.clip(ranks - 1, 0, probs.shape[1] - 1)[:, None], -1)[:, 0]
    fits: Array = np.where(
        ranks <= ids.shape[1],
        (places == ranks) & (np.abs(at_rank - chosen) <= ROUNDING),
        (places == 0) & (chosen <= probs[:, -1] + ROUNDING),
    )
    return fits


def _pairs(ids: Array, probs: Array, step: int) -> str:
    pairs = [
        f"{token}: {prob:.6f}" for token, prob in zip(ids[step, :5].tolist(), probs[step, :5].tolist(), strict=True)
    ]
    return f"{{{', '.join(pairs)}{', ...' if ids.shape[1] > 5 else ''}}}"
