"""Diverse and constrained beams as transformers 4.41.2 has them: the references' own parts, put together by its rules.

Where the project departs from it on purpose is said here in code, so that the tests can hold *all* cases to 4.41.2 and
not only those where both happen to agree. Its rules:

- Beams that a limit ends finish last: those that reach an end of text finish first, and if the search is done by that,
  the others are dropped, although they may be better. The references let the first of both kinds finish, as
  transformers 5 does.
- Whether a search is done is judged by the best candidate of the step, one that ends included. The references, and
  transformers 5, judge by the best beam that runs on.
- A group that is done goes on to count, with pads, in what later groups shun.
- Forced words: beside what advances a beam, the pool holds only the num_beams best, not twice as many and not the best
  of each beam (the paper's third kind), so beams that hold all words lose their place to better ones that do not. Ends
  of text are not banned while words are missing: they take places and are dropped. Which end finishes is decided by
  score, before the beams are dealt over the banks. Beams at the limit take part with words missing, and are dropped;
  if none is left, or only one that took a banned token as a step of a phrase, what is returned is no answer.

Left out, and kept out of the cases: 4.41.2 counts forced words in the prompt, counts a complete phrase as the longest
of all entries, starts no phrase with the token that breaks another, and lets a token serve one entry alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.strategies import BeamSearch
from tests.naive import Naive
from tests.naive.beams import Beam, Candidate, Group, continuations, num_candidates, scores_of, width_of
from tests.naive.constrained import Entry, advancing_tokens, entries_of, is_met, pick_order

Rows = list[tuple[int, ...]]


def diverse_rows(naive: Naive[BeamSearch], pad: int) -> Rows:
    """Token ids of the returned beams."""
    width = width_of(naive.strategy)
    groups = [Group()] * (naive.strategy.num_beam_groups or 1)
    while any(group.running for group in groups):
        crowd: list[int] = []
        for place, group in enumerate(groups):
            candidates = continuations(group, [scores_of(naive, beam, crowd) for beam in group.running])
            candidates = candidates[: num_candidates(naive, width)]
            going_on = [one for one in candidates if one.token not in naive.stop_tokens][:width]
            ended = [one for one in candidates[:width] if one.token in naive.stop_tokens]
            groups[place] = settled(naive, group, width, candidates, ended, going_on)
            crowd += [one.token for one in going_on] if group.running else [pad] * width
    return returned(naive, groups)


def constrained_rows(naive: Naive[BeamSearch]) -> Rows:
    """Token ids of the returned beams; fewer than wanted where words are missing."""
    width, entries = naive.strategy.num_beams, entries_of(naive.strategy)
    group = Group()
    while group.running:
        everything = continuations(group, [scores_of(naive, beam) for beam in group.running])
        best = everything[: num_candidates(naive, width)]
        ended = [one for one in best[:width] if one.token in naive.stop_tokens and is_met(entries, one.row[:-1])]
        pool = set([one for one in best if one.token not in naive.stop_tokens][:width])
        advancing = [advancing_tokens(entries, beam.generated) for beam in group.running]
        pool |= {one for one in everything if one.token in advancing[one.beam]}
        picks = pick_order(entries, [one for one in everything if one in pool])[:width]
        group = settled(naive, group, width, best, ended, picks, entries)
    return returned(naive, [group])


def settled(
    naive: Naive[BeamSearch],
    group: Group,
    width: int,
    candidates: Sequence[Candidate],
    ended: Sequence[Candidate],
    going_on: Sequence[Candidate],
    entries: Sequence[Entry] = (),
) -> Group:
    """The group after a step; without running beams it is done."""
    if not group.running:
        return group
    finished = best_of(naive, [*group.finished, *finished_by(naive, ended)], width)
    length = len(candidates[0].row)
    if len(finished) == width and not can_improve(naive, candidates[0].score, length, finished[-1].score):
        return Group((), finished)
    if length < naive.limit:
        return Group(tuple(Beam(one.score, one.row) for one in going_on), finished)
    met = [one for one in going_on if is_met(list(entries), one.row)]
    return Group((), best_of(naive, [*finished, *finished_by(naive, met)], width))


def can_improve(naive: Naive[BeamSearch], best: float, length: int, worst_finished: float) -> bool:
    if naive.strategy.early_stopping is True:
        return False
    is_at_limit = naive.strategy.early_stopping == "never" and naive.strategy.length_penalty > 0
    return best / (naive.limit if is_at_limit else length) ** naive.strategy.length_penalty > worst_finished


def finished_by(naive: Naive[BeamSearch], candidates: Sequence[Candidate]) -> list[Beam]:
    return [Beam(one.score / len(one.row) ** naive.strategy.length_penalty, one.row) for one in candidates]


def best_of(naive: Naive[BeamSearch], beams: Sequence[Beam], width: int) -> tuple[Beam, ...]:
    return tuple(sorted(beams, key=lambda beam: -beam.score)[:width])


def returned(naive: Naive[BeamSearch], groups: Sequence[Group]) -> Rows:
    finished = best_of(naive, [beam for group in groups for beam in group.finished], naive.strategy.num_beams)
    return [beam.generated for beam in finished[: naive.strategy.num_return_sequences]]
