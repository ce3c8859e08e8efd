"""A run as a data set for others: its data card, and a folder that `datasets` loads with no script, here or on the hub.

The card in the run's folder is written once, when the run finishes; this one counts the rows as they are now, retries
included, and can be had at any time of a run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import OutputError
from pipeline.manifest import CARD, CARD_SAMPLE, DETERMINISM, VOCABULARY, render_card
from pipeline.newest import newest_part
from pipeline.results import Results
from pipeline.storage import LocalFolder
from pipeline.writer import encode_part


def data_card(results: Results, *, is_merged: bool = False) -> str:
    """The data card in Markdown, with the header by which the hub and `datasets` know where the data lie.

    Args:
        results: of the run.
        is_merged: whether it is for a folder in which retried rows stand in their parts.
    """
    run = results.run
    first = newest_part(run, results.rounds[0].keys[0], results.rounds)
    return render_card(
        job=run.job,
        model=run.model,
        files=[(file["name"], file["rows"], file["sha256"]) for file in run.identity["inputs"]],
        manifest=_counts(results),
        schema=first.schema,
        samples=first.select(CARD_SAMPLE).slice(0, 8).to_pylist(),
        num_retries=0 if is_merged else len(results.rounds) - 1,
    )


def write_card(results: Results) -> str:
    """Put the card as it is now in the place of the one in the run's folder; returns where.

    Raises:
        OutputError: the run is not finished, so that it would go out of date.
    """
    if not results.is_finished:
        raise OutputError(
            f"{results.folder} is not finished, and writes its card itself then.", "Run its job to the end."
        )
    results.run.folder.replace(CARD, data_card(results).encode())
    return f"{results.folder}/{CARD}"


def export(results: Results, target: Path | str) -> Path:
    """Write the run as a data set: parts with the rows as they are now, vocabulary and card; nothing else.

    Args:
        results: of the run.
        target: a folder that is empty or not there yet.

    Raises:
        OutputError: the folder is not empty.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise OutputError(f"{target} is not empty.", "Choose another folder.")
    (target / "data").mkdir(parents=True, exist_ok=True)
    for key in results.rounds[0].keys:
        _export_part(results, key, target / key)
    (target / VOCABULARY).write_bytes(results.run.folder.read(VOCABULARY) or b"")
    (target / CARD).write_text(data_card(results, is_merged=True), encoding="utf-8")
    return target


def push_to_hub(results: Results, repo_id: str, *, is_private: bool = True, api: Any = None) -> str:
    """Upload the run as a data set of the hub, as `export` writes it; returns its address.

    Args:
        results: of the run.
        repo_id: as `user/name`; made if it is not there.
        is_private: whether a new repository is.
        api: a `huggingface_hub.HfApi`; by default one with the token of the environment.
    """
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    with TemporaryDirectory() as scratch:
        folder = export(results, Path(scratch, "run"))
        api.create_repo(repo_id, repo_type="dataset", private=is_private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, repo_type="dataset", folder_path=str(folder), commit_message="Completions made by batchgen"
        )
    return f"https://huggingface.co/datasets/{repo_id}"


def _export_part(results: Results, key: str, target: Path) -> None:
    """Copy a part, or write it anew where retries have rows of it."""
    first, *retries = results.rounds
    if any(key in retry.keys for retry in retries):
        table = newest_part(results.run, key, results.rounds)
        newest = {"batchgen.retry": retries[-1].folder.name.rpartition("/")[2]}
        target.write_bytes(encode_part(table, results.run.metadata | newest))
    elif isinstance(first.folder, LocalFolder):
        shutil.copyfile(first.folder.root / key, target)
    else:
        target.write_bytes(first.folder.read(key) or b"")


def _counts(results: Results) -> dict[str, Any]:
    """What the card says of a run's rows, in the form of the manifest, as they are now."""
    run = results.run
    sums = results.sums
    rows, ok = (sum(each[name] for each in sums.values()) for name in ("rows", "ok"))
    stored = (run.manifest() or {"totals": {}})["totals"]
    return {
        "fingerprint": run.fingerprint,
        "determinism": DETERMINISM[run.job.model.dtype],
        "strategies": sums,
        "totals": {
            "input_rows": run.num_input_rows,
            "rows": rows,
            "ok": ok,
            "errors": rows - ok,
            "truncated_prompts": stored.get("truncated_prompts", 0),
        },
    }
