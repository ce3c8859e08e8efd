"""Which prompts the model gets: texts and token ids, and the rules for long, empty and impossible ones."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.checkpoint import DEMO
from pipeline.config import Job
from pipeline.prompts import Prompt, Rules, fitted, num_kept, rules, tokenised
from pipeline.records import RowError
from pipeline.strategies import Score, max_steps
from pipeline.tokenizer import Tokenizer

RULES = Rules(num_positions=128, vocab_size=768, bos_token_id=767, on_long_prompt="error")
SENTENCE = "I skip across the line to the other side of the line."
GREEDY: dict[str, Any] = {"name": "greedy", "type": "greedy", "max_new_tokens": 20}


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(DEMO, 768)


@pytest.fixture(scope="module")
def sentence(demo: Tokenizer) -> tuple[int, ...]:
    """Token ids of SENTENCE."""
    return tuple(demo.encode([SENTENCE])[0])


def job(*strategies: dict[str, Any], **settings: str) -> Job:
    return Job.model_validate(
        {"model": "demo", "input": {"path": "p", **settings}, "output": {"path": "o"}, "strategies": strategies}
    )


def one(value: str | list[int] | RowError, tokenizer: Tokenizer, kept: int = 100, **changes: Any) -> Prompt:
    limits = RULES._replace(**changes)
    (prompt,) = tokenised([value], tokenizer, limits)
    return fitted(prompt, limits, kept)


# What a prompt becomes


def test_a_text_becomes_its_token_ids(demo: Tokenizer, sentence: tuple[int, ...]) -> None:
    assert one(SENTENCE, demo) == Prompt(SENTENCE, sentence)


def test_token_ids_stay_what_they_are_and_show_as_text(demo: Tokenizer, sentence: tuple[int, ...]) -> None:
    assert one(list(sentence), demo) == Prompt(SENTENCE, sentence)
    assert one([0, 767], demo) == Prompt("!", (0, 767))  # a special token is fed, and does not show
    assert one([162], demo) == Prompt("\N{REPLACEMENT CHARACTER}", (162,))  # part of a character


def test_an_error_found_while_reading_stays_what_it_is(demo: Tokenizer) -> None:
    error = RowError("prompt_null", "it is null")
    assert one(error, demo) == Prompt(None, error)


def test_texts_ids_and_errors_keep_their_order(demo: Tokenizer, sentence: tuple[int, ...]) -> None:
    error = RowError("prompt_null", "it is null")
    values = [error, SENTENCE, [1, 2], "", error, [], "Every bee"]
    assert [fitted(prompt, RULES, 100) for prompt in tokenised(values, demo, RULES)] == [
        Prompt(None, error),
        Prompt(SENTENCE, sentence),
        Prompt(demo.decode([1, 2]), (1, 2)),
        Prompt("", (767,)),
        Prompt(None, error),
        Prompt("", (767,)),
        Prompt("Every bee", tuple(demo.encode(["Every bee"])[0])),
    ]
    assert tokenised([], demo, RULES) == []


def test_the_name_of_the_end_of_text_in_a_prompt_is_text(demo: Tokenizer) -> None:
    prompt = one("a<|endoftext|>", demo)
    assert prompt.text == "a<|endoftext|>"
    assert 767 not in prompt.token_ids


# Ids out of range


@pytest.mark.parametrize(("token_ids", "wrong"), [([768], 768), ([1, -1, 2], -1), ([0, 767, 9999, -5], 9999)])
def test_an_id_outside_the_vocabulary_is_an_error_that_names_it(
    demo: Tokenizer, token_ids: list[int], wrong: int
) -> None:
    message = f"token id {wrong} is outside the vocabulary of 768 tokens (0..767)"
    assert one(token_ids, demo) == Prompt(None, RowError("token_id_out_of_range", message))


def test_the_first_and_the_last_id_are_inside_the_vocabulary(demo: Tokenizer) -> None:
    assert one([0, 767], demo).token_ids == (0, 767)


# Empty prompts


@pytest.mark.parametrize("value", ["", []])
def test_an_empty_prompt_becomes_the_start_token(demo: Tokenizer, value: str | list[int]) -> None:
    assert one(value, demo) == Prompt("", (767,))


@pytest.mark.parametrize("value", ["", []])
def test_an_empty_prompt_is_an_error_where_the_job_says_so(demo: Tokenizer, value: str | list[int]) -> None:
    error = RowError("prompt_empty", "the prompt is empty; input.on_empty_prompt is `error`")
    assert one(value, demo, bos_token_id=None) == Prompt("", error)


def test_white_space_is_not_empty(demo: Tokenizer) -> None:
    assert one(" \n", demo).token_ids == tuple(demo.encode([" \n"])[0])


# Long prompts


@pytest.mark.parametrize("rule", ["error", "truncate_left", "truncate_right"])
@pytest.mark.parametrize("as_ids", [False, True])
def test_a_prompt_as_long_as_the_context_is_left_alone(
    demo: Tokenizer, sentence: tuple[int, ...], rule: str, as_ids: bool
) -> None:
    value = list(sentence) if as_ids else SENTENCE
    limits = {"num_positions": len(sentence), "on_long_prompt": rule}
    assert one(value, demo, kept=3, **limits) == Prompt(SENTENCE, sentence)


def test_a_longer_prompt_is_an_error_that_says_both_lengths(demo: Tokenizer, sentence: tuple[int, ...]) -> None:
    count = len(sentence)
    message = f"the prompt has {count} tokens, the model's context {count - 1}; shorten it or set input.on_long_prompt"
    expected = Prompt(SENTENCE, RowError("prompt_too_long", message))
    assert one(SENTENCE, demo, num_positions=count - 1) == expected
    assert one(list(sentence), demo, num_positions=count - 1) == expected


@pytest.mark.parametrize("as_ids", [False, True])
def test_truncation_keeps_the_side_it_says_and_marks_the_prompt(
    demo: Tokenizer, sentence: tuple[int, ...], as_ids: bool
) -> None:
    value = list(sentence) if as_ids else SENTENCE
    num_positions = len(sentence) - 1
    left = one(value, demo, kept=4, num_positions=num_positions, on_long_prompt="truncate_left")
    right = one(value, demo, kept=4, num_positions=num_positions, on_long_prompt="truncate_right")
    assert left == Prompt(SENTENCE, sentence[-4:], is_truncated=True)  # `truncate_left` drops what is left
    assert right == Prompt(SENTENCE, sentence[:4], is_truncated=True)


# From the job to the rules


def test_rules_say_what_the_job_and_the_model_say() -> None:
    assert rules(job(GREEDY), num_positions=128, vocab_size=768, bos_token_id=767) == Rules(
        num_positions=128, vocab_size=768, bos_token_id=767, on_long_prompt="error"
    )
    changed = job(GREEDY, on_long_prompt="truncate_left", on_empty_prompt="error")
    found = rules(changed, num_positions=128, vocab_size=768, bos_token_id=767)
    assert (found.on_long_prompt, found.bos_token_id) == ("truncate_left", None)


@pytest.mark.parametrize(
    ("strategies", "expected"),
    [
        ([GREEDY], 109),
        ([GREEDY | {"max_new_tokens": 1}], 128),  # the last token is never fed
        ([{"name": "next", "type": "next_token"}], 128),
        ([{"name": "next", "type": "next_token"}, GREEDY], 109),
        ([GREEDY, {"name": "long", "type": "sampling", "max_new_tokens": 50}], 79),
        ([GREEDY, {"name": "beam", "type": "beam_search", "num_beams": 2, "max_new_tokens": 128}], 1),
        ([GREEDY | {"max_new_tokens": 1000}], 1),  # something is kept all the same
        ([{"name": "score", "type": "score"}, GREEDY], 109),
    ],
)
def test_a_truncated_prompt_leaves_room_for_the_longest_completion(
    strategies: list[dict[str, Any]], expected: int
) -> None:
    work = job(*strategies, on_long_prompt="truncate_left")
    kept = num_kept(work.strategies, 128)
    assert kept == expected
    generating = [strategy for strategy in work.strategies if not isinstance(strategy, Score)]
    longest = max(max_steps(strategy, kept) for strategy in generating)
    assert kept + longest - 1 == 128 or kept == 1  # the last token occupies no position
