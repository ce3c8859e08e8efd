"""One step for all running rows: from logits to the next token of each, one kind of strategy after another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pipeline.engine.beam_search import advance_beams
from pipeline.engine.contrastive import advance_contrastive
from pipeline.engine.single import advance_singles
from pipeline.engine.turn import Turn, Unit, not_finite
from pipeline.strategies import BeamSearch, ContrastiveSearch


def advance(turn: Turn, units: Sequence[Unit]) -> None:
    """Choose the next token of every row of the units; those that end get their `result`."""
    for group in _by_kind(turn, units):
        match strategy := group[0].state.ending.strategy:
            case BeamSearch():
                advance_beams(turn, strategy, group)
            case ContrastiveSearch():
                advance_contrastive(turn, strategy, group)
            case _:
                advance_singles(turn, strategy, group)


def _by_kind(turn: Turn, units: Sequence[Unit]) -> list[list[Unit]]:
    """Units of each kind of strategy. One for which the model broke down gets its `result` here."""
    is_broken = ~turn.measures.log_normalisers.isfinite()
    broken = {turn.first_slot + row for row in is_broken.nonzero()[:, 0].tolist()}
    groups: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        slots = [slot for row in unit.state.running for slot in row.slots]
        if broken.isdisjoint(slots):
            groups[id(unit.state.ending.kind)].append(unit)
        else:
            unit.result = not_finite(unit.state.running[0].num_generated)
            turn.cache.clear(slots)
    return list(groups.values())
