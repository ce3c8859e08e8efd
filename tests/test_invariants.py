"""The laws: what a request becomes depends on nothing but the model and the request.

Every kind of decoding, plain and with processors, is run on uneven prompts: in batches of any size and order, alone and
mixed, split into its samples, and against references that have neither cache nor batch nor padding.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from pipeline.engine import Engine
from pipeline.engine.filters import FILTERS
from pipeline.records import Completion, FloatArray, Request, Response, RowError
from pipeline.strategies import (
    BeamSearch,
    Bias,
    ContrastiveSearch,
    Dola,
    Drawing,
    Greedy,
    NextToken,
    Sampling,
    Strategy,
)
from tests.agreement import assert_agrees, decision, references
from tests.models import engine_for, random_model, uneven_prompts

EOS = 5
VOCABULARY = 60
PROCESSORS: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": ((7,), (11, 12), (27, 27)),
    "min_new_tokens": 4,
}
PENALTIES: dict[str, Any] = {
    "sequence_bias": (Bias(token_ids=(9,), bias=2.0), Bias(token_ids=(9, 11), bias=3.0)),
    "encoder_repetition_penalty": 1.2,
    "frequency_penalty": 0.4,
    "presence_penalty": 0.2,
    "begin_suppress_tokens": (9, 10),
    "exponential_decay_length_penalty": (5.0, 1.2),
}
STOPS: dict[str, Any] = {"stop_strings": ("A;", "$$;", "B"), "stop_token_ids": (17,)}  # tokens 33 27, 4 4 27 and 34

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Greedy(name="greedy", type="greedy", max_new_tokens=16),
        Greedy(name="greedy_processed", type="greedy", max_length=24, **PROCESSORS, **STOPS),
        Sampling(name="samples", type="sampling", max_new_tokens=16, num_return_sequences=3),
        Sampling(
            name="samples_filtered",
            type="sampling",
            max_new_tokens=14,
            temperature=1.4,
            top_k=30,
            top_p=0.95,
            min_p=0.02,
            num_return_sequences=2,
            ignore_eos=True,
        ),
        Sampling(name="samples_processed", type="sampling", max_length=26, top_p=0.9, **PROCESSORS, **STOPS),
        BeamSearch(name="beams", type="beam_search", max_new_tokens=12, num_beams=4, num_return_sequences=2),
        BeamSearch(
            name="beams_processed",
            type="beam_search",
            max_new_tokens=10,
            num_beams=3,
            num_return_sequences=3,
            length_penalty=0.5,
            early_stopping=True,
            **PROCESSORS,
            **STOPS,
        ),
        BeamSearch(
            name="beams_guided",
            type="beam_search",
            max_new_tokens=8,
            num_beams=3,
            guidance_scale=1.5,
            negative_prompt_ids=(8, 9, 10),
        ),
        BeamSearch(
            name="beams_drawn",
            type="beam_search",
            max_new_tokens=10,
            num_beams=3,
            num_return_sequences=2,
            do_sample=True,
            temperature=1.3,
            top_p=0.9,
        ),
        BeamSearch(
            name="beams_diverse",
            type="beam_search",
            max_new_tokens=10,
            num_beams=4,
            num_return_sequences=4,
            num_beam_groups=2,
            diversity_penalty=1.0,
            **STOPS,
        ),
        BeamSearch(
            name="beams_constrained",
            type="beam_search",
            max_new_tokens=8,
            num_beams=3,
            force_words_ids=((9,), ((21, 22), (23, 24, 25))),
        ),
        Sampling(
            name="samples_by_entropy",
            type="sampling",
            max_new_tokens=10,
            top_h=0.9,
            typical_p=0.9,
            epsilon_cutoff=0.002,
            eta_cutoff=0.002,
            num_return_sequences=2,
        ),
        Sampling(
            name="samples_of_words",
            type="sampling",
            max_new_tokens=10,
            allowed_words_ids=((9, 11), (9,), (12, 13)),
            **PENALTIES,
        ),
        Greedy(name="greedy_guided", type="greedy", max_new_tokens=12, guidance_scale=2.0, **PENALTIES),
        ContrastiveSearch(
            name="contrastive", type="contrastive_search", max_new_tokens=10, penalty_alpha=0.6, top_k=4, **STOPS
        ),
        ContrastiveSearch(
            name="contrastive_processed",
            type="contrastive_search",
            max_length=20,
            penalty_alpha=0.4,
            top_k=3,
            guidance_scale=1.5,
            **PROCESSORS,
        ),
        Dola(name="dola", type="dola", max_new_tokens=12, dola_layers="low"),
        Dola(name="dola_processed", type="dola", max_new_tokens=12, dola_layers=(0, 1), **PROCESSORS, **PENALTIES),
        NextToken(name="next", type="next_token", min_new_tokens=1),
        Greedy(name="failing", type="greedy", max_new_tokens=12, no_repeat_ngram_size=1, ignore_eos=True),
    )
}


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return random_model(vocab_size=VOCABULARY)


NUM_PROMPTS = 8  # of the mixed requests


def prompts_of(count: int) -> list[tuple[int, ...]]:
    """Uneven prompts, one of them as long as the context allows and one that occurs twice."""
    prompts = uneven_prompts(count - 2, vocab_size=VOCABULARY)
    return [*prompts, tuple(range(58)), prompts[0]]


def request(prompt: tuple[int, ...], strategy: Strategy) -> Request:
    """A request whose seeds depend on nothing but itself."""
    seeds = random.Random(f"{prompt} {strategy.name}")
    return Request(
        prompt, strategy, tuple(seeds.getrandbits(63) for _ in range(getattr(strategy, "num_return_sequences", 1)))
    )


def mixed_requests() -> list[Request]:
    return [request(prompt, strategy) for prompt in prompts_of(NUM_PROMPTS) for strategy in STRATEGIES.values()]


def engine_of(model: GPT2LMHeadModel, **values: Any) -> Engine:
    return engine_for(model, eos=EOS, with_prompt_logprobs=True, **values)


def assert_close(found: FloatArray | float | None, expected: FloatArray | float | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None:
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-6)


def assert_same(found: Sequence[Response], expected: Sequence[Response]) -> None:
    """Ids, reasons, matches, ranks and errors exactly; floats to 1e-5."""
    for one, other in zip(found, expected, strict=True):
        assert_close(one.prompt_logprobs, other.prompt_logprobs)
        if isinstance(other.completions, RowError):
            assert one.completions == other.completions
        else:
            assert not isinstance(one.completions, RowError)
            for done, reference in zip(one.completions, other.completions, strict=True):
                assert_same_completion(done, reference)


def assert_same_completion(found: Completion, expected: Completion) -> None:
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert (found.finish_reason, found.stop_match) == (expected.finish_reason, expected.stop_match)
    # A product rounds differently in other batches, and thousands of tokens down, neighbours are that near.
    np.testing.assert_allclose(found.token_ranks, expected.token_ranks, rtol=2e-3)
    assert found.top_token_ids.tolist() == expected.top_token_ids.tolist()
    for name in ("token_logprobs", "sampling_logprobs", "entropies", "top_probs", "sequence_score"):
        assert_close(getattr(found, name), getattr(expected, name))


def completions_of(responses: Sequence[Response]) -> list[Completion]:
    """All completions in order, without the requests that failed."""
    answers = [response.completions for response in responses]
    return [done for answer in answers if not isinstance(answer, RowError) for done in answer]


@pytest.fixture(scope="module")
def usual(model: GPT2LMHeadModel) -> list[Response]:
    """All requests at once, 64 slots."""
    return engine_of(model).generate(mixed_requests())


# batches


def test_the_requests_of_these_laws_end_in_every_way(usual: list[Response]) -> None:
    completions = completions_of(usual)
    failed = {
        one.strategy.name: response.completions.type
        for one, response in zip(mixed_requests(), usual, strict=True)
        if isinstance(response.completions, RowError)
    }
    # the longest prompt holds all tokens but two, and nearly all bigrams of what DoLa finds plausible
    assert failed == {"failing": "no_token_left", "dola_processed": "no_token_left"}
    num_rows = sum(len(wanted.seeds) for wanted in mixed_requests())
    assert len(completions) == num_rows - len(failed)
    assert {done.finish_reason for done in completions} == {"eos", "stop", "length", "context"}
    assert {type(done.stop_match) for done in completions} == {str, int, type(None)}
    assert min(len(done.token_ids) for done in completions) == 0
    assert len({len(done.token_ids) for done in completions}) > 10


@pytest.mark.parametrize(
    "values",
    [{"max_slots": 1}, {"max_slots": 8}, {"max_slots": 13}, {"max_slots": 500}, {"cache_bytes": 200_000}],
    ids=["1-slot", "8-slots", "13-slots", "all-at-once", "small-cache"],
)
def test_any_number_of_slots_gives_the_same(
    model: GPT2LMHeadModel, usual: list[Response], values: dict[str, int]
) -> None:
    assert_same(engine_of(model, **values).generate(mixed_requests()), usual)


def test_one_request_at_a_time_gives_the_same_as_all_together(model: GPT2LMHeadModel, usual: list[Response]) -> None:
    engine = engine_of(model)
    assert_same([engine.generate([one])[0] for one in mixed_requests()], usual)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_requests_does_not_matter(model: GPT2LMHeadModel, usual: list[Response], seed: int) -> None:
    requests = mixed_requests()
    order = random.Random(seed).sample(range(len(requests)), len(requests))
    shuffled = engine_of(model, max_slots=9).generate([requests[index] for index in order])
    assert_same(shuffled, [usual[index] for index in order])


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_alone_gives_the_same_as_among_others(
    model: GPT2LMHeadModel, usual: list[Response], name: str
) -> None:
    pairs = [pair for pair in zip(mixed_requests(), usual, strict=True) if pair[0].strategy.name == name]
    alone = engine_of(model, max_slots=8).generate([one for one, _ in pairs])
    assert_same(alone, [response for _, response in pairs])


@pytest.mark.parametrize("name", ["samples", "samples_filtered"])
def test_n_samples_of_a_row_are_n_rows_with_their_seeds(model: GPT2LMHeadModel, name: str) -> None:
    together = [request(prompt, STRATEGIES[name]) for prompt in prompts_of(6)]
    one_sample = STRATEGIES[name].model_copy(update={"num_return_sequences": 1})
    apart = [Request(one.prompt_token_ids, one_sample, (seed,)) for one in together for seed in one.seeds]
    engine = engine_of(model)
    samples, rows = completions_of(engine.generate(together)), completions_of(engine.generate(apart))
    assert len(rows) == len(apart)
    for sample, row in zip(samples, rows, strict=True):
        assert_same_completion(sample, row)
    assert len({tuple(row.token_ids.tolist()) for row in rows}) > len(together)


def test_samples_over_gpt2s_vocabulary_are_the_same_in_any_batch() -> None:
    engines = [engine_of(random_model(vocab_size=50257, spread=0.3), max_slots=slots) for slots in (1, 5, 64)]
    strategies = [
        Sampling(name="s", type="sampling", max_new_tokens=5, **values)
        for values in ({}, {"temperature": 0.7, "top_k": 50}, {"top_p": 0.9, "repetition_penalty": 1.2})
    ]
    requests = [request(prompt, strategy) for prompt in prompts_of(6) for strategy in strategies]
    one_slot, *others = (engine.generate(requests) for engine in engines)
    for responses in others:
        assert_same(responses, one_slot)


def test_the_same_call_twice_gives_the_same_bits(model: GPT2LMHeadModel) -> None:
    first, second = (completions_of(engine_of(model).generate(mixed_requests())) for _ in range(2))
    for done, again in zip(first, second, strict=True):
        for field in fields(Completion):
            np.testing.assert_array_equal(getattr(done, field.name), getattr(again, field.name))


# references without cache or batch


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_with_cache_and_batch_equals_its_reference_without(
    model: GPT2LMHeadModel, usual: list[Response], name: str
) -> None:
    pairs = [pair for pair in zip(mixed_requests(), usual, strict=True) if pair[0].strategy.name == name]
    assert len(pairs) == NUM_PROMPTS
    for one, response in pairs:
        assert_agrees(response.completions, references(one, model, EOS))


def test_raw_logprobs_of_every_strategy_equal_one_forward_over_the_whole_row(
    model: GPT2LMHeadModel, usual: list[Response]
) -> None:
    for one, response in zip(mixed_requests(), usual, strict=True):
        for done in completions_of([response]):
            tokens = done.token_ids.tolist()
            with torch.inference_mode():  # the last token is never fed, and may lie past the context
                logits = model(torch.tensor([[*one.prompt_token_ids, *tokens[:-1]]])).logits[0]
            steps = logits[len(one.prompt_token_ids) - 1 :].log_softmax(-1)[: len(tokens)]
            assert_close(done.token_logprobs, steps[torch.arange(len(tokens)), tokens].numpy())
            assert_close(done.top_probs, steps.exp().topk(5).values.numpy())


# ties, bans and half precision


def flat_model() -> GPT2LMHeadModel:
    """A model to which all tokens are the same, as what follows and as what came before."""
    flat = random_model(vocab_size=VOCABULARY)
    with torch.no_grad():
        flat.transformer.wte.weight.zero_()
    return flat


# The references filter with transformers' own classes, which keep any of a tie; ours have tests/test_filters.py.
UNFILTERED = [
    name
    for name, one in STRATEGIES.items()
    if not isinstance(one, Drawing) or all(getattr(one, key) is None for key in FILTERS)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", UNFILTERED)
def test_ties_go_by_the_lower_token_id_in_every_strategy(name: str, dtype: torch.dtype) -> None:
    requests = [request(prompt, STRATEGIES[name]) for prompt in prompts_of(4)]
    responses = engine_of(flat_model().to(dtype)).generate(requests)
    for one, response in zip(requests, responses, strict=True):
        assert decision(response.completions) == decision(references(one, flat_model(), EOS))


def test_without_any_opinion_plain_strategies_begin_with_the_lowest_tokens() -> None:
    names = ("greedy", "beams", "beams_diverse", "contrastive", "dola", "next")
    requests = [request((7, 3), STRATEGIES[name]) for name in names]
    first = {
        one.strategy.name: [done.token_ids[0] for done in completions_of([response])]
        for one, response in zip(requests, engine_of(flat_model()).generate(requests), strict=True)
    }
    alone = {key: [0] for key in ("greedy", "contrastive", "dola", "next")}
    assert first == alone | {"beams": [0, 0], "beams_diverse": [0, 0, 2, 2]}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_row_of_any_strategy_without_a_token_left_is_an_error_and_its_neighbour_is_as_ever(
    model: GPT2LMHeadModel, name: str
) -> None:
    prompt = prompts_of(4)[0]
    usual = request(prompt, STRATEGIES[name])
    banned = STRATEGIES[name].model_copy(update={"suppress_tokens": tuple(range(VOCABULARY))})
    engine = engine_of(model)
    failed, beside = engine.generate([request(prompt, banned), usual])
    assert isinstance(failed.completions, RowError)
    if name == "beams_constrained":
        assert failed.completions.type == "force_words_unmet"
    else:
        assert failed.completions.type == "no_token_left"
        assert "no token is left to generate at step 1; relax" in failed.completions.message
        assert "suppress_tokens" in failed.completions.message
    assert_same([beside], engine.generate([usual]))


def test_in_bfloat16_no_strategy_lets_a_nan_or_an_infinity_out() -> None:
    halves = random_model(vocab_size=VOCABULARY).bfloat16()
    responses = engine_of(halves).generate(mixed_requests())
    errors = [response.completions.type for response in responses if isinstance(response.completions, RowError)]
    assert set(errors) <= {"no_token_left"}
    assert len(errors) < 5
    for done in completions_of(responses):
        values = [done.token_logprobs, done.entropies, done.top_probs, done.sequence_score or 0.0]
        values += [] if done.sampling_logprobs is None else [done.sampling_logprobs]
        assert all(np.isfinite(value).all() for value in values)
        assert all(0 <= token < VOCABULARY for token in done.token_ids)
