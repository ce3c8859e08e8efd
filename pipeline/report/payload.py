"""The rows that a report shows, as one compressed block for its script: a JSON header, then columns of numbers.

Per step there are two bytes each for token, rank, -ln p, entropy and the rest, which is a quarter of what objects take.
Logarithms and entropies are kept to 0.001 nats.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.recorded import Recorded, Vocabulary
from pipeline.report.selection import Why
from pipeline.statistics.ragged import Array, Ragged
from pipeline.statistics.rows import is_text
from pipeline.strategies import Strategy
from pipeline.tokenizer import text_of

SHOWN_ALTERNATIVES = 10
PROMPT_CHARACTERS = 20_000  # prompts that were too long may be of any length
KEPT_CHARACTERS = 1000
MILLINATS = 1000
ABSENT = 0xFFFF
LARGEST = 0xFFFE


def payload(run: Recorded, vocabulary: Vocabulary, table: pa.Table, why: Why, baseline: str | None) -> str:
    """Rows for the page of a report, in base64.

    Args:
        run: the run.
        vocabulary: of its model.
        table: all rows of the prompts to show, in the order of the run, of `gather.COLUMNS` and the kept columns.
        why: the reasons to show a prompt, by its number.
        baseline: name of the strategy to compare with.
    """
    names = [strategy.name for strategy in run.job.strategies]
    strategy = [names.index(name) for name in table["strategy"].to_pylist()]
    header = {
        "strategies": [described(each) for each in run.job.strategies],
        "isSample": any(why.values()),
        "baseline": None if baseline is None else names.index(baseline),
        "defaults": {},
        "prompts": prompts_of(table, vocabulary, why, run.job.input.keep_columns),
        "rows": rows_of(table) | {"strategy": strategy},
    }
    return packed(header, table, vocabulary)


def described(strategy: Strategy) -> dict[str, Any]:
    """What the script needs to know of a strategy."""
    return {"name": strategy.name, "type": strategy.type, "isText": is_text(strategy)}


def packed(header: Mapping[str, Any], table: pa.Table, vocabulary: Vocabulary) -> str:
    """A header and the steps of all rows as one block, in base64."""
    steps, used = _steps(table)
    vocabulary_used = [_token(vocabulary, token_id) for token_id in used.tolist()]
    columns = [[name, len(values), values.dtype.itemsize] for name, values in steps.items()]
    whole = {**header, "vocabulary": vocabulary_used, "columns": columns}
    document = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()
    padding = b" " * (-(4 + len(document)) % 4)
    block = b"".join(
        [(len(document) + len(padding)).to_bytes(4, "little"), document, padding]
        + [values.tobytes() for values in steps.values()]
    )
    return base64.b64encode(gzip.compress(block, mtime=0)).decode()


def _token(vocabulary: Vocabulary, token_id: int) -> list[Any]:
    """[id, bytes as Latin-1]; of a special token its name as third."""
    found = vocabulary.token_bytes[token_id]
    name = [] if found else [vocabulary.tokens[token_id] or "unused"]
    return [token_id, found.decode("latin-1"), *name]


def prompts_of(table: pa.Table, vocabulary: Vocabulary, why: Why, kept: Sequence[str]) -> list[dict[str, Any]]:
    """What the script needs to know of each prompt, as its first row tells."""
    indices = table["row_index"].to_numpy()
    first = np.unique(indices, return_index=True)[1]
    rows = table.select(["row_id", "row_index", "prompt", "prompt_token_ids", "num_prompt_tokens", *kept]).take(
        pa.array(first)
    )
    return [
        {
            "id": row["row_id"],
            "index": row["row_index"],
            **cut(prompt_text(row, vocabulary)),
            "numTokens": row["num_prompt_tokens"],
            "why": why[row["row_index"]],
            "kept": [[name, _plain(row[name])[:KEPT_CHARACTERS]] for name in kept],
        }
        for row in rows.to_pylist()
    ]


def prompt_text(row: Mapping[str, Any], vocabulary: Vocabulary) -> str | None:
    """The prompt of a row, of token ids where it has no text."""
    if row["prompt"] is None and row["prompt_token_ids"]:
        return text_of(vocabulary.token_bytes, row["prompt_token_ids"])
    prompt: str | None = row["prompt"]
    return prompt


def cut(text: str | None) -> dict[str, Any]:
    """A prompt as far as it is shown, and its length."""
    return {"text": text and text[:PROMPT_CHARACTERS], "length": len(text or "")}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def rows_of(table: pa.Table) -> dict[str, list[Any]]:
    """What the script needs to know of each row, apart from its strategy."""
    indices = table["row_index"].to_numpy()
    return {
        "prompt": np.unique(indices, return_inverse=True)[1].tolist(),
        "sample": table["sample_index"].to_pylist(),
        "steps": Ragged.of(table["token_ids"]).lengths.tolist(),
        "finish": table["finish_reason"].to_pylist(),
        "stop": table["stop_match"].to_pylist(),
        "keptBytes": _kept_bytes(table),
        "errorType": table["error_type"].to_pylist(),
        "errorMessage": table["error_message"].to_pylist(),
        "score": table["sequence_score"].to_pylist(),
        "seed": [str(seed) for seed in table["seed"].to_pylist()],  # beyond what a script's numbers hold
    }


def _kept_bytes(table: pa.Table) -> list[int | None]:
    """Bytes of the text before a stop string; None where nothing was cut, or where U+FFFD stands for other bytes."""
    reasons, texts = table["finish_reason"].to_pylist(), table["text"].to_pylist()
    return [
        len(text.encode()) if reason == "stop" and text is not None and "\ufffd" not in text else None
        for reason, text in zip(reasons, texts, strict=True)
    ]


def _steps(table: pa.Table) -> tuple[dict[str, Array], Array]:
    """Columns of steps, and the token ids that they are places in."""
    tokens = Ragged.of(table["token_ids"])
    top_ids, top_probs = _alternatives(table, tokens)
    used = np.unique(np.concatenate([tokens.flat, top_ids[top_ids >= 0]]))
    width = np.uint16 if len(used) < ABSENT else np.uint32
    with np.errstate(divide="ignore"):
        top_surprise = -np.log(top_probs)
    columns = {
        "token": np.searchsorted(used, tokens.flat).astype(width),
        "rank": np.minimum(Ragged.of(table["token_ranks"]).flat, LARGEST).astype(np.uint16),
        "surprise": _millinats(-Ragged.of(table["token_logprobs"]).flat),
        "entropy": _millinats(Ragged.of(table["entropies"]).flat),
        "sampled": _millinats(-_parallel(table["sampling_logprobs"], tokens)),
        "topToken": np.searchsorted(used, top_ids).ravel().astype(width),
        "topSurprise": np.where(top_ids < 0, ABSENT, _millinats(top_surprise)).ravel().astype(np.uint16),
    }
    return dict(sorted(columns.items(), key=lambda column: -column[1].dtype.itemsize)), used


def _millinats(values: Array) -> Array:
    """Numbers of thousandths, the largest that fit for more, and `ABSENT` for NaN."""
    scaled = np.clip(np.nan_to_num(values, nan=0, posinf=LARGEST), 0, LARGEST) * MILLINATS
    return np.where(np.isnan(values), ABSENT, np.minimum(np.rint(scaled), LARGEST)).astype(np.uint16)


def _parallel(column: pa.ChunkedArray, tokens: Ragged) -> Array:
    """(N,) entries of lists parallel to the tokens', NaN for those of null lists."""
    lists = Ragged.of(column)
    values = np.full(len(tokens.flat), np.nan)
    values[np.repeat(lists.lengths > 0, tokens.lengths)] = lists.flat
    return values


def _alternatives(table: pa.Table, tokens: Ragged) -> tuple[Array, Array]:
    """(N, K) ids and probabilities; -1 and NaN where fewer were recorded."""
    ids, probs = (Ragged.of(table[name].combine_chunks().flatten()) for name in ("top_token_ids", "top_probs"))
    num_steps = Ragged.of(table["top_token_ids"]).lengths
    depth = min(SHOWN_ALTERNATIVES, int(ids.lengths.max(initial=0)))
    found = np.flatnonzero(np.repeat(num_steps > 0, tokens.lengths))
    step, place = found[ids.owners], ids.positions
    shown = place < depth
    top_ids, top_probs = np.full((len(tokens.flat), depth), -1), np.full((len(tokens.flat), depth), np.nan)
    top_ids[step[shown], place[shown]] = ids.flat[shown]
    top_probs[step[shown], place[shown]] = probs.flat[shown]
    return top_ids, top_probs
