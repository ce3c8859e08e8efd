"""Words of a strategy become token ids, and what does not fit the model is refused with the key and a way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import TypeAdapter

from pipeline.checkpoint import inspect
from pipeline.resolve import UnfitError, resolve
from pipeline.strategies import Bias, Strategy
from pipeline.tokenizer import Tokenizer

STRATEGY: TypeAdapter[Strategy] = TypeAdapter(Strategy)
REQUIRED: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 20},
    "beam_search": {"max_new_tokens": 20, "num_beams": 3},
    "dola": {"max_new_tokens": 20, "dola_layers": "high"},
    "next_token": {},
    "score": {},
}
DEMO = inspect("demo")  # 768 tokens, 128 positions, 3 layers, 767 begins and ends a text


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(DEMO.folder, DEMO.vocab_size)


def strategy(kind: str, **values: Any) -> Strategy:
    return STRATEGY.validate_python({"name": "s", "type": kind, **REQUIRED[kind], **values})


def changed(before: Strategy, after: Strategy) -> dict[str, Any]:
    """Keys whose value differs, with the new one."""
    return {key: value for key, value in after if value != getattr(before, key)}


def ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode([text])[0])


# Words


def test_a_strategy_without_words_stays_as_it_is(demo: Tokenizer) -> None:
    for kind in REQUIRED:
        assert resolve(strategy(kind), demo, DEMO) == strategy(kind)


@pytest.mark.parametrize("key", ["bad_words", "allowed_words"])
def test_words_that_ban_or_allow_become_all_their_variants_after_the_ids_given(demo: Tokenizer, key: str) -> None:
    line, fox = demo.variants_ids(["line"]), demo.variants_ids(["fox"])
    given = strategy("greedy", **{key: ["line", "fox", "Line"], f"{key}_ids": [[1, 2], [1, 2]]})
    assert changed(given, resolve(given, demo, DEMO)) == {key: (), f"{key}_ids": ((1, 2), *line, *fox)}


def test_words_to_force_get_a_space_unless_they_have_one_and_keep_their_alternatives(demo: Tokenizer) -> None:
    words = ["castle", " river", "\nand", ["street", " road"]]
    given = strategy("beam_search", force_words=words, force_words_ids=[[1, 2], [[3], [4]]])
    assert changed(given, resolve(given, demo, DEMO)) == {
        "force_words": (),
        "force_words_ids": (
            (1, 2),
            ((3,), (4,)),
            ids(demo, " castle"),
            ids(demo, " river"),
            ids(demo, "\nand"),
            (ids(demo, " street"), ids(demo, " road")),
        ),
    }


def test_of_alternatives_where_one_begins_another_the_shorter_one_stays(demo: Tokenizer) -> None:
    """A text that holds the longer one holds the shorter one, and a trie of alternatives cannot end inside itself."""
    given = strategy("beam_search", force_words_ids=[[[1, 2, 3], [1, 2], [4], [2, 3], [4]], [5, 5]])
    resolved = resolve(given, demo, DEMO)
    assert changed(given, resolved) == {"force_words_ids": (((1, 2), (4,), (2, 3)), (5, 5))}


def test_texts_to_bias_become_ids_as_they_are_written(demo: Tokenizer) -> None:
    biases = [{"text": "castle", "bias": 1.5}, {"text": " castle", "bias": -2}, {"token_ids": [1], "bias": 3}]
    given = strategy("next_token", sequence_bias=biases)
    assert changed(given, resolve(given, demo, DEMO)) == {
        "sequence_bias": (
            Bias(token_ids=ids(demo, "castle"), bias=1.5),
            Bias(token_ids=ids(demo, " castle"), bias=-2),
            Bias(token_ids=(1,), bias=3),
        )
    }


def test_a_negative_prompt_becomes_ids_as_it_is_written(demo: Tokenizer) -> None:
    given = strategy("greedy", guidance_scale=2, negative_prompt="The castle")
    expected = {"negative_prompt": None, "negative_prompt_ids": ids(demo, "The castle")}
    assert changed(given, resolve(given, demo, DEMO)) == expected


def test_resolving_twice_changes_nothing(demo: Tokenizer) -> None:
    given = strategy(
        "beam_search",
        bad_words=["line"],
        allowed_words=["fox"],
        force_words=["castle", ["a", "b"]],
        sequence_bias=[{"text": "x", "bias": 1}],
        guidance_scale=2,
        negative_prompt="The",
    )
    once = resolve(given, demo, DEMO)
    assert resolve(once, demo, DEMO) == once


# What does not fit the model


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("greedy", {"stop_token_ids": [767], "suppress_tokens": [767], "begin_suppress_tokens": [767]}),
        ("greedy", {"forced_bos_token_id": 767, "forced_eos_token_id": 767}),
        ("greedy", {"guidance_scale": 2, "negative_prompt_ids": [0] * 128}),
        ("greedy", {"bad_words_ids": [[767, 767]]}),
        ("greedy", {"exponential_decay_length_penalty": [5, 1.1]}),
        ("beam_search", {"force_words_ids": [[1] * 10, [[2] * 10, [3] * 99]]}),
        ("beam_search", {"max_new_tokens": None, "max_length": 21, "force_words_ids": [[1] * 20]}),
        ("dola", {"dola_layers": [0, 2]}),
    ],
)
def test_what_just_fits_the_model_is_taken(demo: Tokenizer, kind: str, values: dict[str, Any]) -> None:
    given = strategy(kind, **values)
    assert resolve(given, demo, DEMO) == given


@pytest.mark.parametrize(
    ("kind", "values", "key", "what", "way_out"),
    [
        *(
            (
                "beam_search",
                {key: value},
                key,
                f"`{key}` must hold ids below 768, the vocabulary of model `demo`, but holds 768",
                "Take the ids from the model's own tokenizer.",
            )
            for key, value in {
                "stop_token_ids": [1, 768],
                "bad_words_ids": [[1], [2, 768]],
                "allowed_words_ids": [[768]],
                "force_words_ids": [[1], [[2], [3, 768]]],
                "sequence_bias": [{"token_ids": [1, 768], "bias": 1}],
                "suppress_tokens": [768],
                "begin_suppress_tokens": [768],
            }.items()
        ),
        (
            "greedy",
            {"guidance_scale": 2, "negative_prompt_ids": [768]},
            "negative_prompt_ids",
            "`negative_prompt_ids` must hold ids below 768, the vocabulary of model `demo`, but holds 768",
            "Take the ids from the model's own tokenizer.",
        ),
        *(
            (
                "greedy",
                {key: 50256},
                key,
                f"`{key}` must be an id below 768, the vocabulary of model `demo`, but is 50256",
                "Take the ids from the model's own tokenizer.",
            )
            for key in ("forced_bos_token_id", "forced_eos_token_id")
        ),
        (
            "greedy",
            {"guidance_scale": 2, "negative_prompt": "!" * 129},
            "negative_prompt",
            "`negative_prompt` has 129 tokens, the context of model `demo` 128",
            "Shorten it.",
        ),
        (
            "greedy",
            {"sequence_bias": [{"text": "!", "bias": 1}, {"token_ids": [0], "bias": 2}]},
            "sequence_bias",
            "`sequence_bias` has two biases for the same tokens [0]",
            "Keep one of them.",
        ),
        (
            "next_token",
            {"bad_words_ids": [[1], [767]]},
            "bad_words_ids",
            "`bad_words_ids` must not ban the end of text",
            "Use `ignore_eos` to run past it.",
        ),
        (
            "beam_search",
            {"force_words_ids": [[1] * 11, [[2] * 21, [3] * 99]]},
            "force_words",
            "`force_words` needs 21 tokens, which `max_new_tokens` (20) does not allow",
            "Raise `max_new_tokens`, or force shorter words.",
        ),
        (
            "beam_search",
            {"max_new_tokens": None, "max_length": 3, "force_words": ["!!!"]},
            "force_words",
            "`force_words` needs 4 tokens, which `max_length` (3) does not allow",
            "Raise `max_length`, or force shorter words.",
        ),
        (
            "dola",
            {"dola_layers": [0, 3]},
            "dola_layers",
            "`dola_layers` must hold layers below 3, the last one of model `demo`, but holds 3",
            "Take 0 for the embedding, n for the n-th layer.",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_a_way_out(
    demo: Tokenizer, kind: str, values: dict[str, Any], key: str, what: str, way_out: str
) -> None:
    with pytest.raises(UnfitError) as error:
        resolve(strategy(kind, **values), demo, DEMO)
    assert (error.value.key, error.value.what, error.value.way_out) == (key, what, way_out)


@pytest.mark.parametrize(
    ("kind", "values", "what", "way_out"),
    [
        (
            "greedy",
            {"exponential_decay_length_penalty": [5, 1.1]},
            "`exponential_decay_length_penalty` raises the score of the end of text, "
            "but model `demo` has no eos_token_id",
            "Leave it out.",
        ),
        (
            "score",
            {},
            "`add_bos` scores a text after the bos_token_id, but model `demo` has none",
            "Set `add_bos: false` to take the first token for given.",
        ),
    ],
)
def test_a_strategy_that_needs_a_token_the_model_lacks_is_refused(
    demo: Tokenizer, kind: str, values: dict[str, Any], what: str, way_out: str
) -> None:
    lacking = replace(DEMO, eos_token_ids=(), bos_token_id=None)
    with pytest.raises(UnfitError) as error:
        resolve(strategy(kind, **values), demo, lacking)
    assert (error.value.what, error.value.way_out) == (what, way_out)


@pytest.mark.parametrize("values", [{"add_bos": False}, {"target_column": "answer"}])
def test_what_is_scored_after_given_tokens_needs_no_start_token(demo: Tokenizer, values: dict[str, Any]) -> None:
    given = strategy("score", **values)
    assert resolve(given, demo, replace(DEMO, bos_token_id=None)) == given
