"""Which tokens may come next in a completion that is made of given words alone."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.engine.allowed_words import AllowedWords, Place, allowed_words

STOP = 9
WORDS = AllowedWords([(1,), (1, 2), (3, 4, 5), (4,)], [STOP])


def after(*tokens: int, words: AllowedWords = WORDS) -> Place:
    place = words.start
    for token in tokens:
        place = words.next(place, token)
    return place


def is_made_of(tokens: Sequence[int], phrases: Sequence[Sequence[int]]) -> bool:
    return not tokens or any(
        list(tokens[: len(phrase)]) == list(phrase) and is_made_of(tokens[len(phrase) :], phrases) for phrase in phrases
    )


def test_a_completion_begins_with_the_beginning_of_a_word_and_does_not_end_there() -> None:
    assert WORDS.allowed(after()) == {1, 3, 4}


def test_inside_a_word_only_its_next_token_is_allowed() -> None:
    assert WORDS.allowed(after(3)) == {4}
    assert WORDS.allowed(after(3, 4)) == {5}


def test_after_a_word_another_one_begins_or_the_completion_ends() -> None:
    assert WORDS.allowed(after(3, 4, 5)) == {1, 3, 4, STOP}


def test_a_word_that_begins_another_may_be_read_both_ways() -> None:
    assert WORDS.allowed(after(1)) == {1, 2, 3, 4, STOP}
    assert WORDS.allowed(after(1, 2)) == {1, 3, 4, STOP}


def test_without_stop_tokens_there_is_always_another_word() -> None:
    words = AllowedWords([(1, 2)], [])
    assert words.allowed(after(1, 2, words=words)) == {1}


def test_a_forced_token_of_no_word_leaves_the_place_as_it_is() -> None:
    assert after(3, 7) == after(3)
    assert after(7) == WORDS.start


def test_every_allowed_walk_is_made_of_whole_words_and_the_beginning_of_one() -> None:
    phrases = [(1,), (1, 2), (2, 1, 1), (2, 2)]
    words = AllowedWords(phrases, [STOP])
    walks: list[tuple[int, ...]] = [()]
    for _ in range(6):
        walks = [(*walk, token) for walk in walks for token in words.allowed(after(*walk, words=words)) - {STOP}]
        for walk in walks:
            ends = STOP in words.allowed(after(*walk, words=words))
            assert ends == is_made_of(walk, phrases)
            assert any(is_made_of((*walk, *phrase[n:]), phrases) for phrase in phrases for n in range(len(phrase) + 1))


def test_the_words_of_a_strategy_are_built_once() -> None:
    assert allowed_words(((1,), (2, 3)), (STOP,)) is allowed_words(((1,), (2, 3)), (STOP,))
