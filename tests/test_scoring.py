"""Scores of given tokens, against forwards of transformers over one row at a time."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from pipeline.engine import GPT2, Engine
from pipeline.engine.scoring import POSITIONS_PER_CHUNK, POSITIONS_PER_FORWARD
from pipeline.records import Completion, Request, RowError
from pipeline.strategies import Greedy, Score
from tests.models import engine_for, random_model, uneven_prompts

SCORE = Score(name="s", type="score")
MODEL = random_model(vocab_size=50, positions=400)
EXACT = deepcopy(MODEL).double()  # in float32 what transformers rounds is 1e-5 itself, twice what we do


def requests_of(count: int, longest: int = 200) -> list[Request]:
    """Prompts and targets of uneven length."""
    prompts = uneven_prompts(count, vocab_size=50, longest=longest, seed=1)
    targets = uneven_prompts(count, vocab_size=50, longest=longest, seed=2)
    return [Request(prompt, SCORE, (0,), target) for prompt, target in zip(prompts, targets, strict=True)]


def scored(request: Request, engine: Engine) -> Completion:
    (response,) = engine.generate([request])
    assert isinstance(response.completions, tuple)
    return response.completions[0]


@torch.inference_mode()
def steps_of(model: GPT2LMHeadModel, request: Request) -> torch.Tensor:
    """Log-probabilities (S, V) before each target token."""
    tokens = [*request.prompt_token_ids, *request.target_token_ids]
    return model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)[len(request.prompt_token_ids) - 1 :]


def test_every_measure_equals_one_forward_over_the_row() -> None:
    requests = requests_of(12)
    for request, response in zip(requests, engine_for(MODEL, num_alternatives=4).generate(requests), strict=True):
        assert isinstance(response.completions, tuple)
        (done,) = response.completions
        steps, targets = steps_of(EXACT, request), torch.tensor(request.target_token_ids)
        chosen = steps[torch.arange(len(targets)), targets]
        assert (done.token_ids.tolist(), done.finish_reason) == (targets.tolist(), "scored")
        assert (done.sampling_logprobs, done.sequence_score, done.stop_match) == (None, None, None)
        np.testing.assert_allclose(done.token_logprobs, chosen, atol=1e-5)
        np.testing.assert_allclose(done.entropies, -(steps.exp() * steps).sum(-1), atol=1e-5)
        np.testing.assert_array_equal(done.token_ranks, 1 + (steps > chosen[:, None]).sum(-1))
        np.testing.assert_array_equal(done.top_token_ids, steps.topk(4).indices)
        np.testing.assert_allclose(done.top_probs, steps.topk(4).values.exp(), atol=1e-5)


def test_the_loglikelihood_of_lm_evaluation_harness_can_be_read_off() -> None:
    """Its sum, and whether greedy decoding of the context gives the continuation."""
    engine, is_greedy = engine_for(MODEL), []
    greedy = Greedy(name="g", type="greedy", max_new_tokens=6, ignore_eos=True)
    for request in requests_of(6, longest=20):
        (response,) = engine.generate([Request(request.prompt_token_ids, greedy, (0,))])
        assert isinstance(response.completions, tuple)
        continuation = tuple(response.completions[0].token_ids.tolist())
        for target in (continuation, (*continuation[:-1], (continuation[-1] + 1) % 50)):
            one = Request(request.prompt_token_ids, SCORE, (0,), target)
            done, steps = scored(one, engine), steps_of(MODEL, one)
            total = float(steps[torch.arange(6), torch.tensor(target)].sum())
            assert float(done.token_logprobs.sum()) == pytest.approx(total, abs=1e-4)
            assert bool((done.token_ranks == 1).all()) == (steps.argmax(-1).tolist() == list(target))
            is_greedy.append(bool((done.token_ranks == 1).all()))
    assert is_greedy == [True, False] * 6


def test_rows_are_scored_alike_alone_and_together() -> None:
    engine = engine_for(MODEL)
    requests = requests_of(30)
    assert sum(len(one.prompt_token_ids) + len(one.target_token_ids) for one in requests) > POSITIONS_PER_FORWARD
    for request, response in zip(requests, engine.generate(requests), strict=True):
        assert isinstance(response.completions, tuple)
        np.testing.assert_allclose(
            response.completions[0].token_logprobs, scored(request, engine).token_logprobs, atol=1e-5
        )


class Watched(GPT2):
    """A model that notes how many positions get vocabulary-wide logits at once."""

    most_positions = 0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.most_positions = max(self.most_positions, len(hidden))
        return super().logits(hidden)


def test_a_row_as_long_as_the_context_never_has_all_its_logits_at_once() -> None:
    model = Watched(MODEL)
    engine = Engine(model, eos_token_ids=(), token_bytes=[b""] * 50, num_alternatives=2)
    done = scored(Request((1,), SCORE, (0,), tuple(index % 50 for index in range(400))), engine)
    assert len(done.token_ids) == 400
    assert model.most_positions == POSITIONS_PER_CHUNK


def test_a_row_for_which_the_model_breaks_down_is_an_error_and_its_neighbours_are_not() -> None:
    broken = random_model(vocab_size=50)
    with torch.no_grad():
        broken.transformer.wte.weight[7] = torch.nan
    broken.lm_head.weight = torch.nn.Parameter(random_model(vocab_size=50).lm_head.weight.clone())
    requests: list[Any] = [Request((1, 2), SCORE, (0,), (3, 4)), Request((1, 7), SCORE, (0,), (3, 4))]
    fine, wrong = engine_for(broken).generate(requests)
    assert isinstance(fine.completions, tuple)
    assert isinstance(wrong.completions, RowError)
    assert wrong.completions.type == "logits_not_finite"
