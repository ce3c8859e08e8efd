"""What `show` and `preview` print: completions with every token painted by its rank, and step by step.

On a terminal blocks that fit its width; elsewhere one tab-separated line per step.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.bar import Bar
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from pipeline.painting import gloss, has_colour, legend, painted, pieces
from pipeline.recorded import Vocabulary
from pipeline.steps import Row, Step, steps
from pipeline.terminal import print_table, visible

MOST_TOKEN = 20  # cells
LEAST = 0.0005  # a probability below prints as <0.1 %
LEFT_OUT = ("entropy", "id", "rank", "sampled")  # columns that narrow terminals go without, in this order
PLAIN = ("row_id", "strategy", "#", "step", "token", "id", "prob", "sampled", "rank", "entropy", "alternatives")


def print_steps(rows: Sequence[Row], vocabulary: Vocabulary) -> None:
    """Every completion step by step."""
    _prepare()
    if not sys.stdout.isatty():
        _print_plain(rows, vocabulary)
        return
    console = Console()
    for block in blocks(rows, vocabulary, console, has_steps=True):
        console.print(block)


def print_preview(rows: Sequence[Row], vocabulary: Vocabulary) -> None:
    """Every prompt and completion with its tokens, ids and probabilities."""
    _prepare()
    if not sys.stdout.isatty():
        _print_plain(rows, vocabulary)
        return
    console = Console()
    for block in blocks(rows, vocabulary, console, has_steps=False):
        console.print(block)


def blocks(
    rows: Sequence[Row], vocabulary: Vocabulary, console: Console, *, has_steps: bool
) -> Iterator[RenderableType]:
    """What is printed, in order: each prompt, its completions, and what the looks mean."""
    for _, of_row in groupby(rows, key=lambda row: row["row_index"]):
        completions = list(of_row)
        yield from _prompt(completions[0], vocabulary, console.width)
        for row in completions:
            yield Text()
            yield _title(row)
            yield from _body(row, vocabulary, console, has_steps)
        yield Text()
    yield legend(has_colour=has_colour(console))


def _prompt(row: Row, vocabulary: Vocabulary, width: int) -> Iterator[RenderableType]:
    """The row's id, its prompt, and the tokens and ids of it."""
    count = len(row["prompt_token_ids"] or ())
    yield Text.assemble((visible(row["row_id"]), "bold"), (f"  {count} tokens", "dim"))
    yield Text(_text(row["prompt"]))
    yield Text()
    tokens = [Text(each) for each in pieces(vocabulary, row["prompt_token_ids"] or ())]
    ids = [Text(str(token_id), style="dim") for token_id in row["prompt_token_ids"] or ()]
    yield from gloss([("tokens", tokens), ("ids", ids)], width) if tokens else [Text("  no tokens", style="dim")]


def _title(row: Row) -> Text:
    """Strategy, sample, and how it ended."""
    name = Text(visible(row["strategy"]), style="bold cyan")
    if row["status"] == "error":
        return Text.assemble(name, "  ", (f"error {row['error_type']}", "bold red"))
    if row["text"] is None:
        entropy = f" · entropy {row['entropies'][0]:.3g}" if row["entropies"] else ""
        return Text.assemble(name, (f"  most probable next tokens{entropy}", "dim"))
    sample = f" {row['sample_index']}" if row["sample_index"] else ""
    stop = f" {row['stop_match']!r}" if row["stop_match"] is not None else ""
    perplexity = "" if row["perplexity"] is None else f" · perplexity {row['perplexity']:.3g}"
    count = row["num_generated_tokens"]
    about = f"  {visible(row['finish_reason'] + stop)} · {count} token{'s' * (count != 1)}{perplexity}"
    return Text.assemble(name, (sample, "cyan"), (about, "dim"))


def _body(row: Row, vocabulary: Vocabulary, console: Console, has_steps: bool) -> Iterator[RenderableType]:
    """The text, then its tokens, steps or candidates."""
    if row["status"] == "error":
        yield Text(visible(row["error_message"] or ""))
        return
    taken = steps(row)
    if row["text"] is None:
        if taken:
            yield _candidates(taken[0], vocabulary, console)
        return
    yield Text(_text(row["text"]))
    if taken:
        yield Text()
        yield from [_table(taken, vocabulary, console)] if has_steps else _tokens(taken, vocabulary, console)


def _tokens(taken: Sequence[Step], vocabulary: Vocabulary, console: Console) -> list[Text]:
    """Tokens with ids and probabilities below."""
    shown = pieces(vocabulary, [step.token_id for step in taken])
    colour = has_colour(console)
    tokens = [painted(each, step.rank, has_colour=colour) for each, step in zip(shown, taken, strict=True)]
    ids = [Text(str(step.token_id), style="dim") for step in taken]
    probs = [Text(_percent(step.prob)) for step in taken]
    return gloss([("tokens", tokens), ("ids", ids), ("prob", probs)], console.width)


def _table(taken: Sequence[Step], vocabulary: Vocabulary, console: Console) -> Table:
    """A line per step, with as many columns, and then alternatives, as fit."""
    columns = _columns(taken, vocabulary, has_colour(console))
    widths = {name: max(cell_len(name), *(cell.cell_len for cell in cells)) for name, cells in columns.items()}
    for name in LEFT_OUT:
        if sum(widths.values()) + 2 * (len(widths) - 1) > console.width and name in widths:
            del widths[name]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, width in widths.items():
        table.add_column(name, justify="left" if name == "token" else "right", width=width, no_wrap=True)
    room = console.width - sum(widths.values()) - 2 * len(widths)
    has_others = room >= len("alternatives") and any(step.alternatives for step in taken)
    if has_others:
        table.add_column("alternatives", width=room, no_wrap=True)
    for index, step in enumerate(taken):
        others = [_others(step, vocabulary, room)] if has_others else []
        table.add_row(*(columns[name][index] for name in widths), *others)
    return table


def _columns(taken: Sequence[Step], vocabulary: Vocabulary, has_colours: bool) -> dict[str, list[Text]]:
    """Cells of each column of numbers; `sampled` only where tokens were drawn."""
    shown = pieces(vocabulary, [step.token_id for step in taken])
    columns = {
        "step": [Text(str(step.step)) for step in taken],
        "token": [
            painted(_cut(each), step.rank, has_colour=has_colours) for each, step in zip(shown, taken, strict=True)
        ],
        "id": [Text(str(step.token_id), style="dim") for step in taken],
        "prob": [Text(_percent(step.prob)) for step in taken],
        "sampled": [Text(_percent(step.sampling_prob)) for step in taken],
        "rank": [Text(str(step.rank)) for step in taken],
        "entropy": [Text(f"{step.entropy:.2f}") for step in taken],
    }
    is_drawn = any(step.sampling_prob is not None for step in taken)
    return {name: cells for name, cells in columns.items() if is_drawn or name != "sampled"}


def _others(step: Step, vocabulary: Vocabulary, room: int) -> Text:
    """As many of the other candidates as fit whole, as long as they are not 0 in print."""
    text = Text()
    others = [each for each in step.alternatives if each.token_id != step.token_id and each.prob >= LEAST]
    for shown, other in zip(pieces(vocabulary, [each.token_id for each in others]), others, strict=True):
        one = Text.assemble(shown, (f" {_percent(other.prob)}", "dim"))
        if text.cell_len + 3 * bool(text) + one.cell_len > room:
            break
        text = Text.assemble(text, "   ", one) if text else one
    return text


def _candidates(step: Step, vocabulary: Vocabulary, console: Console) -> Table:
    """Candidates of one step with bars."""
    table = Table(
        Column("#", justify="right"),
        Column("token"),
        Column("id", justify="right", style="dim"),
        Column("prob", justify="right"),
        Column(""),
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    shown = pieces(vocabulary, [each.token_id for each in step.alternatives])
    largest = max((each.prob for each in step.alternatives), default=1.0)
    bar = max(0, min(40, console.width - 40))
    for rank, (each, other) in enumerate(zip(shown, step.alternatives, strict=True), start=1):
        drawn = Bar(largest, 0, other.prob, width=bar, color="cyan") if bar and not console.options.ascii_only else ""
        table.add_row(str(rank), Text(_cut(each)), str(other.token_id), _percent(other.prob), drawn)
    return table


def _print_plain(rows: Sequence[Row], vocabulary: Vocabulary) -> None:
    """A line per step on stdout; error rows on stderr."""
    lines = []
    for row in rows:
        place = [row["row_id"], row["strategy"], row["sample_index"]]
        if row["status"] == "error":
            said = f"error row: {place[0]} {place[1]} {place[2]}: {row['error_type']}: {row['error_message']}"
            print(visible(said), file=sys.stderr)
        lines += [place + _plain_step(step, vocabulary) for step in steps(row)]
    print_table(PLAIN, lines)


def _plain_step(step: Step, vocabulary: Vocabulary) -> list[object]:
    (token,) = pieces(vocabulary, [step.token_id])
    shown = pieces(vocabulary, [other.token_id for other in step.alternatives])
    others = [f"{each} {other.prob:.6g}" for each, other in zip(shown, step.alternatives, strict=True)]
    sampled = None if step.sampling_prob is None else f"{step.sampling_prob:.6g}"
    numbers = [f"{step.prob:.6g}", sampled, step.rank, f"{step.entropy:.6g}"]
    return [step.step, token, step.token_id, *numbers, ", ".join(others)]


def _prepare() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where stdout is not UTF-8, better a ? than no answer


def _text(text: str | None) -> str:
    """A text with its line breaks as they are, and nothing else that acts on the terminal."""
    return "⟨null⟩" if text is None else "\n".join(visible(line) for line in text.split("\n"))


def _cut(shown: str) -> str:
    return shown if cell_len(shown) <= MOST_TOKEN else f"{shown[: MOST_TOKEN // 2]}…"


def _percent(prob: float | None) -> str:
    """A probability in percent; what rounds to 0 is `<0.1 %`."""
    if prob is None:
        return ""
    return f"{100 * prob:.1f} %" if prob >= LEAST or prob == 0 else "<0.1 %"
