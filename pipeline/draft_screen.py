"""How a drafted job looks: what the data set holds and what becomes of it, warnings on stderr, and what to do next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.draft import Draft, example
from pipeline.terminal import print_table, visible


def print_draft(found: Draft, written: Sequence[Path]) -> None:
    """On stdout; what to think about before starting on stderr.

    Args:
        found: the draft.
        written: its file, and the schema if that was written too.
    """
    data, tokens = found.data, found.prompt_tokens
    files = f"{data.num_files:,} {data.format} file{'s' if data.num_files > 1 else ''}"
    print(f"{data.num_rows:,} rows in {files}\n")
    rows = [[column, type_ or "?", example(data, column), found.uses[column]] for column, type_ in data.types.items()]
    print_table(["column", "type", "example", "use"], rows, wide=("type", "example", "use"))
    whole = "all rows" if data.num_sampled == data.num_rows else f"a sample of {data.num_sampled:,} rows"
    print(f"\ntokens of a prompt: median {tokens.p50:,}, p95 {tokens.p95:,}, longest {tokens.longest:,} · {whole}")
    for warning in _warnings(found):
        print(f"warning: {visible(warning)}", file=sys.stderr)
    print(f"\nwrote {' and '.join(visible(str(path)) for path in written)}\n\nnext")
    for command in ("preview", "plan", "run"):
        print(f"  batchgen {command} {shlex.quote(visible(str(written[0])))}")
    print(f"  batchgen report {shlex.quote(found.job.output.path)}")


def _warnings(found: Draft) -> list[str]:
    said, sampled = [], found.data.num_sampled
    if found.too_long:
        said.append(
            f"{found.too_long:,} of {sampled:,} prompts have more than the {found.num_positions:,} tokens that "
            f"`{found.job.model.name}` takes, and would lose their beginning (input.on_long_prompt)."
        )
    if found.unusable:
        said.append(
            f"{found.unusable:,} of {sampled:,} rows have no usable prompt and would be error rows "
            f"(run.max_error_rate is {found.job.run.max_error_rate})."
        )
    return said
