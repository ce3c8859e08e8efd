"""What the metrics of a strategy are: each a quotient of two sums over its rows, so that they add up over parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.statistics.ragged import Array


class Metric(NamedTuple):
    """A quotient of sums.

    Attributes:
        above, below: names of the sums.
        is_exp: whether it is exp of the quotient.
        meaning: a sentence.
    """

    name: str
    above: str
    below: str
    meaning: str
    is_exp: bool = False

    def of(self, sums: Array, names: tuple[str, ...]) -> Array:
        """(...) from (..., M) sums; NaN where undefined."""
        below = sums[..., names.index(self.below)]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            quotient = sums[..., names.index(self.above)] / np.where(below > 0, below, np.nan)
            return np.asarray(np.exp(quotient) if self.is_exp else quotient)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("length", "tokens", "ok", "mean tokens of a completion, the one that ended it included"),
        Metric("error_rate", "errors", "rows", "share of rows that are errors"),
        Metric("perplexity", "surprise", "tokens", "exp of the mean -ln p per token by the model's softmax", True),
        Metric("entropy", "entropy", "tokens", "mean entropy of the model's own distribution at each step, in nats"),
        Metric("rank_1", "rank_1", "tokens", "share of tokens that were the most probable one"),
        Metric("rank_10", "rank_10", "tokens", "share of tokens of rank 2 to 10"),
        Metric("rank_100", "rank_100", "tokens", "share of tokens of rank 11 to 100"),
        Metric("rank_1000", "rank_1000", "tokens", "share of tokens of rank 101 to 1000"),
        Metric("rank_more", "rank_more", "tokens", "share of tokens of a rank above 1000"),
        Metric("rep_4", "repeated", "repeatable", "mean share of a completion's 4-grams that stood in it before"),
        Metric("loop_share", "loops", "texts", "share that end in the same 1 to 20 tokens three times running"),
        Metric("sample_overlap", "overlap", "overlapping", "mean Jaccard overlap of the bigrams of a prompt's samples"),
        Metric("identical_samples", "identical", "sampled", "share of prompts with two samples of the same tokens"),
        Metric("same_as_baseline", "same", "compared", "share with the baseline's token ids to the end"),
        Metric("parted_share", "parted", "compared", "share in which a token differs from the baseline's"),
        Metric("common_prefix", "prefix", "prefixed", "mean share of tokens before the first that differs"),
    )
}
