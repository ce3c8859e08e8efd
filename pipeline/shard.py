"""One shard, from input rows to a published part: the whole flow in reading order.

A shard's part is a pure function of (shard, job, model): any process may compute it, any number of times.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import __version__, checkpoint
from pipeline.checkpoint import Checkpoint
from pipeline.config import Job
from pipeline.dataset import Dataset, Slice, read
from pipeline.input_rows import Value, target_values
from pipeline.metrics import Sums, part_sums
from pipeline.overrides import overridden, seed_of
from pipeline.prompts import Prompt, Rules, fitted, num_kept, scored, self_scored, target_uses, tokenised
from pipeline.records import SCHEMA_VERSION, Completion, Request, Response, RowError, Usage, row_seed
from pipeline.storage import Folder
from pipeline.strategies import NextToken, Score, Strategy, max_steps, num_rows
from pipeline.tokenizer import Tokenizer
from pipeline.writer import OutputRow, build_table, encode_part


class Generates(Protocol):
    """What a shard needs of an engine; tests and benchmarks bring simpler ones. One that counts has a `usage` too."""

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """One response per request, in order."""


class Shard(NamedTuple):
    """Rows [lo, hi) of the input, which become the part `key`."""

    key: str
    lo: int
    hi: int


Poisoned = Mapping[int, RowError]  # row of the input -> why it must not be generated for
NO_ROWS: Poisoned = {}


class Pair(NamedTuple):
    """An input row under a strategy.

    Attributes:
        position: of the row in the shard.
        strategy: with what the row changes of it.
        seeds: one per output row.
        error: why the row cannot change it so.
    """

    position: int
    strategy: Strategy
    seeds: tuple[int, ...]
    error: RowError | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A part: what the manifest says of it, and the seconds its shard took here.

    Attributes:
        sha256: of what is stored under the key; empty before.
        seconds: without those in which another shard had the engine.
        engine_s: the part of them spent in the engine.
        usage: of the engine by the shard.
        unpublished: the bytes, as long as nobody has stored them.
    """

    key: str
    rows: int
    sha256: str
    sums: dict[str, Sums]
    truncated_prompts: int
    seconds: float = 0.0
    engine_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    unpublished: bytes | memoryview | None = field(default=None, repr=False)

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
        checkpoint: what the driver found out about it.
        folder: the output.
        metadata: of every part.
        only: numbers of the pairs to compute, counted over the whole input in the order of the output; None for all.
    """

    job: Job
    dataset: Dataset
    strategies: tuple[Strategy, ...]
    model: tuple[str, str | None]
    rules: Rules
    checkpoint: Checkpoint
    folder: Folder
    metadata: dict[str, str]
    only: npt.NDArray[np.int64] | None = None


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

    from pipeline.engine import Engine, check_room, keep_freed_memory, load_model

    keep_freed_memory()
    torch.set_float32_matmul_precision("highest")  # whatever the environment says: TF32 is not exact
    torch.set_num_threads(1)  # one replica per core is faster than threads, and as exact
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = setup.job.run
    model = load_model(str(checkpoint.locate(*setup.model)), setup.job.model.dtype, device)
    cache_bytes = int(run.cache_gib * 2**30)
    check_room(model, run.batch_rows, cache_bytes)
    return Engine(
        model,
        eos_token_ids=setup.checkpoint.eos_token_ids,
        token_bytes=tokenizer.token_bytes,
        num_alternatives=setup.job.output.top_k,
        with_prompt_logprobs=setup.job.output.prompt_logprobs,
        max_slots=run.batch_rows,
        cache_bytes=cache_bytes,
    )


class Decoded(NamedTuple):
    """What the engine made of a shard's requests, and what that took of it."""

    responses: list[Response]
    seconds: float
    usage: Usage


@dataclass(frozen=True, slots=True)
class Worker:
    """What does shards in one process: the tokenizer and the engine, loaded.

    Attributes:
        turns: the one thread of the engine, where several shards may be under way: while one decodes, another is read
            and tokenised, or written. None where they come one after another.
    """

    setup: Setup
    tokenizer: Tokenizer
    engine: Generates
    turns: Executor | None = None

    @property
    def steps_per_row(self) -> int:
        """Most steps that an input row takes, over all strategies and samples."""
        return steps_per_row(self.setup.strategies, self.setup.job, self.setup.rules.num_positions)

    def __call__(self, shard: Shard, poisoned: Poisoned = NO_ROWS) -> Part:
        """Do a shard and publish its part."""
        return process_shard(shard, self, poisoned)

    def attempt(self, shard: Shard, poisoned: Poisoned) -> None:
        """Do everything but publish; `shard` may be a piece of one. Only surviving it counts."""
        make_part(shard, self, poisoned)

    def decode(self, requests: Sequence[Request]) -> Decoded:
        """Have the engine answer, once it is free."""
        if self.turns is None:
            return decoded(requests, self.engine)
        return self.turns.submit(decoded, requests, self.engine).result()


def open_worker(setup: Setup, engine_maker: EngineMaker = make_engine) -> Worker:
    """Load what a worker needs, once.

    Raises:
        ModelError: the checkpoint found here is not the planned one.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # replicas, not threads, use the cores
    model = checkpoint.locate(*setup.model)
    checkpoint.check_unchanged(model, setup.checkpoint.digests)
    tokenizer = Tokenizer(model, setup.rules.vocab_size)
    pa.array([])  # imports pandas, where it is installed, which the first shard would wait for
    return Worker(setup, tokenizer, engine_maker(setup, tokenizer))


def steps_per_row(strategies: Iterable[Strategy], job: Job, num_positions: int) -> int:
    """Most steps that an input row takes, over all strategies and samples; as many as there are positions where the
    row itself decides."""
    is_open = bool({"max_new_tokens", "max_length"} & job.strategy_columns.keys())
    return sum(
        num_rows(strategy)
        * (num_positions if is_open or isinstance(strategy, Score) else min(max_steps(strategy, 1), num_positions))
        for strategy in strategies
    )


def process_shard(shard: Shard, worker: Worker, poisoned: Poisoned = NO_ROWS) -> Part:
    """Make the part of a shard and publish it; where only the driver may publish, the bytes go to it."""
    part = make_part(shard, worker, poisoned)
    start = time.perf_counter()
    folder, data = worker.setup.folder, part.unpublished or b""
    done = published(part, folder) if folder.is_exclusive else replace(part, unpublished=bytes(data))
    return replace(done, seconds=part.seconds + time.perf_counter() - start)


def make_part(shard: Shard, worker: Worker, poisoned: Poisoned) -> Part:
    """Read, tokenise, generate, record, write: the part, with its bytes."""
    start = time.perf_counter()
    setup, tokenizer = worker.setup, worker.tokenizer
    rows = read(setup.dataset, shard.lo, shard.hi)
    pairs = make_pairs(rows, tokenizer, setup)
    prompts = make_prompts(rows, pairs, tokenizer, setup, poisoned)
    if setup.only is not None:
        pairs, prompts = wanted(pairs, prompts, rows.first_row * len(setup.strategies), setup.only)
    asked = time.perf_counter()
    generated = worker.decode(make_requests(pairs, prompts))
    waited_s = time.perf_counter() - asked - generated.seconds
    responses = every_response(prompts, generated.responses)
    table = build_table(output_rows(pairs, prompts, responses, rows, tokenizer), rows.kept)
    sums = part_sums(table)
    truncated = len({pair.position for pair, prompt in zip(pairs, prompts, strict=True) if prompt.is_truncated})
    facts = {"batchgen.sums": json.dumps(sums), "batchgen.truncated_prompts": str(truncated)}
    data = encode_part(table, setup.metadata | facts)
    return Part(
        shard.key,
        table.num_rows,
        "",
        sums,
        truncated,
        seconds=time.perf_counter() - start - waited_s,
        engine_s=generated.seconds,
        usage=generated.usage,
        unpublished=data,
    )


def published(part: Part, folder: Folder) -> Part:
    """The part, stored in the folder; as it is if it was stored before."""
    if part.unpublished is None:
        return part
    return replace(part, sha256=folder.publish(part.key, part.unpublished), unpublished=None)


def make_pairs(rows: Slice, tokenizer: Tokenizer, setup: Setup) -> list[Pair]:
    """Every input row of the shard under every strategy, in the order of the output."""
    if setup.job.strategy_columns:
        return [pair for position in range(len(rows.row_ids)) for pair in _own_pairs(position, rows, tokenizer, setup)]
    job_seed = setup.job.seed
    drawn = [(strategy, strategy.name, range(num_rows(strategy))) for strategy in setup.strategies]
    return [
        Pair(position, strategy, tuple([row_seed(job_seed, row_id, name, sample) for sample in samples]))
        for position, row_id in enumerate(rows.row_ids)
        for strategy, name, samples in drawn
    ]


def _own_pairs(position: int, rows: Slice, tokenizer: Tokenizer, setup: Setup) -> Iterator[Pair]:
    """An input row under every strategy, each with what the columns change of it for the row."""
    columns = setup.job.strategy_columns
    row = {column: rows.others[column][position] for column in columns.values()}
    seed = seed_of(row, columns)
    row_id = rows.row_ids[position]
    seeded = (seed, "") if isinstance(seed, int) else (setup.job.seed, row_id)  # a seed of its own needs no id
    for written, resolved in zip(setup.job.strategies, setup.strategies, strict=True):
        changed = overridden(written, row, columns, tokenizer, setup.checkpoint) or resolved
        strategy, error = (resolved, changed) if isinstance(changed, RowError) else (changed, None)
        seeds = tuple([row_seed(*seeded, strategy.name, sample) for sample in range(num_rows(strategy))])
        yield Pair(position, strategy, seeds, seed if isinstance(seed, RowError) else error)


def make_prompts(
    rows: Slice, pairs: Sequence[Pair], tokenizer: Tokenizer, setup: Setup, poisoned: Poisoned
) -> list[Prompt]:
    """What each pair gives the model, or why it cannot. A poisoned row shows its text, but not even the tokenizer is
    given any of it."""
    whole = tokenised(_spared(rows.prompts, rows, poisoned), tokenizer, setup.rules)
    if poisoned:
        whole = [
            prompt._replace(text=value) if prompt.text is None and isinstance(value, str) else prompt
            for value, prompt in zip(rows.prompts, whole, strict=True)
        ]
    targets = _targets(rows, tokenizer, setup, poisoned)
    kept = _kept_tokens(pairs, setup, len(whole))
    shared = [fitted(prompt, setup.rules, tokens) for prompt, tokens in zip(whole, kept, strict=True)]
    if not setup.job.strategy_columns and not any(isinstance(strategy, Score) for strategy in setup.strategies):
        return [shared[pair.position] for pair in pairs]
    return [_prompt(pair, whole[pair.position], shared[pair.position], targets, setup) for pair in pairs]


def _kept_tokens(pairs: Sequence[Pair], setup: Setup, num_input_rows: int) -> list[int]:
    """Tokens that stay of the prompt of each input row if it is too long."""
    if not setup.job.strategy_columns:
        return [num_kept(setup.strategies, setup.rules.num_positions)] * num_input_rows
    return [
        num_kept((pair.strategy for pair in of_row), setup.rules.num_positions)
        for _, of_row in groupby(pairs, key=attrgetter("position"))
    ]


def _spared(values: Sequence[Value], rows: Slice, poisoned: Poisoned) -> list[Value]:
    """Values of the rows, with the errors of those that are poisoned."""
    return [poisoned.get(row, value) for row, value in enumerate(values, start=rows.first_row)]


def _targets(rows: Slice, tokenizer: Tokenizer, setup: Setup, poisoned: Poisoned) -> dict[str, list[Prompt]]:
    """The tokens of each target column."""
    columns = dict.fromkeys(use.column for use in target_uses(setup.job))
    values = {
        column: target_values(column, rows.others[column], lambda i: f"row {rows.first_row + i} of the input")
        for column in columns
    }
    return {column: tokenised(_spared(values[column], rows, poisoned), tokenizer, setup.rules) for column in columns}


def _prompt(pair: Pair, whole: Prompt, shared: Prompt, targets: dict[str, list[Prompt]], setup: Setup) -> Prompt:
    """What a pair gives the model: the prompt that all strategies of a row share, unless it is to be scored."""
    if isinstance(whole.token_ids, RowError):
        return whole
    if pair.error:
        return whole._replace(token_ids=pair.error)
    match pair.strategy:
        case Score(target_column=None, add_bos=add_bos):
            bos = setup.checkpoint.bos_token_id
            return self_scored(whole, () if add_bos is False or bos is None else (bos,), setup.rules)
        case Score(target_column=str(column)):
            return scored(whole, targets[column][pair.position], setup.rules)
        case _:
            return shared


def wanted(
    pairs: list[Pair], prompts: list[Prompt], first: int, only: npt.NDArray[np.int64]
) -> tuple[list[Pair], list[Prompt]]:
    """The pairs that a retry is for, with their prompts; the others have had a part in how prompts were cut.

    Args:
        pairs, prompts: of a shard.
        first: number of its first pair.
        only: numbers of the wanted ones.
    """
    chosen = np.flatnonzero(np.isin(np.arange(first, first + len(pairs)), only)).tolist()
    return [pairs[index] for index in chosen], [prompts[index] for index in chosen]


def answer(pairs: Sequence[Pair], prompts: Sequence[Prompt], engine: Generates) -> list[Response]:
    """A response per pair: the engine's, or the error of a prompt that cannot be used."""
    return every_response(prompts, engine.generate(make_requests(pairs, prompts)))


def make_requests(pairs: Sequence[Pair], prompts: Sequence[Prompt]) -> list[Request]:
    """What the engine is asked for: nothing for prompts that cannot be used."""
    return [
        Request(prompt.token_ids, pair.strategy, pair.seeds, prompt.target_token_ids)
        for pair, prompt in zip(pairs, prompts, strict=True)
        if not isinstance(prompt.token_ids, RowError)
    ]


def decoded(requests: Sequence[Request], engine: Generates) -> Decoded:
    """The engine's answers."""
    start, before = time.perf_counter(), usage_of(engine)
    responses = engine.generate(requests)
    return Decoded(responses, time.perf_counter() - start, usage_of(engine) - before)


def every_response(prompts: Sequence[Prompt], generated: Iterable[Response]) -> list[Response]:
    """The engine's responses with the errors of the prompts that it was not given."""
    of_engine = iter(generated)
    token_ids = [prompt.token_ids for prompt in prompts]
    return [Response(ids) if isinstance(ids, RowError) else next(of_engine) for ids in token_ids]


def usage_of(engine: Generates) -> Usage:
    """Of all calls so far; nothing where an engine does not count."""
    usage = getattr(engine, "usage", None)
    return usage if isinstance(usage, Usage) else Usage()


def output_rows(
    pairs: Sequence[Pair], prompts: Sequence[Prompt], responses: Sequence[Response], rows: Slice, tokenizer: Tokenizer
) -> list[OutputRow]:
    """The rows of all pairs, one per sample, errors included."""
    return [
        _output_row(pair, sample, prompt, response, rows, tokenizer)
        for pair, prompt, response in zip(pairs, prompts, responses, strict=True)
        for sample in range(len(pair.seeds))
    ]


def _output_row(
    pair: Pair, sample: int, prompt: Prompt, response: Response, rows: Slice, tokenizer: Tokenizer
) -> OutputRow:
    position, strategy, seeds, _ = pair
    done = response.completions
    result = done if isinstance(done, RowError) else done[sample]
    return OutputRow(
        position,
        rows.row_ids[position],
        rows.first_row + position,
        strategy.name,
        sample,
        seeds[sample],
        prompt.text,
        () if isinstance(prompt.token_ids, RowError) else prompt.token_ids,
        result,
        *_texts(result, strategy, tokenizer),
        response.prompt_logprobs,
    )


def _texts(result: Completion | RowError, strategy: Strategy, tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """Text of a completion, cut before its stop string, and what stopped it, a token as the tokenizer prints it."""
    if isinstance(result, RowError) or isinstance(strategy, NextToken):
        return None, None
    token_ids = result.token_ids.tolist()
    if isinstance(result.stop_match, int):
        return tokenizer.decode(token_ids), tokenizer.tokens[result.stop_match]
    return tokenizer.decode(token_ids, result.stop_match), result.stop_match
