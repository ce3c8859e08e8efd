"""The laws: what a request becomes depends on nothing but the model and the request.

Every strategy type, plain and with processors, is run on uneven prompts: in batches of any size and order, alone and
mixed, split into its samples, against loops without cache or batch, and against `transformers.generate`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from pipeline.engine import Engine
from pipeline.records import Completion, FloatArray, Request, Response, RowError
from pipeline.strategies import BeamSearch, Greedy, NextToken, Sampling, Strategy
from tests.models import engine_for, random_model, uneven_prompts
from tests.test_sampling import distribution, numpy_gumbel

EOS = 5
VOCABULARY = 60
PROCESSORS: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": ((7,), (11, 12), (27, 27)),
    "min_new_tokens": 4,
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
        NextToken(name="next", type="next_token", min_new_tokens=1),
        Greedy(name="failing", type="greedy", max_new_tokens=12, no_repeat_ngram_size=1, ignore_eos=True),
    )
}


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return random_model(vocab_size=VOCABULARY)


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
    return [request(prompt, strategy) for prompt in prompts_of(10) for strategy in STRATEGIES.values()]


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
    assert found.token_ranks.tolist() == expected.token_ranks.tolist()
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
    errors = [response.completions.type for response in usual if isinstance(response.completions, RowError)]
    assert errors == ["no_token_left"]  # the longest prompt holds all tokens but two
    assert len(completions) == sum(len(wanted.seeds) for wanted in mixed_requests()) - 1
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


# loops without cache or batch


class Plain(NamedTuple):
    """What a naive loop gives: tokens, the reason they end, and what the strategy thought of each or of all."""

    tokens: list[int]
    reason: str
    logprobs: list[float]
    score: float | None = None


def scores_after(model: GPT2LMHeadModel, tokens: Sequence[int]) -> torch.Tensor:
    """Logits after the tokens, (V,), from one forward over all of them."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1]


def processed(strategy: Strategy, scores: torch.Tensor, tokens: list[int], num_generated: int) -> torch.Tensor:
    """Scores after penalties and bans, token by token."""
    penalty = strategy.repetition_penalty or 1.0
    for token in set(tokens):
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    size = strategy.no_repeat_ngram_size
    for start in range(len(tokens) - size + 1) if size else ():
        *beginning, last = tokens[start : start + size]
        if tokens[len(tokens) - size + 1 :] == beginning:
            scores[last] = -torch.inf
    for *beginning, last in strategy.bad_words_ids:
        if tokens[len(tokens) - len(beginning) :] == beginning:
            scores[last] = -torch.inf
    if num_generated < (strategy.min_new_tokens or 0):
        scores[[*(() if strategy.ignore_eos else (EOS,)), *strategy.stop_token_ids]] = -torch.inf
    return scores


def ending(strategy: Strategy, prompt: Sequence[int], generated: list[int], positions: int) -> str | None:
    """Why the completion ends with its last token, if it does. A token prints as one character."""
    count = len(generated)
    if count >= (strategy.min_new_tokens or 0):
        if generated[-1] == EOS and not strategy.ignore_eos:
            return "eos"
        text = "".join(chr(32 + token) for token in generated)
        if generated[-1] in strategy.stop_token_ids or text.endswith(strategy.stop_strings):
            return "stop"
    if isinstance(strategy, NextToken) or count == (strategy.max_new_tokens or strategy.max_length - len(prompt)):
        return "length"
    return "context" if len(prompt) + count == positions + 1 else None


def naive_single(
    model: GPT2LMHeadModel,
    prompt: tuple[int, ...],
    strategy: Strategy,
    choose: Callable[[torch.Tensor, int], tuple[int, float]],
) -> Plain:
    """One row, one forward over everything per token. `choose` takes scores and step to a token and its logprob."""
    generated: list[int] = []
    logprobs: list[float] = []
    while True:
        tokens = [*prompt, *generated]
        scores = processed(strategy, scores_after(model, tokens), tokens, len(generated))
        token, logprob = choose(scores, len(generated))
        generated.append(token)
        logprobs.append(logprob)
        if reason := ending(strategy, prompt, generated, model.config.n_positions):
            return Plain(generated, reason, logprobs)


def naive_beams(model: GPT2LMHeadModel, prompt: tuple[int, ...], strategy: BeamSearch) -> list[Plain]:
    """Beam search over one prompt as its paper trail says, one forward over everything per beam and token."""
    width = strategy.num_beams
    num_stops = len({*strategy.stop_token_ids, *(() if strategy.ignore_eos else (EOS,))})
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[Plain] = []
    while running:
        candidates = []
        for total, generated in running:
            tokens = [*prompt, *generated]
            scores = scores_after(model, tokens).log_softmax(-1)
            scores = processed(strategy, scores, tokens, len(generated)) + total
            candidates += [(float(score), [*generated, token]) for token, score in enumerate(scores)]
        candidates.sort(key=lambda candidate: -candidate[0])
        running = []
        is_full = len(finished) == width
        for place, (total, generated) in enumerate(candidates[: max(2, 1 + num_stops) * width]):
            reason = ending(strategy, prompt, generated, model.config.n_positions)
            if reason is None:
                running.append((total, generated))
            elif place < width and not (strategy.early_stopping is True and is_full):
                finished.append(Plain(generated, reason, [], total / len(generated) ** strategy.length_penalty))
        running = running[:width]
        finished = sorted(finished, key=lambda beam: -(beam.score or 0.0))[:width]
        if running and len(finished) == width:
            best, length = running[0][0], len(running[0][1])
            worst = finished[-1].score or 0.0
            if strategy.early_stopping is True or best / length**strategy.length_penalty <= worst:
                break
    return finished[: strategy.num_return_sequences]


def assert_as_naive(found: Completion, expected: Plain) -> None:
    assert (found.token_ids.tolist(), found.finish_reason) == (expected.tokens, expected.reason)
    if expected.score is None:
        assert_close(found.sampling_logprobs, np.float32(expected.logprobs))
    assert_close(found.sequence_score, expected.score)


def generated_by(model: GPT2LMHeadModel, strategy: Strategy) -> list[tuple[Request, tuple[Completion, ...]]]:
    """Requests that leave room for a token, and their completions, decoded together."""
    requests = [request(prompt, strategy) for prompt in prompts_of(8) if len(prompt) < 24 or strategy.max_new_tokens]
    responses = engine_of(model, max_slots=12).generate(requests)
    return [(one, tuple(completions_of([response]))) for one, response in zip(requests, responses, strict=True)]


@pytest.mark.parametrize("name", ["greedy", "greedy_processed"])
def test_greedy_with_cache_and_batch_equals_a_loop_without(model: GPT2LMHeadModel, name: str) -> None:
    def choose(scores: torch.Tensor, _step: int) -> tuple[int, float]:
        return int(scores.argmax()), float(scores.log_softmax(-1).max())

    pairs = generated_by(model, STRATEGIES[name])
    assert len(pairs) > 6
    for one, (done,) in pairs:
        assert_as_naive(done, naive_single(model, one.prompt_token_ids, one.strategy, choose))


@pytest.mark.parametrize("name", ["samples", "samples_filtered", "samples_processed"])
def test_sampling_with_cache_and_batch_equals_a_loop_without_on_the_same_noise(
    model: GPT2LMHeadModel, name: str
) -> None:
    strategy = STRATEGIES[name]
    assert isinstance(strategy, Sampling)

    def choose_with(seed: int) -> Callable[[torch.Tensor, int], tuple[int, float]]:
        def choose(scores: torch.Tensor, step: int) -> tuple[int, float]:
            probs = distribution(strategy, scores)
            kept = np.flatnonzero(probs)
            token = kept[np.argmax(np.log(probs[kept]) + numpy_gumbel(seed, step, kept))]
            return int(token), float(np.log(probs[token]))

        return choose

    pairs = generated_by(model, strategy)
    assert len(pairs) > 6
    for one, completions in pairs:
        for seed, done in zip(one.seeds, completions, strict=True):
            assert_as_naive(done, naive_single(model, one.prompt_token_ids, strategy, choose_with(seed)))


@pytest.mark.parametrize("name", ["beams", "beams_processed"])
def test_beams_with_cache_and_batch_equal_a_search_without(model: GPT2LMHeadModel, name: str) -> None:
    strategy = STRATEGIES[name]
    assert isinstance(strategy, BeamSearch)
    pairs = generated_by(model, strategy)
    assert len(pairs) > 6
    for one, completions in pairs:
        expected = naive_beams(model, one.prompt_token_ids, strategy)
        for done, beam in zip(completions, expected, strict=True):
            assert_as_naive(done, beam)


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


# transformers.generate


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a random strategy, greedy or beams, with random processors."""
    case: dict[str, Any] = {"max_new_tokens": draw(st.integers(1, 12))}
    if draw(st.booleans()):
        case["num_beams"] = draw(st.integers(2, 4))
        case["num_return_sequences"] = draw(st.integers(1, case["num_beams"]))
        case["length_penalty"] = draw(st.sampled_from([-1.0, 0.0, 1.0, 1.5]))
        case["early_stopping"] = draw(st.sampled_from([True, False, "never"]))
    token = st.integers(0, 29).filter(lambda token: token != EOS)
    optional = {
        "repetition_penalty": st.sampled_from([0.8, 1.2, 2.0]),
        "no_repeat_ngram_size": st.integers(1, 3),
        "bad_words_ids": st.lists(st.lists(token, min_size=1, max_size=2), min_size=1, max_size=4, unique_by=tuple),
        "min_new_tokens": st.integers(1, case["max_new_tokens"]),
    }
    return case | {key: draw(values) for key, values in optional.items() if draw(st.booleans())}


SMALL = random_model(vocab_size=30, spread=0.5, layers=1)


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(case=cases(), seed=st.integers(0, 10_000))
def test_random_strategies_equal_transformers(case: dict[str, Any], seed: int) -> None:
    prompts = uneven_prompts(2, vocab_size=30, longest=8, seed=seed)
    strategy = (
        BeamSearch(name="b", type="beam_search", **case)
        if "num_beams" in case
        else Greedy(name="g", type="greedy", **case)
    )
    num_rows = case.get("num_return_sequences", 1)
    requests = [Request(prompt, strategy, tuple(range(num_rows))) for prompt in prompts]
    for prompt, response in zip(prompts, engine_for(SMALL, eos=EOS).generate(requests), strict=True):
        assume(not isinstance(response.completions, RowError))  # transformers then takes token 0
        with torch.inference_mode():
            output = SMALL.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                eos_token_id=EOS,
                pad_token_id=EOS,
                return_dict_in_generate=True,
                output_scores=True,
                **case,
            )
        for row, done in enumerate(response.completions):
            assert isinstance(done, Completion)
            expected = output.sequences[row, len(prompt) :].tolist()
            if EOS in expected:
                expected = expected[: expected.index(EOS) + 1]
            assert done.token_ids.tolist() == expected
            if "num_beams" in case:
                assert done.sequence_score == pytest.approx(float(output.sequences_scores[row]), rel=1e-5, abs=1e-4)
