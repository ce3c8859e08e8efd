"""Beam search as transformers 5.23 does it, its candidates drawn if wanted, and diverse beam search over its groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pipeline.strategies import BeamSearch
from tests.naive.processors import narrow, process
from tests.naive.values import Completed, Naive


class Beam(NamedTuple):
    score: float
    generated: tuple[int, ...]


class Candidate(NamedTuple):
    score: float
    beam: int
    token: int
    row: tuple[int, ...]  # generated with the token


class Group(NamedTuple):
    """Beams that compete with each other: those that run on, and the best finished ones, by score after penalty."""

    running: tuple[Beam, ...] = (Beam(0.0, ()),)
    finished: tuple[Beam, ...] = ()


def width_of(strategy: BeamSearch) -> int:
    return strategy.num_beams // (strategy.num_beam_groups or 1)


def num_candidates(naive: Naive[BeamSearch], width: int) -> int:
    """So many that `width` are left to run on although all stop tokens are among them."""
    return max(2, 1 + len(naive.stop_tokens)) * width


def continuations(group: Group, scores: Sequence[torch.Tensor]) -> list[Candidate]:
    """All that are not banned, sorted: score descending, then beam, then token id.

    Args:
        scores: per running beam, its accumulated scores, (V,).
    """
    found = [
        Candidate(value, place, token, (*beam.generated, token))
        for place, beam in enumerate(group.running)
        for token, value in enumerate(scores[place].tolist())
        if value > -torch.inf
    ]
    return sorted(found, key=lambda one: (-one.score, one.beam, one.token))


def scores_of(naive: Naive[BeamSearch], beam: Beam, crowd: Sequence[int] = ()) -> torch.Tensor:
    """Scores of the beam's continuations, (V,): log-probabilities, processed, and narrowed where they are drawn."""
    strategy = naive.strategy
    logprobs = naive.logits(beam.generated).log_softmax(-1)
    scores = process(naive, logprobs, beam.generated, crowd, strategy.diversity_penalty or 0.0)
    return (narrow(naive, scores) if strategy.do_sample else scores) + beam.score


def drawn(naive: Naive[BeamSearch], candidates: list[Candidate], count: int) -> list[Candidate]:
    """`count` draws without replacement, in the order in which they are drawn, from the softmax over all beams.

    By Gumbel-top-k: the highest of score + noise first. `_get_top_k_continuations` of transformers draws the same way.
    """
    assert naive.noise is not None
    noise = naive.noise
    return sorted(
        candidates, key=lambda one: (-(one.score + noise(len(one.row) - 1, one.beam, one.token)), one.beam, one.token)
    )[:count]


def settled(
    naive: Naive[BeamSearch], group: Group, width: int, may_finish: Sequence[Candidate], may_run_on: Sequence[Candidate]
) -> Group:
    """The group after a step.

    Args:
        may_finish: those of them that end finish, with score / length^length_penalty; `width` finished ones are kept,
            the older on a tie.
        may_run_on: the first `width` of them that do not end run on, in this order.
    """
    penalty = naive.strategy.length_penalty
    ended = [Beam(one.score / len(one.row) ** penalty, one.row) for one in may_finish if naive.ending(one.row)]
    finished = sorted([*group.finished, *ended], key=lambda beam: -beam.score)[:width]
    running = [Beam(one.score, one.row) for one in may_run_on if not naive.ending(one.row)][:width]
    return Group(tuple(running), tuple(finished))


def is_done(naive: Naive[BeamSearch], group: Group, width: int) -> bool:
    """Whether nothing runs on, or `width` have finished and no running beam is expected to beat the worst of them.

    With `early_stopping` true the first alone is enough. Otherwise what the best running beam would score is estimated
    at its length, or at the limit for `never` with a positive length_penalty.
    """
    strategy = naive.strategy
    if not group.running:
        return True
    if len(group.finished) < width:
        return False
    is_at_limit = strategy.early_stopping == "never" and strategy.length_penalty > 0
    length = naive.limit if is_at_limit else len(group.running[0].generated)
    best = max(beam.score for beam in group.running) / length**strategy.length_penalty
    return strategy.early_stopping is True or best <= group.finished[-1].score


def beams(naive: Naive[BeamSearch]) -> list[Completed] | str:
    """Beam search, plain or drawn.

    Drawn: of the candidates in the order in which they are drawn, the first num_beams may finish, and the best
    num_beams by score of all that do not end run on.
    """
    strategy = naive.strategy
    group, width = Group(), strategy.num_beams
    while not is_done(naive, group, width):
        candidates = continuations(group, [scores_of(naive, beam) for beam in group.running])
        count = num_candidates(naive, width)
        taken = drawn(naive, candidates, count) if strategy.do_sample else candidates[:count]
        by_score = sorted(taken, key=lambda one: (-one.score, one.beam, one.token))
        group = settled(naive, group, width, taken[:width], by_score)
    return returned(naive, [group])


def diverse_beams(naive: Naive[BeamSearch]) -> list[Completed] | str:
    """Diverse beam search (Vijayakumar et al. 2016, arXiv:1610.02424).

    `num_beam_groups` groups of num_beams / num_beam_groups beams search side by side, each as plain beam search with
    its own finished beams and its own end. Within a step they take turns: a group's scores lose `diversity_penalty`,
    at its place in `PROCESSORS`, once for every beam of an earlier group that has taken the token in this step. The
    tokens a group takes are those of the beams that run on, or would, were it not for the limit: ends of text count
    for nothing. A group that is done takes no part, and counts for nothing from the step after its last on.
    """
    strategy = naive.strategy
    assert strategy.num_beam_groups is not None
    width = width_of(strategy)
    groups = [Group()] * strategy.num_beam_groups
    while not all(is_done(naive, group, width) for group in groups):
        crowd: list[int] = []
        for place, group in enumerate(groups):
            if not is_done(naive, group, width):
                groups[place], taken = diverse_step(naive, group, width, crowd)
                crowd += taken
    return returned(naive, groups)


def diverse_step(naive: Naive[BeamSearch], group: Group, width: int, crowd: list[int]) -> tuple[Group, list[int]]:
    """The group after its turn, and the tokens it has taken."""
    candidates = continuations(group, [scores_of(naive, beam, crowd) for beam in group.running])
    candidates = candidates[: num_candidates(naive, width)]
    going_on = [one.token for one in candidates if naive.ending(one.row) in (None, "length", "context")]
    return settled(naive, group, width, candidates[:width], candidates), going_on[:width]


def returned(naive: Naive[BeamSearch], groups: Sequence[Group]) -> list[Completed] | str:
    """The best finished beams of all groups, the earlier group first on a tie, or why there are not enough."""
    strategy = naive.strategy
    finished = sorted((beam for group in groups for beam in group.finished), key=lambda beam: -beam.score)
    if not finished:
        return "no_token_left"
    if len(finished) < strategy.num_return_sequences:
        return "too_few_beams"
    return [
        naive.completed(beam.generated, naive.ending(beam.generated) or "", beam.score)
        for beam in finished[: strategy.num_return_sequences]
    ]
