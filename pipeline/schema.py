"""The output table: its columns, their types and their order."""

from __future__ import annotations

import pyarrow as pa


def output_schema(kept: pa.Schema) -> pa.Schema:
    """Arrow schema of a part: the declared columns, then the kept ones. Plain types only, parallel lists."""
    tokens, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
    declared = [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("strategy", pa.string(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_type", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("text", pa.string()),
        pa.field("prompt_token_ids", tokens),
        pa.field("token_ids", tokens),
        pa.field("finish_reason", pa.string()),
        pa.field("stop_match", pa.string()),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("num_generated_tokens", pa.int32(), nullable=False),
        pa.field("token_logprobs", floats),
        pa.field("sampling_logprobs", floats),
        pa.field("token_ranks", tokens),
        pa.field("entropies", floats),
        pa.field("top_token_ids", pa.list_(tokens)),
        pa.field("top_probs", pa.list_(floats)),
        pa.field("cumulative_logprob", pa.float64()),
        pa.field("sequence_score", pa.float64()),
        pa.field("perplexity", pa.float64()),
        pa.field("prompt_logprobs", floats),
        pa.field("seed", pa.int64()),
    ]
    return pa.schema([*declared, *kept])
