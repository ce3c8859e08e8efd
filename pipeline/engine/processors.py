"""Logits processors: penalties, bans and forced tokens, each a function of the scores and of what the row has seen.

`APPLY` lists them in the order in which they act; the order is part of the contract (`strategies.PROCESSORS`) and is
transformers'. Beams pass log-probabilities, all others logits, also as in transformers. Banned is -inf, and nothing but
`forced_bos_token_id` and `forced_eos_token_id` brings a token back: rows whose tokens are all banned stay so.

A processor may write into the scores it is given and returns the result; `process` hands them its own copy. None of
them knows how the scores were made or what becomes of them.

Shape letters: B rows, V vocabulary, T longest history, P phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.engine import history
from pipeline.strategies import Bias, Processed

BANNED = float("-inf")
_MOST_GROWTH = 1e30  # of a score under length decay: any score times this is still finite


class Context(NamedTuple):
    """What the rows have seen, and what else their processors look at.

    Attributes:
        token_ids: (B, T) int64, prompt and completion, of which the first `lengths` count.
        lengths: (B,) int64.
        num_prompt_tokens: (B,) int64, at least 1.
        limits: (B,) int64, most tokens each row may generate.
        eos_token_ids: tokens that end a text; empty under `ignore_eos`.
        stop_token_ids: all tokens that end a row, EOS included.
        allowed: per row, the tokens that `allowed_words_ids` leave; empty when the key is off.
        unconditional: (B, V) logits after the negative prompt, when `guidance_scale` is on.
        tables: of token ids, where they must stay at their place: of whoever calls again. Others share some.
        crowd: (B, V) how many beams of earlier groups took a token in this step, when `diversity_penalty` is on.
    """

    token_ids: Tensor
    lengths: Tensor
    num_prompt_tokens: Tensor
    limits: Tensor
    eos_token_ids: Sequence[int]
    stop_token_ids: Sequence[int]
    allowed: Sequence[Collection[int]] = ()
    unconditional: Tensor | None = None
    crowd: Tensor | None = None
    tables: dict[Any, Any] | None = None

    @property
    def num_generated(self) -> Tensor:
        """(B,) int64."""
        return self.lengths - self.num_prompt_tokens


def changes_scores(strategy: Processed) -> bool:
    """Whether `process` could do anything under this strategy."""
    return bool(settings(strategy))


def process(strategy: Processed, scores: Tensor, context: Context) -> Tensor:
    """Apply the strategy's processors in the order of `APPLY`.

    Args:
        strategy: with words and texts already turned into token ids.
        scores: (B, V) float32, left as they are.
        context: of the same rows.

    Returns:
        (B, V).
    """
    active = settings(strategy)
    if active:
        scores = scores.clone()
    for key, setting in active.items():
        scores = APPLY[key](scores, context, setting)
    return scores


def settings(strategy: Processed) -> dict[str, Any]:
    """What each processor that is on acts with, in order. One that changes nothing is off, as in transformers."""
    values = {key: getattr(strategy, key, None) for key in APPLY}  # only beams have a diversity_penalty
    active = {key: value for key, value in values.items() if value not in (None, (), NEUTRAL.get(key))}
    if strategy.begin_suppress_tokens:
        first_free = 0 if strategy.forced_bos_token_id is None else 1
        active["begin_suppress_tokens"] = (strategy.begin_suppress_tokens, first_free)
    return active


def log_softmax(scores: Tensor) -> Tensor:
    """Log-probabilities, (B, V); a row whose tokens are all banned stays as it is, where torch gives NaN."""
    log_normalisers = torch.logsumexp(scores, dim=-1, keepdim=True)
    return scores - log_normalisers.masked_fill(log_normalisers == BANNED, 0.0)


def guide(scores: Tensor, context: Context, scale: float) -> Tensor:
    """Move log-probabilities away from those after the negative prompt: u + scale * (scores - u).

    arXiv:2306.17806; transformers' `UnbatchedClassifierFreeGuidanceLogitsProcessor`. A token that is impossible after
    the negative prompt keeps its log-probability.
    """
    assert context.unconditional is not None, "guidance needs the logits after the negative prompt"
    scores = log_softmax(scores)
    unconditional = log_softmax(context.unconditional)
    guided = scale * (scores - unconditional) + unconditional
    return torch.where(unconditional == BANNED, scores, guided)


def bias_sequences(scores: Tensor, context: Context, biases: Sequence[Bias]) -> Tensor:
    """Add each bias to the last token of its sequence, on rows that end in the rest of it.

    transformers' `SequenceBiasLogitsProcessor`: what several sequences add to a token adds up, and of two biases for
    the same sequence the last counts.
    """
    values = _by_sequence(biases)
    bias = torch.tensor(list(values.values()), dtype=torch.float64, device=scores.device)
    phrases = history.by_length(tuple(values), scores.device)
    added = torch.cat([torch.where(_are_begun(context, same), bias[same.places], 0.0) for same in phrases], dim=1)
    targets, place = torch.unique(torch.cat([same.last_tokens for same in phrases]), return_inverse=True)
    # Summed in float64 because several addends may reach a token, on a GPU in any order.
    total = added.new_zeros(len(scores), len(targets)).index_add_(1, place, added)
    return scores.index_add_(1, targets, total.to(scores.dtype))


def penalise_crowd(scores: Tensor, context: Context, penalty: float) -> Tensor:
    """Subtract `penalty` for each beam of an earlier group that took the token in this step.

    Diverse beam search, arXiv:1610.02424; `HammingDiversityLogitsProcessor` of transformers 4.
    """
    assert context.crowd is not None, "diversity needs the tokens of the earlier groups"
    return scores.sub_(penalty * context.crowd)


def favour_prompt(scores: Tensor, context: Context, penalty: float) -> Tensor:
    """Multiply positive and divide negative scores of the prompt's tokens by `penalty`, once each.

    transformers' `EncoderRepetitionPenaltyLogitsProcessor`, for a decoder: its encoder's input is the prompt.
    """
    prompt = history.span(context.token_ids, torch.zeros_like(context.lengths), context.num_prompt_tokens)
    return _penalise(scores, prompt, 1 / penalty)


def penalise_repetition(scores: Tensor, context: Context, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores of seen tokens by `penalty`, once however often they were seen.

    CTRL, arXiv:1909.05858; transformers' `RepetitionPenaltyLogitsProcessor`.
    """
    seen = history.span(context.token_ids, torch.zeros_like(context.lengths), context.lengths)
    return _penalise(scores, seen, penalty)


def penalise_frequency(scores: Tensor, context: Context, penalty: float) -> Tensor:
    """Subtract `penalty` from a token's score for each time that it was generated; the prompt does not count.

    vLLM's and OpenAI's `frequency_penalty`.
    """
    generated, counts = history.count(context.token_ids, context.num_prompt_tokens, context.lengths)
    return scores.scatter_(1, generated, scores.gather(1, generated) - penalty * counts)


def penalise_presence(scores: Tensor, context: Context, penalty: float) -> Tensor:
    """Subtract `penalty` once from the scores of tokens that were generated; the prompt does not count.

    vLLM's and OpenAI's `presence_penalty`.
    """
    generated, counts = history.count(context.token_ids, context.num_prompt_tokens, context.lengths)
    return scores.scatter_(1, generated, scores.gather(1, generated) - penalty * (counts > 0))


def ban_repeated_ngrams(scores: Tensor, context: Context, size: int) -> Tensor:
    """Ban every token that would complete an n-gram of this size that the row has already seen.

    transformers' `NoRepeatNGramLogitsProcessor`, per row: pads never count as seen.
    """
    if context.token_ids.shape[1] < size:
        return scores
    return _ban(scores, *history.repeated(context.token_ids, context.lengths, size))


def ban_phrases(scores: Tensor, context: Context, phrases: history.Phrases) -> Tensor:
    """Ban the last token of each phrase on rows that end in the rest of it; one-token phrases always.

    transformers' `NoBadWordsLogitsProcessor`, which however passes over a phrase that is EOS alone.
    """
    for same in _table(context, history.by_length, phrases):
        scores = _ban(scores, same.last_tokens, _are_begun(context, same))
    return scores


def forbid_stop(scores: Tensor, context: Context, min_new_tokens: int) -> Tensor:
    """Ban the tokens that end a row until it has generated `min_new_tokens`.

    transformers' `MinNewTokensLengthLogitsProcessor`, for every stop token.
    """
    return _ban_all(scores, context, context.stop_token_ids, context.num_generated < min_new_tokens)


def keep_allowed(scores: Tensor, context: Context, _: object) -> Tensor:
    """Ban all but the allowed tokens of each row.

    transformers' `PrefixConstrainedLogitsProcessor`, which however forces an allowed token when all are banned.
    """
    allowed = context.allowed
    assert len(allowed) == len(scores), "every row needs its allowed tokens"
    counts = torch.tensor([len(token_ids) for token_ids in allowed], device=scores.device)
    rows = torch.arange(len(allowed), device=scores.device).repeat_interleave(counts)
    token_ids = torch.tensor([*chain.from_iterable(allowed)], dtype=torch.int64, device=scores.device)
    return torch.full_like(scores, BANNED).index_put_((rows, token_ids), scores[rows, token_ids])


def force_first(scores: Tensor, context: Context, token_id: int) -> Tensor:
    """Make `token_id` the only choice, at a score of 0, on rows that have generated nothing yet.

    As transformers' documentation has `forced_bos_token_id`; its `ForcedBOSTokenLogitsProcessor` acts only after
    prompts of one token.
    """
    return _force(scores, token_id, context.num_generated == 0)


def force_last(scores: Tensor, context: Context, token_id: int) -> Tensor:
    """Make `token_id` the only choice, at a score of 0, on rows one token short of their limit.

    transformers' `ForcedEOSTokenLogitsProcessor`, with a limit per row.
    """
    return _force(scores, token_id, context.num_generated == context.limits - 1)


def decay_length(scores: Tensor, context: Context, start_and_factor: Sequence[float]) -> Tensor:
    """Raise the score of EOS by |score| * (factor ** n - 1), n tokens after `start`; not if it is banned.

    transformers' `ExponentialDecayLengthPenalty`. The growth stops where float32 would overflow.
    """
    start, factor = start_and_factor
    token_ids = _table(context, _ids, tuple(context.eos_token_ids))
    num_late = (context.num_generated - start).clamp(min=0).double()
    growth = (factor**num_late - 1).clamp(max=_MOST_GROWTH).to(scores.dtype)[:, None]
    values = scores[:, token_ids]
    gains = (values.abs() * growth).masked_fill(values == BANNED, 0.0)
    return scores.index_copy_(1, token_ids, values + gains)


def suppress(scores: Tensor, context: Context, token_ids: Sequence[int]) -> Tensor:
    """Ban tokens everywhere; transformers' `SuppressTokensLogitsProcessor`."""
    return scores.index_fill_(1, _table(context, _ids, tuple(token_ids)), BANNED)


def suppress_at_begin(scores: Tensor, context: Context, tokens_and_step: tuple[Sequence[int], int]) -> Tensor:
    """Ban tokens on rows that have generated as many tokens as are forced there: none or one.

    transformers' `SuppressTokensAtBeginLogitsProcessor`.
    """
    token_ids, step = tokens_and_step
    return _ban_all(scores, context, token_ids, context.num_generated == step)


# In the order in which they act.
APPLY: Mapping[str, Callable[[Tensor, Context, Any], Tensor]] = {
    "guidance_scale": guide,
    "sequence_bias": bias_sequences,
    "diversity_penalty": penalise_crowd,
    "encoder_repetition_penalty": favour_prompt,
    "repetition_penalty": penalise_repetition,
    "frequency_penalty": penalise_frequency,
    "presence_penalty": penalise_presence,
    "no_repeat_ngram_size": ban_repeated_ngrams,
    "bad_words_ids": ban_phrases,
    "min_new_tokens": forbid_stop,
    "allowed_words_ids": keep_allowed,
    "forced_bos_token_id": force_first,
    "forced_eos_token_id": force_last,
    "exponential_decay_length_penalty": decay_length,
    "suppress_tokens": suppress,
    "begin_suppress_tokens": suppress_at_begin,
}

# Settings at which a processor changes no probability.
NEUTRAL = {
    "guidance_scale": 1,
    "encoder_repetition_penalty": 1,
    "repetition_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
}


def _are_begun(context: Context, phrases: history.SameLength) -> Tensor:
    return history.are_begun(context.token_ids, context.lengths, phrases)


def _penalise(scores: Tensor, token_ids: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores of the tokens (B, T) by `penalty`, once each."""
    values = scores.gather(1, token_ids)
    return scores.scatter_(1, token_ids, torch.where(values < 0, values * penalty, values / penalty))


def _ban(scores: Tensor, token_ids: Tensor, where: Tensor) -> Tensor:
    """Ban tokens, (B, N) or (N,), where (B, N) says so; a token may occur more than once."""
    limits = torch.where(where, BANNED, float("inf"))
    return scores.scatter_reduce_(1, token_ids.expand_as(where), limits, "amin")


def _ban_all(scores: Tensor, context: Context, token_ids: Sequence[int], rows: Tensor) -> Tensor:
    """Ban tokens on the rows (B,) bool."""
    return _ban(scores, _table(context, _ids, tuple(token_ids)), rows[:, None].expand(-1, len(token_ids)))


def _force(scores: Tensor, token_id: int, rows: Tensor) -> Tensor:
    """Leave one token, at a score of 0, on the rows (B,) bool."""
    scores.masked_fill_(rows[:, None], BANNED)
    scores[:, token_id].masked_fill_(rows, 0.0)
    return scores


def _by_sequence(biases: Sequence[Bias]) -> dict[tuple[int, ...], float]:
    values: dict[tuple[int, ...], float] = {}
    for bias in biases:
        assert bias.token_ids is not None, "texts are tokenised before anything runs"
        values[bias.token_ids] = bias.bias
    return values


def _table(context: Context, make: Callable[[tuple[Any, ...], torch.device], Any], values: tuple[Any, ...]) -> Any:
    """What `make` makes of a setting's token ids."""
    if context.tables is None:
        return make(values, context.lengths.device)
    if (make, values) not in context.tables:
        context.tables[make, values] = make(values, context.lengths.device)
    return context.tables[make, values]


@lru_cache(maxsize=64)
def _ids(token_ids: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.int64, device=device)
