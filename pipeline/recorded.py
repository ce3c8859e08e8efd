"""A run read back from its folder: the plan, manifest and vocabulary it recorded, as values.

Needs neither the input nor the model, and changes nothing. It believes what it reads: whether that is true is for
`verify` to say.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Job
from pipeline.errors import InputError, StorageError
from pipeline.manifest import MANIFEST, PLAN, SUCCESS, VOCABULARY, parse
from pipeline.records import SCHEMA_VERSION
from pipeline.shard import part_metadata
from pipeline.shards import Shards, all_shards
from pipeline.storage import Folder, open_folder
from pipeline.strategies import num_rows


class RecordedModel(NamedTuple):
    """What the plan says of the checkpoint."""

    name: str
    commit: str
    num_positions: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class Vocabulary(NamedTuple):
    """How each token id prints, None for unknown ones, and its bytes, b"" for special ones."""

    tokens: Sequence[str | None]
    token_bytes: Sequence[bytes]

    @property
    def texts(self) -> list[str]:
        """Text of each token, with U+FFFD for what is only part of a character; the name of one that adds none."""
        both = zip(self.token_bytes, self.tokens, strict=True)
        return [data.decode("utf-8", "replace") or token or "" for data, token in both]


@dataclass(frozen=True)
class Recorded:
    """A run as `_plan.json` describes it.

    Attributes:
        identity: what the fingerprint is made of.
        shards: in order, as they follow from the identity.
        stated_shards: what the plan says of them.
    """

    folder: Folder
    job: Job
    fingerprint: str
    identity: dict[str, Any]
    model: RecordedModel
    num_input_rows: int
    num_output_rows: int
    shards: Shards
    stated_shards: Any

    @property
    def rows_per_prompt(self) -> int:
        """Output rows per input row."""
        return sum(num_rows(strategy) for strategy in self.job.strategies)

    @property
    def is_finished(self) -> bool:
        """Whether `_SUCCESS` is there."""
        return self.folder.read(SUCCESS) is not None

    @property
    def metadata(self) -> dict[str, str]:
        """Key-value metadata that every part must carry."""
        facts = part_metadata(self.job, self.fingerprint, self.model.commit)
        return facts | {"batchgen.version": self.identity["batchgen"]["version"]}

    def manifest(self) -> dict[str, Any] | None:
        """The stored manifest, None as long as there is none."""
        stored = self.folder.read(MANIFEST)
        return None if stored is None else parse(stored)

    def vocabulary(self) -> Vocabulary | None:
        """The stored vocabulary, None if there is none.

        Raises:
            StorageError: it is damaged.
        """
        stored = self.folder.read(VOCABULARY)
        if stored is None:
            return None
        try:
            table = pq.read_table(io.BytesIO(stored), columns=["token_id", "token", "bytes"])
            if table["token_id"].to_pylist() != list(range(self.model.vocab_size)):
                raise ValueError(f"its ids are not 0 to {self.model.vocab_size - 1}")
            if table["bytes"].null_count:
                raise ValueError("it holds a null among the bytes")
            return Vocabulary(table["token"].to_pylist(), table["bytes"].to_pylist())
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"{VOCABULARY} of {self.folder.name} is damaged: {error}.", "Remove it and run the job again."
            ) from error


def open_run(path: Path | str) -> Recorded:
    """Read the plan of a run, finished or not.

    Raises:
        InputError: the folder is not a run's, or another version of the columns wrote it.
        StorageError: the plan is damaged.
    """
    folder = open_folder(str(path))
    stored = folder.read(PLAN)
    if stored is None:
        raise InputError(f"{folder.name} holds no `{PLAN}`: it is not the output folder of a run.", "Give one that is.")
    plan = parse(stored)
    try:
        schema_version = plan["identity"]["batchgen"]["schema_version"]
        if schema_version != SCHEMA_VERSION:
            raise InputError(
                f"{folder.name} has columns of version {schema_version}, and this batchgen knows {SCHEMA_VERSION}.",
                f"Use batchgen {plan['identity']['batchgen']['version']}, which wrote it.",
            )
        return _recorded(folder, plan)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"`{PLAN}` of {folder.name} is damaged: {type(error).__name__}: {error}.", "Use a new output folder."
        ) from error


def _recorded(folder: Folder, plan: dict[str, Any]) -> Recorded:
    model = plan["model"]
    return Recorded(
        folder=folder,
        job=Job.model_validate_json(json.dumps(plan["job"])),
        fingerprint=plan["fingerprint"],
        identity=plan["identity"],
        model=RecordedModel(
            name=model["name"],
            commit=model["commit"],
            num_positions=model["num_positions"],
            vocab_size=model["vocab_size"],
            eos_token_ids=tuple(model["eos_token_ids"]),
        ),
        num_input_rows=plan["input_rows"],
        num_output_rows=plan["output_rows"],
        shards=all_shards(sum(file["rows"] for file in plan["identity"]["inputs"]), plan["identity"]["shard_rows"]),
        stated_shards=plan["shards"],
    )


def read_rows(folder: Folder, key: str, row_id: str) -> list[dict[str, Any]]:
    """Rows of an input row in a part, in order; none if there is no such part.

    Raises:
        StorageError: the part is damaged.
    """
    stored = folder.read(key)
    if stored is None:
        return []
    try:
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(stored), filters=[("row_id", "=", row_id)]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"{folder.name}/{key} cannot be read: {error}.", "Remove it and run the job again."
        ) from error
    return rows
