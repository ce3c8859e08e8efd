"""What it is for the engine and the naive references to agree on a request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from pipeline.engine.sampling import branch, gumbel
from pipeline.records import Completion, Request, RowError
from pipeline.strategies import Sampling
from tests.models import token_bytes
from tests.naive import Completed, Naive, reference

Decision = str | list[tuple[list[int], str]]


@lru_cache(maxsize=100_000)
def noise_row(seed: int, step: int, beam: int, vocab_size: int) -> list[float]:
    """Noise of every token in one draw of the engine."""
    seeds = branch(torch.tensor([seed]), torch.tensor([beam]))
    return gumbel(seeds, torch.tensor([step]), torch.arange(vocab_size)[None])[0].tolist()


def problems(request: Request, model: GPT2LMHeadModel, eos: int) -> list[Naive[Any]]:
    """The request as the references see it: each sample is a problem of its own."""
    strategy, vocab_size = request.strategy, model.config.vocab_size
    seeds = request.seeds if isinstance(strategy, Sampling) else request.seeds[:1]
    return [
        Naive(
            model,
            request.prompt_token_ids,
            strategy,
            (eos,),
            token_bytes(vocab_size),
            lambda step, beam, token, seed=seed: noise_row(seed, step, beam, vocab_size)[token],
        )
        for seed in seeds
    ]


def references(request: Request, model: GPT2LMHeadModel, eos: int) -> list[Completed] | str:
    """All completions of the request, or the error of the first sample that has one."""
    answers = [reference(naive) for naive in problems(request, model, eos)]
    error = next((answer for answer in answers if isinstance(answer, str)), None)
    return error or [done for answer in answers if not isinstance(answer, str) for done in answer]


def decision(answer: Sequence[Completed] | Sequence[Completion] | RowError | str) -> Decision:
    """Tokens and reasons, or the error: what must be equal and not only close."""
    if isinstance(answer, RowError | str):
        return answer if isinstance(answer, str) else answer.type
    return [([int(token) for token in done.token_ids], done.finish_reason) for done in answer]


def assert_agrees(found: Sequence[Completion] | RowError, expected: list[Completed] | str) -> None:
    """Tokens, reasons and errors are equal, scores and probabilities close."""
    assert decision(found) == decision(expected)
    if isinstance(found, RowError) or isinstance(expected, str):
        return
    for done, other in zip(found, expected, strict=True):
        assert done.token_logprobs.tolist() == close(other.logprobs)
        assert done.sequence_score == (None if other.sequence_score is None else close(other.sequence_score))
        if other.sampling_logprobs is not None:
            assert done.sampling_logprobs is not None
            assert done.sampling_logprobs.tolist() == close(other.sampling_logprobs)


def close(value: float | Sequence[float]) -> Any:
    """Equal to 1e-4, relative or absolute."""
    return pytest.approx(value, rel=1e-4, abs=1e-4)
