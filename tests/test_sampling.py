"""Draws against their distribution, noise against a plain numpy version of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from pipeline.engine.sampling import branch, gumbel, sample
from pipeline.strategies import SAMPLERS, Sampling
from tests.distributions import distribution

INF = float("inf")
NUM_DRAWS = 20_000
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "temperature": {"temperature": 0.6},
    "high_temperature": {"temperature": 3.0},
    "top_h": {"top_h": 0.7},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 0.02},
    "eta_cutoff": {"eta_cutoff": 0.1},
    "temperature_and_top_k": {"temperature": 1.7, "top_k": 12},
    "top_k_and_top_p": {"top_k": 12, "top_p": 0.9},
    "top_p_and_min_p": {"top_p": 0.9, "min_p": 0.2},
    "all": {
        "temperature": 1.5,
        "top_h": 0.95,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "epsilon_cutoff": 0.02,
        "eta_cutoff": 0.02,
    },
}


def sampling(**values: Any) -> Sampling:
    return Sampling(name="s", type="sampling", max_new_tokens=20, **values)


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser as written down for a reader: on unsigned integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def numpy_gumbel(seed: int, step: int, token_ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
    key = mix(mix(np.array([seed], np.uint64) + GOLDEN) ^ np.uint64(step))
    bits = mix(key + np.asarray(token_ids, np.uint64) * GOLDEN)
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


# draws


def test_top_p_of_one_keeps_every_token() -> None:
    # In float32 the probability of the best token here is 1, as is that of all but the last few of GPT-2's vocabulary
    # together; what came after was lost. Its noise makes the rare token win.
    scores = torch.tensor([[-18.0, 0.0]])
    tokens, logprobs = sample(sampling(top_p=1.0), scores, torch.tensor([LUCKY_SEED]), torch.tensor([0]))
    assert tokens.tolist() == [0]
    np.testing.assert_allclose(logprobs, [-18.0], atol=1e-6)


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


@pytest.mark.parametrize("values", FILTERS.values(), ids=FILTERS)
def test_log_sum_exps_that_are_known_change_no_draw(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    scores, seeds, steps = torch.randn(50, 40), torch.arange(50), torch.arange(50)
    known = sample(sampling(**values), scores, seeds, steps, scores.logsumexp(-1))
    tokens, logprobs = sample(sampling(**values), scores, seeds, steps)
    assert known[0].tolist() == tokens.tolist()
    torch.testing.assert_close(known[1], logprobs, atol=1e-6, rtol=1e-6)


def test_every_sampler_is_drawn_from_alone_and_among_all() -> None:
    assert set(SAMPLERS) <= set(FILTERS)
    assert tuple(FILTERS["all"]) == SAMPLERS


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
    for values in (
        {"top_h": 0.7},
        {"top_k": 20},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"typical_p": 0.6},
        {"epsilon_cutoff": 0.02},
        {"eta_cutoff": 0.1},
        {"top_k": 30, "top_p": 0.8, "min_p": 0.1},
    ):
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
        assert beside[1][1] == -INF
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


# branches


def test_branch_zero_has_the_seed_of_the_row() -> None:
    seeds = torch.tensor([0, 70, 2**62, 2**63 - 1])
    assert branch(seeds, torch.zeros(4, dtype=torch.int64)).tolist() == seeds.tolist()


def test_branches_of_near_rows_never_share_a_seed() -> None:
    seeds, index = torch.meshgrid(torch.arange(300), torch.arange(64), indexing="ij")
    branches = branch(seeds.flatten(), index.flatten())
    assert len(set(branches.tolist())) == 300 * 64


def test_branches_equal_the_numpy_version() -> None:
    seeds, index = np.array([0, 3, 3, 2**63 - 1], np.uint64), np.array([1, 1, 2, 63], np.uint64)
    expected = mix(mix(seeds ^ np.uint64(0xD1B54A32D192ED03)) + index * GOLDEN).astype(np.int64)
    branches = branch(torch.from_numpy(seeds.astype(np.int64)), torch.from_numpy(index.astype(np.int64)))
    assert branches.tolist() == expected.tolist()


def test_branches_have_unrelated_noise() -> None:
    num = 400
    steps = torch.zeros(num, dtype=torch.int64)
    ids = torch.arange(num).expand(num, -1)
    seeds = torch.arange(num)
    own, first, second = (gumbel(branch(seeds, torch.full((num,), i)), steps, ids).numpy() for i in range(3))
    one_row = gumbel(branch(torch.full((num,), 70), torch.arange(num)), steps, ids).numpy()
    later = gumbel(seeds, steps + 1, ids).numpy()
    bound = 4.5 / num  # 4.5 standard deviations of a correlation over num * num pairs
    pairs = [(own, first), (own, second), (first, second), (first, later), (second, later)]
    pairs += [(noise[:-lag], noise[lag:]) for noise in (first, one_row) for lag in (1, 2, 7)]
    pairs += [(noise[:, :-lag], noise[:, lag:]) for noise in (first, one_row) for lag in (1, 2, 7)]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < bound


def test_draws_of_two_branches_of_a_row_are_independent_and_follow_the_distribution() -> None:
    logits = torch.randn(5, generator=torch.Generator().manual_seed(2))
    seeds, steps = torch.arange(NUM_DRAWS), torch.full((NUM_DRAWS,), 7)
    draws = [
        sample(sampling(), logits.expand(NUM_DRAWS, -1), branch(seeds, torch.full_like(seeds, index)), steps)[0]
        for index in (0, 1, 2)
    ]
    for tokens in draws:
        assert chi_square(tokens, distribution(sampling(), logits)) > 1e-4
    for a, b in ((0, 1), (0, 2), (1, 2)):
        table = np.histogram2d(draws[a].numpy(), draws[b].numpy(), bins=5)[0]
        assert stats.chi2_contingency(table).pvalue > 1e-4
