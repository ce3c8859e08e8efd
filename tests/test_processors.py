"""Processors on hand-made scores, and row by row against transformers' own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import generation

from pipeline.engine.processors import (
    History,
    ban_phrases,
    ban_repeated_ngrams,
    ban_tokens,
    changes_scores,
    penalise_repetition,
    process,
)
from pipeline.strategies import Greedy, Processed

INF = float("inf")
STEPS = [4.0, 2.0, 1.0, -1.0, -2.0, -4.0]  # scores of tokens 0..5


def history(*rows: Sequence[int], pad: int = 0) -> History:
    """Rows of different length in one tensor, as the cache gives them: what lies past a row's end is stale."""
    width = max(len(row) for row in rows)
    return History(
        torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows]), torch.tensor([len(row) for row in rows])
    )


def scores_for(rows: int) -> torch.Tensor:
    return torch.tensor([STEPS] * rows)


def banned(scores: torch.Tensor) -> list[list[int]]:
    """Banned tokens of each row; every other score must still be what it was."""
    tokens = [[token for token, value in enumerate(row) if value == -INF] for row in scores.tolist()]
    for row, without in zip(scores.tolist(), tokens, strict=True):
        assert all(row[token] == STEPS[token] for token in range(len(STEPS)) if token not in without)
    return tokens


def greedy(**values: Any) -> Greedy:
    return Greedy(name="g", type="greedy", max_new_tokens=20, **values)


def test_repetition_penalty_divides_positive_and_multiplies_negative_scores_of_seen_tokens() -> None:
    penalised = penalise_repetition(scores_for(1), history([0, 1, 4]), 2.0)
    assert penalised.tolist() == [[2.0, 1.0, 1.0, -1.0, -4.0, -4.0]]


def test_repetition_penalty_acts_once_however_often_a_token_was_seen() -> None:
    assert penalise_repetition(scores_for(1), history([0, 0, 0, 5, 5]), 2.0).tolist() == [
        [2.0, 2.0, 1.0, -1.0, -2.0, -8.0]
    ]


def test_repetition_penalty_below_one_favours_seen_tokens() -> None:
    assert penalise_repetition(scores_for(1), history([0, 4]), 0.5).tolist() == [[8.0, 2.0, 1.0, -1.0, -1.0, -4.0]]


def test_repetition_penalty_does_not_see_what_lies_past_a_rows_end() -> None:
    penalised = penalise_repetition(scores_for(2), history([1], [0, 1, 2], pad=5), 2.0)
    assert penalised.tolist() == [[4.0, 1.0, 1.0, -1.0, -2.0, -4.0], [2.0, 1.0, 0.5, -1.0, -2.0, -4.0]]


@pytest.mark.parametrize(
    ("size", "tokens", "expected"),
    [
        (1, [3, 1, 3], [1, 3]),
        (2, [1, 2, 4, 1], [2]),
        (2, [1, 2, 1, 5, 1], [2, 5]),
        (2, [1, 2, 4], []),
        (2, [3, 3], [3]),
        (3, [1, 2, 5, 1, 2], [5]),
        (3, [1, 2, 5, 2, 1], []),
        (3, [4, 4, 4], [4]),
        (3, [1, 2], []),
        (4, [1], []),
    ],
)
def test_an_ngram_is_banned_once_seen(size: int, tokens: list[int], expected: list[int]) -> None:
    assert banned(ban_repeated_ngrams(scores_for(1), history(tokens), size)) == [expected]


def test_ngrams_past_a_rows_end_are_not_seen() -> None:
    rows = history([1, 2], [1, 2, 1, 2, 1], [1, 2, 0, 1], pad=1)
    assert banned(ban_repeated_ngrams(scores_for(3), rows, 2)) == [[], [2], [2]]
    assert banned(ban_repeated_ngrams(scores_for(3), rows, 1)) == [[1, 2], [1, 2], [0, 1, 2]]


def test_a_row_shorter_than_the_ngram_bans_nothing_beside_a_longer_one() -> None:
    assert banned(ban_repeated_ngrams(scores_for(2), history([4], [4, 4, 4, 4]), 3)) == [[], [4]]


def test_a_phrase_of_one_token_is_always_banned() -> None:
    assert banned(ban_phrases(scores_for(2), history([1], [1, 2, 3]), [(4,), (5,)])) == [[4, 5], [4, 5]]


def test_the_last_token_of_a_phrase_is_banned_after_the_rest_of_it() -> None:
    rows = history([1, 2], [2, 1], [0, 1, 2], [1, 2, 0])
    assert banned(ban_phrases(scores_for(4), rows, [(1, 2, 3), (2, 5), (0,)])) == [[0, 3, 5], [0], [0, 3, 5], [0]]


def test_several_phrases_with_the_same_beginning_ban_all_their_ends() -> None:
    assert banned(ban_phrases(scores_for(1), history([1]), [(1, 2), (1, 3), (1, 2)])) == [[2, 3]]


def test_a_phrase_longer_than_the_row_bans_nothing() -> None:
    # The row [4] has no two last tokens; its first one must not stand in for both.
    assert banned(ban_phrases(scores_for(2), history([4], [0, 4, 4]), [(4, 4, 5)])) == [[], [5]]


def test_a_phrase_whose_beginning_is_the_whole_row_is_banned() -> None:
    assert banned(ban_phrases(scores_for(1), history([4, 4]), [(4, 4, 5)])) == [[5]]


def test_tokens_are_banned_on_marked_rows_only() -> None:
    assert banned(ban_tokens(scores_for(3), torch.tensor([True, False, True]), (5, 0))) == [[0, 5], [], [0, 5]]


def test_process_applies_all_processors() -> None:
    strategy = greedy(repetition_penalty=2.0, no_repeat_ngram_size=2, bad_words_ids=((3,),), min_new_tokens=4)
    rows = history([2, 5, 2], [1])
    too_short = torch.tensor([False, True])
    assert process(strategy, scores_for(2), rows, too_short, (0,)).tolist() == [
        [4.0, 2.0, 0.5, -INF, -2.0, -INF],
        [-INF, 1.0, 1.0, -INF, -2.0, -4.0],
    ]


def test_a_penalty_does_not_bring_a_banned_token_back() -> None:
    strategy = greedy(repetition_penalty=0.5, bad_words_ids=((0,), (5,)))
    processed = process(strategy, scores_for(1), history([0, 5]), torch.tensor([False]), ())
    assert processed.tolist() == [[-INF, 2.0, 1.0, -1.0, -2.0, -INF]]


@pytest.mark.parametrize(
    "values",
    [{"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 1}, {"bad_words_ids": ((3,),)}, {"min_new_tokens": 4}],
    ids=lambda values: "".join(values),
)
def test_processors_leave_the_scores_they_are_given(values: dict[str, Any]) -> None:
    scores = scores_for(1)
    changed = process(greedy(**values), scores, history([0, 1]), torch.tensor([True]), (5,))
    assert scores.tolist() == [STEPS]
    assert changed.tolist() != [STEPS]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, False),
        ({"stop_token_ids": (3,), "stop_strings": ("a",), "ignore_eos": True}, False),
        ({"repetition_penalty": 1.5}, True),
        ({"no_repeat_ngram_size": 1}, True),
        ({"bad_words_ids": ((1,),)}, True),
        ({"min_new_tokens": 1}, True),
    ],
)
def test_only_penalties_and_bans_change_scores(values: dict[str, Any], expected: bool) -> None:
    assert changes_scores(greedy(**values)) is expected


def by_transformers(strategy: Processed, row: list[int], num_prompt_tokens: int, scores: torch.Tensor) -> torch.Tensor:
    """What transformers' processors make of one row without padding."""
    processors = generation.LogitsProcessorList()
    if strategy.repetition_penalty is not None:
        processors.append(generation.RepetitionPenaltyLogitsProcessor(strategy.repetition_penalty))
    if strategy.no_repeat_ngram_size is not None:
        processors.append(generation.NoRepeatNGramLogitsProcessor(strategy.no_repeat_ngram_size))
    if strategy.bad_words_ids:
        phrases = [list(phrase) for phrase in strategy.bad_words_ids]
        processors.append(generation.NoBadWordsLogitsProcessor(phrases))
    if strategy.min_new_tokens is not None:
        processors.append(
            generation.MinNewTokensLengthLogitsProcessor(num_prompt_tokens, strategy.min_new_tokens, [0, 1])
        )
    return processors(torch.tensor([row]), scores[None])[0]


tokens = st.integers(0, 5)


@settings(derandomize=True, deadline=None, database=None, max_examples=150)
@given(
    rows=st.lists(st.lists(tokens, min_size=1, max_size=10), min_size=1, max_size=4),
    strategy=st.builds(
        greedy,
        repetition_penalty=st.none() | st.sampled_from([0.7, 1.0, 1.5]),
        no_repeat_ngram_size=st.none() | st.integers(1, 4),
        bad_words_ids=st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=3, unique=True).map(tuple),
        min_new_tokens=st.none() | st.integers(1, 4),
    ),
    num_generated=st.integers(0, 5),
    pad=tokens,
    seed=st.integers(0, 1000),
)
def test_rows_of_any_length_together_equal_transformers_row_by_row(
    rows: list[list[int]], strategy: Greedy, num_generated: int, pad: int, seed: int
) -> None:
    scores = torch.randn(len(rows), 6, generator=torch.Generator().manual_seed(seed))
    generated = [min(num_generated, len(row) - 1) for row in rows]
    too_short = torch.tensor([count < (strategy.min_new_tokens or 0) for count in generated])
    processed = process(strategy, scores, history(*rows, pad=pad), too_short, (0, 1))
    for index, (row, count) in enumerate(zip(rows, generated, strict=True)):
        expected = by_transformers(strategy, row, len(row) - count, scores[index])
        assert processed[index].tolist() == expected.tolist()
