"""Templates of plain text, not HTML, from `templates/`. A name that no value is given for is an error."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def text_templates() -> Environment:
    """Where they are read from."""
    return Environment(
        loader=PackageLoader("pipeline"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
