"""What one turn of the loop gives the strategies, and what they keep between turns.

Shape letters: B rows of the turn, N rows of one strategy, E width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.engine.cache import SlotCache
from pipeline.engine.hypothesis import Ending, Hypothesis, Step
from pipeline.engine.measure import Measures, score
from pipeline.engine.model import GPT2, States
from pipeline.engine.processors import Context, changes_scores, process, settings
from pipeline.records import Completion, RowError
from pipeline.strategies import Decoding


class State(Protocol):
    """What a strategy keeps of one unit between turns."""

    ending: Ending

    @property
    def running(self) -> Sequence[Hypothesis]:
        """Hypotheses to run through the model next."""

    def begin(self, root: Hypothesis, prompt: Tensor) -> None:
        """Start after the prompt, whose hidden states are (T, E)."""

    def move(self, slots: Sequence[tuple[int, ...]]) -> None:
        """The running hypotheses now lie in these slots."""


@dataclass(slots=True)
class Unit:
    """What runs for one seed of a request (for all of them under beam search), and what it came to.

    Attributes:
        request: index of the request.
        prompts: the prompt, and under guidance the negative one.
        num_slots: slots to keep free for it.
        num_positions: positions to keep free for each of its rows.
    """

    request: int
    prompts: tuple[tuple[int, ...], ...]
    num_slots: int
    num_positions: int
    state: State
    result: tuple[Completion, ...] | RowError | None = None


class Turn(NamedTuple):
    """The model's answer for some slots: row i of every tensor belongs to slot first_slot + i.

    Attributes:
        states: (B, E) hidden states at the newest token.
        logits: (B, V), in the dtype of the weights.
    """

    cache: SlotCache
    model: GPT2
    first_slot: int
    states: States
    logits: Tensor
    measures: Measures

    @property
    def num_alternatives(self) -> int:
        """K."""
        return self.measures.num_alternatives

    def rows(self, parents: Sequence[Hypothesis], which: int = 0) -> Tensor:
        """Rows of the turn that belong to the hypotheses, or to their twins (`which` = 1), (N,)."""
        return torch.tensor([parent.slots[which] - self.first_slot for parent in parents], device=self.logits.device)

    def logits_at(self, rows: Tensor) -> Tensor:
        """Logits of these rows, (N, V), not to be changed: of all rows in order, no copy is made."""
        is_all = len(rows) == len(self.logits) and torch.equal(rows, torch.arange(len(rows), device=rows.device))
        return self.logits if is_all else self.logits[rows]

    def steps(
        self, parents: Sequence[Hypothesis], rows: Tensor, tokens: Tensor, sampling_logprobs: Sequence[float] | None
    ) -> list[Step]:
        """Steps that extend the hypotheses by `tokens`, (N,); without drawing, the raw log-probability is both."""
        logprobs, ranks = score(self.logits, self.measures, rows, tokens)
        columns = (parents, rows.tolist(), tokens.tolist(), logprobs, sampling_logprobs or logprobs, ranks)
        return [
            Step(parent.step, self.measures, row, token, logprob, sampling_logprob, rank)
            for parent, row, token, logprob, sampling_logprob, rank in zip(*columns, strict=True)
        ]

    def processed(
        self,
        scores: Tensor,
        parents: Sequence[Hypothesis],
        endings: Sequence[Ending],
        crowd: Tensor | None = None,
    ) -> Tensor:
        """Scores (N, V) of the hypotheses, in float32, after the processors of their strategy, the same for all.

        Args:
            endings: of each hypothesis.
            crowd: (N, V) for the diversity penalty.
        """
        strategy, scores = endings[0].strategy, scores.float()
        if not changes_scores(strategy):
            return scores
        slots = torch.tensor([parent.slot for parent in parents], device=scores.device)
        lengths = self.cache.lengths[slots]
        context = Context(
            token_ids=self.cache.token_ids[slots, : int(lengths.max())],
            lengths=lengths,
            num_prompt_tokens=torch.tensor([ending.num_prompt_tokens for ending in endings], device=scores.device),
            limits=torch.tensor([ending.limit for ending in endings], device=scores.device),
            eos_token_ids=sorted(endings[0].eos_token_ids),
            stop_token_ids=endings[0].stop_token_ids,
            allowed=[
                ending.allowed_words.allowed(parent.place)
                for parent, ending in zip(parents, endings, strict=True)
                if ending.allowed_words and parent.place
            ],
            unconditional=self.logits[self.rows(parents, 1)].float() if len(parents[0].slots) > 1 else None,
            crowd=crowd,
        )
        return process(strategy, scores, context)


def not_finite(num_generated: int) -> RowError:
    """The error of a row for which the model broke down after this many."""
    return RowError("logits_not_finite", f"the model's logits are not finite at step {num_generated + 1}")


def all_banned(strategy: Decoding, num_generated: int) -> RowError:
    """The error of a row whose processors leave no token after this many."""
    active = ", ".join(key.replace("_words_ids", "_words") for key in settings(strategy))
    step = num_generated + 1
    return RowError("no_token_left", f"no token is left to generate at step {step}; relax {active or 'the filters'}")
