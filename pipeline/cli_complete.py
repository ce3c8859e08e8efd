"""What the shell completes beside commands and options: output folders and the strategies in them.

It runs at every press of a key, so it reads no more than `_plan.json` of a local folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

PLAN = "_plan.json"  # as `manifest` has it, which is slow to import


class RunFolder(StringParamType):
    """A folder or a URL, taken as it is."""

    name = "folder"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Whatever folders the shell finds."""
        return [CompletionItem(incomplete, type="dir")]


def strategy_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Strategies of the first run whose folder is on the line already; of a list with commas the last one."""
    words = [ctx.params.get("folder"), *(ctx.params.get("folders") or ()), *ctx.args]  # an open option ends the parsing
    names = next((found for word in words if word and (found := _names(word))), [])
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


def _names(folder: str) -> list[str]:
    try:
        plan = json.loads(Path(os.path.expanduser(folder), PLAN).read_bytes())
        return [strategy["name"] for strategy in plan["job"]["strategies"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []  # not a run, or not yet


run_folder = click.argument("folder", metavar="OUT", type=RunFolder())
only_strategy = click.option("--strategy", metavar="NAME", shell_complete=strategy_names, help="Only this strategy.")
into_folder = click.option(
    "--output", metavar="DIR", type=RunFolder(), help="Output folder or URL, in place of output.path."
)
