"""The documents beside the parts: `_plan.json`, `_manifest.json`, `_vocab.parquet`, `README.md` and `_SUCCESS`.

The plan is written first and never changes, and the vocabulary, which explains the parts, right after it. The manifest
is written last but one, once the folder holds every planned part, and `_SUCCESS` last.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import socket
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, OutputError, StorageError
from pipeline.plan import Plan, library_versions
from pipeline.schema import MEANINGS
from pipeline.shard import Part
from pipeline.storage import Folder
from pipeline.tally import Tally
from pipeline.text_templates import text_templates

PLAN, MANIFEST, VOCABULARY, CARD, SUCCESS = "_plan.json", "_manifest.json", "_vocab.parquet", "README.md", "_SUCCESS"
FOOTER_BYTES = 64 << 10  # most footers are shorter
log = logging.getLogger("batchgen")

CARD_SAMPLE = ["row_id", "strategy", "prompt", "text"]
DETERMINISM = {"float32": "exact", "bfloat16": "fast"}


def check_ours(folder: Folder, plan: Plan) -> dict[str, Any] | None:
    """Make sure that the folder is this job's, or empty; nothing is written.

    Returns:
        The plan that lies there, if one does.

    Raises:
        OutputError: another job's plan, or something that is no run, lies there.
    """
    document = folder.read(PLAN)
    if document is None:
        _refuse_strangers(folder)
        return None
    stored = parse(document)
    if stored.get("fingerprint") != plan.fingerprint:
        changes = "\n".join(f"  {line}" for line in differences(stored.get("identity"), plan.identity))
        raise OutputError(
            f"output folder {folder.name} belongs to another job. It differs in (there -> here):\n{changes}",
            "Choose another folder with --output, or run the job that started this one.",
        )
    return stored


def claim(folder: Folder, plan: Plan) -> Folder:
    """Make the folder this run's own, or find that it is already.

    Returns:
        The folder, knowing whether files can be published from several processes.

    Raises:
        OutputError: as `check_ours`, for another driver may have come first.
    """
    folder.publish(PLAN, to_json(_plan_document(plan)))
    stored = check_ours(folder, plan) or {}
    if stored.get("versions") != library_versions():
        changes = "; ".join(differences(stored.get("versions"), library_versions()))
        log.warning("resuming with other libraries than the run began with, bytes may differ: %s", changes)
    if VOCABULARY not in folder.list_keys():
        folder.publish(VOCABULARY, _vocabulary(plan))
    probed = folder.probed(PLAN)
    if not probed.is_exclusive:
        log.warning(
            "%s stores a file although its name is taken, so replicas send their parts to this process, which alone "
            "publishes them",
            folder.name,
        )
    return probed


def check_seen(folder: Folder) -> None:
    """Make sure that this process sees the folder that a driver has claimed.

    Raises:
        ConfigError: the plan is not there.
    """
    if folder.read(PLAN) is None:
        raise ConfigError(
            f"a replica on {socket.gethostname()} finds no {folder.name}/{PLAN}, which the driver wrote: that machine "
            "has another folder of this name.",
            "Use a folder that all machines share, or a URL such as s3://bucket/out.",
        )


def finished(folder: Folder, plan: Plan) -> dict[str, Any] | None:
    """The manifest of a run that has all its parts and said so; None for any other."""
    document = folder.read(MANIFEST) if folder.read(SUCCESS) is not None else None
    if document is None or not {shard.key for shard in plan.shards} <= finished_keys(folder):
        return None
    return parse(document)


def _refuse_strangers(folder: Folder) -> None:
    """Refuse a folder without a plan that holds anything but unfinished writes."""
    strangers = [key for key in folder.list_keys() if key not in ("_tmp", "data")] + folder.list_keys("data")
    if strangers:
        raise OutputError(
            f"output folder {folder.name} holds `{strangers[0]}` and no `{PLAN}`: it is not a run of batchgen.",
            "Choose an empty or new folder with --output.",
        )


def differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, as `key.0 (name).key: there -> here`; keys with the same values are left out."""
    if isinstance(there, list) and isinstance(here, list):
        there, here = dict(enumerate(there)), dict(enumerate(here))
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [] if there == here else [f"{path}: {json.dumps(there)} -> {json.dumps(here)}"]
    return [
        line
        for key in [*there, *(key for key in here if key not in there)]
        for line in differences(
            there.get(key), here.get(key), f"{path}.{key}{_common_name(there.get(key), here.get(key))}".lstrip(".")
        )
    ]


def _common_name(there: Any, here: Any) -> str:
    """The name of both, as ` (name)`, where they have the same."""
    names = [value.get("name") if isinstance(value, dict) else None for value in (there, here)]
    return f" ({names[0]})" if names[0] is not None and names[0] == names[1] else ""


def finished_keys(folder: Folder) -> set[str]:
    """Keys of all published parts."""
    return {key for key in folder.list_keys("data") if key.endswith(".parquet")}


def known_parts(folder: Folder, fingerprint: str, planned: Iterable[tuple[str, int]]) -> Tally:
    """All that is known of the parts that are there, read from them where nothing else tells.

    Args:
        folder: of a run or a retry.
        fingerprint: of the run.
        planned: key and rows of every part there will be.
    """
    finished = finished_keys(folder)
    tally = Tally(folder, fingerprint)
    tally.load(finished)
    for key, num_rows in planned:
        if key in finished and key not in tally:
            tally.add(part_facts(folder, key, fingerprint, num_rows))
    tally.earlier_tokens = tally.generated_tokens
    return tally


def part_facts(folder: Folder, key: str, fingerprint: str, num_rows: int) -> Part:
    """What a stored part says of itself.

    Raises:
        StorageError: it is damaged, of another run, or has not the rows that were planned.
    """
    data = folder.read(key) or b""
    part = _described(folder, key, data, fingerprint, num_rows)
    return replace(part, sha256=hashlib.sha256(data).hexdigest())


def part_footer(folder: Folder, key: str, fingerprint: str, num_rows: int) -> Part:
    """The same from the end of a part alone, without its digest.

    Raises:
        StorageError: as `part_facts`.
    """
    end = folder.read_end(key, FOOTER_BYTES) or b""
    length = int.from_bytes(end[-8:-4], "little") + 8  # a Parquet file ends with its footer, the length of that, PAR1
    if length > len(end):
        end = folder.read_end(key, length) or b""
    return _described(folder, key, end, fingerprint, num_rows)


def _described(folder: Folder, key: str, data: bytes, fingerprint: str, num_rows: int) -> Part:
    """A part by its footer, with which `data` ends."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(data))
        facts = metadata.metadata
        if facts[b"batchgen.fingerprint"].decode() != fingerprint:
            raise ValueError("its fingerprint is that of another run")
        if metadata.num_rows != num_rows:
            raise ValueError(f"it has {metadata.num_rows} rows")
        return Part(
            key=key,
            rows=metadata.num_rows,
            sha256="",
            sums=json.loads(facts[b"batchgen.sums"]),
            truncated_prompts=int(facts[b"batchgen.truncated_prompts"]),
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{folder.name}/{key} is not a part of this run, or is damaged ({error}).",
            "Remove it and run the job again.",
        ) from error


def finish(folder: Folder, plan: Plan, tally: Tally, timings: dict[str, Any]) -> dict[str, Any]:
    """Write everything that a finished run has beside its parts; returns the manifest.

    Raises:
        StorageError: the folder does not hold exactly the planned parts.
    """
    check_complete(folder, {shard.key for shard in plan.shards})
    summary = summarise(plan, tally, timings, folder.is_exclusive)
    folder.publish(CARD, _card(folder, plan, summary).encode())
    return publish_manifest(folder, summary, tally)


def check_complete(folder: Folder, planned: set[str]) -> None:
    """Raise StorageError unless the folder holds exactly these parts."""
    found = finished_keys(folder)
    if planned != found:
        raise StorageError(
            f"{folder.name} lacks {len(planned - found)} of {len(planned)} parts and holds {len(found - planned)} "
            f"others, first {min(planned ^ found)}.",
            "Let all replicas write to this very folder, and nobody else; then run the same command again.",
        )


def publish_manifest(folder: Folder, summary: dict[str, Any], tally: Tally) -> dict[str, Any]:
    """Write the manifest and then `_SUCCESS`; returns what is stored, which somebody else may have written first."""
    folder.publish(MANIFEST, _manifest(summary, tally))
    folder.publish(SUCCESS, b"")
    return parse(folder.read(MANIFEST) or b"{}")


def parse(document: bytes) -> dict[str, Any]:
    """A stored document as JSON values.

    Raises:
        StorageError: it is no JSON object.
    """
    try:
        values = json.loads(document)
    except ValueError as error:
        raise StorageError(
            f"a document of the output folder is damaged: {error}.", "Use a new output folder."
        ) from error
    if not isinstance(values, dict):
        raise StorageError("a document of the output folder is damaged: not an object.", "Use a new output folder.")
    return values


def summarise(plan: Plan, tally: Tally, timings: dict[str, Any], is_exclusive: bool) -> dict[str, Any]:
    """The manifest as JSON values, without the list of parts."""
    rows, errors = sum(part.rows for part in tally), tally.errors
    return {
        "schema_version": 1,
        "fingerprint": plan.fingerprint,
        "determinism": DETERMINISM[plan.job.model.dtype],
        **plan.order,
        "published_by": "replicas" if is_exclusive else "driver",
        "totals": {
            "input_rows": plan.dataset.num_rows,
            "rows": rows,
            "ok": rows - errors,
            "errors": errors,
            "truncated_prompts": tally.truncated_prompts,
            "generated_tokens": tally.generated_tokens,
        },
        "strategies": tally.strategies,
        "timings": timings | {"generated_tokens": tally.generated_tokens - tally.earlier_tokens},
        "versions": library_versions(),
    }


def _manifest(summary: dict[str, Any], tally: Tally) -> bytes:
    """The manifest as stored: a line for each part, for there may be a million."""
    lines = ",\n  ".join(
        json.dumps(
            {
                "key": part.key,
                "rows": part.rows,
                "ok": part.ok,
                "errors": part.rows - part.ok,
                "generated_tokens": part.generated_tokens,
                "sha256": part.sha256,
            }
        )
        for part in sorted(tally)
    )
    return to_json(summary)[:-3] + f',\n "parts": [\n  {lines}\n ]\n}}\n'.encode()


def _plan_document(plan: Plan) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "fingerprint": plan.fingerprint,
        "identity": plan.identity,
        "job": plan.job.model_dump(mode="json"),
        "model": {
            "name": plan.model.name,
            "commit": plan.model.commit,
            "num_positions": plan.model.num_positions,
            "vocab_size": plan.model.vocab_size,
            "eos_token_ids": list(plan.model.eos_token_ids),
        },
        "versions": library_versions(),
        "input_rows": plan.dataset.num_rows,
        "output_rows": plan.num_output_rows,
        "shards": plan.shards.summary,
    }


def _vocabulary(plan: Plan) -> memoryview:
    buffer = pa.BufferOutputStream()
    pq.write_table(plan.tokenizer.vocabulary(), buffer, compression="zstd")
    return memoryview(buffer.getvalue()).cast("B")


def _card(folder: Folder, plan: Plan, summary: dict[str, Any]) -> str:
    first = pq.read_table(io.BytesIO(folder.read(plan.shards[0].key) or b""))
    return render_card(
        job=plan.job,
        model=plan.model,
        files=[(file.name, file.num_rows, file.sha256) for file in plan.dataset.files],
        manifest=summary,
        schema=first.schema,
        samples=first.select(CARD_SAMPLE).slice(0, 8).to_pylist(),
        num_retries=0,
    )


def render_card(**facts: Any) -> str:
    """The data card, `README.md`, of these facts: what the template names."""
    facts |= {"meanings": MEANINGS, "size_category": _size_category}
    return text_templates().get_template("card.md.j2").render(facts)


def _size_category(num_rows: int) -> str:
    """As the hub names sizes of data sets."""
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B"]
    return names[min(max(0, len(str(num_rows)) - 3), len(names) - 1)]


def to_json(value: Any) -> bytes:
    """A document as it is stored."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
