"""The decode loop: requests in, responses out, in the same order. It knows no Ray, no files and no text.

Each turn either prefills waiting prompts into free slots or decodes one token for every running row; then all rows
advance and the cache is rearranged. Prompts are taken longest first, and each is prefilled once for all its strategies,
samples and repetitions. The order depends on the requests alone, so responses are a pure function of them.

Shape letters: B rows, T prompt length, E width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.advance import Single, Turn, Unit, advance
from pipeline.engine.beams import Beams
from pipeline.engine.cache import SlotCache, place
from pipeline.engine.hypothesis import Ending, Hypothesis, completion
from pipeline.engine.measure import measure, token_logprobs
from pipeline.engine.model import GPT2
from pipeline.records import Completion, FloatArray, Request, Response, RowError
from pipeline.strategies import BeamSearch, max_steps

POSITIONS_PER_CHUNK = 64  # positions of a prompt whose vocabulary-wide logits exist at the same time
REFILL_SHARE = 8  # waiting prompts are admitted once 1/8 of the slots are free: small prefills waste the machine

Prompt = tuple[int, ...]


@dataclass(slots=True)
class Waiting:
    """A prompt and all that is still to be generated from it."""

    prompt: Prompt
    units: deque[Unit] = field(default_factory=deque)


class Engine:
    """A model and what to record of it; `generate` does the work.

    Args:
        model: the loaded checkpoint.
        eos_token_ids: tokens that end a row.
        token_bytes: bytes of every token id, b"" for special ones; for stop strings.
        num_alternatives: most probable tokens recorded per step.
        with_prompt_logprobs: whether to score the prompts too.
        max_slots: most rows decoded together.
        cache_bytes: most bytes of keys and values; one prompt with its beams always fits.
    """

    def __init__(
        self,
        model: GPT2,
        *,
        eos_token_ids: Sequence[int],
        token_bytes: list[bytes],
        num_alternatives: int,
        with_prompt_logprobs: bool = False,
        max_slots: int = 64,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self.model = model
        self.eos_token_ids = frozenset(eos_token_ids)
        self.token_bytes = token_bytes
        self.num_alternatives = min(num_alternatives, model.vocab_size)
        self.with_prompt_logprobs = with_prompt_logprobs
        self.max_slots = max_slots
        self.cache_bytes = cache_bytes

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """Generate for every request.

        Args:
            requests: prompts of 1..n_positions tokens, each id inside the vocabulary, under strategies whose
                `bad_words` have become `bad_words_ids`.

        Returns:
            One response per request, in order.
        """
        units = [unit for index, request in enumerate(requests) for unit in self._units(index, request)]
        waiting = _gather(requests, units)
        scores = self._run(waiting) if waiting else {}
        if self.with_prompt_logprobs:
            prompts = {request.prompt_token_ids for request in requests}
            scores |= {prompt: self._score_alone(prompt) for prompt in prompts - scores.keys()}
        results: list[list[Completion] | RowError] = [[] for _ in requests]
        for unit in units:
            done = results[unit.request]
            assert unit.result is not None
            if isinstance(unit.result, RowError):
                results[unit.request] = unit.result
            elif not isinstance(done, RowError):
                done.extend(unit.result)
        return [
            Response(
                result if isinstance(result, RowError) else tuple(result),
                scores.get(request.prompt_token_ids),
            )
            for request, result in zip(requests, results, strict=True)
        ]

    def _units(self, index: int, request: Request) -> list[Unit]:
        """What runs for a request."""
        strategy = request.strategy
        num_prompt_tokens = len(request.prompt_token_ids)
        wanted, room = max_steps(strategy, num_prompt_tokens), self.model.num_positions + 1 - num_prompt_tokens
        ending = Ending(
            strategy=strategy,
            eos_token_ids=frozenset() if strategy.ignore_eos else self.eos_token_ids,
            limit=min(wanted, room),
            limit_reason="length" if wanted <= room else "context",
            token_bytes=self.token_bytes,
            longest_stop=max((len(stop.encode()) for stop in strategy.stop_strings), default=0),
        )
        if isinstance(strategy, BeamSearch):
            units = [Unit(index, strategy.num_beams, Beams(strategy, ending, []))]
        else:
            units = [Unit(index, 1, Single(strategy, ending, seed, [])) for seed in request.seeds]
        if ending.limit < 1:  # max_length leaves nothing to generate
            score = 0.0 if isinstance(strategy, BeamSearch) else None
            empty = completion(None, self.num_alternatives, (ending.limit_reason, None), score)
            for unit in units:
                unit.result = (empty,) * (len(request.seeds) // len(units))
        return units

    def _run(self, waiting: deque[Waiting]) -> dict[Prompt, FloatArray]:
        """Run all units to their results.

        Returns:
            Log-probabilities of the prompts' tokens, if wanted.
        """
        cache = self._new_cache(waiting)
        running: list[Unit] = []
        scores: dict[Prompt, FloatArray] = {}
        while waiting or running:
            free = cache.num_slots - sum(unit.num_slots for unit in running)
            if waiting and (not running or free * REFILL_SHARE >= cache.num_slots) and _fits(waiting, free):
                admitted = _admit(waiting, free)
                running += self._prefill(cache, running, admitted, scores)
            else:
                self._decode(cache, running)
            running = [unit for unit in running if unit.result is None]
            _rearrange(cache, running)
        return scores

    def _new_cache(self, waiting: deque[Waiting]) -> SlotCache:
        """A cache with as many slots as the limits allow, each as long as the longest completion needs."""
        positions = max(_num_positions(prompt) for prompt in waiting)
        affordable = self.cache_bytes // (positions * self.model.kv_bytes_per_token)
        widths = [unit.num_slots for prompt in waiting for unit in prompt.units]
        return self.model.new_cache(min(max(min(self.max_slots, affordable), max(widths)), sum(widths)), positions)

    def _prefill(
        self, cache: SlotCache, running: list[Unit], admitted: list[Waiting], scores: dict[Prompt, FloatArray]
    ) -> list[Unit]:
        """Run new prompts through the model and take their units' first step; returns the units."""
        first_slot = sum(len(unit.state.running) for unit in running)
        prompts = [prompt.prompt for prompt in admitted]
        hidden = self.model.prefill(cache, first_slot, prompts)  # (B, T, E)
        if self.with_prompt_logprobs:
            scores.update((prompt, self._score(prompt, hidden[row])) for row, prompt in enumerate(prompts))
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=hidden.device)
        logits = self.model.logits(hidden[torch.arange(len(prompts), device=hidden.device), ends])
        for slot, prompt in enumerate(admitted, start=first_slot):
            for unit in prompt.units:
                unit.state.running = [Hypothesis(slot)]
        units = [unit for prompt in admitted for unit in prompt.units]
        advance(Turn(cache, first_slot, logits, measure(logits, self.num_alternatives)), units)
        return units

    def _decode(self, cache: SlotCache, running: list[Unit]) -> None:
        """One token for every running row."""
        newest = {row.slot: row.step.token for unit in running for row in unit.state.running if row.step}
        tokens = torch.tensor([newest[slot] for slot in range(len(newest))], device=self.model.device)
        logits = self.model.logits(self.model.decode(cache, tokens))
        advance(Turn(cache, 0, logits, measure(logits, self.num_alternatives)), running)

    def _score_alone(self, prompt: Prompt) -> FloatArray:
        """As `_score`, for a prompt from which nothing is generated."""
        cache = self.model.new_cache(1, len(prompt))
        return self._score(prompt, self.model.prefill(cache, 0, [prompt])[0])

    def _score(self, prompt: Prompt, hidden: Tensor) -> FloatArray:
        """Log-probability of each prompt token given those before it, NaN first. `hidden` is (T, E)."""
        targets = torch.tensor(prompt[1:], dtype=torch.int64, device=hidden.device)
        parts = [
            token_logprobs(self.model.logits(hidden[start : start + len(chunk)]), chunk).cpu().numpy()
            for start in range(0, len(targets), POSITIONS_PER_CHUNK)
            if len(chunk := targets[start : start + POSITIONS_PER_CHUNK])
        ]
        return np.concatenate([np.array([np.nan], np.float32), *parts])


def _gather(requests: Sequence[Request], units: Sequence[Unit]) -> deque[Waiting]:
    """Unfinished units by prompt, the prompts that need most positions first."""
    by_prompt: dict[Prompt, Waiting] = {}
    for unit in units:
        if unit.result is None:
            prompt = requests[unit.request].prompt_token_ids
            by_prompt.setdefault(prompt, Waiting(prompt)).units.append(unit)
    return deque(sorted(by_prompt.values(), key=_num_positions, reverse=True))


def _num_positions(waiting: Waiting) -> int:
    """Positions the longest completion of a prompt occupies; its last token is never fed."""
    return len(waiting.prompt) + max(unit.state.ending.limit for unit in waiting.units) - 1


def _fits(waiting: deque[Waiting], free: int) -> bool:
    return waiting[0].units[0].num_slots <= free


def _admit(waiting: deque[Waiting], free: int) -> list[Waiting]:
    """Take units off the queue while they fit; a prompt with many units may be taken in several turns."""
    admitted = []
    while waiting and _fits(waiting, free):
        taken = Waiting(waiting[0].prompt)
        while waiting[0].units and _fits(waiting, free):
            taken.units.append(waiting[0].units.popleft())
            free -= taken.units[-1].num_slots
        admitted.append(taken)
        if not waiting[0].units:
            waiting.popleft()
    return admitted


def _rearrange(cache: SlotCache, running: list[Unit]) -> None:
    """Move the running rows to slots 0..n-1; rows still lie where their parents did."""
    rows = [(unit, index, row.slot) for unit in running for index, row in enumerate(unit.state.running)]
    slots = place([slot for _, _, slot in rows])
    sources = [0] * len(rows)
    for (unit, index, source), slot in zip(rows, slots, strict=True):
        unit.state.running[index] = unit.state.running[index].moved(slot)
        sources[slot] = source
    cache.rearrange(sources)
