"""The JSON Schema of the job file, and its rules in words: both taken from the pydantic models.

Draft 7, and a strategy as `if type = X then ...` where pydantic writes `oneOf` with a `discriminator`: editors know no
more, and only so can they name the key that is wrong. A rule about several keys together is not in the schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from pipeline.config import NOT_FROM_COLUMNS, Job
from pipeline.grid import NOT_VARIED
from pipeline.jobfile_examples import add_examples

Schema = dict[str, Any]

MOST_LISTED = 12


def json_schema() -> Schema:
    """JSON Schema draft 7 of the job file.

    Every property is described, with examples where it is no choice; no other is allowed, and nothing is referenced.
    """
    exported = Job.model_json_schema()
    schema: Schema = _plain(exported, exported["$defs"])
    model = schema["properties"]["model"]
    name = model["properties"]["name"]
    options = [{key: name[key] for key in ("type", "minLength")}, model]
    schema["properties"]["strategy_columns"] |= _columns(schema["properties"])
    schema["properties"]["model"] = {"description": f"{model['description']} {name['description']}", "anyOf": options}
    add_examples(schema["properties"])
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "batchgen job file", **schema}


def schema_at(path: Sequence[str | int], job: Any) -> Schema:
    """The rules for the value at `path` of a job; `job` says which strategy is which. Empty where there are none."""
    rules, value = _job_schema(), job
    for key in path:
        rules, value = _inside(rules, key), child(value, key)
        if "allOf" in rules and isinstance(kind := child(value, "type"), str):
            rules = strategy_types().get(kind, rules)
    return rules


def strategy_types() -> dict[str, Schema]:
    """Each type of strategy and its rules."""
    kinds = _job_schema()["properties"]["strategies"]["items"]["allOf"]
    return {kind["then"]["properties"]["type"]["const"]: kind["then"] for kind in kinds}


def options(rules: Schema) -> list[Schema]:
    """The rules, then those of which a value must keep one."""
    return [rules, *rules.get("anyOf", [])]


def types(rules: Schema) -> set[str]:
    """The JSON types that a value may have, but for null."""
    named = [option.get("type", []) for option in options(rules)]
    return {kind for kinds in named for kind in ([kinds] if isinstance(kinds, str) else kinds)} - {"null"}


def in_words(rules: Schema) -> str:
    """What a value must be: "a number in (0, 1]", "`auto` or an integer of at least 1"."""
    choices = [words for option in rules.get("anyOf", [rules]) for words in _choices_in_words(option)]
    are_lists = sum("each item" in words for words in choices) > 1
    return ", or ".join(choices) if are_lists else either(choices)


def either(names: Sequence[str]) -> str:
    """The names as "a, b or c"."""
    return " or ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def child(value: Any, key: str | int) -> Any:
    """What a value holds under a key or an index; None if nothing."""
    return value[key] if has(value, key) else None


def has(value: Any, key: str | int) -> bool:
    """Whether a value holds anything under a key or an index."""
    if isinstance(value, list | tuple):
        return isinstance(key, int) and key < len(value)
    return isinstance(value, dict) and key in value


@cache
def _job_schema() -> Schema:
    return json_schema()


def _plain(schema: Any, definitions: Schema) -> Any:
    """The schema as draft 7: what a reference names in its place, `type: [x, "null"]` for optional, no titles."""
    match schema:
        case {"$ref": str(name), **beside}:
            return _plain({**definitions[name.removeprefix("#/$defs/")], **beside}, definitions)
        case {"discriminator": _, "oneOf": kinds}:
            return _by_type([_plain(kind, definitions) for kind in kinds])
        case {"anyOf": [{"type": str(kind), **limits}, {"type": "null"}], **beside}:
            return {"type": [kind, "null"], **limits, **_plain(beside, definitions)}
        case {"properties": properties, **beside}:
            inside = {key: _plain(value, definitions) for key, value in properties.items()}
            return {**_plain(beside, definitions), "properties": inside}
        case dict():
            return {key: _plain(value, definitions) for key, value in schema.items() if key not in ("title", "$defs")}
        case list():
            return [_plain(item, definitions) for item in schema]
        case _:
            return schema


def _by_type(kinds: list[Schema]) -> Schema:
    """A strategy: the rules that its `type` asks for."""
    for kind in kinds:
        kind["properties"]["type"]["description"] = kind["description"]
        kind["properties"]["grid"] = _grid(kind["properties"])
        needed = [key for key in kind["required"] if key not in NOT_VARIED]  # it may be in the grid instead
        kind["required"] = [key for key in kind["required"] if key in NOT_VARIED]
        kind |= {"allOf": [{"if": _varied(key), "else": {"required": [key]}} for key in needed]} if needed else {}
    names = [kind["properties"]["type"]["const"] for kind in kinds]
    chosen = [
        {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": kind}
        for name, kind in zip(names, kinds, strict=True)
    ]
    by_all = {
        "name": {"description": kinds[0]["properties"]["name"]["description"]},
        "type": {
            "description": "Way of decoding, which decides what other keys there are.",
            "type": "string",
            "enum": names,
        },
    }
    return {"type": "object", "required": ["name", "type"], "properties": by_all, "allOf": chosen}


def _columns(job: Schema) -> Schema:
    """What `strategy_columns` may hold: for each key that a column can set the name of a column."""
    kinds = [kind["then"]["properties"] for kind in job["strategies"]["items"]["allOf"]]
    keys = dict.fromkeys(key for kind in kinds for key in kind if key not in (*NOT_FROM_COLUMNS, "grid"))
    properties = {
        key: {"description": f"Column that sets `{key}` for its row.", "type": "string", "minLength": 1}
        for key in (*keys, "seed")
    }
    return {"additionalProperties": False, "properties": properties}


def _grid(properties: Schema) -> Schema:
    """What a `grid` may hold: for each key of its strategy a list of values."""
    lists = {
        key: {"description": rules["description"], "type": "array", "minItems": 1, "items": rules}
        for key, rules in properties.items()
        if key not in NOT_VARIED
    }
    description = "Values for keys: each combination is a strategy of its own, named after its values."
    shape = {"type": ["object", "null"], "minProperties": 1, "additionalProperties": False}
    return {"description": description, **shape, "properties": lists}


def _varied(key: str) -> Schema:
    return {"properties": {"grid": {"required": [key]}}, "required": ["grid"]}


def _inside(rules: Schema, key: str | int) -> Schema:
    for option in options(rules):
        found = option.get("items") if isinstance(key, int) else option.get("properties", {}).get(key)
        if found is not None:
            return dict(found)
    return {}


def _choices_in_words(rules: Schema) -> list[str]:
    if choices := rules.get("enum") or ([rules["const"]] if "const" in rules else []):
        return [f"`{choice}`" for choice in choices]
    match [*types(rules)]:
        case ["boolean"]:
            return ["`true`", "`false`"]
        case ["integer"]:
            return [f"an integer{_limits(rules)}"]
        case ["number"]:
            return [f"a number{_limits(rules)}"]
        case ["string"]:
            any_text = "a non-empty string" if rules.get("minLength") else "a string"
            return [rules.get("patternErrorMessage", any_text)]
        case ["array"]:
            return [f"{_size(rules)}, each item {in_words(rules['items'])}"]
        case _:
            return [_mapping(rules)]


def _size(rules: Schema) -> str:
    fewest, most = rules.get("minItems", 0), rules.get("maxItems")
    return f"a list of {most}" if fewest == most else "a non-empty list" if fewest else "a list"


def _mapping(rules: Schema) -> str:
    needed = [f"`{key}`" for key in rules.get("required", [])]
    others = [f"`{key}`" for key in rules.get("properties", {}) if f"`{key}`" not in needed]
    more = [f"and {len(others) - MOST_LISTED} more"] if len(others) > MOST_LISTED else []
    optional = [f"(optional: {', '.join([*others[:MOST_LISTED], *more])})"] if others else []
    return " ".join(["a mapping", *([f"with {', '.join(needed)}"] if needed else []), *optional])


def _limits(rules: Schema) -> str:
    low, high = (rules.get(end, rules.get(f"exclusive{end.capitalize()}")) for end in ("minimum", "maximum"))
    if low is None:
        return ""
    if high is None:
        return f" of at least {low}" if "minimum" in rules else f" above {low}"
    if "integer" in types(rules):
        return f" from {low} to {high}"
    return f" in {'[' if 'minimum' in rules else '('}{low}, {high}{']' if 'maximum' in rules else ')'}"
