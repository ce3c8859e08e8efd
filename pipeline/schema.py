"""The output table: its columns, their types and their order."""

from __future__ import annotations

import pyarrow as pa

MEANINGS = {
    "row_id": "the row's key",
    "row_index": "its position in the whole input",
    "strategy": "name of the strategy",
    "sample_index": "the sample, or the beam's rank, from 0",
    "status": "`ok` or `error`",
    "error_type": "what kind of error, null when ok",
    "error_message": "why, in a sentence",
    "prompt": "text that was completed",
    "text": "token_ids as text, without special tokens, cut before a matched stop string",
    "prompt_token_ids": "the prompt as it was fed",
    "token_ids": "tokens generated or scored, EOS or stop token included",
    "finish_reason": "`eos`, `stop`, `length`, `context` or `scored`",
    "stop_match": "stop string or token that matched",
    "num_prompt_tokens": "entries of prompt_token_ids",
    "num_generated_tokens": "entries of token_ids",
    "token_logprobs": "log-probability of each token in the model's own distribution, in nats",
    "sampling_logprobs": "the same in the distribution it was drawn from",
    "token_ranks": "rank of each token in the model's own distribution, from 1",
    "entropies": "of the model's own distribution at each step, in nats",
    "top_token_ids": "most probable tokens of each step",
    "top_probs": "their probabilities",
    "cumulative_logprob": "sum of token_logprobs",
    "sequence_score": "beam score after length penalty",
    "perplexity": "exp(-cumulative_logprob / num_generated_tokens)",
    "prompt_logprobs": "log-probability of each token of the prompt, the first null",
    "seed": "of the row; with the job file enough to generate it again",
}


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
