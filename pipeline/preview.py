"""The first rows of a run as people want to see them: text, or candidates with percentages where there is no text."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.manifest import VOCABULARY, finished_keys
from pipeline.storage import Folder

COLUMNS = ["row_id", "strategy", "sample_index", "prompt", "text", "finish_reason", "error_type", "error_message"]
NUM_CANDIDATES = 5


def first_rows(folder: Folder, num_rows: int) -> list[dict[str, Any]]:
    """First rows of a run, finished or not, with `ended_by` added.

    Raises:
        InputError: the folder holds no parts.
    """
    parts = sorted(finished_keys(folder))
    if not parts:
        raise InputError(f"{folder.name} holds no parts yet. Give the output folder of a run.")
    batches = (
        batch
        for part in parts
        for batch in pq.ParquetFile(pa.BufferReader(folder.read(part) or b"")).iter_batches(
            num_rows, columns=[*COLUMNS, "top_token_ids", "top_probs"]
        )
    )
    try:
        rows: list[dict[str, Any]] = list(islice((row for batch in batches for row in batch.to_pylist()), num_rows))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"a part of {folder.name} cannot be read: {error}") from error
    pieces = _pieces(folder)
    for row in rows:
        token_ids, probs = row.pop("top_token_ids"), row.pop("top_probs")
        if row["text"] is None and token_ids and pieces:
            row["text"] = candidates([pieces[token_id] for token_id in token_ids[0]], probs[0])
        row["ended_by"] = row["finish_reason"] or f"error: {row['error_type']}"
    return rows


def candidates(pieces: list[str], probs: list[float]) -> str:
    """Most probable next tokens with their probabilities, as `" line" 17 %, " street" 16 %`."""
    shown = list(zip(pieces, probs, strict=True))[:NUM_CANDIDATES]
    return ", ".join(f'"{piece}" {100 * prob:.1f} %' for piece, prob in shown)


def _pieces(folder: Folder) -> list[str]:
    """Text of every token id; empty while the run is unfinished and has no vocabulary yet."""
    stored = folder.read(VOCABULARY)
    if stored is None:
        return []
    table = pq.read_table(pa.BufferReader(stored), columns=["token", "bytes"]).to_pylist()
    return [row["bytes"].decode("utf-8", "replace") or row["token"] or "" for row in table]
