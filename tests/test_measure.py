"""What is recorded of a step, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.engine.measure import measure, score, token_logprobs

HALVES = [0.125, 0.5, 0.25, 0.125]  # probabilities with whole numbers of bits


def logits_of(*rows: list[float], shift: float = 0.0) -> torch.Tensor:
    return torch.tensor(rows).log() + shift


def test_a_distribution_is_summarised_by_entropy_best_and_top_tokens() -> None:
    measures = measure(logits_of(HALVES, [0.25] * 4, shift=3.0), 3)
    np.testing.assert_allclose(measures.log_normalisers, [3.0, 3.0], atol=1e-6)
    np.testing.assert_allclose(measures.entropies, [1.75 * math.log(2), 2 * math.log(2)], atol=1e-6)
    assert measures.best.tolist() == [1, 0]
    assert measures.top_token_ids.tolist() == [[1, 2, 0], [0, 1, 2]]
    np.testing.assert_allclose(measures.top_probs, [[0.5, 0.25, 0.125], [0.25, 0.25, 0.25]], atol=1e-6)
    assert measures.num_alternatives == 3


def test_arrays_have_the_types_of_the_output_table() -> None:
    measures = measure(logits_of(HALVES), 2)
    assert [array.dtype for array in (measures.entropies, measures.top_token_ids, measures.top_probs)] == [
        np.float32,
        np.int32,
        np.float32,
    ]


def test_no_alternatives_still_give_the_best_token() -> None:
    measures = measure(logits_of(HALVES), 0)
    assert measures.top_token_ids.shape == measures.top_probs.shape == (1, 0)
    assert measures.best.tolist() == [1]
    assert measures.num_alternatives == 0


def test_more_alternatives_than_tokens_give_them_all() -> None:
    measures = measure(logits_of(HALVES), 10)
    assert measures.top_token_ids.tolist() == [[1, 2, 0, 3]]
    np.testing.assert_allclose(measures.top_probs, [[0.5, 0.25, 0.125, 0.125]], atol=1e-6)


def test_ties_at_the_end_of_the_recorded_list_keep_the_lower_token_id() -> None:
    tied = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0]])
    assert [measure(tied, k).top_token_ids.tolist() for k in (1, 2, 3, 4)] == [
        [[1]],
        [[1, 4]],
        [[1, 4, 0]],
        [[1, 4, 0, 2]],
    ]


def test_bfloat16_rounded_logits_record_the_lowest_of_many_tied_tokens() -> None:
    logits = torch.full((1, 3000), 7.0)
    logits[0, ::2] += 0.01  # lost in bfloat16: every token is tied again
    measures = measure(logits.bfloat16().float(), 4)
    assert measures.best.tolist() == [0]
    assert measures.top_token_ids.tolist() == [[0, 1, 2, 3]]


def test_a_certain_token_has_entropy_zero_and_never_less() -> None:
    logits = torch.tensor([[150.0, 0.0, -40.0]]) + torch.arange(-100, 100)[:, None] * 0.7
    entropies = measure(logits, 1).entropies
    np.testing.assert_allclose(entropies, np.zeros(200), atol=2e-5)
    assert not np.signbit(entropies).any()


def test_entropies_are_exact_for_logits_far_from_zero() -> None:
    # GPT-2's own lie around -100. log-sum-exp minus the mean logit lost three digits there: it was wrong by 0.001.
    logits = torch.tensor([[-131.04, -119.64, -124.11], [-86.4, -99.25, -84.07], [140.61, 152.48, 120.61]])
    exact = logits.double().log_softmax(-1)
    np.testing.assert_allclose(measure(logits, 1).entropies, -(exact.exp() * exact).sum(-1), atol=2e-5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_row_shows_in_its_own_normaliser_only(broken: float) -> None:
    measures = measure(torch.tensor([[0.0, broken], [0.0, 0.0]]), 1)
    assert torch.isfinite(measures.log_normalisers).tolist() == [False, True]
    np.testing.assert_allclose(measures.entropies[1], math.log(2), atol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 2, 4], ids="recorded-{}".format)
def test_chosen_tokens_are_scored_whether_or_not_they_are_recorded(k: int) -> None:
    logits = logits_of(HALVES, [0.25] * 4, shift=-2.0)
    rows, tokens = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 3, 0])
    logprobs, ranks = score(logits, measure(logits, k), rows, tokens)
    np.testing.assert_allclose(logprobs, np.log([0.125, 0.5, 0.25, 0.125, 0.25, 0.25]), atol=1e-6)
    assert ranks == [3, 1, 2, 4, 4, 1]


def test_target_tokens_are_scored_row_by_row() -> None:
    logprobs = token_logprobs(logits_of(HALVES, HALVES[::-1], shift=5.0), torch.tensor([1, 1]))
    np.testing.assert_allclose(logprobs, np.log([0.5, 0.25]), atol=1e-6)
