"""Rates and time left from the times of parts, by hand."""

from __future__ import annotations

import pytest

from pipeline.pace import Pace, Stored, pace_of


def every(gap: float, count: int, start: float = 1000.0, rows: int = 10, tokens: int = 200) -> list[Stored]:
    return [Stored(start + gap * index, rows, tokens) for index in range(count)]


def test_the_pace_is_what_came_after_the_first_part_by_the_time_it_took() -> None:
    assert pace_of(every(2.0, 5)) == Pace(5.0, 100.0, 2.0, (5.0, 5.0))


def test_the_order_in_which_parts_are_listed_does_not_matter() -> None:
    assert pace_of(every(2.0, 5)[::-1]) == pace_of(every(2.0, 5))


def test_three_parts_and_parts_of_the_same_time_tell_nothing() -> None:
    assert pace_of([]) is None
    assert pace_of(every(2.0, 3)) is None
    assert pace_of(every(0.0, 30)) is None


def test_what_came_before_a_long_pause_is_left_out() -> None:
    later = every(4.0, 6, start=9000.0)
    assert pace_of([*every(1.0, 20), *later]) == pace_of(later)


def test_a_gap_of_a_minute_is_no_pause_where_gaps_are_long() -> None:
    pace = pace_of([*every(30.0, 10), *every(30.0, 10, start=1000.0 + 9 * 30 + 200)])
    assert pace is not None
    assert pace.rows_per_s == 190 / (200 + 18 * 30)


def test_only_the_newest_65_parts_count() -> None:
    newest = every(2.0, 65, start=1100.0)
    assert pace_of([*every(1.0, 100), *newest]) == pace_of(newest)


def test_the_time_left_is_a_range_where_the_pace_changed() -> None:
    pace = pace_of([*every(1.0, 3), *every(2.0, 2, start=1004.0)])  # at 0, 1, 2, 4 and 6 s
    assert pace is not None
    assert pace.rows_per_s_range == (5.0, 10.0)
    assert pace.rows_per_s == pytest.approx(40 / 6)
    assert pace.eta_s(1000) == (100.0, 200.0)
