"""Which prompts a page shows of a run that has too many, and why each of them.

All metrics are of all rows; what is chosen here is only what people look at. Of a report: the first prompts, every way
to end and to fail, the extremes of every strategy. Of a comparison: the first prompts, and what changed in which way.
The rest is drawn, the same prompts every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import numpy as np
import pyarrow.compute as pc

from pipeline.compare import Pair, pair_name
from pipeline.statistics.bootstrap import mixed
from pipeline.statistics.ragged import Array
from pipeline.statistics.rows import StrategyRows

NUM_EXTREMES = 10
NUM_ERRORS = 50
PIECE_PAIRS = 4096

Why = dict[int, list[str]]


class Choice:
    """Remembers candidates as rows are read: few per reason, so that memory does not grow with the run.

    Attributes:
        num_shown: most prompts.
        num_first: of them, in the order of the input.
        claimed_share: of them, which reasons may claim; the rest is drawn.
        asked: number -> id of those that are shown in any case.
    """

    def __init__(self, num_shown: int, num_first: int, claimed_share: float) -> None:
        self.num_shown, self.num_first, self.claimed_share = num_shown, num_first, claimed_share
        self.asked: dict[int, str] = {}
        self.lowest: dict[str, list[tuple[float, int]]] = {}
        self.prompts: Array = np.zeros(0, np.int64)
        self.drawn: Array = np.zeros(0, np.int64)

    def chosen(self, num_prompts: int) -> Why:
        """Numbers of input rows, ascending, with the reasons for each; without a reason it was drawn.

        Args:
            num_prompts: that there are; where all of them are shown, none needs a reason.
        """
        if num_prompts <= self.num_shown:
            return {prompt: [] for prompt in sorted(self.drawn.tolist())}
        reasons = {reason: [prompt for _, prompt in sorted(found)] for reason, found in self.lowest.items()}
        turns = [prompt for turn in zip_longest(*reasons.values()) for prompt in turn if prompt is not None]
        first = self.prompts.tolist()
        claimed = list(dict.fromkeys([*self.asked, *first, *turns]))
        kept = claimed[: max(len(self.asked), round(self.num_shown * self.claimed_share))]
        everything = dict.fromkeys([*kept, *self.drawn.tolist(), *claimed])
        shown = list(everything)[: max(len(self.asked), self.num_shown)]
        named = [("asked for", list(self.asked)), ("among the first", first), *reasons.items()]
        return {prompt: [reason for reason, prompts in named if prompt in prompts] for prompt in sorted(shown)}

    def see(self, prompts: Array) -> None:
        """Consider prompts, each given once, for the first and for those at random."""
        self.prompts = np.unique(np.concatenate([self.prompts, prompts]))[: self.num_first]
        both = np.unique(np.concatenate([self.drawn, prompts]))
        self.drawn = both[np.argsort(mixed(both), kind="stable")[: self.num_shown]]

    def keep(self, reason: str, scores: Array, prompts: Array, most: int = NUM_EXTREMES) -> None:
        """Keep the prompts with the lowest scores, each once."""
        order = np.lexsort((prompts, scores))[: most * 8]  # some for prompts with several samples
        found = [*self.lowest.get(reason, ()), *zip(scores[order].tolist(), prompts[order].tolist(), strict=True)]
        best: dict[int, float] = {}
        for score, prompt in sorted(found):
            best.setdefault(prompt, score)
        if best:
            self.lowest[reason] = [(score, prompt) for prompt, score in list(best.items())[:most]]


class Picker(Choice):
    """Chooses for the report of a run."""

    def __init__(self, num_shown: int, wanted: Iterable[str] = ()) -> None:
        """Choose at most `num_shown` prompts, those with the wanted row ids first."""
        super().__init__(num_shown, num_first=20, claimed_share=0.6)
        self.wanted = frozenset(wanted)

    def add(self, rows: StrategyRows) -> None:
        """Consider some more rows."""
        self.see(np.unique(rows.prompts))
        self._add_wanted(rows)
        self._add_errors(rows)
        self._add_endings(rows)
        self._add_extremes(rows)

    def _add_wanted(self, rows: StrategyRows) -> None:
        if self.wanted:
            ids = rows.table["row_id"].to_pylist()
            self.asked |= {int(rows.prompts[at]): ids[at] for at in range(len(ids)) if ids[at] in self.wanted}

    def _add_errors(self, rows: StrategyRows) -> None:
        types = rows.table["error_type"]
        for error_type in pc.unique(pc.drop_null(types)).to_pylist():
            failed = pc.fill_null(pc.equal(types, error_type), False).to_numpy()
            self.keep(f"error: {error_type}", rows.prompts[failed], rows.prompts[failed], NUM_ERRORS)

    def _add_endings(self, rows: StrategyRows) -> None:
        reasons = rows.table["finish_reason"]
        for ending in pc.unique(pc.drop_null(reasons)).to_pylist():
            ended = pc.fill_null(pc.equal(reasons, ending), False).to_numpy()
            self.keep(f"{rows.strategy.name} ended by {ending}", rows.prompts[ended], rows.prompts[ended])

    def _add_extremes(self, rows: StrategyRows) -> None:
        name = rows.strategy.name
        some = rows.words.lengths > 0
        if some.any():
            surprise = rows.numbers["surprise"][some] / rows.numbers["tokens"][some]
            self.keep(f"{name} most certain", surprise, rows.prompts[some])
            self.keep(f"{name} least certain", -surprise, rows.prompts[some])
        repeating = rows.numbers["repeated"] > 0
        self.keep(f"{name} repeats most", -rows.numbers["repeated"][repeating], rows.prompts[repeating])
        if rows.agreement is not None:
            parted = rows.agreement.has_parted
            steps, prompts = rows.agreement.common[parted], rows.prompts[rows.agreement.rows[parted]]
            self.keep(f"{name} parts earliest", steps, prompts)
            self.keep(f"{name} parts latest", -steps, prompts)


class ChangePicker(Choice):
    """Chooses for the page of a comparison: what changed comes before what is the same.

    Attributes:
        num_prompts: that either side has.
    """

    def __init__(self, num_shown: int) -> None:
        super().__init__(num_shown, num_first=5, claimed_share=0.9)
        self.num_prompts = 0
        self.waiting: list[tuple[int, bool, list[tuple[str, float]]]] = []
        self.last = -1

    def add(self, names: tuple[str, str], pair: Pair) -> None:
        """Consider one more pair of completions of these strategies; pairs come in the order of the input."""
        prompt, name = pair.view.row_index, pair_name(names)
        self.num_prompts += prompt != self.last
        self.last = prompt
        self.waiting.append((prompt, pair.has_changed, [(f"{name} {why}", score) for why, score in _reasons(pair)]))
        if len(self.waiting) >= PIECE_PAIRS:
            self._flush()

    def chosen(self, num_prompts: int) -> Why:
        """As for every choice."""
        self._flush()
        return super().chosen(num_prompts)

    def _flush(self) -> None:
        """Consider those that wait, many at once."""
        self.see(np.unique(np.array([prompt for prompt, *_ in self.waiting], np.int64)))
        found: dict[str, list[tuple[float, int]]] = {}
        for prompt, _, reasons in self.waiting:
            for reason, score in reasons:
                found.setdefault(reason, []).append((score, prompt))
        for reason, candidates in found.items():
            scores, prompts = (np.array(each) for each in zip(*candidates, strict=True))
            self.keep(reason, scores, prompts)
        changed = np.array([prompt for prompt, has_changed, _ in self.waiting if has_changed], np.int64)
        self.keep("changed", mixed(changed).astype(np.float64), changed, self.num_shown)
        self.waiting.clear()


def _reasons(pair: Pair) -> Iterator[tuple[str, float]]:
    """What a pair may be shown for, each with a number that is lower the more it is so."""
    one, other, step = pair.one, pair.other, pair.step
    if len(pair.kl):
        yield "largest KL", -float(pair.kl.max())
    if one is None or other is None:
        yield f"only in the {'second' if one is None else 'first'}", 0.0
    elif "error" in (one.end, other.end) and one.end != other.end:
        yield "is an error on one side", 0.0
    elif step is not None and step == len(one.token_ids) == len(other.token_ids):
        yield "ends in another way", 0.0
    elif step is not None:
        yield "changes earliest", step
        yield "changes latest", -step
