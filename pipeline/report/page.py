"""A page as one HTML document: template, style and script put together under a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.terminal import visible

STYLE = ("style.css",)
SCRIPT = ("data.js", "text.js", "state.js", "card.js", "completion.js", "prompts.js", "main.js")


def render(name: str, content: dict[str, Any]) -> str:
    """The document `report` or `compare`; `content` is what its template names.

    Each has what all pages share, then a style and a script of its own.
    """
    style, script = _joined((*STYLE, f"{name}.css")), _joined((*SCRIPT, f"{name}.js"))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("pipeline.report", "assets"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    return environment.get_template(f"{name}.html.j2").render(content, style=style, script=script, policy=policy)


def _joined(names: tuple[str, ...]) -> str:
    folder = files("pipeline.report").joinpath("assets")
    return "\n" + "\n".join(folder.joinpath(name).read_text("utf-8") for name in names)


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
