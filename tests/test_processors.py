"""Processors on hand-made scores, and row by row against transformers' own, put in order by transformers itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

from pipeline import strategies
from pipeline.engine import processors
from pipeline.engine.processors import APPLY, Context, changes_scores, log_softmax, process
from pipeline.strategies import BeamSearch, Bias, Greedy, Processed

INF = float("inf")
V = 6
STEPS = [4.0, 2.0, 1.0, -1.0, -2.0, -4.0]  # scores of tokens 0..5
ALL_BANNED = [-INF] * V
EACH_KEY: dict[str, dict[str, Any]] = {
    "guidance_scale": {"guidance_scale": 2.0},
    "sequence_bias": {"sequence_bias": (Bias(token_ids=(3,), bias=1.0),)},
    "diversity_penalty": {"diversity_penalty": 1.0},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 2.0},
    "repetition_penalty": {"repetition_penalty": 2.0},
    "frequency_penalty": {"frequency_penalty": 1.0},
    "presence_penalty": {"presence_penalty": 1.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": ((3,),)},
    "min_new_tokens": {"min_new_tokens": 4},
    "allowed_words_ids": {"allowed_words_ids": ((2,), (4,))},
    "forced_bos_token_id": {"forced_bos_token_id": 0},
    "forced_eos_token_id": {"forced_eos_token_id": 0},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (0, 2.0)},
    "suppress_tokens": {"suppress_tokens": (1,)},
    "begin_suppress_tokens": {"begin_suppress_tokens": (2,)},
}


def greedy(**values: Any) -> Greedy:
    return Greedy(name="g", type="greedy", max_new_tokens=20, **values)


def with_key(key: str) -> Processed:
    if key == "diversity_penalty":
        beams: dict[str, Any] = {"num_beams": 4, "num_beam_groups": 2, "max_new_tokens": 20}
        return BeamSearch(name="b", type="beam_search", **beams, **EACH_KEY[key])
    return greedy(**EACH_KEY[key])


def context(
    *rows: Sequence[int],
    prompts: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
    eos: Sequence[int] = (),
    stop: Sequence[int] | None = None,
    pad: int = 0,
    allowed: Sequence[Collection[int]] = (),
    unconditional: torch.Tensor | None = None,
    crowd: torch.Tensor | None = None,
) -> Context:
    """Rows of different length in one tensor, as the cache gives them: what lies past a row's end is stale.

    Args:
        prompts: number of prompt tokens of each row; default: all its tokens.
    """
    width = max(len(row) for row in rows)
    return Context(
        token_ids=torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows]),
        lengths=torch.tensor([len(row) for row in rows]),
        num_prompt_tokens=torch.tensor(prompts or [len(row) for row in rows]),
        limits=torch.tensor(limits or [20] * len(rows)),
        eos_token_ids=eos,
        stop_token_ids=eos if stop is None else stop,
        allowed=allowed,
        unconditional=unconditional,
        crowd=crowd,
    )


def scores_for(rows: int) -> torch.Tensor:
    return torch.tensor([STEPS] * rows)


def processed(seen: Context, **values: Any) -> list[list[float]]:
    return process(greedy(**values), scores_for(len(seen.lengths)), seen).tolist()


def banned(scores: list[list[float]]) -> list[list[int]]:
    """Banned tokens of each row; every other score must still be what it was."""
    tokens = [[token for token, value in enumerate(row) if value == -INF] for row in scores]
    for row, without in zip(scores, tokens, strict=True):
        assert all(row[token] == STEPS[token] for token in range(V) if token not in without)
    return tokens


# order


def test_processors_act_in_the_order_that_the_strategies_promise() -> None:
    assert tuple(APPLY) == strategies.PROCESSORS
    assert list(EACH_KEY) == list(APPLY)


def test_the_page_lists_processors_and_samplers_in_order() -> None:
    page = (Path(__file__).parent.parent / "docs" / "strategies.md").read_text()
    table = page.partition("## Processors and samplers, in order")[2]
    assert tuple(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == strategies.PROCESSORS + strategies.SAMPLERS


def test_what_vllm_has_acts_after_the_repetition_penalty_and_before_the_bans() -> None:
    seen = context([0, 0, 0], prompts=[1])
    assert processed(seen, repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=1.0) == [
        [4.0 / 2 - 2 * 0.25 - 1.0, *STEPS[1:]]
    ]


def test_the_crowd_is_left_before_repetition_is_penalised() -> None:
    strategy = BeamSearch(
        name="b",
        type="beam_search",
        max_new_tokens=20,
        num_beams=4,
        num_beam_groups=2,
        diversity_penalty=3.0,
        repetition_penalty=2.0,
        sequence_bias=(Bias(token_ids=(0,), bias=1.0),),
    )
    crowd = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 2.0]])
    result = process(strategy, scores_for(1), context([0, 5], crowd=crowd))
    assert result.tolist() == [[(4.0 + 1.0 - 3.0) / 2, 2.0, 1.0, -1.0, -2.0, (-4.0 - 6.0) * 2]]


@pytest.mark.parametrize("key", EACH_KEY)
def test_each_key_alone_changes_the_scores_and_leaves_those_it_is_given(key: str) -> None:
    scores = scores_for(1)
    limit = 2 if key == "forced_eos_token_id" else 20
    num_prompt_tokens = 2 if key in ("forced_bos_token_id", "begin_suppress_tokens") else 1
    seen = context(
        [0, 1],
        prompts=[num_prompt_tokens],
        limits=[limit],
        eos=(5,),
        allowed=[{2, 4}],
        unconditional=torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]]),
        crowd=torch.ones(1, V),
    )
    assert changes_scores(with_key(key))
    assert process(with_key(key), scores, seen).tolist() != [STEPS]
    assert scores.tolist() == [STEPS]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"stop_token_ids": (3,), "stop_strings": ("a",), "ignore_eos": True},
        {"guidance_scale": 1.0, "encoder_repetition_penalty": 1.0, "repetition_penalty": 1.0},
        {"frequency_penalty": 0.0, "presence_penalty": 0.0},
    ],
)
def test_what_changes_no_probability_is_off(values: dict[str, Any]) -> None:
    assert not changes_scores(greedy(**values))
    assert processed(context([0, 0], prompts=[1]), **values) == [STEPS]


@pytest.mark.parametrize("key", EACH_KEY)
def test_rows_without_any_token_left_stay_so_and_touch_no_other_row(key: str) -> None:
    rows = {
        "allowed": [{2, 4}, {2, 4}],
        "unconditional": torch.tensor([STEPS[::-1], ALL_BANNED]),
        "crowd": torch.ones(2, V),
    }
    seen = context([0, 1, 1], [1, 0, 3], prompts=[1, 1], eos=(5,), **rows)
    alone = process(with_key(key), scores_for(2), seen)
    beside = process(with_key(key), torch.tensor([STEPS, ALL_BANNED]), seen)
    assert beside.tolist() == [alone[0].tolist(), ALL_BANNED]


# guidance


def test_guidance_moves_log_probabilities_away_from_the_unconditional_ones() -> None:
    scores, unconditional = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[7.0, 6.0, 6.0]])
    expected = 1.5 * scores.log_softmax(-1) - 0.5 * unconditional.log_softmax(-1)
    guided = process(greedy(guidance_scale=1.5), scores, context([0], unconditional=unconditional))
    torch.testing.assert_close(guided, expected)


def test_guidance_makes_no_token_impossible_possible_or_infinitely_likely() -> None:
    scores, unconditional = torch.tensor([[0.0, -INF, 0.0, -INF]]), torch.tensor([[1.0, 1.0, -INF, -INF]])
    guided = process(greedy(guidance_scale=2.0), scores, context([0], unconditional=unconditional))
    half = torch.tensor(0.5).log().item()
    torch.testing.assert_close(guided, torch.tensor([[half, -INF, half, -INF]]))


# biases and phrases


def test_the_bias_of_a_token_is_always_added() -> None:
    assert (
        processed(context([1], [1, 2]), sequence_bias=(Bias(token_ids=(3,), bias=2.5),))
        == [[4.0, 2.0, 1.0, 1.5, -2.0, -4.0]] * 2
    )


def test_the_bias_of_a_sequence_is_added_to_its_last_token_after_the_rest_of_it() -> None:
    biases = (Bias(token_ids=(1, 2, 3), bias=10.0), Bias(token_ids=(2, 5), bias=-8.0))
    assert processed(context([1, 2], [2, 1], [0, 1, 2], [2]), sequence_bias=biases) == [
        [4.0, 2.0, 1.0, 9.0, -2.0, -12.0],
        STEPS,
        [4.0, 2.0, 1.0, 9.0, -2.0, -12.0],
        [4.0, 2.0, 1.0, -1.0, -2.0, -12.0],
    ]


def test_biases_of_several_sequences_that_end_in_one_token_add_up() -> None:
    biases = (Bias(token_ids=(4,), bias=1.0), Bias(token_ids=(1, 4), bias=2.0), Bias(token_ids=(2, 1, 4), bias=4.0))
    assert [row[4] for row in processed(context([0], [0, 1], [2, 1]), sequence_bias=biases)] == [-1.0, 1.0, 5.0]


def test_of_two_biases_for_one_sequence_the_last_counts() -> None:
    biases = (Bias(token_ids=(4,), bias=1.0), Bias(token_ids=(4,), bias=3.0))
    assert processed(context([0]), sequence_bias=biases) == [[4.0, 2.0, 1.0, -1.0, 1.0, -4.0]]


def test_a_sequence_longer_than_the_row_has_no_effect() -> None:
    # The row [4] has no two last tokens; its first one must not stand in for both.
    biases = (Bias(token_ids=(4, 4, 5), bias=1.0),)
    assert processed(context([4], [0, 4, 4]), sequence_bias=biases) == [STEPS, [*STEPS[:5], -3.0]]
    assert banned(processed(context([4], [0, 4, 4]), bad_words_ids=((4, 4, 5),))) == [[], [5]]


def test_a_phrase_of_one_token_is_always_banned() -> None:
    assert banned(processed(context([1], [1, 2, 3]), bad_words_ids=((4,), (5,)))) == [[4, 5], [4, 5]]


def test_the_last_token_of_a_phrase_is_banned_after_the_rest_of_it() -> None:
    rows = context([1, 2], [2, 1], [0, 1, 2], [1, 2, 0])
    phrases = ((1, 2, 3), (2, 5), (0,))
    assert banned(processed(rows, bad_words_ids=phrases)) == [[0, 3, 5], [0], [0, 3, 5], [0]]


def test_several_phrases_with_the_same_beginning_ban_all_their_ends() -> None:
    assert banned(processed(context([1]), bad_words_ids=((1, 2), (1, 3), (1, 2)))) == [[2, 3]]


def test_a_phrase_that_ends_like_one_not_begun_is_banned_all_the_same() -> None:
    assert banned(processed(context([1]), bad_words_ids=((1, 2), (0, 2), (1, 2), (5, 2)))) == [[2]]


def test_a_phrase_whose_beginning_is_the_whole_row_is_banned() -> None:
    assert banned(processed(context([4, 4]), bad_words_ids=((4, 4, 5),))) == [[5]]


def test_the_end_of_text_can_be_a_bad_word() -> None:
    # transformers passes over it without a word; here what cannot be honoured is refused, and this can be.
    assert banned(processed(context([1], eos=(0,)), bad_words_ids=((0,),))) == [[0]]


# penalties


def test_repetition_penalty_divides_positive_and_multiplies_negative_scores_of_seen_tokens() -> None:
    assert processed(context([0, 1, 4]), repetition_penalty=2.0) == [[2.0, 1.0, 1.0, -1.0, -4.0, -4.0]]


def test_repetition_penalty_acts_once_however_often_a_token_was_seen() -> None:
    assert processed(context([0, 0, 0, 5, 5]), repetition_penalty=2.0) == [[2.0, 2.0, 1.0, -1.0, -2.0, -8.0]]


def test_repetition_penalty_below_one_favours_seen_tokens() -> None:
    assert processed(context([0, 4]), repetition_penalty=0.5) == [[8.0, 2.0, 1.0, -1.0, -1.0, -4.0]]


def test_repetition_penalty_does_not_see_what_lies_past_a_rows_end() -> None:
    assert processed(context([1], [0, 1, 2], pad=5), repetition_penalty=2.0) == [
        [4.0, 1.0, 1.0, -1.0, -2.0, -4.0],
        [2.0, 1.0, 0.5, -1.0, -2.0, -4.0],
    ]


def test_encoder_repetition_penalty_favours_the_tokens_of_the_prompt_alone() -> None:
    rows = context([0, 4, 1, 5], [5, 1], prompts=[2, 1], pad=2)
    assert processed(rows, encoder_repetition_penalty=2.0) == [
        [8.0, 2.0, 1.0, -1.0, -1.0, -4.0],
        [4.0, 2.0, 1.0, -1.0, -2.0, -2.0],
    ]


def test_frequency_penalty_counts_what_was_generated_and_presence_penalty_does_not_count() -> None:
    rows = context([0, 0, 1, 4, 1, 1], [0, 1], [2], prompts=[2, 1, 1], pad=3)
    assert processed(rows, frequency_penalty=0.5) == [
        [4.0, 0.5, 1.0, -1.0, -2.5, -4.0],
        [4.0, 1.5, 1.0, -1.0, -2.0, -4.0],
        STEPS,
    ]
    assert processed(rows, presence_penalty=-0.5) == [
        [4.0, 2.5, 1.0, -1.0, -1.5, -4.0],
        [4.0, 2.5, 1.0, -1.0, -2.0, -4.0],
        STEPS,
    ]


@settings(max_examples=50)
@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=4),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    num_generated=st.integers(0, 12),
    pad=st.integers(0, 5),
)
def test_frequency_and_presence_penalties_are_what_vllm_writes_them_as(
    rows: list[list[int]], frequency: float, presence: float, num_generated: int, pad: int
) -> None:
    prompts = [max(1, len(row) - num_generated) for row in rows]
    seen = context(*rows, prompts=prompts, pad=pad)
    result = processed(seen, frequency_penalty=frequency, presence_penalty=presence)
    for row, prompt, penalised in zip(rows, prompts, result, strict=True):
        # vllm/model_executor/layers/utils.py, apply_penalties, with the mask and counts of the output tokens
        counts = torch.bincount(torch.tensor(row[prompt:], dtype=torch.int64), minlength=V)
        expected = torch.tensor(STEPS) - frequency * counts - presence * (counts > 0)
        torch.testing.assert_close(torch.tensor(penalised), expected)


@pytest.mark.parametrize(
    ("size", "tokens", "expected"),
    [
        (1, [3, 1, 3], [1, 3]),
        (2, [1, 2, 4, 1], [2]),
        (2, [1, 2, 1, 5, 1], [2, 5]),
        (2, [1, 2, 4], []),
        (2, [3, 3], [3]),
        (3, [1, 2, 5, 1, 2], [5]),
        (3, [1, 2, 5, 2, 1], []),
        (3, [4, 4, 4], [4]),
        (3, [1, 2], []),
        (4, [1], []),
    ],
)
def test_an_ngram_is_banned_once_seen(size: int, tokens: list[int], expected: list[int]) -> None:
    assert banned(processed(context(tokens), no_repeat_ngram_size=size)) == [expected]


def test_ngrams_past_a_rows_end_are_not_seen() -> None:
    rows = context([1, 2], [1, 2, 1, 2, 1], [1, 2, 0, 1], pad=1)
    assert banned(processed(rows, no_repeat_ngram_size=2)) == [[], [2], [2]]
    assert banned(processed(rows, no_repeat_ngram_size=1)) == [[1, 2], [1, 2], [0, 1, 2]]


def test_a_row_shorter_than_the_ngram_bans_nothing_beside_a_longer_one() -> None:
    assert banned(processed(context([4], [4, 4, 4, 4]), no_repeat_ngram_size=3)) == [[], [4]]


# bans and forced tokens


def test_no_stop_token_is_left_before_min_new_tokens() -> None:
    rows = context([1, 2, 2], [1, 2, 2], [1], prompts=[1, 2, 1], eos=(5,), stop=(0, 5))
    assert banned(processed(rows, min_new_tokens=2)) == [[], [0, 5], [0, 5]]


def test_min_new_tokens_without_a_stop_token_bans_nothing() -> None:
    assert processed(context([1]), min_new_tokens=2) == [STEPS]


def test_only_the_allowed_tokens_of_each_row_are_left() -> None:
    rows = context([1], [2], [3], allowed=[{0, 5}, [4], ()])
    assert banned(processed(rows, allowed_words_ids=((0,),))) == [[1, 2, 3, 4], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]


def test_a_row_whose_allowed_tokens_are_banned_has_none_where_transformers_forces_one() -> None:
    rows = context([1], allowed=[{4}])
    assert processed(rows, allowed_words_ids=((4,),), bad_words_ids=((4,),)) == [ALL_BANNED]


def test_the_first_token_generated_is_forced_after_prompts_of_any_length() -> None:
    rows = context([1], [1, 2, 3], [1, 2, 3], prompts=[1, 3, 2])
    forced = [-INF, -INF, -INF, -INF, 0.0, -INF]
    assert processed(rows, forced_bos_token_id=4, bad_words_ids=((4,),)) == [
        forced,
        forced,
        [4.0, 2.0, 1.0, -1.0, -INF, -4.0],
    ]


def test_the_last_token_before_each_rows_limit_is_forced() -> None:
    rows = context([1, 2], [1, 2], [1, 2], prompts=[1, 1, 2], limits=[2, 3, 1])
    forced = [0.0, *[-INF] * 5]
    assert processed(rows, forced_eos_token_id=0, forced_bos_token_id=3) == [forced, STEPS, forced]


def test_begin_suppress_tokens_waits_for_the_first_token_that_is_not_forced() -> None:
    rows = context([1], [1, 4], [1, 4, 4], prompts=[1, 1, 1])
    assert banned(processed(rows, begin_suppress_tokens=(0, 5))) == [[0, 5], [], []]
    assert processed(rows, begin_suppress_tokens=(0, 5), forced_bos_token_id=4) == [
        [-INF, -INF, -INF, -INF, 0.0, -INF],
        [-INF, 2.0, 1.0, -1.0, -2.0, -INF],
        STEPS,
    ]


def test_a_forced_token_that_is_suppressed_at_the_begin_leaves_none() -> None:
    rows = context([1], limits=[1])
    assert processed(rows, forced_eos_token_id=4, begin_suppress_tokens=(4,)) == [ALL_BANNED]


def test_length_decay_raises_the_end_of_text_by_a_growing_share_of_its_size() -> None:
    rows = context([1, 2, 2], [1, 2, 2, 2], [1, 2, 2, 2, 2], [1, 2, 2, 2, 2], prompts=[1, 1, 1, 4], eos=(0, 4))
    assert processed(rows, exponential_decay_length_penalty=(2, 1.5)) == [
        STEPS,
        [4.0 + 4.0 * 0.5, 2.0, 1.0, -1.0, -2.0 + 2.0 * 0.5, -4.0],
        [4.0 + 4.0 * 1.25, 2.0, 1.0, -1.0, -2.0 + 2.0 * 1.25, -4.0],
        STEPS,
    ]


def test_length_decay_neither_lifts_a_ban_nor_overflows() -> None:
    rows = context([1] * 600, prompts=[1], eos=(0, 1))  # 10 ** 598 is beyond float64
    result = processed(rows, exponential_decay_length_penalty=(1, 10.0), bad_words_ids=((1,),))
    assert result[0][1:] == [-INF, *STEPS[2:]]
    assert 1e30 < result[0][0] < INF


# transformers


class Model(GenerationMixin):  # type: ignore[misc]
    """What transformers needs of a model to put its processors in order, and to guide: always the same logits."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self, unconditional: torch.Tensor) -> None:
        self.unconditional = unconditional

    def __call__(self, *_: Any, **__: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.unconditional[None, None])


def by_transformers(
    strategy: Processed,
    row: list[int],
    num_prompt_tokens: int,
    limit: int,
    scores: torch.Tensor,
    unconditional: torch.Tensor,
    allowed: list[int],
) -> torch.Tensor:
    """What transformers' processors, chosen and ordered by transformers, make of one row without padding."""
    same = ("guidance_scale", "encoder_repetition_penalty", "repetition_penalty", "no_repeat_ngram_size")
    same = (*same, "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")
    config = GenerationConfig(
        **{key: getattr(strategy, key) for key in same},
        sequence_bias=[[list(bias.token_ids or ()), bias.bias] for bias in strategy.sequence_bias] or None,
        bad_words_ids=[list(phrase) for phrase in strategy.bad_words_ids] or None,
        suppress_tokens=list(strategy.suppress_tokens) or None,
        begin_suppress_tokens=list(strategy.begin_suppress_tokens) or None,
        max_length=num_prompt_tokens + limit,
        num_beams=1,
    )
    config._eos_token_tensor = torch.tensor([0, 1])
    chosen = Model(unconditional)._get_logits_processor(
        config,
        input_ids_seq_length=num_prompt_tokens,
        encoder_input_ids=torch.tensor([row[:num_prompt_tokens]]),
        prefix_allowed_tokens_fn=(lambda _, __: allowed) if strategy.allowed_words_ids else None,
        device="cpu",
        model_kwargs={},
    )
    return chosen(torch.tensor([row]), scores[None])[0]


def unforced(**values: Any) -> Greedy:
    """The strategy, without suppressed tokens if one of them is forced: a job file with both is refused."""
    forced = {values["forced_bos_token_id"], values["forced_eos_token_id"]}
    return greedy(**values if forced.isdisjoint(values["suppress_tokens"]) else values | {"suppress_tokens": ()})


tokens = st.integers(0, 5)
some_tokens = st.lists(tokens, max_size=2).map(tuple)
phrases = st.lists(tokens, min_size=1, max_size=3).map(tuple).filter(lambda phrase: phrase not in ((0,), (1,)))
combinations = st.builds(
    unforced,
    guidance_scale=st.none() | st.sampled_from([0.5, 1.0, 3.0]),
    sequence_bias=st.lists(st.builds(Bias, token_ids=phrases, bias=st.sampled_from([-3.0, 0.5, 2.0])), max_size=3).map(
        tuple
    ),
    encoder_repetition_penalty=st.none() | st.sampled_from([0.7, 1.0, 1.5]),
    repetition_penalty=st.none() | st.sampled_from([0.7, 1.0, 1.5]),
    no_repeat_ngram_size=st.none() | st.integers(1, 4),
    bad_words_ids=st.lists(phrases, max_size=3, unique=True).map(tuple),
    min_new_tokens=st.none() | st.integers(1, 4),
    allowed_words_ids=st.sampled_from([(), ((2,), (3,), (5,))]),
    forced_bos_token_id=st.none() | tokens,
    forced_eos_token_id=st.none() | tokens,
    exponential_decay_length_penalty=st.none() | st.tuples(st.integers(0, 3), st.sampled_from([0.9, 1.1, 2.0])),
    suppress_tokens=some_tokens,
    begin_suppress_tokens=some_tokens,
)


@settings(max_examples=200)
@given(
    rows=st.lists(st.lists(tokens, min_size=1, max_size=8), min_size=1, max_size=4),
    strategy=combinations,
    num_generated=st.integers(0, 5),
    limit=st.integers(1, 6),
    pad=tokens,
    hole=st.none() | tokens,
    allowed=st.lists(tokens, min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 1000),
)
def test_rows_of_any_length_together_equal_transformers_row_by_row(
    rows: list[list[int]],
    strategy: Greedy,
    num_generated: int,
    limit: int,
    pad: int,
    hole: int | None,
    allowed: list[int],
    seed: int,
) -> None:
    # transformers forces the first token only after prompts of one token, which is where the two agree
    most = 1 if strategy.forced_bos_token_id is not None else 8
    prompts = [min(most, max(1, len(row) - num_generated)) for row in rows]
    scores, unconditional = torch.randn(2, len(rows), V, generator=torch.Generator().manual_seed(seed))
    if hole is not None:
        scores[:, hole] = -INF
    seen = context(
        *rows,
        prompts=prompts,
        limits=[limit] * len(rows),
        eos=(0, 1),
        pad=pad,
        allowed=[allowed] * len(rows) if strategy.allowed_words_ids else (),
        unconditional=unconditional,
    )
    together = process(strategy, scores, seen)
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if strategy.allowed_words_ids and together[index].tolist() == ALL_BANNED:
            continue  # where transformers forces a token
        expected = by_transformers(strategy, row, prompt, limit, scores[index], unconditional[index], allowed)
        torch.testing.assert_close(together[index], expected, rtol=1e-5, atol=1e-5)


def test_log_softmax_is_that_of_torch_but_for_rows_without_a_token() -> None:
    scores = torch.tensor([STEPS, [0.0, *[-INF] * 5], ALL_BANNED])
    result = log_softmax(scores)
    torch.testing.assert_close(result[:2], scores[:2].log_softmax(-1))
    assert result[2].tolist() == ALL_BANNED


def test_thousands_of_phrases_become_tensors_once() -> None:
    phrases = tuple((i % 5, i % 3, 4) for i in range(3000))
    processors.history.by_length.cache_clear()
    for _ in range(3):
        processed(context([0, 1], [2, 2]), bad_words_ids=phrases)
    assert processors.history.by_length.cache_info()[:2] == (2, 1)  # hits, misses
