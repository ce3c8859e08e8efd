"""From input rows to prompts the model can take: tokenise, and apply the job's rules for long and empty ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.config import Job
from pipeline.records import RowError
from pipeline.strategies import Generating
from pipeline.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """A prompt as text (None if there is none to show) and as token ids, or why it cannot be used."""

    text: str | None
    token_ids: tuple[int, ...] | RowError
    is_truncated: bool = False


class Rules(NamedTuple):
    """What makes a prompt usable.

    Attributes:
        num_positions: longest prompt.
        num_kept: tokens kept of a longer one, leaving room for the longest completion of the job.
        vocab_size: ids are below.
        bos_token_id: what an empty prompt becomes, None if that is an error.
        on_long_prompt: as in the job file.
    """

    num_positions: int
    num_kept: int
    vocab_size: int
    bos_token_id: int | None
    on_long_prompt: str


def rules(job: Job, num_positions: int, vocab_size: int, bos_token_id: int | None) -> Rules:
    """The job's rules for this model."""
    limits = [s.max_new_tokens for s in job.strategies if isinstance(s, Generating) and s.max_new_tokens]
    room = num_positions + 1 - max(limits, default=1)
    return Rules(
        num_positions=num_positions,
        num_kept=max(1, room),
        vocab_size=vocab_size,
        bos_token_id=bos_token_id if job.input.on_empty_prompt == "bos" else None,
        on_long_prompt=job.input.on_long_prompt,
    )


def to_prompts(values: Sequence[str | list[int] | RowError], tokenizer: Tokenizer, limits: Rules) -> list[Prompt]:
    """Prompts of input values, in order: texts, token ids, or errors found while reading."""
    token_ids = iter(tokenizer.encode([value for value in values if isinstance(value, str)]))
    prompts = []
    for value in values:
        if isinstance(value, RowError):
            prompts.append(Prompt(None, value))
        elif isinstance(value, str):
            prompts.append(_checked(value, next(token_ids), limits))
        else:
            prompts.append(_from_ids(value, tokenizer, limits))
    return prompts


def _from_ids(token_ids: list[int], tokenizer: Tokenizer, limits: Rules) -> Prompt:
    wrong = [token_id for token_id in token_ids if not 0 <= token_id < limits.vocab_size]
    if wrong:
        message = (
            f"token id {wrong[0]} is outside the vocabulary of {limits.vocab_size} tokens (0..{limits.vocab_size - 1})"
        )
        return Prompt(None, RowError("token_id_out_of_range", message))
    return _checked(tokenizer.decode(token_ids), token_ids, limits)


def _checked(text: str, token_ids: list[int], limits: Rules) -> Prompt:
    if not token_ids:
        if limits.bos_token_id is None:
            return Prompt(text, RowError("prompt_empty", "the prompt is empty; input.on_empty_prompt is `error`"))
        return Prompt(text, (limits.bos_token_id,))
    if len(token_ids) <= limits.num_positions:
        return Prompt(text, tuple(token_ids))
    match limits.on_long_prompt:
        case "truncate_left":
            return Prompt(text, tuple(token_ids[-limits.num_kept :]), is_truncated=True)
        case "truncate_right":
            return Prompt(text, tuple(token_ids[: limits.num_kept]), is_truncated=True)
        case _:
            message = (
                f"the prompt has {len(token_ids)} tokens, the model's context {limits.num_positions}; "
                "shorten it or set input.on_long_prompt"
            )
            return Prompt(text, RowError("prompt_too_long", message))
