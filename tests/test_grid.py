"""A strategy with a grid is the strategies it stands for, from job file to table, and errors lead back to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match

from pipeline.config import Job
from pipeline.errors import ConfigError
from pipeline.grid import Expanded, expand
from pipeline.jobfile import json_schema, load_job, parse_job
from pipeline.strategies import Sampling
from tests.flows import make_job, read_output, run_echo, write_prompts

NUCLEUS: dict[str, Any] = {"name": "nucleus", "type": "sampling", "max_new_tokens": 4}
SWEEP = NUCLEUS | {"grid": {"temperature": [0.4, 0.8, 1.0], "top_p": [0.9, None]}}
NEXT: dict[str, Any] = {"name": "next", "type": "next_token"}
NAMES = [f"nucleus-temperature{t}-top_p{p}" for t in ("0.4", "0.8", "1.0") for p in ("0.9", "off")]
JOB = """\
model: demo
input: {path: prompts.parquet}
output: {path: out}
strategies:
  - name: nucleus
    type: sampling
    max_new_tokens: 4
    grid:
      temperature: [0.4, 0.8]
"""

Load = Callable[..., Job]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Writes a text to `job.yaml` in the working directory and loads that."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(text: str, *overrides: str) -> Job:
        Path("job.yaml").write_text(text)
        return load_job("job.yaml", overrides)

    return write_and_load


def values(*strategies: Any) -> dict[str, Any]:
    return {"model": "demo", "input": {"path": "p"}, "output": {"path": "o"}, "strategies": list(strategies)}


def refusal(load: Callable[..., Job], *arguments: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(*arguments)
    return str(error.value)


# What a grid stands for


def test_a_grid_is_one_strategy_for_each_combination_named_after_its_values() -> None:
    job = parse_job(values(SWEEP, NEXT))
    assert [strategy.name for strategy in job.strategies] == [*NAMES, "next"]
    assert job.strategies[1] == Sampling(
        name="nucleus-temperature0.4-top_poff", type="sampling", max_new_tokens=4, temperature=0.4, top_p=None
    )


def test_a_dict_a_file_and_the_model_itself_say_the_same(load: Load) -> None:
    given = values(NUCLEUS | {"grid": {"temperature": [0.4, 0.8]}}) | {"input": {"path": "prompts.parquet"}}
    given["output"] = {"path": "out"}
    assert load(JOB) == parse_job(given) == Job.model_validate(given)


def test_the_values_given_are_not_changed() -> None:
    given = values(SWEEP)
    before = repr(given)
    parse_job(given)
    assert repr(given) == before


def test_an_expanded_job_survives_being_written_down() -> None:
    job = parse_job(values(SWEEP))
    assert Job.model_validate(job.model_dump()) == Job.model_validate_json(job.model_dump_json()) == job


@pytest.mark.parametrize("grid", [{}, {"grid": None}])
def test_no_grid_is_the_strategy_itself(grid: dict[str, Any]) -> None:
    assert expand([NUCLEUS | grid, "no mapping"]) == [Expanded(NUCLEUS, 0), Expanded("no mapping", 1)]


def test_every_strategy_of_a_grid_knows_the_values_it_is_made_of() -> None:
    picks = [expanded.picks for expanded in expand([NEXT, SWEEP])]
    assert picks == [{}, *({"temperature": t, "top_p": p} for t in range(3) for p in range(2))]


@pytest.mark.parametrize(
    ("key", "given", "names"),
    [
        ("top_k", [5, None], ["top_k5", "top_koff"]),
        ("ignore_eos", [True, False], ["ignore_eostrue", "ignore_eosfalse"]),
        ("temperature", [1e-05, 1e30, 2], ["temperature1e-05", "temperature1e30", "temperature2"]),
        ("presence_penalty", [-0.5], ["presence_penalty-0.5"]),
        ("dola_layers", ["low", [0, 1]], ["dola_layerslow", "dola_layers1"]),
        ("stop_strings", [[], ["."], ["a b"]], ["stop_strings0", "stop_strings1", "stop_strings2"]),
        ("negative_prompt", ["two words", "one"], ["negative_prompt0", "negative_promptone"]),
    ],
)
def test_a_name_shows_plain_values_and_counts_the_others(key: str, given: list[Any], names: list[str]) -> None:
    expanded = expand([{"name": "s", "grid": {key: given}}])
    assert [each.values for each in expanded] == [
        {"name": f"s-{name}", key: value} for name, value in zip(names, given, strict=True)
    ]


def test_an_override_changes_a_grid_or_takes_it_away(load: Load) -> None:
    hot = load(JOB, "strategies.nucleus.grid.temperature=[1.5]", "strategies.0.grid.top_k=[3, 4]").strategies
    assert [strategy.name for strategy in hot] == ["nucleus-temperature1.5-top_k3", "nucleus-temperature1.5-top_k4"]
    assert load(JOB, "strategies.nucleus.grid=null").strategies == (Sampling(**NUCLEUS),)


def test_the_names_stand_in_plan_manifest_and_table(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["The quiet fox", "Every bee"])
    finished = run_echo(make_job(source, tmp_path / "out", strategies=[SWEEP, NEXT]))
    plan = json.loads((tmp_path / "out" / "_plan.json").read_text())
    assert [strategy["name"] for strategy in plan["job"]["strategies"]] == [*NAMES, "next"]
    assert [strategy.name for strategy in Job.model_validate(plan["job"]).strategies] == [*NAMES, "next"]
    assert list(finished.manifest["strategies"]) == [*NAMES, "next"]
    assert read_output(tmp_path / "out")["strategy"].to_pylist() == [*NAMES, "next"] * 2


# What is wrong with a grid itself


@pytest.mark.parametrize(
    ("strategy", "what", "way_out"),
    [
        (
            {"grid": {}},
            "`grid` must give keys their lists of values, but is {}",
            "Write it as {temperature: [0.5, 1.0]}.",
        ),
        (
            {"grid": [1]},
            "`grid` must give keys their lists of values, but is [1]",
            "Write it as {temperature: [0.5, 1.0]}.",
        ),
        (
            {"grid": {"top_p": 0.5}},
            "`grid.top_p` must be a non-empty list of values, but is 0.5",
            "Write them as [1, 2].",
        ),
        (
            {"grid": {"top_p": []}},
            "`grid.top_p` must be a non-empty list of values, but is []",
            "Write them as [1, 2].",
        ),
        ({"grid": {"name": ["a"]}}, "`grid` cannot vary `name`: it is made of the values", "Leave it out there."),
        (
            {"grid": {"type": ["greedy"]}},
            "`grid` cannot vary `type`: each type has keys of its own, so write a strategy for each",
            "Leave it out there.",
        ),
        ({"grid": {"grid": [1]}}, "`grid` cannot vary `grid`: it holds keys of its strategy", "Leave it out there."),
        (
            {"grid": {"max_new_tokens": [5]}},
            "`max_new_tokens` is in the strategy and in its `grid`",
            "Keep one of them.",
        ),
        (
            {"grid": {"top_p": [0.5, 0.9, 0.5]}},
            "`grid.top_p` makes two names with `0.5`, but names must be unique",
            "Take one of the two values out.",
        ),
        (
            {"grid": {key: list(range(1, 12)) for key in ("top_k", "temperature", "no_repeat_ngram_size")}},
            "a `grid` makes at most 1,000 strategies, but this one 1,331",
            "Give it fewer values.",
        ),
        (
            {"name": "n" * 50, "grid": {"temperature": [1, 0.25]}},
            f"the name `{'n' * 50}-temperature0.25`, which this `grid` makes, has 66 characters, and may have 64",
            "Shorten `name`.",
        ),
    ],
)
def test_a_grid_that_makes_no_strategies_is_refused(strategy: dict[str, Any], what: str, way_out: str) -> None:
    message = refusal(parse_job, values(NEXT, NUCLEUS | strategy))
    name = strategy.get("name", "nucleus")
    assert message == f"error: {what}\n --> strategies[1] ({name})\n{way_out}\n\n1 error. Nothing was started."


def test_a_name_that_a_grid_makes_must_not_be_anothers(load: Load) -> None:
    message = refusal(load, f"{JOB}  - {{name: nucleus-temperature0.8, type: next_token}}\n")
    assert message.splitlines()[:2] == [
        "error: strategy names must be unique, but an earlier one is `nucleus-temperature0.8` too",
        " --> job.yaml:10:12, strategies[1] (nucleus-temperature0.8)",
    ]


# What is wrong with a strategy that it makes


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "      top_p: [0.5, 1.3]",
            "error: `grid.top_p[1]` must be a number in (0, 1], but is 1.3\n"
            " --> job.yaml:10:20, strategies[0] (nucleus)\n"
            "10 |       top_p: [0.5, 1.3]\n"
            "   |                    ^^^\n"
            "Leave it out to keep every token.\n",
        ),
        (
            "      stop_strings: [[a], [b, 3]]",
            "error: `grid.stop_strings[1][1]` must be a non-empty string, but is 3\n"
            " --> job.yaml:10:31, strategies[0] (nucleus)\n"
            "10 |       stop_strings: [[a], [b, 3]]\n"
            "   |                               ^\n"
            "Write it in quotes: '3'.\n",
        ),
        (
            "      num_beams: [2]",
            "error: `num_beams` does not apply to `type: sampling`",
        ),
        (
            "      topp: [0.5]",
            "error: unknown key `grid.topp`\n"
            " --> job.yaml:10:7, strategies[0] (nucleus)\n"
            "10 |       topp: [0.5]\n"
            "   |       ^^^^\n"
            "Did you mean `top_p`?\n",
        ),
        (
            "      min_new_tokens: [2, 5]",
            "error: `min_new_tokens` (5) must not be above the limit of 4 tokens\n"
            " --> job.yaml:10:27, strategies[0] (nucleus-temperature0.4-min_new_tokens5)\n"
            "10 |       min_new_tokens: [2, 5]\n"
            "   |                           ^\n",
        ),
        (
            "    tempo: 1",
            "error: unknown key `tempo`\n"
            " --> job.yaml:10:5, strategies[0] (nucleus)\n"
            "10 |     tempo: 1\n"
            "   |     ^^^^^\n",
        ),
        (
            "    max_length: 5",
            "error: there are two limits, `max_new_tokens` and `max_length`\n"
            " --> job.yaml:10:17, strategies[0] (nucleus-temperature0.4)\n",
        ),
    ],
)
def test_an_error_is_told_once_where_the_file_has_it(load: Load, line: str, told: str) -> None:
    message = refusal(load, f"{JOB}{line}\n")
    assert message.startswith(told)
    assert message.endswith("\n1 error. Nothing was started.")


def test_a_misspelt_key_of_a_grid_is_not_said_to_be_missing_too(load: Load) -> None:
    text = JOB + "  - {name: b, type: beam_search, max_new_tokens: 5, grid: {num_beans: [2, 3]}}\n"
    assert refusal(load, text).splitlines()[0] == "error: unknown key `grid.num_beans`"
    assert refusal(load, text).endswith("Did you mean `num_beams`?\n\n1 error. Nothing was started.")


def test_a_bad_value_of_an_override_is_shown_as_that(load: Load) -> None:
    message = refusal(load, JOB, "strategies.nucleus.grid.temperature=[1, 0]")
    assert message.splitlines()[:2] == [
        "error: `grid.temperature[1]` must be a number above 0, but is 0",
        " --> --set strategies.nucleus.grid.temperature=[1, 0], strategies[0] (nucleus)",
    ]


def test_strategies_after_a_grid_keep_their_place_in_the_file(load: Load) -> None:
    message = refusal(load, f"{JOB}  - {{name: next, type: next_token, min_new_tokens: 0}}\n")
    assert " --> job.yaml:10:52, strategies[1] (next)\n" in message


def test_a_model_that_a_grid_does_not_fit_names_the_strategy(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["x"])
    sweep = NUCLEUS | {"grid": {"forced_bos_token_id": [1, 99999]}}
    with pytest.raises(ConfigError, match=r"but is 99999 \(strategy `nucleus-forced_bos_token_id99999`\)"):
        run_echo(make_job(source, tmp_path / "out", strategies=[sweep]))


# JSON Schema

SCHEMA = Draft7Validator(json_schema())


def test_a_grid_keeps_to_the_schema_and_may_hold_what_is_required() -> None:
    beams = {"name": "b", "type": "beam_search", "max_new_tokens": 5, "grid": {"num_beams": [2, 3]}}
    assert list(SCHEMA.iter_errors(values(SWEEP, beams, NUCLEUS | {"grid": None}))) == []


@pytest.mark.parametrize(
    ("grid", "where", "what"),
    [
        ({"temperature": [1, 0]}, "/temperature/1", "0 is less than or equal to the minimum of 0"),
        ({"temperature": 1}, "/temperature", "1 is not of type 'array'"),
        ({"temperature": []}, "/temperature", "[] should be non-empty"),
        ({"num_beams": [2]}, "", "Additional properties are not allowed ('num_beams' was unexpected)"),
        ({"type": ["greedy"]}, "", "Additional properties are not allowed ('type' was unexpected)"),
        ({}, "", "{} should be non-empty"),
    ],
)
def test_an_editor_names_what_is_wrong_with_a_grid(grid: Any, where: str, what: str) -> None:
    error = best_match(SCHEMA.iter_errors(values(NUCLEUS | {"grid": grid})))
    assert error is not None
    assert ("/".join(map(str, error.absolute_path)), error.message) == (f"strategies/0/grid{where}", what)
