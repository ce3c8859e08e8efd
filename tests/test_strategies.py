"""The rules of each strategy, and what follows from one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.strategies import (
    SAMPLERS,
    BeamSearch,
    ContrastiveSearch,
    Dola,
    Greedy,
    NextToken,
    Sampling,
    Score,
    Strategy,
    kind,
    max_steps,
    num_rows,
)

STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)
REQUIRED: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 20},
    "sampling": {"max_new_tokens": 20},
    "beam_search": {"max_new_tokens": 20, "num_beams": 3},
    "contrastive_search": {"max_new_tokens": 20, "penalty_alpha": 0.6, "top_k": 4},
    "dola": {"max_new_tokens": 20, "dola_layers": "low"},
    "next_token": {},
    "score": {},
}


def strategy(kind: str, **values: Any) -> Strategy:
    return STRATEGY.validate_python({"name": "s", "type": kind, **REQUIRED[kind], **values})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("greedy", Greedy(name="s", type="greedy", max_new_tokens=20)),
        ("sampling", Sampling(name="s", type="sampling", max_new_tokens=20)),
        ("beam_search", BeamSearch(name="s", type="beam_search", max_new_tokens=20, num_beams=3)),
        (
            "contrastive_search",
            ContrastiveSearch(name="s", type="contrastive_search", max_new_tokens=20, penalty_alpha=0.6, top_k=4),
        ),
        ("dola", Dola(name="s", type="dola", max_new_tokens=20, dola_layers="low")),
        ("next_token", NextToken(name="s", type="next_token")),
        ("score", Score(name="s", type="score")),
    ],
)
def test_the_type_decides_which_strategy_it_is(kind: str, expected: Strategy) -> None:
    assert strategy(kind) == expected


def test_every_filter_and_processor_is_off_unless_set() -> None:
    assert strategy("sampling").model_dump() == {
        "name": "s",
        "type": "sampling",
        "guidance_scale": None,
        "negative_prompt": None,
        "negative_prompt_ids": (),
        "sequence_bias": (),
        "encoder_repetition_penalty": None,
        "repetition_penalty": None,
        "frequency_penalty": None,
        "presence_penalty": None,
        "no_repeat_ngram_size": None,
        "bad_words": (),
        "bad_words_ids": (),
        "min_new_tokens": None,
        "allowed_words": (),
        "allowed_words_ids": (),
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "exponential_decay_length_penalty": None,
        "suppress_tokens": (),
        "begin_suppress_tokens": (),
        "stop_strings": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "max_new_tokens": 20,
        "max_length": None,
        "temperature": 1.0,
        "top_h": None,
        "top_k": None,
        "top_p": None,
        "min_p": None,
        "typical_p": None,
        "epsilon_cutoff": None,
        "eta_cutoff": None,
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
        ("greedy", {"guidance_scale": 0.1, "negative_prompt": "x"}),
        ("greedy", {"guidance_scale": 1, "negative_prompt_ids": [0]}),
        ("greedy", {"sequence_bias": [{"text": None, "token_ids": [0], "bias": 0}]}),
        ("greedy", {"encoder_repetition_penalty": 1e-3, "frequency_penalty": -2, "presence_penalty": 2}),
        ("greedy", {"allowed_words": ["a"], "allowed_words_ids": [[0]]}),
        ("greedy", {"forced_bos_token_id": 0, "forced_eos_token_id": 0, "suppress_tokens": [1]}),
        ("greedy", {"exponential_decay_length_penalty": [0, 1e-3]}),
        ("sampling", {"top_h": 1, "typical_p": 1, "epsilon_cutoff": 1e-9, "eta_cutoff": 0.999}),
        ("beam_search", {"do_sample": True, "temperature": 0.5, "top_k": 3, "typical_p": 0.5}),
        ("beam_search", {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 1e-3}),
        ("beam_search", {"force_words": ["a", ["b", "c"]], "force_words_ids": [[0], [[1, 2], [3]]]}),
        ("beam_search", {"length_penalty": 10}),
        ("contrastive_search", {"penalty_alpha": 1, "top_k": 2}),
        ("contrastive_search", {"penalty_alpha": 1e-3, "top_k": 256}),
        ("dola", {"dola_layers": [0]}),
        ("score", {"add_bos": False, "target_column": None}),
        ("score", {"target_column": "answer"}),
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
        ("greedy", {"guidance_scale": 0}),
        ("greedy", {"guidance_scale": 2, "negative_prompt": ""}),
        ("greedy", {"guidance_scale": 2, "negative_prompt_ids": [-1]}),
        ("greedy", {"sequence_bias": [{"text": "a"}]}),
        ("greedy", {"sequence_bias": [{"token_ids": [], "bias": 1}]}),
        ("greedy", {"encoder_repetition_penalty": 0}),
        ("greedy", {"frequency_penalty": 2.1}),
        ("greedy", {"presence_penalty": -2.1}),
        ("greedy", {"allowed_words": [""]}),
        ("greedy", {"allowed_words_ids": [[]]}),
        ("greedy", {"forced_bos_token_id": -1}),
        ("greedy", {"forced_eos_token_id": 1.0}),
        ("greedy", {"exponential_decay_length_penalty": [1]}),
        ("greedy", {"exponential_decay_length_penalty": [1, 2, 3]}),
        ("greedy", {"suppress_tokens": [True]}),
        ("greedy", {"begin_suppress_tokens": 3}),
        ("sampling", {"top_h": 0}),
        ("sampling", {"typical_p": 1.01}),
        ("sampling", {"epsilon_cutoff": 1}),
        ("sampling", {"eta_cutoff": 0}),
        ("beam_search", {"do_sample": 1}),
        ("beam_search", {"num_beam_groups": 1}),
        ("beam_search", {"diversity_penalty": 0}),
        ("beam_search", {"length_penalty": 10.1}),
        ("beam_search", {"force_words": [[]]}),
        ("beam_search", {"force_words_ids": [[[]]]}),
        ("contrastive_search", {"penalty_alpha": 0}),
        ("contrastive_search", {"top_k": 1}),
        ("contrastive_search", {"top_k": None}),
        ("contrastive_search", {"temperature": 0.5}),
        ("dola", {"dola_layers": "middle"}),
        ("dola", {"dola_layers": [-1]}),
        ("dola", {"dola_layers": []}),
        ("score", {"target_column": ""}),
        ("score", {"add_bos": 1}),
        ("score", {"stop_strings": ["a"]}),
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
        ("greedy", {"max_new_tokens": None}, "there is no limit of length", ()),
        (
            "greedy",
            {"max_length": 30},
            "there are two limits, `max_new_tokens` and `max_length`",
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
        (
            "greedy",
            {"guidance_scale": 2, "negative_prompt": "a", "negative_prompt_ids": [1]},
            "`negative_prompt` and `negative_prompt_ids` say the same",
            ("negative_prompt_ids",),
        ),
        *(
            (
                "greedy",
                {key: value},
                f"`{key}` has no effect without `guidance_scale`, which says how far to move away from it",
                (key,),
            )
            for key, value in (("negative_prompt", "a"), ("negative_prompt_ids", [1]))
        ),
        (
            "greedy",
            {"sequence_bias": [{"bias": 1}]},
            "a bias must have one of `text` and `token_ids`",
            ("bias",),
        ),
        (
            "greedy",
            {"sequence_bias": [{"text": "a", "token_ids": [1], "bias": 1}]},
            "a bias must have one of `text` and `token_ids`",
            ("bias",),
        ),
        (
            "greedy",
            {"exponential_decay_length_penalty": [5, 1.1], "ignore_eos": True},
            "`exponential_decay_length_penalty` raises the score of the end of text, "
            "which `ignore_eos` makes a token like any other",
            ("exponential_decay_length_penalty",),
        ),
        *(
            (
                "greedy",
                {"exponential_decay_length_penalty": value},
                "`exponential_decay_length_penalty` must be [start, factor], a number of tokens and a number above 0, "
                f"but is {[float(number) for number in value]}",
                ("exponential_decay_length_penalty",),
            )
            for value in ([-1, 1.1], [1.5, 1.1], [1, 0])
        ),
        *(
            (
                "beam_search",
                {key: 0.5 if key != "top_k" else 5},
                f"`{key}` has no effect without `do_sample: true`: beams take the best candidates otherwise",
                (key,),
            )
            for key in SAMPLERS
        ),
        (
            "beam_search",
            {"num_beam_groups": 3},
            "`num_beam_groups` needs `diversity_penalty`: "
            "groups differ only by the penalty, which acts only between groups",
            ("num_beam_groups",),
        ),
        (
            "beam_search",
            {"diversity_penalty": 1.0},
            "`diversity_penalty` needs `num_beam_groups`: "
            "groups differ only by the penalty, which acts only between groups",
            ("diversity_penalty",),
        ),
        (
            "beam_search",
            {"num_beam_groups": 2, "diversity_penalty": 1.0},
            "`num_beams` (3) must be a multiple of `num_beam_groups` (2)",
            ("num_beam_groups",),
        ),
        (
            "beam_search",
            {"do_sample": True, "num_beam_groups": 3, "diversity_penalty": 1.0},
            "`do_sample` draws its candidates and `num_beam_groups` compares groups by the best candidates",
            ("num_beam_groups",),
        ),
        *(
            (
                "beam_search",
                {"do_sample": True, key: [[1]] if key.endswith("ids") else ["a"]},
                f"`do_sample` draws its candidates and `{key}` sorts beams by the words they hold",
                (key,),
            )
            for key in ("force_words", "force_words_ids")
        ),
        *(
            (
                "beam_search",
                {"num_beam_groups": 3, "diversity_penalty": 1.0, key: [[1]] if key.endswith("ids") else ["a"]},
                f"`num_beam_groups` compares groups by the best candidates and `{key}` sorts beams by the words they "
                "hold",
                (key,),
            )
            for key in ("force_words", "force_words_ids")
        ),
        (
            "score",
            {"target_column": "answer", "add_bos": True},
            "`add_bos` has no meaning with `target_column`: there the prompt comes before the scored tokens",
            ("add_bos",),
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
        ("contrastive_search", {}, 1),
        ("dola", {}, 1),
        ("next_token", {}, 1),
        ("score", {}, 1),
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
    given = strategy(kind, **values)
    assert not isinstance(given, Score)
    assert max_steps(given, num_prompt_tokens) == steps


def test_strategies_that_differ_in_name_and_limit_alone_are_of_one_kind() -> None:
    first = strategy("sampling", temperature=0.5)
    alike = Sampling(name="t", type="sampling", max_length=7, temperature=0.5)
    assert kind(first) is kind(alike)
    others = (
        strategy("sampling", temperature=0.6),
        strategy("sampling", temperature=0.5, ignore_eos=True),
        strategy("greedy"),
    )
    assert len({id(kind(one)) for one in (first, *others)}) == 4
