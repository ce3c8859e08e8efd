"""Hypotheses: rows of the batch, the trace of the steps behind each, and when they end.

A hypothesis is never changed: a step makes a child that points to the trace of its parent. Samples have one child,
beams may have several or none, and both are read back the same way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipeline.engine.allowed_words import AllowedWords, Place
from pipeline.engine.forced_words import ForcedWords, Progress
from pipeline.engine.measure import Measures
from pipeline.records import Completion, FloatArray, IntArray
from pipeline.stops import find_stop
from pipeline.strategies import Decoding

Reason = tuple[str, str | int | None]  # finish reason and match


class Columns(NamedTuple):
    """What is recorded of N tokens of a row, as in `Completion`: (N,) each, (N, K) of the alternatives."""

    token_ids: IntArray
    token_logprobs: FloatArray
    sampling_logprobs: FloatArray
    token_ranks: IntArray
    entropies: FloatArray
    top_token_ids: IntArray
    top_probs: FloatArray


class Stretch(NamedTuple):
    """Several generated tokens, at least one."""

    previous: Step | Stretch | None
    columns: Columns

    @property
    def token(self) -> int:
        """The newest."""
        return int(self.columns.token_ids[-1])


class Step(NamedTuple):
    """One generated token and where its step was measured: row `row` of `measures`."""

    previous: Step | Stretch | None
    measures: Measures
    row: int
    token: int
    logprob: float
    sampling_logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A running row.

    Attributes:
        slots: where its keys and values lie, or those of the parent it was just made from; under guidance a second one
            is that of its twin, which has the negative prompt in place of the prompt.
        step: the newest tokens; None right after the prompt.
        num_generated: tokens so far.
        tail: last bytes of the text, enough to find a stop string that the next token completes.
        place: where in the allowed words the completion stands.
        progress: what it holds of the forced words.
    """

    slots: tuple[int, ...]
    step: Step | Stretch | None = None
    num_generated: int = 0
    tail: bytes = b""
    place: Place | None = None
    progress: Progress | None = None

    @property
    def slot(self) -> int:
        """Its own slot."""
        return self.slots[0]

    def moved(self, slots: tuple[int, ...]) -> Hypothesis:
        """The same hypothesis in other slots."""
        return self if slots == self.slots else replace(self, slots=slots)


@dataclass(frozen=True, slots=True)
class Ending:
    """When the completions of one request end, and what they may be made of. One instance per request.

    Attributes:
        kind: of the strategy: requests of one kind choose their tokens together.
        eos_token_ids: empty under `ignore_eos`.
        num_prompt_tokens: of the request.
        limit: most tokens to generate, at least 1.
        limit_reason: `length`, or `context` if the model's positions end before the strategy's limit.
        token_bytes: of every token id; b"" for special ones.
        longest_stop: bytes of the longest stop string; 0 without any.
    """

    strategy: Decoding
    kind: Decoding
    eos_token_ids: frozenset[int]
    num_prompt_tokens: int
    limit: int
    limit_reason: str
    token_bytes: list[bytes]
    longest_stop: int
    allowed_words: AllowedWords | None = None
    forced_words: ForcedWords | None = None

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """All tokens that end a row, EOS included."""
        return tuple(sorted({*self.eos_token_ids, *self.strategy.stop_token_ids}))

    def root(self, slots: tuple[int, ...]) -> Hypothesis:
        """The hypothesis right after the prompt."""
        return Hypothesis(
            slots,
            place=self.allowed_words.start if self.allowed_words else None,
            progress=self.forced_words.start if self.forced_words else None,
        )

    def child(self, parent: Hypothesis, step: Step) -> Hypothesis:
        """The hypothesis after one more step."""
        tail = self.tail(parent.tail, step.token)
        place = self.allowed_words.next(parent.place, step.token) if self.allowed_words and parent.place else None
        progress = (
            self.forced_words.next(parent.progress, step.token) if self.forced_words and parent.progress else None
        )
        return Hypothesis(parent.slots, step, parent.num_generated + 1, tail, place, progress)

    def tail(self, tail: bytes, token: int) -> bytes:
        """`Hypothesis.tail` after one more token."""
        return (tail + self.token_bytes[token])[-self.longest_stop :] if self.longest_stop else b""

    def reason(self, parent: Hypothesis, token: int) -> Reason | None:
        """Finish reason and match if `token` ends the row after `parent`, else None."""
        return self.reason_at(parent.num_generated + 1, parent.tail, token)

    def reason_at(self, num_generated: int, tail: bytes, token: int) -> Reason | None:
        """The same of a row that has so many tokens with this one, and this tail before it."""
        if num_generated >= (self.strategy.min_new_tokens or 0):
            if token in self.eos_token_ids:
                return "eos", None
            if token in self.strategy.stop_token_ids:
                return "stop", token
            new = self.token_bytes[token] if self.longest_stop else b""
            if new and (found := find_stop(tail + new, len(new), self.strategy.stop_strings)):
                return "stop", found[1]
        return (self.limit_reason, None) if num_generated >= self.limit else None


def completion(
    last: Step | Stretch | None,
    num_alternatives: int,
    reason: Reason,
    *,
    is_drawn: bool = True,
    sequence_score: float | None = None,
) -> Completion:
    """Read a finished trace back into arrays.

    Args:
        last: the newest step; None for a completion without tokens.
        num_alternatives: K.
        reason: finish reason and match.
        is_drawn: whether each token came from a distribution of its own, which gives it a sampling_logprob.
        sequence_score: of a beam.
    """
    columns = _columns(last, num_alternatives)._asdict()
    if not is_drawn:
        columns["sampling_logprobs"] = None
    return Completion(finish_reason=reason[0], stop_match=reason[1], sequence_score=sequence_score, **columns)


def _columns(last: Step | Stretch | None, num_alternatives: int) -> Columns:
    """The trace from its first step to `last`."""
    parts: deque[Columns] = deque()
    steps: deque[Step] = deque()
    while last is not None:
        if isinstance(last, Step):
            steps.appendleft(last)
        else:
            parts.extendleft([_columns_of(steps, num_alternatives), last.columns])
            steps.clear()
        last = last.previous
    parts.appendleft(_columns_of(steps, num_alternatives))
    return Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _columns_of(steps: Collection[Step], num_alternatives: int) -> Columns:
    shape = (len(steps), num_alternatives)
    return Columns(
        token_ids=np.array([step.token for step in steps], np.int32),
        token_logprobs=np.array([step.logprob for step in steps], np.float32),
        sampling_logprobs=np.array([step.sampling_logprob for step in steps], np.float32),
        token_ranks=np.array([step.rank for step in steps], np.int32),
        entropies=np.array([step.measures.entropies[step.row] for step in steps], np.float32),
        top_token_ids=np.array([step.measures.top_token_ids[step.row] for step in steps], np.int32).reshape(shape),
        top_probs=np.array([step.measures.top_probs[step.row] for step in steps], np.float32).reshape(shape),
    )
