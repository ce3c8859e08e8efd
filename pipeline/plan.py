"""The plan: what a run will do, decided once from the job, the input and the checkpoint, before anything starts.

Its fingerprint covers all that can change a byte of the output and nothing else: another number of replicas resumes the
same run, another top_p does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from pipeline import __version__, checkpoint, overrides
from pipeline.checkpoint import Checkpoint
from pipeline.config import Job
from pipeline.dataset import Dataset, scan
from pipeline.errors import ConfigError
from pipeline.prompts import rules, target_uses
from pipeline.records import SCHEMA_VERSION
from pipeline.resolve import UnfitError, resolve
from pipeline.shard import Setup, part_metadata, steps_per_row
from pipeline.shards import Shards, all_shards
from pipeline.storage import Folder
from pipeline.strategies import PROCESSORS, SAMPLERS, Strategy, num_rows
from pipeline.tokenizer import Tokenizer

LIBRARIES = ("torch", "transformers", "tokenizers", "pyarrow", "ray", "numpy")
PART_BYTES = 64 << 20  # parts are planned to stay below this, estimated from the longest completions
MOST_SHARD_ROWS = 1024
UNPACKED = 4  # times the size of an input file that its rows may take in memory
FEWEST_SHARDS = 8  # a small input is still spread, as long as shards keep 8 rows


@dataclass(frozen=True)
class Plan:
    """A job with everything found out about it.

    Attributes:
        strategies: the job's, with words turned into token ids.
        shard_rows: rows per shard; the last one may be shorter.
    """

    job: Job
    dataset: Dataset
    model: Checkpoint
    tokenizer: Tokenizer
    strategies: tuple[Strategy, ...]
    shard_rows: int

    @property
    def rows_per_prompt(self) -> int:
        """Output rows per input row."""
        return sum(num_rows(strategy) for strategy in self.strategies)

    @property
    def part_rows(self) -> Iterator[tuple[str, int]]:
        """Key and rows of every part."""
        each = self.rows_per_prompt
        return ((shard.key, (shard.hi - shard.lo) * each) for shard in self.shards)

    @property
    def num_output_rows(self) -> int:
        """Rows the finished output will have."""
        return self.dataset.num_rows * self.rows_per_prompt

    @cached_property
    def shards(self) -> Shards:
        """All shards, in order."""
        return all_shards(self.dataset.num_rows, self.shard_rows)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the bytes of the output, as JSON values. Folders do not: files may move."""
        return {
            **job_identity(self.job),
            "shard_rows": self.shard_rows,
            "batch": self.job.run.model_dump(include={"batch_rows", "cache_gib"}),
            "inputs": [
                {"name": file.name, "rows": file.num_rows, "size_bytes": file.size_bytes, "sha256": file.sha256}
                for file in self.dataset.files
            ],
            "model": {"dtype": self.job.model.dtype, "files": self.model.digests},
            "batchgen": {"version": __version__, "schema_version": SCHEMA_VERSION},
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return fingerprint_of(self.identity)

    @property
    def order(self) -> dict[str, list[str]]:
        """In which order keys that change scores, and keys that narrow what is drawn from, act."""
        return {"processors": [*PROCESSORS], "samplers": [*SAMPLERS]}

    def setup(self, folder: Folder) -> Setup:
        """What workers need of the plan."""
        is_local = self.model.commit.startswith("sha256:")
        place = "demo" if self.model.name == "demo" else str(self.model.folder)
        return Setup(
            job=self.job,
            dataset=self.dataset,
            strategies=self.strategies,
            model=(place, None) if is_local else (self.model.name, self.model.commit),
            rules=rules(self.job, self.model.num_positions, self.model.vocab_size, self.model.bos_token_id),
            checkpoint=self.model,
            folder=folder,
            metadata=part_metadata(self.job, self.fingerprint, self.model.commit),
        )


def job_identity(job: Job) -> dict[str, Any]:
    """The part of the identity that the job file alone decides."""
    return job.model_dump(mode="json", exclude={"run": True, "model": True, "input": {"path"}, "output": {"path"}})


def fingerprint_of(identity: dict[str, Any]) -> str:
    """SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def make_plan(job: Job) -> Plan:
    """Look at the input and the checkpoint and decide everything; starts nothing, writes nothing.

    Raises:
        ConfigError, InputError, ModelError: whatever would make the run fail later.
    """
    model = checkpoint.inspect(job.model.name, job.model.revision)
    tokenizer = Tokenizer(model.folder, model.vocab_size)
    strategies = resolved(job, tokenizer, model)
    if job.input.on_empty_prompt == "bos" and model.bos_token_id is None:
        raise ConfigError(
            f"input.on_empty_prompt is `bos`, but model `{model.name}` has no bos_token_id.", "Set it to `error`."
        )
    dataset = scan(job.input, [*target_uses(job), *overrides.uses(job)])
    shard_rows = job.run.shard_rows if job.run.shard_rows != "auto" else _auto_shard_rows(job, dataset, model)
    return Plan(job, dataset, model, tokenizer, strategies, shard_rows)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that byte-identity depends on."""
    return {name: version(name) for name in LIBRARIES}


def resolved(job: Job, tokenizer: Tokenizer, model: Checkpoint) -> tuple[Strategy, ...]:
    """The job's strategies with words turned into token ids.

    Raises:
        ConfigError: one of them does not fit the model.
    """
    return tuple(_resolved(strategy, tokenizer, model) for strategy in job.strategies)


def _resolved(strategy: Strategy, tokenizer: Tokenizer, model: Checkpoint) -> Strategy:
    try:
        return resolve(strategy, tokenizer, model)
    except UnfitError as error:
        raise ConfigError(f"{error.what} (strategy `{strategy.name}`).", error.way_out) from None


def _auto_shard_rows(job: Job, dataset: Dataset, model: Checkpoint) -> int:
    """Rows per shard: enough to fill a batch, few enough to spread, retry and hold in memory.

    Depends on the job alone, never on the machine: the plan, and with it the output, must be the same everywhere.
    """
    bytes_per_step = 24 + 8 * job.output.top_k
    steps = steps_per_row(job.strategies, job, model.num_positions)
    input_bytes = UNPACKED * sum(file.size_bytes for file in dataset.files) // dataset.num_rows
    repeated = input_bytes * sum(map(num_rows, job.strategies))  # prompt and kept columns stand in every row
    spread = max(8, -(-dataset.num_rows // FEWEST_SHARDS))
    return max(1, min(MOST_SHARD_ROWS, spread, PART_BYTES // (steps * bytes_per_step + repeated)))
