"""A job file becomes a `Job`, or one error that tells everything that is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match
from ruamel.yaml import YAML

from pipeline.config import InputConfig, Job, ModelConfig, OutputConfig, RunConfig
from pipeline.errors import ConfigError
from pipeline.jobfile import json_schema, load_job, parse_job
from pipeline.jobfile_examples import EXAMPLES
from pipeline.jobfile_schema import strategy_types
from pipeline.reasons import DOES, SO
from pipeline.strategies import BeamSearch, ContrastiveSearch, Dola, Greedy, NextToken, Sampling, Score

ROOT = Path(__file__).parent.parent
JOB = """\
model: demo
input:
  path: prompts.parquet
output:
  path: out
strategies:
  - name: greedy
    type: greedy
    max_new_tokens: 20
  - name: nucleus
    type: sampling
    max_new_tokens: 40
"""
VALUES: dict[str, Any] = {
    "model": "demo",
    "input": {"path": "prompts.parquet"},
    "output": {"path": "out"},
    "strategies": [
        {"name": "greedy", "type": "greedy", "max_new_tokens": 20},
        {"name": "nucleus", "type": "sampling", "max_new_tokens": 40},
    ],
}
PYDANTIC = ("pydantic", "Input should", "tagged-union", "tuple[", "literal[", "constrained-", "function-")

Load = Callable[..., Job]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Writes a text to `job.yaml` in the working directory and loads that."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(text: str = JOB, *overrides: str) -> Job:
        Path("job.yaml").write_text(text, encoding="utf-8")
        return load_job("job.yaml", overrides)

    return write_and_load


def refusal(load: Callable[..., Job], *arguments: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(*arguments)
    message = str(error.value)
    assert not [word for word in PYDANTIC if word in message]
    return message


def one_refusal(load: Callable[..., Job], *arguments: Any) -> tuple[str, str]:
    """What is wrong and the way out, where there is one, of the only error: its first and its last line."""
    problem, end = refusal(load, *arguments).rsplit("\n\n", 1)
    assert end == "1 error. Nothing was started.", problem
    first, *_, last = (
        [*problem.splitlines(), ""] if problem.endswith("^") or "\n" not in problem else problem.splitlines()
    )
    return first.removeprefix("error: "), last


# Reading


def test_a_whole_job_file_becomes_a_job(load: Load) -> None:
    text = """\
# yaml-language-server: $schema=job.schema.json
model:
  name: openai-community/gpt2
  revision: null
  dtype: bfloat16
input:
  path: [data/a.parquet, data/b.parquet]
  id_column: id
  prompt_template: "Q: {question}\\nA:"
  keep_columns: [topic]
  on_long_prompt: truncate_left
output:
  path: out/
  top_k: 5
strategies:
  - {name: greedy, type: greedy, max_new_tokens: 20, repetition_penalty: 1.5}
  - {name: nucleus, type: sampling, max_length: 40, temperature: 0.8, top_p: 0.94, num_return_sequences: 3}
  - {name: beam5, type: beam_search, max_new_tokens: 30, num_beams: 5, bad_words_ids: [[1, 2], [3]]}
  - {name: candidates, type: next_token}
seed: 70
run: {replicas: 4, max_error_rate: 1e-3}
"""
    assert load(text) == Job(
        model=ModelConfig(name="openai-community/gpt2", dtype="bfloat16"),
        input=InputConfig(
            path=("data/a.parquet", "data/b.parquet"),
            id_column="id",
            prompt_template="Q: {question}\nA:",
            keep_columns=("topic",),
            on_long_prompt="truncate_left",
        ),
        output=OutputConfig(path="out/", top_k=5),
        strategies=(
            Greedy(name="greedy", type="greedy", max_new_tokens=20, repetition_penalty=1.5),
            Sampling(
                name="nucleus", type="sampling", max_length=40, temperature=0.8, top_p=0.94, num_return_sequences=3
            ),
            BeamSearch(name="beam5", type="beam_search", max_new_tokens=30, num_beams=5, bad_words_ids=((1, 2), (3,))),
            NextToken(name="candidates", type="next_token"),
        ),
        seed=70,
        run=RunConfig(replicas=4, max_error_rate=0.001),
    )


def test_a_dict_and_a_file_say_the_same(load: Load) -> None:
    assert load(JOB) == parse_job(VALUES)


def test_a_dict_may_hold_tuples_and_is_not_changed() -> None:
    values = {**VALUES, "strategies": tuple(VALUES["strategies"]), "input": {"path": ("a", "b")}}
    before = repr(values)
    assert parse_job(values).input.path == ("a", "b")
    assert repr(values) == before


@pytest.mark.parametrize(
    ("yaml", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-01-31", "2026-01-31"),
        ("'1e3'", "1e3"),
        ("12:30", "12:30"),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_words_are_read_as_yaml_1_2_reads_them(load: Load, yaml: str, value: str | None) -> None:
    assert load(JOB.replace("model: demo", f"model: {{name: demo, revision: {yaml}}}")).model.revision == value


@pytest.mark.parametrize(("yaml", "value"), [("1e-3", 0.001), ("1E-3", 0.001), ("1", 1.0), (".5", 0.5), ("0x1", 1.0)])
def test_numbers_are_read_as_yaml_1_2_reads_them(load: Load, yaml: str, value: float) -> None:
    assert load(f"{JOB}run: {{max_error_rate: {yaml}}}").run.max_error_rate == value


def test_paths_stay_as_written(load: Load) -> None:
    job = load(JOB.replace("demo", "./models/demo").replace("prompts.parquet", "../in/*.parquet"))
    assert (job.model.name, job.input.path, job.output.path) == ("./models/demo", "../in/*.parquet", "out")


def test_anchors_and_merges_work_and_point_to_where_the_value_is(load: Load) -> None:
    merged = (
        f"{JOB}  - &hot {{name: hot, type: sampling, max_new_tokens: 5, temperature: 2}}\n  - {{<<: *hot, name: b}}\n"
    )
    assert load(merged).strategies[3] == Sampling(name="b", type="sampling", max_new_tokens=5, temperature=2)
    assert "job.yaml:13:70, strategies[3] (b)\n" in refusal(load, merged.replace("2}", "0}"))


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + JOB.replace("\n", "\r\n").encode())
    assert load_job(path) == parse_job(VALUES)


def test_reading_a_job_imports_nothing_heavy() -> None:
    code = "import sys, pipeline.jobfile\nprint(sorted({'torch', 'ray', 'pyarrow'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Whole messages


def test_a_misspelt_key_is_shown_with_the_one_that_was_meant(load: Load) -> None:
    assert refusal(load, f"{JOB}    temprature: 0.8\n") == (
        "error: unknown key `temprature`\n"
        " --> job.yaml:13:5, strategies[1] (nucleus)\n"
        "13 |     temprature: 0.8\n"
        "   |     ^^^^^^^^^^\n"
        "Did you mean `temperature`?\n"
        "\n"
        "1 error. Nothing was started."
    )


def test_a_value_out_of_range_is_shown_with_its_rule(load: Load) -> None:
    assert refusal(load, f"{JOB}    top_p: 1.3  # all\n") == (
        "error: `top_p` must be a number in (0, 1], but is 1.3\n"
        " --> job.yaml:13:12, strategies[1] (nucleus)\n"
        "13 |     top_p: 1.3  # all\n"
        "   |            ^^^\n"
        "Leave it out to keep every token.\n"
        "\n"
        "1 error. Nothing was started."
    )


def test_a_value_from_an_override_is_shown_as_that(load: Load) -> None:
    assert refusal(load, f"{JOB}    top_p: 0.5\n", "strategies.1.top_p=1.3") == (
        "error: `top_p` must be a number in (0, 1], but is 1.3\n"
        " --> --set strategies.1.top_p=1.3, strategies[1] (nucleus)\n"
        "Leave it out to keep every token.\n"
        "\n"
        "1 error. Nothing was started."
    )


def test_a_key_of_another_type_of_strategy_is_said_to_be_that(load: Load) -> None:
    assert refusal(load, JOB.replace("type: greedy", "type: greedy\n    temperature: 0.8")) == (
        "error: `temperature` does not apply to `type: greedy`: "
        "greedy always takes the most probable token, so nothing is drawn\n"
        " --> job.yaml:9:5, strategies[0] (greedy)\n"
        "9 |     temperature: 0.8\n"
        "  |     ^^^^^^^^^^^\n"
        "Use `type: sampling`, or leave it out.\n"
        "\n"
        "1 error. Nothing was started."
    )


def test_an_unknown_type_lists_the_types_nearest_first(load: Load) -> None:
    assert refusal(load, JOB.replace("type: sampling", "type: sample")) == (
        "error: `type` must be `sampling`, `score`, `beam_search`, `dola`, `greedy`, `contrastive_search` or "
        "`next_token`, but is 'sample'\n"
        " --> job.yaml:11:11, strategies[1] (nucleus)\n"
        "11 |     type: sample\n"
        "   |           ^^^^^^\n"
        "Did you mean `sampling`?\n"
        "\n"
        "1 error. Nothing was started."
    )


def test_a_missing_key_is_shown_at_what_misses_it(load: Load) -> None:
    assert refusal(load, f"{JOB}  - {{name: beams, type: beam_search, max_new_tokens: 5}}  # wide\n") == (
        "error: `num_beams` is missing\n"
        " --> job.yaml:13:5, strategies[2] (beams)\n"
        "13 |   - {name: beams, type: beam_search, max_new_tokens: 5}  # wide\n"
        "   |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "It must be an integer from 2 to 64.\n"
        "\n"
        "1 error. Nothing was started."
    )


def test_all_errors_are_told_at_once_in_the_order_of_the_file(load: Load) -> None:
    text = """\
modle: demo
input: {path: []}
output:
  path: out
  top_k: true
strategies:
  - name: both
    type: greedy
    max_new_tokens: 20
    max_length: 40
  - name: both
    type: greedy
run: {replicas: "2"}
"""
    assert refusal(load, text, "seed=-1") == (
        "error: unknown key `modle`\n"
        " --> job.yaml:1:1\n"
        "1 | modle: demo\n"
        "  | ^^^^^\n"
        "Did you mean `model`?\n"
        "\n"
        "error: `input.path` must be a non-empty string or a non-empty list, each item a non-empty string, but is []\n"
        " --> job.yaml:2:15\n"
        "2 | input: {path: []}\n"
        "  |               ^^\n"
        "File, glob, folder or list of them; or s3://bucket/path, gs://, az://, hf://user/set.\n"
        "\n"
        "error: `output.top_k` must be an integer from 0 to 1000, but is True\n"
        " --> job.yaml:5:10\n"
        "5 |   top_k: true\n"
        "  |          ^^^^\n"
        "Leave it out for the default, `10`.\n"
        "\n"
        "error: there are two limits, `max_new_tokens` and `max_length`\n"
        " --> job.yaml:10:17, strategies[0] (both)\n"
        "10 |     max_length: 40\n"
        "   |                 ^^\n"
        "Set exactly one of them.\n"
        "\n"
        "error: there is no limit of length\n"
        " --> job.yaml:11:5, strategies[1] (both)\n"
        "11 |   - name: both\n"
        "   |     ^^^^^^^^^^\n"
        "Set `max_new_tokens`, or `max_length`, which counts the prompt.\n"
        "\n"
        "error: `run.replicas` must be `auto`, an integer of at least 1 or a mapping with `max` (optional: `min`), "
        "but is '2'\n"
        " --> job.yaml:13:17\n"
        '13 | run: {replicas: "2"}\n'
        "   |                 ^^^\n"
        "Write it without quotes.\n"
        "\n"
        "error: `seed` must be an integer from 0 to 9223372036854775807, but is -1\n"
        " --> --set seed=-1\n"
        "Leave it out for the default, `0`.\n"
        "\n"
        "7 errors. Nothing was started."
    )


def test_errors_of_a_dict_have_no_file_but_name_the_strategy() -> None:
    values = {**VALUES, "seed": "1", "strategies": [{"name": "hot", "type": "sampling", "temperature": 0}]}
    assert refusal(parse_job, values) == (
        "error: `temperature` must be a number above 0, but is 0\n"
        " --> strategies[0] (hot)\n"
        "For the most probable token use `type: greedy`.\n"
        "\n"
        "error: `seed` must be an integer from 0 to 9223372036854775807, but is '1'\n"
        "Write it without quotes.\n"
        "\n"
        "2 errors. Nothing was started."
    )


# One line in a file, one error


@pytest.mark.parametrize(
    ("kind", "line", "what", "way_out"),
    [
        (
            "greedy",
            "temprature: 1",
            "unknown key `temprature`",
            "Did you mean `temperature`? It needs `type: sampling`.",
        ),
        (
            "sampling",
            "eos_token_id: 50256",
            "unknown key `eos_token_id`",
            "Leave it out: the model's own ends a completion. Add others with `stop_token_ids`, "
            "or set `ignore_eos: true`.",
        ),
        (
            "greedy",
            "pad_token_id: 50256",
            "unknown key `pad_token_id`",
            "Leave it out: padding is a mask here, and no token stands for it.",
        ),
        ("greedy", "stop: [a]", "unknown key `stop`", "Use `stop_strings`."),
        ("sampling", "n: 3", "unknown key `n`", "Use `num_return_sequences`."),
        ("greedy", "replicas: 3", "unknown key `replicas`", "It belongs in `run`."),
        ("greedy", "seed: 3", "unknown key `seed`", "It belongs at the top level."),
        (
            "greedy",
            "1: 2",
            "a key must be a string, but is 1",
            "Write it in quotes.",
        ),
        (
            "sampling",
            "temperature: 0",
            "`temperature` must be a number above 0, but is 0",
            "For the most probable token use `type: greedy`.",
        ),
        (
            "sampling",
            "temperature: 0.0",
            "`temperature` must be a number above 0, but is 0.0",
            "For the most probable token use `type: greedy`.",
        ),
        (
            "sampling",
            'temperature: "0.8"',
            "`temperature` must be a number above 0, but is '0.8'",
            "Write it without quotes.",
        ),
        (
            "sampling",
            "temperature: hot",
            "`temperature` must be a number above 0, but is 'hot'",
            "Leave it out for the default, `1.0`.",
        ),
        (
            "sampling",
            "temperature: .nan",
            "`temperature` must be a number above 0, but is nan",
            "Leave it out for the default, `1.0`.",
        ),
        (
            "sampling",
            "top_k: 0",
            "`top_k` must be an integer of at least 1, but is 0",
            "Leave it out to keep every token.",
        ),
        (
            "sampling",
            "top_k: 1.5",
            "`top_k` must be an integer of at least 1, but is 1.5",
            "Leave it out to keep every token.",
        ),
        (
            "sampling",
            "top_k: true",
            "`top_k` must be an integer of at least 1, but is True",
            "Leave it out to keep every token.",
        ),
        (
            "greedy",
            "repetition_penalty: 0",
            "`repetition_penalty` must be a number in [0.001, 1000], but is 0",
            "Leave it out to turn it off.",
        ),
        (
            "greedy",
            "ignore_eos: yes",
            "`ignore_eos` must be `true` or `false`, but is 'yes'",
            "Leave it out for the default, `false`.",
        ),
        (
            "greedy",
            "stop_strings: END",
            "`stop_strings` must be a list, each item a non-empty string, but is 'END'",
            "Write it as a list: ['END'].",
        ),
        (
            "greedy",
            "stop_strings: [1]",
            "`stop_strings[0]` must be a non-empty string, but is 1",
            "Write it in quotes: '1'.",
        ),
        (
            "greedy",
            "stop_token_ids: 50256",
            "`stop_token_ids` must be a list, each item an integer of at least 0, but is 50256",
            "Write it as a list: [50256].",
        ),
        (
            "greedy",
            "bad_words_ids: [7]",
            "`bad_words_ids[0]` must be a non-empty list, each item an integer of at least 0, but is 7",
            "Write it as a list: [7].",
        ),
        (
            "greedy",
            "min_new_tokens: 21",
            "`min_new_tokens` (21) must not be above the limit of 20 tokens",
            "Lower it, or raise the limit.",
        ),
    ],
)
def test_a_wrong_key_of_a_strategy_is_told_with_a_way_out(
    load: Load, kind: str, line: str, what: str, way_out: str
) -> None:
    head = "model: demo\ninput: {path: a}\noutput: {path: o}\nstrategies:\n- name: s\n"
    text = f"{head}  type: {kind}\n  max_new_tokens: 20\n  {line}\n"
    assert one_refusal(load, text) == (what, way_out)


@pytest.mark.parametrize(
    ("old", "new", "what", "way_out"),
    [
        (
            "model: demo",
            "model: 3",
            "`model` must be a non-empty string or a mapping with `name` (optional: `revision`, `dtype`), but is 3",
            "Which checkpoint to run, and in which number format. "
            "Hub id, local folder, or `demo` (the tiny model in the package).",
        ),
        (
            "model: demo",
            "model: {name: m, dtype: bf16}",
            "`model.dtype` must be `bfloat16` or `float32`, but is 'bf16'",
            "Did you mean `bfloat16`?",
        ),
        (
            "model: demo",
            "model: {name: m, revision: 7}",
            "`model.revision` must be a string, but is 7",
            "Write it in quotes: '7'.",
        ),
        (
            "  path: prompts.parquet",
            "",
            "`input` must be a mapping with `path` (optional: `id_column`, `prompt_column`, `prompt_template`, "
            "`token_ids_column`, `keep_columns`, `on_long_prompt`, `on_empty_prompt`), but is None",
            "Where the prompts are and how to read them.",
        ),
        (
            "prompts.parquet",
            "[a, 1]",
            "`input.path[1]` must be a non-empty string, but is 1",
            "Write it in quotes: '1'.",
        ),
        (
            "output:\n  path: out",
            "output: {top_k: 3}",
            "`output.path` is missing",
            "It must be a non-empty string.",
        ),
        ("output:", "output:\n  topk: 3", "unknown key `output.topk`", "Did you mean `top_k`?"),
        (
            "output:",
            "run: {batch_size: 3}\noutput:",
            "unknown key `run.batch_size`",
            "Leave it out: the batch is made to fit the memory.",
        ),
        ("output:", "top_k: 3\noutput:", "unknown key `top_k`", "It belongs in `output` or in a strategy."),
        (
            "output:",
            "colour: red\noutput:",
            "unknown key `colour`",
            "Known here: `model`, `input`, `output`, `strategies`, `strategy_columns`, `seed`, `run`.",
        ),
        (
            "output:",
            "run: {shard_rows: 0}\noutput:",
            "`run.shard_rows` must be `auto` or an integer of at least 1, but is 0",
            "Leave it out for the default, `auto`.",
        ),
        (
            "output:",
            "run: {replicas: {min: 3, max: 2}}\noutput:",
            "`run.replicas.max` must be at least `min`, 3, but is 2",
            "Raise `max` or lower `min`.",
        ),
        (
            "output:",
            "run: {replicas: {max: 3, most: 2}}\noutput:",
            "unknown key `run.replicas.most`",
            "Known here: `min`, `max`.",
        ),
        (
            "output:",
            "run:\noutput:",
            "`run` must be a mapping (optional: `replicas`, `gpus_per_replica`, `accelerator_type`, `label_selector`, "
            "`autoscaling`, `shared_output`, `shard_rows`, `batch_rows`, `cache_gib`, `max_error_rate`, `grace_s`), "
            "but is None",
            "Leave it out for the default.",
        ),
        (
            "name: nucleus",
            "name: top p",
            "`name` must be at most 64 letters, digits, `.`, `_` and `-`, the first a letter or a digit, "
            "but is 'top p'",
            "Name of the strategy in the output table.",
        ),
        (
            "name: nucleus\n    type: sampling",
            "name: nucleus",
            "`type` is missing",
            "It must be `greedy`, `sampling`, `beam_search`, `contrastive_search`, `dola`, `next_token` or `score`.",
        ),
        (
            "type: sampling",
            "type: nucleus",
            "`type` must be `score`, `next_token`, `dola`, `contrastive_search`, `greedy`, `sampling` or "
            "`beam_search`, but is 'nucleus'",
            "Use `type: sampling`, with the filter as a key of it.",
        ),
        (
            "type: sampling",
            "type: [greedy]",
            "`type` must be `greedy`, `sampling`, `beam_search`, `contrastive_search`, `dola`, `next_token` or "
            "`score`, but is ['greedy']",
            "Way of decoding, which decides what other keys there are.",
        ),
        (
            "max_new_tokens: 20",
            "max_new_tokens: 0",
            "`max_new_tokens` must be an integer of at least 1, but is 0",
            "For probabilities and no text use `type: next_token`.",
        ),
        (
            "  - name: greedy\n    type: greedy\n    max_new_tokens: 20",
            "  - greedy",
            "`strategies[0]` must be a mapping with `name`, `type`, but is 'greedy'",
            "",
        ),
        (
            "name: nucleus",
            "name: greedy",
            "strategy names must be unique, but an earlier one is `greedy` too",
            "Rename one of them.",
        ),
    ],
)
def test_a_wrong_key_anywhere_is_told_with_a_way_out(load: Load, old: str, new: str, what: str, way_out: str) -> None:
    assert one_refusal(load, JOB.replace(old, new)) == (what, way_out)


@pytest.mark.parametrize(
    ("line", "what", "way_out"),
    [
        (
            "temperature: 2",
            "`temperature` has no effect without `do_sample: true`: beams take the best candidates otherwise",
            "Set that, or leave it out.",
        ),
        (
            "num_return_sequences: 4",
            "`num_return_sequences` (4) must not be above `num_beams` (3)",
            "Lower it, or raise `num_beams`.",
        ),
        (
            "forced_eos_token_id: 3\n  suppress_tokens: [2, 3]",
            "`forced_eos_token_id` forces token 3, which `suppress_tokens` bans",
            "Take it out of one of them.",
        ),
        (
            "early_stopping: always",
            "`early_stopping` must be `true`, `false` or `never`, but is 'always'",
            "Leave it out for the default, `false`.",
        ),
        (
            "early_stopping: nevr",
            "`early_stopping` must be `true`, `false` or `never`, but is 'nevr'",
            "Did you mean `never`?",
        ),
    ],
)
def test_a_wrong_key_of_beam_search_is_told_with_a_way_out(load: Load, line: str, what: str, way_out: str) -> None:
    text = "model: demo\ninput: {path: a}\noutput: {path: o}\nstrategies:\n- name: s\n  type: beam_search\n"
    assert one_refusal(load, f"{text}  max_new_tokens: 20\n  num_beams: 3\n  {line}\n") == (what, way_out)


REQUIRED: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 20},
    "sampling": {"max_new_tokens": 20},
    "beam_search": {"max_new_tokens": 20, "num_beams": 4},
    "contrastive_search": {"max_new_tokens": 20, "penalty_alpha": 0.6, "top_k": 4},
    "dola": {"max_new_tokens": 20, "dola_layers": "low"},
    "next_token": {},
    "score": {},
}


def with_strategy(kind: str, **values: Any) -> dict[str, Any]:
    return {**VALUES, "strategies": [{"name": "s", "type": kind, **REQUIRED.get(kind, {}), **values}]}


@pytest.mark.parametrize(
    ("kind", "key", "value", "rule", "way_out"),
    [
        ("greedy", "guidance_scale", 0, "a number in (0, 1000]", "Leave it out to turn it off."),
        (
            "greedy",
            "negative_prompt",
            "",
            "a non-empty string",
            "Leave it out to move away from the last token of the prompt alone.",
        ),
        ("greedy", "negative_prompt_ids", 3, "a list, each item an integer of at least 0", "Write it as a list: [3]."),
        (
            "greedy",
            "sequence_bias",
            {"castle": 2.0},
            "a list, each item a mapping with `bias` (optional: `text`, `token_ids`)",
            "Write it as [{text: ' castle', bias: 2.0}, {token_ids: [5, 6], bias: -2.0}].",
        ),
        ("greedy", "encoder_repetition_penalty", -1.0, "a number in [0.001, 1000]", "Leave it out to turn it off."),
        ("greedy", "frequency_penalty", 2.5, "a number in [-2, 2]", "Leave it out to turn it off."),
        ("greedy", "presence_penalty", -3, "a number in [-2, 2]", "Leave it out to turn it off."),
        ("greedy", "allowed_words", "a", "a list, each item a non-empty string", "Write it as a list: ['a']."),
        (
            "greedy",
            "allowed_words_ids",
            {},
            "a list, each item a non-empty list, each item an integer of at least 0",
            "Write it as a list for each word: [[5], [6, 7]].",
        ),
        ("greedy", "forced_bos_token_id", -1, "an integer of at least 0", "Leave it out to turn it off."),
        ("greedy", "forced_eos_token_id", "5", "an integer of at least 0", "Write it without quotes."),
        (
            "greedy",
            "exponential_decay_length_penalty",
            [5],
            "a list of 2, each item a number",
            "Write it as a number of tokens and a factor: [15, 1.1].",
        ),
        ("greedy", "suppress_tokens", 5, "a list, each item an integer of at least 0", "Write it as a list: [5]."),
        (
            "greedy",
            "begin_suppress_tokens",
            {},
            "a list, each item an integer of at least 0",
            "Write it as ids of the model's tokens: [5, 6].",
        ),
        ("sampling", "top_h", 0, "a number in (0, 1]", "Leave it out to keep every token."),
        ("sampling", "typical_p", 1.5, "a number in (0, 1]", "Leave it out to keep every token."),
        ("sampling", "epsilon_cutoff", 1, "a number in (0, 1)", "Leave it out to keep every token."),
        ("sampling", "eta_cutoff", 0, "a number in (0, 1)", "Leave it out to keep every token."),
        ("beam_search", "do_sample", "yes", "`true` or `false`", "Leave it out for the default, `false`."),
        (
            "beam_search",
            "num_beam_groups",
            1,
            "an integer of at least 2",
            "Leave it out: a single group is plain beam search.",
        ),
        ("beam_search", "diversity_penalty", 0, "a number in (0, 10000]", "Leave it out to turn it off."),
        ("beam_search", "length_penalty", 11, "a number in [-10, 10]", "Leave it out for the default, `1.0`."),
        (
            "beam_search",
            "force_words",
            {},
            "a list, each item a non-empty string or a non-empty list, each item a non-empty string",
            "Write it as words and lists of alternatives: [castle, [road, street]].",
        ),
        (
            "contrastive_search",
            "penalty_alpha",
            0,
            "a number in (0, 1]",
            "For the most probable token use `type: greedy`.",
        ),
        (
            "contrastive_search",
            "penalty_alpha",
            1.5,
            "a number in (0, 1]",
            "Weight of the degeneration penalty against the probability.",
        ),
        (
            "contrastive_search",
            "top_k",
            1,
            "an integer from 2 to 256",
            "For the most probable token use `type: greedy`.",
        ),
        (
            "contrastive_search",
            "top_k",
            500,
            "an integer from 2 to 256",
            "Candidates of each step, each of which is run through the model.",
        ),
        *(
            (
                "dola",
                "dola_layers",
                value,
                "`low`, `high` or a non-empty list, each item an integer of at least 0",
                "Write it as low, high, or a list of layers: [0, 2].",
            )
            for value in (3, [], "middle")
        ),
        (
            "dola",
            "dola_layers",
            "hig",
            "`low`, `high` or a non-empty list, each item an integer of at least 0",
            "Did you mean `high`?",
        ),
        ("score", "target_column", "", "a non-empty string", "Leave it out to score the prompt."),
        ("score", "add_bos", 1, "`true` or `false`", "Leave it out to score the whole prompt."),
    ],
)
def test_a_bad_value_is_told_with_its_key_its_rule_and_a_way_out(
    kind: str, key: str, value: Any, rule: str, way_out: str
) -> None:
    what = f"`{key}` must be {rule}, but is {value!r}"
    assert one_refusal(parse_job, with_strategy(kind, **{key: value})) == (what, way_out)


@pytest.mark.parametrize(
    ("kind", "values", "what", "way_out"),
    [
        (
            "greedy",
            {"suppress_tokens": [1, -1]},
            "`suppress_tokens[1]` must be an integer of at least 0, but is -1",
            "Write it as ids of the model's tokens: [5, 6].",
        ),
        (
            "greedy",
            {"sequence_bias": [{"text": "a"}]},
            "`sequence_bias[0].bias` is missing",
            "It must be a number in [-10000, 10000].",
        ),
        (
            "greedy",
            {"sequence_bias": [{"txt": "a", "bias": 1}]},
            "unknown key `sequence_bias[0].txt`",
            "Did you mean `text`?",
        ),
        (
            "greedy",
            {"sequence_bias": [[[5, 6], -1.0]]},
            "`sequence_bias[0]` must be a mapping with `bias` (optional: `text`, `token_ids`), but is [[5, 6], -1.0]",
            "Write it as [{text: ' castle', bias: 2.0}, {token_ids: [5, 6], bias: -2.0}].",
        ),
        (
            "beam_search",
            {"force_words": ["a", ["b", 3]]},
            "`force_words[1][1]` must be a non-empty string, but is 3",
            "Write it in quotes: '3'.",
        ),
        (
            "beam_search",
            {"force_words_ids": [[1], [[2], 3]]},
            "`force_words_ids[1]` must be a non-empty list, each item an integer of at least 0, or a non-empty list, "
            "each item a non-empty list, each item an integer of at least 0, but is [[2], 3]",
            "Write it as a list for each word, or one of alternatives: [[5, 6], [[7], [8, 9]]].",
        ),
        (
            "beam_search",
            {"force_words_ids": [5]},
            "`force_words_ids[0]` must be a non-empty list, each item an integer of at least 0, or a non-empty list, "
            "each item a non-empty list, each item an integer of at least 0, but is 5",
            "Write it as a list: [5].",
        ),
    ],
)
def test_a_bad_item_is_told_with_its_place_and_a_way_out(
    kind: str, values: dict[str, Any], what: str, way_out: str
) -> None:
    assert one_refusal(parse_job, with_strategy(kind, **values)) == (what, way_out)


def test_there_is_a_reason_for_every_key_and_every_type() -> None:
    keys = {key for rules in strategy_types().values() for key in rules["properties"]}
    assert keys - {"type", "grid"} == SO.keys()
    assert [*strategy_types()] == [*DOES]


PAIRS = [(key, kind) for key in SO if key != "name" for kind in DOES if key not in strategy_types()[kind]["properties"]]


@pytest.mark.parametrize(("key", "kind"), PAIRS)
def test_a_key_that_its_type_does_not_have_is_told_with_both_and_the_reason(key: str, kind: str) -> None:
    what, way_out = one_refusal(parse_job, with_strategy(kind, **{key: 1}))
    assert what == f"`{key}` does not apply to `type: {kind}`: {DOES[kind]}, so {SO[key]}"
    assert way_out.startswith(("Use ", "Leave it out"))


@pytest.mark.parametrize(
    ("key", "value", "kind", "way_out"),
    [
        ("do_sample", True, "greedy", "Use `type: sampling`, or leave it out."),
        ("do_sample", False, "greedy", "Leave it out: `type: greedy` says it."),
        ("do_sample", True, "sampling", "Leave it out: `type: sampling` says it."),
        ("do_sample", False, "sampling", "Use `type: greedy`."),
        ("do_sample", True, "dola", "Use `type: sampling`, or leave it out."),
        ("num_beams", 3, "greedy", "Use `type: beam_search`, or leave it out."),
        ("num_beams", 3, "sampling", "Use `type: beam_search` with `do_sample: true`, or leave it out."),
        ("penalty_alpha", 0.6, "sampling", "Use `type: contrastive_search`, or leave it out."),
        ("top_k", 5, "greedy", "Use `type: sampling`, or leave it out."),
        ("dola_layers", "low", "greedy", "Use `type: dola`, or leave it out."),
        ("target_column", "a", "greedy", "Use `type: score`, or leave it out."),
        ("force_words", ["a"], "sampling", "Use `type: beam_search`, or leave it out."),
        ("num_return_sequences", 2, "dola", "Use `type: sampling` or `type: beam_search`, or leave it out."),
        ("max_new_tokens", 2, "score", "Use another type, or leave it out."),
    ],
)
def test_a_key_of_another_type_leads_to_that_type(key: str, value: Any, kind: str, way_out: str) -> None:
    assert one_refusal(parse_job, with_strategy(kind, **{key: value}))[1] == way_out


@pytest.mark.parametrize(
    ("key", "way_out"),
    [
        ("allowed_token_ids", "Use `allowed_words_ids`, with a list for each token."),
        ("assistant_model", "Leave it out: assistance changes only how fast a text comes, and there is none."),
        ("best_of", "Use `num_return_sequences`: all are kept, with their probabilities."),
        ("constraints", "Use `force_words` of `type: beam_search`."),
        ("encoder_no_repeat_ngram_size", "Use `no_repeat_ngram_size`, which minds the prompt too."),
        ("logit_bias", "Use `sequence_bias`, as [{token_ids: [5], bias: -1.0}]."),
        ("logits_processor", "Use the penalties and bans of a strategy, but a job file holds no functions."),
        ("logprobs", "Leave it out: `output.top_k` says how many alternatives are recorded."),
        ("max_time", "Use `max_new_tokens`: a job gives the same tokens on a slow machine."),
        ("min_tokens", "Use `min_new_tokens`."),
        ("prefix_allowed_tokens_fn", "Use `allowed_words`, but a job file holds no functions."),
        ("prompt_lookup_num_tokens", "Leave it out: assistance changes only how fast a text comes, and there is none."),
        ("remove_invalid_values", "Leave it out: a row whose scores are not finite becomes an error row."),
        ("renormalize_logits", "Leave it out: what is drawn from always sums to 1."),
        ("stopping_criteria", "Use `stop_strings` or `stop_token_ids`, but a job file holds no functions."),
        ("token_healing", "Leave it out: a prompt is fed as it is tokenised."),
        ("top_a", "Use `min_p`, which measures a token against the best one too."),
        ("typical", "Use `typical_p`."),
        ("watermarking_config", "Leave it out: completions are not watermarked."),
    ],
)
def test_a_name_that_others_use_is_told_with_what_there_is_for_it(key: str, way_out: str) -> None:
    assert one_refusal(parse_job, with_strategy("sampling", **{key: 1})) == (f"unknown key `{key}`", way_out)


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("beam_sample", "Use `type: beam_search` with `do_sample: true`."),
        ("contrastive", "Did you mean `contrastive_search`?"),
        ("constrained_beam_search", "Use `type: beam_search` with `force_words`."),
        ("diverse_beam_search", "Use `type: beam_search` with `num_beam_groups` and `diversity_penalty`."),
        ("group_beam_search", "Use `type: beam_search` with `num_beam_groups` and `diversity_penalty`."),
        ("loglikelihood", "Use `type: score`."),
        ("perplexity", "Use `type: score`."),
        ("typical", "Use `type: sampling`, with the filter as a key of it."),
    ],
)
def test_a_type_that_others_have_is_told_with_what_there_is_for_it(kind: str, way_out: str) -> None:
    assert one_refusal(parse_job, with_strategy(kind))[1] == way_out


def test_one_beam_is_greedy() -> None:
    beams = {"name": "b", "type": "beam_search", "max_new_tokens": 5, "num_beams": 1}
    assert one_refusal(parse_job, {**VALUES, "strategies": [beams]}) == (
        "`num_beams` must be an integer from 2 to 64, but is 1",
        "For a single beam use `type: greedy`.",
    )


# What is no job file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: demo\ninput: {path: a, path: b}\nmodel: gpt2\n",
            "error: the key `path` is given twice\n"
            " --> job.yaml:2:18\n"
            "2 | input: {path: a, path: b}\n"
            "  |                  ^^^^\n"
            "Keep one of them; the other is in line 2.\n"
            "\n"
            "error: the key `model` is given twice\n"
            " --> job.yaml:3:1\n"
            "3 | model: gpt2\n"
            "  | ^^^^^\n"
            "Keep one of them; the other is in line 1.\n"
            "\n"
            "2 errors. Nothing was started.",
        ),
        (
            "model: demo\ninput: [a\noutput: b\n",
            "error: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got ':'\n"
            " --> job.yaml:3:7\n"
            "3 | output: b\n"
            "  |       ^\n"
            "Indent with spaces, and put text with special characters in quotes.\n"
            "\n"
            "1 error. Nothing was started.",
        ),
        (
            "\tmodel: demo",
            "error: not valid YAML: while scanning for the next token, "
            "found character '\\t' that cannot start any token\n"
            " --> job.yaml:1:1\n"
            "1 | \tmodel: demo\n"
            "  | ^\n"
            "Indent with spaces, and put text with special characters in quotes.\n"
            "\n"
            "1 error. Nothing was started.",
        ),
        (
            "model: demo\n---\nmodel: demo\n",
            "error: not valid YAML: expected a single document in the stream, but found another document\n"
            " --> job.yaml:2:1\n"
            "2 | ---\n"
            "  | ^\n"
            "Indent with spaces, and put text with special characters in quotes.\n"
            "\n"
            "1 error. Nothing was started.",
        ),
        (
            "model: !!python/object:os.system demo\n",
            "error: not valid YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'\n"
            " --> job.yaml:1:8\n"
            "1 | model: !!python/object:os.system demo\n"
            "  |        ^\n"
            "Indent with spaces, and put text with special characters in quotes.\n"
            "\n"
            "1 error. Nothing was started.",
        ),
        (
            "model: !!int demo\n",
            "error: not valid YAML: cannot read this value: invalid literal for int() with base 10: 'demo'\n"
            " --> job.yaml:1:8\n"
            "1 | model: !!int demo\n"
            "  |        ^\n"
            "Indent with spaces, and put text with special characters in quotes.\n"
            "\n"
            "1 error. Nothing was started.",
        ),
        (
            "model: demo\n# \x1b[31m\n",
            "error: not valid YAML: the character U+001B is not allowed\n"
            " --> job.yaml:2:3\n"
            "2 | # \N{REPLACEMENT CHARACTER}[31m\n"
            "  |   ^\n"
            "Indent with spaces, and put text with special characters in quotes.\n"
            "\n"
            "1 error. Nothing was started.",
        ),
        (
            "model: [demo\n",
            "error: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'\n"
            " --> job.yaml:2:1\n"
            "Indent with spaces, and put text with special characters in quotes.\n"
            "\n"
            "1 error. Nothing was started.",
        ),
        (
            "[" * 1000,
            "error: not valid YAML: maximum recursion depth exceeded\n"
            " --> job.yaml\n"
            "Indent with spaces, and put text with special characters in quotes.\n"
            "\n"
            "1 error. Nothing was started.",
        ),
        (
            "# nothing yet\n",
            "error: job.yaml is empty\nWrite one with `batchgen init DATA`.\n\n1 error. Nothing was started.",
        ),
        (
            "- model: demo\n",
            "error: job.yaml must hold keys, as `model: demo`, but is [{'model': 'demo'}]\n"
            "Write one with `batchgen init DATA`.\n"
            "\n"
            "1 error. Nothing was started.",
        ),
    ],
)
def test_what_is_no_yaml_or_no_mapping_is_refused_with_its_place(load: Load, text: str, message: str) -> None:
    assert refusal(load, text) == message


def test_a_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert one_refusal(load_job, "jobs/job.yaml") == (
        "there is no file jobs/job.yaml",
        "Write one with `batchgen init DATA`.",
    )


def test_a_folder_is_refused_and_the_files_in_it_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.yaml", "a.yml", "notes.txt"):
        (tmp_path / name).touch()
    assert one_refusal(load_job, ".") == (". is a folder, not a job file", "Give one of `a.yml`, `b.yaml`.")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.parquet").write_bytes(b"PAR1\xff\xfe")
    assert one_refusal(load_job, "prompts.parquet") == (
        "prompts.parquet is not UTF-8 text: byte 0xff at 4",
        "Give a job file, which is YAML; the prompts go under `input.path`.",
    )


def test_a_path_through_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").touch()
    assert one_refusal(load_job, "job.yaml/job.yaml")[0] == "cannot read job.yaml/job.yaml: Not a directory"


def test_what_is_no_dict_is_refused() -> None:
    what = (
        "the job file must be a mapping with `model`, `input`, `output`, `strategies` "
        "(optional: `strategy_columns`, `seed`, `run`)"
    )
    assert one_refusal(parse_job, []) == (f"{what}, but is []", "Write one with `batchgen init DATA`.")


# How errors look


def test_carets_stand_under_wide_characters_and_tabs(load: Load) -> None:
    assert refusal(load, JOB.replace("path: out", "{path: 出力, top_k:\t百}")).splitlines()[2:4] == [
        "5 |   {path: 出力, top_k:\t百}",
        "  |                      \t^^",
    ]


def test_of_a_long_line_only_the_part_in_question_is_shown(load: Load) -> None:
    long = JOB.replace("path: out", f"{{path: {'o' * 500}, top_k: -1, prompt_logprobs: {'x' * 500}}}")
    lines = refusal(load, long).splitlines()
    assert lines[1] == " --> job.yaml:5:519"
    assert lines[2] == f"5 | {'o' * 51}, top_k: -1, prompt_logprobs: {'x' * 39}"
    assert lines[3] == f"  | {' ' * 60}^^"


def test_long_values_are_cut(load: Load) -> None:
    what, _ = one_refusal(load, f"{JOB}seed: {'x' * 1000}")
    assert what.endswith(f"but is '{'x' * 47}...{'x' * 48}'")


def test_no_escape_sequence_of_a_file_reaches_the_terminal(load: Load) -> None:
    message = refusal(load, f'{JOB}"\\e]0;owned\\a": 1\nrun: {{"\\u202ex": 1}}\n')
    assert "unknown key `\\x1b]0;owned\\x07`" in message
    assert "unknown key `run.\\u202ex`" in message
    assert all(char.isprintable() or char == "\n" for char in message)


# Overrides


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ([], {}),
        (["model=gpt2"], {"model": "gpt2"}),
        (["model.dtype=bfloat16"], {"model": {"name": "demo", "dtype": "bfloat16"}}),
        (["model.dtype=bfloat16", "model=gpt2"], {"model": "gpt2"}),
        (["model=gpt2", "model.revision=main"], {"model": {"name": "gpt2", "revision": "main"}}),
        (["seed=1", "seed = 2"], {"seed": 2}),
        (["run.replicas=2", "run.max_error_rate=1e-3"], {"run": {"replicas": 2, "max_error_rate": 0.001}}),
        (["run={replicas: 2}"], {"run": {"replicas": 2}}),
        (["output.path=a=b"], {"output": {"path": "a=b"}}),
        (["input.path=[a, b]", "input.path.1=c"], {"input": {"path": ["a", "c"]}}),
        (["input.id_column="], {"input": {"path": "prompts.parquet", "id_column": None}}),
        (['input.path="*.parquet"'], {"input": {"path": "*.parquet"}}),
        (
            ["strategies=[{name: n, type: next_token}]", "strategies.n.name=m"],
            {"strategies": [{"name": "m", "type": "next_token"}]},
        ),
        (
            ["strategies.greedy={name: n, type: next_token}", "strategies.1.stop_strings=['\\n', b]"],
            {
                "strategies": [
                    {"name": "n", "type": "next_token"},
                    {"name": "nucleus", "type": "sampling", "max_new_tokens": 40, "stop_strings": ["\\n", "b"]},
                ]
            },
        ),
        (
            ["strategies.0.max_new_tokens=null", "strategies.greedy.max_length=9", "strategies.nucleus.top_p=0.5"],
            {
                "strategies": [
                    {"name": "greedy", "type": "greedy", "max_length": 9},
                    {"name": "nucleus", "type": "sampling", "max_new_tokens": 40, "top_p": 0.5},
                ]
            },
        ),
    ],
)
def test_an_override_puts_its_value_where_the_key_says(
    load: Load, overrides: list[str], changed: dict[str, Any]
) -> None:
    assert load(JOB, *overrides) == parse_job({**VALUES, **changed})


def test_a_strategy_with_dots_in_its_name_is_found_by_it_the_longest_first(load: Load) -> None:
    text = JOB.replace("name: greedy", "name: v2").replace("name: nucleus", "name: v2.5")
    job = load(text, "strategies.v2.max_new_tokens=1", "strategies.v2.5.max_new_tokens=2")
    assert [strategy.model_dump()["max_new_tokens"] for strategy in job.strategies] == [1, 2]


def test_an_index_goes_before_a_name_that_is_a_number(load: Load) -> None:
    text = JOB.replace("name: greedy", "name: '1'").replace("name: nucleus", "name: '7'")
    job = load(text, "strategies.1.max_new_tokens=1", "strategies.7.top_p=0.5")
    assert job.strategies[1] == Sampling(name="7", type="sampling", max_new_tokens=1, top_p=0.5)


def test_an_override_of_what_an_anchor_shares_changes_one_place(load: Load) -> None:
    text = (
        JOB.replace("max_new_tokens: 20", "max_new_tokens: 20\n    stop_strings: &stop [a]")
        + "    stop_strings: *stop\n"
    )
    assert [s.stop_strings for s in load(text, "strategies.0.stop_strings.0=b").strategies] == [("b",), ("a",)]


@pytest.mark.parametrize(
    ("override", "what", "way_out"),
    [
        (
            "run.replicas",
            "an override needs a key and a value, but is 'run.replicas'",
            "Write it as run.replicas=2.",
        ),
        ("=2", "the key '' has an empty part", "Write it as run.replicas=2."),
        ("run..replicas=2", "the key 'run..replicas' has an empty part", "Write it as run.replicas=2."),
        ("strategies.2.top_p=1", "`strategies` has no item `2`", "There are 0 (`greedy`), 1 (`nucleus`)."),
        ("strategies.-1.top_p=1", "`strategies` has no item `-1`", "There are 0 (`greedy`), 1 (`nucleus`)."),
        (
            "strategies.nuclus.top_p=1",
            "`strategies` has no item `nuclus`",
            "Did you mean `nucleus`? There are 0 (`greedy`), 1 (`nucleus`).",
        ),
        (
            "input.path.0=a",
            "`input.path` is 'prompts.parquet', so it has no `0`",
            "Override `input.path` itself.",
        ),
        (
            "input.path=*.parquet",
            "the value '*.parquet' is not valid YAML: found undefined alias '.parquet'",
            "Put text with special characters in quotes of its own: --set 'key=\"*.parquet\"'.",
        ),
        (
            "seed=\x1b",
            "the value '\\x1b' is not valid YAML: unacceptable character #x001b: special characters are not allowed",
            "Put text with special characters in quotes of its own: --set 'key=\"*.parquet\"'.",
        ),
        ("sead=1", "unknown key `sead`", "Did you mean `seed`?"),
        ("run.replica.x=1", "unknown key `run.replica`", "Did you mean `replicas`?"),
        (
            "strategies.greedy.temperature=1",
            "`temperature` does not apply to `type: greedy`: "
            "greedy always takes the most probable token, so nothing is drawn",
            "Use `type: sampling`, or leave it out.",
        ),
        ("strategies.nucleus.type=beam_search", "`num_beams` is missing", "It must be an integer from 2 to 64."),
    ],
)
def test_a_wrong_override_is_told_with_what_there_is(load: Load, override: str, what: str, way_out: str) -> None:
    assert one_refusal(load, JOB, override) == (what, way_out)


def test_an_item_of_a_plain_list_goes_by_its_index(load: Load) -> None:
    text = JOB.replace("prompts.parquet", "[a, b]")
    assert one_refusal(load, text, "input.path.2=c") == ("`input.path` has no item `2`", "There are 0, 1.")
    assert one_refusal(load, text, "strategies=[]", "strategies.0=c") == (
        "`strategies` has no item `0`",
        "Add one to the file.",
    )


def test_all_overrides_that_cannot_be_put_in_are_told_at_once(load: Load) -> None:
    assert refusal(load, JOB, "seed", "seed=1", "strategies.9.top_p=1") == (
        "error: an override needs a key and a value, but is 'seed'\n"
        " --> --set seed\n"
        "Write it as run.replicas=2.\n"
        "\n"
        "error: `strategies` has no item `9`\n"
        " --> --set strategies.9.top_p=1\n"
        "There are 0 (`greedy`), 1 (`nucleus`).\n"
        "\n"
        "2 errors. Nothing was started."
    )


def test_what_a_missing_key_made_by_an_override_lacks_is_shown_there(load: Load) -> None:
    text = JOB.replace("output:\n  path: out\n", "")
    assert refusal(load, text, "output.top_k=3") == (
        "error: `output.path` is missing\n"
        " --> --set output.top_k=3\n"
        "It must be a non-empty string.\n"
        "\n"
        "1 error. Nothing was started."
    )


# Laws

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp")), min_size=1, max_size=20)
LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "strategy_columns": st.dictionaries(st.sampled_from(["seed", "top_p", "max_new_tokens"]), TEXT),
    "model.name": TEXT,
    "model.revision": st.none() | TEXT,
    "model.dtype": st.sampled_from(["float32", "bfloat16"]),
    "input.path": TEXT | st.lists(TEXT, min_size=1, max_size=3),
    "input.keep_columns": st.lists(TEXT, max_size=3),
    "output.path": TEXT,
    "output.top_k": st.integers(0, 1000),
    "output.prompt_logprobs": st.booleans(),
    "strategies.0.max_new_tokens": st.integers(1, 10**9),
    "strategies.greedy.bad_words_ids": st.lists(st.lists(st.integers(0, 50256), min_size=1, max_size=3), max_size=3),
    "strategies.1.temperature": st.floats(0, 1e300, exclude_min=True),
    "strategies.nucleus.top_p": st.none() | st.floats(0, 1, exclude_min=True),
    "strategies.nucleus.stop_strings": st.lists(TEXT, max_size=3),
    "seed": st.integers(0, 2**63 - 1),
    "run.replicas": st.just("auto") | st.integers(1, 1000),
    "run.gpus_per_replica": st.just("auto") | st.floats(0, 1),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TYPES = (Greedy, Sampling, BeamSearch, ContrastiveSearch, Dola, NextToken, Score)
KEYS = st.sampled_from(
    [*Job.model_fields, *InputConfig.model_fields, *(key for kind in TYPES for key in kind.model_fields), "grid", "n"]
)
KINDS = st.sampled_from([*DOES, "other"])


@pytest.fixture(scope="module")
def job_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jobfile") / "job.yaml"
    path.write_text(JOB)
    return path


@given(data=st.data(), leaf=st.sampled_from(sorted(LEAVES)))
def test_any_value_set_by_an_override_is_the_value_of_the_job(job_path: Path, data: st.DataObject, leaf: str) -> None:
    value = data.draw(LEAVES[leaf])
    job = load_job(job_path, [f"{leaf}={json.dumps(value, ensure_ascii=False)}"]).model_dump(mode="json")
    for key in leaf.replace("greedy", "0").replace("nucleus", "1").split("."):
        job = job[int(key) if isinstance(job, list) else key]
    assert job == value


@given(job=st.dictionaries(KEYS, JSON, max_size=6), kind=KINDS, strategy=st.dictionaries(KEYS, JSON, max_size=5))
def test_any_dict_is_a_job_or_refused_in_plain_words(job: dict[str, Any], kind: str, strategy: dict[str, Any]) -> None:
    values = {**job, "strategies": [{**strategy, "type": kind}, *VALUES["strategies"]]}
    try:
        parse_job(values)
    except ConfigError as error:
        message = str(error)
        assert message.endswith(("1 error. Nothing was started.", " errors. Nothing was started."))
        assert not [word for word in PYDANTIC if word in message]


@given(text=st.text("abno01.:-,[]{}*&!#|>'\"%~<? \n\t\x00é", max_size=40))
def test_any_text_is_a_job_or_refused(job_path: Path, text: str) -> None:
    path = job_path.with_name("any.yaml")
    path.write_text(text)
    refusal(load_job, path)
    if "=" not in text:
        refusal(load_job, job_path, [text])
    with pytest.raises(ConfigError):
        load_job(job_path, [f"strategies={text}"])


# JSON Schema

SCHEMA = Draft7Validator(json_schema())


def schema_error(values: dict[str, Any]) -> tuple[str, str]:
    """Where and what the most telling error of a validator is."""
    error = best_match(SCHEMA.iter_errors(values))
    assert error is not None
    return "/".join(map(str, error.absolute_path)), error.message


def objects(schema: Any) -> list[dict[str, Any]]:
    inside = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []
    own = [schema] if isinstance(schema, dict) and "additionalProperties" in schema else []
    return own + [found for value in inside for found in objects(value)]


def test_the_schema_is_draft_7_and_needs_nothing_beside_it() -> None:
    Draft7Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == "http://json-schema.org/draft-07/schema#"
    written = json.dumps(json_schema())
    assert not [word for word in ("$ref", "$defs", "discriminator", "oneOf") if word in written]


def test_every_property_is_described_and_no_other_is_allowed() -> None:
    found = [schema for schema in objects(json_schema()) if "properties" in schema]  # `label_selector` has any
    # The job, 5 sections, `run.replicas`, 7 strategies with grids, and `sequence_bias` in all of these but `score`.
    assert [schema["additionalProperties"] for schema in found] == [False] * (1 + 5 + 1 + 7 * 2 + 6 * 2)
    undescribed = [
        key for schema in found for key, rules in schema["properties"].items() if not rules.get("description")
    ]
    assert undescribed == []


def needs_examples(schema: Any, section: str = "") -> Iterator[tuple[str, Any]]:
    """Every key whose value is no choice, and its rules; not those of a grid, whose items are the strategy's own."""
    for key, rules in schema.get("properties", {}).items():
        is_choice = "enum" in rules or "const" in rules or "boolean" in str(rules.get("type", rules.get("anyOf")))
        has_keys = section == "" and key in ("input", "output", "run")
        if key != "grid" and not is_choice and not has_keys:
            yield f"{section}{key}", rules
        inside = [rules, rules.get("items", {}), *rules.get("anyOf", [])]
        for each in inside if key not in ("grid", "strategies", "strategy_columns") else ():
            yield from needs_examples(each, f"{section}{key}.")
        for kind in rules.get("items", {}).get("allOf", []) if key == "strategies" else ():
            yield from needs_examples(kind["then"])


def test_every_key_that_is_no_choice_has_examples_that_keep_its_rules() -> None:
    found = [*needs_examples(json_schema())]
    assert [key for key, rules in found if not rules.get("examples")] == []
    assert {key for key, _ in found} == {*EXAMPLES}
    wrong = [
        (key, error.message)
        for key, rules in found
        for example in rules["examples"]
        for error in Draft7Validator(rules).iter_errors(example)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_job_file_of_the_project_keeps_to_the_schema_and_loads(path: Path) -> None:
    """Those of the pages are in test_handbook.py."""
    values = YAML(typ="safe", pure=True).load(path.read_text())
    assert list(SCHEMA.iter_errors(values)) == []
    parse_job(values)


def test_the_schema_is_the_callers_to_change() -> None:
    json_schema()["properties"].clear()
    assert list(json_schema()["properties"]) == [*Job.model_fields]


@pytest.mark.parametrize(
    "values",
    [
        VALUES,
        {**VALUES, "model": {"name": "gpt2", "revision": None, "dtype": "bfloat16"}},
        {**VALUES, "input": {"path": ["a", "b"], "id_column": None}},
        {**VALUES, "strategies": [{"name": "b", "type": "beam_search", "num_beams": 2, "early_stopping": "never"}]},
        {**VALUES, "run": {"replicas": 2, "gpus_per_replica": 0.5, "shard_rows": "auto"}, "seed": 0},
    ],
)
def test_a_good_file_keeps_to_the_schema(values: dict[str, Any]) -> None:
    assert list(SCHEMA.iter_errors(values)) == []


@pytest.mark.parametrize(
    ("strategy", "error"),
    [
        (
            {"type": "sampling", "temprature": 1},
            ("", "Additional properties are not allowed ('temprature' was unexpected)"),
        ),
        (
            {"type": "greedy", "temperature": 1},
            ("", "Additional properties are not allowed ('temperature' was unexpected)"),
        ),
        ({"type": "sampling", "top_p": 1.3}, ("/top_p", "1.3 is greater than the maximum of 1")),
        ({"type": "sampling", "top_k": "5"}, ("/top_k", "'5' is not of type 'integer', 'null'")),
        ({"type": "beam_search"}, ("", "'num_beams' is a required property")),
        ({"type": "sample"}, ("/type", f"'sample' is not one of {[*DOES]}")),
        ({}, ("", "'type' is a required property")),
    ],
)
def test_an_editor_names_what_is_wrong_with_a_strategy(strategy: dict[str, Any], error: tuple[str, str]) -> None:
    where, what = error
    values = {**VALUES, "strategies": [{"name": "s", **strategy}]}
    assert schema_error(values) == (f"strategies/0{where}", what)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"modle": "demo"}, ("", "Additional properties are not allowed ('modle' was unexpected)")),
        ({"output": {}}, ("output", "'path' is a required property")),
        ({"run": {"max_error_rate": 2}}, ("run/max_error_rate", "2 is greater than the maximum of 1")),
        ({"strategies": []}, ("strategies", "[] should be non-empty")),
        ({"model": {"name": "m", "dtype": "f16"}}, ("model/dtype", "'f16' is not one of ['float32', 'bfloat16']")),
    ],
)
def test_an_editor_names_what_is_wrong_with_the_rest(values: dict[str, Any], error: tuple[str, str]) -> None:
    assert schema_error({**VALUES, **values}) == error


@given(data=st.data(), leaf=st.sampled_from(sorted(LEAVES)))
def test_what_loads_keeps_to_the_schema(job_path: Path, data: st.DataObject, leaf: str) -> None:
    value = data.draw(LEAVES[leaf])
    job = load_job(job_path, [f"{leaf}={json.dumps(value, ensure_ascii=False)}"])
    assert list(SCHEMA.iter_errors(job.model_dump(mode="json"))) == []
