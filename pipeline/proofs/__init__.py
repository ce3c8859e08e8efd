"""What must be true of the rows of a part, whoever wrote it: a table in, problems out, one function per check.

Needs the run's plan and vocabulary, no file and no model. A row that fails `status`, `lists` or `tokens` is not looked
at by the checks of single steps, so that one fault gives one finding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.proofs.columns import Array, Problem, values
from pipeline.proofs.endings import check_endings
from pipeline.proofs.rows import check_ids, check_order, check_presence, check_seeds, row_codes
from pipeline.proofs.steps import Steps, check_alternatives, check_chosen, check_totals
from pipeline.proofs.whole import check_lists, check_status, check_tokens
from pipeline.recorded import Recorded, Vocabulary
from pipeline.schema import output_schema

__all__ = ["STATEMENTS", "Problem", "check_rows", "check_schema", "row_codes"]

STATEMENTS = {
    "rows": "every planned input row x strategy x sample exactly once",
    "order": "rows sorted by input row, strategy in job order, sample",
    "ids": "row id, prompt and kept columns the same in all rows of an input row; derived ids as derived",
    "seeds": "every seed as derived from the job's seed and the row",
    "status": "error rows say why and hold no result; ok rows hold a whole one",
    "lists": "lists parallel, one entry per token, counts as their lengths",
    "tokens": "every token id in the vocabulary",
    "text": "text decoded again from the token ids, cut before its stop string",
    "endings": "each completion ends where its strategy ends it, for that reason, and not before",
    "top_k": "alternatives sorted by probability, then token id; none twice; sums at most 1",
    "chosen": "rank, log-probability and alternatives of each step agree",
    "totals": "cumulative_logprob the sum of token_logprobs, perplexity of their mean; beams best first",
}


def check_schema(schema: pa.Schema, run: Recorded) -> str | None:
    """What is wrong with the columns of a part, None if nothing is."""
    declared = output_schema(pa.schema([]))
    wanted = [*declared.names, *run.job.input.keep_columns]
    if schema.names != wanted:
        return f"its columns are {', '.join(schema.names)}, but must be {', '.join(wanted)}"
    for field in declared:
        found = schema.field(field.name)
        if not found.equals(field):
            return f"column `{field.name}` is {_described(found)}, but must be {_described(field)}"
    return None


def check_rows(table: pa.Table, planned: Array, run: Recorded, vocabulary: Vocabulary | None) -> Iterator[Problem]:
    """Everything that is wrong with the rows of a part whose schema is right.

    Args:
        table: the whole part.
        planned: sorted codes (see `row_codes`) of the rows it must hold.
        run: the plan to hold it against.
        vocabulary: without it texts and endings are not checked.
    """
    codes = row_codes(table, run)
    yield from check_presence(table, codes, planned, run)
    yield from check_order(codes)
    yield from check_ids(table, run)
    yield from check_seeds(table, run)
    is_ok = values(table["status"]) == "ok"
    faults = [*check_status(table, is_ok, run), *check_lists(table, is_ok, run), *check_tokens(table, run)]
    yield from faults
    is_ok[[fault.row for fault in faults if fault.row is not None]] = False
    steps = Steps.of(table, np.flatnonzero(is_ok & (codes >= 0)))
    if vocabulary is not None:
        yield from check_endings(steps, run, vocabulary)
    yield from check_alternatives(steps)
    yield from check_chosen(steps, run.model.vocab_size)
    yield from check_totals(steps)


def _described(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"
