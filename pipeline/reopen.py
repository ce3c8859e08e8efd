"""The model and the input of a recorded run, found again as the plan recorded them, to compute rows of it once more."""

from __future__ import annotations

import pyarrow as pa

from pipeline import checkpoint
from pipeline.dataset import Dataset
from pipeline.errors import OutputError
from pipeline.manifest import differences
from pipeline.plan import Plan, make_plan, resolved
from pipeline.recorded import Recorded
from pipeline.shard import Setup
from pipeline.tokenizer import Tokenizer


def reopen(run: Recorded) -> tuple[Setup, Tokenizer]:
    """What a worker needs to compute rows of the run again from their prompts' token ids; no input is read.

    Raises:
        ModelError: the model is not where it was, or not the same files.
    """
    is_local = run.model.commit.startswith("sha256:")
    model = checkpoint.inspect(run.model.name, None if is_local else run.model.commit)
    checkpoint.check_unchanged(model.folder, run.identity["model"]["files"])
    tokenizer = Tokenizer(model.folder, model.vocab_size)
    nothing = Dataset(run.job.input, (), pa.schema([]))
    plan = Plan(run.job, nothing, model, tokenizer, resolved(run.job, tokenizer, model), shard_rows=1)
    return plan.setup(run.folder), tokenizer


def plan_again(run: Recorded) -> Plan:
    """The plan of the run made once more: with this code, its input and its model, or not at all.

    Raises:
        OutputError: something differs from what was planned.
        BatchgenError: as `make_plan`.
    """
    plan = make_plan(run.job)
    if plan.fingerprint != run.fingerprint:
        changes = "\n".join(f"  {line}" for line in differences(run.identity, plan.identity))
        raise OutputError(
            f"rows of {run.folder.name} cannot be computed as they were. What differs (there -> here):\n{changes}",
            "Put that back as it was, or run the job in another folder.",
        )
    return plan
