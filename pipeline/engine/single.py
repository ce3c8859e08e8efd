"""Strategies that keep one hypothesis: greedy, sampling, DoLa and next_token.

Shape letters: N rows of one strategy, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.engine.dola import contrast, early_layers
from pipeline.engine.hypothesis import Ending, Hypothesis, Step, completion
from pipeline.engine.processors import BANNED, changes_scores
from pipeline.engine.sampling import rows_at_once, sample
from pipeline.engine.turn import Turn, Unit, all_banned
from pipeline.strategies import Decoding, Dola, Greedy, NextToken, Sampling


@dataclass(slots=True)
class Single:
    """One hypothesis and the seed of its row."""

    ending: Ending
    seed: int
    running: list[Hypothesis] = field(default_factory=list)

    def begin(self, root: Hypothesis, _prompt: Tensor) -> None:
        """Start after the prompt."""
        self.running = [root]

    def move(self, slots: Sequence[tuple[int, ...]]) -> None:
        """Lie in another slot."""
        self.running = [self.running[0].moved(slots[0])]


def advance_singles(turn: Turn, strategy: Decoding, units: Sequence[Unit]) -> None:
    """Choose the next token of every row; those that end get their `result`."""
    states = [unit.state for unit in units if isinstance(unit.state, Single)]
    parents = [state.running[0] for state in states]
    steps, is_possible = _choose(turn, strategy, states, parents)
    for unit, state, parent, step, possible in zip(units, states, parents, steps, is_possible, strict=True):
        if not possible:
            unit.result = all_banned(strategy, parent.num_generated)
        elif reason := state.ending.reason(parent, step.token):
            unit.result = (completion(step, turn.num_alternatives, reason),)
        else:
            state.running = [state.ending.child(parent, step)]


def _choose(
    turn: Turn, strategy: Decoding, states: Sequence[Single], parents: Sequence[Hypothesis]
) -> tuple[list[Step], list[bool]]:
    """Next step of each row, and whether any token was left to choose."""
    rows = turn.rows(parents)
    if isinstance(strategy, Greedy | NextToken) and not changes_scores(strategy):
        return turn.steps(parents, rows, turn.measures.best[rows], None), [True] * len(parents)
    size = rows_at_once(turn.logits) if changes_scores(strategy) else len(rows)
    pieces = [slice(start, start + size) for start in range(0, len(rows), size)]
    picked = [_pick(turn, strategy, states[piece], parents[piece], rows[piece]) for piece in pieces]
    tokens, logprobs, is_possible = (torch.cat(column) for column in zip(*picked, strict=True))
    return turn.steps(parents, rows, tokens, logprobs.tolist()), is_possible.tolist()


def _pick(
    turn: Turn, strategy: Decoding, states: Sequence[Single], parents: Sequence[Hypothesis], rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`pick` after the processors, and whether any token was left to choose, (N,) each."""
    scores, is_raw = _scores(turn, strategy, rows), not isinstance(strategy, Dola)
    if changes_scores(strategy):
        scores, is_raw = turn.processed(scores, parents, [state.ending for state in states]), False
    is_possible = torch.ones_like(rows, dtype=torch.bool) if is_raw else scores.amax(-1) > BANNED
    seeds = torch.tensor([state.seed for state in states], device=scores.device)
    num_generated = torch.tensor([parent.num_generated for parent in parents], device=scores.device)
    log_normalisers = turn.measures.log_normalisers[rows] if is_raw else None
    return *pick(strategy, scores, seeds, num_generated, log_normalisers), is_possible


def pick(
    strategy: Decoding, scores: Tensor, seeds: Tensor, num_generated: Tensor, log_normalisers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The next token of each row, and its log-probability among those it was chosen from: (N, V) -> (N,) twice.

    Args:
        seeds, num_generated: (N,) int64.
        log_normalisers: (N,) log-sum-exps of the scores, where they are known.
    """
    if isinstance(strategy, Sampling):
        return sample(strategy, scores, seeds, num_generated, log_normalisers)
    tokens = scores.argmax(-1)
    return tokens, scores.gather(-1, tokens[:, None])[:, 0] - torch.logsumexp(scores, dim=-1)


def _scores(turn: Turn, strategy: Decoding, rows: Tensor) -> Tensor:
    """What the processors start from, (N, V)."""
    if not isinstance(strategy, Dola):
        return turn.logits_at(rows)
    layers = early_layers(strategy, turn.model.num_layers)
    return contrast(
        turn.logits_at(rows), torch.stack([turn.model.logits(turn.states.early[layer][rows]) for layer in layers])
    )
