"""The first rows of a run as people want to see them: text, or candidates with percentages where there is no text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.recorded import Vocabulary

COLUMNS = [
    "row_id",
    "strategy",
    "sample_index",
    "prompt",
    "text",
    "finish_reason",
    "error_type",
    "error_message",
    "top_token_ids",
    "top_probs",
]
SHOWN = ("row_id", "strategy", "#", "prompt", "text", "ended by")
NUM_CANDIDATES = 5


def first_rows(
    tables: Iterable[pa.Table], vocabulary: Vocabulary, num_rows: int, strategy: str | None = None
) -> list[dict[str, Any]]:
    """First rows of tables of output, with `ended_by` added.

    Args:
        tables: with `COLUMNS`, in order; no more of them are taken than are needed.
        vocabulary: of the run.
        num_rows: most rows.
        strategy: only rows of this one.
    """
    stored = (row for table in tables for row in table.select(COLUMNS).to_pylist())
    rows = list(islice((row for row in stored if strategy in (None, row["strategy"])), num_rows))
    for row in rows:
        token_ids, probs = row.pop("top_token_ids"), row.pop("top_probs")
        if row["text"] is None and token_ids:
            row["text"] = candidates([vocabulary.texts[token_id] for token_id in token_ids[0]], probs[0])
        row["ended_by"] = row["finish_reason"] or f"error: {row['error_type']}"
    return rows


def candidates(pieces: Sequence[str], probs: Sequence[float]) -> str:
    """Most probable next tokens with their probabilities, as `" line" 17 %, " street" 16 %`."""
    shown = list(zip(pieces, probs, strict=True))[:NUM_CANDIDATES]
    return ", ".join(f'"{piece}" {100 * prob:.1f} %' for piece, prob in shown)


def cells(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    """The columns `SHOWN` of these rows."""
    names = ("row_id", "strategy", "sample_index", "prompt", "text", "ended_by")
    return [[row[name] for name in names] for row in rows]
