"""Agreement with `transformers.generate`, token for token, on uneven prompts decoded together."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from pipeline.checkpoint import DEMO
from pipeline.records import Completion, Request
from pipeline.strategies import BeamSearch, Greedy, NextToken
from tests.models import engine_for, random_model, uneven_prompts

PROCESSORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "repetition_bonus": {"repetition_penalty": 0.8},
    "no_repeat_bigrams": {"no_repeat_ngram_size": 2},
    "no_repeat_trigrams": {"no_repeat_ngram_size": 3},
    "bad_words": {"bad_words_ids": ((7,), (11, 12), (3, 4, 5))},
    "min_new_tokens": {"min_new_tokens": 5},
    "all_at_once": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": ((7,), (11, 12)),
        "min_new_tokens": 4,
    },
}


def reference(model: GPT2LMHeadModel, prompt: tuple[int, ...], eos: int | None, **settings: Any) -> Any:
    """`transformers.generate` on one prompt, without padding."""
    with torch.inference_mode():
        return model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )


def generated(output: Any, row: int, num_prompt_tokens: int, eos: int | None) -> list[int]:
    """Completion of a reference row up to and with its EOS."""
    tokens = output.sequences[row, num_prompt_tokens:].tolist()
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


def hf_settings(processors: dict[str, Any]) -> dict[str, Any]:
    settings = dict(processors)
    if "bad_words_ids" in settings:
        settings["bad_words_ids"] = [list(phrase) for phrase in settings["bad_words_ids"]]
    return settings


@pytest.fixture(scope="module", params=["small vocabulary", "GPT-2's vocabulary", "demo"])
def model(request: pytest.FixtureRequest) -> GPT2LMHeadModel:
    match request.param:
        case "small vocabulary":
            return random_model(vocab_size=60, spread=0.4)
        case "demo":
            return GPT2LMHeadModel.from_pretrained(DEMO, dtype=torch.float32).eval()
        case _:
            return random_model(vocab_size=50257, spread=0.3)


@pytest.mark.parametrize("processors", PROCESSORS.values(), ids=PROCESSORS)
def test_greedy_equals_transformers(model: GPT2LMHeadModel, processors: dict[str, Any]) -> None:
    eos = model.config.eos_token_id
    prompts = uneven_prompts(12, vocab_size=model.config.vocab_size)
    strategy = Greedy(name="g", type="greedy", max_new_tokens=16, **processors)
    responses = engine_for(model, eos=eos).generate([Request(prompt, strategy, (0,)) for prompt in prompts])
    for prompt, response in zip(prompts, responses, strict=True):
        assert not isinstance(response.completions, tuple) or len(response.completions) == 1
        expected = reference(model, prompt, eos, max_new_tokens=16, **hf_settings(processors))
        assert response.completions[0].token_ids.tolist() == generated(expected, 0, len(prompt), eos)


@pytest.mark.parametrize("processors", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("num_beams", [2, 5])
def test_beam_search_equals_transformers(model: GPT2LMHeadModel, processors: dict[str, Any], num_beams: int) -> None:
    eos = model.config.eos_token_id
    prompts = uneven_prompts(6, vocab_size=model.config.vocab_size)
    strategy = BeamSearch(
        name="b", type="beam_search", max_new_tokens=12, num_beams=num_beams, num_return_sequences=2, **processors
    )
    responses = engine_for(model, eos=eos).generate([Request(prompt, strategy, (0, 1)) for prompt in prompts])
    for prompt, response in zip(prompts, responses, strict=True):
        expected = reference(
            model,
            prompt,
            eos,
            max_new_tokens=12,
            num_beams=num_beams,
            num_return_sequences=2,
            **hf_settings(processors),
        )
        for row, completion in enumerate(response.completions):
            assert isinstance(completion, Completion)
            assert completion.token_ids.tolist() == generated(expected, row, len(prompt), eos)
            assert completion.sequence_score == pytest.approx(float(expected.sequences_scores[row]), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_beam_search_stops_and_scores_as_transformers_does(length_penalty: float, early_stopping: bool | str) -> None:
    eos = 5
    model = random_model(vocab_size=20, spread=0.5)
    prompts = uneven_prompts(8, vocab_size=20)
    settings: dict[str, Any] = {
        "max_new_tokens": 20,
        "num_beams": 4,
        "num_return_sequences": 4,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
    }
    strategy = BeamSearch(name="b", type="beam_search", **settings)
    responses = engine_for(model, eos=eos).generate([Request(prompt, strategy, (0, 1, 2, 3)) for prompt in prompts])
    for prompt, response in zip(prompts, responses, strict=True):
        expected = reference(model, prompt, eos, **settings)
        for row, completion in enumerate(response.completions):
            assert isinstance(completion, Completion)
            assert completion.token_ids.tolist() == generated(expected, row, len(prompt), eos)
            assert completion.sequence_score == pytest.approx(float(expected.sequences_scores[row]), rel=1e-5, abs=1e-4)


def test_several_stop_tokens_equal_several_eos_tokens(model: GPT2LMHeadModel) -> None:
    prompts = uneven_prompts(6, vocab_size=model.config.vocab_size)
    greedy = Greedy(name="g", type="greedy", max_new_tokens=16, stop_token_ids=(8, 9, 10, 11))
    beams = BeamSearch(name="b", type="beam_search", max_new_tokens=10, num_beams=3, stop_token_ids=(8, 9, 10, 11))
    stops = {model.config.eos_token_id, 8, 9, 10, 11}
    for strategy, settings in ((greedy, {"max_new_tokens": 16}), (beams, {"max_new_tokens": 10, "num_beams": 3})):
        responses = engine_for(model, eos=model.config.eos_token_id).generate(
            [Request(prompt, strategy, (0,)) for prompt in prompts]
        )
        for prompt, response in zip(prompts, responses, strict=True):
            tokens = reference(model, prompt, sorted(stops), **settings).sequences[0, len(prompt) :].tolist()  # type: ignore[arg-type]
            ends = [i for i, token in enumerate(tokens) if token in stops]
            assert response.completions[0].token_ids.tolist() == (tokens[: ends[0] + 1] if ends else tokens)


def test_raw_measures_equal_a_teacher_forced_forward(model: GPT2LMHeadModel) -> None:
    prompts = uneven_prompts(6, vocab_size=model.config.vocab_size)
    strategies = [
        Greedy(name="g", type="greedy", max_new_tokens=12, repetition_penalty=1.5),
        BeamSearch(name="b", type="beam_search", max_new_tokens=9, num_beams=4, num_return_sequences=3),
        NextToken(name="n", type="next_token"),
    ]
    seeds = {"g": (0,), "b": (0, 1, 2), "n": (0,)}
    requests = [Request(prompt, strategy, seeds[strategy.name]) for prompt in prompts for strategy in strategies]
    engine = engine_for(model, eos=model.config.eos_token_id, num_alternatives=7, with_prompt_logprobs=True)
    exact = deepcopy(model).double()  # in float32 transformers is itself off by as much as is allowed here
    for request, response in zip(requests, engine.generate(requests), strict=True):
        prompt = request.prompt_token_ids
        for completion in response.completions:
            assert isinstance(completion, Completion)
            tokens = completion.token_ids.tolist()
            with torch.inference_mode():
                logprobs = exact(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)
            steps = logprobs[len(prompt) - 1 : -1]  # (S, V)
            chosen = steps[torch.arange(len(tokens)), torch.tensor(tokens)]
            np.testing.assert_allclose(completion.token_logprobs, chosen, atol=1e-5)
            np.testing.assert_allclose(completion.entropies, -(steps.exp() * steps).sum(-1), atol=1e-4)
            np.testing.assert_allclose(completion.top_probs, steps.exp().topk(7).values, atol=1e-5)
            np.testing.assert_array_equal(completion.top_token_ids, steps.topk(7).indices)
            assert completion.token_ranks.tolist() == (1 + (steps > chosen[:, None]).sum(-1)).tolist()
            assert response.prompt_logprobs is not None
            assert np.isnan(response.prompt_logprobs[0])
            expected = logprobs[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:], dtype=torch.int64)]
            np.testing.assert_allclose(response.prompt_logprobs[1:], expected, atol=1e-5)
