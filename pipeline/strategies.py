"""Decoding strategies as frozen values: one type each, named and meant as in transformers' `GenerationConfig`.

A strategy says what to do and nothing about how: the engine dispatches on its type. Off is `None` or an empty list.
Checks that need only the strategy itself live here; what needs the tokenizer or the model is checked in `resolve`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

Item = TypeVar("Item")
ListOf = Annotated[tuple[Item, ...], Strict(False)]  # only the list may change type, to a tuple; its items may not
Text = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]
Phrase = Annotated[ListOf[TokenId], Field(min_length=1)]
Words = Annotated[ListOf[Text], Field(min_length=1)]
Phrases = Annotated[ListOf[Phrase], Field(min_length=1)]

# Processors in the order in which they act: transformers' own (`_get_logits_processor` of 5.23) where it has them, the
# two penalties of vLLM and OpenAI after the repetition penalty, diversity where transformers 4 had it.
PROCESSORS = (
    "guidance_scale",
    "sequence_bias",
    "diversity_penalty",
    "encoder_repetition_penalty",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_new_tokens",
    "allowed_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
)
# What narrows the distribution that is drawn from, after the processors, in order.
SAMPLERS = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


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
                # pydantic passes over some of them
                raise broken_rule(f"a key must be a string, but is {key!r}", "Write it in quotes.", key)
        return values


def broken_rule(message: str, way_out: str, *at: Any) -> PydanticCustomError:
    """An error about several keys together; `at` leads from the value checked to the one to show."""
    return PydanticCustomError("broken_rule", "{message}", {"message": message, "way_out": way_out, "at": at})


class Bias(Frozen):
    """What is added to the score of a token that completes a text or a sequence of ids."""

    text: Text | None = Field(default=None, description="Text, tokenised as written: mind the leading space.")
    token_ids: Phrase | None = Field(default=None, description="Token ids, in place of `text`.")
    bias: float = Field(
        ge=-10_000, le=10_000, description="Added to the score of the last token where the others stand before it."
    )

    @model_validator(mode="after")
    def _one_sequence(self) -> Self:
        if (self.text is None) is (self.token_ids is None):
            raise broken_rule("a bias must have one of `text` and `token_ids`", "Set exactly one.", "bias")
        return self


class Named(Frozen):
    """Anything that becomes rows of the output table."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the strategy in the output table.",
        json_schema_extra={
            "patternErrorMessage": "at most 64 letters, digits, `.`, `_` and `-`, the first a letter or a digit"
        },
    )


class Processed(Named):
    """What every decoding strategy understands: penalties, bans and ways to stop.

    Processors act in the order of `PROCESSORS`. They see the prompt and what was generated so far.
    """

    guidance_scale: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Classifier-free guidance (arXiv:2306.17806): above 1 moves away from `negative_prompt`.",
    )
    negative_prompt: Text | None = Field(
        default=None, description="What guidance moves away from; default: the last token of the prompt."
    )
    negative_prompt_ids: ListOf[TokenId] = Field(default=(), description="Token ids in place of `negative_prompt`.")
    sequence_bias: ListOf[Bias] = Field(default=(), description="Biases of tokens and sequences, texts or ids.")
    encoder_repetition_penalty: float | None = Field(
        default=None,
        ge=0.001,
        le=1000,
        description="Above 1 favours tokens of the prompt, below 1 avoids them (arXiv:1909.05858).",
    )
    repetition_penalty: float | None = Field(
        default=None,
        ge=0.001,
        le=1000,
        description="Divides positive and multiplies negative scores of tokens already seen (CTRL, arXiv:1909.05858).",
    )
    frequency_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Subtracted once per time that a token was generated, as vLLM and OpenAI define it.",
    )
    presence_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Subtracted once from tokens that were generated, as vLLM and OpenAI define it.",
    )
    no_repeat_ngram_size: int | None = Field(default=None, ge=1, description="No n-gram of this size occurs twice.")
    bad_words: ListOf[Text] = Field(
        default=(), description="Words never generated, with and without a leading space, as-is, Capitalised and UPPER."
    )
    bad_words_ids: ListOf[Phrase] = Field(default=(), description="Token-id sequences that are never completed.")
    min_new_tokens: int | None = Field(default=None, ge=1, description="No stop of any kind before this many tokens.")
    allowed_words: ListOf[Text] = Field(
        default=(),
        description="The completion is made of these words alone, with the variants that `bad_words` have.",
    )
    allowed_words_ids: ListOf[Phrase] = Field(
        default=(), description="The completion is made of these token-id sequences alone."
    )
    forced_bos_token_id: TokenId | None = Field(default=None, description="The first token generated.")
    forced_eos_token_id: TokenId | None = Field(default=None, description="The token generated where the limit is met.")
    exponential_decay_length_penalty: Annotated[ListOf[float], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="[start, factor]: after `start` tokens the end-of-text score grows by |score| x (factor^n - 1).",
    )
    suppress_tokens: ListOf[TokenId] = Field(default=(), description="Tokens never generated.")
    begin_suppress_tokens: ListOf[TokenId] = Field(default=(), description="Tokens not generated first.")
    stop_strings: ListOf[Text] = Field(
        default=(), description="Stop once the completion contains one of these; `text` is cut before it."
    )
    stop_token_ids: ListOf[TokenId] = Field(default=(), description="Stop after one of these tokens, which is kept.")
    ignore_eos: bool = Field(default=False, description="Treat the end-of-text token as any other token.")

    @model_validator(mode="after")
    def _guided(self) -> Self:
        if self.negative_prompt is not None and self.negative_prompt_ids:
            raise broken_rule(
                "`negative_prompt` and `negative_prompt_ids` say the same", "Set one of them.", "negative_prompt_ids"
            )
        for key in ("negative_prompt", "negative_prompt_ids"):
            if getattr(self, key) and self.guidance_scale is None:
                message = f"`{key}` has no effect without `guidance_scale`, which says how far to move away from it"
                raise broken_rule(message, "Set `guidance_scale: 1.5` or the like.", key)
        return self

    @model_validator(mode="after")
    def _can_be_forced(self) -> Self:
        for key in ("forced_bos_token_id", "forced_eos_token_id"):
            if getattr(self, key) in self.suppress_tokens:
                message = f"`{key}` forces token {getattr(self, key)}, which `suppress_tokens` bans"
                raise broken_rule(message, "Take it out of one of them.", key)
        return self

    @model_validator(mode="after")
    def _decays(self) -> Self:
        decay = self.exponential_decay_length_penalty
        if decay is None:
            return self
        key = "exponential_decay_length_penalty"
        if self.ignore_eos:
            message = f"`{key}` raises the score of the end of text, which `ignore_eos` makes a token like any other"
            raise broken_rule(message, "Leave one of them out.", key)
        if decay[0] < 0 or decay[0] != int(decay[0]) or decay[1] <= 0:
            message = f"`{key}` must be [start, factor], a number of tokens and a number above 0, but is {list(decay)}"
            raise broken_rule(message, "Write it as [20, 1.1].", key)
        return self


class Generating(Processed):
    """A strategy that generates text, up to exactly one of two limits."""

    max_new_tokens: int | None = Field(default=None, ge=1, description="Most tokens to generate.")
    max_length: int | None = Field(default=None, ge=2, description="Most tokens of prompt and completion together.")

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_new_tokens is None and self.max_length is None:
            raise broken_rule(
                "there is no limit of length", "Set `max_new_tokens`, or `max_length`, which counts the prompt."
            )
        if self.max_new_tokens is not None and self.max_length is not None:
            raise broken_rule(
                "there are two limits, `max_new_tokens` and `max_length`", "Set exactly one of them.", "max_length"
            )
        limit = self.max_new_tokens or self.max_length
        if self.min_new_tokens and limit and self.min_new_tokens > limit:
            message = f"`min_new_tokens` ({self.min_new_tokens}) must not be above the limit of {limit} tokens"
            raise broken_rule(message, "Lower it, or raise the limit.", "min_new_tokens")
        return self


class Drawing(Generating):
    """A strategy that can draw tokens, from the distribution left by `SAMPLERS` in this order.

    Unlike transformers, whose `do_sample=True` means top_k=50 unless told otherwise, every filter is off unless set.
    """

    temperature: float = Field(default=1.0, gt=0, description="Divides the scores; below 1 sharpens, above 1 flattens.")
    top_h: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Of the 100 best, keep the best whose entropy adds up to this share (arXiv:2509.02510).",
    )
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
    typical_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Keep the tokens closest to the entropy until they reach this mass (arXiv:2202.00666).",
    )
    epsilon_cutoff: float | None = Field(
        default=None, gt=0, lt=1, description="Keep tokens at least this probable (arXiv:2210.15191)."
    )
    eta_cutoff: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Keep tokens of at least min(eta, sqrt(eta) x exp(-entropy)) (arXiv:2210.15191).",
    )


class Greedy(Generating):
    """The most probable token at each step; the lower token id on a tie."""

    type: Literal["greedy"]


class Sampling(Drawing):
    """Draws each token, with a seed per row."""

    type: Literal["sampling"]
    num_return_sequences: int = Field(default=1, ge=1, le=1024, description="Samples per prompt.")


class BeamSearch(Drawing):
    """Beam search as `transformers.generate(num_beams=...)` does it, scores and stopping included.

    With `do_sample` its candidates are drawn, with `num_beam_groups` groups of beams keep apart, with `force_words`
    every beam contains the words.
    """

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
    do_sample: bool = Field(default=False, description="Draw the candidates of a step, without replacement.")
    num_beam_groups: int | None = Field(
        default=None, ge=2, description="Diverse beam search: groups of num_beams / num_beam_groups (arXiv:1610.02424)."
    )
    diversity_penalty: float | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="Subtracted once per beam of earlier groups that took the token in this step.",
    )
    force_words: ListOf[Text | Words] = Field(
        default=(), description="Words that every completion contains; a list means one of its words."
    )
    force_words_ids: ListOf[Phrase | Phrases] = Field(
        default=(), description="Token-id sequences that every completion contains; a list of them means one of it."
    )
    num_return_sequences: int = Field(default=1, ge=1, description="Best beams returned per prompt, as rows.")

    @model_validator(mode="after")
    def _enough_beams(self) -> Self:
        if self.num_return_sequences > self.num_beams:
            message = (
                f"`num_return_sequences` ({self.num_return_sequences}) must not be above `num_beams` ({self.num_beams})"
            )
            raise broken_rule(message, "Lower it, or raise `num_beams`.", "num_return_sequences")
        return self

    @model_validator(mode="after")
    def _drawn_or_not(self) -> Self:
        for key in SAMPLERS:
            if not self.do_sample and getattr(self, key) != type(self).model_fields[key].default:
                message = f"`{key}` has no effect without `do_sample: true`: beams take the best candidates otherwise"
                raise broken_rule(message, "Set that, or leave it out.", key)
        return self

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if (self.num_beam_groups is None) is not (self.diversity_penalty is None):
            there, missing = "num_beam_groups", "diversity_penalty"
            if self.num_beam_groups is None:
                there, missing = missing, there
            message = f"`{there}` needs `{missing}`: groups differ only by the penalty, which acts only between groups"
            raise broken_rule(message, "Set both or neither.", there)
        if self.num_beam_groups and self.num_beams % self.num_beam_groups:
            message = f"`num_beams` ({self.num_beams}) must be a multiple of `num_beam_groups` ({self.num_beam_groups})"
            raise broken_rule(message, "Change one of them.", "num_beam_groups")
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = {
            "do_sample": ("draws its candidates", self.do_sample),
            "num_beam_groups": ("compares groups by the best candidates", self.num_beam_groups is not None),
            "force_words": ("sorts beams by the words they hold", bool(self.force_words)),
            "force_words_ids": ("sorts beams by the words they hold", bool(self.force_words_ids)),
        }
        chosen = [key for key, (_, is_set) in kinds.items() if is_set]
        if len(chosen) > 1 and chosen != ["force_words", "force_words_ids"]:
            first, second = chosen[:2]
            message = f"`{first}` {kinds[first][0]} and `{second}` {kinds[second][0]}"
            raise broken_rule(message, "Use one of them in a strategy.", second)
        return self


class ContrastiveSearch(Generating):
    """Contrastive search (Su et al., arXiv:2202.06417): of the top_k candidates the one that is probable and, by its
    hidden state, unlike all tokens before it."""

    type: Literal["contrastive_search"]
    penalty_alpha: float = Field(gt=0, le=1, description="Weight of the degeneration penalty against the probability.")
    top_k: int = Field(ge=2, le=256, description="Candidates of each step, each of which is run through the model.")


class Dola(Generating):
    """DoLa (Chuang et al., arXiv:2309.03883): the token that the last layer likes more than an early layer does."""

    type: Literal["dola"]
    dola_layers: Literal["low", "high"] | Annotated[ListOf[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        description="Early layers to contrast with: the lower half, the upper half, or a list (0: the embedding)."
    )


class NextToken(Processed):
    """No text: one step, its most probable token and the `output.top_k` candidates with their probabilities."""

    type: Literal["next_token"]

    @model_validator(mode="after")
    def _one_step(self) -> Self:
        for key in ("frequency_penalty", "presence_penalty", "exponential_decay_length_penalty"):
            if getattr(self, key) is not None:
                message = f"`{key}` has no effect under `type: next_token`: it acts on what was generated before a step"
                raise broken_rule(message, "Leave it out.", key)
        return self


class Score(Named):
    """No generation: the log-probability of every token of a given text, the prompt's or that of a target column."""

    type: Literal["score"]
    target_column: Text | None = Field(
        default=None, description="Column of texts or token ids that are scored after the prompt; default: the prompt."
    )
    add_bos: bool | None = Field(
        default=None,
        description="Score the prompt after the beginning-of-text token, as lm-evaluation-harness does (default), or "
        "take its first token for given.",
    )

    @model_validator(mode="after")
    def _what_is_given(self) -> Self:
        if self.target_column is not None and self.add_bos is not None:
            message = "`add_bos` has no meaning with `target_column`: there the prompt comes before the scored tokens"
            raise broken_rule(message, "Leave it out.", "add_bos")
        return self


Decoding = Greedy | Sampling | BeamSearch | ContrastiveSearch | Dola | NextToken
Strategy = Annotated[Decoding | Score, Field(discriminator="type")]


def num_rows(strategy: Strategy) -> int:
    """Rows of output per prompt: samples or returned beams."""
    match strategy:
        case Sampling() | BeamSearch():
            return strategy.num_return_sequences
        case _:
            return 1


def is_guided(strategy: Decoding) -> bool:
    """Whether a row runs beside a twin after the negative prompt."""
    return strategy.guidance_scale not in (None, 1)


def num_slots(strategy: Decoding) -> int:
    """Most rows that must be decoded together: beams or candidates, and their twins."""
    match strategy:
        case BeamSearch():
            rows = strategy.num_beams
        case ContrastiveSearch():
            rows = strategy.top_k
        case _:
            rows = 1
    return rows * (2 if is_guided(strategy) else 1)


@lru_cache(maxsize=4096)
def kind(strategy: Decoding) -> Decoding:
    """One and the same object for all strategies that differ in nothing but their name and where they end."""
    limits = {"max_new_tokens", "max_length"} & type(strategy).model_fields.keys()
    return _first_equal(strategy.model_copy(update={"name": ""} | dict.fromkeys(limits)))


@lru_cache(maxsize=4096)
def _first_equal(strategy: Decoding) -> Decoding:
    return strategy


def max_steps(strategy: Decoding, num_prompt_tokens: int) -> int:
    """Most tokens the strategy lets a prompt of this length generate; `max_length` counts the prompt, per row."""
    match strategy:
        case NextToken():
            return 1
        case _:
            if strategy.max_new_tokens is not None:
                return strategy.max_new_tokens
            return max(0, (strategy.max_length or 0) - num_prompt_tokens)
