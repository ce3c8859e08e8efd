"""A job file, or a dict of the same shape, into a checked `Job`.

    text -> values -> overrides -> pydantic -> Job

All that is wrong is told at once, in one `ConfigError`. Paths stay as written, relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.config import Job
from pipeline.jobfile_errors import problems
from pipeline.jobfile_schema import child, json_schema
from pipeline.jobfile_source import START, KeyPath, Problem, Source, Spot, config_error, loader, parse, read

__all__ = ["json_schema", "load_job", "parse_job"]


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """The job that a YAML 1.2 file describes, after overrides such as `strategies.0.top_p=0.9` or `run.replicas=2`.

    A strategy goes by its index or its name, a value is YAML, a missing key is made, and a later override wins.

    Raises:
        ConfigError: about everything that is wrong, each with its place and a way out.
    """
    values, source = parse(read(Path(path)), str(path))
    if not isinstance(values, dict):
        what = (
            f"{path} is empty" if values is None else f"{path} must hold keys, as `model: demo`, but is {values!r:.60}"
        )
        raise config_error([Problem(what, way_out=START)])
    return _job(*_overridden(values, source, overrides))


def parse_job(values: dict[str, Any]) -> Job:
    """The job that a dict describes, under the same rules as a file.

    Raises:
        ConfigError: about everything that is wrong.
    """
    return _job(values, Source())


def _job(values: dict[str, Any], source: Source) -> Job:
    try:
        return Job.model_validate(values)
    except ValidationError as error:
        found = problems(error, values, source)
    raise config_error(found)


def _overridden(values: dict[str, Any], source: Source, overrides: Sequence[str]) -> tuple[dict[str, Any], Source]:
    """The values with the overrides put in, and the source that knows of them."""
    placed: list[tuple[KeyPath, str]] = []
    refused = []
    for override in overrides:
        spot = Spot(f"--set {override}")
        try:
            path, value = _path_and_value(override, values)
        except _OverrideError as error:
            refused.append(Problem(error.what, error.way_out, spot))
        else:
            values = _put(values, path, value)
            placed.append((path, spot.where))
    if refused:
        raise config_error(refused)
    return values, replace(source, overrides=tuple(placed))


class _OverrideError(Exception):
    """Why an override cannot be put in."""

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(what)
        self.what, self.way_out = what, way_out


def _path_and_value(override: str, values: dict[str, Any]) -> tuple[KeyPath, Any]:
    key, equals, text = override.partition("=")
    if not equals:
        raise _OverrideError(f"an override needs a key and a value, but is {override!r}", "Write it as run.replicas=2.")
    path = _path(key.strip(), values)
    try:
        return path, loader().load(text)
    except (YAMLError, RecursionError) as error:
        why = error.problem if isinstance(error, MarkedYAMLError) else str(error).splitlines()[0]
        quoted = "Put text with special characters in quotes of its own: --set 'key=\"*.parquet\"'."
        raise _OverrideError(f"the value {text!r} is not valid YAML: {why}", quoted) from None


def _path(dotted: str, values: dict[str, Any]) -> KeyPath:
    """The keys and indices that a dotted key stands for, of which the last may be missing in the values."""
    path: KeyPath = ()
    value: Any = values
    rest = dotted
    while rest or not path:
        name = f"`{'.'.join(map(str, path))}`"
        key: str | int
        if isinstance(value, list):
            key, rest = _item(value, rest, name)
        elif isinstance(value, dict) or value is None or path == ("model",):
            key, _, rest = rest.partition(".")
        else:
            raise _OverrideError(f"{name} is {value!r}, so it has no `{rest}`", f"Override {name} itself.")
        if key == "":
            raise _OverrideError(f"the key {dotted!r} has an empty part", "Write it as run.replicas=2.")
        path, value = (*path, key), child(value, key)
    return path


def _item(items: list[Any], dotted: str, name: str) -> tuple[int, str]:
    """The index that a dotted key begins with, or that of the strategy it names, and the rest of the key."""
    head, _, rest = dotted.partition(".")
    if head.isascii() and head.isdecimal() and int(head) < len(items):
        return int(head), rest
    names = {child(item, "name"): index for index, item in enumerate(items) if isinstance(child(item, "name"), str)}
    named = [known for known in names if f"{dotted}.".startswith(f"{known}.")]
    if named:
        longest = max(named, key=len)
        return names[longest], dotted[len(longest) + 1 :]
    near = get_close_matches(head, names, 1)
    known = ", ".join(f"{index} (`{child(item, 'name')}`)" if names else str(index) for index, item in enumerate(items))
    way_out = f"Did you mean `{near[0]}`? " if near else ""
    raise _OverrideError(
        f"{name} has no item `{head}`", f"{way_out}There are {known}." if items else "Add one to the file."
    )


def _put(inside: Any, path: KeyPath, value: Any) -> Any:
    """A copy of what is at the start of `path` with `value` at its end."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    new = _put(child(inside, key), rest, value)
    match inside:
        case list():
            return [new if index == key else item for index, item in enumerate(inside)]
        case str():
            return {"name": inside, key: new}  # `model: NAME` is short for `model: {name: NAME}`
        case _:
            return {**(inside or {}), key: new}
