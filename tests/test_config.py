"""The rules of the job as a whole: its defaults, its ranges, and what must agree between its parts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config import InputConfig, Job, ModelConfig, OutputConfig, RunConfig
from pipeline.strategies import Greedy

GREEDY = {"name": "greedy", "type": "greedy", "max_new_tokens": 20}


def job(**values: Any) -> Job:
    sections = {"model": "demo", "input": {"path": "prompts.parquet"}, "output": {"path": "out"}}
    return Job.model_validate({**sections, "strategies": [GREEDY], **values})


def errors(**values: Any) -> list[tuple[str, tuple[int | str, ...]]]:
    with pytest.raises(ValidationError) as error:
        job(**values)
    return [(detail["msg"], (*detail["loc"], *detail.get("ctx", {}).get("at", ()))) for detail in error.value.errors()]


def test_a_job_needs_little_and_the_defaults_are_the_rest() -> None:
    assert job() == Job(
        model=ModelConfig(name="demo", revision=None, dtype="float32"),
        input=InputConfig(
            path="prompts.parquet",
            id_column=None,
            prompt_column="prompt",
            prompt_template=None,
            token_ids_column=None,
            keep_columns=(),
            on_long_prompt="error",
            on_empty_prompt="bos",
        ),
        output=OutputConfig(path="out", top_k=10, prompt_logprobs=False),
        strategies=(Greedy(name="greedy", type="greedy", max_new_tokens=20),),
        seed=0,
        run=RunConfig(replicas="auto", gpus_per_replica="auto", shard_rows="auto", max_error_rate=0.05, grace_s=25),
    )


def test_a_model_may_be_just_its_name() -> None:
    assert job(model="openai-community/gpt2").model == ModelConfig(name="openai-community/gpt2")


def test_a_job_survives_being_written_as_json() -> None:
    first = job(input={"path": ["a", "b"], "keep_columns": ["c"]}, run={"replicas": 2, "gpus_per_replica": 0.5})
    assert Job.model_validate_json(first.model_dump_json()) == first


@pytest.mark.parametrize(
    ("given", "prompt_column"),
    [
        ({}, "prompt"),
        ({"prompt_column": None}, "prompt"),
        ({"prompt_column": "text"}, "text"),
        ({"prompt_template": "Q: {question}"}, None),
        ({"token_ids_column": "ids"}, None),
    ],
)
def test_the_column_is_prompt_unless_another_source_is_named(given: dict[str, Any], prompt_column: str | None) -> None:
    assert job(input={"path": "a", **given}).input.prompt_column == prompt_column


def test_prompts_have_one_source() -> None:
    given = {"path": "a", "prompt_column": "text", "prompt_template": "Q: {q}", "token_ids_column": "ids"}
    what = (
        "prompts come from one of `prompt_column`, `prompt_template`, `token_ids_column`, "
        "not `prompt_column` and `prompt_template` and `token_ids_column`"
    )
    assert errors(input=given) == [(what, ("input", "token_ids_column"))]


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 2**63 - 1},
        {"model": {"name": "m", "revision": "abc", "dtype": "bfloat16"}},
        {"output": {"path": "o", "top_k": 0}},
        {"output": {"path": "o", "top_k": 1000, "prompt_logprobs": True}},
        {"run": {"replicas": 1, "gpus_per_replica": 0, "shard_rows": 1, "max_error_rate": 0}},
        {"run": {"gpus_per_replica": 0.25, "max_error_rate": 1, "grace_s": 0}},
        {"run": {"replicas": 8, "autoscaling": True, "accelerator_type": "L4", "label_selector": {"zone": "!a"}}},
        {"run": {"gpus_per_replica": 2}},
        {"run": {"replicas": {"min": 2, "max": 2}, "autoscaling": True, "shared_output": True}},
        {"input": {"path": ["a", "b"]}},
    ],
)
def test_values_on_the_edge_of_a_rule_are_taken(values: dict[str, Any]) -> None:
    dumped = job(**values).model_dump(mode="json")
    (section, given) = next(iter(values.items()))
    assert (dumped[section] if not isinstance(given, dict) else {k: dumped[section][k] for k in given}) == given


@pytest.mark.parametrize(
    "values",
    [
        {"seed": -1},
        {"seed": 2**63},
        {"seed": True},
        {"seed": 1.0},
        {"model": ""},
        {"model": {"name": "m", "dtype": "float16"}},
        {"input": {"path": "a", "keep_columns": "topic"}},
        {"input": {"path": "a", "on_long_prompt": "truncate"}},
        {"input": {"path": "a", "prompt_template": ""}},
        {"output": {"path": ""}},
        {"output": {"path": "o", "top_k": -1}},
        {"output": {"path": "o", "top_k": 1001}},
        {"output": {"path": "o", "prompt_logprobs": "yes"}},
        {"run": None},
        {"run": {"max_error_rate": 1.1}},
        {"run": {"max_error_rate": True}},
        {"run": {"grace_s": -1}},
        {"run": {"autoscaling": True}},
        {"run": {"accelerator_type": ""}},
        {"run": {"label_selector": {"zone": ""}}},
        {"run": {"nodes": 3}},
        {"strategies": []},
        {"strategies": "greedy"},
        {"extra": 1},
        {None: 1},
    ],
)
def test_a_value_outside_its_rule_is_refused(values: dict[Any, Any]) -> None:
    sections = {"model": "demo", "input": {"path": "a"}, "output": {"path": "o"}, "strategies": [GREEDY]}
    with pytest.raises(ValidationError) as error:
        Job.model_validate({**sections, **values})
    assert error.value.error_count() == 1


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("input", "path", ""),
        ("input", "path", []),
        ("input", "path", [""]),
        ("input", "path", None),
        ("run", "replicas", 0),
        ("run", "replicas", True),
        ("run", "replicas", "2"),
        ("run", "replicas", {"min": 1}),
        ("run", "replicas", {"min": 0, "max": 1}),
        ("run", "gpus_per_replica", -0.5),
        ("run", "shard_rows", 0.5),
    ],
)
def test_a_value_that_fits_neither_of_two_forms_is_refused(section: str, key: str, value: Any) -> None:
    given = {"path": "a", key: value} if section == "input" else {key: value}
    assert {where[:2] for _, where in errors(**{section: given})} == {(section, key)}


def test_more_than_one_gpu_comes_whole() -> None:
    what = "`run.gpus_per_replica` above 1 must be a whole number, but is 1.5"
    assert errors(run={"gpus_per_replica": 1.5}) == [(what, ("run", "gpus_per_replica"))]


def test_a_range_of_replicas_is_in_order() -> None:
    what = "`run.replicas.max` must be at least `min`, 3, but is 2"
    assert (what, ("run", "replicas", "max")) in errors(run={"replicas": {"min": 3, "max": 2}})


@pytest.mark.parametrize(
    ("replicas", "limits"),
    [("auto", (1, None)), (4, (4, 4)), ({"min": 2, "max": 4}, (2, 4)), ({"max": 4}, (1, 4))],
)
def test_every_form_of_replicas_has_a_least_and_a_most(replicas: Any, limits: tuple[int, int | None]) -> None:
    assert job(run={"replicas": replicas}).run.replica_limits == limits


def test_strategy_names_are_unique() -> None:
    given = [GREEDY, {"name": "other", "type": "next_token"}, {"name": "greedy", "type": "next_token"}]
    what = "strategy names must be unique, but an earlier one is `greedy` too"
    assert errors(strategies=given) == [(what, ("strategies", 2, "name"))]


def test_strategies_that_report_candidates_need_some_recorded() -> None:
    what = "`output.top_k` must be at least 1 for a strategy of `type: next_token`, but is 0"
    given = {"output": {"path": "o", "top_k": 0}, "strategies": [GREEDY, {"name": "n", "type": "next_token"}]}
    assert errors(**given) == [(what, ("output", "top_k"))]
