"""The text of a job file as plain values, and where each value was written.

YAML 1.2 as ruamel.yaml reads it: `no` is a string, `1e-3` a number, and a key given twice an error. A `Source` finds
the place and the source line of any key; what the keys mean is not known here.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from pipeline.errors import ConfigError

KeyPath = tuple[str | int, ...]

SHOWN = 120  # characters of a source line
START = "Write one with `batchgen init DATA`."


@dataclass(frozen=True)
class Spot:
    """A place to show and its source line with a caret; `line` sorts, and is infinite for what is in no file."""

    where: str = ""
    snippet: str = ""
    line: float = math.inf


@dataclass(frozen=True)
class Problem:
    """One thing wrong: what it is (key, rule, value), where, and what to do about it."""

    what: str
    way_out: str
    spot: Spot = Spot()

    def __str__(self) -> str:
        where = f" --> {self.spot.where}" if self.spot.where else ""
        return "\n".join(line for line in (f"error: {self.what}", where, self.spot.snippet, self.way_out) if line)


def config_error(problems: Sequence[Problem]) -> ConfigError:
    """All problems in one error, in the order of the file."""
    told = [str(problem) for problem in sorted(problems, key=lambda problem: problem.spot.line)]
    count = "1 error" if len(told) == 1 else f"{len(told)} errors"
    # Keys and values are the file's: no escape sequence of theirs may reach a terminal.
    shown = "".join(c if _is_visible(c) or c in "\n\t" else ascii(c)[1:-1] for c in "\n\n".join(told))
    return ConfigError(f"{shown}\n", f"{count}. Nothing was started.")  # each has told its own way out


@dataclass(frozen=True)
class Source:
    """Where values came from: the nodes of a file, the overrides on top of it, or (all empty) Python."""

    name: str = ""
    text: str = ""
    root: Node | None = None
    overrides: tuple[tuple[KeyPath, str], ...] = ()

    def spot(self, path: KeyPath, *, of_key: bool = False) -> Spot:
        """Where the value at `path` was written, or its key; else what made it, or the closest thing around it."""
        for keys, override in reversed(self.overrides):
            if path[: len(keys)] == keys:
                return Spot(override)
        if not path:
            return Spot(self.name, line=0)
        if found := _node_at(self.root, path):
            key, value = found
            is_empty = value.start_mark.index == value.end_mark.index
            return self.spot_of(key if of_key or is_empty else value)
        made_by = (Spot(override) for keys, override in reversed(self.overrides) if keys[: len(path)] == path)
        return next(made_by, None) or self.spot(path[:-1])

    def spot_of(self, node: Node) -> Spot:
        """The first line of a node, all of the node that is on it marked."""
        start, end = node.start_mark, node.end_mark
        return self.spot_at(start.line, start.column, end.column if end.line == start.line else None)

    def spot_at(self, line: int, start: int, end: int | None) -> Spot:
        """Columns `start` to `end` of a line, all counted from 0; to the end of the line if `end` is None."""
        lines = self.text.splitlines()
        snippet = _snippet(lines[line], line + 1, start, end) if line < len(lines) else ""
        return Spot(f"{self.name}:{line + 1}:{start + 1}", snippet, line)


def read(path: Path) -> str:
    """The text of a job file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        problem = Problem(f"there is no file {path}", way_out=START)
    except IsADirectoryError:
        files = ", ".join(f"`{file.name}`" for file in sorted(path.glob("*.y*ml")))
        problem = Problem(f"{path} is a folder, not a job file", way_out=f"Give one of {files}." if files else START)
    except UnicodeDecodeError as error:
        what = f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at {error.start}"
        problem = Problem(what, way_out="Give a job file, which is YAML; the prompts go under `input.path`.")
    except OSError as error:
        problem = Problem(f"cannot read {path}: {error.strerror}", way_out="Check its permissions.")
    raise config_error([problem])


def parse(text: str, name: str) -> tuple[Any, Source]:
    """The value of a YAML document, None if there is none, and its source."""
    yaml = loader()
    source = Source(name, text)
    try:
        root = yaml.compose(text)
        source = Source(name, text, root)
        twice = [_given_twice(first, second, source) for first, second in _repeated_keys(root, set())]
        if not twice:
            return (yaml.constructor.construct_document(root) if root else None), source
        problems = twice
    except (YAMLError, RecursionError) as error:
        problems = [_not_yaml(error, source)]
    raise config_error(problems)


def loader() -> YAML:
    """A reader of YAML 1.2 that builds plain values only."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


class _Constructor(SafeConstructor):
    """Plain values; a date stays the text that it is, as in YAML 1.2's core schema."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError) as error:  # `!!int x`, or a number of 5,000 digits
            raise ConstructorError(problem=f"cannot read this value: {error}", problem_mark=node.start_mark) from None


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def _repeated_keys(node: Node | None, seen: set[int]) -> Iterator[tuple[Node, Node]]:
    if node is None or id(node) in seen:
        return  # an alias may lead back to where it is
    seen.add(id(node))
    if isinstance(node, MappingNode):
        first: dict[tuple[Any, Any], Node] = {}
        for key, value in node.value:
            if isinstance(key, ScalarNode) and first.setdefault((key.tag, key.value), key) is not key:
                yield first[key.tag, key.value], key
            yield from _repeated_keys(value, seen)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, seen)


def _given_twice(first: Node, second: Node, source: Source) -> Problem:
    way_out = f"Keep one of them; the other is in line {first.start_mark.line + 1}."
    return Problem(f"the key `{second.value}` is given twice", way_out, source.spot_of(second))


def _not_yaml(error: YAMLError | RecursionError, source: Source) -> Problem:
    match error:
        case MarkedYAMLError(problem_mark=mark) if mark is not None:
            spot = source.spot_at(mark.line, mark.column, mark.column + 1)
            what = f"{error.context}, {error.problem}" if error.context else str(error.problem)
        case ReaderError(position=position, character=int(character)):
            lines = f"{source.text[:position]}?".splitlines()
            spot = source.spot_at(len(lines) - 1, len(lines[-1]) - 1, len(lines[-1]))
            what = f"the character U+{character:04X} is not allowed"
        case _:
            spot, what = Spot(source.name, line=0), str(error)
    return Problem(
        f"not valid YAML: {what}", "Indent with spaces, and put text with special characters in quotes.", spot
    )


def _node_at(root: Node | None, path: Iterable[str | int]) -> tuple[Node, Node] | None:
    """The key and the value at `path`; an item of a list is its own key."""
    found = (root, root) if root else None
    for key in path:
        found = _child(found[1], key) if found else None
    return found


def _child(node: Node, key: str | int) -> tuple[Node, Node] | None:
    if isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key]
    if not isinstance(node, MappingNode):
        return None
    own = (pair for pair in node.value if pair[0].value == str(key))
    merged = (_child(base, key) for base in _merged(node))
    return next(own, None) or next((pair for pair in merged if pair), None)


def _merged(node: MappingNode) -> Iterator[Node]:
    """The mappings that `<<` names; its own keys come before theirs, and theirs in this order."""
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            yield from value.value if isinstance(value, SequenceNode) else [value]


def _snippet(text: str, number: int, start: int, end: int | None) -> str:
    """The line with carets under a part of it; of a long line what is around that part."""
    text = "".join(c if _is_visible(c) or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text.rstrip())
    first = max(0, start - SHOWN // 2) if len(text) > SHOWN else 0
    shown = text[first : first + SHOWN]
    pad = "".join("\t" if char == "\t" else " " * _cells(char) for char in text[first:start])
    carets = "^" * max(1, sum(_cells(char) for char in shown[start - first : None if end is None else end - first]))
    return f"{number} | {shown}\n{' ' * len(str(number))} | {pad}{carets}"


def _is_visible(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _cells(char: str) -> int:
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
