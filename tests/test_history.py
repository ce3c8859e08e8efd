"""Questions about rows of uneven length, with hand-made rows: what lies behind a row's end never counts."""

from __future__ import annotations

import torch

from pipeline.engine.history import are_begun, by_length, count, repeated, span

CPU = torch.device("cpu")
ROWS = torch.tensor([[5, 6, 5, 5, 7, 6], [8, 9, 8, 1, 1, 1]])
LENGTHS = torch.tensor([6, 3])


def test_a_span_holds_its_tokens_and_no_other() -> None:
    start, end = torch.tensor([2, 1]), torch.tensor([5, 3])
    assert span(ROWS, start, end).tolist() == [[5, 5, 5, 5, 7, 5], [9, 9, 8, 9, 9, 9]]


def test_an_empty_span_holds_one_token_that_counts_as_none() -> None:
    start = torch.tensor([6, 3])  # for the first row that is past the tensor
    tokens, counts = count(ROWS, start, LENGTHS)
    assert [len(set(row)) for row in tokens.tolist()] == [1, 1]
    assert counts.tolist() == [[0] * 6] * 2


def test_tokens_are_counted_inside_the_span_only() -> None:
    tokens, counts = count(ROWS, torch.tensor([1, 0]), LENGTHS)
    assert tokens.tolist() == [[6, 6, 5, 5, 7, 6], [8, 9, 8, 8, 8, 8]]
    assert counts.tolist() == [[2, 2, 2, 2, 1, 2], [2, 1, 2, 2, 2, 2]]


def test_an_ngram_is_repeated_where_its_beginning_is_what_the_row_ends_in() -> None:
    last_tokens, is_repeated = repeated(ROWS, LENGTHS, 2)
    assert last_tokens.tolist() == [[6, 5, 5, 7, 6], [9, 8, 1, 1, 1]]
    assert is_repeated.tolist() == [[False, True, False, False, False], [True, False, False, False, False]]


def test_phrases_are_sorted_by_length_and_made_once() -> None:
    phrases = ((1, 2), (3,), (4, 5))
    two, one = by_length(phrases, CPU)
    assert [table.tolist() for table in two] == [[[1], [4]], [2, 5], [0, 2]]
    assert [table.tolist() for table in one] == [[[]], [3], [1]]
    assert by_length(phrases, CPU) is by_length(((1, 2), (3,), (4, 5)), CPU)


def test_a_phrase_is_begun_where_the_row_ends_in_all_but_its_last_token() -> None:
    phrases = by_length(((7, 6, 1), (9, 8, 1), (6, 9, 1), (8,), (8, 9, 8, 2)), CPU)
    begun = [are_begun(ROWS, LENGTHS, same).tolist() for same in phrases]
    assert begun == [[[True, False, False], [False, True, False]], [[True], [True]], [[False], [True]]]


def test_no_phrase_is_begun_on_a_row_shorter_than_its_beginning() -> None:
    rows, lengths = torch.tensor([[4, 0, 0], [4, 4, 0]]), torch.tensor([1, 2])
    (phrase,) = by_length(((4, 4, 5),), CPU)
    assert are_begun(rows, lengths, phrase).tolist() == [[False], [True]]
