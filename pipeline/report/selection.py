"""Which prompts a report shows of a run that has too many, and why each of them.

All metrics are of all rows; what is chosen here is only what people look at: the first prompts, every way to end and to
fail, the extremes of every strategy, and for the rest prompts at random, the same ones every time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

import numpy as np
import pyarrow.compute as pc

from pipeline.statistics.bootstrap import mixed
from pipeline.statistics.ragged import Array
from pipeline.statistics.rows import StrategyRows

NUM_FIRST = 20
NUM_EXTREMES = 10
NUM_ERRORS = 50
CLAIMED_SHARE = 0.6  # of the prompts; the rest is drawn

Why = dict[int, list[str]]


class Picker:
    """Remembers candidates as rows are read: few per reason, so that memory does not grow with the run."""

    def __init__(self, num_shown: int, wanted: Iterable[str] = ()) -> None:
        """Choose at most `num_shown` prompts, those with the wanted row ids first."""
        self.num_shown, self.wanted = num_shown, frozenset(wanted)
        self.asked: dict[int, str] = {}
        self.lowest: dict[str, list[tuple[float, int]]] = {}
        self.prompts: Array = np.zeros(0, np.int64)
        self.drawn: Array = np.zeros(0, np.int64)

    def add(self, rows: StrategyRows) -> None:
        """Consider some more rows."""
        self._add_prompts(np.unique(rows.prompts))
        self._add_wanted(rows)
        self._add_errors(rows)
        self._add_endings(rows)
        self._add_extremes(rows)

    def chosen(self, num_prompts: int) -> Why:
        """Numbers of input rows, ascending, with the reasons for each; without a reason it was drawn.

        Args:
            num_prompts: that there are; where all of them are shown, none needs a reason.
        """
        if num_prompts <= self.num_shown:
            return {prompt: [] for prompt in sorted(self.drawn.tolist())}
        reasons = {reason: [prompt for _, prompt in sorted(found)] for reason, found in self.lowest.items()}
        turns = [prompt for turn in zip_longest(*reasons.values()) for prompt in turn if prompt is not None]
        first = self.prompts[:NUM_FIRST].tolist()
        claimed = list(dict.fromkeys([*self.asked, *first, *turns]))
        kept = claimed[: max(len(self.asked), round(self.num_shown * CLAIMED_SHARE))]
        everything = dict.fromkeys([*kept, *self.drawn.tolist(), *claimed])
        shown = list(everything)[: max(len(self.asked), self.num_shown)]
        named = [("asked for", list(self.asked)), ("among the first", first), *reasons.items()]
        return {prompt: [reason for reason, prompts in named if prompt in prompts] for prompt in sorted(shown)}

    def _add_prompts(self, prompts: Array) -> None:
        self.prompts = np.unique(np.concatenate([self.prompts, prompts]))[:NUM_FIRST]
        both = np.unique(np.concatenate([self.drawn, prompts]))
        self.drawn = both[np.argsort(mixed(both), kind="stable")[: self.num_shown]]

    def _add_wanted(self, rows: StrategyRows) -> None:
        if self.wanted:
            ids = rows.table["row_id"].to_pylist()
            self.asked |= {int(rows.prompts[at]): ids[at] for at in range(len(ids)) if ids[at] in self.wanted}

    def _add_errors(self, rows: StrategyRows) -> None:
        types = rows.table["error_type"]
        for error_type in pc.unique(pc.drop_null(types)).to_pylist():
            failed = pc.fill_null(pc.equal(types, error_type), False).to_numpy()
            self._keep(f"error: {error_type}", rows.prompts[failed], rows.prompts[failed], NUM_ERRORS)

    def _add_endings(self, rows: StrategyRows) -> None:
        reasons = rows.table["finish_reason"]
        for ending in pc.unique(pc.drop_null(reasons)).to_pylist():
            ended = pc.fill_null(pc.equal(reasons, ending), False).to_numpy()
            self._keep(f"{rows.strategy.name} ended by {ending}", rows.prompts[ended], rows.prompts[ended])

    def _add_extremes(self, rows: StrategyRows) -> None:
        name = rows.strategy.name
        some = rows.words.lengths > 0
        if some.any():
            surprise = rows.numbers["surprise"][some] / rows.numbers["tokens"][some]
            self._keep(f"{name} most certain", surprise, rows.prompts[some])
            self._keep(f"{name} least certain", -surprise, rows.prompts[some])
        repeating = rows.numbers["repeated"] > 0
        self._keep(f"{name} repeats most", -rows.numbers["repeated"][repeating], rows.prompts[repeating])
        if rows.agreement is not None:
            parted = rows.agreement.has_parted
            steps, prompts = rows.agreement.common[parted], rows.prompts[rows.agreement.rows[parted]]
            self._keep(f"{name} parts earliest", steps, prompts)
            self._keep(f"{name} parts latest", -steps, prompts)

    def _keep(self, reason: str, scores: Array, prompts: Array, most: int = NUM_EXTREMES) -> None:
        """Keep the prompts with the lowest scores, each once."""
        order = np.lexsort((prompts, scores))[: most * 8]  # some for prompts with several samples
        found = [*self.lowest.get(reason, ()), *zip(scores[order].tolist(), prompts[order].tolist(), strict=True)]
        best: dict[int, float] = {}
        for score, prompt in sorted(found):
            best.setdefault(prompt, score)
        if best:
            self.lowest[reason] = [(score, prompt) for prompt, score in list(best.items())[:most]]
