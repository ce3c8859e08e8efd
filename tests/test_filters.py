"""Filters on hand-made rows, against transformers' own in its own order, and against float64 where tokens are tied."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, GenerationMixin

from pipeline import strategies
from pipeline.engine.filters import (
    FILTERS,
    keep_epsilon,
    keep_eta,
    keep_min_p,
    keep_top_h,
    keep_top_k,
    keep_top_p,
    keep_typical,
    narrow,
)
from pipeline.strategies import Drawing, Sampling
from tests.distributions import distribution

INF = float("inf")
HALVES = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


def sampling(**values: Any) -> Sampling:
    return Sampling(name="s", type="sampling", max_new_tokens=20, **values)


def narrowed(strategy: Drawing, scores: torch.Tensor, num_kept: int = 1) -> torch.Tensor:
    """What `narrow` leaves, spread over the vocabulary again: (B, V)."""
    values, token_ids = narrow(strategy, scores, num_kept)
    spread = torch.full_like(scores, -INF)
    for row in range(len(scores)):
        is_left = values[row] > -INF
        assert token_ids[row, is_left].tolist() == sorted(set(token_ids[row, is_left].tolist()))
        spread[row, token_ids[row, is_left]] = values[row, is_left]
    return spread


def support(strategy: Drawing, scores: torch.Tensor, num_kept: int = 1) -> list[list[int]]:
    return [torch.nonzero(row > -INF)[:, 0].tolist() for row in narrowed(strategy, scores, num_kept)]


# order and shape


def test_filters_act_in_the_order_that_the_strategies_promise() -> None:
    assert ("temperature", *FILTERS) == strategies.SAMPLERS


def test_without_a_filter_every_token_is_left() -> None:
    scores, token_ids = narrow(sampling(temperature=2.0), torch.tensor([[3.0, -INF, 1.0]]))
    assert scores.tolist() == [[1.5, -INF, 0.5]]
    assert token_ids.tolist() == [[0, 1, 2]]


def test_what_is_left_is_packed_to_the_widest_row_in_the_order_of_token_ids() -> None:
    rows = torch.tensor([[0.0, 5.0, 4.9, 4.8, 0.0], [0.0, 0.0, 0.0, 0.0, 9.0]])
    scores, token_ids = narrow(sampling(min_p=0.5), rows)
    assert scores.tolist() == [rows[0, 1:4].tolist(), [9.0, -INF, -INF]]
    assert [token_ids[0].tolist(), token_ids[1, 0].item()] == [[1, 2, 3], 4]


def test_the_scores_given_are_left_as_they_are() -> None:
    scores = HALVES.clone()
    narrow(sampling(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, typical_p=0.9, epsilon_cutoff=0.1), scores)
    assert scores.tolist() == HALVES.tolist()


def test_each_filter_sees_what_the_one_before_it_left() -> None:
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # of the two best, the first has 4/7 > 0.5; of all four, only 0.4
    assert support(sampling(top_k=2, top_p=0.5), scores) == [[0]]
    # four quarters after so high a temperature; 0.4 and 0.3 before it
    assert support(sampling(temperature=1e6, top_p=0.7), scores) == [[0, 1, 2]]
    # of the best by top_p, the second has 3/7; of all four only 0.3
    assert support(sampling(top_p=0.6, epsilon_cutoff=0.35), scores) == [[0, 1]]
    # without the first, which top_h keeps alone, top_k would leave three
    assert support(sampling(top_h=0.1, top_k=3), scores) == [[0]]
    # all of equal thirds are typical; among all four the last one is farthest from the entropy
    assert support(sampling(top_k=3, typical_p=0.5), torch.tensor([[0.3, 0.3, 0.3, 0.1]]).log()) == [[0, 1]]


@pytest.mark.parametrize("values", [{"top_p": 1.0}, {"min_p": 0.0}, {"typical_p": 1.0}, {"temperature": 1.0}])
def test_a_filter_that_is_to_keep_everything_does(values: dict[str, Any]) -> None:
    # In some of these rows the sum of probabilities reaches 1 before the last token, even in float64.
    scores = 5 * torch.randn(20, 5000, generator=torch.Generator().manual_seed(0))
    assert narrow(sampling(**values), scores)[0].tolist() == scores.tolist()


# each filter by hand


def test_top_k_keeps_the_lower_token_ids_of_a_tie() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 3.0, 1.0]])
    assert keep_top_k(scores, 3, 1).tolist() == [[True, True, False, True, False]]
    assert keep_top_k(scores, 2, 4).tolist() == [[True, True, True, True, False]]
    assert keep_top_k(scores, 9, 1).all()


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    kept = {top_p: keep_top_p(HALVES, top_p, 1).sum().item() for top_p in (0.1, 0.4, 0.6, 0.74, 0.8, 0.9)}
    assert kept == {0.1: 1, 0.4: 1, 0.6: 2, 0.74: 2, 0.8: 3, 0.9: 4}


def test_top_p_reached_exactly_keeps_no_further_token() -> None:
    assert keep_top_p(torch.zeros(1, 4), 0.5, 1).tolist() == [[True, True, False, False]]


def test_top_p_always_keeps_the_best_tokens() -> None:
    scores = torch.tensor([[4.0, 5.0, 3.0], [0.0, 0.0, 0.0]])
    assert keep_top_p(scores, 1e-30, 1).tolist() == [[False, True, False], [True, False, False]]
    assert keep_top_p(scores, 1e-30, 2).tolist() == [[True, True, False], [True, True, False]]


def test_min_p_keeps_tokens_as_probable_as_its_share_of_the_best() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    assert keep_min_p(scores, 0.3, 1).tolist() == [[False, True, True], [True, True, True]]
    assert keep_min_p(scores, 1.0, 1).tolist() == [[False, False, True], [True, True, True]]
    assert keep_min_p(scores, 1.0, 2).tolist() == [[False, True, True], [True, True, True]]


def test_top_h_keeps_the_best_until_they_hold_its_share_of_the_entropy() -> None:
    # -p log2 p is 0.5, 0.5, 0.375, 0.375 bits: shares of 2/7, 4/7, 11/14 and 1.
    kept = {top_h: keep_top_h(HALVES, top_h, 1).sum().item() for top_h in (0.01, 0.3, 0.56, 0.58, 0.78, 0.79, 1.0)}
    assert kept == {0.01: 1, 0.3: 1, 0.56: 1, 0.58: 2, 0.78: 2, 0.79: 3, 1.0: 4}


def test_top_h_looks_at_the_hundred_best_alone() -> None:
    scores = torch.zeros(2, 150)
    scores[1, 149] = 1.0
    assert [row.nonzero()[:, 0].tolist() for row in keep_top_h(scores, 1.0, 1)] == [
        list(range(100)),
        [*range(99), 149],
    ]


def test_typical_keeps_the_tokens_of_the_most_usual_surprise() -> None:
    # Surprises of 1, 2, 3, 3 bits about an entropy of 1.75: the second is nearest, then the first, then the others.
    kept = {mass: keep_typical(HALVES, mass, 1)[0].nonzero()[:, 0].tolist() for mass in (0.2, 0.3, 0.7, 0.8, 0.9)}
    assert kept == {0.2: [1], 0.3: [0, 1], 0.7: [0, 1], 0.8: [0, 1, 2], 0.9: [0, 1, 2, 3]}
    assert keep_typical(HALVES, 0.2, 3).tolist() == [[True, True, True, False]]


def test_epsilon_keeps_tokens_of_that_probability_and_the_best() -> None:
    assert keep_epsilon(HALVES, 0.2, 1).tolist() == [[True, True, False, False]]
    assert keep_epsilon(HALVES, 0.9, 1).tolist() == [[True, False, False, False]]
    assert keep_epsilon(HALVES, 0.9, 2).tolist() == [[True, True, False, False]]
    assert keep_epsilon(HALVES, 0.9, 3).tolist() == [[True, True, True, True]]  # the fourth is tied with the third


def test_eta_lowers_its_threshold_where_the_entropy_is_high() -> None:
    # exp(-entropy) is 2 ** -1.75 = 0.2973: thresholds of 0.2102, 0.1407, 0.1330, 0.1190, and of 0.01 itself.
    kept = {eta: keep_eta(HALVES, eta, 1).sum().item() for eta in (0.5, 0.224, 0.2, 0.16, 0.01)}
    assert kept == {0.5: 2, 0.224: 2, 0.2: 2, 0.16: 4, 0.01: 4}
    assert keep_eta(HALVES, 0.99, 1).tolist() == [[True, False, False, False]]
    assert keep_eta(HALVES, 0.99, 2).tolist() == [[True, True, False, False]]


# banned tokens and ties

ALONE: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_h": {"top_h": 0.6},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "typical_p": {"typical_p": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 0.1},
    "eta_cutoff": {"eta_cutoff": 0.3},
}


def test_every_sampler_is_tested_alone() -> None:
    assert tuple(ALONE) == strategies.SAMPLERS


@pytest.mark.parametrize("values", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("num_kept", [1, 3])
def test_banned_tokens_stay_banned_and_change_nothing_for_others(values: dict[str, Any], num_kept: int) -> None:
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(3))
    with_holes = torch.full((3, 40), -INF)
    with_holes[:, ::2] = scores
    left = narrowed(sampling(**values), scores, num_kept)
    assert narrowed(sampling(**values), with_holes, num_kept)[:, ::2].tolist() == left.tolist()
    with_holes[1] = -INF
    beside = narrowed(sampling(**values), with_holes, num_kept)
    assert beside[1].tolist() == [-INF] * 40
    assert beside[[0, 2], ::2].tolist() == left[[0, 2]].tolist()


@pytest.mark.parametrize("values", ALONE.values(), ids=ALONE)
def test_a_row_with_one_token_left_keeps_it(values: dict[str, Any]) -> None:
    scores = torch.tensor([[-INF, -INF, 3.0, -INF]])
    assert support(sampling(**values), scores) == support(sampling(**values), scores, 3) == [[2]]


@pytest.mark.parametrize("key", [key for key in ALONE if key not in ("temperature", "top_k")])
def test_rows_with_few_tokens_or_none_do_not_widen_what_is_looked_at(key: str) -> None:
    scores = torch.full((3, 40), -INF)
    scores[0, :2] = torch.tensor([5.0, 0.0])
    scores[1, 7] = 1.0
    assert narrow(sampling(**ALONE[key]), scores, 3)[0].shape[1] <= 3


@pytest.mark.parametrize("values", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("num_kept", [1, 3])
def test_tokens_tied_in_bfloat16_go_by_lower_id(values: dict[str, Any], num_kept: int) -> None:
    scores = (20 + torch.randn(8, 3000, generator=torch.Generator().manual_seed(5))).bfloat16().float()
    assert all(len(set(row)) < 200 for row in scores.tolist())
    expected = [distribution(sampling(**values), row, num_kept).nonzero()[0].tolist() for row in scores]
    assert support(sampling(**values), scores, num_kept) == expected


@pytest.mark.parametrize("key", ["top_p", "typical_p"])
def test_peaked_and_flat_rows_together_keep_what_each_keeps_alone(key: str) -> None:
    # From a few tokens that reach the threshold to more than any first look holds.
    noise = torch.randn(1, 6000, generator=torch.Generator().manual_seed(7))
    scores = noise * torch.tensor([[0.1], [6.0], [2.5], [1.0], [4.0]])
    strategy = sampling(**{key: 0.9})
    together = support(strategy, scores)
    assert together == [support(strategy, row[None])[0] for row in scores]
    assert together == [distribution(strategy, row).nonzero()[0].tolist() for row in scores]
    sizes = sorted(len(row) for row in together)
    assert sizes[0] < 256 < sizes[2] < 2048 < sizes[-1]


# transformers


def by_transformers(strategy: Sampling, scores: torch.Tensor, num_kept: int) -> torch.Tensor:
    """What transformers' warpers, chosen and ordered by transformers, leave of rows, (B, V)."""
    samplers = {key: getattr(strategy, key) for key in strategies.SAMPLERS}
    config = GenerationConfig(do_sample=True, **{**samplers, "top_k": strategy.top_k or 0}, num_beams=min(2, num_kept))
    config._eos_token_tensor = torch.arange(num_kept - 1)  # under beams it keeps one more than there are EOS tokens
    model = GenerationMixin()
    model.config = SimpleNamespace(is_encoder_decoder=False)
    return model._get_logits_processor(config, input_ids_seq_length=1, model_kwargs={})(None, scores)


@settings(max_examples=200)
@given(
    strategy=st.builds(
        sampling,
        temperature=st.sampled_from([0.3, 1.0, 2.5]),
        top_h=st.none() | st.floats(0.01, 0.99),
        top_k=st.none() | st.integers(1, 40),
        top_p=st.none() | st.floats(0.01, 1),
        min_p=st.none() | st.floats(0, 1),
        typical_p=st.none() | st.floats(0.01, 1),
        epsilon_cutoff=st.none() | st.floats(0.001, 0.9),
        eta_cutoff=st.none() | st.floats(0.001, 0.9),
    ),
    width=st.integers(5, 150),
    num_kept=st.integers(1, 4),
    num_banned=st.integers(0, 4),
    seed=st.integers(0, 10_000),
)
def test_any_filters_together_leave_what_transformers_leaves(
    strategy: Sampling, width: int, num_kept: int, num_banned: int, seed: int
) -> None:
    scores = 3 * torch.randn(4, width, generator=torch.Generator().manual_seed(seed))  # without ties
    scores[:, torch.arange(num_banned) * width // 5] = -INF
    expected = by_transformers(strategy, scores, num_kept)
    assert narrowed(strategy, scores, num_kept).tolist() == expected.tolist()


@settings(max_examples=200)
@given(
    key=st.sampled_from(list(ALONE)),
    rows=st.lists(
        st.lists(st.sampled_from([-INF, -1.5, 0.0, 0.5, 2.0]), min_size=6, max_size=6).filter(
            lambda row: max(row) > -INF
        ),
        min_size=1,
        max_size=4,
    ),
    num_kept=st.integers(1, 3),
)
def test_tied_tokens_are_kept_as_float64_keeps_them(key: str, rows: list[list[float]], num_kept: int) -> None:
    expected = [distribution(sampling(**ALONE[key]), row, num_kept).nonzero()[0].tolist() for row in rows]
    assert support(sampling(**ALONE[key]), torch.tensor(rows), num_kept) == expected
