"""Decoding strategies as frozen values: one type each, named and meant as in transformers' `GenerationConfig`.

A strategy says what to do and nothing about how: the engine dispatches on its type. Off is `None`. Checks that need
only the strategy itself live here; what needs the tokenizer or the rest of the job is checked in `config` and `plan`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

Item = TypeVar("Item")
ListOf = Annotated[tuple[Item, ...], Strict(False)]  # only the list may change type, to a tuple; its items may not
Text = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]
Phrase = Annotated[ListOf[TokenId], Field(min_length=1)]


class Frozen(BaseModel):
    """Base of every value in the job file: immutable, an unknown key is an error, and no value changes its type.

    Strict, because pydantic otherwise takes `true` as 1 and `"0.8"` as 0.8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _string_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if not isinstance(key, str):
                raise broken_rule(f"a key must be a string, but is {key!r}", key)  # pydantic passes over some of them
        return values


def broken_rule(message: str, *at: Any) -> PydanticCustomError:
    """An error about several keys together; `at` leads from the value checked to the one to show."""
    return PydanticCustomError("broken_rule", "{message}", {"message": message, "at": at})


class Processed(Frozen):
    """What every strategy understands: penalties, bans and ways to stop.

    Processors act in the order repetition_penalty, no_repeat_ngram_size, bad_words, min_new_tokens, which is
    transformers' order. They see the prompt and what was generated so far.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the strategy in the output table.",
        json_schema_extra={
            "patternErrorMessage": "at most 64 letters, digits, `.`, `_` and `-`, the first a letter or a digit"
        },
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        description="Divides positive and multiplies negative scores of tokens already seen (CTRL, arXiv:1909.05858).",
    )
    no_repeat_ngram_size: int | None = Field(default=None, ge=1, description="No n-gram of this size occurs twice.")
    bad_words: ListOf[Text] = Field(
        default=(), description="Words never generated, with and without a leading space, as-is, Capitalised and UPPER."
    )
    bad_words_ids: ListOf[Phrase] = Field(default=(), description="Token-id sequences that are never completed.")
    min_new_tokens: int | None = Field(default=None, ge=1, description="No stop of any kind before this many tokens.")
    stop_strings: ListOf[Text] = Field(
        default=(), description="Stop once the completion contains one of these; `text` is cut before it."
    )
    stop_token_ids: ListOf[TokenId] = Field(default=(), description="Stop after one of these tokens, which is kept.")
    ignore_eos: bool = Field(default=False, description="Treat the end-of-text token as any other token.")


class Generating(Processed):
    """A strategy that generates text, up to exactly one of two limits."""

    max_new_tokens: int | None = Field(default=None, ge=1, description="Most tokens to generate.")
    max_length: int | None = Field(default=None, ge=2, description="Most tokens of prompt and completion together.")

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_new_tokens is None and self.max_length is None:
            raise broken_rule("set `max_new_tokens`, or `max_length`, which counts the prompt")
        if self.max_new_tokens is not None and self.max_length is not None:
            raise broken_rule("set exactly one of `max_new_tokens` and `max_length`, not both", "max_length")
        limit = self.max_new_tokens or self.max_length
        if self.min_new_tokens and limit and self.min_new_tokens > limit:
            message = f"`min_new_tokens` ({self.min_new_tokens}) must not be above the limit of {limit} tokens"
            raise broken_rule(message, "min_new_tokens")
        return self


class Greedy(Generating):
    """The most probable token at each step; the lower token id on a tie."""

    type: Literal["greedy"]


class Sampling(Generating):
    """Draws each token from the distribution left by temperature, top_k, top_p and min_p, in this order.

    Unlike transformers, whose `do_sample=True` means top_k=50 unless told otherwise, every filter is off unless set.
    """

    type: Literal["sampling"]
    temperature: float = Field(default=1.0, gt=0, description="Divides the scores; below 1 sharpens, above 1 flattens.")
    top_k: int | None = Field(default=None, ge=1, description="Keep the k most probable tokens (arXiv:1805.04833).")
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Keep the fewest tokens whose probabilities reach top_p, the one that crosses it included "
        "(arXiv:1904.09751).",
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Keep tokens at least min_p times as probable as the best (arXiv:2407.01082).",
    )
    num_return_sequences: int = Field(default=1, ge=1, le=1024, description="Samples per prompt.")


class BeamSearch(Generating):
    """Beam search as `transformers.generate(num_beams=...)` does it, scores and stopping included."""

    type: Literal["beam_search"]
    num_beams: int = Field(ge=2, le=64, description="Hypotheses kept at each step.")
    length_penalty: float = Field(
        default=1.0,
        ge=-10,
        le=10,
        description="Exponent of the length that divides a score; above 0 favours longer completions.",
    )
    early_stopping: bool | Literal["never"] = Field(
        default=False,
        description="true: stop at num_beams finished ones; false: when better ones are unlikely; never: impossible.",
    )
    num_return_sequences: int = Field(default=1, ge=1, description="Best beams returned per prompt, as rows.")

    @model_validator(mode="after")
    def _enough_beams(self) -> Self:
        if self.num_return_sequences > self.num_beams:
            message = (
                f"`num_return_sequences` ({self.num_return_sequences}) must not be above `num_beams` ({self.num_beams})"
            )
            raise broken_rule(message, "num_return_sequences")
        return self


class NextToken(Processed):
    """No text: one step, its most probable token and the `output.top_k` candidates with their probabilities."""

    type: Literal["next_token"]


Strategy = Annotated[Greedy | Sampling | BeamSearch | NextToken, Field(discriminator="type")]


def num_rows(strategy: Strategy) -> int:
    """Rows of output per prompt: samples or returned beams."""
    match strategy:
        case Sampling() | BeamSearch():
            return strategy.num_return_sequences
        case _:
            return 1


def max_steps(strategy: Strategy, num_prompt_tokens: int) -> int:
    """Most tokens the strategy lets a prompt of this length generate; `max_length` counts the prompt, per row."""
    match strategy:
        case NextToken():
            return 1
        case _:
            if strategy.max_new_tokens is not None:
                return strategy.max_new_tokens
            return max(0, (strategy.max_length or 0) - num_prompt_tokens)
