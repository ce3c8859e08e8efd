"""What the references share: the problem, what comes out, the forward pass, and when a completion ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from transformers import GPT2LMHeadModel

from pipeline.strategies import ContrastiveSearch, Decoding, max_steps

Strategy = TypeVar("Strategy", bound=Decoding, covariant=True)
Noise = Callable[[int, int, int], float]
"""(step, beam, token id) to the Gumbel noise of that draw; the beam of a single row is 0."""


@dataclass(frozen=True)
class Completed:
    """One completion.

    Attributes:
        logprobs: of each token under the model's own softmax.
        sampling_logprobs: of each token under what it was taken from; None where that is no distribution.
        sequence_score: a beam's score after length penalty.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    sequence_score: float | None = None
    sampling_logprobs: list[float] | None = None


@dataclass(frozen=True)
class Naive(Generic[Strategy]):
    """One prompt under one strategy, with all that decides the outcome.

    Attributes:
        eos: the model's end-of-text tokens.
        token_bytes: what each token prints as; needed for `stop_strings` only.
        noise: Gumbel noise; needed where something is drawn.
    """

    model: GPT2LMHeadModel
    prompt: tuple[int, ...]
    strategy: Strategy
    eos: tuple[int, ...]
    token_bytes: Sequence[bytes] = ()
    noise: Noise | None = None

    @property
    def eos_tokens(self) -> list[int]:
        return [] if self.strategy.ignore_eos else list(self.eos)

    @property
    def stop_tokens(self) -> list[int]:
        """All tokens that end a completion, without duplicates."""
        return list(dict.fromkeys([*self.eos_tokens, *self.strategy.stop_token_ids]))

    @property
    def negative_prompt(self) -> tuple[int, ...]:
        """The second context of guidance; by default the last token of the prompt."""
        return tuple(self.strategy.negative_prompt_ids) or self.prompt[-1:]

    @property
    def is_guided(self) -> bool:
        """A scale of 1 is no guidance, as in transformers: the scores stay logits."""
        return self.strategy.guidance_scale not in (None, 1.0)

    @property
    def room(self) -> int:
        """Tokens that the model's positions allow: the last token generated is never fed, but by contrastive search,
        which looks at its hidden state. Guidance feeds them to both contexts, so the longer one decides."""
        longest = max(len(self.prompt), len(self.negative_prompt) if self.is_guided else 0)
        is_last_fed = isinstance(self.strategy, ContrastiveSearch)
        return int(self.model.config.n_positions) + (not is_last_fed) - longest

    @property
    def limit(self) -> int:
        return min(max_steps(self.strategy, len(self.prompt)), self.room)

    @property
    def limit_reason(self) -> str:
        return "length" if max_steps(self.strategy, len(self.prompt)) <= self.room else "context"

    def logits(self, generated: Sequence[int], prompt: Sequence[int] | None = None) -> torch.Tensor:
        """Logits after the prompt (or another one) and what was generated, (V,)."""
        with torch.no_grad():
            return self.model(torch.tensor([[*(prompt or self.prompt), *generated]])).logits[0, -1].float()

    def hidden_states(self, generated: Sequence[int]) -> list[torch.Tensor]:
        """Hidden states of all layers at all positions, each (T, d): the embedding first, the last after ln_f."""
        with torch.no_grad():
            ids = torch.tensor([[*self.prompt, *generated]])
            return [layer[0].float() for layer in self.model(ids, output_hidden_states=True).hidden_states]

    def raw_logprobs(self, generated: Sequence[int]) -> list[float]:
        """Log-probability of each generated token under the model's own softmax; the last one is never fed."""
        with torch.no_grad():
            logits = self.model(torch.tensor([[*self.prompt, *generated[:-1]]])).logits[0].float()
        steps = logits[len(self.prompt) - 1 :].log_softmax(-1)
        return [float(steps[step, token]) for step, token in enumerate(generated)]

    def ending(self, generated: Sequence[int]) -> str | None:
        """Why the completion ends with its last token, if it does: `eos`, `stop`, `length` or `context`.

        A stop token or string counts from `min_new_tokens` on, a string where the last token completes it.
        """
        if len(generated) >= (self.strategy.min_new_tokens or 0):
            if generated[-1] in self.eos_tokens:
                return "eos"
            if generated[-1] in self.strategy.stop_token_ids or self._completes_stop_string(generated):
                return "stop"
        return self.limit_reason if len(generated) >= self.limit else None

    def _completes_stop_string(self, generated: Sequence[int]) -> bool:
        def occurrences(tokens: Sequence[int]) -> list[int]:
            text = b"".join(self.token_bytes[token] for token in tokens)
            return [text.count(stop.encode()) for stop in self.strategy.stop_strings]

        stops = bool(self.strategy.stop_strings)
        return stops and occurrences(generated) != occurrences(generated[:-1])

    def completed(
        self,
        generated: Sequence[int],
        reason: str,
        score: float | None = None,
        sampling_logprobs: list[float] | None = None,
    ) -> Completed:
        return Completed(list(generated), self.raw_logprobs(generated), reason, score, sampling_logprobs)
