"""Input rows to output rows in this process, without Ray, files or parts: what `preview` and `Engine` are made of."""

from __future__ import annotations

import pyarrow as pa

from pipeline.dataset import Slice
from pipeline.shard import NO_ROWS, Generates, Setup, answer, make_pairs, make_prompts, output_rows
from pipeline.tokenizer import Tokenizer
from pipeline.writer import build_table


def generated(rows: Slice, setup: Setup, tokenizer: Tokenizer, engine: Generates) -> pa.Table:
    """The output rows of these input rows, by the functions that a shard's part is made with."""
    pairs = make_pairs(rows, tokenizer, setup)
    prompts = make_prompts(rows, pairs, tokenizer, setup, NO_ROWS)
    responses = answer(pairs, prompts, engine)
    return build_table(output_rows(pairs, prompts, responses, rows, tokenizer), rows.kept)
