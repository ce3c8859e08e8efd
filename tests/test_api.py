"""The Python API: its names, a job from Python, the engine alone, and how both show themselves."""

from __future__ import annotations

import html
import io
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

import pipeline
from pipeline import BatchgenError, Completions, Engine, Job, Results, run
from pipeline.config import Job as PlainJob
from pipeline.errors import ConfigError, ModelError
from pipeline.jobfile import parse_job
from pipeline.metrics import Sums
from pipeline.notebook import FEWEST_SECONDS, Handle, NotebookBar
from pipeline.shard import Part
from pipeline.strategies import Greedy
from tests.flows import GREEDY, SAMPLES, echo, write_prompts
from tests.forgery import PROMPTS, STRATEGIES

NAMES = [
    "BatchgenError",
    "Completions",
    "Engine",
    "Job",
    "Results",
    "__version__",
    "data_card",
    "explode",
    "export",
    "open_run",
    "push_to_hub",
    "run",
]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_names_of_the_api_are_these_and_each_is_documented() -> None:
    assert pipeline.__all__ == NAMES
    for name in NAMES:
        assert getattr(pipeline, name).__doc__
    assert set(NAMES) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(pipeline, "nothing")  # noqa: B009


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import pipeline; print(*set(sys.modules) - before)"
    rest = {name.split(".")[0] for name in python(code).split()} - set(sys.stdlib_module_names)
    assert rest == {"pipeline"}


def test_the_engine_alone_needs_neither_ray_nor_datasets() -> None:
    code = (
        "import sys; from pipeline import Engine; Engine('demo').generate(['Hi']); "
        "print(*[name for name in ('ray', 'datasets') if name in sys.modules])"
    )
    assert python(code) == ""


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    source = write_prompts(tmp_path / "prompts.parquet", ["I skip", "Every bee", None, "Today we"])
    return {
        "model": "demo",
        "input": {"path": str(source), "id_column": "id"},
        "output": {"path": str(tmp_path / "out"), "top_k": 3},
        "strategies": [GREEDY, SAMPLES],
        "run": {"shard_rows": 2},
    }


def test_a_job_from_python_is_the_job_of_the_file(values: dict[str, Any]) -> None:
    job = Job(**values)
    assert isinstance(job, PlainJob)
    assert job.model_dump() == parse_job(values).model_dump()
    assert pickle.loads(pickle.dumps(job)) == job


def test_a_job_takes_grids_and_values_of_the_configuration(values: dict[str, Any]) -> None:
    swept = {"name": "hot", "type": "sampling", "max_new_tokens": 2, "grid": {"temperature": [0.5, 1.5]}}
    job = Job(**values | {"strategies": [swept, Greedy(name="g", type="greedy", max_new_tokens=3)]})
    assert [strategy.name for strategy in job.strategies] == ["hot-temperature0.5", "hot-temperature1.5", "g"]


def test_a_wrong_job_says_what_to_do(values: dict[str, Any]) -> None:
    wrong = [{"name": "hot", "type": "sampling", "max_new_tokens": 2, "temprature": 0.5}]
    with pytest.raises(ConfigError, match=r"(?i)did you mean `temperature`"):
        Job(**values | {"strategies": wrong})
    with pytest.raises(ConfigError, match="`sead`"):
        Job(**values, sead=1)


@pytest.mark.parametrize("form", ["job", "dict", "file"])
def test_run_does_a_job_and_opens_its_results(form: str, values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps(values))  # JSON is YAML
    work = {"job": lambda: Job(**values), "dict": lambda: values, "file": lambda: tmp_path / "job.yaml"}[form]()
    results = run(work, has_ray=False, engine_maker=echo)
    assert isinstance(results, Results)
    assert results.counts == {"rows": 12, "ok": 9, "errors": 3, "generated_tokens": 18}
    assert results.error_rate == 0.25
    assert run(work, has_ray=False, engine_maker=echo).counts == results.counts


def test_results_show_themselves(values: dict[str, Any], tmp_path: Path) -> None:
    values["output"] = {"path": str(tmp_path / ("long" * 20) / "out")}  # a heading is not broken, however long
    results = run(values, has_ray=False, engine_maker=echo)
    title = f"{values['output']['path']} · finished · 12 rows: 9 ok, 3 errors · 18 tokens"
    lines = repr(results).splitlines()
    assert lines[0] == title
    assert lines[1].split() == ["row_id", "strategy", "#", "prompt", "text", "ended", "by"]
    assert lines[2].split() == ["r0", "greedy", "0", "I", "skip", "I", "skip", "length"]
    assert "error: prompt_null" in repr(results)
    shown = results._repr_html_()
    assert shown.startswith("<table>")
    assert title in html.unescape(shown)
    assert shown.count("<tr>") == 11
    console = Console(width=60, file=io.StringIO(), record=True)
    console.print(results)
    assert "12 rows: 9 ok, 3 errors" in " ".join(console.export_text().split())


def test_hostile_text_is_escaped_where_it_is_shown(values: dict[str, Any], tmp_path: Path) -> None:
    text = "<script>x</script>\x1b[2J\u202e"
    write_prompts(tmp_path / "prompts.parquet", [text])
    results = run(values, has_ray=False, engine_maker=echo)
    assert "&lt;script&gt;x&lt;/script&gt;␛[2J⟨U+202E⟩" in results._repr_html_()
    assert "\x1b" not in repr(results)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("demo", top_k=4, prompt_logprobs=True)


def test_the_engine_gives_the_rows_of_a_run(engine: Engine, sound: Path) -> None:
    prompts = [prompt for prompt in PROMPTS if prompt]
    completions = engine.generate(prompts, STRATEGIES, seed=7)
    stored = [row for row in pq.read_table(sound / "data").to_pylist() if row["prompt"]]
    is_drawn = [row["strategy"] == "hot" for row in stored]
    assert len(completions) == len(stored) == len(prompts) * 8
    for found, row, drawn in zip(completions, stored, is_drawn, strict=True):
        for name in ("strategy", "sample_index", "prompt_token_ids", "token_ids", "text", "finish_reason"):
            assert drawn or found[name] == row[name]
        assert found["prompt_logprobs"][1:] == pytest.approx(row["prompt_logprobs"][1:], abs=1e-4)


def test_the_engine_takes_token_ids_and_the_seed_decides_what_is_drawn(engine: Engine) -> None:
    hot = [{"name": "hot", "type": "sampling", "max_new_tokens": 8, "temperature": 1.5, "num_return_sequences": 2}]
    texts = engine.generate(["I skip across the"], hot).texts
    assert engine.generate([(40, 294, 295, 259)], hot).texts == texts
    assert engine.generate(["I skip across the"], hot, seed=1).texts != texts


def test_completions_are_rows_slices_and_texts(engine: Engine) -> None:
    completions = engine.generate(["I skip across the", "I skip across the"])
    assert completions.texts == [" line to a place where I can see the big castle."] * 2
    assert completions[-1] == {**completions[0], "row_id": "1", "row_index": 1, "seed": completions[1]["seed"]}
    assert isinstance(completions[:1], Completions)
    assert [row["row_id"] for row in completions[::-1]] == ["1", "0"]
    with pytest.raises(IndexError):
        completions[2]
    assert completions.table.column_names[:3] == ["row_id", "row_index", "strategy"]


def test_completions_show_themselves(engine: Engine) -> None:
    next_token = [{"name": "next", "type": "next_token"}]
    lines = repr(engine.generate(["I skip across the"], next_token)).splitlines()
    assert lines[0] == "1 completions"
    assert '" line" 19.2 %, " street" 16.8 %' in lines[2]
    assert engine.generate(["<b>"])._repr_html_().count("&lt;b&gt;") == 1


def test_a_bad_prompt_is_an_error_row_and_a_bad_argument_an_error(engine: Engine) -> None:
    (row,) = engine.generate(["word " * 500])
    assert (row["status"], row["error_type"]) == ("error", "prompt_too_long")
    with pytest.raises(ConfigError, match="top_p"):
        engine.generate(["x"], [{"name": "n", "type": "sampling", "max_new_tokens": 2, "top_p": 2.0}])
    with pytest.raises(ConfigError, match="needs an input with columns"):
        engine.generate(["x"], [{"name": "s", "type": "score", "target_column": "t"}])
    with pytest.raises(ConfigError, match="dtype"):
        Engine("demo", dtype="float16")
    with pytest.raises(ModelError, match="is not a folder"):
        Engine("./nowhere")
    assert issubclass(ConfigError, BatchgenError)


class Screen:
    """Where a notebook would draw, and its clock."""

    def __init__(self) -> None:
        self.now, self.drawn = 0.0, list[tuple[str, bool]]()

    def draw(self, shown: str, handle: Handle | None) -> Handle:
        self.drawn.append((re.sub("<[^>]*>", "", shown).strip(), handle is None))
        return self

    def update(self, shown: str) -> None:
        raise AssertionError("only `draw` is called")


def part(rows: int, ok: int, tokens: int) -> Part:
    sums: dict[str, Sums] = {"greedy": {"ok": ok, "generated_tokens": tokens}}
    return Part("data/part-00000.parquet", rows, "", sums, 0)


def test_a_notebook_bar_draws_in_one_place_and_not_too_often() -> None:
    screen = Screen()
    bar = NotebookBar(screen.draw, lambda: screen.now)
    bar.start(100, 4, [part(25, 25, 500)])
    screen.now = 10.0
    bar.part(part(25, 24, 500))
    screen.now += FEWEST_SECONDS / 2
    bar.part(part(25, 25, 500))
    bar.part(part(25, 25, 500))
    assert screen.drawn == [
        ("25/100 rows · 0 s", True),
        ("50/100 rows · 50 tok/s · 1 errors · 10 s", False),
        ("100/100 rows · 148 tok/s · 1 errors · 10 s", False),
    ]
