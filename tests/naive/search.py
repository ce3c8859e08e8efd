"""Which reference is whose."""

from __future__ import annotations

from typing import Any

from pipeline.strategies import BeamSearch, ContrastiveSearch, Decoding, Dola, Greedy, NextToken, Sampling
from tests.naive.beams import beams, diverse_beams
from tests.naive.constrained import constrained_beams
from tests.naive.single import contrastive, decode, dola, greedy, sampled
from tests.naive.values import Completed, Naive


def reference(naive: Naive[Any]) -> list[Completed] | str:
    """What the strategy makes of the prompt: completions, of beams the best first, or the type of the error.

    One sample of `sampling`, that of the noise given. Where `max_length` leaves nothing to generate, the completion is
    empty.
    """
    if naive.limit < 1:
        return nothing(naive)
    strategy: Decoding = naive.strategy
    match strategy:
        case Greedy() | NextToken():
            return decode(naive, greedy)
        case Sampling():
            return decode(naive, sampled)
        case ContrastiveSearch():
            return decode(naive, contrastive)
        case Dola():
            return decode(naive, dola)
        case BeamSearch(num_beam_groups=int()):
            return diverse_beams(naive)
        case BeamSearch(force_words_ids=words) if words:
            return constrained_beams(naive)
        case BeamSearch():
            return beams(naive)


def nothing(naive: Naive[Decoding]) -> list[Completed] | str:
    if not isinstance(naive.strategy, BeamSearch):
        return [naive.completed([], naive.limit_reason)]
    if naive.strategy.force_words_ids:
        return "force_words_unmet"
    return [naive.completed([], naive.limit_reason, 0.0)] * naive.strategy.num_return_sequences
