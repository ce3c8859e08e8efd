"""What a completion holds of the words that are forced on it."""

from __future__ import annotations

import itertools

import pytest

from pipeline.engine.forced_words import ForcedWords, Progress, forced_words

WORDS = ForcedWords((((1, 2, 3),), ((4,), (5, 6))))


def after(*tokens: int, words: ForcedWords = WORDS) -> Progress:
    progress = words.start
    for token in tokens:
        progress = words.next(progress, token)
    return progress


@pytest.mark.parametrize(
    ("tokens", "done", "suffix", "num_met"),
    [
        ((), set(), (), 0),
        ((1, 2), set(), (1, 2), 2),
        ((1, 2, 3), {0}, (), 3),
        ((1, 2, 9), set(), (), 0),
        ((1, 2, 1), set(), (1,), 1),
        ((5,), set(), (5,), 1),
        ((5, 6), {1}, (), 2),
        ((4,), {1}, (), 2),  # an entry counts as its longest alternative
        ((4, 5, 6), {1}, (), 2),
        ((1, 2, 3, 4), {0, 1}, (), 5),
        ((1, 2, 3, 1, 2, 3), {0}, (), 3),
    ],
)
def test_progress_is_the_entries_that_occurred_and_the_longest_open_beginning(
    tokens: tuple[int, ...], done: set[int], suffix: tuple[int, ...], num_met: int
) -> None:
    progress = after(*tokens)
    assert progress == Progress(frozenset(done), suffix)
    assert WORDS.num_met(progress) == num_met
    assert WORDS.is_met(progress) == (done == {0, 1})


def test_a_mismatch_falls_back_to_what_still_fits() -> None:
    words = ForcedWords((((1, 1, 2),),))
    assert words.is_met(after(1, 1, 1, 2, words=words))


def test_occurrences_may_overlap() -> None:
    words = ForcedWords((((1, 2),), ((2, 3),)))
    assert words.is_met(after(1, 2, 3, words=words))


def test_a_phrase_inside_another_one_that_is_begun_counts() -> None:
    words = ForcedWords((((1, 2, 3),), ((2,),)))
    assert after(1, 2, words=words) == Progress(frozenset({1}), (1, 2))


def test_tokens_that_advance_are_those_that_raise_what_is_met() -> None:
    assert WORDS.advancing(after()) == [1, 4, 5]
    assert WORDS.advancing(after(1)) == [2, 4]  # 5 would begin a phrase and lose what 1 began
    assert WORDS.advancing(after(1, 2)) == [3]
    assert WORDS.advancing(after(1, 2, 3)) == [4, 5]
    assert WORDS.advancing(after(1, 2, 3, 4)) == []


def test_progress_knows_exactly_the_entries_that_a_completion_contains() -> None:
    entries = (((1, 2, 1),), ((2, 2), (1, 1, 1)), ((2,),))
    words = ForcedWords(entries)
    for tokens in itertools.product((1, 2, 3), repeat=6):
        held = {
            index
            for index, phrases in enumerate(entries)
            if any(tokens[at : at + len(phrase)] == phrase for phrase in phrases for at in range(len(tokens)))
        }
        assert after(*tokens, words=words).done == held


def test_a_phrase_alone_is_an_entry_with_one_alternative() -> None:
    assert forced_words(((1, 2), ((3,), (4, 5)))).entries == (((1, 2),), ((3,), (4, 5)))
