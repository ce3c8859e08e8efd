"""Engine and naive references against transformers 4.41.2, the last with contrastive search, diverse and forced beams.

It runs in an environment of its own, which `make oracle` builds. Contrastive search agrees in all cases, and diverse
beams do where no group can be done before another. Where they can, and for constrained beams,
`tests/oracle/departures.py` puts the references' parts together by 4.41.2's rules, and that agrees in all cases.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2LMHeadModel

from pipeline.records import Request, RowError
from pipeline.strategies import BeamSearch, ContrastiveSearch, num_rows
from tests.models import engine_for, random_model, uneven_prompts
from tests.naive import Completed, Naive, reference
from tests.naive.constrained import entries_of, is_met
from tests.oracle.departures import constrained_rows, diverse_rows

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".oracle" / "bin" / "python"
EOS, PAD = 5, 0
FORCED = (44, 48, 50)  # no prompt holds them: 4.41.2 would count them as met

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not PYTHON.exists(), reason="`make oracle` builds the environment with transformers 4.41.2"),
]

PROCESSORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 6},
    "bad_words_ids": {"bad_words_ids": ((7,), (11, 12))},
    "suppress_tokens": {"suppress_tokens": (3, 17, 27)},
}


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return random_model()


@pytest.fixture(scope="module")
def checkpoint(model: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as safetensors, which both releases read."""
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return folder


def prompts(count: int) -> list[tuple[int, ...]]:
    drawn = uneven_prompts(count, vocab_size=60)
    return [tuple(token for token in prompt if token not in FORCED) or (1,) for prompt in drawn]


def problems(model: GPT2LMHeadModel, kind: Any, cases: Sequence[dict[str, Any]], num_prompts: int) -> list[Naive[Any]]:
    """Every case over every prompt, none of which may generate the pad."""
    base = {"name": "s", "type": kind.model_fields["type"].annotation.__args__[0], "max_new_tokens": 12}
    strategies = [kind(**base, **case | {"suppress_tokens": (PAD, *case.get("suppress_tokens", ()))}) for case in cases]
    return [Naive(model, prompt, strategy, (EOS,)) for strategy in strategies for prompt in prompts(num_prompts)]


def arguments(naive: Naive[Any]) -> dict[str, Any]:
    """The strategy as arguments of `generate`."""
    settings = naive.strategy.model_dump(exclude_unset=True, exclude={"name", "type", "ignore_eos"}, mode="json")
    eos = None if naive.strategy.ignore_eos else EOS
    return settings | {"eos_token_id": eos, "pad_token_id": PAD}


def completion(row: list[int], eos: int | None) -> tuple[int, ...]:
    """Token ids of a row, cut after its end of text."""
    return tuple(row[: row.index(eos) + 1] if eos in row else row)


def asked(checkpoint: Path, naives: Sequence[Naive[Any]]) -> list[dict[str, Any]]:
    """What 4.41.2 makes of the problems: the completions and scores of each."""
    cases = [{"prompt": naive.prompt, "settings": arguments(naive)} for naive in naives]
    answer = subprocess.run(
        [PYTHON, ROOT / "tests" / "oracle" / "generate.py"],
        input=json.dumps({"checkpoint": str(checkpoint), "cases": cases}),
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(answer.stdout)
    for naive, case in zip(naives, found, strict=True):
        eos = arguments(naive)["eos_token_id"]
        case["token_ids"] = [completion(row, eos) for row in case["token_ids"]]
    return found


def completions(naive: Naive[Any]) -> list[Completed]:
    found = reference(naive)
    assert not isinstance(found, str), found
    return found


def engine_rows(model: GPT2LMHeadModel, naives: Sequence[Naive[Any]]) -> list[list[tuple[int, ...]]]:
    """Token ids of what the engine makes of all problems at once."""
    requests = [Request(naive.prompt, naive.strategy, tuple(range(num_rows(naive.strategy)))) for naive in naives]
    answers = [response.completions for response in engine_for(model, eos=EOS).generate(requests)]
    return [[tuple(done.token_ids.tolist()) for done in row] for row in answers if not isinstance(row, RowError)]


def test_contrastive_search_equals_that_of_4_41_2(model: GPT2LMHeadModel, checkpoint: Path) -> None:
    cases = [
        {"penalty_alpha": alpha, "top_k": top_k, **processors}
        for alpha, top_k in ((0.6, 4), (0.3, 8), (0.9, 3))
        for processors in PROCESSORS.values()
    ]
    naives = problems(model, ContrastiveSearch, cases, 5)
    answers = asked(checkpoint, naives)
    assert engine_rows(model, naives) == [expected["token_ids"] for expected in answers]
    for naive, expected in zip(naives, answers, strict=True):
        assert [tuple(done.token_ids) for done in completions(naive)] == expected["token_ids"]


GROUPS: tuple[dict[str, Any], ...] = (
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_return_sequences": 4},
    {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 0.5, "num_return_sequences": 3},
    {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 2.5, "num_return_sequences": 3, "length_penalty": 0.0},
)


def test_diverse_beams_that_all_run_to_the_limit_equal_those_of_4_41_2(
    model: GPT2LMHeadModel, checkpoint: Path
) -> None:
    cases = [group | processors | {"ignore_eos": True} for group in GROUPS for processors in PROCESSORS.values()]
    naives = problems(model, BeamSearch, cases, 2)
    answers = asked(checkpoint, naives)
    assert engine_rows(model, naives) == [expected["token_ids"] for expected in answers]
    for naive, expected in zip(naives, answers, strict=True):
        done = completions(naive)
        assert [tuple(one.token_ids) for one in done] == expected["token_ids"]
        assert [one.sequence_score for one in done] == pytest.approx(expected["scores"], abs=1e-4)


def test_diverse_beams_by_the_rules_of_4_41_2_equal_its_own(model: GPT2LMHeadModel, checkpoint: Path) -> None:
    cases = [
        group | PROCESSORS[key] | {"early_stopping": early_stopping}
        for group in GROUPS
        for key in ("plain", "no_repeat_ngram_size", "min_new_tokens")
        for early_stopping in (True, False, "never")
    ]
    naives = problems(model, BeamSearch, cases, 2)
    answers = asked(checkpoint, naives)
    for naive, expected in zip(naives, answers, strict=True):
        assert diverse_rows(naive, PAD) == expected["token_ids"]
    same = [
        [tuple(done.token_ids) for done in completions(naive)] == expected["token_ids"]
        for naive, expected in zip(naives, answers, strict=True)
    ]
    assert sum(same) > 0.9 * len(same)  # the rules matter only now and then


WORDS: tuple[dict[str, Any], ...] = (
    {"num_beams": 4, "force_words_ids": ((44,), (48,))},
    {"num_beams": 3, "force_words_ids": (((44,), (48,)),)},
    {"num_beams": 5, "force_words_ids": ((44,), (48,), (50,))},
    {"num_beams": 5, "force_words_ids": (((44,), (48,)), (50,)), "repetition_penalty": 1.3},
    {"num_beams": 4, "force_words_ids": ((44, 48),), "no_repeat_ngram_size": 1},
    {"num_beams": 5, "force_words_ids": ((44, 48, 50),), "no_repeat_ngram_size": 1},
    {"num_beams": 3, "force_words_ids": ((44,),), "ignore_eos": True},
)


def test_constrained_beams_by_the_rules_of_4_41_2_equal_its_own(model: GPT2LMHeadModel, checkpoint: Path) -> None:
    cases = [words | {"early_stopping": early_stopping} for words in WORDS for early_stopping in (True, False, "never")]
    naives = problems(model, BeamSearch, cases, 3)
    answers = asked(checkpoint, naives)
    for naive, expected in zip(naives, answers, strict=True):
        (row,), (score,) = expected["token_ids"], expected["scores"]
        is_answer = is_met(entries_of(naive.strategy), row) and score > -math.inf
        assert constrained_rows(naive) == ([row] if is_answer else [])
    better = [
        (completions(naive)[0].sequence_score or 0.0) > expected["scores"][0] - 1e-4
        for naive, expected in zip(naives, answers, strict=True)
    ]
    assert sum(better) > 0.8 * len(better)  # the paper's candidates find the words better places
