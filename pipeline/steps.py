"""A completion step by step: what was chosen, how probable it was, and what else could have come.

It takes rows of the output as dicts, and gives values to print and JSON to read; it knows neither files nor models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.recorded import Vocabulary

Row = dict[str, Any]


class Alternative(NamedTuple):
    """A recorded candidate of a step, with its raw probability."""

    token_id: int
    prob: float


class Step(NamedTuple):
    """One token of a completion.

    Attributes:
        step: from 0.
        prob: raw probability of the token, 0..1.
        sampling_prob: in the distribution it was drawn from; None where nothing is drawn.
        rank: raw, from 1.
        entropy: raw, in nats.
        alternatives: recorded candidates, best first; the chosen token may be one of them.
    """

    step: int
    token_id: int
    prob: float
    sampling_prob: float | None
    rank: int
    entropy: float
    alternatives: tuple[Alternative, ...]


def steps(row: Row) -> list[Step]:
    """The steps of an output row; none of an error row."""
    if row["status"] == "error":
        return []
    count = len(row["token_ids"])
    drawn = row["sampling_logprobs"] or [None] * count
    found = zip(
        row["token_ids"],
        row["token_logprobs"],
        drawn,
        row["token_ranks"],
        row["entropies"],
        row["top_token_ids"] or [()] * count,
        row["top_probs"] or [()] * count,
        strict=True,
    )
    return [
        Step(
            step=step,
            token_id=token_id,
            prob=math.exp(logprob),
            sampling_prob=None if drawn_logprob is None else math.exp(drawn_logprob),
            rank=rank,
            entropy=entropy,
            alternatives=tuple(map(Alternative, ids, probs)),
        )
        for step, (token_id, logprob, drawn_logprob, rank, entropy, ids, probs) in enumerate(found)
    ]


def rows_document(rows: Sequence[Row], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Output rows as JSON values, one per input row, with its completions and their steps."""
    grouped: dict[int, dict[str, Any]] = {}
    for row in rows:
        prompt = {
            "row_id": row["row_id"],
            "row_index": row["row_index"],
            "prompt": row["prompt"],
            "prompt_tokens": tokens_document(row["prompt_token_ids"] or (), vocabulary),
            "completions": [],
        }
        grouped.setdefault(row["row_index"], prompt)["completions"].append(_completion(row, vocabulary))
    return list(grouped.values())


def tokens_document(token_ids: Sequence[int], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Tokens as JSON values, exact: id, as the tokenizer prints it, text and bytes."""
    return [
        {
            "token_id": token_id,
            "token": vocabulary.tokens[token_id],
            "text": vocabulary.token_bytes[token_id].decode("utf-8", "replace"),
            "bytes": [*vocabulary.token_bytes[token_id]],
        }
        for token_id in token_ids
    ]


def _completion(row: Row, vocabulary: Vocabulary) -> dict[str, Any]:
    names = ("strategy", "sample_index", "status", "error_type", "error_message", "text", "finish_reason", "stop_match")
    return {name: row[name] for name in names} | {
        "perplexity": row["perplexity"],
        "steps": [_step(step, vocabulary) for step in steps(row)],
    }


def _step(step: Step, vocabulary: Vocabulary) -> dict[str, Any]:
    (chosen,) = tokens_document([step.token_id], vocabulary)
    others = tokens_document([other.token_id for other in step.alternatives], vocabulary)
    return {
        "step": step.step,
        **chosen,
        "prob": step.prob,
        "sampling_prob": step.sampling_prob,
        "rank": step.rank,
        "entropy": step.entropy,
        "alternatives": [
            token | {"rank": rank, "prob": other.prob}
            for rank, (token, other) in enumerate(zip(others, step.alternatives, strict=True), start=1)
        ],
    }
