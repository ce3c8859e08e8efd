"""Every error of the project says what to do: found at each place that makes one, in the source."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import errors
from pipeline.errors import BatchgenError, InUseError, StorageError

ROOT = Path(__file__).parent.parent
CLASSES = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
VERBS = {
    *("Add", "Ask", "Cast", "Change", "Check", "Choose", "Compare", "Connect", "Copy", "Decompress", "Finish", "Free"),
    *("Get", "Give", "Have", "Indent", "Install", "Keep", "Leave", "Let", "Look", "Lower", "Make", "Mend", "Mount"),
    *("Name", "Override", "Point", "Put", "Quote", "Raise", "Remove", "Rename", "Round", "Run", "Save", "Say", "Score"),
    *("See", "Set", "Shorten", "Start", "Store", "Take", "Try", "Use", "Wait", "Write"),
}
MAKERS = dict.fromkeys(CLASSES, 1) | {"Problem": 1, "broken_rule": 1, "UnfitError": 2, "_OverrideError": 1}
PROOFS = ("pipeline/proofs/", "pipeline/rescore.py")  # their Problem is one of a folder that is verified
APART = {("ConfigError", "pipeline/jobfile_source.py")}  # counts problems, each of which has a way out
SUGGESTIONS = ("It must be ", "Did you mean ")


def makers() -> Iterator[Any]:
    """Every call that makes an error, or a problem of a job file: its module, and its way out."""
    for path in sorted(path for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*.py")):
        module = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            if name not in MAKERS or (name, module) in APART or (name == "Problem" and module.startswith(PROOFS)):
                continue
            assert isinstance(node, ast.Call)
            named = [keyword.value for keyword in node.keywords if keyword.arg == "way_out"]
            yield pytest.param(module, (named or node.args[MAKERS[name] :])[0], id=f"{module}:{node.lineno} {name}")


def texts(value: ast.expr, module: str) -> Iterator[str]:
    """What a way out may be, up to its first value; of a name or a call, what the module or the one it is from says."""
    tree = ast.parse((ROOT / module).read_text())
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=[first, *_]):
            yield from texts(first, module)
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts(body, module)
            yield from texts(orelse, module)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=other), attr=name)):
            other = f"pipeline/{other}.py"
            for node in ast.walk(ast.parse((ROOT / other).read_text())):
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    for inner in ast.walk(node):
                        if isinstance(inner, ast.Return) and inner.value:
                            yield from texts(inner.value, other)
        case ast.Name(id=name):
            for node in ast.walk(tree):
                match node:
                    case ast.Assign(targets=[ast.Name(id=target)], value=given) if target == name:
                        yield from texts(given, module)
                    case ast.Assign(targets=[ast.Tuple(elts=elts)], value=ast.Tuple(elts=given)):
                        for each, one in zip(elts, given, strict=True):
                            if isinstance(each, ast.Name) and each.id == name:
                                yield from texts(one, module)
                    case ast.ImportFrom(module=str(other), names=names) if name in {each.name for each in names}:
                        yield from texts(value, f"{other.replace('.', '/')}.py")


@pytest.mark.parametrize(("module", "value"), [*makers()])
def test_every_way_out_begins_with_what_to_do(module: str, value: ast.expr) -> None:
    if isinstance(value, ast.Attribute):  # handed on from an error that is here too
        assert value.attr == "way_out"
        return
    found = [*texts(value, module)]
    assert found
    for text in found:
        assert text.startswith(SUGGESTIONS) or text.split()[0].rstrip(",:") in VERBS, text


def test_an_error_without_a_way_out_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="way_out"):
        StorageError("the disk is full.")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_an_error_comes_whole_out_of_another_process(kind: str) -> None:
    error: BatchgenError = getattr(errors, kind)("a is b.", "Make it c.")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), "a is b. Make it c.")
    assert (again.what, again.way_out) == ("a is b.", "Make it c.")
    assert again.args == ("a is b. Make it c.",)


def test_a_way_out_after_several_lines_has_its_own() -> None:
    assert str(InUseError("a\n  b", "Wait.")) == "a\n  b\nWait."
