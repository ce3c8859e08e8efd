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
import numpy.typing as npt
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
_INTS, _FLOATS, _BOOLS = torch.int32, torch.float32, torch.bool
_DTYPES = (_INTS, _FLOATS, _FLOATS, _INTS, _FLOATS, _INTS, _FLOATS, _BOOLS, _BOOLS)  # of `Taken`


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


Group = tuple[Ending, list[int]]  # the ending of any row of a strategy, and the slots of all


class Taken(NamedTuple):
    """What came of some steps, (S, B) each; the columns too, of the alternatives (S, B, K)."""

    columns: Columns
    is_finite: npt.NDArray[np.bool_]
    is_possible: npt.NDArray[np.bool_]


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
        self._pool = torch.cuda.graph_pool_handle() if cache.keys.is_cuda else None
        self._strides: dict[Shape, Stride] = {}

    def advance(self, units: Sequence[Unit]) -> tuple[int, int]:
        """Up to S tokens for every unit, of which the i-th lies in slot i; those that end get their `result`.

        Returns:
            Steps taken, and rows in them that had not ended, all together.
        """
        states = [unit.state for unit in units if isinstance(unit.state, Single)]
        num_steps = min(self._most_steps, max(each.ending.limit - each.running[0].num_generated for each in states))
        groups = _groups(states)
        taken = self._stride(states, groups, num_steps).run(states, [slots for _, slots in groups], num_steps)
        return num_steps, sum(_settle(self.cache, unit, slot, taken) for slot, unit in enumerate(units))

    def _stride(self, states: Sequence[Single], groups: Sequence[Group], num_steps: int) -> Stride:
        """One that has room for the rows and for so many tokens more."""
        longest = max(_num_tokens(state) for state in states) + num_steps
        shape = Shape(
            num_slots=_room(len(states), self.cache.num_slots),
            width=min(-(-longest // _WIDTHS) * _WIDTHS, self.cache.num_positions),
            groups=tuple((ending.kind, _room(len(slots), self.cache.num_slots)) for ending, slots in groups),
        )
        if shape not in self._strides:
            if len(self._strides) == _MOST_STRIDES:
                self._strides.clear()
            endings = [ending for ending, _ in groups]
            limits = self._num_alternatives, self._most_steps, self._pool
            self._strides[shape] = Stride(self._model, self.cache, shape, endings, *limits)
        return self._strides[shape]


class Stride:
    """A decode step over fixed shapes, and where it leaves what it finds.

    Args:
        endings: of any row of each group; what differs between its rows is not looked at.
        most_steps: S at most.
        pool: see `recorded`.
    """

    def __init__(
        self,
        model: GPT2,
        cache: SlotCache,
        shape: Shape,
        endings: Sequence[Ending],
        num_alternatives: int,
        most_steps: int,
        pool: Any = None,
    ) -> None:
        self._model, self._cache, self._shape, self._endings = model, cache, shape, endings
        self._num_alternatives, self._pool = num_alternatives, pool
        device, slots = model.device, shape.num_slots
        self._inputs = torch.zeros((5, slots), dtype=torch.int64, device=device)
        self._tokens, self._lengths, self._num_prompt_tokens, self._limits, self._seeds = self._inputs
        self._rows = [torch.zeros(size, dtype=torch.int64, device=device) for _, size in shape.groups]
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        shapes = [(most_steps, slots)] * 5 + [(most_steps, slots, num_alternatives)] * 2 + [(most_steps, slots)] * 2
        self._outputs = [
            torch.zeros(each, dtype=dtype, device=device) for each, dtype in zip(shapes, _DTYPES, strict=True)
        ]
        self._found = [torch.empty_like(each, device="cpu", pin_memory=each.is_cuda) for each in self._outputs]
        self._replay: Callable[[], None] | None = None

    def run(self, states: Sequence[Single], groups: Sequence[Sequence[int]], num_steps: int) -> Taken:
        """Extend all rows by so many tokens, in the cache too.

        Args:
            groups: slots of each group of the shape.
        """
        if self._replay is None:
            self._load(states, groups)
            self._replay = recorded(self.step, self._pool)
        self._load(states, groups)
        for _ in range(num_steps):
            self._replay()
        for found, output in zip(self._found, self._outputs, strict=True):
            found[:num_steps].copy_(output[:num_steps], non_blocking=True)
        if self._place.is_cuda:
            torch.cuda.current_stream().synchronize()
        *columns, is_finite, is_possible = (found[:num_steps].numpy().copy() for found in self._found)
        return Taken(Columns(*columns), is_finite, is_possible)

    def _load(self, states: Sequence[Single], groups: Sequence[Sequence[int]]) -> None:
        """Set where the rows stand; slots beyond them run along for nothing."""
        columns = [
            [state.running[0].step.token for state in states if state.running[0].step],
            [_num_tokens(state) - 1 for state in states],  # the newest is not in the cache yet
            [state.ending.num_prompt_tokens for state in states],
            [state.ending.limit for state in states],
            [state.seed for state in states],
        ]
        self._inputs[:, : len(states)].copy_(torch.tensor(columns))
        self._cache.lengths[: len(states)].copy_(self._lengths[: len(states)])
        for rows, slots in zip(self._rows, groups, strict=True):
            spare = len(rows) - len(slots)
            rows.copy_(torch.tensor([*slots, *[slots[-1]] * spare]))  # what is computed twice is the same twice
        self._place.zero_()

    def step(self) -> None:
        """One more token for every slot. It could not be recorded if anything in here waited for the device, took
        values from the host, or had a shape that depends on data."""
        hidden = self._model.decode(self._cache, self._tokens, width=self._shape.width).last
        logits = self._model.logits(hidden)
        log_normalisers, entropies, best, best_scores = summarise(logits, self._num_alternatives)
        tokens = best[:, 0].long()
        chosen = [self._choose(logits, group) for group in range(len(self._rows))]
        is_possible = torch.ones_like(tokens, dtype=torch.bool)
        for rows, (picked, _, possible) in zip(self._rows, chosen, strict=True):
            tokens.index_copy_(0, rows, picked)
            is_possible.index_copy_(0, rows, possible)
        logprobs = logits.gather(1, tokens[:, None])[:, 0].float() - log_normalisers
        sampling_logprobs = logprobs.clone()
        for rows, (_, picked_logprobs, _) in zip(self._rows, chosen, strict=True):
            sampling_logprobs.index_copy_(0, rows, picked_logprobs)
        alternatives = best[:, : self._num_alternatives], best_scores[:, : self._num_alternatives]
        self._keep(
            tokens,
            logprobs,
            sampling_logprobs,
            rank(logits, torch.arange(len(tokens), device=tokens.device), tokens),
            entropies,
            alternatives[0],
            torch.exp(alternatives[1] - log_normalisers[:, None]),
            log_normalisers.isfinite(),
            is_possible,
        )
        self._tokens.copy_(tokens)

    def _keep(self, *found: Tensor) -> None:
        for output, each in zip(self._outputs, found, strict=True):
            output.index_copy_(0, self._place, each[None].to(output.dtype))
        self._place += 1

    def _choose(self, logits: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of a group's rows, their log-probabilities, and whether any was possible, (C,) each."""
        (strategy, _), ending, rows = self._shape.groups[group], self._endings[group], self._rows[group]
        lengths = self._cache.lengths[rows].clamp(max=self._shape.width)
        num_prompt_tokens = self._num_prompt_tokens[rows]
        scores = logits[rows]
        if changes_scores(strategy):
            context = Context(
                token_ids=self._cache.token_ids[rows, : self._shape.width],
                lengths=lengths,
                num_prompt_tokens=num_prompt_tokens,
                limits=self._limits[rows],
                eos_token_ids=sorted(ending.eos_token_ids),
                stop_token_ids=ending.stop_token_ids,
            )
            scores = process(strategy, scores.float(), context)
        tokens, logprobs = pick(strategy, scores, self._seeds[rows], lengths - num_prompt_tokens)
        return tokens, logprobs, scores.amax(-1) > BANNED


def recorded(step: Callable[[], None], pool: Any) -> Callable[[], None]:
    """The step as a CUDA graph, for which it is run; elsewhere, and where CUDA refuses, as it is.

    Args:
        pool: of memory, which graphs can share that leave nothing there; None where there is no CUDA.
    """
    if pool is None:
        return step
    step()  # libraries set themselves up, and tables of token ids are made
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.warning("decoding goes on without CUDA graphs, at less speed: %s", error)
        return step
    return graph.replay


def _groups(states: Sequence[Single]) -> list[Group]:
    """Rows by kind of strategy, of those that do more than take the best token."""
    groups: dict[int, Group] = {}
    for slot, state in enumerate(states):
        groups.setdefault(id(state.ending.kind), (state.ending, []))[1].append(slot)
    return [group for group in groups.values() if isinstance(group[0].kind, Sampling) or changes_scores(group[0].kind)]


def _settle(cache: SlotCache, unit: Unit, slot: int, taken: Taken) -> int:
    """Read the unit's tokens until it ends; returns how many steps it took part in."""
    assert isinstance(unit.state, Single)
    state, parent = unit.state, unit.state.running[0]
    ending, tail = state.ending, parent.tail
    is_good = taken.is_finite[:, slot] & taken.is_possible[:, slot]
    num_good = int(is_good.cumprod().sum())
    for step, token in enumerate(taken.columns.token_ids[:num_good, slot].tolist(), start=1):
        if reason := ending.reason_at(parent.num_generated + step, tail, token):
            num_alternatives = taken.columns.top_token_ids.shape[2]
            unit.result = (completion(_stretch(parent, taken, slot, step), num_alternatives, reason),)
            return step
        tail = ending.tail(tail, token)
    num_generated = parent.num_generated + num_good
    if num_good == len(is_good):
        state.running = [Hypothesis(parent.slots, _stretch(parent, taken, slot, num_good), num_generated, tail)]
        return num_good
    if taken.is_finite[num_good, slot]:
        unit.result = all_banned(ending.strategy, num_generated)
    else:
        unit.result = not_finite(num_generated)
        cache.clear([slot])
    return num_good + 1


def _stretch(parent: Hypothesis, taken: Taken, slot: int, num_steps: int) -> Stretch:
    columns = Columns(*(column[:num_steps, slot] for column in taken.columns))  # type: ignore[arg-type]
    return Stretch(parent.step, columns)


def _num_tokens(state: Single) -> int:
    """Tokens of the row, prompt and completion."""
    return state.ending.num_prompt_tokens + state.running[0].num_generated


def _room(count: int, most: int) -> int:
    """A round number that is at least `count`, of which there are four per doubling, but not over `most`."""
    quarter = 1 << max(0, (count - 1).bit_length() - 3)
    return min(-(-count // quarter) * quarter, most)
