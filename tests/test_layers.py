"""Imports go only downward, and heavy libraries are loaded only where the design allows."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "pipeline"

# From the top down; a module may import modules of lower layers, and of its own where listed in `SIBLINGS`.
LAYERS = [
    {"cli"},
    {"cli_compare", "cli_look", "cli_read", "cli_start", "cli_watch"},
    {"cli_complete", "cli_help", "cli_shared"},
    {"report", "plan_screen", "draft_screen"},
    {"compare_screen", "next_screen", "status_screen", "steps_screen", "tokenise_screen", "verify_screen"},
    {"painting"},
    {"api"},
    {"cluster", "preview", "generator", "notebook"},
    {"tokenise"},
    {"long_form", "card", "compare", "in_process", "steps"},
    {"statistics"},
    {"results"},
    {"head", "display"},
    {"readers"},
    {"newest"},
    {"draft"},
    {"draft_columns", "draft_file"},
    {"survey"},
    {"verify", "replay", "retry", "status", "forecast"},
    {"calibration"},
    {"dispatch", "rescore", "retries"},
    {"health", "reopen", "proofs"},
    {"access", "ledger", "lifeline", "placement", "recorded"},
    {"job", "leftovers"},
    {"manifest", "lease", "terminal"},
    {"plan"},
    {"tally", "shards"},
    {"shard"},
    {"prompts", "overrides", "next_tokens"},
    {"resolve"},
    {"dataset", "tokenizer", "checkpoint", "engine", "writer", "metrics", "storage", "jobfile"},
    {"config", "stops", "words"},
    {"records", "schema", "grid", "reasons", "submitted", "new_file", "text_templates"},
    {"strategies", "object_store"},
    {"errors", "faults", "pace", "json_logs"},
]


def module_names() -> list[str]:
    paths = [path.relative_to(ROOT.parent) for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    return sorted(".".join(path.with_suffix("").parts) for path in paths)


def room(module: str) -> str:
    """The part a module belongs to: `pipeline.engine.model` -> engine, helpers of a part -> the part."""
    name = module.split(".")[1] if "." in module else module
    for part in ("input_", "text_files", "arrow_files", "hub_dataset"):
        if name.startswith(part):
            return "dataset"
    for part in ("jobfile", "storage", "cluster"):
        if name.startswith(part):
            return part
    return name


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def imported(module: str) -> set[str]:
    """Modules of the project that a module names in an import at its top level."""
    tree = ast.parse((ROOT.parent / Path(*module.split("."))).with_suffix(".py").read_text())
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pipeline":
            if node.module == "pipeline":
                found |= {f"pipeline.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
            else:
                found.add(node.module)
    return found


@pytest.mark.parametrize("module", module_names())
def test_imports_go_downward_only(module: str) -> None:
    for other in imported(module):
        if room(other) != room(module):
            assert layer(room(other)) > layer(room(module)), f"{module} imports {other}, which is not below it"


HEAVY = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    print(module, *[name for name in ("torch", "ray", "datasets", "pandas") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        ([module for module in module_names() if room(module) not in ("engine", "cluster")], []),
        (["pipeline.engine"], ["torch"]),
        (["pipeline.cluster"], ["ray"]),
    ],
    ids=["most", "engine", "cluster"],
)
def test_heavy_libraries_are_loaded_only_where_they_belong(modules: list[str], allowed: list[str]) -> None:
    """What none of many modules loads, one after another, none of them loads by itself."""
    command = [sys.executable, "-c", HEAVY, *modules]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split() for line in loaded] == [[module, *allowed] for module in modules]


def test_the_command_line_starts_without_heavy_libraries() -> None:
    code = (
        "import sys, pipeline.cli; print(*[n for n in ('torch', 'ray', 'pyarrow', 'transformers') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_the_engine_runs_without_ray_datasets_and_pyarrow_datasets() -> None:
    code = (
        "import sys, pipeline.engine; print(*[n for n in ('ray', 'datasets', 'pyarrow.dataset') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
