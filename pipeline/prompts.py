"""From input rows to what the model is given: tokenise, and apply the job's rules for long and empty prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline.config import Job
from pipeline.input_columns import Use, is_text, is_token_ids
from pipeline.records import RowError
from pipeline.strategies import Generating, Score, Strategy
from pipeline.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """A prompt as text (None if there is none to show) and as token ids, or why it cannot be used.

    Under `score` the token ids are what is given, and `target_token_ids` what is scored after them.
    """

    text: str | None
    token_ids: tuple[int, ...] | RowError
    is_truncated: bool = False
    target_token_ids: tuple[int, ...] = ()


class Rules(NamedTuple):
    """What makes a prompt usable.

    Attributes:
        num_positions: longest prompt.
        vocab_size: ids are below.
        bos_token_id: what an empty prompt becomes, None if that is an error.
        on_long_prompt: as in the job file.
    """

    num_positions: int
    vocab_size: int
    bos_token_id: int | None
    on_long_prompt: str


def rules(job: Job, num_positions: int, vocab_size: int, bos_token_id: int | None) -> Rules:
    """The job's rules for this model."""
    return Rules(
        num_positions=num_positions,
        vocab_size=vocab_size,
        bos_token_id=bos_token_id if job.input.on_empty_prompt == "bos" else None,
        on_long_prompt=job.input.on_long_prompt,
    )


def num_kept(strategies: Iterable[Strategy], num_positions: int) -> int:
    """Tokens kept of a prompt that is too long: they leave room for the longest completion of these strategies."""
    limits = [s.max_new_tokens for s in strategies if isinstance(s, Generating) and s.max_new_tokens]
    return max(1, num_positions + 1 - max(limits, default=1))


def target_uses(job: Job) -> list[Use]:
    """The columns whose texts or token ids are scored."""
    rule = "a target must be text or a list of token ids"
    return [
        Use(s.target_column, f"target_column of strategy `{s.name}`", rule, lambda t: is_text(t) or is_token_ids(t))
        for s in job.strategies
        if isinstance(s, Score) and s.target_column is not None
    ]


def tokenised(values: Sequence[str | list[int] | RowError], tokenizer: Tokenizer, limits: Rules) -> list[Prompt]:
    """Prompts of any length from input values, in order: texts, token ids, or errors found while reading."""
    token_ids = iter(tokenizer.encode([value for value in values if isinstance(value, str)]))
    prompts = []
    for value in values:
        if isinstance(value, RowError):
            prompts.append(Prompt(None, value))
        elif isinstance(value, str):
            prompts.append(Prompt(value, tuple(next(token_ids))))
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
    return Prompt(tokenizer.decode(token_ids), tuple(token_ids))


def fitted(prompt: Prompt, limits: Rules, kept: int, num_beside: int = 1) -> Prompt:
    """The prompt under the rules for empty and long ones.

    Args:
        prompt: of any length.
        limits: the rules.
        kept: tokens that stay of one that is too long.
        num_beside: tokens that stand beside the prompt; the last token of all takes no position.
    """
    token_ids = prompt.token_ids
    if isinstance(token_ids, RowError):
        return prompt
    if not token_ids:
        return prompt._replace(token_ids=_of_empty(limits))
    if len(token_ids) + num_beside <= limits.num_positions + 1:
        return prompt
    match limits.on_long_prompt:
        case "truncate_left":
            return prompt._replace(token_ids=token_ids[-kept:], is_truncated=True)
        case "truncate_right":
            return prompt._replace(token_ids=token_ids[:kept], is_truncated=True)
        case _:
            target = f" and its target {num_beside}" if num_beside > 1 else ""
            message = (
                f"the prompt has {len(token_ids)} tokens{target}, the model's context {limits.num_positions}; "
                "shorten it or set input.on_long_prompt"
            )
            return prompt._replace(token_ids=RowError("prompt_too_long", message))


def _of_empty(limits: Rules) -> tuple[int, ...] | RowError:
    if limits.bos_token_id is None:
        return RowError("prompt_empty", "the prompt is empty; input.on_empty_prompt is `error`")
    return (limits.bos_token_id,)


def scored(prompt: Prompt, target: Prompt, limits: Rules) -> Prompt:
    """The prompt with the target that is scored after it; a long prompt makes room for the target."""
    token_ids = target.token_ids
    if isinstance(prompt.token_ids, RowError):
        return prompt
    if isinstance(token_ids, RowError):
        return prompt._replace(token_ids=token_ids)
    if not token_ids:
        return _nothing(prompt, "the target is empty")
    room = limits.num_positions + 1 - len(token_ids)
    if room < 1:
        message = f"the target has {len(token_ids)} tokens, the model's context {limits.num_positions}; shorten it"
        return prompt._replace(token_ids=RowError("target_too_long", message))
    return fitted(prompt, limits, room, len(token_ids))._replace(target_token_ids=token_ids)


def self_scored(prompt: Prompt, given: tuple[int, ...], limits: Rules) -> Prompt:
    """The prompt as its own target, after the tokens that are given, or else after its own first one."""
    if not prompt.token_ids:
        empty = _of_empty(limits)
        return (
            prompt._replace(token_ids=empty) if isinstance(empty, RowError) else _nothing(prompt, "the prompt is empty")
        )
    cut = fitted(prompt, limits, limits.num_positions + 1 - len(given), len(given))
    if isinstance(cut.token_ids, RowError):
        return cut
    first, *rest = (*given, *cut.token_ids)
    if not rest:
        return _nothing(prompt, "the prompt has one token, which is given")
    return cut._replace(token_ids=(first,), target_token_ids=tuple(rest))


def _nothing(prompt: Prompt, why: str) -> Prompt:
    return prompt._replace(token_ids=RowError("target_empty", f"{why}: there is nothing to score"))
