"""Beams that compete over one prompt, as `transformers.generate(num_beams=...)` (5.23, `_beam_search`) has them.

Per step: the best candidates over all beams, or drawn ones; those that end and are among the first become finished,
with their score divided by length ** length_penalty; the best that do not end run on. All in float32, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """State of one beam search, or of one group of a diverse one.

    Attributes:
        running: hypotheses, best first; one after the prompt, `width` later.
        scores: of the running ones, sums of processed log-probabilities.
        finished: the best `width` finished so far, best first.
    """

    strategy: BeamSearch
    ending: Ending
    running: list[Hypothesis]
    scores: list[float] = field(default_factory=lambda: [0.0])
    finished: list[Finished] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Beams that run side by side."""
        return self.strategy.num_beams // (self.strategy.num_beam_groups or 1)

    @property
    def num_candidates(self) -> int:
        """Candidates to look at per step: enough to run on with all beams even if every stop token is among them."""
        return max(2, 1 + len(self.ending.stop_token_ids)) * self.width

    def choose(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Ended]]:
        """Split candidates, none banned, into those that run on and those that finish.

        Args:
            candidates: in the order in which they may finish: best first, or as they were drawn.
        """
        running: list[Candidate] = []
        ended: list[Ended] = []
        for order, candidate in enumerate(candidates[: self.num_candidates]):
            reason = self.ending.reason(self.running[candidate.beam], candidate.token)
            if reason is None:
                running.append(candidate)
            elif order < self.width:
                ended.append(self.ended(candidate, reason))
        return sorted(running, key=lambda candidate: -candidate.score)[: self.width], ended

    def taken(self, candidates: Sequence[Candidate]) -> list[int]:
        """Tokens of the best candidates that run on, or would, were it not for the limit: diverse groups avoid them."""
        goes_on = (None, self.ending.limit_reason)
        pairs = (
            (candidate.token, self.ending.reason(self.running[candidate.beam], candidate.token))
            for candidate in candidates[: self.num_candidates]
        )
        return [token for token, reason in pairs if (reason and reason[0]) in goes_on][: self.width]

    def ended(self, candidate: Candidate, reason: tuple[str, str | int | None]) -> Ended:
        """A candidate that finishes, with its score after length penalty."""
        length = self.running[candidate.beam].num_generated + 1
        return Ended(self._penalised(candidate.score, length), candidate, reason)

    def advance(self, running: list[tuple[Candidate, Step]], finished: list[Finished]) -> None:
        """Take over what `choose` decided, with the steps it became; a search that is done has nothing running."""
        self.running = [self.ending.child(self.running[candidate.beam], step) for candidate, step in running]
        self.scores = [candidate.score for candidate, _ in running]
        merged = sorted([*self.finished, *finished], key=lambda beam: -beam.score)
        self.finished = merged[: self.width]
        if self.is_done:
            self.running = []

    @property
    def is_done(self) -> bool:
        """Whether no running beam could still improve on the finished ones."""
        if not self.running:
            return True
        if len(self.finished) < self.width:
            return False
        if self.strategy.early_stopping is True:
            return True
        longest_counts = self.strategy.early_stopping == "never" and self.strategy.length_penalty > 0
        length = self.ending.limit if longest_counts else self.running[0].num_generated
        return not self._penalised(self.scores[0], length) > self.finished[-1].score

    def _penalised(self, score: float, length: int) -> float:
        return float(np.float32(score) / np.float32(length**self.strategy.length_penalty))
