"""One shard, from input rows to a published part: the whole flow in reading order.

A shard's part is a pure function of (shard, job, model): any process may compute it, any number of times.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline import __version__, checkpoint
from pipeline.config import Job
from pipeline.dataset import Dataset, Slice, read
from pipeline.metrics import Sums, part_sums
from pipeline.prompts import Prompt, Rules, to_prompts
from pipeline.records import SCHEMA_VERSION, Completion, Request, Response, RowError, row_seed
from pipeline.storage import LocalFolder
from pipeline.strategies import NextToken, Strategy, num_rows
from pipeline.tokenizer import Tokenizer
from pipeline.writer import OutputRow, build_table, encode_part


class Generates(Protocol):
    """What a shard needs of an engine; tests and benchmarks bring simpler ones."""

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """One response per request, in order."""


class Shard(NamedTuple):
    """Rows [lo, hi) of the input, which become the part `key`."""

    key: str
    lo: int
    hi: int


class Pair(NamedTuple):
    """An input row, by its position in the shard, under a strategy: one seed per output row."""

    position: int
    strategy: Strategy
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A published part: what the manifest says of it, and the seconds its shard took here."""

    key: str
    rows: int
    sha256: str
    sums: dict[str, Sums]
    truncated_prompts: int
    seconds: float = 0.0

    @property
    def ok(self) -> int:
        """Rows that are not errors."""
        return sum(sums["ok"] for sums in self.sums.values())

    @property
    def generated_tokens(self) -> int:
        """Tokens of all completions."""
        return sum(sums["generated_tokens"] for sums in self.sums.values())


@dataclass(frozen=True, slots=True)
class Setup:
    """All a worker needs to know; travels to the replicas.

    Attributes:
        job: the job.
        dataset: the scanned input.
        strategies: the job's, with words turned into token ids.
        model: how a replica finds the checkpoint: folder or `demo` and None, or hub id and commit.
        rules: for prompts.
        eos_token_ids: of the model.
        folder: the output.
        metadata: of every part.
    """

    job: Job
    dataset: Dataset
    strategies: tuple[Strategy, ...]
    model: tuple[str, str | None]
    rules: Rules
    eos_token_ids: tuple[int, ...]
    folder: LocalFolder
    metadata: dict[str, str]


EngineMaker = Callable[[Setup, Tokenizer], Generates]


def part_metadata(job: Job, fingerprint: str, commit: str) -> dict[str, str]:
    """Key-value metadata that all parts of a run share."""
    return {
        "batchgen.schema_version": str(SCHEMA_VERSION),
        "batchgen.version": __version__,
        "batchgen.fingerprint": fingerprint,
        "batchgen.model": job.model.name,
        "batchgen.model_commit": commit,
        "batchgen.dtype": job.model.dtype,
        "batchgen.top_k": str(job.output.top_k),
    }


def make_engine(setup: Setup, tokenizer: Tokenizer) -> Generates:
    """The real engine, on the GPU this process may use, else on one CPU thread."""
    import torch

    from pipeline.engine import Engine, load_model

    torch.set_float32_matmul_precision("highest")  # whatever the environment says: TF32 is not exact
    torch.set_num_threads(1)  # one replica per core is faster than threads, and as exact
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Engine(
        load_model(str(checkpoint.locate(*setup.model)), setup.job.model.dtype, device),
        eos_token_ids=setup.eos_token_ids,
        token_bytes=tokenizer.token_bytes,
        num_alternatives=setup.job.output.top_k,
        with_prompt_logprobs=setup.job.output.prompt_logprobs,
    )


def open_worker(setup: Setup, engine_maker: EngineMaker = make_engine) -> Callable[[Shard], Part]:
    """Load what a worker needs once; returns the function that does a shard."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # replicas, not threads, use the cores
    tokenizer = Tokenizer(checkpoint.locate(*setup.model), setup.rules.vocab_size)
    engine = engine_maker(setup, tokenizer)
    return lambda shard: process_shard(shard, setup, tokenizer, engine)


def process_shard(shard: Shard, setup: Setup, tokenizer: Tokenizer, engine: Generates) -> Part:
    """Read, tokenise, generate, record, write, publish."""
    start = time.perf_counter()
    rows = read(setup.dataset, shard.lo, shard.hi)
    prompts = to_prompts(rows.prompts, tokenizer, setup.rules)
    pairs = make_pairs(rows.row_ids, setup)
    responses = answer(pairs, prompts, engine)
    output = [
        row for pair in zip(pairs, responses, strict=True) for row in output_rows(*pair, rows, prompts, tokenizer)
    ]
    table = build_table(output, rows.kept)
    sums, truncated = part_sums(table), sum(prompt.is_truncated for prompt in prompts)
    facts = {"batchgen.sums": json.dumps(sums), "batchgen.truncated_prompts": str(truncated)}
    sha256 = setup.folder.publish(shard.key, encode_part(table, setup.metadata | facts))
    return Part(shard.key, table.num_rows, sha256, sums, truncated, time.perf_counter() - start)


def make_pairs(row_ids: Sequence[str], setup: Setup) -> list[Pair]:
    """Every input row of the shard under every strategy, in the order of the output."""
    seed = setup.job.seed
    return [
        Pair(position, strategy, tuple(row_seed(seed, row_id, strategy.name, n) for n in range(num_rows(strategy))))
        for position, row_id in enumerate(row_ids)
        for strategy in setup.strategies
    ]


def answer(pairs: Sequence[Pair], prompts: Sequence[Prompt], engine: Generates) -> list[Response]:
    """A response per pair: the engine's, or the error of a prompt that cannot be used."""
    token_ids = [prompts[pair.position].token_ids for pair in pairs]
    requests = [
        Request(ids, pair.strategy, pair.seeds)
        for pair, ids in zip(pairs, token_ids, strict=True)
        if not isinstance(ids, RowError)
    ]
    generated = iter(engine.generate(requests))
    return [Response(ids) if isinstance(ids, RowError) else next(generated) for ids in token_ids]


def output_rows(
    pair: Pair, response: Response, rows: Slice, prompts: Sequence[Prompt], tokenizer: Tokenizer
) -> Iterator[OutputRow]:
    """The rows of a pair, one per sample, errors included."""
    prompt = prompts[pair.position]
    for sample, seed in enumerate(pair.seeds):
        done = response.completions
        result = done if isinstance(done, RowError) else done[sample]
        text, stop_match = _texts(result, pair.strategy, tokenizer)
        yield OutputRow(
            position=pair.position,
            row_id=rows.row_ids[pair.position],
            row_index=rows.first_row + pair.position,
            strategy=pair.strategy.name,
            sample_index=sample,
            seed=seed,
            prompt=prompt.text,
            prompt_token_ids=() if isinstance(prompt.token_ids, RowError) else prompt.token_ids,
            result=result,
            text=text,
            stop_match=stop_match,
            prompt_logprobs=response.prompt_logprobs,
        )


def _texts(result: Completion | RowError, strategy: Strategy, tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """Text of a completion, cut before its stop string, and what stopped it, a token as the tokenizer prints it."""
    if isinstance(result, RowError) or isinstance(strategy, NextToken):
        return None, None
    token_ids = result.token_ids.tolist()
    if isinstance(result.stop_match, int):
        return tokenizer.decode(token_ids), tokenizer.tokens[result.stop_match]
    return tokenizer.decode(token_ids, result.stop_match), result.stop_match
