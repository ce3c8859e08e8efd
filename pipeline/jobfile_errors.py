"""What pydantic finds wrong with a job, told so that it can be put right: key, rule, value, place, way out.

Every rule is worded from the JSON Schema, so it is the models' own. Here are only the ways out that a schema cannot
know: what transformers and other engines call a thing, and what to use for it.
"""

from __future__ import annotations

import json
import reprlib
from dataclasses import replace
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.jobfile_schema import Schema, child, either, has, in_words, options, schema_at, strategy_types, types
from pipeline.jobfile_source import KeyPath, Problem, Source

KEEP_ALL = "Leave it out to keep every token."
RECORDED = "Leave it out: `output.top_k` says how many alternatives are recorded."
NO_DIVERSE_BEAMS = "Leave it out: diverse beam search is not there yet."
USE_SAMPLING = "Use `type: sampling`, with the filter as a key of it."

INSTEAD_OF_KEY = {
    "batch_size": "Leave it out: the batch is made to fit the memory.",
    "bos_token_id": "Leave it out: `input.on_empty_prompt` says what becomes of an empty prompt.",
    "diversity_penalty": NO_DIVERSE_BEAMS,
    "eos_token_id": "Leave it out: the model's own ends a completion. Add others with `stop_token_ids`, or set "
    "`ignore_eos: true`.",
    "frequency_penalty": "Use `repetition_penalty`.",
    "max_tokens": "Use `max_new_tokens`.",
    "min_length": "Use `min_new_tokens`, which does not count the prompt.",
    "n": "Use `num_return_sequences`.",
    "num_beam_groups": NO_DIVERSE_BEAMS,
    "output_logits": RECORDED,
    "output_scores": RECORDED,
    "pad_token_id": "Leave it out: padding is a mask here, and no token stands for it.",
    "presence_penalty": "Use `repetition_penalty`.",
    "return_dict_in_generate": RECORDED,
    "stop": "Use `stop_strings`.",
    "suppress_tokens": "Use `bad_words_ids`, with a list for each token.",
    "use_cache": "Leave it out: there is always a cache.",
}
INSTEAD_OF_VALUE: dict[tuple[str | int, str | float], str] = {
    ("max_new_tokens", 0): "For probabilities and no text use `type: next_token`.",
    ("num_beams", 1): "For a single beam use `type: greedy`.",
    ("temperature", 0): "For the most probable token use `type: greedy`.",
    ("type", "multinomial"): USE_SAMPLING,
    ("type", "nucleus"): USE_SAMPLING,
    ("type", "top_k"): USE_SAMPLING,
    ("type", "top_p"): USE_SAMPLING,
}
LEFT_OUT = {
    "max_length": "Set it, which counts the prompt, or `max_new_tokens`.",
    "max_new_tokens": "Set it, or `max_length`, which counts the prompt.",
    "min_p": KEEP_ALL,
    "top_k": KEEP_ALL,
    "top_p": KEEP_ALL,
}

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 100


def problems(error: ValidationError, job: Any, source: Source) -> list[Problem]:
    """One problem for each key that pydantic complains of; `job` is the value that it was given."""
    found: dict[KeyPath, ErrorDetails] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_path(detail, job), detail)
    # A list of which no item is right is also said to be too short, and not to be a string: those are echoes.
    echoes = {path for path in found if any(other[: len(path)] == path != other for other in found)}
    # And a key that is misspelt is also said to be missing.
    misspelt = {_meant(path, job) for path, detail in found.items() if detail["type"] == "extra_forbidden"}
    echoes |= {path for path, detail in found.items() if detail["type"] == "missing" and path in misspelt}
    return [_problem(path, found[path], job, source) for path in found if path not in echoes]


def _path(detail: ErrorDetails, job: Any) -> KeyPath:
    """The keys that lead to the error, without pydantic's names for the members of unions."""
    loc = detail["loc"]
    if loc[:1] == ("strategies",):
        loc = loc[:2] + loc[3:]  # the third is the type of the strategy
    path: KeyPath = ()
    value = job
    for key in loc:
        if has(value, key):
            path, value = (*path, key), child(value, key)
    match detail["type"]:
        case "missing":
            return (*path, loc[-1])
        case "union_tag_not_found" | "union_tag_invalid":
            return (*path, "type")
        case "broken_rule":
            return (*path, *detail["ctx"]["at"])
        case _:
            return path


def _problem(path: KeyPath, detail: ErrorDetails, job: Any, source: Source) -> Problem:
    match detail["type"]:
        case "missing" | "union_tag_not_found":
            what, way_out = f"{_name(path)} is missing", f"It must be {in_words(schema_at(path, job))}."
            spot = source.spot(path[:-1])
        case "extra_forbidden" | "invalid_key":
            what, way_out = _unknown_key(path, job)
            spot = source.spot(path, of_key=True)
        case "broken_rule":
            what, way_out = detail["ctx"]["message"], ""
            spot = source.spot(path)
        case _:
            what, way_out = _bad_value(path, job)
            spot = source.spot(path)
    places = [spot.where, _strategy(path, job)]
    return Problem(what, replace(spot, where=", ".join(place for place in places if place)), way_out)


def _bad_value(path: KeyPath, job: Any) -> tuple[str, str]:
    value, rules = _value_at(path, job), schema_at(path, job)
    if isinstance(value, str) and "enum" in rules:
        rules = {**rules, "enum": sorted(rules["enum"], key=lambda choice: -_likeness(value, choice))}
    what = f"{_name(path)} must be {in_words(rules)}, but is {_repr.repr(value)}"
    return what, _instead_of_value(path, value, rules)


def _instead_of_value(path: KeyPath, value: Any, rules: Schema) -> str:
    if not path:
        return ""
    key = path[-1]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_scalar = is_number or isinstance(value, str)
    if is_scalar and (key, value) in INSTEAD_OF_VALUE:
        return INSTEAD_OF_VALUE[key, value]
    if isinstance(value, str) and (near := get_close_matches(value, _choices(rules), 1, cutoff=0.5)):
        return f"Did you mean `{near[0]}`?"
    if isinstance(value, str) and types(rules) & {"integer", "number"} and _reads_as_number(value):
        return "Write it without quotes."
    if is_number and types(rules) == {"string"} and "enum" not in rules:
        return f"Write it in quotes: '{value}'."
    if is_scalar and types(rules) == {"array"}:
        return f"Write it as a list: [{value!r}]."
    if path[:1] == ("strategies",) and key in LEFT_OUT:
        return LEFT_OUT[str(key)]
    return _default(path, rules)


def _default(path: KeyPath, rules: Schema) -> str:
    """What leaving the key out would mean; what the key is for, where it cannot be left out."""
    match rules.get("default", ...):
        case None if path[0] == "strategies":
            return "Leave it out to turn it off."
        case bool() | int() | float() | str() as default:
            shown = default if isinstance(default, str) else json.dumps(default)
            return f"Leave it out for the default, `{shown}`."
        case list() | dict():
            return "Leave it out for the default."
        case _:
            return str(rules.get("description", ""))


def _unknown_key(path: KeyPath, job: Any) -> tuple[str, str]:
    what, key, inside = f"unknown key {_name(path)}", str(path[-1]), path[:-1]
    if _is_strategy(inside):
        kind = child(_value_at(inside, job), "type")
        if fitting := _types_with(key):
            return f"`{key}` does not apply to `type: {kind}`", f"Use {fitting}, or leave it out."
        if key == "do_sample":
            return what, _instead_of_do_sample(kind, wanted=bool(_value_at(path, job)))
    if key in INSTEAD_OF_KEY:
        return what, INSTEAD_OF_KEY[key]
    if meant := _meant(path, job):
        return what, f"Did you mean `{meant[-1]}`?"
    if _is_strategy(inside) and (near := get_close_matches(key, _keys_of_strategies(), 1)):
        return what, f"Did you mean `{near[0]}`? It needs {_types_with(near[0])}."
    if homes := _homes(key):
        return what, f"It belongs {homes}."
    return what, f"Known here: {', '.join(f'`{known}`' for known in _keys_at(inside, job))}."


def _instead_of_do_sample(kind: str, *, wanted: bool) -> str:
    if wanted is (kind == "sampling"):
        return f"Leave it out: `type: {kind}` says it."
    if wanted and kind == "beam_search":
        return "Leave it out: beam sampling is not there yet."
    return f"Use `type: {'sampling' if wanted else 'greedy'}`."


def _meant(path: KeyPath, job: Any) -> KeyPath:
    """The path with its last key spelt as the known one that is like it, () if none is."""
    key = str(path[-1])
    near = get_close_matches(key, _keys_at(path[:-1], job), 1)
    return (*path[:-1], near[0]) if near and key not in INSTEAD_OF_KEY else ()


def _homes(key: str) -> str:
    """The parts of a job file that know the key."""
    sections = [section for section in _keys_at((), None) if key in _keys_at((section,), None)]
    top = ["at the top level"] if key in _keys_at((), None) else []
    strategy = ["in a strategy"] if key in _keys_of_strategies() else []
    return either([*top, *(f"in `{name}`" for name in sections), *strategy])


def _keys_of_strategies() -> list[str]:
    return [key for rules in strategy_types().values() for key in rules["properties"]]


def _types_with(key: str) -> str:
    return either([f"`type: {kind}`" for kind, rules in strategy_types().items() if key in rules["properties"]])


def _keys_at(path: KeyPath, job: Any) -> list[str]:
    return [key for option in options(schema_at(path, job)) for key in option.get("properties", {})]


def _choices(rules: Schema) -> list[str]:
    return [choice for option in options(rules) for choice in option.get("enum", [option.get("const", "")])]


def _value_at(path: KeyPath, job: Any) -> Any:
    for key in path:
        job = child(job, key)
    return job


def _is_strategy(path: KeyPath) -> bool:
    return len(path) == 2 and path[0] == "strategies"


def _strategy(path: KeyPath, job: Any) -> str:
    """The strategy that a path leads into, as `strategies[1] (nucleus)`; empty for any other path."""
    if len(path) < 2 or path[0] != "strategies":
        return ""
    name = child(_value_at(path[:2], job), "name")
    return f"strategies[{path[1]}]" + (f" ({name})" if isinstance(name, str) else "")


def _name(path: KeyPath) -> str:
    """A path as people write it, from its strategy on: `run.replicas`, `stop_token_ids[1]`."""
    if not path:
        return "the job file"
    start = 2 if len(path) > 2 and path[0] == "strategies" else 0
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path[start:]).removeprefix(".")
    return f"`{name}`"


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
