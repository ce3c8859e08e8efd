"""Columns of the input that set keys of strategies for their row: which columns do, and the strategy that a row gets.

A value is held to the rules of the job file and of the model, as if the row had a strategy of its own; a bad one makes
an error row for the strategies that have the key, and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from pipeline.checkpoint import Checkpoint
from pipeline.config import Job
from pipeline.input_columns import Use
from pipeline.jobfile_errors import in_strategy
from pipeline.jobfile_schema import Schema, in_words, schema_at, strategy_types, types
from pipeline.records import RowError
from pipeline.resolve import UnfitError, resolve
from pipeline.strategies import Strategy
from pipeline.tokenizer import Tokenizer

REPLACED: dict[str, dict[str, Any]] = {
    "max_new_tokens": {"max_length": None},
    "max_length": {"max_new_tokens": None},
    "negative_prompt": {"negative_prompt_ids": ()},
    "negative_prompt_ids": {"negative_prompt": None},
}


def uses(job: Job) -> list[Use]:
    """The columns that set keys, with the types that fit each key."""
    return [_use(key, column, _rules(key)) for key, column in job.strategy_columns.items()]


def overridden(
    strategy: Strategy, row: Mapping[str, Any], columns: Mapping[str, str], tokenizer: Tokenizer, model: Checkpoint
) -> Strategy | RowError | None:
    """The strategy with the values of a row, words turned into ids; None if the row has none for it.

    Of two keys that cannot stand together, as `max_new_tokens` and `max_length`, the one of the row replaces the other.

    Args:
        strategy: as in the job.
        row: column -> value; null leaves the strategy's own.
        columns: key -> column.
        tokenizer: of the model.
        model: what the strategy must fit.
    """
    keys = [key for key in columns if key in type(strategy).model_fields and row[columns[key]] is not None]
    if not keys:
        return None
    values = strategy.model_dump()
    for key in keys:
        values |= REPLACED.get(key, {})
    values |= {key: row[columns[key]] for key in keys}
    try:
        return resolve(type(strategy).model_validate(values), tokenizer, model)
    except ValidationError as error:
        key, what = in_strategy(error, values)
    except UnfitError as error:
        key, what = error.key, error.what
    return _bad_override([columns[key]] if key in keys else [columns[key] for key in keys], what)


def seed_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> int | RowError | None:
    """The seed that a row brings, None if it brings none."""
    seed = row[columns["seed"]] if "seed" in columns else None
    if seed is None or (type(seed) is int and 0 <= seed < 2**63):
        return seed
    return _bad_override([columns["seed"]], f"`seed` must be {in_words(_rules('seed'))}, but is {seed!r:.60}")


def _bad_override(columns: list[str], what: str) -> RowError:
    named = ", ".join(f"`{column}`" for column in columns)
    return RowError("bad_override", f"{what} (column{'s' if len(columns) > 1 else ''} {named})")


def _rules(key: str) -> Schema:
    if key == "seed":
        return schema_at(("seed",), {})
    return next(kind["properties"][key] for kind in strategy_types().values() if key in kind["properties"])


def _use(key: str, column: str, rules: Schema) -> Use:
    rule = f"`{key}` must be {in_words(rules)}"
    return Use(column, f"strategy_columns.{key}", rule, lambda type_: _fits(type_, rules))


def _fits(type_: pa.DataType, rules: Schema) -> bool:
    """Whether values of an Arrow type can be what the rules ask for."""
    kinds = types(rules)
    if pa.types.is_list(type_):
        lists = [option["items"] for option in rules.get("anyOf", [rules]) if "items" in option]
        return any(_fits(type_.value_type, items) for items in lists)
    if pa.types.is_struct(type_):
        known = rules.get("properties", {})
        return all(field.name in known and _fits(field.type, known[field.name]) for field in type_)
    return bool(
        ("string" in kinds and pa.types.is_string(type_))
        or ("boolean" in kinds and pa.types.is_boolean(type_))
        or (kinds & {"integer", "number"} and pa.types.is_integer(type_))
        or ("number" in kinds and pa.types.is_floating(type_))
    )
