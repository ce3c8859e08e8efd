"""Logits processors: pure functions that penalise or ban tokens. Banned is -inf.

Their order is part of the contract and is transformers': repetition penalty, repeated n-grams, bad words, minimum
length. Beams pass log-probabilities, all others logits, also as in transformers.

Shape letters: B rows, V vocabulary, T longest history.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.strategies import Processed

BANNED = float("-inf")


class History(NamedTuple):
    """What each row has seen, prompt and completion: token_ids (B, T) int64, of which the first lengths (B,) count."""

    token_ids: Tensor
    lengths: Tensor


def changes_scores(strategy: Processed) -> bool:
    """Whether `process` could do anything under this strategy."""
    return bool(
        strategy.repetition_penalty
        or strategy.no_repeat_ngram_size
        or strategy.bad_words_ids
        or strategy.min_new_tokens
    )


def process(
    strategy: Processed, scores: Tensor, history: History, too_short: Tensor, stop_token_ids: Sequence[int]
) -> Tensor:
    """Apply the strategy's processors in order.

    Args:
        strategy: with `bad_words` already turned into `bad_words_ids`.
        scores: (B, V) float32, left as they are.
        history: of the same rows.
        too_short: (B,) bool, rows that have not reached `min_new_tokens`.
        stop_token_ids: tokens that would end a row, EOS included.

    Returns:
        (B, V).
    """
    if strategy.repetition_penalty is not None:
        scores = penalise_repetition(scores, history, strategy.repetition_penalty)
    if strategy.no_repeat_ngram_size is not None:
        scores = ban_repeated_ngrams(scores, history, strategy.no_repeat_ngram_size)
    if strategy.bad_words_ids:
        scores = ban_phrases(scores, history, strategy.bad_words_ids)
    if strategy.min_new_tokens is not None and stop_token_ids:
        scores = ban_tokens(scores, too_short, stop_token_ids)
    return scores


def penalise_repetition(scores: Tensor, history: History, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores of seen tokens by `penalty`, once however often they were seen.

    CTRL, arXiv:1909.05858; transformers' `RepetitionPenaltyLogitsProcessor`.
    """
    real = torch.arange(history.token_ids.shape[1], device=scores.device) < history.lengths[:, None]
    seen = torch.where(real, history.token_ids, history.token_ids[:, :1])  # (B, T): a pad repeats the first token
    values = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(values < 0, values * penalty, values / penalty))


def ban_repeated_ngrams(scores: Tensor, history: History, size: int) -> Tensor:
    """Ban every token that would complete an n-gram of this size that the row has already seen.

    transformers' `NoRepeatNGramLogitsProcessor`, per row: pads never count as seen.
    """
    token_ids, lengths = history
    if token_ids.shape[1] < size:
        return scores
    ngrams = token_ids.unfold(1, size, 1)  # (B, T - size + 1, size)
    tails = _tails(history, size - 1)  # (B, size - 1)
    complete = torch.arange(ngrams.shape[1], device=scores.device) + size <= lengths[:, None]
    repeated = complete & (ngrams[:, :, :-1] == tails[:, None]).all(-1)
    rows, starts = torch.nonzero(repeated, as_tuple=True)
    return _ban(scores, rows, ngrams[rows, starts, -1])


def ban_phrases(scores: Tensor, history: History, phrases: Sequence[Sequence[int]]) -> Tensor:
    """Ban the last token of each phrase on rows that end in the rest of it; one-token phrases always.

    transformers' `NoBadWordsLogitsProcessor`.
    """
    by_prefix: dict[int, list[Sequence[int]]] = defaultdict(list)
    for phrase in phrases:
        by_prefix[len(phrase) - 1].append(phrase)
    for size, same_size in by_prefix.items():
        table = torch.tensor([list(phrase) for phrase in same_size], device=scores.device)  # (phrases, size + 1)
        matches = (_tails(history, size)[:, None] == table[:, :-1]).all(-1)  # (B, phrases)
        matches &= (history.lengths >= size)[:, None]
        rows, which = torch.nonzero(matches, as_tuple=True)
        scores = _ban(scores, rows, table[which, -1])
    return scores


def ban_tokens(scores: Tensor, rows: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Ban tokens on the rows marked in `rows`, (B,) bool."""
    scores = scores.clone()
    for token_id in token_ids:
        scores[:, token_id].masked_fill_(rows, BANNED)
    return scores


def _tails(history: History, size: int) -> Tensor:
    """Last `size` tokens of each row, (B, size); rows shorter than that give tokens that must not be used."""
    positions = history.lengths[:, None] - size + torch.arange(size, device=history.lengths.device)
    return history.token_ids.gather(1, positions.clamp(min=0))


def _ban(scores: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
    return scores.index_put((rows, token_ids), torch.tensor(BANNED, device=scores.device))
