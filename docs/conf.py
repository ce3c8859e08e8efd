"""Sphinx: the site that `make docs` builds of the pages here, and of the reference that is made of the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pipeline
from docs import generate_reference


def setup(app: Any) -> None:
    """Write the pages that are made of the code, and let links to other folders reach them."""
    generate_reference.write(Path(__file__).parent / "reference")
    app.connect("source-read", _link_benchmarks)


def _link_benchmarks(app: Any, name: str, source: list[str]) -> None:
    source[0] = source[0].replace("(../benchmarks/README.md", "(reference/benchmarks.md")


project = "batchgen"
version = release = pipeline.__version__
copyright = "the batchgen authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # output in blocks of commands is no language
default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
python_display_short_literal_types = True
add_module_names = False
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = "batchgen"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d4f91", "color-brand-content": "#1d4f91"},
    "dark_css_variables": {"color-brand-primary": "#8ab8f0", "color-brand-content": "#8ab8f0"},
}
