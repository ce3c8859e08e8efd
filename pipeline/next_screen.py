"""How next-token candidates look: side by side with bars on a terminal, tab-separated elsewhere."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from rich.bar import Bar
from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from pipeline import painting
from pipeline.next_tokens import Candidate, NextTokens, Prediction, Shared, Shift
from pipeline.terminal import print_table, visible

GAP = 3  # blanks between blocks
MAX_TOKEN, MIN_BAR, MAX_BAR = 24, 5, 40  # cells
MIN_WITH_IDS = 56  # below this width the table of shared candidates leaves ids out
EDGE_BLANKS = re.compile(r"^ +| +$")


def print_answer(answer: NextTokens) -> None:
    """Candidates and shifts on stdout: fitted to a terminal, else as tables that a blank line separates."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where stdout is not UTF-8, better a ? than no answer
    if sys.stdout.isatty():
        print_fitted(answer, Console())
    else:
        _print_plain(answer)


def piece(candidate: Candidate) -> str:
    """What a token adds to a text, or the name of a token that adds nothing."""
    return painting.piece(candidate.token_bytes, candidate.token)


def _print_plain(answer: NextTokens) -> None:
    print_table(["prompt", "rank", "token", "token_id", "percent"], _candidate_rows(answer))
    if answer.shifts:
        print()
        print_table(["first", "second", "shared", "kl_first_second", "kl_second_first", "js"], _shift_rows(answer))
    if shared := _shared_rows(answer):
        print()
        ranks, percents = ["rank_first", "rank_second"], ["percent_first", "percent_second"]
        print_table(["first", "second", "token", "token_id", *ranks, *percents, "change"], shared)


def _candidate_rows(answer: NextTokens) -> list[list[object]]:
    return [
        [number, one.rank, piece(one), one.token_id, f"{100 * one.prob:.6g}"]
        for number, prediction in enumerate(answer.predictions, start=1)
        for one in prediction.candidates
    ]


def _shift_rows(answer: NextTokens) -> list[list[object]]:
    return [
        [s.first, s.second, len(s.shared), *(f"{x:.6g}" for x in (s.kl_first_second, s.kl_second_first, s.js))]
        for s in answer.shifts
    ]


def _shared_rows(answer: NextTokens) -> list[list[object]]:
    return [
        [s.first, s.second, piece(both.before), both.before.token_id, both.before.rank, both.after.rank]
        + [f"{100 * x:.6g}" for x in (both.before.prob, both.after.prob, both.change)]
        for s in answer.shifts
        for both in s.shared
    ]


class Layout(NamedTuple):
    """Sizes that all blocks share, in cells.

    Attributes:
        token, bar: widths of columns; a bar of 0 is left out.
        block: width of a block.
        per_row: blocks beside each other.
        decimals: of percentages.
        largest: probability of the longest bar.
    """

    token: int
    bar: int
    block: int
    per_row: int
    decimals: int
    largest: float


def _layout(predictions: Sequence[Prediction], width: int, has_bars: bool) -> Layout:
    """As many blocks beside each other as fit without bars, then bars in the room that is left."""
    shown = [one for prediction in predictions for one in prediction.candidates]
    decimals = _decimals(min(one.prob for one in shown))
    token = min(MAX_TOKEN, max(5, *(cell_len(piece(one)) for one in shown)))
    others = [
        len(str(max(one.rank for one in shown))),
        max(2, *(len(str(one.token_id)) for one in shown)),
        max(len(_percent(one.prob, decimals)) for one in shown),
    ]
    narrowest = token + sum(others) + 2 * len(others)
    per_row = max(1, min(len(predictions), (width + GAP) // (narrowest + GAP)))
    block = (width - GAP * (per_row - 1)) // per_row
    room = block - narrowest - 2
    bar = min(MAX_BAR, room) if has_bars and room >= MIN_BAR else 0
    return Layout(token, bar, block, per_row, decimals, max(one.prob for one in shown))


def print_fitted(answer: NextTokens, console: Console) -> None:
    """Blocks beside each other as far as they fit, then each shift; bars where the terminal writes more than ASCII."""
    layout = _layout(answer.predictions, console.width, not console.options.ascii_only)
    numbers = [f"{n}  " for n in range(1, len(answer.predictions) + 1)] if answer.shifts else [""]
    blocks = [_block(*each, layout) for each in zip(numbers, answer.predictions, strict=True)]
    for start in range(0, len(blocks), layout.per_row):
        console.print(_side_by_side(blocks[start : start + layout.per_row], layout))
        console.print()
    for shift in answer.shifts:
        console.print(_shift(shift, len(answer.predictions[0].candidates), has_ids=console.width >= MIN_WITH_IDS))
        console.print()
    console.print(Text(_legend(answer), style="dim"))


def _side_by_side(blocks: Sequence[Group], layout: Layout) -> Table:
    grid = Table.grid(*(Column(width=layout.block) for _ in blocks), padding=(0, GAP, 0, 0), pad_edge=False)
    grid.add_row(*blocks)
    return grid


def _block(number: str, prediction: Prediction, layout: Layout) -> Group:
    """A prompt, its numbers, and its candidates."""
    table = _table(
        Column("#", justify="right"),
        Column("token", width=layout.token, no_wrap=True, overflow="ellipsis"),
        Column("id", justify="right", style="dim"),
        Column("prob", justify="right"),
        *([Column("", width=layout.bar)] if layout.bar else []),
    )
    for one in prediction.candidates:
        share = round(one.prob / layout.largest, 6)  # or the longest bar may be an eighth short
        bar = [Bar(1, 0, share, width=layout.bar, color="cyan")] if layout.bar else []
        table.add_row(str(one.rank), Text(piece(one)), str(one.token_id), _percent(one.prob, layout.decimals), *bar)
    length = len(prediction.prompt_token_ids)
    about = f"{length} token{'s' * (length > 1)} · entropy {prediction.entropy:.3g}"
    heading = number + _end_of(_heading(prediction), layout.block - len(number))
    return Group(Text(heading, style="bold"), Text(about, style="dim"), table)


def _heading(prediction: Prediction) -> str:
    """A prompt in one line; blanks at its edges are shown, since they change what comes next."""
    text = visible(prediction.prompt) or f"ids {' '.join(map(str, prediction.prompt_token_ids))}"
    return EDGE_BLANKS.sub(lambda match: "·" * len(match[0]), text)


def _end_of(text: str, width: int) -> str:
    """The end of a text, where it does not fit: what comes next follows the end."""
    if cell_len(text) <= width:
        return text
    text = text[-width:]
    while cell_len(text) >= width:
        text = text[1:]
    return f"…{text}"


def _shift(shift: Shift, num_candidates: int, *, has_ids: bool) -> Group:
    """What two prompts share, and how far apart they are."""
    a, b = shift.first, shift.second
    title = Text.assemble((f"{a} → {b}", "bold"), f" · {len(shift.shared)} of {num_candidates} candidates shared")
    kl = f"KL({a}‖{b}) {shift.kl_first_second:.3g} nats · KL({b}‖{a}) {shift.kl_second_first:.3g} nats"
    divergences = Text(f"{kl} · JS {shift.js:.3g} nats (at most {math.log(2):.3g})")
    return Group(title, *([_shared_table(shift.shared, has_ids=has_ids)] if shift.shared else []), divergences)


def _shared_table(shared: Sequence[Shared], *, has_ids: bool) -> Table:
    table = _table(
        Column("token", max_width=MAX_TOKEN, no_wrap=True, overflow="ellipsis"),
        *([Column("id", justify="right", style="dim")] if has_ids else []),
        Column("#", justify="right", no_wrap=True),
        Column("prob", justify="right", no_wrap=True),
        Column("points", justify="right", min_width=len("points")),
    )
    decimals = _decimals(min(one.prob for both in shared for one in both))
    ranks = _arrows([[str(one.rank) for one in both] for both in shared])
    percents = _arrows([[_percent(one.prob, decimals) for one in both] for both in shared])
    for both, rank, percent in zip(shared, ranks, percents, strict=True):
        token_id = [str(both.before.token_id)] if has_ids else []
        table.add_row(Text(piece(both.before)), *token_id, rank, percent, f"{100 * both.change:+.{decimals}f}")
    return table


def _arrows(pairs: list[list[str]]) -> list[str]:
    """`a → b` of each pair, the arrows below each other."""
    width = max(len(text) for _, text in pairs)
    return [f"{before} → {after:>{width}}" for before, after in pairs]


def _table(*columns: Column) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _legend(answer: NextTokens) -> str:
    kl = f"KL(a‖b) = Σ p_a ln(p_a/p_b) over all {answer.vocab_size:,} tokens\n" if answer.shifts else ""
    return f"{kl}· is a space; entropy in nats; {visible(answer.model)}, {answer.dtype}"


def _decimals(smallest: float) -> int:
    """Of percentages, so that the smallest one is not 0 if three decimals can help it."""
    return 1 if smallest >= 0.001 else 2 if smallest >= 0.0001 else 3


def _percent(prob: float, decimals: int) -> str:
    return f"{100 * prob:.{decimals}f} %" if 100 * prob >= 10**-decimals else f"<{10**-decimals:.{decimals}f} %"
