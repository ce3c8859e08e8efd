"""The compiled kernels against the plain torch that defines them, and how they are built."""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.engine import attention, native
from pipeline.engine.cache import LayerCache, span
from pipeline.engine.filters import plain_keep_mass, plain_pack
from pipeline.engine.linear import ACTIVATIONS, IDENTITY, Shelf, linear
from pipeline.engine.measure import plain_measure, plain_score
from pipeline.engine.native.build import library_path
from pipeline.engine.norm import Norm, plain_add_norm, plain_norm
from pipeline.engine.ranking import plain_rank, plain_top_k
from pipeline.engine.sampling import plain_draw

INF = float("inf")
KERNELS = native.kernels()
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler here")

sizes = st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33, 100, 511, 512, 513, 1000, 50257])
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
laws = settings(max_examples=60)


def random_scores(rows: int, vocab: int, seed: int, *, spread: float = 4.0, grain: float = 0.0) -> Tensor:
    """Scores, (B, V); those of a coarse `grain` are full of ties."""
    scores = torch.randn((rows, vocab), generator=torch.Generator().manual_seed(seed)) * spread
    return (scores / grain).round() * grain if grain else scores


@laws
@given(
    vocab=sizes,
    k=st.integers(1, 300),
    seed=st.integers(0, 99),
    grain=st.sampled_from([0.0, 0.5, 4.0, 100.0]),
    dtype=dtypes,
)
def test_the_best_tokens_are_those_of_plain_torch_ties_included(
    vocab: int, k: int, seed: int, grain: float, dtype: torch.dtype
) -> None:
    assert KERNELS is not None
    scores = random_scores(3, vocab, seed, grain=grain).to(dtype)
    for found, expected in zip(KERNELS.top_k(scores, min(k, vocab)), plain_top_k(scores, min(k, vocab)), strict=True):
        assert found.tolist() == expected.tolist()


@laws
@given(vocab=sizes, seed=st.integers(0, 99), banned=st.integers(0, 40))
def test_banned_tokens_come_last_in_order_of_their_ids(vocab: int, seed: int, banned: int) -> None:
    assert KERNELS is not None
    scores = random_scores(2, vocab, seed)
    scores[:, torch.randint(vocab, (banned,), generator=torch.Generator().manual_seed(seed))] = -INF
    k = min(vocab, 20)
    for found, expected in zip(KERNELS.top_k(scores, k), plain_top_k(scores, k), strict=True):
        assert found.tolist() == expected.tolist()


@laws
@given(
    vocab=sizes,
    k=st.integers(1, 20),
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.0, 0.1, 4.0, 60.0, 1e4]),
    dtype=dtypes,
)
def test_measures_agree_with_float64(vocab: int, k: int, seed: int, spread: float, dtype: torch.dtype) -> None:
    assert KERNELS is not None
    logits = (random_scores(3, vocab, seed, spread=spread) + 7).to(dtype)
    log_normalisers, entropies, token_ids, probs = KERNELS.measure(logits, min(k, vocab))
    exact = logits.double()
    logprobs = exact.log_softmax(-1)
    torch.testing.assert_close(log_normalisers.double(), exact.logsumexp(-1), rtol=2e-7, atol=1e-6)
    torch.testing.assert_close(entropies.double(), -(logprobs.exp() * logprobs).sum(-1), rtol=1e-5, atol=2e-5)
    plain = plain_measure(logits, min(k, vocab))
    torch.testing.assert_close((log_normalisers, entropies), plain[:2], rtol=1e-5, atol=2e-5)
    assert token_ids.tolist() == plain[2].tolist()
    torch.testing.assert_close(probs.double(), logprobs.exp().gather(-1, token_ids.long()), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(probs, plain[3], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("broken", [float("nan"), INF, -INF])
@pytest.mark.parametrize("place", [0, 17, 99, slice(None)], ids=["first", "inside", "last", "everywhere"])
def test_a_broken_row_has_no_finite_normaliser_and_spoils_no_other(broken: float, place: int | slice) -> None:
    assert KERNELS is not None
    logits = random_scores(3, 100, 0)
    logits[1, place] = broken
    for found in (KERNELS.measure(logits, 5)[0], plain_measure(logits, 5)[0]):
        is_fine = broken == -INF and not isinstance(place, slice)
        assert found.isfinite().tolist() == [True, is_fine, True]


@laws
@given(vocab=sizes, seed=st.integers(0, 99), grain=st.sampled_from([0.0, 1.0]), dtype=dtypes)
def test_ranks_are_those_of_plain_torch(vocab: int, seed: int, grain: float, dtype: torch.dtype) -> None:
    assert KERNELS is not None
    scores = random_scores(4, vocab, seed, grain=grain).to(dtype)
    rows = torch.tensor([3, 0, 0, 2])
    tokens = torch.randint(vocab, (4,), generator=torch.Generator().manual_seed(seed))
    assert KERNELS.rank(scores, rows, tokens).tolist() == plain_rank(scores, rows, tokens).tolist()


@laws
@given(vocab=sizes, k=st.integers(1, 20), seed=st.integers(0, 99), grain=st.sampled_from([0.0, 1.0]), dtype=dtypes)
def test_log_probabilities_and_ranks_are_those_of_plain_torch(
    vocab: int, k: int, seed: int, grain: float, dtype: torch.dtype
) -> None:
    assert KERNELS is not None
    logits = random_scores(4, vocab, seed, grain=grain).to(dtype)
    log_normalisers, _, best, _ = plain_measure(logits, min(k, vocab))
    rows = torch.tensor([3, 0, 0, 2, 1])
    tokens = torch.randint(vocab, (5,), generator=torch.Generator().manual_seed(seed))
    tokens[-1] = best[1, -1]
    logprobs, ranks = KERNELS.score(logits, log_normalisers, best, rows, tokens)
    expected, expected_ranks = plain_score(logits, log_normalisers, best, rows, tokens)
    assert logprobs.tolist() == expected.tolist()
    assert ranks.tolist() == expected_ranks.tolist() == plain_rank(logits, rows, tokens).tolist()


@laws
@given(
    vocab=sizes,
    seed=st.integers(0, 2**62),
    spread=st.sampled_from([0.0, 0.02, 1.0, 5.0, 1e3]),
    step=st.integers(0, 2000),
    temperature=st.sampled_from([1.0, 0.7, 0.01, 100.0]),
    dtype=dtypes,
)
def test_draws_are_those_of_plain_torch(
    vocab: int, seed: int, spread: float, step: int, temperature: float, dtype: torch.dtype
) -> None:
    assert KERNELS is not None
    scores = random_scores(8, vocab, seed % 1000, spread=spread)
    scores[3, : vocab // 2] = -INF
    scores[5] = -INF
    scores = scores.to(dtype)
    seeds, steps = torch.arange(8) * 977 + seed, torch.full((8,), step)
    token_ids = 3 * torch.arange(vocab).expand(8, -1) if seed % 2 else None
    tokens, logprobs = KERNELS.draw(scores, token_ids, temperature, seeds, steps)
    expected, expected_logprobs = plain_draw(scores, token_ids, temperature, seeds, steps)
    is_drawn = torch.arange(8) != 5
    assert tokens[is_drawn].tolist() == expected[is_drawn].tolist()
    assert logprobs[5] == -INF
    torch.testing.assert_close(logprobs[is_drawn], expected_logprobs[is_drawn], rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_contiguous_are_copied_for_as_long_as_the_kernel_reads_them() -> None:
    """The copy was freed before the kernel ran, and its first row was something else by then."""
    assert KERNELS is not None
    scores = random_scores(1, 1000, 0).T.repeat(1, 20_000).T
    seeds = torch.arange(20_000)
    found, logprobs = KERNELS.draw(scores, None, 1.0, seeds, seeds)
    expected, expected_logprobs = KERNELS.draw(scores[:1].contiguous(), None, 1.0, seeds[:1], seeds[:1])
    assert (found[0], logprobs[0]) == (expected[0], expected_logprobs[0])
    assert KERNELS.measure(scores, 3)[0].unique().numel() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_may_lie_apart_and_what_is_between_them_is_not_looked_at(dtype: torch.dtype) -> None:
    """As logits do, whose rows have room for whole groups of outputs."""
    assert KERNELS is not None
    wide = random_scores(5, 1024, 0).to(dtype)
    wide[:, 1000:] = INF
    apart, beside = wide[:, :1000], wide[:, :1000].contiguous()
    rows, tokens, numbers = torch.arange(5), torch.arange(5) * 199, torch.arange(5)
    log_normalisers, _, best, _ = KERNELS.measure(beside, 3)
    for call in (
        lambda scores: KERNELS.measure(scores, 3),
        lambda scores: KERNELS.top_k(scores, 7),
        lambda scores: [KERNELS.rank(scores, rows, tokens)],
        lambda scores: KERNELS.score(scores, log_normalisers, best, rows, tokens),
        lambda scores: KERNELS.draw(scores, None, 0.7, numbers, numbers),
    ):
        for found, expected in zip(call(apart), call(beside), strict=True):
            assert torch.equal(found, expected)


@laws
@given(vocab=sizes, seed=st.integers(0, 99), temperature=st.sampled_from([1.0, 0.7]), dtype=dtypes)
def test_a_draw_takes_log_sum_exps_that_are_known(
    vocab: int, seed: int, temperature: float, dtype: torch.dtype
) -> None:
    assert KERNELS is not None
    scores, seeds = random_scores(3, vocab, seed).to(dtype), torch.arange(3) + seed
    known = (scores.float() / temperature).logsumexp(-1)
    alone = KERNELS.draw(scores, None, temperature, seeds, seeds)
    for draw in (KERNELS.draw, plain_draw):
        tokens, logprobs = draw(scores, None, temperature, seeds, seeds, known + 1)
        assert tokens.tolist() == alone[0].tolist()
        torch.testing.assert_close(logprobs, alone[1] - 1, rtol=1e-5, atol=1e-5)


@laws
@given(
    vocab=sizes,
    seed=st.integers(0, 99),
    grain=st.sampled_from([0.0, 0.5]),
    mass=st.sampled_from([1e-6, 0.3, 0.9, 0.999999]),
)
def test_the_mass_that_is_kept_is_that_of_plain_torch(vocab: int, seed: int, grain: float, mass: float) -> None:
    assert KERNELS is not None
    scores = random_scores(4, vocab, seed, grain=grain)
    scores[0] *= 0.0  # zeros of both signs are tied
    scores[1, vocab // 3 :] = -INF
    weights = torch.softmax(scores, -1)
    goals = mass * weights.sum(-1, keepdim=True, dtype=torch.float64)
    preferences = -(scores + 1).abs() if seed % 2 else scores
    assert torch.equal(KERNELS.keep_mass(preferences, weights, goals), plain_keep_mass(preferences, weights, goals))


@laws
@given(vocab=sizes, seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.1, 1.0]), has_ids=st.booleans())
def test_what_is_kept_is_packed_as_in_plain_torch(vocab: int, seed: int, share: float, has_ids: bool) -> None:
    assert KERNELS is not None
    scores = random_scores(3, vocab, seed)
    is_kept = torch.rand((3, vocab), generator=torch.Generator().manual_seed(seed)) < share
    token_ids = torch.arange(7, vocab + 7).expand(3, -1) if has_ids else None
    for found, expected in zip(
        KERNELS.pack(scores, token_ids, is_kept), plain_pack(scores, token_ids, is_kept), strict=True
    ):
        assert found.dtype == expected.dtype
        assert found.tolist() == expected.tolist()


def layer_of(
    dtype: torch.dtype,
    heads: int,
    size: int,
    capacities: list[int],
    order: list[int],
    seed: int,
    *,
    is_mirrored: bool = True,
) -> LayerCache:
    """Random keys and values; slots lie in `order`, and hold the same, up to their ends, whatever that and they are."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn((2, len(capacities), heads, 80, size), generator=generator).to(dtype)
    rooms = [(slot, capacities[slot]) for slot in order]
    pairs = [(keys[slot, :, :room], values[slot, :, :room]) for slot, room in rooms]
    kept = [torch.cat([one.flip(1) if is_mirrored else one, other], 1).reshape(-1, size) for one, other in pairs]
    starts = [sum(capacities[before] for before in order[: order.index(slot)]) for slot in range(len(order))]
    return LayerCache(torch.cat(kept), heads, torch.tensor(starts), torch.tensor(capacities), is_mirrored)


def rows_of(layer: LayerCache, lengths: list[int]) -> list[torch.Tensor]:
    """What the first positions of each slot hold, keys and values."""
    rows = []
    for slot, length in enumerate(lengths):
        keys, values = span(layer, slot, 0, length)
        rows += [keys.flip(1) if layer.is_mirrored else keys, values]
    return rows


@laws
@given(
    size=st.sampled_from([1, 8, 16, 24, 64, 80, 128]),
    heads=st.integers(1, 4),
    positions=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    dtype=dtypes,
)
def test_attention_equals_plain_torch_wherever_slots_lie(
    size: int, heads: int, positions: list[int], seed: int, dtype: torch.dtype
) -> None:
    rng, count = random.Random(seed), len(positions)
    capacities = [position + 1 + rng.randrange(9) for position in positions]
    alike = layer_of(dtype, heads, size, [80] * count, [*range(count)], seed, is_mirrored=False)
    uneven = layer_of(dtype, heads, size, capacities, rng.sample(range(count), count), seed)
    fused = torch.randn((count, 3 * heads * size), generator=torch.Generator().manual_seed(seed)).to(dtype)
    places = torch.arange(count), torch.tensor(positions)
    expected = attention.plain_attend(fused, alike, *places, size**-0.5, max(positions) + 1)
    assert KERNELS is not None
    found = KERNELS.attend(fused, uneven, *places, size**-0.5)
    torch.testing.assert_close(found, expected, atol=2e-6 if dtype == torch.float32 else 2e-2, rtol=0)
    for kept, expected_kept in zip(rows_of(uneven, capacities), rows_of(alike, capacities), strict=True):
        assert torch.equal(kept, expected_kept)


@laws
@given(
    size=st.sampled_from([1, 8, 24, 64, 80]),
    heads=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    are_alike=st.booleans(),
    seed=st.integers(0, 99),
    dtype=dtypes,
)
def test_attention_within_prompts_equals_plain_torch_wherever_slots_lie(
    size: int, heads: int, lengths: list[int], are_alike: bool, seed: int, dtype: torch.dtype
) -> None:
    rng, count = random.Random(seed), len(lengths) + 2
    capacities = [40] * count if are_alike else [3, 9, *(length + rng.randrange(9) for length in lengths)]
    order = [*range(count)] if are_alike else rng.sample(range(count), count)
    plain, compiled = (
        layer_of(dtype, heads, size, capacities, order, seed, is_mirrored=is_mirrored)
        for is_mirrored in (not are_alike, True)
    )
    tokens = attention.PromptTokens(lengths, 2, "cpu")
    fused = torch.randn((sum(lengths), 3 * heads * size), generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected = tokens.plain_attend(fused, plain, size**-0.5)
    found = tokens.attend(fused, compiled, size**-0.5)
    torch.testing.assert_close(found, expected, atol=2e-6 if dtype == torch.float32 else 3e-2, rtol=0)
    seen = [0, 0, *lengths]
    for kept, expected_kept in zip(rows_of(compiled, seen), rows_of(plain, seen), strict=True):
        assert torch.equal(kept, expected_kept)


def test_what_lies_past_a_row_is_not_looked_at_and_nan_inside_it_shows() -> None:
    assert KERNELS is not None
    layer = LayerCache(torch.randn(16, 16), 1, torch.tensor([0]), torch.tensor([8]), True)
    for each in span(layer, 0, 4, 8):
        each.fill_(float("nan"))
    fused = torch.randn(1, 48)
    places = torch.tensor([0]), torch.tensor([3])
    assert KERNELS.attend(fused, layer, *places, 0.25).isfinite().all()
    span(layer, 0, 1, 2)[0].fill_(float("nan"))
    assert KERNELS.attend(fused, layer, *places, 0.25).isnan().all()


@laws
@given(
    rows=st.integers(1, 3), width=st.sampled_from([1, 2, 31, 32, 33, 80, 768]), seed=st.integers(0, 99), dtype=dtypes
)
def test_a_sum_and_its_norm_are_those_of_plain_torch(rows: int, width: int, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, update = ((torch.randn((rows, width), generator=generator) * 4 + 1).to(dtype) for _ in range(2))
    weight, bias = torch.randn((2, width), generator=generator).to(dtype)
    norm = Norm(weight, bias, 1e-5)
    found_sum, expected_sum = x.clone(), x.clone()
    assert KERNELS is not None
    found, expected = KERNELS.add_norm(found_sum, update, norm), plain_add_norm(expected_sum, update, norm)
    assert torch.equal(found_sum, expected_sum)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 2**-7)
    assert torch.equal(KERNELS.add_norm(found_sum, None, norm), found)
    torch.testing.assert_close(
        found, plain_norm(found_sum, norm), atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 2**-7
    )


def test_a_broken_row_is_not_normalised_and_spoils_no_other() -> None:
    assert KERNELS is not None
    x = torch.randn(3, 64).to(torch.bfloat16)
    x[1, 7] = float("nan")
    normed = KERNELS.add_norm(x, torch.zeros_like(x), Norm(x[0], x[2], 1e-5))
    assert x.isnan().sum(-1).tolist() == [0, 1, 0]
    assert normed.isnan().sum(-1).tolist() == [0, 64, 0]


# linear layers

ROWS = st.sampled_from([1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 64, 100])
ACTIVATION_NAMES = st.sampled_from(["none", "gelu_new", "gelu", "relu"])


def random_layer(inputs: int, outputs: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights (O, I), which the kernels can take on this processor, and biases."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn((outputs, inputs), generator=generator) / inputs**0.5).to(dtype)
    if not native.for_weight(weight):
        pytest.skip(f"the kernels do not multiply {dtype} on this processor")
    return weight, torch.randn(outputs, generator=generator).to(dtype)


@laws
@given(
    rows=ROWS,
    inputs=st.sampled_from([32, 64, 96, 768, 1024, 3072]),
    outputs=st.sampled_from([1, 15, 47, 48, 49, 63, 64, 65, 200, 769]),
    activation=ACTIVATION_NAMES,
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
    dtype=dtypes,
)
def test_a_linear_layer_agrees_with_float64(
    rows: int, inputs: int, outputs: int, activation: str, has_bias: bool, seed: int, dtype: torch.dtype
) -> None:
    weight, bias = random_layer(inputs, outputs, seed, dtype)
    x = torch.randn((rows, inputs), generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    chosen = ACTIVATIONS.get(activation, IDENTITY)
    found = linear(weight, bias if has_bias else None, chosen)(x)
    expected = chosen.function(F.linear(x.double(), weight.double(), bias.double() if has_bias else None))
    assert found.dtype == dtype
    tolerance = 4e-6 if dtype == torch.float32 else 2.0**-8 if chosen.is_fused else 2.0**-7
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("inputs", [32, 768, 3072])
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_float32_loses_no_digits_however_it_is_multiplied(rows: int, inputs: int, scale: float) -> None:
    """Sums of products of three bfloat16 are off by 1e-7 of their size, chains of fused additions by 1e-6; of two
    bfloat16 they would be by 3e-6.
    """
    weight, _ = random_layer(inputs, 96, 0, torch.float32)
    x = torch.randn((rows, inputs), generator=torch.Generator().manual_seed(1)) * scale
    exact = x.double() @ weight.double().T
    error = (linear(weight, None)(x) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 1.5e-6


@laws
@given(rows=ROWS, outputs=st.sampled_from([1, 50, 300]), inputs=st.sampled_from([64, 768, 3072]), dtype=dtypes)
def test_a_row_comes_out_the_same_whatever_rows_are_beside_it(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    weight, bias = random_layer(inputs, outputs, 0, dtype)
    layer, x = linear(weight, bias, ACTIVATIONS["gelu_new"]), torch.randn((rows, inputs)).to(dtype)
    together = layer(x)
    for row in range(rows):
        assert torch.equal(layer(x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_comes_out_the_same_where_outputs_go_past_the_caches(dtype: torch.dtype) -> None:
    """More than 4 MiB of them do."""
    weight, bias = random_layer(32, 50257, 0, dtype)
    layer, x = linear(weight, bias), torch.randn((50, 32)).to(dtype)
    together = layer(x)
    assert together.shape == (50, 50257)
    assert together.stride() == (50272, 1)
    for row in range(50):
        assert torch.equal(layer(x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), INF, -INF])
def test_a_broken_row_spoils_no_other(value: float, dtype: torch.dtype) -> None:
    weight, bias = random_layer(64, 100, 0, dtype)
    x = torch.ones((20, 64)).to(dtype)
    whole = linear(weight, bias)(x)
    x[3, 5] = value
    broken = linear(weight, bias)(x)
    assert not broken[3].isfinite().any()
    assert torch.equal(broken[[*range(3), *range(4, 20)]], whole[[*range(3), *range(4, 20)]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_any_other_width_are_left_to_torch(dtype: torch.dtype) -> None:
    weight, x = torch.randn((50, 40)).to(dtype), torch.randn((3, 40)).to(dtype)
    assert not native.for_weight(weight)
    torch.testing.assert_close(linear(weight, None)(x), F.linear(x, weight))


def test_weights_lie_side_by_side_in_the_order_of_their_use() -> None:
    shelf = Shelf()
    first, second = shelf.take(100, torch.bfloat16), shelf.take(33, torch.float32)
    assert first.data_ptr() % 64 == 0
    assert second.data_ptr() - first.data_ptr() == 256  # 200 bytes, in whole cache lines
    large = shelf.take(20 << 20, torch.float32)  # more than the shelf takes at once
    assert large.data_ptr() % 64 == 0
    large.fill_(1)
    assert len(large) == 20 << 20
    assert shelf.take(16, torch.float32).data_ptr() % 64 == 0


# building


def test_a_library_is_built_once_and_kept(tmp_path: Path) -> None:
    first = library_path(tmp_path / "kept")
    assert first is not None
    made = os.stat(first).st_mtime_ns
    assert library_path(tmp_path / "kept") == first
    assert os.stat(first).st_mtime_ns == made
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [Path(first).name]


@pytest.mark.parametrize("level", ["x86-64-v3", "x86-64-v4"])
def test_a_lesser_processor_multiplies_float32_alike(level: str, tmp_path: Path) -> None:
    """Kernels for one without matrix registers, or without wide vectors: the last `-march` counts."""
    if platform.machine() != "x86_64" or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("this processor cannot run them")
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec c++ "$@" -march={level}\n')
    compiler.chmod(0o755)
    program = (
        "import torch, pipeline.engine.native as native, pipeline.engine.linear as layers\n"
        "weight, x = torch.randn(50, 96), torch.randn(29, 96)\n"
        "found = layers.linear(weight, None, layers.ACTIVATIONS['gelu_new'])(x).double()\n"
        "expected = layers.ACTIVATIONS['gelu_new'].function(x.double() @ weight.double().T)\n"
        "torch.testing.assert_close(found, expected, rtol=4e-6, atol=1e-5)\n"
        "print(bool(native.kernels()), bool(native.for_weight(weight)), bool(native.for_weight(weight.bfloat16())))\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "CXX": str(compiler)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["True", str(level == "x86-64-v4"), "False"]


PROGRAM = "from pipeline.engine import native; print(native.kernels())"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"BATCHGEN_KERNELS": "torch"}, ""),
        ({"CXX": "no-such-compiler"}, "no C++ compiler"),
        ({"CXX": "false"}, "the engine runs without its kernels, at less speed"),
    ],
    ids=["turned off", "no compiler", "broken compiler"],
)
def test_without_kernels_the_engine_is_told_and_goes_on(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | variables
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "None"
    assert said in done.stderr
    assert bool(done.stderr) == bool(said)
