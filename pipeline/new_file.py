"""Files that a command writes where the user says: never over one that is there, unless told to."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import OutputError


def check_free(path: Path, *, may_replace: bool) -> None:
    """Refuse a file that is there.

    Raises:
        OutputError: it is, and may not be replaced.
    """
    if path.exists() and not may_replace:
        raise OutputError(f"{path} is there already.", "Give another name with -o, or --force to replace it.")


def write(path: Path, text: str) -> None:
    """Write the text, in a new folder where there is none.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.", "Give another name with -o.") from error
