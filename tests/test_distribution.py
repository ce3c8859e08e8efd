"""Whole next-token distributions against transformers, for prompts of any mixture of lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.engine import GPT2
from pipeline.engine.distribution import POSITIONS_PER_BATCH, next_token_logprobs
from pipeline.errors import ModelError
from tests.models import random_model, uneven_prompts


def test_every_prompt_has_the_log_softmax_of_its_last_position_in_transformers() -> None:
    source = random_model()
    prompts = [(3,), *uneven_prompts(9, vocab_size=60), tuple(range(59, -1, -1))]
    logprobs = next_token_logprobs(GPT2(source), prompts)
    assert (logprobs.shape, logprobs.dtype) == ((len(prompts), 60), np.float64)
    source.double()  # in float32 it is itself off by as much as is allowed here
    for prompt, row in zip(prompts, logprobs, strict=True):
        with torch.inference_mode():
            expected = source(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        np.testing.assert_allclose(row, expected, atol=1e-5, rtol=0)


def test_a_prompt_has_the_same_distribution_alone_as_among_many() -> None:
    model = GPT2(random_model())
    prompts = uneven_prompts(150, vocab_size=60)
    assert len(prompts) * max(map(len, prompts)) > POSITIONS_PER_BATCH  # so that there are several batches
    together = next_token_logprobs(model, prompts)
    for index in (0, 1, 77, 149):
        np.testing.assert_allclose(together[index], next_token_logprobs(model, [prompts[index]])[0], atol=1e-5, rtol=0)


def test_probabilities_add_up_to_one_far_below_float32() -> None:
    logprobs = next_token_logprobs(GPT2(random_model(spread=1.0)), uneven_prompts(5, vocab_size=60))
    np.testing.assert_allclose(np.exp(logprobs).sum(-1), 1, atol=1e-12, rtol=0)


def test_bfloat16_weights_keep_exact_ties() -> None:
    source = random_model(spread=0.02).bfloat16()
    logprobs = next_token_logprobs(GPT2(source), [(1, 2, 3)])[0]
    with torch.inference_mode():
        logits = source(torch.tensor([(1, 2, 3)])).logits[0, -1].float()
    assert len(set(logprobs.tolist())) == len(set(logits.tolist())) < 60


def test_damaged_weights_are_refused() -> None:
    source = random_model()
    with torch.no_grad():
        source.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinite"):
        next_token_logprobs(GPT2(source), [(1,)])
