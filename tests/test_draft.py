"""`batchgen init`: what it guesses of data sets, the file it writes, and that plan and run take the file as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft7Validator
from ruamel.yaml import YAML

from pipeline import job
from pipeline.cli import main
from pipeline.draft import Draft, draft
from pipeline.draft_screen import print_draft
from pipeline.errors import InputError
from pipeline.jobfile import json_schema, load_job
from tests.fake_store import fake_store
from tests.flows import run_echo

WORDS = ["I skip across the", "Every bee", "The quiet fox", "Today", "In the stable", "A boat"]


def written(path: Path, columns: dict[str, Any]) -> Path:
    """The columns as a file of the kind that its name says."""
    table = pa.table(columns)
    match path.suffix:
        case ".parquet":
            pq.write_table(table, path)
        case ".arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        case ".csv":
            lines = [",".join(map(str, row.values())) for row in table.to_pylist()]
            path.write_text("\n".join([",".join(table.column_names), *lines]))
        case _:
            path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    return path


def init(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["init", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


GOLDEN = """\
# yaml-language-server: $schema=job.schema.json
#
# 6 rows in 1 parquet file:
#
#   column    type                example                           use
#   key       int64               7                                 kept
#   idx       int64               0                                 id · no two alike
#   question  string              I skip across the                 prompts · as named
#   Text      string              x                                 not kept · name is taken
#   body      string              long long long long long long l…  not kept · 250 characters
#   vector    list<item: double>                                    not kept · no plain value
#   score: a  double              0.5                               kept
#
# Tokens of a prompt, in all 6 rows: median 4, p95 6, longest 6; `demo` takes 128.

model: demo                               # hub id as openai-community/gpt2, local folder, or demo, the tiny one

input:
  path: my data.parquet                   # file, glob, folder, URL or list of them
  id_column: idx                          # unique key of a row; without it rows are named by file and position
  prompt_column: question                 # the prompts (as named)
  # prompt_template: "Q: {question}\\nA:"  # in place of prompt_column: text around columns
  keep_columns: [key, 'score: a']         # copied to every completion
  on_long_prompt: error                   # none is too long; or truncate_left, truncate_right
  on_empty_prompt: bos                    # 0 of 6 are empty; bos: they start from nothing; or error

output:
  path: out/my-data                       # folder, or s3://bucket/path, gs://, az://; one job, one folder
  top_k: 10                               # alternatives recorded per step; 0: none
  prompt_logprobs: false                  # true: the log-probability of every prompt token too

strategies:  # every prompt goes through all of them
  - {name: greedy, type: greedy, max_new_tokens: 40}
  - {name: nucleus, type: sampling, max_new_tokens: 40, temperature: 0.8, top_p: 0.95, num_return_sequences: 2}
  # - {name: beam5, type: beam_search, max_new_tokens: 40, num_beams: 5}
  # - {name: contrastive, type: contrastive_search, max_new_tokens: 40, penalty_alpha: 0.6, top_k: 4}
  # - {name: sweep, type: sampling, max_new_tokens: 40, grid: {temperature: [0.4, 0.8, 1.0], top_p: [0.9, null]}}
  # - {name: candidates, type: next_token}
  # - {name: loglikelihood, type: score}

seed: 0                                   # the same seed gives the same text

run:
  replicas: auto                          # copies of the model; auto: one per GPU, else one per CPU core
  max_error_rate: 0.05                    # past this share of error rows the job stops
"""


def test_the_file_tells_what_is_in_the_data(tmp_path: Path) -> None:
    columns = {
        "key": [7, 7, 8, 9, 10, 11],
        "idx": [0, 1, 2, 3, 4, 5],
        "question": WORDS,
        "Text": ["x"] * 6,
        "body": ["long " * 50] * 6,
        "vector": [[0.5]] * 6,
        "score: a": [0.5] * 6,
    }
    written(tmp_path / "my data.parquet", columns)
    assert draft("my data.parquet", prompt_column="question").text == GOLDEN


def test_every_line_that_is_commented_out_may_be_put_in(tmp_path: Path) -> None:
    written(tmp_path / "data.parquet", {"prompt": WORDS})
    text = draft("data.parquet").text
    Path("job.yaml").write_text(text.replace("  # - {", "  - {"))
    names = [strategy.name for strategy in load_job("job.yaml").strategies]
    assert names[:4] == ["greedy", "nucleus", "beam5", "contrastive"]
    assert names[4:] == [
        *(f"sweep-temperature{t}-top_p{p}" for t in (0.4, 0.8, 1.0) for p in (0.9, "off")),
        "candidates",
        "loglikelihood",
    ]
    Path("job.yaml").write_text(re.sub(r"  prompt_column.*\n  # prompt_template", "  prompt_template", text))
    assert load_job("job.yaml").input.prompt_template == "Q: {prompt}\nA:"
    Path("job.yaml").write_text(text.replace("  # id_column", "  id_column"))
    assert load_job("job.yaml").input.id_column == "id"


@pytest.mark.parametrize(
    ("columns", "choice"),
    [
        ({"text": WORDS, "prompt": WORDS}, ("prompt", "prompt_column", "by its name")),
        ({"title": ["A"] * 6, "Question": WORDS}, ("Question", "prompt_column", "by its name")),
        ({"n": range(6), "de": WORDS}, ("de", "prompt_column", "the only text")),
        (
            {"tag": ["ab"] * 6, "story": ["x" * 1500] * 6, "lang": ["english"] * 6},
            ("story", "prompt_column", "longest texts: 1,500 characters, `lang` 7"),
        ),
        (
            {"label": range(6), "input_ids": [[40, 294]] * 6, "mask": [[1, 1]] * 6},
            ("input_ids", "token_ids_column", "no texts, but lists of integers"),
        ),
        (
            {"label": range(6), "codes": [[40, 294]] * 6},
            ("codes", "token_ids_column", "no texts, but lists of integers"),
        ),
    ],
)
def test_prompts_are_found_by_name_then_by_length_then_as_token_ids(
    tmp_path: Path, columns: dict[str, Any], choice: tuple[str, str, str]
) -> None:
    assert draft(str(written(tmp_path / "data.parquet", columns))).prompt == choice


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        (
            {"de": ["Guten Morgen"] * 6, "en": ["Good morning"] * 6, "n": range(6)},
            None,
            "columns `de` and `en` of data.parquet hold texts of about the same length. "
            "Say which one has the prompts: --prompt-column de.",
        ),
        (
            {"a": [[1]] * 6, "b": [[2]] * 6},
            None,
            "columns `a` and `b` of data.parquet do not look like prompts by their names and types. "
            "Say which one has the prompts: --prompt-column a.",
        ),
        (
            {"uid": list("abcdef"), "n": range(6)},
            None,
            "columns `uid` and `n` of data.parquet do not look like prompts by their names and types. "
            "Say which one has the prompts: --prompt-column uid.",
        ),
        (
            {"n": range(6), "messages": [[{"role": "user"}]] * 6},
            None,
            "no column of data.parquet can hold prompts, which are text or lists of token ids; "
            "found `n` (int64), `messages` (list<item: struct<role: string>>). "
            "Write them into a column of such a type.",
        ),
        (
            {"n": range(6), "text": WORDS, "ids": [[1]] * 6},
            "n",
            "column `n` (--prompt-column) is int64; these can hold prompts: `text`, `ids`. Name one.",
        ),
        (
            {"text": WORDS},
            "prompt",
            "column `prompt` (--prompt-column) is missing; these can hold prompts: `text`. Name one.",
        ),
        (
            {"text": pa.nulls(6, pa.string()), "title": WORDS},
            None,
            "column `text` has no prompt that can be used: column `text` is null (row 0). "
            "Name another with --prompt-column.",
        ),
    ],
)
def test_what_cannot_be_guessed_is_refused_with_a_way_out(
    tmp_path: Path, columns: dict[str, Any], asked: str | None, message: str
) -> None:
    written(tmp_path / "data.parquet", columns)
    with pytest.raises(InputError) as error:
        draft("data.parquet", prompt_column=asked)
    assert str(error.value).replace(f"{tmp_path}/", "") == message


def null_prompts(folder: Path) -> str:
    return str(written(folder / "nulls.parquet", {"prompt": [None, "", *WORDS[2:]], "row": range(6)}))


def long_prompts(folder: Path) -> str:
    return str(written(folder / "long.jsonl", {"story": ["word " * 200, *WORDS[1:]], "n": [1, 2, 3, 4, 5, 6]}))


def token_ids(folder: Path) -> str:
    return str(written(folder / "ids.arrow", {"input_ids": [[40, 294]] * 5 + [[9999]], "uid": list("abcdef")}))


def some_csv(folder: Path) -> str:
    return str(written(folder / "on: yes.csv", {"id": [1, 1, 2, 3, 4, 5], "null": WORDS, "text #1": ["a"] * 6}))


def two_files(folder: Path) -> str:
    written(folder / "1.jsonl", {"instruction": WORDS[:3], "n": [1, 2, 3], "mixed": ["a"] * 3, "one": [1] * 3})
    written(folder / "2.jsonl", {"instruction": WORDS[3:], "n": [0.5] * 3, "mixed": [{"k": 1}] * 3})
    return str(folder / "*.jsonl")


@pytest.mark.parametrize(
    ("make", "kept", "id_column", "num_errors", "said"),
    [
        (
            null_prompts,
            ("row",),
            None,
            3,
            ["median 2, p95 6, longest 6;", "# 1 of 6 have no usable prompt", "# 1 of 6 are empty; bos"],
        ),
        (
            long_prompts,
            ("n",),
            None,
            0,
            ["median 6, p95 601, longest 601;", "# 1 of 6 are too long: their end is kept"],
        ),
        (token_ids, (), "uid", 3, ["median 2, p95 2, longest 2;", "# 1 of 6 have no usable prompt"]),
        (some_csv, ("id", "text #1"), None, 0, ["6 rows in 1 csv file:"]),
        (two_files, ("n",), None, 0, ["6 rows in 2 jsonl files:", "cannot be read"]),
    ],
)
def test_the_file_is_ready_to_plan_and_run(
    tmp_path: Path,
    make: Callable[[Path], str],
    kept: tuple[str, ...],
    id_column: str | None,
    num_errors: int,
    said: list[str],
) -> None:
    data = make(tmp_path)
    init(data)
    text = Path("job.yaml").read_text()
    assert [phrase for phrase in said if phrase not in text] == []
    assert list(Draft7Validator(json_schema()).iter_errors(YAML(typ="safe").load(text))) == []
    loaded = load_job("job.yaml")
    assert loaded == draft(data).job
    assert (loaded.input.keep_columns, loaded.input.id_column) == (kept, id_column)
    planned = CliRunner().invoke(main, ["plan", "job.yaml", "--json"])
    assert planned.exit_code == 0, planned.output
    totals = job.run(loaded, job.here).manifest["totals"]
    assert (totals["rows"], totals["errors"]) == (18, num_errors)
    assert totals["errors"] <= 18 * loaded.run.max_error_rate


def test_a_run_of_the_same_data_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    data = str(written(tmp_path / "data.v2.parquet", {"prompt": WORDS}))
    first = draft(data).job
    run_echo(first)
    assert (first.output.path, draft(data).job.output.path) == ("out/data", "out/data-2")


@pytest.mark.parametrize(
    ("path", "folder"),
    [("sub/*.parquet", "out/sub"), ("./sub", "out/sub"), (["sub/a.parquet", "sub/b.parquet"], "out/a")],
)
def test_the_folder_is_named_after_the_data(tmp_path: Path, path: str | list[str], folder: str) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "b"):
        written(tmp_path / "sub" / f"{name}.parquet", {"prompt": WORDS})
    assert draft(path).job.output.path == folder


def test_the_data_may_lie_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"prompt": ["The quiet fox", "Every bee"], "n": [1, 2]}), tmp_path / "a.parquet")
    with fake_store("s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.objects["in/a.parquet"] = (tmp_path / "a.parquet").read_bytes()
        found = draft("s3://bkt/in/*.parquet")
    assert found.uses == {"prompt": "prompts · by its name", "n": "kept"}
    assert (found.job.input.path, found.data.num_rows) == ("s3://bkt/in/*.parquet", 2)


def test_a_sample_of_a_large_input_is_called_one(tmp_path: Path) -> None:
    written(tmp_path / "data.parquet", {"prompt": ["Every bee"] * 1500, "id": range(1500)})
    found = draft("data.parquet")
    assert "in a sample of 1,000 rows: median 3, p95 3" in found.text
    assert (found.data.num_rows, found.job.input.id_column) == (1500, "id")


def test_a_key_that_repeats_outside_the_sample_is_no_id(tmp_path: Path) -> None:
    ids = [*range(1499), 1497]  # the sample has 125 rows of every 187
    written(tmp_path / "data.parquet", {"prompt": ["Every bee"] * 1500, "id": ids})
    found = draft("data.parquet")
    assert found.job.input.id_column is None
    assert found.uses["id"] == "kept · no id: some are alike"


def test_nothing_is_written_over_unless_asked(tmp_path: Path) -> None:
    written(tmp_path / "data.parquet", {"prompt": WORDS})
    Path("job.yaml").write_text("mine")
    refused = init("data.parquet", exit_code=2)
    assert refused.output == (
        "error: job.yaml is there already. Give another name with -o, or --force to replace it.\n"
    )
    assert not Path("job.schema.json").exists()
    Path("job.schema.json").write_text("mine")
    init("data.parquet", "-o", "other.yaml")
    assert [Path(name).read_text() for name in ("job.yaml", "job.schema.json")] == ["mine", "mine"]
    init("data.parquet", "--force")
    assert load_job("job.yaml").input.prompt_column == "prompt"
    assert json.loads(Path("job.schema.json").read_text()) == json_schema()


def test_the_file_may_go_into_a_new_folder_but_not_below_a_file(tmp_path: Path) -> None:
    written(tmp_path / "data.parquet", {"prompt": WORDS})
    init("data.parquet", "-o", "new/job.yaml")
    assert load_job("new/job.yaml").input.path == "data.parquet"
    assert Path("new/job.schema.json").exists()
    refused = init("data.parquet", "-o", "data.parquet/job.yaml", exit_code=2)
    assert refused.output == (
        "error: data.parquet/job.yaml cannot be written: File exists. Give another name with -o.\n"
    )


def test_a_dash_prints_the_file_and_writes_nothing(tmp_path: Path) -> None:
    written(tmp_path / "data.parquet", {"prompt": WORDS})
    assert init("data.parquet", "-o", "-").output == draft("data.parquet").text
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


def test_the_screen_says_what_was_found_and_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: Draft = draft(null_prompts(tmp_path))
    print_draft(found, [Path("my job.yaml"), Path("job.schema.json")])
    said = capsys.readouterr()
    assert said.out == "\n".join(
        [
            "6 rows in 1 parquet file",
            "",
            "column\ttype\texample\tuse",
            "prompt\tstring\tThe quiet fox\tprompts · by its name",
            "row\tint64\t0\tkept",
            "",
            "tokens of a prompt: median 2, p95 6, longest 6 · all rows",
            "",
            "wrote my job.yaml and job.schema.json",
            "",
            "next",
            "  batchgen preview 'my job.yaml'",
            "  batchgen plan 'my job.yaml'",
            "  batchgen run 'my job.yaml'",
            "  batchgen report out/nulls",
            "",
        ]
    )
    assert said.err == (
        "warning: 1 of 6 rows have no usable prompt and would be error rows (run.max_error_rate is 0.25).\n"
    )


HOSTILE = ["a\nb: c", "# x", "*", "{x}", "null", "1", "'\"", "é\u2028", "\x07", "😀", "a" * 300, "- y", "\ufffe"]


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_and_any_text_can_stand_in_the_file(tmp_path: Path, name: str) -> None:
    written(tmp_path / "data.parquet", {name: ["first " + name] * 3, "prompt": [name] * 3})
    found = draft("data.parquet", prompt_column=name)
    Path("job.yaml").write_text(found.text, encoding="utf-8")
    assert load_job("job.yaml") == found.job
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", found.text)
