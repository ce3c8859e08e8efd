"""One step for all running rows: from logits to the next token of each, strategy by strategy.

Shape letters: B rows of the turn, N rows of one strategy, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.engine.beams import Beams, Candidate, Finished
from pipeline.engine.cache import SlotCache
from pipeline.engine.hypothesis import Ending, Hypothesis, Step, completion
from pipeline.engine.measure import Measures, score
from pipeline.engine.processors import BANNED, History, changes_scores, process
from pipeline.engine.ranking import top_k
from pipeline.engine.sampling import sample
from pipeline.records import Completion, RowError
from pipeline.strategies import BeamSearch, Generating, NextToken, Sampling


@dataclass(slots=True)
class Single:
    """A strategy that keeps one hypothesis: greedy, sampling, next_token."""

    strategy: Generating | NextToken
    ending: Ending
    seed: int
    running: list[Hypothesis]


@dataclass(slots=True)
class Unit:
    """What runs for one seed of a request (for all of them under beam search), and what it came to.

    Attributes:
        request: index of the request.
        num_slots: slots to keep free for it.
    """

    request: int
    num_slots: int
    state: Single | Beams
    result: tuple[Completion, ...] | RowError | None = None


class Turn(NamedTuple):
    """The model's answer for some slots: row i of `logits`, (B, V) float32, belongs to slot first_slot + i."""

    cache: SlotCache
    first_slot: int
    logits: Tensor
    measures: Measures

    def rows(self, parents: Sequence[Hypothesis]) -> Tensor:
        """Rows of the turn that belong to the hypotheses, (N,)."""
        return torch.tensor([parent.slot - self.first_slot for parent in parents], device=self.logits.device)

    def steps(
        self, parents: Sequence[Hypothesis], rows: Tensor, tokens: Tensor, sampling_logprobs: Sequence[float] | None
    ) -> list[Step]:
        """Steps that extend the hypotheses by `tokens`, (N,); without drawing, the raw log-probability is both."""
        logprobs, ranks = score(self.logits, self.measures, rows, tokens)
        columns = (parents, rows.tolist(), tokens.tolist(), logprobs, sampling_logprobs or logprobs, ranks)
        return [
            Step(parent.step, self.measures, row, token, logprob, sampling_logprob, rank)
            for parent, row, token, logprob, sampling_logprob, rank in zip(*columns, strict=True)
        ]


def advance(turn: Turn, units: list[Unit]) -> None:
    """Choose the next token of every row of the units; those that end get their `result`."""
    finite = torch.isfinite(turn.measures.log_normalisers).tolist()
    groups: dict[BeamSearch | Generating | NextToken, list[Unit]] = defaultdict(list)
    for unit in units:
        if all(finite[row.slot - turn.first_slot] for row in unit.state.running):
            groups[unit.state.strategy].append(unit)
        else:
            step = unit.state.running[0].num_generated + 1
            unit.result = RowError("logits_not_finite", f"the model's logits are not finite at step {step}")
            turn.cache.clear([row.slot for row in unit.state.running])
    for strategy, group in groups.items():
        if isinstance(strategy, BeamSearch):
            _advance_beams(turn, strategy, group)
        else:
            _advance_singles(turn, strategy, group)


def _advance_singles(turn: Turn, strategy: Generating | NextToken, units: list[Unit]) -> None:
    states = [unit.state for unit in units if isinstance(unit.state, Single)]
    parents = [state.running[0] for state in states]
    rows = turn.rows(parents)
    steps, is_possible = _choose_singles(turn, strategy, states, parents, rows)
    for unit, state, parent, step, possible in zip(units, states, parents, steps, is_possible, strict=True):
        if not possible:
            unit.result = _all_banned(parent)
        elif reason := state.ending.reason(parent, step.token):
            unit.result = (completion(step, turn.measures.num_alternatives, reason),)
        else:
            state.running = [state.ending.child(parent, step)]


def _choose_singles(
    turn: Turn,
    strategy: Generating | NextToken,
    states: list[Single],
    parents: list[Hypothesis],
    rows: Tensor,
) -> tuple[list[Step], list[bool]]:
    """Next step of each row, and whether any token was left to choose."""
    if not isinstance(strategy, Sampling) and not changes_scores(strategy):
        return turn.steps(parents, rows, turn.measures.best[rows], None), [True] * len(parents)
    scores = _processed(turn, states[0].ending, turn.logits[rows], parents)
    is_possible = (scores.amax(-1) > BANNED).tolist()
    if isinstance(strategy, Sampling):
        seeds = torch.tensor([state.seed for state in states], device=scores.device)
        num_generated = torch.tensor([parent.num_generated for parent in parents], device=scores.device)
        tokens, logprobs = sample(strategy, scores, seeds, num_generated)
    else:
        tokens = scores.argmax(-1)
        logprobs = scores.gather(-1, tokens[:, None])[:, 0] - torch.logsumexp(scores, dim=-1)
    return turn.steps(parents, rows, tokens, logprobs.tolist()), is_possible


def _advance_beams(turn: Turn, strategy: BeamSearch, units: list[Unit]) -> None:
    states = [unit.state for unit in units if isinstance(unit.state, Beams)]
    decisions = [
        state.choose(candidates) for state, candidates in zip(states, _candidates(turn, strategy, states), strict=True)
    ]
    picks = [
        (state.running[candidate.beam], candidate.token)
        for state, (running, ended) in zip(states, decisions, strict=True)
        for candidate in (*running, *(end.candidate for end in ended))
    ]
    parents = [parent for parent, _ in picks]
    tokens = torch.tensor([token for _, token in picks], dtype=torch.int64, device=turn.logits.device)
    steps = iter(turn.steps(parents, turn.rows(parents), tokens, None) if picks else [])
    for unit, state, (running, ended) in zip(units, states, decisions, strict=True):
        parent = state.running[0]
        going = [(candidate, next(steps)) for candidate in running]
        state.advance(going, [Finished(end.score, next(steps), end.reason) for end in ended])
        if state.is_done:
            unit.result = _best_beams(state, turn.measures.num_alternatives, parent)


def _candidates(turn: Turn, strategy: BeamSearch, states: list[Beams]) -> list[list[Candidate]]:
    """Candidates of each beam search, best first, banned ones left out; ties by beam, then token id."""
    parents = [parent for state in states for parent in state.running]
    rows = turn.rows(parents)
    logprobs = turn.logits[rows] - turn.measures.log_normalisers[rows, None]
    sums = torch.tensor([score for state in states for score in state.scores], device=logprobs.device)
    scores = _processed(turn, states[0].ending, logprobs, parents) + sums[:, None]
    values, token_ids = top_k(scores, min(states[0].num_candidates, scores.shape[1]))
    best = iter(zip(values.tolist(), token_ids.tolist(), strict=True))
    return [
        sorted(
            (
                Candidate(value, beam, token)
                for beam in range(len(state.running))
                for value, token in zip(*next(best), strict=True)
                if value > BANNED
            ),
            key=lambda candidate: (-candidate.score, candidate.beam, candidate.token),
        )
        for state in states
    ]


def _best_beams(state: Beams, num_alternatives: int, parent: Hypothesis) -> tuple[Completion, ...] | RowError:
    """The beams to return, or an error if bans left fewer than that."""
    wanted = state.strategy.num_return_sequences
    best = state.finished[:wanted]
    if not best:
        return _all_banned(parent)
    if len(best) < wanted:
        return RowError(
            "too_few_beams",
            f"the strategy's bans let only {len(best)} of {wanted} beams end at step {parent.num_generated + 1}; "
            "lower num_return_sequences or relax the bans",
        )
    return tuple(completion(beam.step, num_alternatives, beam.reason, beam.score) for beam in best)


def _processed(turn: Turn, ending: Ending, scores: Tensor, parents: list[Hypothesis]) -> Tensor:
    """Scores (N, V) of the hypotheses after their strategy's processors."""
    if not changes_scores(ending.strategy):
        return scores
    slots = torch.tensor([parent.slot for parent in parents], device=scores.device)
    lengths = turn.cache.lengths[slots]
    history = History(turn.cache.token_ids[slots, : int(lengths.max())], lengths)
    minimum = ending.strategy.min_new_tokens or 0
    too_short = torch.tensor([parent.num_generated < minimum for parent in parents], device=scores.device)
    return process(ending.strategy, scores, history, too_short, ending.stop_token_ids)


def _all_banned(parent: Hypothesis) -> RowError:
    return RowError(
        "no_token_left",
        f"the strategy's bans leave no token to generate at step {parent.num_generated + 1}; relax bad_words, "
        "no_repeat_ngram_size or min_new_tokens",
    )
