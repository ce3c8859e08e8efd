"""`hf://user/set[@revision][?split=train&name=config]`: the Arrow files of a hub data set, in the local cache.

`datasets` registers Arrow extension types when it is imported, and these run on every file that is opened later. So it
is imported only in a process of its own, `python -m pipeline.hub_dataset`, which answers with paths as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from pipeline.errors import InputError

_URI = re.compile(r"hf://(?P<path>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^?#]+))?(?:\?(?P<query>[^#]*))?")
_SPLIT = re.compile(r"\w+(\.\w+)*")  # as datasets has it; `train[:10%]` would name rows, but what we read is files


class HubDataset(NamedTuple):
    """Arguments of `datasets.load_dataset`."""

    path: str
    revision: str | None = None
    split: str = "train"
    name: str | None = None


def parse(uri: str) -> HubDataset:
    """The parts of an hf:// URI; InputError if it is not one."""
    match = _URI.fullmatch(uri)
    query = dict(parse_qsl(match["query"] or "", keep_blank_values=True)) if match else {}
    if not match or set(query) - {"split", "name"}:
        raise InputError(
            f"`input.path` is {uri}, which is not a hub data set.",
            "Write hf://user/set[@revision][?split=train&name=config].",
        )
    dataset = HubDataset(match["path"], match["revision"], **query)
    if not _SPLIT.fullmatch(dataset.split):
        raise InputError(
            f"the split in {uri} (input.path) must be a plain name as `train`, but is `{dataset.split}`.",
            "Leave slices out; data can be cut before.",
        )
    return dataset


def fetch(dataset: HubDataset) -> list[str]:
    """Absolute paths of the Arrow stream files that hold the split, downloaded if need be.

    Raises:
        InputError: unknown set, split or revision, no access, or no network.
    """
    answer = _ask(dataset)
    if "error" in answer:
        raise InputError(
            f"hf://{dataset.path} (input.path) cannot be loaded: {answer['error']}.",
            "Check its name, split and the network, or save it once with `save_to_disk` and give that folder.",
        )
    files: list[str] = answer["files"]
    return files


def _ask(dataset: HubDataset) -> dict[str, Any]:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pipeline.hub_dataset", json.dumps(dataset._asdict())],
        env={**os.environ, "PYTHONPATH": search_path},
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        raise InputError(
            f"loading hf://{dataset.path} (input.path) ended with exit code {done.returncode}.",
            "Save it once with `save_to_disk` and give that folder.",
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def load(dataset: HubDataset) -> list[str]:
    """Cache files of the split, in order. Imports `datasets`: call it in a process of its own."""
    import datasets

    if not os.path.isabs(dataset.path) and os.path.exists(dataset.path):
        raise FileExistsError(f"the local folder `{dataset.path}` would be read in its place; run from another folder")
    loaded = datasets.load_dataset(
        dataset.path, dataset.name, split=dataset.split, revision=dataset.revision, keep_in_memory=False
    )
    if not loaded.cache_files:
        raise FileNotFoundError(f"the split `{dataset.split}` has no rows")
    return [os.path.abspath(file["filename"]) for file in loaded.cache_files]


def main() -> None:
    """Print {"files": [...]} or {"error": "..."} for the data set in the first argument."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer: dict[str, Any] = {"files": load(HubDataset(**json.loads(sys.argv[1])))}
        except Exception as error:  # whatever `datasets` raises, the user gets one sentence
            lines = str(error).splitlines() or [type(error).__name__]
            answer = {"error": lines[0].rstrip(".")}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
