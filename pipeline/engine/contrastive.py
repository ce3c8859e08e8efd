"""Contrastive search (Su et al., arXiv:2202.06417), in the slots of the cache.

Each turn runs the top_k candidates of every unit through the model at once. The one with the best (1 - alpha) x
probability - alpha x similarity stays, and its logits give the next candidates, which take its place. So the last token
of a completion is run too, unlike everywhere else.

Shape letters: N units, K candidates, L tokens so far, E width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.engine.hypothesis import Ending, Hypothesis, completion
from pipeline.engine.processors import BANNED
from pipeline.engine.ranking import top_k
from pipeline.engine.turn import Turn, Unit, all_banned
from pipeline.strategies import ContrastiveSearch


@dataclass(slots=True)
class Contrastive:
    """Candidates of one unit, most probable first.

    Attributes:
        chosen: the hypothesis that all candidates extend; None right after the prompt, when `running` is its root.
        probs: of the candidates, after the processors.
        seen: (positions, E) unit vectors of the hidden states so far, as many as `num_seen`.
    """

    strategy: ContrastiveSearch
    ending: Ending
    running: list[Hypothesis] = field(default_factory=list)
    chosen: Hypothesis | None = None
    probs: list[float] = field(default_factory=list)
    seen: Tensor = field(default_factory=lambda: torch.empty(0))
    num_seen: int = 0

    def begin(self, root: Hypothesis, prompt: Tensor) -> None:
        """Start after the prompt, whose hidden states are (T, E)."""
        self.running = [root]
        self.seen = torch.empty((len(prompt) + self.ending.limit, prompt.shape[1]), device=prompt.device)
        self._see(prompt)

    def move(self, slots: Sequence[tuple[int, ...]]) -> None:
        """Lie in other slots."""
        self.running = [row.moved(place) for row, place in zip(self.running, slots, strict=True)]

    def winner(self, hidden: Tensor) -> Hypothesis:
        """The candidate that stays, the more probable one on a tie; `hidden` is (K, E)."""
        seen, candidates = self.seen[: self.num_seen], F.normalize(hidden.float(), dim=-1)
        # A product for each: rows of one product may be rounded apart, and candidates that tie would not.
        similarities = torch.stack([(seen @ candidate).amax() for candidate in candidates])  # (K,)
        probs = torch.tensor(self.probs, device=hidden.device)
        alpha = self.strategy.penalty_alpha
        best = int(((1 - alpha) * probs - alpha * similarities).argmax())
        self._see(hidden[best : best + 1])
        return self.running[best]

    def _see(self, hidden: Tensor) -> None:
        end = self.num_seen + len(hidden)
        self.seen[self.num_seen : end] = F.normalize(hidden.float(), dim=-1)
        self.num_seen = end


def advance_contrastive(turn: Turn, strategy: ContrastiveSearch, units: Sequence[Unit]) -> None:
    """Settle the candidates of every unit and propose the next ones; units that end get their `result`."""
    for unit in units:
        _settle(turn, unit)
    going = [unit for unit in units if unit.result is None]
    if going:
        _propose(turn, strategy, going)


def _settle(turn: Turn, unit: Unit) -> None:
    """Choose one of the candidates that were just run; right after the prompt there are none."""
    state = unit.state
    assert isinstance(state, Contrastive)
    if state.chosen is None:
        state.chosen = state.running[0]
        return
    winner = state.winner(turn.states.last[turn.rows(state.running)])
    assert winner.step is not None
    if reason := state.ending.reason(state.chosen, winner.step.token):
        unit.result = (completion(winner.step, turn.num_alternatives, reason, is_drawn=False),)
    state.chosen = winner


def _propose(turn: Turn, strategy: ContrastiveSearch, units: Sequence[Unit]) -> None:
    """Make the most probable tokens after each chosen hypothesis the next candidates; banned ones never are."""
    states = [unit.state for unit in units if isinstance(unit.state, Contrastive)]
    parents = [state.chosen for state in states if state.chosen is not None]
    rows = turn.rows(parents)
    scores = turn.processed(turn.logits_at(rows), parents, [state.ending for state in states])
    values, tokens = top_k(scores, min(strategy.top_k, scores.shape[1]))  # (N, K)
    probs = torch.exp(values - torch.logsumexp(scores, dim=-1, keepdim=True)).tolist()
    owners, places = torch.nonzero(values > BANNED, as_tuple=True)
    steps = turn.steps([parents[owner] for owner in owners.tolist()], rows[owners], tokens[owners, places], None)
    for state in states:
        state.running, state.probs = [], []
    for owner, place, step in zip(owners.tolist(), places.tolist(), steps, strict=True):
        states[owner].running.append(states[owner].ending.child(parents[owner], step))
        states[owner].probs.append(probs[owner][place])
    for unit, state, parent in zip(units, states, parents, strict=True):
        if not state.running:
            unit.result = all_banned(strategy, parent.num_generated)
