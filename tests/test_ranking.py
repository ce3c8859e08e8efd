"""The order of tokens against hand-made rows and a plain Python sort."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.ranking import plain_top_k, rank, top_k

INF = float("inf")
few_values = st.sampled_from([-INF, -2.0, -1.0, 0.0, 1.0, 1.5])  # few of them, so that most rows have ties
rows_of_scores = st.integers(1, 12).flatmap(
    lambda size: st.lists(st.lists(few_values, min_size=size, max_size=size), min_size=1, max_size=4)
)


def sorted_ids(scores: list[float]) -> list[int]:
    """All token ids by score descending, then id ascending."""
    return sorted(range(len(scores)), key=lambda token_id: (-scores[token_id], token_id))


def test_top_k_gives_scores_and_ids_best_first() -> None:
    values, ids = top_k(torch.tensor([[0.5, 3.0, -1.0, 2.0], [9.0, 8.0, 7.0, 6.0]]), 3)
    assert values.tolist() == [[3.0, 2.0, 0.5], [9.0, 8.0, 7.0]]
    assert ids.tolist() == [[1, 3, 0], [0, 1, 2]]


def test_ties_inside_the_list_go_by_lower_token_id() -> None:
    values, ids = top_k(torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0, 0.0]]), 5)
    assert values.tolist() == [[2.0, 2.0, 2.0, 1.0, 1.0]]
    assert ids.tolist() == [[1, 2, 4, 0, 3]]


def test_ties_across_the_border_keep_the_lower_token_ids() -> None:
    scores = torch.tensor([[1.0, 0.0, 1.0, 1.0, 5.0, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    assert top_k(scores, 3)[1].tolist() == [[4, 0, 2], [5, 4, 3]]


def test_a_row_without_any_opinion_gives_the_first_ids_where_torch_topk_gives_any() -> None:
    scores = torch.zeros(1, 1000)
    assert top_k(scores, 5)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_plain_torch_finds_the_best_of_a_long_row_in_the_blocks_that_hold_them() -> None:
    torch.manual_seed(0)
    scores = torch.randint(-3, 3, (6, 2001)).float()  # ties everywhere, and a last block of 17 tokens
    scores[scores < 0] = -INF
    scores[0] = -INF
    scores[1, 2000] = 9.0
    for k in (1, 10, 31):
        values, ids = plain_top_k(scores, k)
        assert ids.tolist() == [sorted_ids(row)[:k] for row in scores.tolist()]
        assert values.tolist() == scores.gather(-1, ids).tolist()


def test_k_of_the_vocabulary_or_more_gives_the_whole_row_in_order() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    for k in (4, 5, 100):
        values, ids = top_k(scores, k)
        assert values.tolist() == [[3.0, 3.0, 2.0, 1.0]]
        assert ids.tolist() == [[1, 2, 3, 0]]


def test_banned_tokens_come_last_and_in_order_of_their_ids() -> None:
    scores = torch.tensor([[-INF, 1.0, -INF, -INF, 2.0, -INF]])
    assert top_k(scores, 4)[1].tolist() == [[4, 1, 0, 2]]


def test_the_scores_given_are_left_as_they_are() -> None:
    scores = torch.tensor([[1.0, 1.0, 2.0, 1.0]])
    for k in (1, 2, 4):
        top_k(scores, k)[1].fill_(0)
    rank(scores, torch.tensor([0]), torch.tensor([1]))
    assert scores.tolist() == [[1.0, 1.0, 2.0, 1.0]]


def test_scores_rounded_to_bfloat16_are_ordered_as_a_plain_sort_orders_them() -> None:
    torch.manual_seed(0)
    scores = (20 + torch.randn(20, 2000)).bfloat16().float()  # eight or sixteen values per unit
    assert all(len(set(row)) < 200 for row in scores.tolist())
    for k in (1, 10, 300):
        values, ids = top_k(scores, k)
        assert ids.tolist() == [sorted_ids(row)[:k] for row in scores.tolist()]
        assert values.tolist() == scores.gather(-1, ids).tolist()


def test_rank_counts_from_one_and_ties_by_lower_token_id() -> None:
    scores = torch.tensor([[1.0, 4.0, 4.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    rows = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    tokens = torch.tensor([0, 1, 2, 3, 4, 0, 4])
    assert rank(scores, rows, tokens).tolist() == [4, 1, 2, 3, 5, 1, 5]


@settings(max_examples=200)
@given(scores=rows_of_scores, k=st.integers(1, 14))
def test_top_k_equals_a_plain_sort(scores: list[list[float]], k: int) -> None:
    values, ids = top_k(torch.tensor(scores), k)
    assert ids.tolist() == [sorted_ids(row)[:k] for row in scores]
    assert values.tolist() == [[row[token_id] for token_id in sorted_ids(row)[:k]] for row in scores]


@settings(max_examples=100)
@given(scores=rows_of_scores)
def test_rank_is_the_place_in_a_plain_sort(scores: list[list[float]]) -> None:
    pairs = [(row, token_id) for row, values in enumerate(scores) for token_id in range(len(values))]
    rows, tokens = (torch.tensor(column) for column in zip(*pairs, strict=True))
    places = [1 + sorted_ids(scores[row]).index(token_id) for row, token_id in pairs]
    assert rank(torch.tensor(scores), rows, tokens).tolist() == places
