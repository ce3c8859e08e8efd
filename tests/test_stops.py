"""Stop strings against hand-made bytes and a search that tries every place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stops import find_stop


@pytest.mark.parametrize(
    ("text", "num_new", "stops", "expected"),
    [
        (b"one. two", 4, ("two", "."), (5, "two")),
        (b"one. two", 5, ("two", "."), (3, ".")),
        (b"one two", 3, ("three",), None),
        (b"abc", 3, (), None),
        (b"", 0, ("a",), None),
        (b"a", 1, ("abc",), None),
        (b"abc", 1, ("abc",), (0, "abc")),
    ],
    ids=["new", "now-inside", "absent", "no-stops", "no-text", "longer-than-the-text", "the-whole-text"],
)
def test_a_stop_must_end_in_the_new_bytes(
    text: bytes, num_new: int, stops: tuple[str, ...], expected: tuple[int, str] | None
) -> None:
    assert find_stop(text, num_new, stops) == expected


def test_a_stop_that_was_complete_before_the_new_bytes_is_not_found_again() -> None:
    assert find_stop(b"END then", 5, ("END",)) is None
    assert find_stop(b"END then", 6, ("END",)) == (0, "END")


def test_the_earliest_start_wins_whatever_the_order_of_the_stops() -> None:
    for stops in (("b", "abc"), ("abc", "b")):
        assert find_stop(b"xabc", 3, stops) == (1, "abc")


def test_of_two_stops_that_start_together_the_first_listed_wins() -> None:
    assert find_stop(b"xabc", 3, ("ab", "abc")) == (1, "ab")
    assert find_stop(b"xabc", 3, ("abc", "ab")) == (1, "abc")


def test_two_occurrences_in_the_new_bytes_give_the_first() -> None:
    assert find_stop(b"a.b.c", 5, (".",)) == (1, ".")


def test_overlapping_occurrences_give_the_first_that_ends_in_the_new_bytes() -> None:
    assert find_stop(b"aaaa", 1, ("aaa",)) == (1, "aaa")
    assert find_stop(b"aaaa", 2, ("aaa",)) == (0, "aaa")


def test_places_count_bytes_and_a_character_may_be_completed_by_its_last_byte() -> None:
    text = "é☀".encode()
    assert find_stop(text, 1, ("☀",)) == (2, "☀")
    assert find_stop(text[:-1], 1, ("☀",)) is None
    assert find_stop(b"\xff\xfe" + text, 1, ("é☀",)) == (2, "é☀")


def first_of_all(text: bytes, num_new: int, stops: list[str]) -> tuple[int, str] | None:
    """Every start, every stop, in order."""
    for start in range(len(text)):
        for stop in stops:
            end = start + len(stop.encode())
            if text[start:end] == stop.encode() and end > len(text) - num_new:
                return start, stop
    return None


@settings(max_examples=400)
@given(
    text=st.text("abé☀", max_size=12).map(str.encode),
    num_new=st.integers(0, 14),
    stops=st.lists(st.text("abé☀", min_size=1, max_size=4), max_size=4),
)
def test_find_stop_equals_a_search_that_tries_every_place(text: bytes, num_new: int, stops: list[str]) -> None:
    assert find_stop(text, num_new, stops) == first_of_all(text, num_new, stops)
