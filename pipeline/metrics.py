"""Sums over a part that add up over parts: what the manifest, and later reports, need without reading rows again.

Every value is a number, or a dict of values; sums of two parts are the key-wise sum. `generated_tokens` counts the
tokens recorded, which under `score` are those that were given: `sum_logprob` and `sum_entropy` are sums over them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Sums = dict[str, Any]

RANK_BINS = (1, 10, 100, 1000)  # GLTR's, with rank 1 apart; the last bin is open

SUMMED = [
    "strategy",
    "status",
    "error_type",
    "finish_reason",
    "num_prompt_tokens",
    "num_generated_tokens",
    "token_logprobs",
    "sampling_logprobs",
    "entropies",
    "token_ranks",
]


def part_sums(table: pa.Table) -> dict[str, Sums]:
    """Sums per strategy of a part, in the order in which strategies first occur."""
    summed = table.select(SUMMED)  # the others need not be copied
    return {
        name: _strategy_sums(_having(summed, "strategy", name)) for name in pc.unique(summed["strategy"]).to_pylist()
    }


def add(left: Sums, right: Sums) -> Sums:
    """Key-wise sum, keys of `left` first."""
    total = dict(left)
    for key, value in right.items():
        if key not in total:
            total[key] = value
        else:
            total[key] = add(total[key], value) if isinstance(value, dict) else total[key] + value
    return total


def _strategy_sums(rows: pa.Table) -> Sums:
    ok = _having(rows, "status", "ok")
    logprobs, entropies, ranks = (_flat(ok[name]) for name in ("token_logprobs", "entropies", "token_ranks"))
    drawn = ok.filter(pc.is_valid(ok["sampling_logprobs"]))
    sharpening = _flat(drawn["sampling_logprobs"]) - _flat(drawn["token_logprobs"])
    return {
        "rows": rows.num_rows,
        "ok": ok.num_rows,
        "errors": _counts(pc.drop_null(rows["error_type"])),
        "finish_reasons": _counts(ok["finish_reason"]),
        "prompt_tokens": pc.sum(rows["num_prompt_tokens"], min_count=0).as_py(),
        "generated_tokens": pc.sum(rows["num_generated_tokens"], min_count=0).as_py(),
        "lengths": _counts(ok["num_generated_tokens"]),
        "sum_logprob": float(logprobs.sum()),
        "sum_entropy": float(entropies.sum()),
        "sum_sharpening": float(sharpening.sum()),
        "drawn_tokens": len(sharpening),
        "ranks": _rank_histogram(ranks),
    }


def _having(rows: pa.Table, column: str, value: str) -> pa.Table:
    """The rows with the value, which need not be copied if all have it."""
    is_wanted = pc.equal(rows[column], value)
    return rows if pc.all(is_wanted).as_py() else rows.filter(is_wanted)


def _flat(column: pa.ChunkedArray) -> Any:
    return pc.list_flatten(column).to_numpy().astype(np.float64)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counts = Counter(column.to_pylist())
    return {str(value): counts[value] for value in sorted(counts)}


def _rank_histogram(ranks: Any) -> dict[str, int]:
    names = [f"<={bound}" for bound in RANK_BINS] + [f">{RANK_BINS[-1]}"]
    bins = np.bincount(np.searchsorted(RANK_BINS, ranks), minlength=len(names))
    return dict(zip(names, bins.tolist(), strict=True))
