"""Random jobs: the engine's batch against `transformers.generate` and against the naive references, row by row.

`make fuzz` runs thousands. A row whose outcome hangs on rounding proves nothing and is left out: one whose outcome the
reference itself changes when the weights are nudged by less than a float32 can tell.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from hypothesis import HealthCheck, assume, event, given, settings
from transformers import GPT2LMHeadModel

from pipeline.records import Completion, Request, Response, RowError
from pipeline.strategies import PROCESSORS, SAMPLERS, BeamSearch, Decoding
from tests import hf
from tests.agreement import assert_agrees, close, decision, problems, references
from tests.cases import EOS, LAYERS, POSITIONS, PROCESSOR_SETTINGS, SAMPLER_SETTINGS, VOCABULARY, Job, jobs
from tests.models import engine_for, random_model

NUM_JOBS = int(os.environ.get("FUZZ_JOBS", "100"))
NUDGE = 2e-6  # of a weight, relative: some units in the last place of float32

MODEL = random_model(vocab_size=VOCABULARY, spread=0.4, layers=LAYERS, positions=POSITIONS)
TWIN = hf.drawing(MODEL)

# What transformers does otherwise is in docs/departures.md, and left out here.
UNKNOWN_TO_TRANSFORMERS = {"diversity_penalty", "frequency_penalty", "presence_penalty"}
KNOWN_TO_TRANSFORMERS = [key for key in PROCESSORS if key not in UNKNOWN_TO_TRANSFORMERS]

thoroughly = settings(
    max_examples=NUM_JOBS,
    derandomize="FUZZ_JOBS" not in os.environ,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@lru_cache(maxsize=1)
def nudged_models() -> list[GPT2LMHeadModel]:
    models = []
    for seed in range(1, 7):
        model = random_model(vocab_size=VOCABULARY, layers=LAYERS, positions=POSITIONS)
        generator = torch.Generator().manual_seed(seed)
        nudges = {
            name: weight * (1 + NUDGE * torch.randn(weight.shape, generator=generator))
            for name, weight in MODEL.state_dict().items()
        }
        model.load_state_dict(nudges | {"lm_head.weight": nudges["transformer.wte.weight"]})
        models.append(model)
    return models


def hangs_on_rounding(request: Request) -> bool:
    """Whether the reference itself is of two minds."""
    expected = decision(references(request, MODEL, EOS))
    is_tie = any(decision(references(request, model, EOS)) != expected for model in nudged_models())
    event("left out: hangs on rounding" if is_tie else "does not hang on rounding")
    return is_tie


def assert_as_naive(request: Request, response: Response) -> None:
    expected = references(request, MODEL, EOS)
    event(f"{request.strategy.name}: {expected if isinstance(expected, str) else expected[0].finish_reason}")
    if decision(response.completions) == decision(expected) or not hangs_on_rounding(request):
        assert_agrees(response.completions, expected)


def run(job: Job) -> list[tuple[Request, Response]]:
    engine = engine_for(MODEL, eos=EOS, max_slots=job.max_slots)
    return list(zip(job.requests, engine.generate(job.requests), strict=True))


def test_the_jobs_have_all_processors_and_samplers() -> None:
    assert [key for key in PROCESSORS if key != "diversity_penalty"] == list(PROCESSOR_SETTINGS)
    assert list(SAMPLERS) == list(SAMPLER_SETTINGS)


@thoroughly
@given(job=jobs())
def test_random_jobs_equal_the_naive_references(job: Job) -> None:
    for request, response in run(job):
        assert_as_naive(request, response)


@thoroughly
@given(job=jobs(("greedy", "sampling", "beams", "drawn"), KNOWN_TO_TRANSFORMERS))
def test_random_jobs_equal_transformers(job: Job) -> None:
    kept = tuple(strategy for strategy in job.strategies if is_the_same_there(strategy))
    assume(kept)
    for request, response in run(Job(job.prompts, kept, job.max_slots)):
        if isinstance(response.completions, RowError) or not problems(request, MODEL, EOS)[0].limit > 0:
            continue  # transformers then takes token 0, or raises
        if request.strategy.forced_bos_token_id is None or len(request.prompt_token_ids) == 1:
            assert_as_transformers(request, response.completions)


def is_the_same_there(strategy: Decoding) -> bool:
    """Whether transformers does the same under all settings of the strategy together."""
    stops = {EOS, *strategy.stop_token_ids}
    departures = (
        strategy.stop_strings,
        strategy.allowed_words_ids and (strategy.no_repeat_ngram_size or strategy.bad_words_ids),
        strategy.guidance_scale and isinstance(strategy, BeamSearch),
        strategy.min_new_tokens and strategy.forced_bos_token_id in stops,
        stops & {phrase[0] for phrase in strategy.bad_words_ids if len(phrase) == 1},
        # our stop tokens have to be end-of-text tokens there, which length decay then raises too
        strategy.exponential_decay_length_penalty and strategy.stop_token_ids,
    )
    return not any(departures)


def assert_as_transformers(request: Request, completions: Sequence[Completion]) -> None:
    for index, naive in enumerate(problems(request, MODEL, EOS)):
        output, drawn = hf.generate(TWIN, naive)
        theirs = [hf.completion(output, row, naive) for row in range(len(output.sequences))]
        ours = completions[index : index + len(theirs)]
        if [done.token_ids.tolist() for done in ours] != theirs and hangs_on_rounding(request):
            continue
        for row, done in enumerate(ours):
            assert done.token_ids.tolist() == theirs[row], (request, row)
            if isinstance(naive.strategy, BeamSearch):
                assert done.sequence_score == close(float(output.sequences_scores[row]))
            elif drawn is not None:
                steps = zip(drawn.logprobs, theirs[row], strict=True)
                assert done.sampling_logprobs is not None
                assert done.sampling_logprobs.tolist() == close([float(step[token]) for step, token in steps])
            else:
                steps = zip(output.scores, theirs[row], strict=True)
                expected = [float(scores[0].log_softmax(-1)[token]) for scores, token in steps]
                assert done.sampling_logprobs is not None
                assert done.sampling_logprobs.tolist() == close(expected)
