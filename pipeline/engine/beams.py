"""Beam search over one prompt, as `transformers.generate(num_beams=...)` (5.23, `_beam_search`) decides it.

Per step: the best candidates over all beams; those that end and are among the first num_beams become finished, with
their score divided by length ** length_penalty; the best that do not end run on. All in float32, as there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipeline.engine.hypothesis import Ending, Hypothesis, Step
from pipeline.strategies import BeamSearch


class Candidate(NamedTuple):
    """A possible next token: `beam` indexes the running beams, `score` is the sum of processed log-probabilities."""

    score: float
    beam: int
    token: int


class Ended(NamedTuple):
    """A candidate that ends its beam here; `score` is after length penalty."""

    score: float
    candidate: Candidate
    reason: tuple[str, str | int | None]


class Finished(NamedTuple):
    """A completed beam and its last step."""

    score: float
    step: Step
    reason: tuple[str, str | int | None]


@dataclass(slots=True)
class Beams:
    """State of one beam search.

    Attributes:
        running: hypotheses, best first; one after the prompt, num_beams later.
        scores: of the running ones, sums of processed log-probabilities.
        finished: the best num_beams finished so far, best first.
    """

    strategy: BeamSearch
    ending: Ending
    running: list[Hypothesis]
    scores: list[float] = field(default_factory=lambda: [0.0])
    finished: list[Finished] = field(default_factory=list)

    @property
    def num_candidates(self) -> int:
        """Candidates to look at per step: enough to run on with num_beams even if every stop token is among them."""
        return max(2, 1 + len(self.ending.stop_token_ids)) * self.strategy.num_beams

    def choose(self, candidates: list[Candidate]) -> tuple[list[Candidate], list[Ended]]:
        """Sort candidates, best first and none banned, into those that run on and those that finish."""
        width = self.strategy.num_beams
        is_full = self.strategy.early_stopping is True and len(self.finished) == width
        running: list[Candidate] = []
        ended: list[Ended] = []
        for order, candidate in enumerate(candidates[: self.num_candidates]):
            parent = self.running[candidate.beam]
            reason = self.ending.reason(parent, candidate.token)
            if reason is None:
                running.append(candidate)
            elif order < width and not is_full:
                ended.append(Ended(self._penalised(candidate.score, parent.num_generated + 1), candidate, reason))
        return running[:width], ended

    def advance(self, running: list[tuple[Candidate, Step]], finished: list[Finished]) -> None:
        """Take over what `choose` decided, with the steps it became."""
        self.running = [self.ending.child(self.running[candidate.beam], step) for candidate, step in running]
        self.scores = [candidate.score for candidate, _ in running]
        merged = sorted([*self.finished, *finished], key=lambda beam: -beam.score)
        self.finished = merged[: self.strategy.num_beams]

    @property
    def is_done(self) -> bool:
        """Whether no running beam could still improve on the finished ones."""
        if not self.running:
            return True
        if len(self.finished) < self.strategy.num_beams:
            return False
        if self.strategy.early_stopping is True:
            return True
        longest_counts = self.strategy.early_stopping == "never" and self.strategy.length_penalty > 0
        length = self.ending.limit if longest_counts else self.running[0].num_generated
        return not self._penalised(self.scores[0], length) > self.finished[-1].score

    def _penalised(self, score: float, length: int) -> float:
        return float(np.float32(score) / np.float32(length**self.strategy.length_penalty))
