"""Filters on hand-made rows, draws against their distribution, noise against a plain numpy version of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from pipeline.engine.sampling import gumbel, keep_min_p, keep_top_p, sample
from pipeline.strategies import Sampling

INF = float("inf")
NUM_DRAWS = 20_000
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "temperature": {"temperature": 0.6},
    "high_temperature": {"temperature": 3.0},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "temperature_and_top_k": {"temperature": 1.7, "top_k": 12},
    "top_k_and_top_p": {"top_k": 12, "top_p": 0.9},
    "top_p_and_min_p": {"top_p": 0.9, "min_p": 0.2},
    "all": {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
}


def sampling(**values: Any) -> Sampling:
    return Sampling(name="s", type="sampling", max_new_tokens=20, **values)


def distribution(strategy: Sampling, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """What a token is drawn from, (V,), worked out token by token in float64."""
    logits = np.asarray(logits, np.float64)
    probs = np.exp((logits - logits.max()) / strategy.temperature)
    probs /= probs.sum()
    kept = sorted(range(len(probs)), key=lambda token: (-probs[token], token))[: strategy.top_k]
    if strategy.top_p is not None:
        total, before = sum(probs[token] for token in kept), 0.0
        for place, token in enumerate(kept):
            before += probs[token] / total
            if before >= strategy.top_p:
                kept = kept[: place + 1]
                break
    if strategy.min_p is not None:
        kept = [token for token in kept if probs[token] >= strategy.min_p * probs[kept[0]]]
    result = np.zeros_like(probs)
    result[kept] = probs[kept] / probs[kept].sum()
    return result


def numpy_gumbel(seed: int, step: int, token_ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The noise as written down for a reader: splitmix64's finaliser on unsigned integers."""

    def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    key = mix(mix(np.array([seed], np.uint64) + golden) ^ np.uint64(step))
    bits = mix(key + np.asarray(token_ids, np.uint64) * golden)
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(-np.log(uniform))


def noise_for(seeds: list[int], steps: list[int], num_tokens: int) -> npt.NDArray[np.float64]:
    ids = torch.arange(num_tokens).expand(len(seeds), -1)
    return gumbel(torch.tensor(seeds), torch.tensor(steps), ids).numpy()


def seed_of(bits: int) -> int:
    """The seed whose hash for step 0 and token 0 is `bits`: splitmix64's finaliser run backwards, three times."""

    def unmix(x: int) -> int:
        x ^= x >> 31 ^ x >> 62
        x = x * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
        x ^= x >> 27 ^ x >> 54
        x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
        return x ^ x >> 30 ^ x >> 60

    return (unmix(unmix(unmix(bits))) - 0x9E3779B97F4A7C15) % 2**64


# Its hash for step 0 and token 0 has 53 bits set, so that token has the largest noise there is.
LUCKY_SEED = next(seed for low in range(2**11) if (seed := seed_of(2**64 - 1 - low)) < 2**63)


# filters


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    kept = {top_p: int((keep_top_p(scores, top_p) > -INF).sum()) for top_p in (0.1, 0.4, 0.6, 0.74, 0.8, 0.9)}
    assert kept == {0.1: 1, 0.4: 1, 0.6: 2, 0.74: 2, 0.8: 3, 0.9: 4}


def test_top_p_leaves_the_scores_it_keeps() -> None:
    assert keep_top_p(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), 0.7).tolist() == [[3.0, 2.0, -INF, -INF]]


def test_top_p_reached_exactly_keeps_no_further_token() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0]])  # four quarters, exact in binary
    assert keep_top_p(scores, 0.5).tolist() == [[0.0, 0.0, -INF, -INF]]


def test_top_p_always_keeps_the_best_token() -> None:
    assert keep_top_p(torch.tensor([[5.0, 4.0], [0.0, 0.0]]), 1e-30).tolist() == [[5.0, -INF], [0.0, -INF]]


def test_min_p_keeps_tokens_as_probable_as_its_share_of_the_best() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    assert keep_min_p(scores, 0.3).tolist() == [[-INF, 1.0, 2.0], [5.0, 5.0, 5.0]]
    assert keep_min_p(scores, 1.0).tolist() == [[-INF, -INF, 2.0], [5.0, 5.0, 5.0]]
    assert keep_min_p(scores, 0.0).tolist() == scores.tolist()


def test_top_p_of_one_keeps_every_token() -> None:
    # In float32 the probability of the best token here is 1, as is that of all but the last few of GPT-2's vocabulary
    # together; what came after was lost. Its noise makes the rare token win.
    scores = torch.tensor([[-18.0, 0.0]])
    tokens, logprobs = sample(sampling(top_p=1.0), scores, torch.tensor([LUCKY_SEED]), torch.tensor([0]))
    assert tokens.tolist() == [0]
    np.testing.assert_allclose(logprobs, [-18.0], atol=1e-6)


# draws


@pytest.mark.parametrize("values", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-6}])
def test_the_narrowest_filter_is_greedy(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    scores = torch.randn(50, 30)
    tokens, logprobs = sample(sampling(**values), scores, torch.arange(50), torch.zeros(50, dtype=torch.int64))
    assert tokens.tolist() == scores.argmax(-1).tolist()
    assert logprobs.tolist() == [0.0] * 50


@pytest.mark.parametrize("values", [{"top_k": 3}, {"top_p": 0.5}])
def test_ties_at_the_border_of_a_filter_keep_the_lower_token_ids(values: dict[str, Any]) -> None:
    scores = torch.tensor([[0.0, -INF, 0.0, 0.0, 0.0, 0.0, 0.0]]).expand(500, -1)
    tokens, logprobs = sample(sampling(**values), scores, torch.arange(500), torch.zeros(500, dtype=torch.int64))
    assert set(tokens.tolist()) == {0, 2, 3}
    np.testing.assert_allclose(logprobs, -math.log(3), atol=1e-6)


def test_top_k_above_the_vocabulary_keeps_every_token() -> None:
    torch.manual_seed(0)
    scores, seeds, steps = torch.randn(50, 9), torch.arange(50), torch.arange(50)
    wide, unfiltered = (sample(sampling(**values), scores, seeds, steps) for values in ({"top_k": 100}, {}))
    assert wide[0].tolist() == unfiltered[0].tolist()
    torch.testing.assert_close(wide[1], unfiltered[1], atol=1e-6, rtol=0)


def test_the_order_of_filters_is_temperature_top_k_top_p_min_p() -> None:
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(2000, -1)
    seeds, steps = torch.arange(2000), torch.zeros(2000, dtype=torch.int64)
    drawn = {
        name: sorted(set(sample(sampling(**values), scores, seeds, steps)[0].tolist()))
        for name, values in {
            # of the two best, the first has 4/7 > 0.5; of all four, only 0.4
            "top_k first": {"top_k": 2, "top_p": 0.5},
            # four quarters after so high a temperature; 0.4 and 0.3 before it
            "temperature first": {"temperature": 1e6, "top_p": 0.7},
            # of the best by top_p, the second has 3/4 of the first
            "min_p last": {"top_p": 0.6, "min_p": 0.7},
        }.items()
    }
    assert drawn == {"top_k first": [0], "temperature first": [0, 1, 2], "min_p last": [0, 1]}


def test_a_row_draws_the_same_token_wherever_it_stands_in_the_batch() -> None:
    torch.manual_seed(0)
    scores, seeds, steps = torch.randn(40, 30), torch.randint(2**62, (40,)), torch.arange(40)
    shuffled = torch.randperm(40)
    for values in FILTERS.values():
        tokens, logprobs = sample(sampling(**values), scores, seeds, steps)
        again = sample(sampling(**values), scores[shuffled], seeds[shuffled], steps[shuffled])
        alone = [sample(sampling(**values), scores[i : i + 1], seeds[i : i + 1], steps[i : i + 1]) for i in range(40)]
        assert again[0].tolist() == tokens[shuffled].tolist() == [int(alone[i][0]) for i in shuffled]
        torch.testing.assert_close(again[1], logprobs[shuffled], atol=1e-6, rtol=0)


def test_a_filter_changes_a_draw_only_where_it_bans_the_token() -> None:
    torch.manual_seed(0)
    scores, seeds, steps = torch.randn(300, 50), torch.arange(300), torch.full((300,), 3)
    free = sample(sampling(), scores, seeds, steps)[0].tolist()
    for values in ({"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 30, "top_p": 0.8, "min_p": 0.1}):
        filtered = sample(sampling(**values), scores, seeds, steps)[0].tolist()
        support = [set(np.flatnonzero(distribution(sampling(**values), row))) for row in scores.numpy()]
        kept = [row for row, token in enumerate(free) if token in support[row]]
        assert 30 < len(kept) < 300
        assert all(filtered[row] == free[row] for row in kept)
        assert all(token in support[row] for row, token in enumerate(filtered))


def test_a_row_without_any_token_left_does_not_touch_its_neighbours() -> None:
    torch.manual_seed(0)
    scores, seeds, steps = torch.randn(3, 20), torch.arange(3), torch.zeros(3, dtype=torch.int64)
    broken = scores.clone()
    broken[1] = -INF
    for values in FILTERS.values():
        tokens, logprobs = sample(sampling(**values), scores, seeds, steps)
        beside = sample(sampling(**values), broken, seeds, steps)
        assert beside[0][[0, 2]].tolist() == tokens[[0, 2]].tolist()
        assert beside[1][[0, 2]].tolist() == logprobs[[0, 2]].tolist()


def chi_square(tokens: torch.Tensor, probs: npt.NDArray[np.float64]) -> float:
    """Probability of a deviation as large as the draws'; rare tokens are counted together."""
    counts = np.bincount(tokens.numpy(), minlength=len(probs)).astype(np.float64)
    assert counts[probs == 0].sum() == 0
    is_rare = probs * len(tokens) < 10
    observed = np.append(counts[~is_rare], counts[is_rare].sum())
    expected = np.append(probs[~is_rare], probs[is_rare].sum()) * len(tokens)
    if expected[-1] < 10:
        observed, expected = observed[:-1], expected[:-1] * observed[:-1].sum() / expected[:-1].sum()
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("values", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("varied", ["seeds", "steps"])
def test_draws_follow_the_filtered_distribution(values: dict[str, Any], varied: str) -> None:
    torch.manual_seed(1)
    logits = torch.randn(40) * 2
    logits[[3, 17]] = -INF  # banned by a processor
    counter, constant = torch.arange(NUM_DRAWS), torch.full((NUM_DRAWS,), 7)
    seeds, steps = (counter, constant) if varied == "seeds" else (constant, counter)
    tokens, logprobs = sample(sampling(**values), logits.expand(NUM_DRAWS, -1), seeds, steps)
    probs = distribution(sampling(**values), logits)
    assert (probs > 0).sum() > 1
    assert chi_square(tokens, probs) > 1e-4
    np.testing.assert_allclose(logprobs, np.log(probs[tokens.numpy()]), atol=2e-5)


def test_the_chi_square_used_here_sees_a_wrong_temperature() -> None:
    torch.manual_seed(1)
    logits = torch.randn(40) * 2
    seeds, steps = torch.arange(NUM_DRAWS), torch.full((NUM_DRAWS,), 7)
    tokens, _ = sample(sampling(temperature=1.05), logits.expand(NUM_DRAWS, -1), seeds, steps)
    assert chi_square(tokens, distribution(sampling(), logits)) < 1e-4


# noise


@pytest.mark.parametrize("seed", [0, 1, 70, 2**31, 2**62 + 12345, 2**63 - 1])
@pytest.mark.parametrize("step", [0, 1, 1023])
def test_noise_equals_the_numpy_version(seed: int, step: int) -> None:
    np.testing.assert_allclose(
        noise_for([seed], [step], 50257)[0], numpy_gumbel(seed, step, range(50257)), rtol=1e-11, atol=1e-11
    )


def test_noise_of_some_tokens_equals_theirs_among_all() -> None:
    seeds, steps = torch.tensor([3, 2**62]), torch.tensor([0, 9])
    everything = gumbel(seeds, steps, torch.arange(50257).expand(2, -1))
    some = torch.tensor([[50256, 0, 7, 1000], [5, 4, 3, 50000]])
    assert gumbel(seeds, steps, some).tolist() == everything.gather(1, some).tolist()


def test_noise_is_distributed_as_standard_gumbel() -> None:
    noise = noise_for([11], [0], 1_000_000)[0]
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.005)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.012)
    assert stats.kstest(noise[:100_000], "gumbel_r").pvalue > 1e-4


def test_neighbouring_seeds_steps_and_tokens_have_unrelated_noise() -> None:
    num = 400
    by_seed = noise_for(list(range(num)), [0] * num, num)
    by_step = noise_for([0] * num, list(range(num)), num)
    by_high_bits = noise_for([index << 53 for index in range(num)], [0] * num, num)
    bound = 4.5 / num  # 4.5 standard deviations of a correlation over num * num pairs
    for noise in (by_seed, by_step, by_high_bits):
        for lag in (1, 2, 7):
            assert abs(np.corrcoef(noise[:-lag].ravel(), noise[lag:].ravel())[0, 1]) < bound
            assert abs(np.corrcoef(noise[:, :-lag].ravel(), noise[:, lag:].ravel())[0, 1]) < bound
            assert abs(np.corrcoef(noise[:-lag, :-lag].ravel(), noise[lag:, lag:].ravel())[0, 1]) < bound
    # step s of seed 0 and step 0 of seed s must not meet
    assert abs(np.corrcoef(by_seed[1:].ravel(), by_step[1:].ravel())[0, 1]) < bound


def test_the_largest_and_smallest_hash_give_finite_noise() -> None:
    # With 53 bits of the hash, the largest and its half rounded up to a uniform of 1: infinite noise, a forced token.
    # That is one draw in 10**16, or with GPT-2's vocabulary one token in 180 billion.
    unlucky_seed = next(seed for low in range(2**11) if (seed := seed_of(low)) < 2**63)
    noise = noise_for([LUCKY_SEED, unlucky_seed], [0, 0], 1)
    np.testing.assert_allclose(noise, [[53 * math.log(2)], [-math.log(53 * math.log(2))]], rtol=1e-6)
