"""The decode loop on models whose every answer is known: the next token depends on the last one, by a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.engine import GPT2, Engine, native
from pipeline.engine.cache import Memory, SlotCache
from pipeline.engine.model import States
from pipeline.records import Completion, Request, Response, RowError, Usage
from pipeline.strategies import BeamSearch, Greedy, NextToken, Sampling, Strategy
from tests.distributions import distribution
from tests.models import engine_for, random_model, uneven_prompts

EOS = 7
SUCCESSORS = [1, 2, 3, 4, 5, 6, EOS, 0]  # 0 1 2 3 4 5 6 EOS, and around


def table_model(table: torch.Tensor, *, positions: int = 32) -> GPT2LMHeadModel:
    """A model whose logits after token i are row i of `table`, (V, V), whatever came before.

    Embeddings are unit vectors, layers add nothing, and the last norm's weight and bias undo its normalisation.
    """
    size = len(table)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=positions, n_embd=size, n_layer=1, n_head=1, tie_word_embeddings=False)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.wte.weight.copy_(torch.eye(size))
        model.transformer.ln_f.weight.fill_(math.sqrt(size - 1) / size)
        model.transformer.ln_f.bias.fill_(1 / size)
        model.transformer.ln_f.eps = model.config.layer_norm_epsilon = 0.0
        model.lm_head.weight.copy_(table.T)
    return model


def chain(successors: Sequence[int] = SUCCESSORS, **settings: Any) -> GPT2LMHeadModel:
    """After token i comes successors[i] with logit 10, then successors[successors[i]] with 5, any other with 0."""
    table = torch.zeros(len(successors), len(successors))
    for token, successor in enumerate(successors):
        table[token, successors[successor]] = 5.0
        table[token, successor] = 10.0
    return table_model(table, **settings)


def engine_of(source: GPT2LMHeadModel, **settings: Any) -> Engine:
    """Token 0 prints as `a`, 1 as `b` and so on; the end of text as nothing."""
    token_bytes = [b"" if token == EOS else bytes([97 + token]) for token in range(source.config.vocab_size)]
    return Engine(
        GPT2(source), **{"eos_token_ids": (EOS,), "token_bytes": token_bytes, "num_alternatives": 2} | settings
    )


def greedy(**values: Any) -> Greedy:
    limit = {} if "max_length" in values else {"max_new_tokens": 20}
    return Greedy(name="g", type="greedy", **{**limit, **values})


def sampling(**values: Any) -> Sampling:
    return Sampling(name="s", type="sampling", **{"max_new_tokens": 20, **values})


def beams(**values: Any) -> BeamSearch:
    limit = {} if "max_length" in values else {"max_new_tokens": 20}
    return BeamSearch(name="b", type="beam_search", **{"num_beams": 2, **limit, **values})


NEXT_TOKEN = NextToken(name="n", type="next_token")


def seeds_of(strategy: Strategy) -> tuple[int, ...]:
    return tuple(range(getattr(strategy, "num_return_sequences", 1)))


def run(engine: Engine, *work: tuple[tuple[int, ...], Strategy]) -> list[Response]:
    return engine.generate([Request(prompt, strategy, seeds_of(strategy)) for prompt, strategy in work])


def outcome(response: Response) -> list[tuple[list[int], str, str | int | None]] | RowError:
    """Tokens, finish reason and match of each completion."""
    if isinstance(response.completions, RowError):
        return response.completions
    return [(done.token_ids.tolist(), done.finish_reason, done.stop_match) for done in response.completions]


def only(engine: Engine, prompt: tuple[int, ...], strategy: Strategy) -> Completion:
    """The one completion of one request."""
    (response,) = run(engine, (prompt, strategy))
    assert not isinstance(response.completions, RowError)
    (done,) = response.completions
    return done


# how full the batch is


def test_usage_counts_passes_and_how_many_of_the_slots_were_decoded() -> None:
    engine = engine_of(chain(), max_slots=4)
    run(engine, ((0,), greedy(max_new_tokens=3)), ((1,), greedy(max_new_tokens=2)))
    assert engine.usage == Usage(num_prefills=1, num_decode_steps=2, used_slot_steps=2 + 1, offered_slot_steps=2 * 4)
    run(engine, *[((0,), greedy(max_new_tokens=3))] * 6)  # all 4 slots and then 2
    run(engine, ((0,), NEXT_TOKEN))  # needs no step
    assert engine.usage == Usage(
        num_prefills=1 + 2 + 1, num_decode_steps=2 + 4, used_slot_steps=3 + 12, offered_slot_steps=8 + 16
    )


def test_beams_are_rows_of_a_step_and_a_batch_too_narrow_for_them_offers_as_many() -> None:
    engine = engine_of(chain(), max_slots=1)
    run(engine, ((0,), beams(num_beams=3, max_new_tokens=2)))
    assert engine.usage.offered_slot_steps == 3 * engine.usage.num_decode_steps > 0
    assert engine.usage.occupancy == 1.0


# limits


def test_max_new_tokens_ends_a_row_by_length() -> None:
    for limit in (1, 2, 5):
        (response,) = run(engine_of(chain()), ((0,), greedy(max_new_tokens=limit)))
        assert outcome(response) == [([1, 2, 3, 4, 5][:limit], "length", None)]


def test_max_length_counts_the_prompt_of_each_row() -> None:
    prompts = [(0,), (5, 0), (5, 5, 0), (5, 5, 5, 0), (5, 5, 5, 5, 0)]
    responses = run(engine_of(chain()), *((prompt, greedy(max_length=4)) for prompt in prompts))
    assert [outcome(response) for response in responses] == [
        [([1, 2, 3], "length", None)],
        [([1, 2], "length", None)],
        [([1], "length", None)],
        [([], "length", None)],
        [([], "length", None)],
    ]


def test_a_completion_without_tokens_keeps_the_columns_of_its_strategy() -> None:
    strategies = [greedy(max_length=2), sampling(max_new_tokens=None, max_length=2, num_return_sequences=3)]
    strategies.append(beams(max_length=2, num_return_sequences=2))
    engine = engine_of(chain(), num_alternatives=50)
    responses = run(engine, *(((0, 1), strategy) for strategy in strategies))
    assert [outcome(response) for response in responses] == [[([], "length", None)] * count for count in (1, 3, 2)]
    for response, is_beam in zip(responses, (False, False, True), strict=True):
        for done in response.completions:
            assert isinstance(done, Completion)
            assert done.top_token_ids.shape == done.top_probs.shape == (0, 8)
            # beams have a score, the sum of nothing, and no sampling_logprobs, as with tokens
            assert (done.sampling_logprobs is None, done.sequence_score) == ((True, 0.0) if is_beam else (False, None))


def test_the_models_context_ends_a_row_one_token_after_its_last_position() -> None:
    # The last token generated is never fed, so it needs no position: prompt and completion have n_positions + 1.
    cycle = [1, 2, 0, 0]
    engine = engine_of(chain(cycle, positions=8))
    prompts = [(0,) * count for count in (1, 5, 7, 8)]
    responses = run(engine, *((prompt, greedy(max_new_tokens=100)) for prompt in prompts))
    whole = [1, 2, 0, 1, 2, 0, 1, 2]
    assert [outcome(response) for response in responses] == [
        [(whole[: 9 - len(prompt)], "context", None)] for prompt in prompts
    ]


def test_a_limit_that_just_fits_the_context_is_a_limit_of_length() -> None:
    engine = engine_of(chain([1, 2, 0, 0], positions=8))
    for limit, reason in ((4, "length"), (5, "context")):
        (response,) = run(engine, ((0,) * 5, greedy(max_new_tokens=limit)))
        assert outcome(response) == [([1, 2, 0, 1], reason, None)]
        (response,) = run(engine, ((0,) * 5, greedy(max_length=limit + 5)))
        assert outcome(response) == [([1, 2, 0, 1], reason, None)]


def test_beams_and_samples_end_at_the_context_too() -> None:
    engine = engine_of(chain([1, 2, 0, 0], positions=8))
    responses = run(engine, ((0,) * 5, beams(num_return_sequences=2)), ((0,) * 5, sampling(num_return_sequences=2)))
    for response in responses:
        for done in response.completions:
            assert isinstance(done, Completion)
            assert (len(done.token_ids), done.finish_reason) == (4, "context")


# ends


def test_end_of_text_ends_a_row_and_is_kept() -> None:
    (response,) = run(engine_of(chain()), ((3,), greedy()))
    assert outcome(response) == [([4, 5, 6, EOS], "eos", None)]


def test_ignore_eos_takes_end_of_text_as_any_other_token() -> None:
    (response,) = run(engine_of(chain()), ((5,), greedy(ignore_eos=True, max_new_tokens=5)))
    assert outcome(response) == [([6, EOS, 0, 1, 2], "length", None)]


def test_a_model_may_have_several_end_of_text_tokens_or_none() -> None:
    (several,) = run(engine_of(chain(), eos_token_ids=(EOS, 5)), ((3,), greedy()))
    assert outcome(several) == [([4, 5], "eos", None)]
    (none,) = run(engine_of(chain(), eos_token_ids=()), ((5,), greedy(max_new_tokens=4)))
    assert outcome(none) == [([6, EOS, 0, 1], "length", None)]


def test_min_new_tokens_bans_end_of_text_until_so_many_tokens() -> None:
    # After 6 comes EOS, and 0 is the second choice.
    engine = engine_of(chain())
    expected = {
        1: [0, 1, 2, 3, 4, 5, 6, EOS],
        2: [0, 1, 2, 3, 4, 5, 6, EOS],
        7: [0, 1, 2, 3, 4, 5, 6, EOS],
        8: [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, EOS],
    }
    for minimum, tokens in expected.items():
        (response,) = run(engine, ((6,), greedy(min_new_tokens=minimum)))
        assert outcome(response) == [(tokens, "eos", None)]


def test_min_new_tokens_bans_stop_tokens_and_passes_over_stop_strings() -> None:
    engine = engine_of(chain())
    (response,) = run(engine, ((0,), greedy(min_new_tokens=3, stop_token_ids=(2,))))
    assert outcome(response) == [([1, 3, 4, 5, 6, EOS], "eos", None)]
    (response,) = run(engine, ((0,), greedy(min_new_tokens=3, stop_strings=("c", "d"))))
    assert outcome(response) == [([1, 2, 3], "stop", "d")]


def test_a_stop_token_ends_a_row_and_is_kept() -> None:
    (response,) = run(engine_of(chain()), ((0,), greedy(stop_token_ids=(6, 3))))
    assert outcome(response) == [([1, 2, 3], "stop", 3)]


def test_a_stop_string_may_span_tokens() -> None:
    (response,) = run(engine_of(chain()), ((0,), greedy(stop_strings=("xyz", "cde"))))
    assert outcome(response) == [([1, 2, 3, 4], "stop", "cde")]


def test_a_stop_string_is_looked_for_in_the_completion_only() -> None:
    # The prompt ends in "ab"; "bc" would begin in it.
    (response,) = run(engine_of(chain()), ((0, 1), greedy(stop_strings=("ab", "bc", "de"))))
    assert outcome(response) == [([2, 3, 4], "stop", "de")]


def test_of_two_stop_strings_in_one_token_the_one_that_starts_first_is_the_match() -> None:
    token_bytes = [b"a", b"one. two; three", *[b""] * 6]
    for stops in ((";", "."), (".", ";")):
        (response,) = run(engine_of(chain(), token_bytes=token_bytes), ((0,), greedy(stop_strings=stops)))
        assert outcome(response) == [([1], "stop", ".")]


def test_end_of_text_that_is_ignored_does_not_break_a_stop_string() -> None:
    (response,) = run(engine_of(chain()), ((5,), greedy(ignore_eos=True, stop_strings=("gab",))))
    assert outcome(response) == [([6, EOS, 0, 1], "stop", "gab")]


def test_rows_of_one_batch_end_each_by_its_own_reason() -> None:
    work = [
        ((0,), greedy(max_new_tokens=3)),
        ((4,), greedy()),
        ((0,), greedy(stop_strings=("ef",))),
        ((2,), greedy(stop_token_ids=(4,))),
        ((0,) * 30, greedy()),
        ((6,), NEXT_TOKEN),
    ]
    assert [outcome(response) for response in run(engine_of(chain()), *work)] == [
        [([1, 2, 3], "length", None)],
        [([5, 6, EOS], "eos", None)],
        [([1, 2, 3, 4, 5], "stop", "ef")],
        [([3, 4], "stop", 4)],
        [([1, 2, 3], "context", None)],
        [([EOS], "eos", None)],
    ]


def test_stop_strings_end_beams_and_samples() -> None:
    engine = engine_of(chain())
    for strategy in (beams(stop_strings=("cd",)), sampling(stop_strings=("cd",), top_k=1)):
        (response,) = run(engine, ((0,), strategy))
        assert outcome(response) == [([1, 2, 3], "stop", "cd")]


# rows that fail


def test_all_tokens_banned_is_an_error_that_names_its_step() -> None:
    everything = tuple((token,) for token in range(8))
    work = [((0,), strategy) for strategy in (greedy(bad_words_ids=everything), sampling(bad_words_ids=everything))]
    work.append(((0,), beams(bad_words_ids=everything)))
    work.append(((0,), NextToken(name="n", type="next_token", bad_words_ids=everything)))
    for response in run(engine_of(chain()), *work):
        assert response.completions == RowError(
            "no_token_left",
            "no token is left to generate at step 1; relax bad_words",
        )


@pytest.mark.parametrize("strategy", [greedy, sampling, beams])
def test_a_row_that_runs_out_of_tokens_leaves_its_neighbours_alone(strategy: Any) -> None:
    # No token twice, of four: the row that may go on to a fourth step has none left for it.
    limited = strategy(no_repeat_ngram_size=1, max_new_tokens=None, max_length=5)
    prompts = [(0, 0, 0), (0,), (0, 0), (0, 0, 0, 0)]
    engine = engine_of(chain([1, 2, 3, 0]))
    together = [outcome(response) for response in run(engine, *((prompt, limited) for prompt in prompts))]
    assert [outcome(run(engine, (prompt, limited))[0]) for prompt in prompts] == together
    error = together.pop(1)
    assert isinstance(error, RowError)
    assert error.type == "no_token_left"
    assert "at step 4;" in error.message
    assert [len(result[0][0]) for result in together if not isinstance(result, RowError)] == [2, 3, 1]


def test_one_sample_that_fails_fails_its_request() -> None:
    # Tokens 0 and 1 follow each other or themselves at random; no bigram twice soon leaves some samples stuck.
    engine = engine_of(table_model(torch.zeros(2, 2)))
    strategy = sampling(no_repeat_ngram_size=2, max_new_tokens=4, num_return_sequences=20)
    alone = [engine.generate([Request((0,), strategy, (seed,))])[0].completions for seed in range(20)]
    failed = [result for result in alone if isinstance(result, RowError)]
    assert 0 < len(failed) < 20
    (response,) = run(engine, ((0,), strategy))
    assert response.completions in failed


def test_fewer_beams_than_to_be_returned_are_an_error() -> None:
    only_one = tuple((token,) for token in range(8) if token != 2)
    engine = engine_of(chain())
    (one,) = run(engine, ((0,), beams(bad_words_ids=only_one, max_new_tokens=3)))
    assert outcome(one) == [([2, 2, 2], "length", None)]
    (two,) = run(engine, ((0,), beams(bad_words_ids=only_one, max_new_tokens=3, num_return_sequences=2)))
    assert isinstance(two.completions, RowError)
    assert two.completions.type == "too_few_beams"


def test_forced_words_need_no_way_to_stop() -> None:
    """A ban of no stop tokens at all was a crash, and with it the end of the shard."""
    strategy = beams(force_words_ids=((3,),), ignore_eos=True, max_new_tokens=4)
    (response,) = run(engine_of(chain()), ((0,), strategy))
    assert outcome(response) == [([1, 2, 3, 4], "length", None)]


def broken_chain(token: int) -> GPT2LMHeadModel:
    """A chain that cannot bear one token: from the step on where it is fed, the row's logits are NaN."""
    model = chain([1, 2, 3, 0, 5, 6, 4, 0])
    with torch.no_grad():
        model.transformer.wte.weight[token] = float("nan")
    return model


@pytest.mark.parametrize(
    ("strategy", "step"),
    # the second beam meets token 3 one step earlier than the best one, and fails the search
    [(greedy(), 4), (sampling(top_k=1), 4), (beams(), 3), (greedy(repetition_penalty=1.1), 4)],
    ids=["greedy", "sampling", "beams", "processed"],
)
def test_logits_that_are_not_finite_fail_their_row_only(strategy: Strategy, step: int) -> None:
    engine = engine_of(broken_chain(3))
    prompts = [(4,), (0,), (3, 4), (5, 6)]
    responses = run(engine, *((prompt, strategy) for prompt in prompts))
    assert [response.completions for response in responses[1:3]] == [
        RowError("logits_not_finite", f"the model's logits are not finite at step {step}"),
        RowError("logits_not_finite", "the model's logits are not finite at step 1"),
    ]
    for index in (0, 3):
        assert outcome(responses[index]) == outcome(run(engine, (prompts[index], strategy))[0])
        assert not isinstance(responses[index].completions, RowError)


def test_a_token_the_model_cannot_bear_does_no_harm_as_padding() -> None:
    # Shorter prompts are padded with token 0; its NaN came through the masks of prefill and decode.
    prompts = [(4,) * 12, (5,), (6, 6, 6)]
    responses = run(engine_of(broken_chain(0)), *((prompt, greedy(max_new_tokens=6)) for prompt in prompts))
    assert [outcome(response) for response in responses] == [
        [([5, 6, 4, 5, 6, 4], "length", None)],
        [([6, 4, 5, 6, 4, 5], "length", None)],
        [([4, 5, 6, 4, 5, 6], "length", None)],
    ]


def test_a_failed_row_does_not_spoil_the_slot_it_leaves() -> None:
    # Its NaN stayed in the cache. A shorter row that took over the slot, beside a longer one, got it through the mask.
    engine = engine_of(broken_chain(3), max_slots=2)
    work = [((4,) * 20, greedy(max_new_tokens=12)), ((3,) * 18, greedy(max_new_tokens=12))]
    work += [((4,), greedy(max_new_tokens=9)), ((5,), beams(max_new_tokens=8)), ((6,), greedy(max_new_tokens=7))]
    responses = run(engine, *work)
    assert isinstance(responses[1].completions, RowError)
    circle = [5, 6, 4] * 4
    assert [outcome(responses[index]) for index in (0, 2, 3, 4)] == [
        [(circle, "length", None)],
        [(circle[:9], "length", None)],
        [(circle[1:9], "length", None)],
        [(circle[2:9], "length", None)],
    ]


# what is recorded


def test_next_token_gives_the_best_token_and_the_candidates() -> None:
    table = torch.tensor([[0.125, 0.5, 0.25, 0.125], *[[0.25] * 4] * 3]).log()
    done = only(engine_of(table_model(table), num_alternatives=3), (3, 2, 0), NEXT_TOKEN)
    assert (done.token_ids.tolist(), done.finish_reason, done.stop_match) == ([1], "length", None)
    assert done.top_token_ids.tolist() == [[1, 2, 0]]
    assert done.token_ranks.tolist() == [1]
    np.testing.assert_allclose(done.top_probs, [[0.5, 0.25, 0.125]], atol=1e-6)
    np.testing.assert_allclose(done.token_logprobs, [math.log(0.5)], atol=1e-6)
    np.testing.assert_allclose(done.entropies, [1.75 * math.log(2)], atol=1e-5)


def test_raw_and_sampling_logprobs_differ_by_what_the_strategy_did() -> None:
    table = torch.tensor([[0.125, 0.5, 0.25, 0.125], *[[0.25] * 4] * 3]).log()
    engine = engine_of(table_model(table), num_alternatives=0)
    cases = [
        (greedy(max_new_tokens=1), 1, 0.5, 0.5),
        (greedy(max_new_tokens=1, bad_words_ids=((1,),)), 2, 0.25, 0.5),
        (sampling(max_new_tokens=1, top_k=1), 1, 0.5, 1.0),
        (sampling(max_new_tokens=1, bad_words_ids=((1,), (0,)), top_k=2, min_p=0.9), 2, 0.25, 1.0),
        (sampling(max_new_tokens=1, bad_words_ids=((1,), (3,)), temperature=1e-3), 2, 0.25, 1.0),
    ]
    for strategy, token, raw, drawn in cases:
        done = only(engine, (0,), strategy)
        assert done.token_ids.tolist() == [token]
        assert done.sampling_logprobs is not None
        np.testing.assert_allclose(np.exp([done.token_logprobs, done.sampling_logprobs]), [[raw], [drawn]], atol=1e-6)
        assert done.token_ranks.tolist() == [1 if token == 1 else 2]


@pytest.mark.parametrize("steps_per_sync", [1, 4])
def test_a_draw_from_the_raw_distribution_has_one_logprob_to_the_last_digit(steps_per_sync: int) -> None:
    engine = engine_for(random_model(), steps_per_sync=steps_per_sync)
    for temperature, is_raw in ((1.0, True), (0.9, False)):
        done = only(engine, (1, 2, 3), sampling(max_new_tokens=20, temperature=temperature, ignore_eos=True))
        assert done.sampling_logprobs is not None
        assert len(done.token_logprobs) == 20
        assert (done.sampling_logprobs == done.token_logprobs).all() == is_raw


def test_beam_scores_are_processed_and_token_logprobs_raw() -> None:
    table = torch.tensor([[0.125, 0.5, 0.25, 0.125]] * 4).log()
    strategy = beams(max_new_tokens=2, bad_words_ids=((1,),), repetition_penalty=2.0, length_penalty=1.0)
    done = only(engine_of(table_model(table)), (0,), strategy)
    # 2 first, at its own log-probability; then seen, at twice that: 3, not seen, is as good as 2 once more
    first, again = math.log(0.25), math.log(0.125)
    assert done.token_ids.tolist() in ([2, 3], [3, 2])
    assert done.sequence_score == pytest.approx((first + again) / 2, rel=1e-6)
    np.testing.assert_allclose(sorted(done.token_logprobs), [again, first], atol=1e-6)
    assert done.sampling_logprobs is None


@pytest.mark.parametrize("num_alternatives", [0, 1, 8, 50])
def test_any_number_of_alternatives_leaves_the_rest_as_it_is(num_alternatives: int) -> None:
    source, strategy = chain(), greedy(max_new_tokens=3, bad_words_ids=((2,),))
    usual = only(engine_of(source), (0,), strategy)
    done = only(engine_of(source, num_alternatives=num_alternatives), (0,), strategy)
    width = min(num_alternatives, 8)
    assert done.top_token_ids.shape == done.top_probs.shape == (3, width)
    assert (done.top_token_ids.dtype, done.top_probs.dtype) == (np.int32, np.float32)
    for field in fields(Completion):
        if field.name not in ("top_token_ids", "top_probs"):
            np.testing.assert_array_equal(getattr(done, field.name), getattr(usual, field.name))
    if width == 8:
        np.testing.assert_allclose(done.top_probs.sum(-1), 1, atol=1e-6)
        assert done.top_token_ids[0].tolist() == [1, 2, 0, 3, 4, 5, 6, 7]


def test_prompt_logprobs_are_those_of_one_forward_for_any_length() -> None:
    source = random_model(positions=200)
    engine = engine_for(source, with_prompt_logprobs=True)
    tokens = torch.randint(60, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [tuple(tokens[:length]) for length in (1, 2, 64, 65, 66, 129, 200)]
    for prompt, response in zip(prompts, run(engine, *((p, greedy(max_new_tokens=2)) for p in prompts)), strict=True):
        with torch.inference_mode():
            logprobs = source(torch.tensor([prompt])).logits[0].log_softmax(-1)
        expected = logprobs[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:], dtype=torch.int64)]
        assert response.prompt_logprobs is not None
        assert response.prompt_logprobs.dtype == np.float32
        np.testing.assert_allclose(response.prompt_logprobs, [np.nan, *expected], atol=2e-5)


def test_prompt_logprobs_are_given_although_nothing_is_generated() -> None:
    # They depended on whether another strategy of the job generated from the same prompt.
    engine = engine_of(chain(), with_prompt_logprobs=True)
    (alone,) = run(engine, ((0, 1, 2), greedy(max_length=3)))
    beside, _ = run(engine, ((0, 1, 2), greedy(max_length=3)), ((0, 1, 2), greedy()))
    assert alone.prompt_logprobs is not None
    best = 10 - math.log(math.exp(10) + math.exp(5) + 6)
    np.testing.assert_allclose(alone.prompt_logprobs, [np.nan, best, best], atol=1e-6)
    np.testing.assert_allclose(beside.prompt_logprobs, alone.prompt_logprobs, atol=1e-6)


def test_prompt_logprobs_are_absent_unless_asked_for() -> None:
    assert run(engine_of(chain()), ((0, 1), greedy()))[0].prompt_logprobs is None


# ties


@pytest.mark.parametrize("strategy", [greedy(max_new_tokens=3), greedy(max_new_tokens=3, repetition_penalty=1.0)])
def test_greedy_takes_the_lowest_of_tied_tokens(strategy: Strategy) -> None:
    table = torch.zeros(6, 6)
    table[:, [2, 4]] = 1.0
    assert only(engine_of(table_model(table)), (5,), strategy).token_ids.tolist() == [2, 2, 2]


def test_a_model_without_any_opinion_records_the_lowest_token_ids() -> None:
    done = only(engine_of(table_model(torch.zeros(6, 6)), num_alternatives=3), (5,), greedy(max_new_tokens=2))
    assert done.token_ids.tolist() == [0, 0]
    assert done.top_token_ids.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_tied_beams_go_by_the_better_parent_then_the_lower_token_id() -> None:
    strategy = beams(num_beams=3, max_new_tokens=2, num_return_sequences=3)
    (response,) = run(engine_of(table_model(torch.zeros(6, 6))), ((5,), strategy))
    assert outcome(response) == [([0, token], "length", None) for token in (0, 1, 2)]


def test_logits_rounded_to_bfloat16_are_ordered_by_token_id_where_they_tie() -> None:
    source = random_model(vocab_size=3000, spread=0.02).bfloat16()
    engine = engine_for(source, num_alternatives=40)
    prompts = [(token, token + 1) for token in range(30)]
    plain = run(engine, *((prompt, greedy(max_new_tokens=4)) for prompt in prompts))
    # a penalty of 1 changes nothing, but its tokens are chosen from processed scores
    processed = run(engine, *((prompt, greedy(max_new_tokens=4, repetition_penalty=1.0)) for prompt in prompts))
    narrow = run(engine, *((prompt, sampling(max_new_tokens=4, top_k=1)) for prompt in prompts))
    num_ties = 0
    for one, *others in zip(plain, processed, narrow, strict=True):
        assert all(outcome(other) == outcome(one) for other in others)
        (done,) = one.completions
        assert isinstance(done, Completion)
        assert done.token_ids.tolist() == done.top_token_ids[:, 0].tolist()
        for ids, probs in zip(done.top_token_ids.tolist(), done.top_probs.tolist(), strict=True):
            assert list(zip(ids, probs, strict=True)) == sorted(
                zip(ids, probs, strict=True), key=lambda pair: (-pair[1], pair[0])
            )
            num_ties += len(probs) - len(set(probs))
    assert num_ties > 100


# slots and prompts


class Watched(GPT2):
    """A model that notes the prompts it prefills and the positions of its caches' slots."""

    def __init__(self, source: GPT2LMHeadModel) -> None:
        super().__init__(source)
        self.prefills: list[list[tuple[int, ...]]] = []
        self.caches: list[list[int]] = []

    def new_cache(self, capacities: Sequence[int], memory: Memory | None = None) -> SlotCache:
        self.caches.append([*capacities])
        return super().new_cache(capacities, memory)

    def prefill(
        self, cache: SlotCache, first_slot: int, prompts: Sequence[tuple[int, ...]], *rest: Any, **settings: Any
    ) -> list[States]:
        self.prefills.append(list(prompts))
        return super().prefill(cache, first_slot, prompts, *rest, **settings)


def watched_engine(source: GPT2LMHeadModel, **settings: Any) -> tuple[Engine, Watched]:
    model = Watched(source)
    return Engine(model, **{"eos_token_ids": (), "token_bytes": [b""] * 8, "num_alternatives": 0} | settings), model


def test_no_requests_give_no_responses() -> None:
    assert engine_of(chain()).generate([]) == []


def test_a_prompt_is_prefilled_once_for_all_its_strategies_samples_and_repetitions() -> None:
    engine, model = watched_engine(chain())
    strategies = [greedy(), greedy(), sampling(num_return_sequences=5), beams(num_beams=3), NEXT_TOKEN]
    run(engine, *(((0, 1), strategy) for strategy in strategies), ((2,), NEXT_TOKEN), ((0, 1), greedy()))
    assert model.prefills == [[(2,), (0, 1)]]  # the shorter first: less is padded


def test_identical_requests_give_identical_responses() -> None:
    strategies = [greedy(), sampling(num_return_sequences=2), beams(), NEXT_TOKEN]
    responses = run(engine_of(chain()), *(((0, 1), strategy) for strategy in strategies * 2))
    assert [outcome(response) for response in responses[:4]] == [outcome(response) for response in responses[4:]]


def test_prompts_that_need_most_positions_come_first_and_answers_in_the_order_asked() -> None:
    engine, model = watched_engine(chain(), max_slots=1)
    work = [((0,), greedy(max_new_tokens=2)), ((1, 1, 1), greedy(max_new_tokens=1)), ((2, 2), greedy(max_new_tokens=5))]
    assert [outcome(response) for response in run(engine, *work)] == [
        [([1, 2], "length", None)],
        [([2], "length", None)],
        [([3, 4, 5, 6, 7], "length", None)],
    ]
    assert model.prefills == [[(2, 2)], [(1, 1, 1)], [(0,)]]
    assert model.caches == [[6]]


@pytest.mark.parametrize("max_slots", [1, 3, 100])
def test_more_requests_than_slots_are_all_answered(max_slots: int) -> None:
    engine, model = watched_engine(chain(), max_slots=max_slots)
    work = [((token % 7,) * (1 + token % 5), greedy(max_new_tokens=1 + token % 6)) for token in range(35)]
    for (prompt, strategy), response in zip(work, run(engine, *work), strict=True):
        tokens = [(prompt[0] + step) % 8 for step in range(1, (strategy.max_new_tokens or 0) + 1)]
        assert outcome(response) == [(tokens, "length", None)]
    needs = sorted((len(prompt) - 1 + (strategy.max_new_tokens or 0) for prompt, strategy in work), reverse=True)
    longest = needs if model.takes_slots_of_any_length else [needs[0]] * 35
    assert model.caches == [longest[:max_slots]]


def test_waiting_prompts_come_in_once_an_eighth_of_the_slots_is_free() -> None:
    engine, model = watched_engine(chain(), max_slots=16)
    run(engine, *(((token % 8,) * (1 + token // 8), greedy(max_new_tokens=1 + token % 9)) for token in range(48)))
    admitted = [len(prompts) for prompts in model.prefills]
    assert admitted[0] == 16
    assert sum(admitted) == 48
    assert min(admitted[1:-1]) >= 2  # the last may be what is left
    assert len(admitted) > 4  # 3 if they waited until all slots are free


def test_a_prompt_with_more_beams_than_slots_still_runs() -> None:
    engine, model = watched_engine(chain(), max_slots=2)
    work = [((0,), greedy(max_new_tokens=3)), ((0,), beams(num_beams=6, max_new_tokens=3)), ((1,), greedy())]
    responses = run(engine, *work)
    assert outcome(responses[1]) == outcome(responses[0]) == [([1, 2, 3], "length", None)]
    assert len(model.caches[0]) == 6


def test_cache_bytes_limit_the_slots_but_never_below_one_prompt_with_its_beams() -> None:
    bytes_per_row = 10 * GPT2(chain()).kv_bytes_per_token
    work = [((token,), greedy(max_new_tokens=10)) for token in range(8)]
    for budget, slots in ((bytes_per_row * 5, 5), (bytes_per_row * 6 - 1, 5), (0, 1), (2**40, 8)):
        engine, model = watched_engine(chain(), cache_bytes=budget)
        run(engine, *work)
        assert model.caches == [[10] * slots]
    engine, model = watched_engine(chain(), cache_bytes=bytes_per_row)
    run(engine, *work, ((0,), beams(num_beams=4, max_new_tokens=10)))
    assert model.caches == [[10] * 4]


@pytest.mark.parametrize("is_plain", [False, True])
def test_short_rows_leave_room_for_more(is_plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_plain:
        monkeypatch.setattr(native, "kernels", lambda: None)
    engine, model = watched_engine(chain(), cache_bytes=20 * GPT2(chain()).kv_bytes_per_token)
    work = [((0,), greedy(max_new_tokens=10)), *(((token,), greedy(max_new_tokens=3)) for token in range(1, 8))]
    assert [len(outcome(response)[0][0]) for response in run(engine, *work)] == [10, *[3] * 7]
    assert model.caches == [[10, 3, 3, 3] if model.takes_slots_of_any_length else [10, 10]]
    assert model.takes_slots_of_any_length is (native.kernels() is not None)


class Small(GPT2):
    """A model on a device with memory for two slots."""

    def new_cache(self, capacities: Sequence[int], memory: Memory | None = None) -> SlotCache:
        if len(capacities) > 2:
            raise torch.OutOfMemoryError
        return super().new_cache(capacities, memory)


@pytest.mark.parametrize("is_plain", [False, True])
def test_what_an_earlier_call_left_in_memory_changes_nothing(is_plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_plain:
        monkeypatch.setattr(native, "kernels", lambda: None)
    prompts = uneven_prompts(9, vocab_size=50)
    few, many = (
        [(prompt, each) for prompt in some for each in (greedy(), sampling(), beams())]
        for some in (prompts[:4], prompts)
    )
    engine = engine_for(random_model(vocab_size=50), max_slots=6)
    first = run(engine, *many)
    assert len(in_numbers(first)) == 27
    assert in_numbers(run(engine, *few)) == in_numbers(run(engine_for(random_model(vocab_size=50), max_slots=6), *few))
    assert in_numbers(run(engine, *many)) == in_numbers(first)


def in_numbers(responses: Sequence[Response]) -> list[str]:
    """All that is recorded of all completions, the same where every bit is."""
    return [
        repr([np.asarray(getattr(done, field.name)).tolist() for field in fields(done)])
        for response in responses
        if not isinstance(response.completions, RowError)
        for done in response.completions
    ]


def test_out_of_memory_halves_the_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(Small(chain()), eos_token_ids=(), token_bytes=[b""] * 8, num_alternatives=0, max_slots=11)
    work = [((token,), greedy(max_new_tokens=3)) for token in range(4)]
    assert [outcome(response) for response in run(engine, *work)] == [
        [([token + 1, token + 2, token + 3], "length", None)] for token in range(4)
    ]
    assert engine.max_slots == 2
    assert "going on with batches of 2 rows" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        run(engine, ((0,), beams(num_beams=3)))


def test_samples_of_a_model_follow_its_joint_distribution_over_two_steps() -> None:
    torch.manual_seed(0)
    table = torch.randn(5, 5)
    strategy = sampling(max_new_tokens=2, num_return_sequences=1024)
    requests = [Request((0,), strategy, tuple(range(1024 * part, 1024 * (part + 1)))) for part in range(4)]
    drawn = [
        done.token_ids.tolist()
        for response in engine_of(table_model(table), max_slots=4096).generate(requests)
        for done in response.completions
        if isinstance(done, Completion)
    ]
    observed = np.bincount([5 * first + second for first, second in drawn], minlength=25)
    probs = table.double().softmax(-1)
    expected = (probs[0][:, None] * probs).flatten().numpy() * 4096
    assert expected.min() > 5
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def drawn_pairs(strategy: BeamSearch, table: torch.Tensor, num_rows: int) -> list[tuple[int, int]]:
    """The first tokens of the two beams of so many rows, the lower id first."""
    requests = [Request((0,), strategy, (seed, seed)) for seed in range(num_rows)]
    responses = engine_of(table_model(table), max_slots=4096, num_alternatives=0).generate(requests)
    return [tuple(sorted(int(done.token_ids[0]) for done in response.completions)) for response in responses]  # type: ignore[misc, union-attr]


@pytest.mark.parametrize("values", [{}, {"temperature": 1.5}, {"top_k": 4}], ids=["plain", "temperature", "top_k"])
def test_drawn_beams_are_drawn_without_replacement_by_their_distribution(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    table = torch.randn(6, 6)
    strategy = beams(num_return_sequences=2, max_new_tokens=1, do_sample=True, ignore_eos=True, **values)
    probs = distribution(strategy, table[0].numpy())
    pairs = list(combinations(np.flatnonzero(probs).tolist(), 2))
    # one after the other, each from what the other leaves
    expected = [probs[a] * probs[b] * (1 / (1 - probs[a]) + 1 / (1 - probs[b])) for a, b in pairs]
    drawn = Counter(drawn_pairs(strategy, table, 3000))
    assert set(drawn) <= set(pairs)
    assert min(expected) * 3000 > 5
    assert stats.chisquare([drawn[pair] for pair in pairs], np.array(expected) * 3000).pvalue > 1e-4
