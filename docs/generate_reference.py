"""The reference pages of the site, written from the code at each build: commands, job file, columns, errors, Python.

The tables of keys stand in strategies.md too, whose test makes them anew.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

import pipeline
from pipeline import errors, schema
from pipeline.cli import main
from pipeline.cli_help import SECTIONS, Command
from pipeline.errors import BatchgenError
from pipeline.jobfile_schema import in_words, json_schema, strategy_types
from pipeline.records import ROW_ERRORS
from pipeline.strategies import Processed

ROOT = Path(__file__).parent.parent


def write(folder: Path) -> None:
    """Write every page; those that say what they said are left alone, so that Sphinx need not read them again."""
    folder.mkdir(exist_ok=True)
    pages = {
        "commands": commands,
        "job-file": job_file,
        "columns": columns,
        "errors": all_errors,
        "python": python,
        "benchmarks": benchmarks,
    }
    for name, make in pages.items():
        path, text = folder / f"{name}.md", make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def commands() -> str:
    """Every command with its examples and options, from click."""
    listed = [each for each in main.commands.values() if isinstance(each, Command)]
    parts = [
        "# Commands",
        "Every command has `--help`. Those that show something take `--json`: one document, with exact values. "
        "[Exit codes](errors.md#exit-codes) are the same for all.",
        *(
            part
            for section in SECTIONS
            for part in _section(section, [each for each in listed if each.section == section])
        ),
    ]
    return page(parts)


def _section(section: str, listed: Sequence[Command]) -> Iterator[str]:
    """Its commands, listed and then each by itself."""
    yield f"## {section}"
    yield table(("command", ""), [(f"[`{each.name}`](#{each.name})", _paragraphs(each)[0]) for each in listed])
    for each in listed:
        yield from _command(each)


def _command(command: Command) -> Iterator[str]:
    """Its name, what it does, examples, arguments and options."""
    first, *rest = _paragraphs(command)
    yield f"### {command.name}"
    yield first
    context = click.Context(command, info_name=f"batchgen {command.name}")
    yield fenced("text", " ".join(["batchgen", str(command.name), *command.collect_usage_pieces(context)]))
    yield fenced("console", "\n".join(line if line.startswith("#") else f"$ {line}" for line in command.examples))
    yield from map(_linked, rest)
    options = [each for each in command.params if isinstance(each, click.Option)]
    if options:
        yield table(("option", "default", ""), [_option(each, context) for each in options])


def _paragraphs(command: Command) -> list[str]:
    return inspect.cleandoc(command.help or "").split("\n\n")


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in option.opts)
    value = "" if option.is_flag else f" {option.make_metavar(context).removesuffix(' RANGE')}"
    default = "must be given" if option.required else f"`{option.default}`" if option.show_default else ""
    return names + value, default, option.help or ""


def _linked(text: str) -> str:
    """A pointer to a page becomes a link to it."""
    return re.sub(r"docs/(\w+\.md)", r"[\1](../\1)", text)


def job_file() -> str:
    """Every key of the job file, from the JSON Schema."""
    keys = json_schema()["properties"]
    kinds = strategy_types()
    types = [
        (f"[`{name}`](../strategies.md#{name})", kind["description"].split("\n\n")[0]) for name, kind in kinds.items()
    ]
    shared = kinds["greedy"]["properties"]
    model = keys["model"]["anyOf"][1]["properties"]
    parts = [
        "# Job file",
        "A YAML file, version 1.2. Unknown keys, values of another type and combinations that cannot be honoured are "
        "refused before anything starts. `--set KEY=VALUE` overrides any key, as `--set input.path=other.parquet` and "
        "`--set strategies.nucleus.top_p=0.9`. `batchgen schema > job.schema.json` writes the rules for editors.",
        *("## model", "A name, or a mapping:", keys_table(model)),
        *("## input", keys_table(keys["input"]["properties"])),
        *("## output", keys_table(keys["output"]["properties"])),
        *("## strategies", keys["strategies"]["description"], table(("type", ""), types)),
        f"Each has a `name`, which stands in the output: {in_words(shared['name'])}. A `grid` holds lists of values "
        "for other keys, and each combination is a strategy of its own. The keys that one type has are on the page of "
        "[strategies](../strategies.md). These are of all types but `score`; [combinations](../combinations.md) says "
        "what goes with what:",
        keys_table({key: shared[key] for key in Processed.model_fields if key != "name"}),
        *("## strategy_columns", keys["strategy_columns"]["description"]),
        *("## seed", keys_table({"seed": keys["seed"]})),
        *("## run", keys_table(keys["run"]["properties"])),
    ]
    return page(parts)


def keys_table(rules: dict[str, dict[str, Any]]) -> str:
    """What each key must be, its default and what it does."""
    rows = [(f"`{key}`", in_words(rule), _default(rule), rule["description"]) for key, rule in rules.items()]
    return table(("key", "value", "default", ""), rows)


def _default(rule: dict[str, Any]) -> str:
    """What leaving the key out means."""
    if "default" not in rule:
        return "must be set"
    return "off" if rule["default"] in (None, []) else f"`{json.dumps(rule['default'])}`"


def columns() -> str:
    """Every column of a part, from its schema."""
    fields = schema.output_schema(pa.schema([]))
    rows = [
        (f"`{field.name}`", f"`{field.type}`", "yes" if field.nullable else "never", schema.MEANINGS[field.name])
        for field in fields
    ]
    parts = [
        "# Output columns",
        "One row per (input row, strategy, sample), sorted by (row_index, strategy in job order, sample_index). Lists "
        "of a row are parallel: entry `i` belongs to token `i`. After these come the columns of `input.keep_columns`. "
        "[Reading a run](../reading.md) has queries.",
        table(("column", "type", "null", ""), rows),
    ]
    return page(parts)


def all_errors() -> str:
    """Exit codes, exceptions and the types of error rows."""
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, BatchgenError)]
    raised = [
        (
            f"`{each.__name__}`",
            ", ".join(f"`{base.__name__}`" for base in each.__bases__),
            str(each.exit_code),
            _says(each),
        )
        for each in classes
    ]
    parts = [
        "# Errors and exit codes",
        "## Exit codes",
        table(("code", ""), [(f"`{code}`", meaning) for code, meaning in errors.EXIT_CODES.items()]),
        "## Exceptions",
        "A command prints the message and ends with the code; Python raises. All are in `pipeline.errors`.",
        table(("exception", "is a", "code", ""), raised),
        "## Error rows",
        "A bad prompt is a row with `status` `error` and one of these in `error_type`; its neighbours are untouched.",
        table(("error_type", ""), [(f"`{name}`", meaning) for name, meaning in ROW_ERRORS.items()]),
    ]
    return page(parts)


def _says(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").splitlines()[0]


def python() -> str:
    """Every name of the Python API, by autodoc."""
    parts = [
        "# Python",
        "`from pipeline import ...`: these names are the API, all others may change.",
        *(fenced("{eval-rst}", _autodoc(name)) for name in pipeline.__all__ if name != "__version__"),
    ]
    return page(parts)


def _autodoc(name: str) -> str:
    found = getattr(pipeline, name)
    lines = [f".. auto{'class' if inspect.isclass(found) else 'function'}:: pipeline.{name}"]
    if inspect.isclass(found) and found.__module__ != "pipeline.api":  # a job has the keys of the job file
        lines.append("   :members:")
    return "\n".join(lines)


def benchmarks() -> str:
    """The page of benchmarks/, its links as from here."""
    return (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").replace("(../docs/", "(../")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells may hold Markdown."""
    lines = (
        [" ".join(cell.split()).replace("|", "\\|") for cell in cells] for cells in (head, ["---"] * len(head), *rows)
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fenced(language: str, text: str) -> str:
    """A Markdown block."""
    return f"```{language}\n{text}\n```"


def page(parts: Sequence[str]) -> str:
    """A Markdown page."""
    return "\n\n".join(parts) + "\n"
