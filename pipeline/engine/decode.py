"""The decode loop: requests in, responses out, in the same order. It knows no Ray, no files and no text.

Each turn either prefills waiting prompts into free slots or decodes one token for every running row; then all rows
advance and the cache is rearranged. Prompts are taken longest first, and each is prefilled once for all of its
strategies, samples and repetitions. The order depends on the requests alone, so responses are a pure function of them.

Shape letters: B rows, T prompt length, E width.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from pipeline.engine.advance import advance
from pipeline.engine.cache import Memory, SlotCache, place
from pipeline.engine.dola import early_layers
from pipeline.engine.measure import measure
from pipeline.engine.model import GPT2, States
from pipeline.engine.scoring import prompt_logprobs, score_targets
from pipeline.engine.stride import Strides, can_stride
from pipeline.engine.turn import Turn, Unit
from pipeline.engine.units import Limits, make_units
from pipeline.records import Completion, FloatArray, Request, Response, RowError, Usage
from pipeline.strategies import ContrastiveSearch, Dola, Score

log = logging.getLogger(__name__)

REFILL_SHARE = 8  # waiting prompts are admitted once 1/8 of the slots are free: small prefills waste the machine

Prompt = tuple[int, ...]
Result = tuple[Completion, ...] | RowError


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
        steps_per_sync: most steps that the device decodes before the host looks at them (`stride`); by default 16 on a
            GPU and 1 on a CPU.
    """

    def __init__(
        self,
        model: GPT2,
        *,
        eos_token_ids: Sequence[int],
        token_bytes: list[bytes],
        num_alternatives: int,
        with_prompt_logprobs: bool = False,
        max_slots: int = 128,
        cache_bytes: int = 2 << 30,
        steps_per_sync: int | None = None,
    ) -> None:
        self.model = model
        self.limits = Limits(frozenset(eos_token_ids), token_bytes, model.num_positions)
        self.num_alternatives = min(num_alternatives, model.vocab_size)
        self.with_prompt_logprobs = with_prompt_logprobs
        self.max_slots = max_slots
        self.cache_bytes = cache_bytes
        self.steps_per_sync = steps_per_sync or (1 if model.device == "cpu" else 16)
        self.usage = Usage()  # of all calls
        self._memory = Memory()
        self._strides: dict[tuple[int, int], Strides] = {}  # by slots and positions of the cache

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """Generate for every request, or score what it gives.

        Args:
            requests: prompts of 1..n_positions tokens, each id inside the vocabulary, under strategies whose words have
                become token ids.

        Returns:
            One response per request, in order. Where a GPU runs out of memory all is done again in half the batch, and
            so are later requests.
        """
        while True:
            try:
                return self._generate(requests)
            except torch.OutOfMemoryError:
                if self.max_slots == 1:
                    raise
            self.max_slots, self.cache_bytes = self.max_slots // 2, self.cache_bytes // 2
            self._memory, self._strides = Memory(), {}
            log.warning("the device is out of memory: going on with batches of %s rows", self.max_slots)
            torch.cuda.empty_cache()  # out of the handler, whose traceback holds on to the tensors

    def _generate(self, requests: Sequence[Request]) -> list[Response]:
        scored = [index for index, request in enumerate(requests) if isinstance(request.strategy, Score)]
        results: dict[int, Result] = dict(zip(scored, self._score([requests[index] for index in scored]), strict=True))
        units = [
            unit
            for index, request in enumerate(requests)
            for unit in make_units(index, request, self.num_alternatives, self.limits)
        ]
        logprobs = self._run(_gather(units))
        for unit in units:
            results[unit.request] = _joined(results.get(unit.request, ()), unit.result)
        if self.with_prompt_logprobs:
            missing = {request.prompt_token_ids for request in requests} - logprobs.keys()
            logprobs |= {prompt: self._score_prompt(prompt) for prompt in missing}
        return [
            Response(results[index], logprobs.get(request.prompt_token_ids)) for index, request in enumerate(requests)
        ]

    def _run(self, waiting: deque[Waiting]) -> dict[Prompt, FloatArray]:
        """Run all units to their results.

        Returns:
            Log-probabilities of the prompts' tokens, if wanted.
        """
        logprobs: dict[Prompt, FloatArray] = {}
        if not waiting:
            return logprobs
        cache, strides, num_offered = self._new_cache(waiting)
        num_prefills = num_steps = num_used = 0
        running: list[Unit] = []
        while waiting or running:
            free = cache.num_slots - sum(unit.num_slots for unit in running)
            is_due = not running or free * REFILL_SHARE >= cache.num_slots
            if waiting and is_due and (admitted := _admit(waiting, free, cache.num_slots)):
                running += self._prefill(cache, running, admitted, logprobs)
                num_prefills += 1
            else:
                if strides and can_stride(running):
                    steps, used = strides.advance(running, is_more_waiting=bool(waiting))
                else:
                    steps, used = 1, self._decode(cache, running)
                num_steps, num_used = num_steps + steps, num_used + used
            running = [unit for unit in running if unit.result is None]
            _rearrange(cache, running)
        self.usage += Usage(num_prefills, num_steps, num_used, num_steps * num_offered)
        return logprobs

    def _new_cache(self, waiting: deque[Waiting]) -> tuple[SlotCache, Strides | None, int]:
        """A cache with as many slots as can be used, as long as the longest rows need; its strides; and how many slots
        the limits would allow. With strides the cache is of one of few sizes, and one that was there before.
        """
        units = [unit for prompt in waiting for unit in prompt.units]
        needs = [unit.num_positions for unit in units for _ in range(unit.num_slots)]
        positions = needs[0]
        if self.steps_per_sync > 1:
            positions = min(1 << (positions - 1).bit_length(), self.model.num_positions)
        if self.steps_per_sync > 1 or not self.model.takes_slots_of_any_length:
            needs = [positions] * len(needs)
        else:
            needs = [self.model.whole_pages(need) for need in needs]
        affordable = _num_affordable(needs, self.max_slots, self.cache_bytes // self.model.kv_bytes_per_token)
        allowed = max(affordable, max(unit.num_slots for unit in units))
        if self.steps_per_sync == 1:
            return self.model.new_cache(needs[:allowed], self._memory), None, allowed
        if allowed * positions * self.model.kv_bytes_per_token > self._memory.num_bytes:
            self._strides = {}  # they hold on to the memory that is given up for more
        if (allowed, positions) not in self._strides:
            cache = self.model.new_cache([positions] * allowed, self._memory)
            strides = Strides(self.model, cache, self.num_alternatives, self.steps_per_sync)
            self._strides[allowed, positions] = strides
        strides = self._strides[allowed, positions]
        strides.cache.lengths.zero_()
        return strides.cache, strides, allowed

    def _prefill(
        self, cache: SlotCache, running: list[Unit], admitted: list[Waiting], logprobs: dict[Prompt, FloatArray]
    ) -> list[Unit]:
        """Run new prompts through the model and take their units' first step; returns the units."""
        first_slot = sum(len(row.slots) for unit in running for row in unit.state.running)
        by_length = sorted(admitted, key=lambda each: len(each.prompt))  # like beside like, so that little is padded
        units = [unit for prompt in by_length for unit in prompt.units]
        needs: dict[Prompt, int] = {}
        for unit in units:
            needs |= {prompt: max(unit.num_positions, needs.get(prompt, 0)) for prompt in unit.prompts}
        prompts = list(needs)
        slots = {prompt: slot for slot, prompt in enumerate(prompts, start=first_slot)}
        num_last = None if self.with_prompt_logprobs or _looks_back(units) else [1] * len(prompts)
        cache.make_room(first_slot, list(needs.values()))
        states = self.model.prefill(cache, first_slot, prompts, _early(self.model, units), num_last)
        for unit in units:
            root = unit.state.ending.root(tuple(slots[prompt] for prompt in unit.prompts))
            unit.state.begin(root, states[root.slot - first_slot].last)
        if self.with_prompt_logprobs:
            wanted = [(each.prompt, slots[each.prompt] - first_slot) for each in admitted]
            logprobs |= {prompt: prompt_logprobs(self.model, prompt, states[row].last) for prompt, row in wanted}
        self._advance(cache, first_slot, _ends(states), units)
        return units

    def _decode(self, cache: SlotCache, running: list[Unit]) -> int:
        """One token for every running row, and for its twin; returns how many that are."""
        rows = [row for unit in running for row in unit.state.running]
        newest = {slot: row.step.token for row in rows if row.step for slot in row.slots}
        tokens = [newest[slot] for slot in range(len(newest))]
        self._advance(cache, 0, self.model.decode(cache, tokens, _early(self.model, running)), running)
        return len(tokens)

    def _advance(self, cache: SlotCache, first_slot: int, states: States, units: Sequence[Unit]) -> None:
        """From hidden states at the newest tokens, (B, E), to the next token of every row."""
        logits = self.model.logits(states.last)
        advance(Turn(cache, self.model, first_slot, states, logits, measure(logits, self.num_alternatives)), units)

    def _score(self, requests: Sequence[Request]) -> list[Result]:
        scored = score_targets(self.model, requests, self.num_alternatives)
        return [one if isinstance(one, RowError) else (one,) for one in scored]

    def _score_prompt(self, prompt: Prompt) -> FloatArray:
        """Log-probabilities of a prompt from which nothing is generated."""
        cache = self.model.new_cache([len(prompt)])
        return prompt_logprobs(self.model, prompt, self.model.prefill(cache, 0, [prompt])[0].last)


def _joined(done: Result, new: Result | None) -> Result:
    """Results of a request's units as one; an error of one is the error of all."""
    assert new is not None
    if isinstance(done, RowError):
        return done
    return new if isinstance(new, RowError) else (*done, *new)


def _gather(units: Sequence[Unit]) -> deque[Waiting]:
    """Unfinished units by prompt, the prompts that need most positions first; units of a prompt need the same."""
    by_prompt: dict[Prompt, Waiting] = {}
    for unit in units:
        if unit.result is None:
            by_prompt.setdefault(unit.prompts[0], Waiting(unit.prompts[0])).units.append(unit)
    for each in by_prompt.values():
        longest = max(unit.num_positions for unit in each.units)
        for unit in each.units:
            unit.num_positions = longest
    return deque(sorted(by_prompt.values(), key=lambda each: each.units[0].num_positions, reverse=True))


def _num_affordable(needs: Sequence[int], most: int, positions: int) -> int:
    """How many slots of the lengths that rows need, descending, have room in so many positions; `most` at most, and
    those past the last row are like its own."""
    wanted = [*needs, *[needs[-1]] * (most - len(needs))][:most]
    return sum(end <= positions for end in accumulate(wanted))


def _fits(waiting: Waiting, free: int, most: int) -> bool:
    """Whether all units of a prompt find free slots; of one with more units than there are slots, the next must."""
    widths = [unit.num_slots for unit in waiting.units]
    return (sum(widths) if sum(widths) <= most else widths[0]) <= free


def _admit(waiting: deque[Waiting], free: int, most: int) -> list[Waiting]:
    """Take prompts off the queue while all of their units fit, so that each is prefilled once; a prompt with more units
    than there are slots, `most`, is taken in several turns."""
    admitted = []
    while waiting and _fits(waiting[0], free, most):
        taken = Waiting(waiting[0].prompt)
        while waiting[0].units and waiting[0].units[0].num_slots <= free:
            taken.units.append(waiting[0].units.popleft())
            free -= taken.units[-1].num_slots
        admitted.append(taken)
        if not waiting[0].units:
            waiting.popleft()
    return admitted


def _early(model: GPT2, units: Sequence[Unit]) -> set[int]:
    """Early layers that the units' strategies look at."""
    strategies = [unit.state.ending.strategy for unit in units]
    return {
        layer
        for strategy in strategies
        if isinstance(strategy, Dola)
        for layer in early_layers(strategy, model.num_layers)
    }


def _looks_back(units: Sequence[Unit]) -> bool:
    """Whether a strategy looks at states of the prompt before its end."""
    return any(isinstance(unit.state.ending.strategy, ContrastiveSearch) for unit in units)


def _ends(states: Sequence[States]) -> States:
    """Hidden states at the last token of each prompt, (B, E)."""
    early = {layer: torch.stack([each.early[layer][-1] for each in states]) for layer in states[0].early}
    return States(torch.stack([each.last[-1] for each in states]), early)


def _rearrange(cache: SlotCache, running: list[Unit]) -> None:
    """Move the running rows to slots 0..n-1, their units in that order; rows still lie where their parents did."""
    rows = [(slot, unit.num_positions) for unit in running for row in unit.state.running for slot in row.slots]
    sources = [slot for slot, _ in rows]
    slots = place(sources)
    new = iter(slots)
    for unit in running:
        unit.state.move([tuple(next(new) for _ in row.slots) for row in unit.state.running])
    moves = [row for _, row in sorted(zip(slots, rows, strict=True))]
    cache.rearrange([source for source, _ in moves], [need for _, need in moves])
    running.sort(key=lambda unit: unit.state.running[0].slot)
