"""Where and why each completion ended, and the text its tokens say: what needs the vocabulary.

The ending is found again from the tokens alone, by the rules of the engine: the first step that a rule of the strategy
ends must be the last one there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.overrides import REPLACED
from pipeline.proofs.columns import Problem
from pipeline.proofs.steps import Steps
from pipeline.recorded import Recorded, RecordedModel, Vocabulary
from pipeline.stops import find_stop
from pipeline.strategies import ContrastiveSearch, Decoding, NextToken, Score, Strategy, is_guided, max_steps
from pipeline.tokenizer import text_of

KEYS = (
    *("max_new_tokens", "max_length", "min_new_tokens", "stop_strings", "stop_token_ids", "ignore_eos"),
    *("guidance_scale", "negative_prompt", "negative_prompt_ids"),
)


def check_endings(steps: Steps, run: Recorded, vocabulary: Vocabulary) -> Iterator[Problem]:
    """Texts that are not those of their tokens, and completions that ended otherwise than they must."""
    strategies = {strategy.name: strategy for strategy in run.job.strategies}
    names = ("strategy", "num_prompt_tokens", "token_ids", "finish_reason", "stop_match", "text")
    kept = [column for column in run.job.strategy_columns.values() if column in run.job.input.keep_columns]
    columns = (steps.rows[name].to_pylist() for name in (*names, *kept))
    for position, row in zip(steps.positions.tolist(), zip(*columns, strict=True), strict=True):
        name, *facts, text = row[: len(names)]
        strategy = for_row(strategies[name], dict(zip(kept, row[len(names) :], strict=True)), run.job.strategy_columns)
        completion = Ended(strategy or strategies[name], *facts)
        decoded = completion.texts(vocabulary) if strategy is None else [completion.text(vocabulary)]
        if text not in decoded:
            yield Problem("text", position, f"text is {text!r:.80}, but its tokens say {decoded[0]!r:.80}")
        if strategy is not None and (problem := completion.problem(run.model, vocabulary)):
            yield Problem("endings", position, problem)


def unknown_keys(strategy: Strategy, run: Recorded) -> list[str]:
    """Keys that decide on endings and are set by columns that were not kept."""
    columns = run.job.strategy_columns
    return [key for key in _set_keys(strategy, columns) if columns[key] not in run.job.input.keep_columns]


def for_row(strategy: Strategy, row: Mapping[str, Any], columns: Mapping[str, str]) -> Strategy | None:
    """The strategy with the values of a row that decide on endings; None if one of them is not known.

    Args:
        strategy: of the job.
        row: kept column -> value; null leaves the strategy's own.
        columns: key -> column that sets it.
    """
    keys = _set_keys(strategy, columns)
    if any(columns[key] not in row for key in keys):
        return None
    values: dict[str, Any] = {}
    for key in keys:
        if row[columns[key]] is not None:
            values |= {**REPLACED.get(key, {}), key: row[columns[key]]}
    return strategy.model_copy(update=values) if values else strategy


class Ended(NamedTuple):
    """A completion and how it is said to have ended."""

    strategy: Strategy
    num_prompt_tokens: int
    token_ids: list[int]
    reason: str
    match: str | None

    def text(self, vocabulary: Vocabulary) -> str | None:
        """Text of its tokens."""
        cut, whole = self.texts(vocabulary)
        stop_token_ids = () if isinstance(self.strategy, Score) else self.strategy.stop_token_ids
        return whole if not self.token_ids or self.token_ids[-1] in stop_token_ids else cut

    def texts(self, vocabulary: Vocabulary) -> list[str | None]:
        """Its text cut before what matched, if anything did, and whole; a strategy without text has none."""
        if isinstance(self.strategy, NextToken):
            return [None, None]
        stops = (self.match, None) if self.reason == "stop" and self.token_ids else (None, None)
        return [text_of(vocabulary.token_bytes, self.token_ids, stop) for stop in stops]

    def problem(self, model: RecordedModel, vocabulary: Vocabulary) -> str | None:
        """Why it cannot have ended so, None if it can."""
        said = (len(self.token_ids), self.reason, self.match)
        if isinstance(self.strategy, Score):
            must: tuple[int, str, str | None] | None = (said[0], "scored", None)
        else:
            must = self._first_ending(self.strategy, model, vocabulary)
            if must is None and self._may_be_context(self.strategy, model):
                must = (said[0], "context", None)
        if must is not None and isinstance(self.strategy, NextToken):
            must = (*must[:2], None)  # without a text nothing is said to have matched
        if must is None:
            return f"it ended as {_worded(*said)}, but nothing ends it there"
        if said != must:
            return f"it ended as {_worded(*said)}, but must end as {_worded(*must)}"
        return None

    def _first_ending(
        self, strategy: Decoding, model: RecordedModel, vocabulary: Vocabulary
    ) -> tuple[int, str, str | None] | None:
        """The first step that a rule ends, the reason and what matched."""
        wanted, room = max_steps(strategy, self.num_prompt_tokens), self._room(strategy, model)
        limit, limit_reason = (wanted, "length") if wanted <= room else (room, "context")
        if limit < 1:
            return 0, limit_reason, None
        eos_token_ids = () if strategy.ignore_eos else model.eos_token_ids
        text = b""
        for size, token_id in enumerate(self.token_ids, start=1):
            piece = vocabulary.token_bytes[token_id]
            text += piece
            if size >= (strategy.min_new_tokens or 0):
                if token_id in eos_token_ids:
                    return size, "eos", None
                if token_id in strategy.stop_token_ids:
                    return size, "stop", vocabulary.tokens[token_id]
                if piece and (found := find_stop(text, len(piece), strategy.stop_strings)):
                    return size, "stop", found[1]
            if size >= limit:
                return size, limit_reason, None
        return None

    def _room(self, strategy: Decoding, model: RecordedModel) -> int:
        """Tokens that the model's positions leave; at least that many under a negative prompt given as text."""
        negative = len(strategy.negative_prompt_ids) if is_guided(strategy) else 0
        feeds_last = isinstance(strategy, ContrastiveSearch)
        return model.num_positions + (not feeds_last) - max(self.num_prompt_tokens, negative)

    def _may_be_context(self, strategy: Decoding, model: RecordedModel) -> bool:
        """Whether a longer negative prompt, whose length in tokens is not known here, may have ended it."""
        is_unsure = is_guided(strategy) and strategy.negative_prompt is not None
        return is_unsure and self.reason == "context" and len(self.token_ids) < self._room(strategy, model)


def _set_keys(strategy: Strategy, columns: Mapping[str, str]) -> list[str]:
    return [key for key in KEYS if key in columns and key in type(strategy).model_fields]


def _worded(size: int, reason: str, match: str | None) -> str:
    return f"`{reason}`{f' ({match!r})' if match is not None else ''} after {size} tokens"
