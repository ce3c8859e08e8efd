"""A job file for a data set: which columns hold what, and the file in YAML with comments.

What is guessed is said in the comments, with the numbers it was guessed by, and can be changed there. The file is
checked as `batchgen plan` checks it before anybody sees it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.cells import cell_len
from ruamel.yaml import YAML

from pipeline import checkpoint
from pipeline.checkpoint import Checkpoint
from pipeline.config import Job
from pipeline.dataset import check_kept_names
from pipeline.errors import InputError
from pipeline.forecast import Lengths, lengths
from pipeline.input_columns import is_key, is_text, is_token_ids
from pipeline.input_rows import prompt_values
from pipeline.jobfile import parse_job
from pipeline.plan import make_plan
from pipeline.prompts import Prompt, rules, tokenised
from pipeline.records import RowError
from pipeline.survey import Survey, is_flat, survey
from pipeline.tokenizer import Tokenizer

# Names of columns that hold prompts or token ids or keys, the likeliest first.
PROMPTS = ("prompt", "prompts", "text", "input", "instruction", "question", "query", "problem", "sentence", "content")
TOKEN_IDS = ("prompt_token_ids", "input_ids", "token_ids", "tokens")
KEYS = ("id", "row_id", "uid", "uuid", "guid", "key", "prompt_id", "question_id", "idx", "index")

KEPT_LENGTH = 200  # characters; longer texts are not copied to every completion unless somebody asks for it
ALIKE = 0.8  # a second text column of this share of the longest one's length may be meant as well
NEW_TOKENS = 40
SHOWN = 32  # characters of an example


class Choice(NamedTuple):
    """The column that holds the prompts, the key of the job file that names it, and why it was chosen."""

    column: str
    key: str
    why: str


class Draft(NamedTuple):
    """A job file to be.

    Attributes:
        data: what the data set holds.
        prompt: its column.
        uses: what each column is used for, or why it is not.
        prompt_tokens: of the sample, before anything is cut.
        num_positions: of the model.
        too_long, empty, unusable: prompts of the sample.
        job: the checked job.
        text: the file.
    """

    data: Survey
    prompt: Choice
    uses: dict[str, str]
    prompt_tokens: Lengths
    num_positions: int
    too_long: int
    empty: int
    unusable: int
    job: Job
    text: str


class _Sampled(NamedTuple):
    """Tokens of the sampled prompts."""

    prompt_tokens: Lengths
    too_long: int
    empty: int
    unusable: int


def draft(path: str | Sequence[str], *, prompt_column: str | None = None, model: str = "demo") -> Draft:
    """The job file that suits a data set.

    Args:
        path: of the data, as `input.path` takes it.
        prompt_column: the column with the prompts; guessed if None.
        model: hub id, local folder, or `demo`.

    Raises:
        InputError: the data cannot be read, or it cannot be told which column holds prompts, or none is usable.
        ModelError: the model cannot be found or used.
    """
    data = survey(path)
    prompt = _named(data, prompt_column) if prompt_column is not None else _guessed(data)
    found = checkpoint.inspect(model)
    sampled = _sampled(data, prompt, found)
    keys = _keys(data, prompt)
    values = _values(data, prompt, found, sampled) | {"model": model}
    job, key = _checked(values, keys)
    uses = _uses(data, prompt, key, keys, job.input.keep_columns)
    text = _render(data, prompt, uses, found, sampled, job)
    return Draft(data, prompt, uses, *sampled[:1], found.num_positions, *sampled[1:], job, text)


def example(data: Survey, column: str) -> str:
    """The first value of a column, on one line; "" where none was read."""
    first = next((value for value in data.values.get(column, ()) if value not in (None, "")), "")
    text = re.sub(r"\s+", " ", str(first))
    return f"{text[: SHOWN - 1]}…" if len(text) > SHOWN else text


def _sources(data: Survey) -> dict[str, str]:
    """Columns that could hold prompts, with the key of the job file for each."""
    known = {column: type_ for column, type_ in data.types.items() if type_ is not None}
    texts = {column: "prompt_column" for column, type_ in known.items() if is_text(type_)}
    return texts | {column: "token_ids_column" for column, type_ in known.items() if is_token_ids(type_)}


def _named(data: Survey, column: str) -> Choice:
    sources = _sources(data)
    if column not in sources:
        fit = ", ".join(f"`{name}`" for name in sources)
        is_there = f"is {data.types[column] or 'not readable'}" if column in data.types else "is missing"
        raise InputError(f"column `{column}` (--prompt-column) {is_there}; these can hold prompts: {fit}.", "Name one.")
    return Choice(column, sources[column], "as named")


def _guessed(data: Survey) -> Choice:
    """The column with a usual name, else the one with the longest texts, else token ids. A key is no prompt."""
    sources = {column: key for column, key in _sources(data).items() if column.casefold() not in KEYS}
    texts = [column for column, key in sources.items() if key == "prompt_column"]
    if column := _usual(texts, PROMPTS):
        return Choice(column, "prompt_column", "by its name")
    if not texts:
        if column := _usual(sources, TOKEN_IDS) or (next(iter(sources)) if len(sources) == 1 else None):
            return Choice(column, "token_ids_column", "no texts, but lists of integers")
        raise _unclear(data, list(sources or data.types), "do not look like prompts by their names and types")
    first, *others = sorted(texts, key=lambda column: _characters(data, column), reverse=True)
    if not others:
        return Choice(first, "prompt_column", "the only text")
    size, next_size = _characters(data, first), _characters(data, others[0])
    if next_size >= ALIKE * size:
        raise _unclear(data, [first, others[0]], "hold texts of about the same length")
    return Choice(first, "prompt_column", f"longest texts: {size:,.0f} characters, `{others[0]}` {next_size:,.0f}")


def _unclear(data: Survey, columns: Sequence[str], why: str) -> InputError:
    path = data.path if isinstance(data.path, str) else data.path[0]
    names = " and ".join(f"`{column}`" for column in columns)
    return InputError(
        f"columns {names} of {path} {why}.", f"Say which one has the prompts: --prompt-column {columns[0]}."
    )


def _usual(columns: Sequence[str] | Mapping[str, str], names: Sequence[str]) -> str | None:
    by_name = {column.casefold(): column for column in columns}
    return next((by_name[name] for name in names if name in by_name), None)


def _characters(data: Survey, column: str) -> float:
    """Mean length of the texts in a column."""
    return sum(len(value) for value in data.values[column] if isinstance(value, str)) / data.num_sampled


def _keys(data: Survey, prompt: Choice) -> list[str]:
    """Columns that may name rows, the likeliest first: of a usual name, and different in every row of the sample."""
    fit = {
        column.casefold(): column
        for column, type_ in data.types.items()
        if type_ is not None and is_key(type_) and column != prompt.column
    }
    usual = [fit[name] for name in KEYS if name in fit]
    return [column for column in usual if len({*data.values[column]} - {None}) == data.num_sampled]


def _checked(values: dict[str, Any], keys: Sequence[str]) -> tuple[Job, str | None]:
    """The job and the column of its ids: the first key that is unique in all rows, or none."""
    for key in (*keys, None):
        kept = [column for column in values["input"]["keep_columns"] if column != key]
        job = parse_job(values | {"input": values["input"] | {"id_column": key, "keep_columns": kept}})
        try:
            make_plan(job)
        except InputError:
            if key is None:
                raise
        else:
            return job, key
    raise AssertionError("a job without ids has a plan, or its error")


def _sampled(data: Survey, prompt: Choice, model: Checkpoint) -> _Sampled:
    config = parse_job(_minimal(data, prompt))
    given = prompt_values(config.input, {prompt.column: data.values[prompt.column]}, lambda row: f"row {row}")
    limits = rules(config, model.num_positions, model.vocab_size, model.bos_token_id)
    prompts = tokenised(given, Tokenizer(model.folder, model.vocab_size), limits)
    found = lengths(prompts)
    if found is None:
        first = next(each.token_ids.message for each in prompts if isinstance(each.token_ids, RowError))
        raise InputError(
            f"column `{prompt.column}` has no prompt that can be used: {first}.", "Name another with --prompt-column."
        )
    too_long = [each for each in prompts if _num_tokens(each) > model.num_positions]
    empty = sum(each.token_ids == () for each in prompts)
    unusable = sum(isinstance(each.token_ids, RowError) for each in prompts)
    return _Sampled(found, len(too_long), empty, unusable)


def _num_tokens(prompt: Prompt) -> int:
    return 0 if isinstance(prompt.token_ids, RowError) else len(prompt.token_ids)


def _minimal(data: Survey, prompt: Choice) -> dict[str, Any]:
    return {
        "model": "demo",
        "input": {"path": data.path, prompt.key: prompt.column},
        "output": {"path": _free_folder(data.path)},
        "strategies": [{"name": "greedy", "type": "greedy", "max_new_tokens": NEW_TOKENS}],
    }


def _values(data: Survey, prompt: Choice, model: Checkpoint, sampled: _Sampled) -> dict[str, Any]:
    """The job, but for its model and ids."""
    minimal = _minimal(data, prompt)
    num_new = min(NEW_TOKENS, model.num_positions // 2)
    drawn = {"temperature": 0.8, "top_p": 0.95, "num_return_sequences": 2}
    return minimal | {
        "input": minimal["input"]
        | {
            "keep_columns": _kept(data, prompt),
            "on_long_prompt": "truncate_left" if sampled.too_long else "error",
            "on_empty_prompt": "error" if model.bos_token_id is None else "bos",
        },
        "strategies": [
            {"name": "greedy", "type": "greedy", "max_new_tokens": num_new},
            {"name": "nucleus", "type": "sampling", "max_new_tokens": num_new, **drawn},
        ],
        "run": {"max_error_rate": _error_rate(data, model, sampled)},
    }


def _error_rate(data: Survey, model: Checkpoint, sampled: _Sampled) -> float:
    """Share of errors that the job has to allow: what the sample has, and some more, in steps of 5 %."""
    errors = sampled.unusable + (sampled.empty if model.bos_token_id is None else 0)
    share = errors / data.num_sampled
    return 0.05 if share < 0.05 else min(1.0, math.floor(share * 20 + 2) / 20)


def _kept(data: Survey, prompt: Choice) -> list[str]:
    kept: list[str] = []
    for column, type_ in data.types.items():
        if column == prompt.column or type_ is None or not is_flat(type_) or _is_long(data, column, type_):
            continue
        if _is_free(kept, column):
            kept.append(column)
    return kept


def _is_long(data: Survey, column: str, type_: pa.DataType) -> bool:
    return is_text(type_) and _characters(data, column) > KEPT_LENGTH


def _is_free(kept: Sequence[str], column: str) -> bool:
    try:
        check_kept_names([*kept, column])
    except InputError:
        return False
    return True


def _uses(data: Survey, prompt: Choice, key: str | None, keys: Sequence[str], kept: Sequence[str]) -> dict[str, str]:
    """What becomes of each column."""
    uses = {}
    for column, type_ in data.types.items():
        if column == prompt.column:
            uses[column] = f"prompts · {prompt.why}"
        elif column == key:
            uses[column] = "id · no two alike"
        elif column in kept:
            uses[column] = "kept · no id: some are alike" if column in keys[:1] else "kept"
        elif type_ is None:
            uses[column] = "cannot be read"
        elif not is_flat(type_):
            uses[column] = "not kept · no plain value"
        elif _is_long(data, column, type_):
            uses[column] = f"not kept · {_characters(data, column):,.0f} characters"
        else:
            uses[column] = "not kept · name is taken"
    return uses


def _free_folder(path: str | Sequence[str]) -> str:
    """A folder under `out/` named after the data that is not there yet."""
    first = path if isinstance(path, str) else path[0]
    parts = [part for part in re.split(r"[/\\]+", first.split("://")[-1]) if part not in ("", ".", "..", "~")]
    plain = [part for part in parts if not re.search(r"[*?\[]", part)] or ["batch"]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", re.split(r"[.@?]", plain[-1])[0] or "batch").strip("-") or "batch"
    names = (f"out/{name}{suffix}" for suffix in ("", *(f"-{number}" for number in range(2, 10_000))))
    return next(name for name in names if not Path(name).exists())


def _render(data: Survey, prompt: Choice, uses: dict[str, str], model: Checkpoint, sampled: _Sampled, job: Job) -> str:
    templates = Environment(
        loader=PackageLoader("pipeline"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    templates.filters |= {"yaml": _yaml, "thousands": "{:,}".format}
    rows = [[column, str(type_ or "?"), example(data, column), uses[column]] for column, type_ in data.types.items()]
    facts = {
        "data": data,
        "prompt": prompt,
        "model": model,
        "sampled": sampled,
        "job": job,
        "strategies": [
            {"name": each.name, "type": each.type, **each.model_dump(exclude_unset=True)} for each in job.strategies
        ],
        "columns": _lined_up([["column", "type", "example", "use"], *rows]),
    }
    return _with_comments_below_each_other(templates.get_template("job.yaml.j2").render(facts))


def _yaml(value: Any) -> str:
    """A value as YAML on one line."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.width = 1_000_000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # it has no type of its own
    yaml.dump([list(value) if isinstance(value, tuple) else value], stream)
    return stream.getvalue().strip()[1:-1]


def _lined_up(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, without what a comment cannot hold."""
    cells = [["".join(c if c.isprintable() else "�" for c in cell) for cell in row] for row in rows]
    widths = [max(cell_len(row[index]) for row in cells) for index in range(len(cells[0]))]
    return [
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _with_comments_below_each_other(text: str) -> str:
    """The text with the comments at the ends of neighbouring lines, marked by `  ## `, in one column."""
    lines = [line.split("  ## ", 1) for line in text.split("\n")]
    widths = [len(line[0]) if len(line) == 2 else 0 for line in lines]
    width = max(width for width in widths if width <= 48)
    return "\n".join(f"{line[0]:<{width}}  # {line[1]}" if len(line) == 2 else line[0] for line in lines)
