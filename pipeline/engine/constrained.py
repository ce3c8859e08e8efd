"""Beams that must hold forced words: dynamic beam allocation (Post and Vilar, arXiv:1804.06609).

Per step the candidates are the best over all beams, every token that brings a beam closer to the words, and the best of
each beam. They are put into banks by the number of forced tokens they hold, and the places of the beam go round the
banks, the fullest first, so that neither the words nor the text before them crowd the other out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.engine.beams import Beams, Candidate, Ended
from pipeline.engine.forced_words import ForcedWords, Progress
from pipeline.engine.hypothesis import Hypothesis
from pipeline.engine.processors import BANNED


class Banked(NamedTuple):
    """A candidate, and why it would end."""

    candidate: Candidate
    reason: tuple[str, str | int | None] | None


def without_stops(groups: Sequence[Beams], scores: Tensor) -> Tensor:
    """Scores (N, V) of the groups' beams, stop tokens banned where they would leave words unmet."""
    stop_token_ids = groups[0].ending.stop_token_ids
    unmet = [
        [not words.is_met(words.next(progress, token)) for token in stop_token_ids]
        for words, progress in _all_words(groups)
    ]
    banned = torch.zeros_like(scores, dtype=torch.bool)
    banned[:, list(stop_token_ids)] = torch.tensor(unmet, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(banned, BANNED)


def closer(groups: Sequence[Beams], scores: Tensor) -> list[list[Candidate]]:
    """Of each group the candidates that bring a beam closer to its words; `scores` is (N, V), beam scores included."""
    found: list[list[Candidate]] = []
    rows = iter(scores)
    for group in groups:
        found.append([])
        for beam, (words, progress) in enumerate(_all_words([group])):
            tokens = words.advancing(progress)
            pairs = zip(next(rows)[tokens].tolist(), tokens, strict=True)
            found[-1] += [Candidate(value, beam, token) for value, token in pairs if value > BANNED]
    return found


def choose(
    group: Beams, best: Sequence[Candidate], advancing: Sequence[Candidate]
) -> tuple[list[Candidate], list[Ended]]:
    """Split candidates into those that run on and those that finish; one that would end without all words is dropped.

    Args:
        best: of every beam, best first, none banned.
        advancing: those of `closer`.
    """
    firsts = {candidate.beam: candidate for candidate in reversed(best)}
    picks = _round_robin(group, {*best[: group.num_candidates], *firsts.values(), *advancing})
    running = [banked.candidate for banked in picks if banked.reason is None][: group.width]
    ended = [group.ended(banked.candidate, banked.reason) for banked in picks[: group.width] if banked.reason]
    return sorted(running, key=lambda candidate: -candidate.score), ended


def _round_robin(group: Beams, candidates: Collection[Candidate]) -> list[Banked]:
    """Candidates that may run on or end: the best of each bank, the fullest bank first, then the second best, ..."""
    banks: dict[int, list[Banked]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda each: (-each.score, each.beam, each.token)):
        parent = group.running[candidate.beam]
        words, progress = _words(group, parent)
        after = words.next(progress, candidate.token)
        reason = group.ending.reason(parent, candidate.token)
        if reason is None or words.is_met(after):
            banks[words.num_met(after)].append(Banked(candidate, reason))
    rounds = zip_longest(*(banks[num_met] for num_met in sorted(banks, reverse=True)))
    return [banked for turn in rounds for banked in turn if banked is not None]


def _all_words(groups: Sequence[Beams]) -> list[tuple[ForcedWords, Progress]]:
    return [_words(group, row) for group in groups for row in group.running]


def _words(group: Beams, hypothesis: Hypothesis) -> tuple[ForcedWords, Progress]:
    assert group.ending.forced_words is not None
    assert hypothesis.progress is not None
    return group.ending.forced_words, hypothesis.progress
