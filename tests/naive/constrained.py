"""Constrained beam search by dynamic beam allocation (Post & Vilar 2018, arXiv:1804.06609), cache-free, one row.

**What is met.** Only the completion counts, never the prompt. An *entry* of `force_words_ids` is a phrase or a list of
alternative phrases. It is *complete* once one of its alternatives stands in the generated tokens, contiguous and
anywhere, by whatever way it got there; it stays complete. Tokens may serve several entries (1 2 3 completes both [1, 2]
and [2, 3]), and the same phrase as two entries is met by standing there once.

*Progress* is the length of the longest suffix of the generated tokens that is a proper prefix of an alternative of an
entry that is not complete; 0 if there is none. So a mismatch falls back, and does not start anew.

*Bank* of a beam = the sum of the lengths of the longest alternatives of its complete entries + its progress, taken with
the last token included. All is met when every entry is complete, which is when the bank is the sum over all entries:
progress alone is always shorter than the longest alternative of an entry.

**A step**, over the running beams (at first one, the prompt, with score 0 and bank 0):

1. Scores of a beam = log-softmax of the logits, then the processors, then the ban of this search: a stop token (of
   `stop_token_ids`, or end of text unless `ignore_eos`) is -inf where all is not met with it included. Then plus the
   beam's score. A score of -inf is never a candidate.
2. Candidates = the union, without duplicates, of (a) the max(2, 1 + number of stop tokens) x num_beams best
   continuations over all beams together, as in plain beam search; (b) for each beam every token that raises its bank:
   such a token goes on with some alternative of an open entry; (c) for each beam its best token. Ties everywhere: the
   lower beam (place in the running list), then the lower token id.
3. A candidate that ends (a stop token, a stop string, a limit) while something is unmet is dropped here, before places
   are given out: it can neither finish nor run on. Stop tokens are covered by the ban, this is about the others.
4. *Pick order*: candidates sorted by (bank descending, score descending, beam, token) and dealt round-robin over the
   banks: first the best of each bank, from the highest bank to the lowest; then the second of each bank that has one,
   again from the highest; and so on until all are dealt.
5. Of the first num_beams places of the pick order, those that end finish, with score / length^length_penalty. (All of
   these are in the highest bank.) A candidate that ends further down is dropped, as in plain beam search.
6. The first num_beams of the pick order that do not end run on, in pick order.

**Around it** all is plain beam search: the best num_beams finished ones are kept (the older on a tie). The search is
over when nothing runs on, or when num_beams have finished and either `early_stopping` is true or the highest score
among the running beams (they are not in order of score) / L^length_penalty is not above the worst finished score; L =
tokens so far, or the limit for `never` with a positive length_penalty. If nothing has finished, the error is
`force_words_unmet`, whatever kept the words out: the limit, or bans that left no token; `too_few_beams` if fewer than
num_return_sequences have. With nothing to force, this is plain beam search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.strategies import BeamSearch
from tests.naive.beams import (
    Beam,
    Candidate,
    Group,
    continuations,
    is_done,
    num_candidates,
    returned,
    scores_of,
    settled,
)
from tests.naive.values import Completed, Naive

Entry = list[list[int]]  # alternatives


def entries_of(strategy: BeamSearch) -> list[Entry]:
    """Each entry as a list of alternatives."""
    return [
        [[*entry]] if isinstance(entry[0], int) else [[*alternative] for alternative in entry]
        for entry in strategy.force_words_ids
    ]


def contains(tokens: Sequence[int], phrase: Sequence[int]) -> bool:
    return any(list(tokens[at : at + len(phrase)]) == list(phrase) for at in range(len(tokens) - len(phrase) + 1))


def open_entries(entries: list[Entry], generated: Sequence[int]) -> list[Entry]:
    return [entry for entry in entries if not any(contains(generated, phrase) for phrase in entry)]


def progress(entries: list[Entry], generated: Sequence[int]) -> int:
    """Length of the longest suffix of the generated tokens with which an open alternative begins."""
    lengths = [
        length
        for entry in open_entries(entries, generated)
        for phrase in entry
        for length in range(1, min(len(phrase) - 1, len(generated)) + 1)
        if list(generated[-length:]) == phrase[:length]
    ]
    return max(lengths, default=0)


def bank(entries: list[Entry], generated: Sequence[int]) -> int:
    """Forced tokens met: complete entries count as their longest alternative."""
    still_open = open_entries(entries, generated)
    complete = [entry for entry in entries if entry not in still_open]
    return sum(max(map(len, entry)) for entry in complete) + progress(entries, generated)


def is_met(entries: list[Entry], generated: Sequence[int]) -> bool:
    return not open_entries(entries, generated)


def advancing_tokens(entries: list[Entry], generated: Sequence[int]) -> list[int]:
    """Tokens that raise the bank."""
    tokens = {token for entry in entries for phrase in entry for token in phrase}
    here = bank(entries, generated)
    return sorted(token for token in tokens if bank(entries, [*generated, token]) > here)


def constrained_beams(naive: Naive[BeamSearch]) -> list[Completed] | str:
    """Finished beams, best first, or the type of the error."""
    strategy = naive.strategy
    group, width, entries = Group(), strategy.num_beams, entries_of(strategy)
    while not is_done(naive, group, width):
        candidates = [
            one
            for one in candidates_of(naive, entries, group)
            if naive.ending(one.row) is None or is_met(entries, one.row)
        ]
        order = pick_order(entries, candidates)
        group = settled(naive, group, width, order[:width], order)
    return returned(naive, [group]) if group.finished else "force_words_unmet"


def candidates_of(naive: Naive[BeamSearch], entries: list[Entry], group: Group) -> list[Candidate]:
    """The best over all beams, what advances each beam, and the best of each beam, by score."""
    everything = continuations(group, [held_back(naive, entries, beam) for beam in group.running])
    chosen = set(everything[: num_candidates(naive, naive.strategy.num_beams)])
    for place, beam in enumerate(group.running):
        of_beam = [one for one in everything if one.beam == place]
        advancing = advancing_tokens(entries, beam.generated)
        chosen |= {one for one in of_beam if one.token in advancing} | set(of_beam[:1])
    return [one for one in everything if one in chosen]


def held_back(naive: Naive[BeamSearch], entries: list[Entry], beam: Beam) -> torch.Tensor:
    """Accumulated scores of the beam's continuations, (V,), without the stop tokens that would leave words unmet."""
    scores = scores_of(naive, beam)
    for token in naive.stop_tokens:
        if not is_met(entries, [*beam.generated, token]):
            scores[token] = -torch.inf
    return scores


def pick_order(entries: list[Entry], candidates: list[Candidate]) -> list[Candidate]:
    """Candidates, sorted by score, dealt round-robin over the banks from the highest."""
    banks: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        banks.setdefault(bank(entries, candidate.row), []).append(candidate)
    highest_first = [banks[key] for key in sorted(banks, reverse=True)]
    rounds = max(map(len, highest_first), default=0)
    return [members[turn] for turn in range(rounds) for members in highest_first if turn < len(members)]
