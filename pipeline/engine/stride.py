"""Several decode steps in a row without the host: on a GPU as CUDA graphs.

Where every running row keeps one hypothesis and its tokens alone decide on the next, the device can go on by itself. A
`Stride` is one decode step, from tokens to tokens, over tensors whose shapes and addresses never change; a GPU records
it once and replays it as often as is wanted. Only then does the host look at all that came out.

Rows that end on the way run on to the end of the stride, as fixed shapes would have them do in any case, and the host
cuts what is too much. Shapes are rounded up, so that a few strides serve all steps.

Shape letters: S steps, B slots, N running rows, C rows of one strategy with room to spare, V vocabulary, K recorded
alternatives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.cache import SlotCache
from pipeline.engine.hypothesis import Columns, Ending, Hypothesis, Stretch, completion
from pipeline.engine.measure import summarise
from pipeline.engine.model import GPT2
from pipeline.engine.processors import BANNED, Context, changes_scores, process, settings
from pipeline.engine.ranking import rank
from pipeline.engine.single import Single, pick
from pipeline.engine.turn import Unit, all_banned, not_finite
from pipeline.strategies import Decoding, Greedy, Sampling

log = logging.getLogger(__name__)

_NEEDS_HOST = {"guidance_scale", "sequence_bias", "allowed_words_ids"}  # a twin, shapes that depend on data, a trie
_MOST_STRIDES = 64  # kept at a time
_WIDTHS = 128  # positions attended to are a multiple of this

Group = tuple[Ending, list[int]]  # the ending of any row of a strategy, and the slots of all


class Shape(NamedTuple):
    """What a stride is made for.

    Attributes:
        num_slots: B.
        width: positions attended to.
        groups: strategies that do more than take the best token, each with C.
    """

    num_slots: int
    width: int
    groups: tuple[tuple[Decoding, int], ...]


class Taken(NamedTuple):
    """What came of some steps, tensors or arrays: (S, B) each, of the alternatives (S, B, K). As in `Columns`, and
    whether the logits were finite, and whether any token was possible."""

    token_ids: Any
    token_logprobs: Any
    sampling_logprobs: Any
    token_ranks: Any
    entropies: Any
    top_token_ids: Any
    top_probs: Any
    is_finite: Any
    is_possible: Any

    def row(self, slot: int, num_steps: int) -> Columns:
        """The first steps of a slot."""
        return Columns(*(column[:num_steps, slot] for column in self[: len(Columns._fields)]))


_INTS, _FLOATS, _BOOLS = torch.int32, torch.float32, torch.bool
_DTYPES = Taken(_INTS, _FLOATS, _FLOATS, _INTS, _FLOATS, _INTS, _FLOATS, _BOOLS, _BOOLS)


def can_stride(units: Sequence[Unit]) -> bool:
    """Whether a device can choose the tokens of all these units without the host."""
    kinds = {id(unit.state.ending.kind): unit.state.ending.kind for unit in units}
    return all(_can_stride(kind) for kind in kinds.values())


def _can_stride(strategy: Decoding) -> bool:
    return isinstance(strategy, Greedy | Sampling) and not _NEEDS_HOST & settings(strategy).keys()


class Strides:
    """Decodes the rows of one cache, and keeps the strides made for it.

    Args:
        most_steps: S at most.
    """

    def __init__(self, model: GPT2, cache: SlotCache, num_alternatives: int, most_steps: int) -> None:
        self.cache = cache
        self._model, self._num_alternatives, self._most_steps = model, num_alternatives, most_steps
        size = most_steps * cache.num_slots
        sizes = [size * num_alternatives if name.startswith("top_") else size for name in Taken._fields]
        self._on_device = [
            torch.zeros(size, dtype=dtype, device=model.device) for size, dtype in zip(sizes, _DTYPES, strict=True)
        ]
        self._on_host = [torch.zeros_like(each, device="cpu", pin_memory=each.is_cuda) for each in self._on_device]
        self._pool = torch.cuda.graph_pool_handle() if cache.kept.is_cuda else None
        self._strides: dict[Shape, Stride] = {}  # the one used last comes last
        self._kinds: dict[int, tuple[int, Decoding]] = {}  # by identity, in the order in which they were met

    def advance(self, units: Sequence[Unit], *, is_more_waiting: bool) -> tuple[int, int]:
        """Up to S tokens for every unit, of which the i-th lies in slot i; those that end get their `result`.

        Args:
            is_more_waiting: for slots, so that enough rows should end soon for a prefill.

        Returns:
            Steps taken, and rows in them that had not ended, all together.
        """
        states = [unit.state for unit in units if isinstance(unit.state, Single)]
        left = sorted(each.ending.limit - each.running[0].num_generated for each in states)
        num_steps = min(self._most_steps, left[min(len(left) - 1, len(left) // 8)] if is_more_waiting else left[-1])
        groups = self._groups(states)
        taken = self._stride(states, groups, num_steps).run(states, [slots for _, slots in groups], num_steps)
        used = sum(_settle(unit, slot, taken) for slot, unit in enumerate(units))
        if broken := np.flatnonzero(~taken.is_finite.all(0)).tolist():  # rows that ran on, and free slots, too
            self.cache.clear(broken)
        return num_steps, used

    def _groups(self, states: Sequence[Single]) -> list[Group]:
        """Rows by kind of strategy, of those that do more than take the best token, in an order that stays."""
        groups: dict[int, Group] = {}
        for slot, state in enumerate(states):
            groups.setdefault(id(state.ending.kind), (state.ending, []))[1].append(slot)
        for key, (ending, _) in groups.items():
            self._kinds.setdefault(key, (len(self._kinds), ending.kind))
        in_order = [groups[key] for key in sorted(groups, key=lambda key: self._kinds[key][0])]
        return [group for group in in_order if isinstance(group[0].kind, Sampling) or changes_scores(group[0].kind)]

    def _stride(self, states: Sequence[Single], groups: Sequence[Group], num_steps: int) -> Stride:
        """One that has room for the rows and for so many tokens more."""
        longest = max(_num_tokens(state) for state in states) + num_steps
        num_slots = _room(len(states), self.cache.num_slots)
        shape = Shape(
            num_slots,
            width=min(-(-longest // _WIDTHS) * _WIDTHS, self.cache.num_positions),
            groups=tuple((ending.kind, min(_power(len(slots)), num_slots)) for ending, slots in groups),
        )
        stride = self._strides.pop(shape, None)
        if stride is None:
            if len(self._strides) == _MOST_STRIDES:
                del self._strides[next(iter(self._strides))]
            endings = [ending for ending, _ in groups]
            stride = Stride(self._model, self.cache, shape, endings, self._views(num_slots))
        elif stride.replay is None:  # many shapes come once; and what is made only once is there by now
            stride.replay = self._recorded(stride.step)
        self._strides[shape] = stride
        return stride

    def _views(self, num_slots: int) -> tuple[Taken, Taken]:
        """Room for what comes of the steps of so many slots, on the device and on the host."""
        size = self._most_steps * num_slots

        def view(name: str, room: Tensor) -> Tensor:
            if name.startswith("top_"):
                return room[: size * self._num_alternatives].view(self._most_steps, num_slots, self._num_alternatives)
            return room[:size].view(self._most_steps, num_slots)

        device, host = (Taken(*map(view, Taken._fields, rooms)) for rooms in (self._on_device, self._on_host))
        return device, host

    def _recorded(self, step: Callable[[], None]) -> Callable[[], None] | None:
        """The replay of a CUDA graph of a step that has run before; None where there is no CUDA, or CUDA refuses."""
        if self._pool is None:
            return None
        stream, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a recording that fails leaves its own behind
            self._pool = None
            if isinstance(error, torch.OutOfMemoryError):
                raise
            log.warning("decoding goes on without CUDA graphs, at less speed: %s", error)
            return None
        return graph.replay


class Stride:
    """A decode step over fixed shapes.

    Args:
        endings: of any row of each group; what differs between its rows is not looked at.
        views: where it leaves what it finds, and where on the host that is copied to.

    Attributes:
        replay: in place of `step`, if it was recorded.
    """

    def __init__(
        self,
        model: GPT2,
        cache: SlotCache,
        shape: Shape,
        endings: Sequence[Ending],
        views: tuple[Taken, Taken],
    ) -> None:
        self._model, self._cache, self._shape, self._endings = model, cache, shape, endings
        self._on_device, self._on_host = views
        device = model.device
        self._inputs = torch.zeros((5, shape.num_slots), dtype=torch.int64, device=device)
        self._tokens, self._lengths, self._num_prompt_tokens, self._limits, self._seeds = self._inputs
        self._rows = [torch.zeros(size, dtype=torch.int64, device=device) for _, size in shape.groups]
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._tables: dict[Any, Any] = {}  # of token ids: a graph reads them where they lie
        self.replay: Callable[[], None] | None = None

    def run(self, states: Sequence[Single], slots: Sequence[Sequence[int]], num_steps: int) -> Taken:
        """Extend all rows by so many tokens, in the cache too.

        Args:
            slots: of the rows of each group.

        Returns:
            Arrays of these steps.
        """
        self._load(states, slots)
        for _ in range(num_steps):
            (self.replay or self.step)()
        for host, device in zip(self._on_host, self._on_device, strict=True):
            host[:num_steps].copy_(device[:num_steps], non_blocking=True)
        if self._place.is_cuda:
            torch.cuda.current_stream().synchronize()
        return Taken(*(host[:num_steps].numpy().copy() for host in self._on_host))

    def _load(self, states: Sequence[Single], slots: Sequence[Sequence[int]]) -> None:
        """Set where the rows stand; slots beyond them run along for nothing."""
        columns = [
            [_newest(state) for state in states],
            [_num_tokens(state) - 1 for state in states],  # the newest is not in the cache yet
            [state.ending.num_prompt_tokens for state in states],
            [state.ending.limit for state in states],
            [state.seed for state in states],
        ]
        self._inputs.zero_()
        self._inputs[:, : len(states)].copy_(torch.tensor(columns))
        self._cache.lengths[: self._shape.num_slots].copy_(self._lengths)
        for rows, chosen in zip(self._rows, slots, strict=True):
            spare = len(rows) - len(chosen)
            rows.copy_(torch.tensor([*chosen, *[chosen[-1]] * spare]))  # what is computed twice is the same twice
        self._place.zero_()

    def step(self) -> None:
        """One more token for every slot. It could not be recorded if anything in here waited for the device, took
        values from the host, or had a shape that depends on data."""
        hidden = self._model.decode(self._cache, self._tokens, width=self._shape.width).last
        logits = self._model.logits(hidden)
        num_alternatives = self._on_device.top_probs.shape[2]
        log_normalisers, entropies, best, best_probs = summarise(logits, num_alternatives)
        tokens = best[:, 0].long()
        chosen = [self._choose(logits, log_normalisers, group) for group in range(len(self._rows))]
        is_possible = torch.ones_like(tokens, dtype=torch.bool)
        for rows, (picked, _, possible) in zip(self._rows, chosen, strict=True):
            tokens.index_copy_(0, rows, picked)
            is_possible.index_copy_(0, rows, possible)
        logprobs = logits.gather(1, tokens[:, None])[:, 0].float() - log_normalisers
        sampling_logprobs = logprobs.clone()
        for rows, (_, picked_logprobs, _) in zip(self._rows, chosen, strict=True):
            sampling_logprobs.index_copy_(0, rows, picked_logprobs)
        found = Taken(
            token_ids=tokens,
            token_logprobs=logprobs,
            sampling_logprobs=sampling_logprobs,
            token_ranks=rank(logits, torch.arange(len(tokens), device=tokens.device), tokens),
            entropies=entropies,
            top_token_ids=best[:, :num_alternatives],
            top_probs=best_probs[:, :num_alternatives],
            is_finite=log_normalisers.isfinite(),
            is_possible=is_possible,
        )
        for room, column in zip(self._on_device, found, strict=True):
            room.index_copy_(0, self._place, column[None].to(room.dtype))
        self._place += 1
        self._tokens.copy_(tokens)

    def _choose(self, logits: Tensor, log_normalisers: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of a group's rows, their log-probabilities, and whether any was possible, (C,) each."""
        (strategy, _), ending, rows = self._shape.groups[group], self._endings[group], self._rows[group]
        lengths, num_prompt_tokens = self._cache.lengths[rows], self._num_prompt_tokens[rows]
        scores, is_raw = logits[rows], not changes_scores(strategy)
        if not is_raw:
            context = Context(
                token_ids=self._cache.token_ids[rows, : self._shape.width],
                lengths=lengths,
                num_prompt_tokens=num_prompt_tokens,
                limits=self._limits[rows],
                eos_token_ids=sorted(ending.eos_token_ids),
                stop_token_ids=ending.stop_token_ids,
                tables=self._tables,
            )
            scores = process(strategy, scores.float(), context)
        known = log_normalisers[rows] if is_raw else None
        tokens, logprobs = pick(strategy, scores, self._seeds[rows], lengths - num_prompt_tokens, known)
        return tokens, logprobs, torch.ones_like(tokens, dtype=torch.bool) if is_raw else scores.amax(-1) > BANNED


def _settle(unit: Unit, slot: int, taken: Taken) -> int:
    """Read the unit's tokens until it ends; returns how many steps it took part in."""
    assert isinstance(unit.state, Single)
    state, parent = unit.state, unit.state.running[0]
    ending, tail = state.ending, parent.tail
    is_good = taken.is_finite[:, slot] & taken.is_possible[:, slot]
    num_good = int(is_good.cumprod().sum())
    for step, token in enumerate(taken.token_ids[:num_good, slot].tolist(), start=1):
        if reason := ending.reason_at(parent.num_generated + step, tail, token):
            last = Stretch(parent.step, taken.row(slot, step))
            unit.result = (completion(last, taken.top_probs.shape[2], reason),)
            return step
        tail = ending.tail(tail, token)
    num_generated = parent.num_generated + num_good
    if num_good == len(is_good):
        last = Stretch(parent.step, taken.row(slot, num_good))
        state.running = [Hypothesis(parent.slots, last, num_generated, tail)]
        return num_good
    is_finite = taken.is_finite[num_good, slot]
    unit.result = all_banned(ending.strategy, num_generated) if is_finite else not_finite(num_generated)
    return num_good + 1


def _num_tokens(state: Single) -> int:
    """Tokens of the row, prompt and completion."""
    return state.ending.num_prompt_tokens + state.running[0].num_generated


def _newest(state: Single) -> int:
    """The token that the model has not seen yet."""
    step = state.running[0].step
    assert step is not None, "the first token comes of the prefill"
    return step.token


def _power(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def _room(count: int, most: int) -> int:
    """A round number that is at least `count`, of which there are four per doubling, but not over `most`."""
    quarter = max(1, _power(count) // 8)
    return min(-(-count // quarter) * quarter, most)
