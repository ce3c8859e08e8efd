"""Next-token candidates and divergences: exact on the demo model, and by hand; prompts that cannot be used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from transformers import AutoTokenizer, GPT2LMHeadModel

from pipeline.checkpoint import DEMO
from pipeline.engine import Engine, load_model
from pipeline.errors import InputError
from pipeline.next_tokens import MAX_PROMPTS, NextTokens, js, kl, next_tokens, parse_ids, predict, to_document
from pipeline.records import Request
from pipeline.strategies import NextToken
from pipeline.tokenizer import Tokenizer

SKIP, WALK = "I skip across the", "I walk across the"

PLACE = {
    "type": "object",
    "properties": {
        "rank": {"type": "integer", "minimum": 1},
        "prob": {"type": "number"},
        "logprob": {"type": "number"},
    },
    "required": ["rank", "prob", "logprob"],
    "additionalProperties": False,
}
TOKEN = {
    "token_id": {"type": "integer"},
    "token": {"type": ["string", "null"]},
    "text": {"type": "string"},
    "bytes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
}


def object_of(**properties: Any) -> dict[str, Any]:
    """The JSON Schema of an object with exactly these keys."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


NUMBER, WHOLE, STRING = {"type": "number"}, {"type": "integer"}, {"type": "string"}
DOCUMENT = object_of(
    schema={"const": 1},
    model=object_of(name=STRING, commit=STRING, dtype={"enum": ["float32", "bfloat16"]}),
    vocab_size=WHOLE,
    predictions={
        "type": "array",
        "minItems": 1,
        "items": object_of(
            prompt=STRING,
            prompt_token_ids={"type": "array", "items": WHOLE},
            entropy=NUMBER,
            candidates={"type": "array", "items": object_of(**TOKEN, **PLACE["properties"])},
        ),
    },
    shifts={
        "type": "array",
        "items": object_of(
            first={"const": 1},
            second=WHOLE,
            kl_first_second=NUMBER,
            kl_second_first=NUMBER,
            js=NUMBER,
            shared={"type": "array", "items": object_of(**TOKEN, first=PLACE, second=PLACE, change=NUMBER)},
        ),
    },
)


@pytest.fixture(scope="module")
def answer() -> NextTokens:
    """Two prompts of different length."""
    return next_tokens([SKIP, WALK], model="demo", dtype="float32", k=10)


@pytest.fixture(scope="module")
def reference() -> list[np.ndarray[Any, Any]]:
    """The same two distributions by transformers, (V,) each."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(DEMO), AutoTokenizer.from_pretrained(DEMO)
    with torch.inference_mode():
        logits = [model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1] for prompt in (SKIP, WALK)]
    return [torch.softmax(row.double(), dim=-1).numpy() for row in logits]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO, 768)


def test_the_ten_candidates_are_those_of_transformers_softmax(answer: NextTokens, reference: Any) -> None:
    for prediction, probs in zip(answer.predictions, reference, strict=True):
        best = np.argsort(-probs, kind="stable")[:10]
        assert [one.token_id for one in prediction.candidates] == best.tolist()
        np.testing.assert_allclose([one.prob for one in prediction.candidates], probs[best], rtol=1e-5)
        assert [one.rank for one in prediction.candidates] == [*range(1, 11)]
        assert prediction.entropy == pytest.approx(entropy(probs), rel=1e-5)


def test_after_i_skip_across_the_come_the_places_of_the_tutorial(answer: NextTokens) -> None:
    shown = [(one.token_bytes, round(100 * one.prob, 1)) for one in answer.predictions[0].candidates[:3]]
    assert shown == [(b" line", 19.2), (b" street", 16.8), (b" river", 12.8)]
    assert answer.predictions[0].candidates[0].token == "Ġline"


def test_divergences_are_those_of_scipy_in_the_stated_direction(answer: NextTokens, reference: Any) -> None:
    p, q = reference
    (shift,) = answer.shifts
    assert shift.kl_first_second == pytest.approx(entropy(p, q), rel=1e-5)
    assert shift.kl_second_first == pytest.approx(entropy(q, p), rel=1e-5)
    assert shift.js == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-5)
    assert shift.kl_second_first > 2 * shift.kl_first_second  # so that a swap would show


def test_shared_candidates_have_both_ranks_and_the_change(answer: NextTokens, reference: Any) -> None:
    p, q = reference
    shared = answer.shifts[0].shared
    ids = [both.before.token_id for both in shared]
    first, second = (np.argsort(-probs, kind="stable").tolist() for probs in reference)
    assert ids == [token_id for token_id in first[:10] if token_id in second[:10]]
    assert len(ids) == 8
    for both in shared:
        token_id = both.before.token_id
        assert both.after.token_id == token_id
        assert (both.before.rank, both.after.rank) == (first.index(token_id) + 1, second.index(token_id) + 1)
        assert both.change == pytest.approx(q[token_id] - p[token_id], abs=1e-6)


def test_every_prompt_is_compared_with_the_first() -> None:
    answer = next_tokens([WALK, SKIP, WALK], model="demo", dtype="float32", k=2)
    assert [(shift.first, shift.second) for shift in answer.shifts] == [(1, 2), (1, 3)]
    same = answer.shifts[1]
    assert (same.kl_first_second, same.kl_second_first, same.js) == pytest.approx((0, 0, 0), abs=1e-9)
    assert [both.before.rank for both in same.shared] == [both.after.rank for both in same.shared] == [1, 2]


def test_the_candidates_are_those_that_a_job_records(answer: NextTokens, tokenizer: Tokenizer) -> None:
    engine = Engine(
        load_model(str(DEMO), "float32", "cpu"),
        eos_token_ids=(767,),
        token_bytes=tokenizer.token_bytes,
        num_alternatives=10,
    )
    strategy = NextToken(name="candidates", type="next_token")
    requests = [Request(prediction.prompt_token_ids, strategy, (0,)) for prediction in answer.predictions]
    for prediction, response in zip(answer.predictions, engine.generate(requests), strict=True):
        assert isinstance(response.completions, tuple)
        (completion,) = response.completions
        assert completion.top_token_ids[0].tolist() == [one.token_id for one in prediction.candidates]
        np.testing.assert_allclose(completion.top_probs[0], [one.prob for one in prediction.candidates], rtol=1e-5)


def test_token_ids_are_the_same_prompt_as_their_text(answer: NextTokens) -> None:
    by_ids = next_tokens([parse_ids("40 294,295, 259")], model="demo", dtype="float32", k=10)
    assert by_ids.predictions[0].prompt == SKIP
    for one, other in zip(by_ids.predictions[0].candidates, answer.predictions[0].candidates, strict=True):
        assert (one.token_id, one.rank) == (other.token_id, other.rank)
        assert one.prob == pytest.approx(other.prob, rel=1e-5)


def test_more_candidates_than_tokens_means_all_of_them() -> None:
    answer = next_tokens([SKIP], model="demo", dtype="float32", k=10**6)
    candidates = answer.predictions[0].candidates
    assert len(candidates) == len({one.token_id for one in candidates}) == answer.vocab_size == 768
    assert math.fsum(one.prob for one in candidates) == pytest.approx(1, abs=1e-12)


def test_equal_probabilities_rank_by_token_id(tokenizer: Tokenizer) -> None:
    logprobs = np.log(np.array([0.1, 0.3, 0.1, 0.3, 0.2]))
    candidates = predict((40,), logprobs, tokenizer, 4).candidates
    assert [(one.token_id, one.rank) for one in candidates] == [(1, 1), (3, 2), (4, 3), (0, 4)]


def test_divergences_by_hand() -> None:
    p, q = np.log(np.array([0.5, 0.5])), np.log(np.array([0.25, 0.75]))
    assert kl(p, q) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl(q, p) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    middle = np.log(np.array([0.375, 0.625]))
    assert js(p, q) == pytest.approx((kl(p, middle) + kl(q, middle)) / 2)
    assert js(p, q) == js(q, p)


def test_distributions_that_share_nothing_are_ln_2_apart_and_never_nan() -> None:
    p, q = np.array([0.0, -800.0]), np.array([-800.0, 0.0])  # exp(-800) is 0 in float64
    assert kl(p, q) == 800
    assert js(p, q) == pytest.approx(math.log(2))
    assert kl(p, p) == js(p, p) == 0


def test_the_document_is_complete_exact_json(answer: NextTokens) -> None:
    text = json.dumps(to_document(answer))
    document = json.loads(text)
    jsonschema.validate(document, DOCUMENT)
    assert document["model"]["name"] == "demo"
    assert document["predictions"][0]["prompt_token_ids"] == [40, 294, 295, 259]
    line = document["predictions"][0]["candidates"][0]
    assert line["prob"] == answer.predictions[0].candidates[0].prob
    assert {key: line[key] for key in ("token", "text", "bytes")} == {
        "token": "Ġline",
        "text": " line",
        "bytes": [*b" line"],
    }
    assert document["shifts"][0]["kl_first_second"] == answer.shifts[0].kl_first_second
    assert len(document["shifts"][0]["shared"]) == 8
    assert document["shifts"][0]["shared"][0]["second"]["prob"] == answer.shifts[0].shared[0].after.prob


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], ["there is no prompt", 'batchgen next "I skip across the"']),
        ([""], ["prompt 1 is empty", "--ids 767"]),
        ([SKIP, ()], ["prompt 2 is empty"]),
        ([SKIP, "bad \udcff byte"], ["prompt 2", "not valid Unicode", "character 5", r"\udcff"]),
        (["word " * 100], ["prompt 1 has 301 tokens", "at most 128", "`demo`"]),
        ([(767,) * 129], ["prompt 1 has 129 tokens"]),
        ([(1, 768)], ["token id 768", "0 to 767"]),
        ([SKIP] * (MAX_PROMPTS + 1), ["at most 64", "65", "type: next_token"]),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named_with_the_rule(prompts: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        next_tokens(prompts, model="demo", dtype="float32", k=10)
    for word in words:
        assert word in str(caught.value)


def test_a_prompt_may_fill_the_context() -> None:
    answer = next_tokens([(767,) * 128], model="demo", dtype="float32", k=1)
    assert len(answer.predictions[0].prompt_token_ids) == 128


@pytest.mark.parametrize("word", ["x", "-2", "1.5", "²", "9" * 5000, "\x1b[2J"])
def test_ids_that_are_no_whole_numbers_are_refused_harmlessly(word: str) -> None:
    with pytest.raises(InputError, match="--ids must be token ids") as caught:
        parse_ids(f"40 {word}")
    assert "\x1b" not in str(caught.value)


def test_an_empty_prompt_of_a_model_without_a_beginning_token_gets_no_such_hint(tmp_path: Path) -> None:
    for file in DEMO.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((DEMO / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(settings | {"bos_token_id": None}))
    with pytest.raises(InputError) as caught:
        next_tokens([""], model=str(tmp_path), dtype="float32", k=1)
    assert str(caught.value) == "prompt 1 is empty; it must have at least one token. Give it a text."
