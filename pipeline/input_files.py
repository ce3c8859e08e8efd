"""From `input.path` to the list of files it means, in the order their rows count.

Files of a glob, a folder or a list are sorted by path; a `datasets` folder or hub set keeps its own order. What was
asked for is never left out without a word: a named file of an unknown kind is refused, a folder gives its known kinds.
Knows nothing about what is inside a file.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from pipeline import hub_dataset, input_objects
from pipeline.errors import InputError, StorageError
from pipeline.object_store import without_secrets

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
}
TEXT_FORMATS = ("jsonl", "csv")
Stamp = tuple[int, int, int]

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".br", ".zip")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class InputFile:
    """One file of the input, as it was when the job was planned.

    Attributes:
        path: absolute.
        name: path relative to the deepest folder common to all files, with `/`; part of derived row ids.
        format: `parquet`, `arrow`, `arrow_stream`, `jsonl` or `csv`.
        sha256: of the bytes of the file, in hex.
        stamp: of the file, as `stamp_of` gave it before its bytes were read.
        seek_index: packed int64 that let a range be read without the rows before it. Text: (byte offset, line) of
            every 1024th record. Arrow file: rows up to the end of each batch. Empty for the other formats.
    """

    path: str
    name: str
    format: str
    num_rows: int
    size_bytes: int
    sha256: str
    stamp: Stamp
    seek_index: bytes = b""


class FoundFile(NamedTuple):
    """A file to read; `key` sorts it among the others."""

    key: tuple[str, int]
    path: str
    format: str


def find(path: str | Sequence[str]) -> list[FoundFile]:
    """Files that `input.path` means, in order, each once.

    Raises:
        InputError: nothing is there, a kind of file is unknown, or kinds are mixed.
    """
    entries = [path] if isinstance(path, str) else list(path)
    try:
        found = sorted(file for entry in entries for file in _resolve(entry))
    except StorageError:  # of an object store
        raise
    except OSError as error:
        raise InputError(f"`input.path` cannot be listed: {error}.", "Check its permissions.") from error
    unique: dict[str, FoundFile] = {}
    for file in found:
        first = next(iter(unique.values()), file)
        if file.format != first.format:
            raise InputError(
                f"`input.path` mixes formats: {first.path} is {first.format}, {file.path} is {file.format}.",
                "Point it at files of one format.",
            )
        unique.setdefault(file.path, file)
    return list(unique.values())


def relative_names(paths: Sequence[str]) -> list[str]:
    """Each path relative to the deepest folder common to all, with `/`."""
    if len({input_objects.is_url(path) for path in paths}) > 1:
        raise InputError("`input.path` mixes files on a disk with objects in a store.", "Point it at one of both.")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [PurePath(os.path.relpath(path, root)).as_posix() for path in paths]
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InputError(
                f"the file name {name!r} is not valid Unicode, so it cannot be part of a row id.", "Rename it."
            )
    return names


def _resolve(entry: str) -> Iterator[FoundFile]:
    if entry.startswith("hf://"):
        for position, cached in enumerate(hub_dataset.fetch(hub_dataset.parse(entry))):
            yield FoundFile((entry, position), cached, "arrow")
        return
    if input_objects.is_url(entry):
        yield from _objects(entry)
        return
    if _URI.match(entry):
        raise InputError(
            f"`input.path` is {without_secrets(entry)}, but only local paths, s3://, gs://, az:// and hf:// can be "
            "read.",
            "Mount or copy the data, and give its path.",
        )
    path = os.path.abspath(os.path.expanduser(entry))
    if os.path.isdir(path):
        files = list(_walk(path, frozenset()))
        if not files:
            raise InputError(
                f"the folder {entry} (input.path) holds no {_known()} file; {_holds(path)}.", "Give another."
            )
        yield from files
    elif os.path.exists(path):
        yield _named(path)
    else:
        yield from _matches(entry)


def _objects(entry: str) -> Iterator[FoundFile]:
    """Objects of a URL; of a folder those of known formats, but for hidden and `_`-prefixed names."""
    urls, are_named = input_objects.find(entry)
    if any(url.endswith("/dataset_info.json") for url in urls):
        raise InputError(f"{entry} (input.path) is a `datasets` folder.", "Copy it to a disk that all machines share.")
    if not are_named:
        urls = [url for url in urls if _is_data(url.removeprefix(f"{entry.rstrip('/')}/"))]
    if not urls:
        raise InputError(f"the folder {entry} (input.path) holds no {_known()} object.", "Give the folder that does.")
    yield from map(_of_known_format, urls)


def _matches(entry: str) -> Iterator[FoundFile]:
    """Files matching a glob. A folder named like a file (`x.parquet/`, as Spark writes) counts as its files."""
    if not glob.has_magic(entry):
        raise InputError(
            f"`input.path` is {entry}, but there is no such file or folder from {os.getcwd()}.", "Check the name."
        )
    matches = glob.glob(os.path.expanduser(entry), recursive=True)
    folders = [path for path in matches if os.path.isdir(path)]
    files = [path for path in matches if not os.path.isdir(path)]
    written = [path for path in folders if _suffix(path) in FORMATS]
    if not files and not written:
        way_out = "Add `/*.parquet` or the like." if folders else "Check the name."
        raise InputError(
            f"the glob {entry} (input.path) matches no files{', only folders' if folders else ''}.", way_out
        )
    for path in files:
        yield _named(os.path.abspath(path))
    for path in written:
        yield from _walk(os.path.abspath(path), frozenset())


def _walk(folder: str, above: frozenset[str]) -> Iterator[FoundFile]:
    """Files of known formats below a folder; hidden and `_`-prefixed names are skipped, link loops are cut."""
    real = os.path.realpath(folder)
    if real in above:
        return
    _refuse_dataset_dict(folder)
    saved = _saved_files(folder)
    if saved is not None:
        yield from saved
        return
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.startswith((".", "_")):
            continue
        if os.path.isdir(path):
            yield from _walk(path, above | {real})
        elif _suffix(path) in FORMATS or _is_compressed_text(path):
            yield _named(path)


def _saved_files(folder: str) -> list[FoundFile] | None:
    """Files of a `datasets` `save_to_disk` folder in the order of its state.json; None for any other folder."""
    if not os.path.exists(os.path.join(folder, "dataset_info.json")):
        return None
    state = _read_json(os.path.join(folder, "state.json"))
    entries = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(entries, list):
        return None
    paths = [os.path.join(folder, entry["filename"]) for entry in entries]
    return [FoundFile((folder, position), path, "arrow") for position, path in enumerate(paths)]


def _refuse_dataset_dict(folder: str) -> None:
    state = _read_json(os.path.join(folder, "dataset_dict.json"))
    if isinstance(state, dict) and isinstance(state.get("splits"), list):
        splits = [str(split) for split in state["splits"]]
        raise InputError(
            f"{folder} is a saved DatasetDict with the splits {', '.join(f'`{split}`' for split in splits)}.",
            f"Point input.path at one of them, as {os.path.join(folder, splits[0] if splits else 'train')}.",
        )


def _read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (FileNotFoundError, ValueError):
        return None


def _named(path: str) -> FoundFile:
    """The file if its format is known. A pipe or a device would be waited for, or read, without end."""
    if not os.path.isfile(path):
        raise InputError(f"{path} (input.path) is no regular file.", "Write the data to one and give its path.")
    return _of_known_format(path)


def _of_known_format(path: str) -> FoundFile:
    suffix = _suffix(path)
    if suffix in FORMATS:
        return FoundFile((path, 0), path, FORMATS[suffix])
    if suffix in _COMPRESSED:
        raise InputError(
            f"{path} (input.path) is compressed, so ranges of it cannot be read.", "Decompress it, or use Parquet."
        )
    if suffix == ".json":
        raise InputError(f"{path} (input.path) is JSON.", "Write one object per line into a .jsonl file instead.")
    raise InputError(f"the format of {path} (input.path) is unknown.", f"Give a file of a known one: {_known()}.")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_compressed_text(path: str) -> bool:
    stem, suffix = os.path.splitext(path)
    return suffix.lower() in _COMPRESSED and FORMATS.get(_suffix(stem)) in TEXT_FORMATS


def _is_data(key: str) -> bool:
    """Whether an object in a folder is part of the input."""
    is_hidden = any(name.startswith((".", "_")) for name in key.split("/"))
    return not is_hidden and (_suffix(key) in FORMATS or _is_compressed_text(key))


def _known() -> str:
    return ", ".join(FORMATS)


def _holds(folder: str) -> str:
    names = sorted(os.listdir(folder))
    return f"it holds {', '.join(f'`{name}`' for name in names[:5])}" if names else "it is empty"
