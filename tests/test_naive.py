"""The naive references themselves: on hand-made cases, and against `transformers.generate` where it still can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, LogitsProcessor

from pipeline.strategies import BeamSearch, Bias, ContrastiveSearch, Decoding, Dola, Greedy, Sampling
from tests.hf import drawing
from tests.models import random_model, uneven_prompts
from tests.naive import Completed, Naive, reference
from tests.naive.beams import Candidate, diverse_beams
from tests.naive.constrained import advancing_tokens, bank, contains, is_met, pick_order, progress
from tests.naive.processors import allowed_tokens, narrow, process
from tests.naive.single import dola_layers, jensen_shannon, layer_logprobs
from tests.test_sampling import numpy_gumbel

EOS = 5
SMALL = random_model(vocab_size=40, spread=0.5)
PROMPTS = uneven_prompts(4, vocab_size=40, longest=9)
PROCESSORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequence_bias": {"sequence_bias": (Bias(token_ids=(9,), bias=4.0), Bias(token_ids=(9, 11), bias=9.0))},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": ((7,), (11, 12), (3, 4, 5))},
    "min_new_tokens": {"min_new_tokens": 6},
    "forced_eos_token_id": {"forced_eos_token_id": 8},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2.0, 1.5)},
    "suppress_tokens": {"suppress_tokens": (3, 17, 21, 30)},
    "begin_suppress_tokens": {"begin_suppress_tokens": tuple(range(20, 40))},
    "several": {"repetition_penalty": 0.8, "min_new_tokens": 4, "suppress_tokens": (17,), "stop_token_ids": (8, 9, 10)},
}


def found(strategy: Decoding, prompt: Sequence[int], model: GPT2LMHeadModel = SMALL, **values: Any) -> list[Completed]:
    answer = reference(Naive(model, tuple(prompt), strategy, (EOS,), **values))
    assert not isinstance(answer, str), answer
    return answer


def generate(model: GPT2LMHeadModel, prompt: Sequence[int], strategy: Decoding, **settings: Any) -> Any:
    """`transformers.generate` on the same prompt and processors."""
    processors = {key: getattr(strategy, key) for key in PROCESSORS if key in type(strategy).model_fields}
    processors = {key: value for key, value in processors.items() if value not in (None, ())}
    if "sequence_bias" in processors:
        processors["sequence_bias"] = [[list(one.token_ids), one.bias] for one in strategy.sequence_bias]
    if "bad_words_ids" in processors:
        processors["bad_words_ids"] = [list(phrase) for phrase in strategy.bad_words_ids]
    if "exponential_decay_length_penalty" in processors:
        processors["exponential_decay_length_penalty"] = (2, 1.5)
    with torch.inference_mode():
        return model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            eos_token_id=[EOS, *strategy.stop_token_ids],
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **{"do_sample": False, "max_new_tokens": 10} | processors | settings,
        )


def row_of(output: Any, row: int, prompt: Sequence[int], strategy: Decoding) -> list[int]:
    """Completion of a row of transformers up to and with its end."""
    tokens = output.sequences[row, len(prompt) :].tolist()
    ends = [place for place, token in enumerate(tokens) if token in (EOS, *strategy.stop_token_ids)]
    return tokens[: ends[0] + 1] if ends else tokens


def assert_as_transformers(strategy: Decoding, prompts: Sequence[Sequence[int]], **settings: Any) -> None:
    for prompt in prompts:
        expected = generate(SMALL, prompt, strategy, **settings)
        for row, done in enumerate(found(strategy, prompt)):
            assert done.token_ids == row_of(expected, row, prompt, strategy)
            if done.sequence_score is not None:
                assert done.sequence_score == pytest.approx(float(expected.sequences_scores[row]), abs=1e-4)


# transformers: processors, greedy and beams


@pytest.mark.parametrize("processors", PROCESSORS.values(), ids=PROCESSORS)
def test_greedy_equals_transformers(processors: dict[str, Any]) -> None:
    assert_as_transformers(Greedy(name="g", type="greedy", max_new_tokens=10, **processors), PROMPTS)


@pytest.mark.parametrize("processors", PROCESSORS.values(), ids=PROCESSORS)
def test_beams_equal_transformers(processors: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2}
    strategy = BeamSearch(name="b", type="beam_search", max_new_tokens=10, **settings, **processors)
    assert_as_transformers(strategy, PROMPTS[:2], **settings)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_beams_stop_and_score_as_those_of_transformers(length_penalty: float, early_stopping: bool | str) -> None:
    settings: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    settings |= {"num_beams": 3, "num_return_sequences": 3}
    strategy = BeamSearch(name="b", type="beam_search", max_new_tokens=10, stop_token_ids=(8, 9), **settings)
    assert_as_transformers(strategy, PROMPTS[:2], **settings)


@pytest.mark.parametrize("processors", [{}, {"repetition_penalty": 1.5, "stop_token_ids": (8, 9)}])
def test_one_group_of_diverse_beams_is_plain_beam_search(processors: dict[str, Any]) -> None:
    plain = BeamSearch(
        name="b", type="beam_search", max_new_tokens=10, num_beams=3, num_return_sequences=3, **processors
    )
    one_group = plain.model_copy(update={"num_beam_groups": 1, "diversity_penalty": 9.0})
    for prompt in PROMPTS:
        assert diverse_beams(Naive(SMALL, prompt, one_group, (EOS,))) == found(plain, prompt)


def test_constrained_beams_with_nothing_to_force_are_plain_beam_search() -> None:
    plain = BeamSearch(name="b", type="beam_search", max_new_tokens=10, num_beams=3, num_return_sequences=3)
    met_at_once = plain.model_copy(update={"force_words_ids": ((8,),), "forced_bos_token_id": 8})
    forced = plain.model_copy(update={"forced_bos_token_id": 8})
    for prompt in PROMPTS:
        assert found(met_at_once, prompt) == found(forced, prompt)


def test_the_first_token_is_forced_as_in_transformers_after_one_token_and_after_more_too() -> None:
    strategy = Greedy(name="g", type="greedy", max_new_tokens=6, forced_bos_token_id=8, begin_suppress_tokens=(8, 17))
    assert_as_transformers(strategy, [(3,), (9,)], forced_bos_token_id=8, max_new_tokens=6)
    (done,) = found(strategy, (3, 9, 1))
    assert done.token_ids[0] == 8
    assert done.token_ids[1] not in (8, 17)


def test_frequency_counts_what_was_generated_and_presence_only_whether() -> None:
    scores = torch.zeros(6)
    for values, expected in (
        ({"frequency_penalty": 0.5}, [0.0, -1.0, -0.5, 0.0, 0.0, 0.0]),
        ({"presence_penalty": 0.5}, [0.0, -0.5, -0.5, 0.0, 0.0, 0.0]),
        ({"presence_penalty": -2.0, "frequency_penalty": 1.0}, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
    ):
        strategy = Greedy(name="g", type="greedy", max_new_tokens=9, **values)
        assert process(Naive(SMALL, (4, 4, 0), strategy, (EOS,)), scores, [1, 2, 1]).tolist() == expected


# guidance and allowed words


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("negative", [(), (7, 30, 2)], ids=["last token", "negative prompt"])
@pytest.mark.parametrize("penalty", [None, 1.5])
def test_guidance_equals_transformers(scale: float, negative: tuple[int, ...], penalty: float | None) -> None:
    strategy = Greedy(
        name="g",
        type="greedy",
        max_new_tokens=10,
        guidance_scale=scale,
        negative_prompt_ids=negative,
        repetition_penalty=penalty,
    )
    settings = {"negative_prompt_ids": torch.tensor([negative])} if negative else {}
    assert_as_transformers(strategy, PROMPTS, guidance_scale=scale, **settings)


def test_guidance_acts_on_every_strategy() -> None:
    values: dict[str, Any] = {"name": "s", "max_new_tokens": 8}
    for strategy in (
        BeamSearch(type="beam_search", num_beams=3, **values),
        BeamSearch(type="beam_search", num_beams=4, num_beam_groups=2, diversity_penalty=1.0, **values),
        BeamSearch(type="beam_search", num_beams=3, force_words_ids=((9,),), **values),
        ContrastiveSearch(type="contrastive_search", penalty_alpha=0.4, top_k=3, **values),
        Dola(type="dola", dola_layers="low", **values),
    ):
        guided = strategy.model_copy(update={"guidance_scale": 3.0, "negative_prompt_ids": (7, 30, 2)})
        assert [found(strategy, prompt) for prompt in PROMPTS] != [found(guided, prompt) for prompt in PROMPTS]


ALLOWED = ((9, 11), (9,), (11, 12, 13), (20,))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_allowed_words_equal_a_prefix_function_of_transformers(num_beams: int) -> None:
    settings: dict[str, Any] = {"num_beams": num_beams} if num_beams > 1 else {}
    kind: Any = BeamSearch if num_beams > 1 else Greedy
    values = {"name": "a", "type": "beam_search" if num_beams > 1 else "greedy", "max_new_tokens": 10}
    strategy = kind(allowed_words_ids=ALLOWED, **values, **settings)
    for prompt in PROMPTS:

        def next_tokens(_row: int, tokens: torch.Tensor, prompt: Sequence[int] = prompt) -> list[int]:
            """The four phrases as a machine: after 9 both an end and an open phrase."""
            generated = tokens.tolist()[len(prompt) :]
            states = {0}
            for token in generated:
                moves = {(0, 9): {0, 1}, (1, 11): {0}, (0, 11): {2}, (2, 12): {3}, (3, 13): {0}, (0, 20): {0}}
                moves |= {(0, EOS): {4}}
                states = set().union(*(moves.get((state, token), set()) for state in states))
            goes_on = {0: [9, 11, 20, *([EOS] if generated else [])], 1: [11], 2: [12], 3: [13], 4: [EOS]}
            return sorted({token for state in states for token in goes_on[state]})

        assert_as_transformers(strategy, [prompt], prefix_allowed_tokens_fn=next_tokens, **settings)


def test_stop_tokens_are_allowed_only_where_a_phrase_has_ended() -> None:
    strategy = Greedy(name="g", type="greedy", max_new_tokens=9, allowed_words_ids=ALLOWED, stop_token_ids=(8,))
    allowed = [allowed_tokens(Naive(SMALL, (1,), strategy, (EOS,)), row) for row in ([], [9], [9, 11], [11], [20, 11])]
    starts = [9, 11, 20]
    assert allowed == [starts, [5, 8, *starts], [5, 8, 9, 11, 12, 20], [12], [12]]


# draws

SAMPLERS: dict[str, dict[str, float]] = {
    "temperature": {"temperature": 0.7},
    "top_h": {"top_h": 0.4},
    "top_k": {"top_k": 7},
    "top_k of one": {"top_k": 1},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.3},
    "typical_p": {"typical_p": 0.5},
    "epsilon_cutoff": {"epsilon_cutoff": 0.05},
    "eta_cutoff": {"eta_cutoff": 0.2},
    "all": {
        "temperature": 1.3,
        "top_h": 0.9,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.9,
        "epsilon_cutoff": 0.003,
        "eta_cutoff": 0.003,
    },
}


@pytest.mark.parametrize("samplers", SAMPLERS.values(), ids=SAMPLERS)
def test_what_is_drawn_from_equals_the_scores_of_transformers(samplers: dict[str, Any]) -> None:
    values = {"name": "s", "max_new_tokens": 1, "repetition_penalty": 1.4, **samplers}
    sampling = Sampling(type="sampling", **values)
    beams = BeamSearch(type="beam_search", num_beams=2, do_sample=True, **values)
    settings = {"do_sample": True, "max_new_tokens": 1, "top_k": 0, **samplers}
    for prompt in PROMPTS:
        logits = Naive(SMALL, prompt, sampling, (EOS,)).logits(())
        for strategy, scores in ((sampling, logits), (beams, logits.log_softmax(-1))):
            naive = Naive(SMALL, prompt, strategy, (EOS,))
            expected = generate(SMALL, prompt, strategy, **settings, num_beams=getattr(strategy, "num_beams", 1))
            torch.testing.assert_close(
                narrow(naive, process(naive, scores, [])), expected.scores[0][0], atol=1e-5, rtol=0
            )


class AddNoise(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy search into draws: the last of the user's processors, which act after all others."""

    def __init__(self, num_prompt: int, seed: int) -> None:
        self.num_prompt = num_prompt
        self.seed = seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = numpy_gumbel(self.seed, input_ids.shape[1] - self.num_prompt, range(scores.shape[1]))
        return (scores.log_softmax(-1) + torch.from_numpy(noise)).float()


def test_draws_equal_greedy_search_of_transformers_on_the_same_noise() -> None:
    strategy = Sampling(name="s", type="sampling", max_new_tokens=10, repetition_penalty=1.2)
    completions = set()
    for seed, prompt in enumerate(PROMPTS):
        expected = generate(SMALL, prompt, strategy, logits_processor=[AddNoise(len(prompt), seed)])
        (done,) = found(
            strategy, prompt, noise=lambda step, _, token, seed=seed: numpy_gumbel(seed, step, token).item()
        )
        assert done.token_ids == row_of(expected, 0, prompt, strategy)
        completions.add(tuple(done.token_ids))
    assert len(completions) == len(PROMPTS)


def beam_noise(step: int, beam: int, token: int) -> float:
    return float(numpy_gumbel(beam, step, token).item())


@pytest.mark.parametrize("samplers", [{}, {"temperature": 0.6, "top_k": 20}, {"top_p": 0.9, "stop_token_ids": (8,)}])
def test_drawn_beams_equal_those_of_transformers_on_the_same_noise(samplers: dict[str, Any]) -> None:
    model = drawing(SMALL)
    model.noise = beam_noise
    settings: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "do_sample": True}
    strategy = BeamSearch(name="b", type="beam_search", max_new_tokens=10, **settings, **samplers)
    warpers = {"top_k": 0} | {key: value for key, value in samplers.items() if key in SAMPLERS}
    for prompt in PROMPTS:
        expected = generate(model, prompt, strategy, **settings, **warpers)
        for row, done in enumerate(found(strategy, prompt, noise=beam_noise)):
            assert done.token_ids == row_of(expected, row, prompt, strategy)
            assert done.sequence_score == pytest.approx(float(expected.sequences_scores[row]), abs=1e-4)


# contrastive search, DoLa and diverse beams


def test_contrastive_search_weighs_probability_against_likeness() -> None:
    prompt = PROMPTS[0]
    values: dict[str, Any] = {"name": "c", "type": "contrastive_search", "max_new_tokens": 1, "top_k": 4}
    naive = Naive(SMALL, prompt, ContrastiveSearch(penalty_alpha=1.0, **values), (EOS,))
    candidates = naive.logits(()).topk(4).indices.tolist()
    likeness = {}
    for token in candidates:
        *before, last = torch.nn.functional.normalize(naive.hidden_states([token])[-1], dim=-1)
        likeness[token] = max(float(state @ last) for state in before)
    assert reference(naive)[0].token_ids == [min(candidates, key=likeness.__getitem__)]  # type: ignore[union-attr]
    barely = ContrastiveSearch(penalty_alpha=1e-9, **values)
    assert found(barely, prompt)[0].token_ids == candidates[:1]


def test_contrastive_search_never_takes_a_banned_token() -> None:
    strategy = ContrastiveSearch(
        name="c",
        type="contrastive_search",
        max_new_tokens=3,
        top_k=8,
        penalty_alpha=1.0,
        suppress_tokens=tuple(token for token in range(40) if token not in (9, 11)),
    )
    for prompt in PROMPTS:
        assert set(found(strategy, prompt)[0].token_ids) <= {9, 11}


@pytest.mark.parametrize(
    ("num_layers", "low", "high"),
    [
        (1, [0], [0]),
        (2, [1], [1]),
        (3, [2], [1]),
        (4, [2], [2]),
        (6, [2], [3, 5]),
        (12, [2, 4], [6, 8, 10]),
        (48, list(range(2, 20, 2)), list(range(28, 48, 2))),
    ],
)
def test_layers_of_dola_are_those_of_transformers(num_layers: int, low: list[int], high: list[int]) -> None:
    for layers, expected in (("low", low), ("high", high), ((3, 0), [0, 3])):
        strategy = Dola(name="d", type="dola", max_new_tokens=1, dola_layers=layers)
        assert dola_layers(strategy, num_layers) == expected


def test_the_divergence_of_disjoint_distributions_is_log_2() -> None:
    one, other = torch.tensor([0.5, 0.5, 1e-30]).log(), torch.tensor([1e-30, 1e-30, 1.0]).log()
    assert jensen_shannon(one, other) == pytest.approx(math.log(2))
    assert jensen_shannon(one, one) == pytest.approx(0.0)
    assert jensen_shannon(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()) == pytest.approx(
        0.5 * (0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625))
        + 0.5 * (0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625))
    )


def test_an_early_layer_reads_as_the_model_without_the_later_ones() -> None:
    model = random_model(layers=4)
    naive = Naive(model, PROMPTS[0], Dola(name="d", type="dola", max_new_tokens=1, dola_layers="low"), (EOS,))
    for layer, logprobs in enumerate(layer_logprobs(naive, [])):
        shorter = random_model(layers=layer)
        shorter.load_state_dict(model.state_dict(), strict=False)
        with torch.no_grad():
            expected = shorter(torch.tensor([PROMPTS[0]])).logits[0, -1]
            torch.testing.assert_close(logprobs, expected.log_softmax(-1), atol=1e-5, rtol=0)


def test_dola_takes_of_the_plausible_tokens_the_one_that_gained_most() -> None:
    model = random_model(layers=4)
    for prompt in PROMPTS:
        naive = Naive(model, prompt, Dola(name="d", type="dola", max_new_tokens=1, dola_layers=(0, 3)), (EOS,))
        *early, final = (logprobs.exp() for logprobs in layer_logprobs(naive, []))
        apart = [jensen_shannon(final.log(), early[layer].log()) for layer in (0, 3)]
        base = early[0] if apart[0] > apart[1] else early[3]
        gains = {token: final[token] / base[token] for token in range(60) if final[token] >= 0.1 * final.max()}
        assert len(gains) > 1
        assert reference(naive)[0].token_ids == [max(gains, key=gains.__getitem__)]  # type: ignore[union-attr]


def test_a_later_group_shuns_what_earlier_groups_took_in_the_step_the_last_one_too() -> None:
    values: dict[str, Any] = {"name": "b", "type": "beam_search", "num_beams": 3, "num_return_sequences": 3}
    for steps in (1, 4):
        strategy = BeamSearch(num_beam_groups=3, diversity_penalty=100.0, max_new_tokens=steps, **values)
        for prompt in PROMPTS:
            rows = [done.token_ids for done in found(strategy, prompt)]
            for tokens in zip(*rows, strict=False):
                assert len({token for token in tokens if token != EOS}) == sum(token != EOS for token in tokens)


# constrained beams: what is met


def test_progress_is_the_longest_suffix_that_begins_an_open_phrase() -> None:
    entries = [[[1, 2, 1, 3]]]
    rows = ([], [1], [1, 2], [1, 2, 1], [1, 2, 1, 2], [1, 1], [1, 2, 4])
    assert [progress(entries, row) for row in rows] == [0, 1, 2, 3, 2, 1, 0]


def test_a_complete_entry_counts_as_its_longest_alternative_and_never_opens_again() -> None:
    entries = [[[1, 2], [7]], [[3, 4, 5]]]
    assert [bank(entries, row) for row in ([1], [7], [7, 1], [7, 3], [7, 3, 4], [7, 3, 4, 5])] == [1, 2, 2, 3, 4, 5]
    assert not is_met(entries, [7, 3, 4])
    assert is_met(entries, [3, 4, 5, 0, 7, 0])


def test_tokens_may_serve_several_entries() -> None:
    assert bank([[[1, 2]], [[2, 3]]], [1, 2, 3]) == 4
    assert bank([[[7]], [[7]]], [7]) == 2


def test_a_token_advances_only_where_it_raises_the_bank() -> None:
    entries = [[[1, 2, 3]], [[7]], [[8, 9], [6]]]
    assert advancing_tokens(entries, []) == [1, 6, 7, 8]
    assert advancing_tokens(entries, [1]) == [2, 6]  # 7 would give up as much as it adds, 6 completes an entry of two
    assert advancing_tokens([[[1, 2]]], [1, 2]) == []


def test_candidates_are_dealt_over_the_banks_from_the_highest() -> None:
    rows = [(0,), (3,), (4,), (1,), (1, 2), (1, 2, 0)]
    candidates = [Candidate(-float(place), 0, place, row) for place, row in enumerate(rows)]
    assert [one.token for one in pick_order([[[1, 2]]], candidates)] == [4, 3, 0, 5, 1, 2]


def test_every_completion_contains_the_words() -> None:
    strategy = BeamSearch(
        name="c",
        type="beam_search",
        num_beams=3,
        max_new_tokens=8,
        num_return_sequences=2,
        force_words_ids=((9,), ((30, 31), (32, 33, 34))),
    )
    for prompt in PROMPTS:
        for done in found(strategy, prompt):
            assert contains(done.token_ids, [9])
            assert contains(done.token_ids, [30, 31]) or contains(done.token_ids, [32, 33, 34])


def test_a_stop_token_may_be_the_word_that_completes_all() -> None:
    strategy = BeamSearch(
        name="c", type="beam_search", num_beams=2, max_new_tokens=8, force_words_ids=((9,),), stop_token_ids=(9,)
    )
    for prompt in PROMPTS:
        (done,) = found(strategy, prompt)
        assert (done.token_ids[-1], done.finish_reason) == (9, "stop")


@pytest.mark.parametrize("banned", [{}, {"suppress_tokens": (9,)}], ids=["limit", "ban"])
def test_words_that_cannot_be_met_are_an_error(banned: dict[str, Any]) -> None:
    phrase = (9,) if banned else (9, 9, 9)
    values: dict[str, Any] = {"name": "c", "type": "beam_search", "num_beams": 2, "max_new_tokens": 2, **banned}
    strategy = BeamSearch(force_words_ids=(phrase,), **values)
    assert reference(Naive(SMALL, (1, 2), strategy, (EOS,))) == "force_words_unmet"
