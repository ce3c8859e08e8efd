"""From a request to the units that run for it: how many rows, where they end, what slots and positions they need."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from pipeline.engine.allowed_words import allowed_words
from pipeline.engine.beam_search import beam_groups, words_unmet
from pipeline.engine.contrastive import Contrastive
from pipeline.engine.forced_words import forced_words
from pipeline.engine.hypothesis import Ending, completion
from pipeline.engine.single import Single
from pipeline.engine.turn import State, Unit
from pipeline.records import Completion, Request, RowError
from pipeline.strategies import BeamSearch, ContrastiveSearch, Decoding, Score, is_guided, kind, max_steps, num_slots


class Limits(NamedTuple):
    """What the model and its tokenizer set.

    Attributes:
        token_bytes: of every token id; b"" for special ones.
        num_positions: longest context.
    """

    eos_token_ids: frozenset[int]
    token_bytes: list[bytes]
    num_positions: int


def make_units(index: int, request: Request, num_alternatives: int, limits: Limits) -> list[Unit]:
    """Units of the request with this index, none for one that only scores; a unit without a token to generate has its
    `result`."""
    strategy = request.strategy
    if isinstance(strategy, Score):
        return []
    prompts = _prompts(request.prompt_token_ids, strategy)
    runs_last = isinstance(strategy, ContrastiveSearch)  # everywhere else the last token is never fed
    before = max(map(len, prompts)) - (not runs_last)
    ending = _ending(strategy, len(request.prompt_token_ids), limits.num_positions - before, limits)
    slots, positions = num_slots(strategy), before + ending.limit
    units = [Unit(index, prompts, slots, positions, state) for state in _states(request, strategy, ending)]
    if ending.limit < 1:
        for unit in units:
            unit.result = _nothing(strategy, ending, num_alternatives, len(request.seeds) // len(units))
    return units


def _nothing(
    strategy: Decoding, ending: Ending, num_alternatives: int, num_completions: int
) -> tuple[Completion, ...] | RowError:
    """The result of a unit whose limit leaves no token to generate."""
    if ending.forced_words:
        return words_unmet(ending)
    score = 0.0 if isinstance(strategy, BeamSearch) else None
    is_drawn = not isinstance(strategy, BeamSearch | ContrastiveSearch)
    reason = (ending.limit_reason, None)
    return (completion(None, num_alternatives, reason, is_drawn=is_drawn, sequence_score=score),) * num_completions


def _prompts(prompt: tuple[int, ...], strategy: Decoding) -> tuple[tuple[int, ...], ...]:
    """The prompt, and under guidance the negative one: by default the last token, as in transformers."""
    return (prompt, strategy.negative_prompt_ids or prompt[-1:]) if is_guided(strategy) else (prompt,)


def _ending(strategy: Decoding, num_prompt_tokens: int, room: int, limits: Limits) -> Ending:
    """When the request ends; `room` is what the model's positions leave."""
    wanted = max_steps(strategy, num_prompt_tokens)
    ending = Ending(
        strategy=strategy,
        kind=kind(strategy),
        eos_token_ids=frozenset() if strategy.ignore_eos else limits.eos_token_ids,
        num_prompt_tokens=num_prompt_tokens,
        limit=min(wanted, room),
        limit_reason="length" if wanted <= room else "context",
        token_bytes=limits.token_bytes,
        longest_stop=max((len(stop.encode()) for stop in strategy.stop_strings), default=0),
    )
    if strategy.allowed_words_ids:
        words = allowed_words(strategy.allowed_words_ids, ending.stop_token_ids)
        ending = replace(ending, allowed_words=words)
    if isinstance(strategy, BeamSearch) and strategy.force_words_ids:
        ending = replace(ending, forced_words=forced_words(strategy.force_words_ids))
    return ending


def _states(request: Request, strategy: Decoding, ending: Ending) -> list[State]:
    """What each unit keeps: all beams in one unit, every sample in its own."""
    match strategy:
        case BeamSearch():
            return [beam_groups(strategy, ending, request.seeds[0])]
        case ContrastiveSearch():
            return [Contrastive(strategy, ending)]
        case _:
            return [Single(ending, seed) for seed in request.seeds]
