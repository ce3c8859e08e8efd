"""Beam search in all its kinds, over the rows of a turn: plain, drawn, in diverse groups, and with forced words.

Shape letters: N running beams of all units, C candidates per beam, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from pipeline.engine import constrained
from pipeline.engine.beams import Beams, Candidate, Finished
from pipeline.engine.filters import narrow
from pipeline.engine.hypothesis import Ending, Hypothesis, completion
from pipeline.engine.processors import BANNED
from pipeline.engine.ranking import top_k
from pipeline.engine.sampling import branch, gumbel
from pipeline.engine.turn import Turn, Unit, all_banned
from pipeline.records import Completion, RowError
from pipeline.strategies import BeamSearch


@dataclass(slots=True)
class BeamGroups:
    """All beams of one unit: one group, or several that keep apart. A group that is done has nothing running."""

    ending: Ending
    seed: int
    groups: list[Beams]

    @property
    def running(self) -> list[Hypothesis]:
        """Beams of all groups."""
        return [row for group in self.groups for row in group.running]

    def begin(self, root: Hypothesis, _prompt: Tensor) -> None:
        """Start after the prompt."""
        for group in self.groups:
            group.running = [root]

    def move(self, slots: Sequence[tuple[int, ...]]) -> None:
        """Lie in other slots."""
        place = iter(slots)
        for group in self.groups:
            group.running = [row.moved(next(place)) for row in group.running]


def beam_groups(strategy: BeamSearch, ending: Ending, seed: int) -> BeamGroups:
    """The state of a strategy before it begins."""
    return BeamGroups(ending, seed, [Beams(strategy, ending, []) for _ in range(strategy.num_beam_groups or 1)])


def advance_beams(turn: Turn, strategy: BeamSearch, units: Sequence[Unit]) -> None:
    """Move every beam of the units on by one token, group after group; units that are done get their `result`."""
    states = [unit.state for unit in units if isinstance(unit.state, BeamGroups)]
    num_generated = [state.running[0].num_generated for state in states]
    crowds: list[list[int]] = [[] for _ in states]  # tokens that earlier groups took in this step
    for index in range(strategy.num_beam_groups or 1):
        members = [(state, crowd) for state, crowd in zip(states, crowds, strict=True) if state.groups[index].running]
        if members:
            _advance_group(turn, strategy, index, [state for state, _ in members], [crowd for _, crowd in members])
    for unit, state, length in zip(units, states, num_generated, strict=True):
        if not state.running:
            unit.result = _best_beams(strategy, state, turn.num_alternatives, length)


def _advance_group(
    turn: Turn, strategy: BeamSearch, index: int, states: Sequence[BeamGroups], crowds: Sequence[list[int]]
) -> None:
    """Move one group of every state on; what its beams take joins the crowds."""
    groups = [state.groups[index] for state in states]
    scores = _scores(turn, groups, crowds)
    candidates = _candidates(strategy, groups, scores, [state.seed for state in states])
    if strategy.force_words_ids:
        advancing = constrained.closer(groups, scores + _totals(groups, scores))
        decisions = [constrained.choose(*each) for each in zip(groups, candidates, advancing, strict=True)]
    else:
        decisions = [group.choose(each) for group, each in zip(groups, candidates, strict=True)]
    if strategy.num_beam_groups is not None:
        for group, crowd, each in zip(groups, crowds, candidates, strict=True):
            crowd += group.taken(each)
    picks = [
        (group.running[candidate.beam], candidate.token)
        for group, (running, ended) in zip(groups, decisions, strict=True)
        for candidate in (*running, *(end.candidate for end in ended))
    ]
    parents = [parent for parent, _ in picks]
    tokens = torch.tensor([token for _, token in picks], dtype=torch.int64, device=scores.device)
    steps = iter(turn.steps(parents, turn.rows(parents), tokens, None) if picks else [])
    for group, (running, ended) in zip(groups, decisions, strict=True):
        going = [(candidate, next(steps)) for candidate in running]
        group.advance(going, [Finished(end.score, next(steps), end.reason) for end in ended])


def _scores(turn: Turn, groups: Sequence[Beams], crowds: Sequence[list[int]]) -> Tensor:
    """Processed log-probabilities (N, V) of the groups' beams, in which no beam ends without its forced words."""
    parents = [row for group in groups for row in group.running]
    owners = [owner for owner, group in enumerate(groups) for _ in group.running]
    rows = turn.rows(parents)
    logprobs = turn.logits_at(rows) - turn.measures.log_normalisers[rows, None]
    strategy, endings = groups[0].strategy, [groups[owner].ending for owner in owners]
    crowd = _counts([crowds[owner] for owner in owners], logprobs) if strategy.num_beam_groups is not None else None
    scores = turn.processed(logprobs, parents, endings, crowd)
    return constrained.without_stops(groups, scores) if strategy.force_words_ids else scores


def _counts(crowds: Sequence[list[int]], scores: Tensor) -> Tensor:
    """How often each token is in the crowd of each row, in the shape of `scores`."""
    counts = torch.zeros_like(scores)
    for row, crowd in zip(counts, crowds, strict=True):
        for token in crowd:
            row[token] += 1
    return counts


def _candidates(
    strategy: BeamSearch, groups: Sequence[Beams], scores: Tensor, seeds: Sequence[int]
) -> list[list[Candidate]]:
    """Candidates of each group, banned ones left out: best first, ties by beam, then token id; or as they were drawn.

    Args:
        scores: (N, V) processed log-probabilities of the groups' beams.
        seeds: of the groups, for the noise on total scores that draws without replacement.
    """
    totals = _totals(groups, scores)
    num_candidates = groups[0].num_candidates
    if not strategy.do_sample:
        keys, token_ids = top_k(scores + totals, min(num_candidates, scores.shape[1]))
        values = keys
    else:
        values, token_ids = narrow(strategy, scores, max(2, 1 + len(groups[0].ending.stop_token_ids)))
        values = values + totals
        keys, places = (values + _noise(groups, seeds, token_ids)).topk(min(num_candidates, values.shape[1]))
        values, token_ids = values.gather(-1, places), token_ids.gather(-1, places)
    best = zip(keys.tolist(), values.tolist(), token_ids.tolist(), strict=True)
    return [_merged(list(islice(best, len(group.running)))) for group in groups]


def _merged(beams: Sequence[tuple[list[float], list[float], list[int]]]) -> list[Candidate]:
    """Candidates of the beams of one group, (keys, scores, token ids) each, by key, then beam, then token id."""
    keyed = [
        (-key, beam, token, value)
        for beam, (keys, values, tokens) in enumerate(beams)
        for key, value, token in zip(keys, values, tokens, strict=True)
        if value > BANNED
    ]
    return [Candidate(value, beam, token) for _, beam, token, value in sorted(keyed)]


def _totals(groups: Sequence[Beams], scores: Tensor) -> Tensor:
    """Score of every running beam, (N, 1)."""
    return torch.tensor([score for group in groups for score in group.scores], device=scores.device)[:, None]


def _noise(groups: Sequence[Beams], seeds: Sequence[int], token_ids: Tensor) -> Tensor:
    """Gumbel noise (N, C) of every beam's candidates: the best by score + noise are a draw without replacement (Kool et
    al., arXiv:1903.06059)."""
    draws = [
        (seed, beam, row.num_generated)
        for group, seed in zip(groups, seeds, strict=True)
        for beam, row in enumerate(group.running)
    ]
    rows, beams, steps = torch.tensor(draws, device=token_ids.device).unbind(-1)
    return gumbel(branch(rows, beams), steps, token_ids)


def words_unmet(ending: Ending) -> RowError:
    """The error of a request of which no beam could hold the forced words."""
    return RowError(
        "force_words_unmet",
        f"no beam held all forced words within {ending.limit} tokens; raise the limit or num_beams, or force fewer",
    )


def _best_beams(
    strategy: BeamSearch, state: BeamGroups, num_alternatives: int, num_generated: int
) -> tuple[Completion, ...] | RowError:
    """The beams to return, best first, or an error if too few could finish."""
    finished = [beam for group in state.groups for beam in group.finished]
    best = sorted(finished, key=lambda beam: -beam.score)[: strategy.num_return_sequences]
    if not best and strategy.force_words_ids:
        return words_unmet(state.ending)
    if not best:
        return all_banned(strategy, num_generated)
    if len(best) < strategy.num_return_sequences:
        return RowError(
            "too_few_beams",
            f"only {len(best)} of {strategy.num_return_sequences} beams could end by step {num_generated + 1}; lower "
            "num_return_sequences or relax the bans and forced words",
        )
    return tuple(
        completion(beam.step, num_alternatives, beam.reason, is_drawn=False, sequence_score=beam.score) for beam in best
    )
