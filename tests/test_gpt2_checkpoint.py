"""GPT-2's own numbers, where BATCHGEN_GPT2 names a folder with the real 124M checkpoint (`openai-community/gpt2`).

The expected values are those published in a notebook on decoding with GPT-2, which rounds percentages to one digit.
"""

from __future__ import annotations

import os

import pytest

from pipeline import checkpoint
from pipeline.engine import Engine, load_model
from pipeline.records import Completion, Request
from pipeline.strategies import Greedy, NextToken, Strategy
from pipeline.tokenizer import Tokenizer

FOLDER = os.environ.get("BATCHGEN_GPT2", "")

pytestmark = [
    pytest.mark.checkpoint,
    pytest.mark.skipif(not FOLDER, reason="BATCHGEN_GPT2 does not name a folder with the real GPT-2 checkpoint"),
]

PROMPT = "I skip across the"


@pytest.fixture(scope="module")
def found() -> checkpoint.Checkpoint:
    return checkpoint.inspect(FOLDER)


@pytest.fixture(scope="module")
def tokenizer(found: checkpoint.Checkpoint) -> Tokenizer:
    return Tokenizer(found.folder, found.vocab_size)


@pytest.fixture(scope="module")
def engine(found: checkpoint.Checkpoint, tokenizer: Tokenizer) -> Engine:
    return Engine(
        load_model(str(found.folder), "float32", "cpu"),
        eos_token_ids=found.eos_token_ids,
        token_bytes=tokenizer.token_bytes,
        num_alternatives=5,
    )


def generate(engine: Engine, tokenizer: Tokenizer, strategy: Strategy) -> Completion:
    (token_ids,) = tokenizer.encode([PROMPT])
    (response,) = engine.generate([Request(tuple(token_ids), strategy, seeds=(0,))])
    assert isinstance(response.completions, tuple)
    return response.completions[0]


def test_the_checkpoint_is_gpt2_small(found: checkpoint.Checkpoint) -> None:
    assert (found.num_positions, found.vocab_size) == (1024, 50257)
    assert (found.eos_token_ids, found.bos_token_id) == ((50256,), 50256)


def test_the_most_probable_next_tokens_are_the_published_ones(engine: Engine, tokenizer: Tokenizer) -> None:
    completion = generate(engine, tokenizer, NextToken(name="candidates", type="next_token"))
    words = [tokenizer.decode([token_id]) for token_id in completion.top_token_ids[0]]
    assert words == [" line", " street", " river", " room", " pond"]
    percentages = 100 * completion.top_probs[0]
    assert percentages.tolist() == pytest.approx([3.6, 2.7, 2.2, 1.9, 1.8], abs=0.05)


def test_the_greedy_completion_is_the_published_one(engine: Engine, tokenizer: Tokenizer) -> None:
    greedy = Greedy(name="greedy", type="greedy", max_new_tokens=20, repetition_penalty=1.5)
    completion = generate(engine, tokenizer, greedy)
    assert PROMPT + tokenizer.decode(completion.token_ids) == (
        "I skip across the line to a place where I can see it.\n\nThe next time you're in town,"
    )
    assert (len(completion.token_ids), completion.finish_reason) == (20, "length")
