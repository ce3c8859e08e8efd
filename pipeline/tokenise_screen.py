"""How tokens of a text look: side by side in the text, then a line each with id and bytes."""

from __future__ import annotations

import io
import sys

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipeline.painting import has_colour, pieces
from pipeline.terminal import print_table, visible
from pipeline.tokenise import Tokenised

SHADES = ("#1b1f24 on #d8e6f3", "#1b1f24 on #f7e3c8")


def print_tokens(tokenised: Tokenised) -> None:
    """All texts on stdout: fitted to a terminal, else a tab-separated line per token."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if not sys.stdout.isatty():
        _print_plain(tokenised)
        return
    console = Console()
    for text, token_ids in tokenised.texts:
        print_fitted(text, token_ids, tokenised, console)
    total = len(tokenised.vocabulary.tokens)
    console.print(Text(f"· is a space; {visible(tokenised.model)}, {total:,} tokens", style="dim"))


def print_fitted(text: str, token_ids: tuple[int, ...], tokenised: Tokenised, console: Console) -> None:
    """One text: its tokens shaded in turn, or with strokes between them where there is no colour, then a table."""
    shown = pieces(tokenised.vocabulary, token_ids)
    if has_colour(console):
        joined = Text.assemble(*((each, SHADES[index % 2]) for index, each in enumerate(shown)))
    else:
        joined = Text("│".join(shown))
    console.print(joined, soft_wrap=False)
    count, size = len(token_ids), len(text.encode("utf-8", "surrogatepass"))
    console.print(Text(f"{count:,} token{'s' * (count != 1)} · {len(text):,} characters · {size:,} bytes", style="dim"))
    table = Table(
        Column("#", justify="right", style="dim"),
        Column("token", overflow="fold"),
        Column("id", justify="right"),
        Column("bytes", style="dim", overflow="fold"),
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for index, (each, token_id) in enumerate(zip(shown, token_ids, strict=True)):
        table.add_row(str(index), Text(each), str(token_id), _hex(tokenised, token_id))
    console.print(table)
    console.print()


def _print_plain(tokenised: Tokenised) -> None:
    rows = [
        [number, index, token_id, each, _hex(tokenised, token_id)]
        for number, (_, token_ids) in enumerate(tokenised.texts, start=1)
        for index, (token_id, each) in enumerate(zip(token_ids, pieces(tokenised.vocabulary, token_ids), strict=True))
    ]
    print_table(["text", "#", "id", "token", "bytes"], rows)


def _hex(tokenised: Tokenised, token_id: int) -> str:
    return tokenised.vocabulary.token_bytes[token_id].hex(" ").upper()
