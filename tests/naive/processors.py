"""Every key of `Processed` as transformers' own processor classes, one row at a time, in the order of `PROCESSORS`.

Departures, each on purpose: `forced_bos_token_id` forces the first token after any prompt (transformers: only after a
prompt of one token); a bad word that is an end-of-text token is banned like any other; allowed words that are all
banned leave nothing (transformers then lifts the bans); guidance keeps a second context per beam (transformers keeps
one per place in the batch, which beams leave behind).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation import logits_process as hf

from pipeline.strategies import PROCESSORS, SAMPLERS, BeamSearch, Decoding, Sampling
from tests.naive.values import Naive

OFF = (("temperature", 1.0), ("top_p", 1.0), ("typical_p", 1.0))  # what transformers leaves out, besides None


def process(
    naive: Naive[Decoding],
    scores: torch.Tensor,
    generated: Sequence[int],
    crowd: Sequence[int] = (),
    diversity: float = 0.0,
) -> torch.Tensor:
    """Scores of the next token after all processors, (V,).

    Args:
        scores: (V,) logits, or log-probabilities under beams.
        crowd: tokens that beams of earlier groups took in this step, each as often as it was taken.
        diversity: what one of them costs.
    """
    for key in PROCESSORS:
        if key == "diversity_penalty":
            scores = diverse(scores, crowd, diversity)
        elif is_set(naive, key):
            scores = apply(key, naive, scores, generated)
    return scores


def is_set(naive: Naive[Decoding], key: str) -> bool:
    if key == "guidance_scale":
        return naive.is_guided
    if key == "min_new_tokens" and not naive.stop_tokens:
        return False
    return getattr(naive.strategy, key) not in (None, ())


def diverse(scores: torch.Tensor, crowd: Sequence[int], penalty: float) -> torch.Tensor:
    """Hamming diversity (arXiv:1610.02424): `penalty` off per earlier beam that took the token."""
    taken = torch.bincount(torch.tensor(crowd, dtype=torch.int64), minlength=len(scores))
    return scores - penalty * taken


def apply(key: str, naive: Naive[Decoding], scores: torch.Tensor, generated: Sequence[int]) -> torch.Tensor:
    """Scores after one processor that is on."""
    value = getattr(naive.strategy, key)
    num_prompt = len(naive.prompt)
    match key:
        case "guidance_scale":
            return guided(naive, scores, generated, value)
        case "frequency_penalty":
            return diverse(scores, generated, value)
        case "presence_penalty":
            return diverse(scores, sorted(set(generated)), value)
        case "allowed_words_ids":
            return allowed(naive, scores, generated)
        case "sequence_bias":
            processor = hf.SequenceBiasLogitsProcessor([[list(one.token_ids or ()), one.bias] for one in value])
        case "encoder_repetition_penalty":
            processor = hf.EncoderRepetitionPenaltyLogitsProcessor(value, torch.tensor([naive.prompt]))
        case "repetition_penalty":
            processor = hf.RepetitionPenaltyLogitsProcessor(value)
        case "no_repeat_ngram_size":
            processor = hf.NoRepeatNGramLogitsProcessor(value)
        case "bad_words_ids":
            processor = hf.NoBadWordsLogitsProcessor([list(phrase) for phrase in value])
        case "min_new_tokens":
            processor = hf.MinNewTokensLengthLogitsProcessor(num_prompt, value, naive.stop_tokens)
        case "forced_bos_token_id":
            first = hf.ForcedBOSTokenLogitsProcessor(value)
            return first(torch.zeros(1, 1 + len(generated)), scores[None])[0]  # it looks for a length of 1
        case "forced_eos_token_id":
            processor = hf.ForcedEOSTokenLogitsProcessor(num_prompt + naive.limit, value)
        case "exponential_decay_length_penalty":
            start, factor = value
            processor = hf.ExponentialDecayLengthPenalty((int(start), factor), naive.eos_tokens, num_prompt)
        case "suppress_tokens":
            processor = hf.SuppressTokensLogitsProcessor(value)
        case "begin_suppress_tokens":
            begin = num_prompt + (naive.strategy.forced_bos_token_id is not None)
            processor = hf.SuppressTokensAtBeginLogitsProcessor(value, begin)
        case _:
            raise AssertionError(f"no reference for the processor `{key}`")
    return processor(torch.tensor([[*naive.prompt, *generated]]), scores[None].clone())[0]


def guided(naive: Naive[Decoding], scores: torch.Tensor, generated: Sequence[int], scale: float) -> torch.Tensor:
    """Classifier-free guidance (arXiv:2306.17806): away from what follows the negative prompt."""
    negative = naive.logits(generated, naive.negative_prompt).log_softmax(-1)
    return scale * (scores.log_softmax(-1) - negative) + negative


def allowed(naive: Naive[Decoding], scores: torch.Tensor, generated: Sequence[int]) -> torch.Tensor:
    """Scores of the tokens that keep the completion a beginning of allowed phrases in a row; others are -inf."""
    keep = torch.full_like(scores, -torch.inf)
    keep[allowed_tokens(naive, generated)] = 0.0
    return scores + keep


def allowed_tokens(naive: Naive[Decoding], generated: Sequence[int]) -> list[int]:
    """Tokens that go on with a phrase in any reading of what was generated; stop tokens where a phrase has ended.

    A forced first token with which no phrase begins is none of the text that is read.
    """
    phrases = [list(phrase) for phrase in naive.strategy.allowed_words_ids]
    if generated and naive.strategy.forced_bos_token_id == generated[0] not in [phrase[0] for phrase in phrases]:
        generated = generated[1:]
    tokens: set[int] = set()
    for cut in range(len(generated) + 1):
        if is_concatenation(generated[:cut], phrases):
            rest = list(generated[cut:])
            tokens |= {
                phrase[len(rest)] for phrase in phrases if len(phrase) > len(rest) and phrase[: len(rest)] == rest
            }
            tokens |= set(naive.stop_tokens) if generated and not rest else set()
    return sorted(tokens)


def is_concatenation(tokens: Sequence[int], phrases: list[list[int]]) -> bool:
    """Whether the tokens are phrases in a row; none is."""
    if not tokens:
        return True
    return any(
        list(tokens[: len(phrase)]) == phrase and is_concatenation(tokens[len(phrase) :], phrases) for phrase in phrases
    )


def narrow(naive: Naive[Sampling] | Naive[BeamSearch], scores: torch.Tensor) -> torch.Tensor:
    """Scores after `SAMPLERS`, in order; beams keep one token more than there are stop tokens, as in transformers.

    Where all tokens are banned there is nothing to narrow, and some warpers of transformers raise.
    """
    if scores.max() == -torch.inf:
        return scores
    keep = max(2, 1 + len(naive.stop_tokens)) if isinstance(naive.strategy, BeamSearch) else 1
    for key in SAMPLERS:
        value = getattr(naive.strategy, key)
        if value is not None and (key, value) not in OFF:
            scores = warper(key, value, keep)(None, scores[None])[0]
    return scores


def warper(key: str, value: float, keep: int) -> hf.LogitsProcessor:
    match key:
        case "temperature":
            return hf.TemperatureLogitsWarper(value)
        case "top_h":
            return hf.TopHLogitsWarper(value)
        case "top_k":
            return hf.TopKLogitsWarper(int(value), min_tokens_to_keep=keep)
        case "top_p":
            return hf.TopPLogitsWarper(value, min_tokens_to_keep=keep)
        case "min_p":
            return hf.MinPLogitsWarper(value, min_tokens_to_keep=keep)
        case "typical_p":
            return hf.TypicalLogitsWarper(value, min_tokens_to_keep=keep)
        case "epsilon_cutoff":
            return hf.EpsilonLogitsWarper(value, min_tokens_to_keep=keep)
        case "eta_cutoff":
            return hf.EtaLogitsWarper(value, min_tokens_to_keep=keep)
    raise AssertionError(f"no reference for the sampler `{key}`")
