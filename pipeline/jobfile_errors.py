"""What pydantic finds wrong with a job, told so that it can be put right: key, rule, value, place, way out.

Every rule is worded from the JSON Schema, so it is the models' own. Here are only the ways out that a schema cannot
know: what transformers and other engines call a thing, and what to use for it.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher, get_close_matches
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config import NOT_FROM_COLUMNS
from pipeline.grid import Expanded, expand
from pipeline.jobfile_schema import Schema, child, either, has, in_words, options, schema_at, strategy_types, types
from pipeline.jobfile_source import START, KeyPath, Problem, Source
from pipeline.reasons import why_not
from pipeline.strategies import SAMPLERS

KEEP_ALL = "Leave it out to keep every token."
RECORDED = "Leave it out: `output.top_k` says how many alternatives are recorded."
USE_SAMPLING = "Use `type: sampling`, with the filter as a key of it."
FASTER = "Leave it out: assistance changes only how fast a text comes, and there is none."
NO_FUNCTIONS = "but a job file holds no functions."

INSTEAD_OF_KEY = {
    "allowed_token_ids": "Use `allowed_words_ids`, with a list for each token.",
    "assistant_model": FASTER,
    "batch_size": "Leave it out: the batch is made to fit the memory.",
    "best_of": "Use `num_return_sequences`: all are kept, with their probabilities.",
    "bos_token_id": "Leave it out: `input.on_empty_prompt` says what becomes of an empty prompt.",
    "constraints": "Use `force_words` of `type: beam_search`.",
    "encoder_no_repeat_ngram_size": "Use `no_repeat_ngram_size`, which minds the prompt too.",
    "eos_token_id": "Leave it out: the model's own ends a completion. Add others with `stop_token_ids`, or set "
    "`ignore_eos: true`.",
    "logit_bias": "Use `sequence_bias`, as [{token_ids: [5], bias: -1.0}].",
    "logits_processor": f"Use the penalties and bans of a strategy, {NO_FUNCTIONS}",
    "logprobs": RECORDED,
    "low_memory": "Leave it out: the batch is made to fit the memory.",
    "max_time": "Use `max_new_tokens`: a job gives the same tokens on a slow machine.",
    "max_tokens": "Use `max_new_tokens`.",
    "min_length": "Use `min_new_tokens`, which does not count the prompt.",
    "min_tokens": "Use `min_new_tokens`.",
    "n": "Use `num_return_sequences`.",
    "num_assistant_tokens": FASTER,
    "output_logits": RECORDED,
    "output_scores": RECORDED,
    "pad_token_id": "Leave it out: padding is a mask here, and no token stands for it.",
    "prefix_allowed_tokens_fn": f"Use `allowed_words`, {NO_FUNCTIONS}",
    "prompt_lookup_num_tokens": FASTER,
    "remove_invalid_values": "Leave it out: a row whose scores are not finite becomes an error row.",
    "renormalize_logits": "Leave it out: what is drawn from always sums to 1.",
    "return_dict_in_generate": RECORDED,
    "stop": "Use `stop_strings`.",
    "stopping_criteria": f"Use `stop_strings` or `stop_token_ids`, {NO_FUNCTIONS}",
    "token_healing": "Leave it out: a prompt is fed as it is tokenised.",
    "top_a": "Use `min_p`, which measures a token against the best one too.",
    "typical": "Use `typical_p`.",
    "use_cache": "Leave it out: there is always a cache.",
    "watermarking_config": "Leave it out: completions are not watermarked.",
}
INSTEAD_OF_VALUE: dict[tuple[str | int, str | float], str] = {
    ("max_new_tokens", 0): "For probabilities and no text use `type: next_token`.",
    ("num_beam_groups", 1): "Leave it out: a single group is plain beam search.",
    ("num_beams", 1): "For a single beam use `type: greedy`.",
    ("penalty_alpha", 0): "For the most probable token use `type: greedy`.",
    ("temperature", 0): "For the most probable token use `type: greedy`.",
    ("top_k", 1): "For the most probable token use `type: greedy`.",
    ("type", "beam_sample"): "Use `type: beam_search` with `do_sample: true`.",
    ("type", "constrained_beam_search"): "Use `type: beam_search` with `force_words`.",
    ("type", "diverse_beam_search"): "Use `type: beam_search` with `num_beam_groups` and `diversity_penalty`.",
    ("type", "group_beam_search"): "Use `type: beam_search` with `num_beam_groups` and `diversity_penalty`.",
    ("type", "loglikelihood"): "Use `type: score`.",
    ("type", "multinomial"): USE_SAMPLING,
    ("type", "nucleus"): USE_SAMPLING,
    ("type", "perplexity"): "Use `type: score`.",
    ("type", "top_k"): USE_SAMPLING,
    ("type", "top_p"): USE_SAMPLING,
    ("type", "typical"): USE_SAMPLING,
}
LEFT_OUT = {
    **dict.fromkeys(SAMPLERS[1:], KEEP_ALL),  # all but the temperature
    "add_bos": "Leave it out to score the whole prompt.",
    "max_length": "Set it, which counts the prompt, or `max_new_tokens`.",
    "max_new_tokens": "Set it, or `max_length`, which counts the prompt.",
    "negative_prompt": "Leave it out to move away from the last token of the prompt alone.",
    "target_column": "Leave it out to score the prompt.",
}
FORMS: dict[str | int, str] = {
    "allowed_words_ids": "Write it as a list for each word: [[5], [6, 7]].",
    "bad_words_ids": "Write it as a list for each word: [[5], [6, 7]].",
    "begin_suppress_tokens": "Write it as ids of the model's tokens: [5, 6].",
    "dola_layers": "Write it as low, high, or a list of layers: [0, 2].",
    "exponential_decay_length_penalty": "Write it as a number of tokens and a factor: [15, 1.1].",
    "force_words": "Write it as words and lists of alternatives: [castle, [road, street]].",
    "force_words_ids": "Write it as a list for each word, or one of alternatives: [[5, 6], [[7], [8, 9]]].",
    "negative_prompt_ids": "Write it as ids of the model's tokens: [5, 6].",
    "sequence_bias": "Write it as [{text: ' castle', bias: 2.0}, {token_ids: [5, 6], bias: -2.0}].",
    "stop_token_ids": "Write it as ids of the model's tokens: [5, 6].",
    "suppress_tokens": "Write it as ids of the model's tokens: [5, 6].",
}

MOST_NAMED = 3
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 100


class _Fault(NamedTuple):
    """What pydantic complains of at some path of the file, and the strategy in question, as people find it."""

    detail: ErrorDetails
    strategy: str


def problems(error: ValidationError, job: Any, source: Source) -> list[Problem]:
    """One problem for each key that pydantic complains of; `job` is the value that it was given."""
    given = child(job, "strategies")
    origins = expand(given) if isinstance(given, list | tuple) else []
    checked = {**job, "strategies": [origin.values for origin in origins]} if origins else job
    found: dict[KeyPath, _Fault] = {}
    for detail in error.errors(include_url=False):
        path = _path(detail, checked)
        written = _to_choice(_written(path, detail, origins), job)
        is_rule = detail["type"] == "broken_rule"  # which one combination may break
        named = _value_at(path[:2], checked) if is_rule else _value_at(written[:2], job)
        found.setdefault(written, _Fault(detail, _strategy(written, child(named, "name"))))
    # A list of which no item is right is also said to be too short, and not to be a string: those are echoes.
    echoes = {path for path in found if any(other[: len(path)] == path != other for other in found)}
    # And a key that is misspelt is also said to be missing.
    unknown = [path for path, (detail, _) in found.items() if detail["type"] == "extra_forbidden"]
    misspelt = {tuple(key for key in _meant(path, job) if key != "grid") for path in unknown}
    echoes |= {path for path, (detail, _) in found.items() if detail["type"] == "missing" and path in misspelt}
    return [_problem(path, found[path], job, source) for path in found if path not in echoes]


def in_strategy(error: ValidationError, values: dict[str, Any]) -> tuple[str, str]:
    """The key that pydantic complains of first in the values of a single strategy, and what is wrong."""
    detail = error.errors(include_url=False)[0]
    job = {"strategies": [values]}
    path = _to_choice(_path({**detail, "loc": ("strategies", 0, "", *detail["loc"])}, job), job)
    what = detail["ctx"]["message"] if detail["type"] == "broken_rule" else _bad_value(path, job)[0]
    return ".".join(map(str, path[2:3])), what


def _written(path: KeyPath, detail: ErrorDetails, origins: Sequence[Expanded]) -> KeyPath:
    """Where the file has what is at `path` of the job with its grids expanded."""
    if len(path) < 2 or path[0] != "strategies":
        return path
    origin = origins[int(path[1])]
    start: KeyPath = ("strategies", origin.item)
    key, rest = path[2:3], path[3:]
    if not key or key[0] not in origin.picks:
        return start + key + rest
    is_key = detail["type"] in ("extra_forbidden", "invalid_key")
    return (*start, "grid", *key, *(() if is_key else (origin.picks[key[0]],)), *rest)


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


def _to_choice(path: KeyPath, job: Any) -> KeyPath:
    """The path, cut where a list may hold two kinds of items: which of them was meant is not known below."""
    for end in range(3, len(path)):
        kinds = [types(option) for option in options(schema_at(path[:end], job))]
        if kinds.count({"array"}) > 1:
            return path[:end]
    return path


def _problem(path: KeyPath, fault: _Fault, job: Any, source: Source) -> Problem:
    match fault.detail["type"]:
        case "missing" | "union_tag_not_found":
            what, way_out = f"{_name(path)} is missing", f"It must be {in_words(schema_at(path, job))}."
            spot = source.spot(path[:-1])
        case "extra_forbidden" | "invalid_key":
            what, way_out = _unknown_key(path, job)
            spot = source.spot(path, of_key=True)
        case "broken_rule":
            what, way_out = fault.detail["ctx"]["message"], fault.detail["ctx"]["way_out"]
            spot = source.spot(path)
        case "not_from_column":
            what = f"{_name(path)} cannot be {_value_at(path, job)!r:.60}: {fault.detail['ctx']['why']}"
            way_out = f"Use it with {_types_with(str(path[-1]))}, or leave it out."
            if path[-1] in NOT_FROM_COLUMNS:
                way_out = "Set it in the strategies."
            spot = source.spot(path)
        case _ if fault.detail["loc"][-1:] == ("[key]",):
            what, way_out = f"a key must be a string, but is {path[-1]!r:.60}", "Write it in quotes."
            spot = source.spot(path, of_key=True)
        case _:
            what, way_out = _bad_value(path, job)
            spot = source.spot(path)
    places = [spot.where, fault.strategy]
    return Problem(what, way_out, replace(spot, where=", ".join(place for place in places if place)))


def _bad_value(path: KeyPath, job: Any) -> tuple[str, str]:
    value, rules = _value_at(path, job), schema_at(path, job)
    if isinstance(value, str) and "enum" in rules:
        rules = {**rules, "enum": sorted(rules["enum"], key=lambda choice: -_likeness(value, choice))}
    what = f"{_name(path)} must be {in_words(rules)}, but is {_repr.repr(value)}"
    return what, _instead_of_value(path, value, rules)


def _instead_of_value(path: KeyPath, value: Any, rules: Schema) -> str:
    if not path:
        return START
    key = path[-2] if path[2:3] == ("grid",) and len(path) == 5 else path[-1]
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
    if form := next((FORMS[key] for key in path if key in FORMS), ""):
        return form
    if path[:1] == ("strategies",) and key in LEFT_OUT and "default" in rules:
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
    if _is_strategy(inside) and _types_with(key):
        kind = child(_value_at(inside[:2], job), "type")
        wanted = _value_at(path, job)
        return f"`{key}` does not apply to `type: {kind}`: {why_not(key, kind)}", _other_type(key, kind, wanted)
    if key in INSTEAD_OF_KEY:
        return what, INSTEAD_OF_KEY[key]
    if meant := _meant(path, job):
        return what, f"Did you mean `{meant[-1]}`?"
    if _is_strategy(inside) and (near := get_close_matches(key, _keys_of_strategies(), 1)):
        return what, f"Did you mean `{near[0]}`? It needs {_types_with(near[0])}."
    if homes := _homes(key):
        return what, f"It belongs {homes}."
    return what, f"Known here: {', '.join(f'`{known}`' for known in _keys_at(inside, job))}."


def _other_type(key: str, kind: str, wanted: Any) -> str:
    """What to do about a key that the type of a strategy does not have."""
    match key, kind, wanted:
        case "do_sample", "sampling", False:
            return "Use `type: greedy`."
        case "do_sample", _, False:
            return f"Leave it out: `type: {kind}` says it."
        case "do_sample", "sampling", _:
            return "Leave it out: `type: sampling` says it."
        case "do_sample", _, _:
            return "Use `type: sampling`, or leave it out."
        case "num_beams", "sampling", _:
            return "Use `type: beam_search` with `do_sample: true`, or leave it out."
        case _:
            return f"Use {_types_with(key)}, or leave it out."


def _meant(path: KeyPath, job: Any) -> KeyPath:
    """The path with its last key spelt as the known one that is like it, () if none is."""
    key = str(path[-1])
    near = get_close_matches(key, _keys_at(path[:-1], job), 1)
    return (*path[:-1], near[0]) if near and key not in INSTEAD_OF_KEY else ()


def _homes(key: str) -> str:
    """The parts of a job file that know the key, but for the one that maps keys to columns."""
    parts = [part for part in _keys_at((), None) if part != "strategy_columns"]
    sections = [part for part in parts if key in _keys_at((part,), None)]
    top = ["at the top level"] if key in _keys_at((), None) else []
    strategy = ["in a strategy"] if key in _keys_of_strategies() else []
    return either([*top, *(f"in `{name}`" for name in sections), *strategy])


def _keys_of_strategies() -> list[str]:
    return [key for rules in strategy_types().values() for key in rules["properties"]]


def _types_with(key: str) -> str:
    """The types that have a key; of those that draw the one that always does, of many none in particular."""
    kinds = (
        ["sampling"] if key in SAMPLERS else [k for k, rules in strategy_types().items() if key in rules["properties"]]
    )
    return "another type" if len(kinds) > MOST_NAMED else either([f"`type: {kind}`" for kind in kinds])


def _keys_at(path: KeyPath, job: Any) -> list[str]:
    return [key for option in options(schema_at(path, job)) for key in option.get("properties", {})]


def _choices(rules: Schema) -> list[str]:
    fixed = [option.get("enum") or ([option["const"]] if "const" in option else []) for option in options(rules)]
    return [choice for choices in fixed for choice in choices]


def _value_at(path: KeyPath, job: Any) -> Any:
    for key in path:
        job = child(job, key)
    return job


def _is_strategy(path: KeyPath) -> bool:
    """Whether the keys at `path` are those of a strategy."""
    return path[:1] == ("strategies",) and path[2:] in ((), ("grid",)) and len(path) > 1


def _strategy(path: KeyPath, name: Any) -> str:
    """The strategy that a path leads into, as `strategies[1] (nucleus)`; empty for any other path."""
    if len(path) < 2 or path[0] != "strategies":
        return ""
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
