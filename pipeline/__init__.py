"""batchgen: prompts in as Parquet, completions out as Parquet, on Ray.

The names in `__all__` are the Python API; everything else may change. They are imported when they are first used, so
that `import pipeline`, and every module below, stays as light as it is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "BatchgenError",
    "Completions",
    "Engine",
    "Job",
    "Results",
    "__version__",
    "data_card",
    "explode",
    "export",
    "open_run",
    "push_to_hub",
    "run",
]

if TYPE_CHECKING:
    from pipeline.api import Job, run
    from pipeline.card import data_card, export, push_to_hub
    from pipeline.errors import BatchgenError
    from pipeline.generator import Completions, Engine
    from pipeline.long_form import explode
    from pipeline.results import Results, open_run

_HOMES = {
    "BatchgenError": "errors",
    "Completions": "generator",
    "Engine": "generator",
    "Job": "api",
    "Results": "results",
    "data_card": "card",
    "explode": "long_form",
    "export": "card",
    "open_run": "results",
    "push_to_hub": "card",
    "run": "api",
}


def __getattr__(name: str) -> Any:
    """A name of the API, from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
