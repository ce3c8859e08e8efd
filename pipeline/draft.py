"""A job file for a data set: what its columns are used for, how long its prompts are, and the checked job.

What is guessed is said in the comments, with the numbers it was guessed by, and can be changed there. The file is
checked as `batchgen plan` checks it before anybody sees it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline import checkpoint, draft_file
from pipeline.checkpoint import Checkpoint
from pipeline.config import Job
from pipeline.dataset import check_kept_names
from pipeline.draft_columns import Choice, keys_of, prompt_of
from pipeline.errors import InputError
from pipeline.forecast import Lengths, lengths
from pipeline.input_columns import is_text
from pipeline.input_rows import prompt_values
from pipeline.jobfile import parse_job
from pipeline.plan import make_plan
from pipeline.prompts import Prompt, rules, tokenised
from pipeline.records import RowError
from pipeline.survey import Survey, is_flat, survey
from pipeline.tokenizer import Tokenizer

KEPT_LENGTH = 200  # characters; longer texts are not copied to every completion unless somebody asks for it
NEW_TOKENS = 40
SHOWN = 32  # characters of an example


class Sampled(NamedTuple):
    """The sampled prompts as tokens, before anything is cut.

    Attributes:
        prompt_tokens: of those that are usable.
        too_long, empty, unusable: how many are.
    """

    prompt_tokens: Lengths
    too_long: int
    empty: int
    unusable: int


class Draft(NamedTuple):
    """A job file to be.

    Attributes:
        data: what the data set holds.
        prompt: its column.
        uses: what each column is used for, or why it is not.
        sampled: prompts.
        num_positions: of the model.
        job: the checked job.
        text: the file.
    """

    data: Survey
    prompt: Choice
    uses: dict[str, str]
    sampled: Sampled
    num_positions: int
    job: Job
    text: str


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
    prompt = prompt_of(data, prompt_column)
    found = checkpoint.inspect(model)
    sampled = _sampled(data, prompt, found)
    keys = keys_of(data, prompt)
    values = _values(data, prompt, found, sampled) | {"model": model}
    job, key = _checked(values, keys)
    uses = _uses(data, prompt, key, keys, job.input.keep_columns)
    text = _render(data, prompt, uses, found, sampled, job)
    return Draft(data, prompt, uses, sampled, found.num_positions, job, text)


def example(data: Survey, column: str) -> str:
    """The first value of a column, on one line; "" where none was read."""
    first = next((value for value in data.values.get(column, ()) if value not in (None, "")), "")
    text = re.sub(r"\s+", " ", str(first))
    return f"{text[: SHOWN - 1]}…" if len(text) > SHOWN else text


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


def _sampled(data: Survey, prompt: Choice, model: Checkpoint) -> Sampled:
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
    return Sampled(found, len(too_long), empty, unusable)


def _num_tokens(prompt: Prompt) -> int:
    return 0 if isinstance(prompt.token_ids, RowError) else len(prompt.token_ids)


def _minimal(data: Survey, prompt: Choice) -> dict[str, Any]:
    return {
        "model": "demo",
        "input": {"path": data.path, prompt.key: prompt.column},
        "output": {"path": _free_folder(data.path)},
        "strategies": [{"name": "greedy", "type": "greedy", "max_new_tokens": NEW_TOKENS}],
    }


def _values(data: Survey, prompt: Choice, model: Checkpoint, sampled: Sampled) -> dict[str, Any]:
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


def _error_rate(data: Survey, model: Checkpoint, sampled: Sampled) -> float:
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
    return is_text(type_) and data.mean_length(column) > KEPT_LENGTH


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
            uses[column] = f"not kept · {data.mean_length(column):,.0f} characters"
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


def _render(data: Survey, prompt: Choice, uses: dict[str, str], model: Checkpoint, sampled: Sampled, job: Job) -> str:
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
        "columns": draft_file.lined_up([["column", "type", "example", "use"], *rows]),
    }
    return draft_file.render(facts)
