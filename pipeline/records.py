"""Values that travel between the parts: a request to the engine, what comes back, and the table it becomes.

Shape letters: S steps of a completion, K recorded alternatives, P prompt tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.strategies import Strategy

SCHEMA_VERSION = 2

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

ROW_ERRORS = {
    "prompt_null": "the prompt is null",
    "prompt_not_text": "the prompt is not text",
    "prompt_not_unicode": "the prompt is not valid Unicode",
    "prompt_not_token_ids": "the prompt is not a list of integers",
    "prompt_empty": "the prompt has no tokens, and `input.on_empty_prompt` is `error`",
    "prompt_too_long": "the model's positions do not hold the prompt, and `input.on_long_prompt` is `error`",
    "token_id_out_of_range": "a token id is null, negative or not in the vocabulary",
    "id_null": "the id is null",
    "id_not_text": "the id is neither text nor an integer",
    "id_not_unicode": "the id is not valid Unicode",
    "bad_json": "the line is no JSON object",
    "bad_csv": "the record is not CSV, or has other columns than the header",
    "bad_kept_value": "a kept column holds a value that cannot be written",
    "bad_override": "a column sets what the strategy cannot have",
    "target_null": "what is to be scored is null",
    "target_not_text": "what is to be scored is not text",
    "target_not_unicode": "what is to be scored is not valid Unicode",
    "target_not_token_ids": "what is to be scored is not a list of integers",
    "target_empty": "there is nothing to score",
    "target_too_long": "the model's positions do not hold what is to be scored",
    "no_token_left": "the strategy's bans left nothing to generate",
    "force_words_unmet": "no beam held all forced words",
    "too_few_beams": "the strategy's bans left fewer beams than rows to return",
    "logits_not_finite": "the model's logits are not finite",
    "killed_replica": "generating for the row killed its replica, each time",
    "out_of_memory": "generating for the row needed more memory than there was, each time",
    "hung": "generating for the row gave no sign of life, each time",
    "engine_error": "the engine failed on the row, each time",
}


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has status `error`: a type, one of `ROW_ERRORS`, and a sentence for people."""

    type: str
    message: str


class Request(NamedTuple):
    """One prompt under one strategy.

    Attributes:
        prompt_token_ids: the prompt; under `score` what stands before the scored tokens, at least one token.
        strategy: with all words turned into token ids.
        seeds: one per output row of the strategy.
        target_token_ids: under `score`, the tokens to score.
    """

    prompt_token_ids: tuple[int, ...]
    strategy: Strategy
    seeds: tuple[int, ...]
    target_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What one (prompt, strategy, sample) became. Arrays are parallel: one entry per generated token.

    Attributes:
        token_ids: (S,) with the EOS or stop token that ended it.
        finish_reason: `eos`, `stop`, `length` (the strategy's limit), `context` (the model's), or `scored` for tokens
            that were given.
        stop_match: the stop string, or the stop token id, that ended it.
        token_logprobs: (S,) log-probability of each token under the model's own softmax, in nats.
        sampling_logprobs: (S,) the same under the distribution it was drawn from; None where nothing is drawn.
        token_ranks: (S,) rank of each token in the model's own distribution, from 1, ties by token id.
        entropies: (S,) of the model's own distribution, in nats.
        top_token_ids, top_probs: (S, K) most probable tokens, by probability descending, then token id ascending.
        sequence_score: the beam's score after length penalty.
    """

    token_ids: IntArray
    finish_reason: str
    stop_match: str | int | None
    token_logprobs: FloatArray
    sampling_logprobs: FloatArray | None
    token_ranks: IntArray
    entropies: FloatArray
    top_token_ids: IntArray
    top_probs: FloatArray
    sequence_score: float | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """The engine's answer to a request.

    Attributes:
        completions: one per seed, in order (for beams: best first), or the error that befell the request.
        prompt_logprobs: (P,) of the prompt tokens given those before them, NaN first; None unless asked for.
    """

    completions: tuple[Completion, ...] | RowError
    prompt_logprobs: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """How well a decode loop was filled; adds up over calls, shards and replicas.

    Attributes:
        num_prefills: passes of the model over new prompts.
        num_decode_steps: passes that append a token to every running row.
        used_slot_steps: rows in these steps, all together.
        offered_slot_steps: rows that the batch had room for: `run.batch_rows`, or fewer where `run.cache_gib` is less.
    """

    num_prefills: int = 0
    num_decode_steps: int = 0
    used_slot_steps: int = 0
    offered_slot_steps: int = 0

    @property
    def num_passes(self) -> int:
        """Turns of the loop."""
        return self.num_prefills + self.num_decode_steps

    @property
    def occupancy(self) -> float | None:
        """Share of the batch that was in use; None where nothing was decoded."""
        return self.used_slot_steps / self.offered_slot_steps if self.offered_slot_steps else None

    def __add__(self, other: Usage) -> Usage:
        return self._each(other, 1)

    def __sub__(self, other: Usage) -> Usage:
        return self._each(other, -1)

    def _each(self, other: Usage, sign: int) -> Usage:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Usage(*(mine + sign * theirs for mine, theirs in pairs))


def row_seed(job_seed: int, row_id: str, strategy: str, sample_index: int) -> int:
    """Seed of one output row, in [0, 2**63): a pure function of what identifies the row, so that batch, shard and
    replica cannot change what is drawn. A row that brings a seed of its own gives that, and "" for the id."""
    key = f"{job_seed}\0{row_id}\0{strategy}\0{sample_index}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
