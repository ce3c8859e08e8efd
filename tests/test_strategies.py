"""The rules of each strategy, and what follows from one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.strategies import BeamSearch, Greedy, NextToken, Sampling, Strategy, max_steps, num_rows

STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)
REQUIRED: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 20},
    "sampling": {"max_new_tokens": 20},
    "beam_search": {"max_new_tokens": 20, "num_beams": 3},
    "next_token": {},
}


def strategy(kind: str, **values: Any) -> Strategy:
    return STRATEGY.validate_python({"name": "s", "type": kind, **REQUIRED[kind], **values})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("greedy", Greedy(name="s", type="greedy", max_new_tokens=20)),
        ("sampling", Sampling(name="s", type="sampling", max_new_tokens=20)),
        ("beam_search", BeamSearch(name="s", type="beam_search", max_new_tokens=20, num_beams=3)),
        ("next_token", NextToken(name="s", type="next_token")),
    ],
)
def test_the_type_decides_which_strategy_it_is(kind: str, expected: Strategy) -> None:
    assert strategy(kind) == expected


def test_every_filter_and_processor_is_off_unless_set() -> None:
    assert strategy("sampling").model_dump() == {
        "name": "s",
        "type": "sampling",
        "repetition_penalty": None,
        "no_repeat_ngram_size": None,
        "bad_words": (),
        "bad_words_ids": (),
        "min_new_tokens": None,
        "stop_strings": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "max_new_tokens": 20,
        "max_length": None,
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "min_p": None,
        "num_return_sequences": 1,
    }


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("greedy", {"max_new_tokens": None, "max_length": 2}),
        ("greedy", {"min_new_tokens": 20}),
        ("greedy", {"repetition_penalty": 1e-3, "no_repeat_ngram_size": 1, "name": "Aa0._-"}),
        ("sampling", {"temperature": 2, "top_k": 1, "top_p": 1, "min_p": 0, "num_return_sequences": 1024}),
        ("sampling", {"bad_words_ids": [[0], [1, 2]], "stop_token_ids": [0], "stop_strings": ["\n"]}),
        ("beam_search", {"num_beams": 64, "num_return_sequences": 64, "length_penalty": -1, "early_stopping": "never"}),
        ("next_token", {"min_new_tokens": 1, "ignore_eos": True}),
    ],
)
def test_values_on_the_edge_of_a_rule_are_taken(kind: str, values: dict[str, Any]) -> None:
    dumped = strategy(kind, **values).model_dump(mode="json")
    assert {key: dumped[key] for key in values} == values


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("greedy", {"max_new_tokens": 0}),
        ("greedy", {"max_new_tokens": None, "max_length": 1}),
        ("greedy", {"max_new_tokens": True}),
        ("greedy", {"max_new_tokens": 20.0}),
        ("greedy", {"max_new_tokens": "20"}),
        ("greedy", {"repetition_penalty": 0}),
        ("greedy", {"no_repeat_ngram_size": 0}),
        ("greedy", {"bad_words": "word"}),
        ("greedy", {"bad_words": [""]}),
        ("greedy", {"bad_words_ids": [[]]}),
        ("greedy", {"bad_words_ids": [[-1]]}),
        ("greedy", {"stop_strings": [""]}),
        ("greedy", {"stop_token_ids": [True]}),
        ("greedy", {"ignore_eos": 1}),
        ("greedy", {"temperature": 1.0}),
        ("greedy", {"name": ""}),
        ("greedy", {"name": ".hidden"}),
        ("greedy", {"name": "two words"}),
        ("greedy", {"name": "line\n"}),
        ("greedy", {"name": "n" * 65}),
        ("sampling", {"temperature": 0}),
        ("sampling", {"temperature": "0.8"}),
        ("sampling", {"temperature": float("inf")}),
        ("sampling", {"temperature": True}),
        ("sampling", {"top_k": 0}),
        ("sampling", {"top_p": 0}),
        ("sampling", {"top_p": 1.01}),
        ("sampling", {"min_p": -0.1}),
        ("sampling", {"min_p": float("nan")}),
        ("sampling", {"num_return_sequences": 0}),
        ("sampling", {"num_return_sequences": 1025}),
        ("beam_search", {"num_beams": 1}),
        ("beam_search", {"num_beams": 65}),
        ("beam_search", {"early_stopping": "always"}),
        ("beam_search", {"early_stopping": 0}),
        ("next_token", {"max_new_tokens": 1}),
    ],
)
def test_a_value_outside_its_rule_is_refused(kind: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as error:
        strategy(kind, **values)
    assert {detail["loc"][:2] for detail in error.value.errors()} == {(kind, list(values)[-1])}


def test_a_key_that_is_no_string_is_refused() -> None:
    with pytest.raises(ValidationError, match="a key must be a string, but is None"):
        STRATEGY.validate_python({"name": "s", "type": "next_token", None: 1})


@pytest.mark.parametrize(
    ("kind", "values", "message", "at"),
    [
        ("greedy", {"max_new_tokens": None}, "set `max_new_tokens`, or `max_length`, which counts the prompt", ()),
        (
            "greedy",
            {"max_length": 30},
            "set exactly one of `max_new_tokens` and `max_length`, not both",
            ("max_length",),
        ),
        (
            "sampling",
            {"min_new_tokens": 21},
            "`min_new_tokens` (21) must not be above the limit of 20 tokens",
            ("min_new_tokens",),
        ),
        (
            "beam_search",
            {"num_return_sequences": 4},
            "`num_return_sequences` (4) must not be above `num_beams` (3)",
            ("num_return_sequences",),
        ),
    ],
)
def test_a_rule_about_several_keys_names_them_and_the_one_to_show(
    kind: str, values: dict[str, Any], message: str, at: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as error:
        strategy(kind, **values)
    (detail,) = error.value.errors()
    assert (detail["type"], detail["msg"], detail["ctx"]["at"]) == ("broken_rule", message, at)


def test_a_strategy_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        strategy("greedy").name = "other"


@pytest.mark.parametrize(
    ("kind", "values", "rows"),
    [
        ("greedy", {}, 1),
        ("sampling", {"num_return_sequences": 3}, 3),
        ("beam_search", {}, 1),
        ("beam_search", {"num_return_sequences": 2}, 2),
        ("next_token", {}, 1),
    ],
)
def test_a_prompt_gives_one_row_per_returned_sequence(kind: str, values: dict[str, Any], rows: int) -> None:
    assert num_rows(strategy(kind, **values)) == rows


@pytest.mark.parametrize(
    ("kind", "values", "num_prompt_tokens", "steps"),
    [
        ("greedy", {}, 0, 20),
        ("greedy", {}, 1000, 20),
        ("greedy", {"max_new_tokens": None, "max_length": 30}, 10, 20),
        ("greedy", {"max_new_tokens": None, "max_length": 30}, 30, 0),
        ("greedy", {"max_new_tokens": None, "max_length": 30}, 31, 0),
        ("next_token", {}, 10, 1),
    ],
)
def test_max_length_counts_the_prompt_and_max_new_tokens_does_not(
    kind: str, values: dict[str, Any], num_prompt_tokens: int, steps: int
) -> None:
    assert max_steps(strategy(kind, **values), num_prompt_tokens) == steps
