"""What a run will take, before anything starts: counts from a sample of the input, and time and size from a trial.

The sample goes through the same steps as a shard, up to the model. Counts of the whole input are exact; what comes from
the sample is scaled up, and exact only where the sample is the whole input. Nothing is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pipeline.calibration import Trial
from pipeline.dataset import read
from pipeline.errors import ErrorRateError
from pipeline.manifest import finished_keys
from pipeline.plan import Plan
from pipeline.prompts import Prompt
from pipeline.records import RowError
from pipeline.shard import NO_ROWS, Pair, Setup, make_pairs, make_prompts
from pipeline.storage import Folder
from pipeline.strategies import BeamSearch, Score, Strategy, max_steps, num_rows, num_slots

SAMPLED_ROWS = 1000
SPANS = 8  # that a sample is made of, spread over the input
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


class Lengths(NamedTuple):
    """Tokens of prompts: median, 95th percentile, longest, and the sum."""

    p50: int
    p95: int
    longest: int
    total: int


class StrategyNeeds(NamedTuple):
    """What a strategy adds to the output.

    Attributes:
        new_tokens: most, of all rows together.
    """

    name: str
    type: str
    rows: int
    new_tokens: int


class CacheNeeds(NamedTuple):
    """Keys and values of a replica.

    Attributes:
        token_bytes: of one token.
        positions: of the longest row in the sample, prompt and completion.
        rows: decoded together where all are as long.
    """

    token_bytes: int
    positions: int
    rows: int

    @property
    def num_bytes(self) -> int:
        """Of all rows together."""
        return self.token_bytes * self.positions * self.rows


class Takes(NamedTuple):
    """Shortest and longest estimate from the trials.

    Attributes:
        replica_s: seconds that one replica would take for what is left.
        run_s: the same for the most replicas of the job; None where it does not say how many.
        gpu_hours: of all replicas together; None on CPUs.
        output_bytes: of all parts.
    """

    replica_s: tuple[float, float]
    run_s: tuple[float, float] | None
    gpu_hours: tuple[float, float] | None
    output_bytes: tuple[int, int]


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it starts.

    Attributes:
        plan: of the run.
        folder: of the output.
        num_sampled: input rows looked at.
        prompt_tokens: of the sample, None if it has no usable prompt.
        truncated, too_long, empty: prompts of the sample cut to fit, refused because they do not, and without a token.
        errors: error type -> output rows of the sample that will be errors for certain.
        needs: by strategy, for the whole input.
        cache: None if nothing is generated.
        num_done: shards whose part is there already.
        device: that the trials ran on.
        trials: of a calibration; may be none.
        takes: by these.
    """

    plan: Plan
    folder: str
    num_sampled: int
    prompt_tokens: Lengths | None
    truncated: int
    too_long: int
    empty: int
    errors: dict[str, int]
    needs: tuple[StrategyNeeds, ...]
    cache: CacheNeeds | None
    num_done: int
    device: str | None = None
    trials: tuple[Trial, ...] = ()
    takes: Takes | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the sample is the whole input."""
        return self.num_sampled == self.plan.dataset.num_rows

    @property
    def error_rate(self) -> float:
        """Share of the sample's output rows that will be errors for certain."""
        return sum(self.errors.values()) / (self.num_sampled * self.plan.rows_per_prompt)

    def to_json(self) -> dict[str, Any]:
        """All of it, null for what is not known."""
        plan = self.plan
        return {
            "input": {"files": len(plan.dataset.files), "rows": plan.dataset.num_rows},
            "output": {"path": self.folder, "rows": plan.num_output_rows},
            "model": {"name": plan.model.name, "commit": plan.model.commit, "dtype": plan.job.model.dtype},
            "shards": {"count": len(plan.shards), "rows": plan.shard_rows, "done": self.num_done},
            "sample": {
                "rows": self.num_sampled,
                "is_exact": self.is_exact,
                "prompt_tokens": self.prompt_tokens and self.prompt_tokens._asdict(),
                "truncated": self.truncated,
                "too_long": self.too_long,
                "empty": self.empty,
                "errors": self.errors,
                "error_rate": self.error_rate,
            },
            "strategies": [each._asdict() for each in self.needs],
            "cache": self.cache and {**self.cache._asdict(), "bytes": self.cache.num_bytes},
            "device": self.device,
            "trials": [trial._asdict() for trial in self.trials],
            "takes": self.takes and self.takes._asdict(),
        }


def forecast(plan: Plan, folder: Folder, num_rows: int = SAMPLED_ROWS) -> Forecast:
    """What a run of the plan into the folder will take.

    Args:
        num_rows: to look at, at most.

    Raises:
        InputError: the input cannot be read.
        ErrorRateError: it is certain already that more rows are errors than the job allows.
    """
    setup = plan.setup(folder)
    spans = list(spread(plan.dataset.num_rows, num_rows, SPANS))
    pairs = [pair for lo, hi in spans for pair in _prepared(plan, setup, lo, hi)]
    firsts = [prompt for index, (_, prompt) in enumerate(pairs) if index % len(plan.strategies) == 0]
    num_sampled = sum(hi - lo for lo, hi in spans)
    scale = plan.dataset.num_rows / num_sampled
    errors = Counter[str]()
    for pair, prompt in pairs:
        if isinstance(prompt.token_ids, RowError):
            errors[prompt.token_ids.type] += len(pair.seeds)
    found = Forecast(
        plan=plan,
        folder=folder.name,
        num_sampled=num_sampled,
        prompt_tokens=lengths(firsts),
        truncated=sum(prompt.is_truncated for prompt in firsts),
        too_long=sum(_is(prompt, "prompt_too_long") for prompt in firsts),
        empty=sum(prompt.text == "" for prompt in firsts),
        errors=dict(errors.most_common()),
        needs=_needs(plan, pairs, scale),
        cache=_cache(plan, pairs),
        num_done=len(finished_keys(folder) & {shard.key for shard in plan.shards}),
    )
    _check_errors(found)
    return found


def calibrated(found: Forecast, device: str, trials: Sequence[Trial]) -> Forecast:
    """The forecast with time and size by trials, at least one, that ran on a device: `cpu`, or the name of a GPU."""
    return replace(found, device=device, trials=tuple(trials), takes=_takes(found.plan, found.num_done, device, trials))


def spread(num_rows: int, wanted: int, num_spans: int) -> Iterator[tuple[int, int]]:
    """Ranges [lo, hi) of the input, at equal distances, of `wanted` rows or all of them together."""
    if wanted >= num_rows:
        yield 0, num_rows
        return
    num_spans = min(num_spans, wanted)
    for index in range(num_spans):
        lo = index * num_rows // num_spans
        yield lo, lo + wanted // num_spans


def _prepared(plan: Plan, setup: Setup, lo: int, hi: int) -> Iterator[tuple[Pair, Prompt]]:
    """What a shard of these rows would give the model."""
    rows = read(plan.dataset, lo, hi)
    pairs = make_pairs(rows, plan.tokenizer, setup)
    return zip(pairs, make_prompts(rows, pairs, plan.tokenizer, setup, NO_ROWS), strict=True)


def _is(prompt: Prompt, error_type: str) -> bool:
    return isinstance(prompt.token_ids, RowError) and prompt.token_ids.type == error_type


def lengths(prompts: Sequence[Prompt]) -> Lengths | None:
    """How long the usable ones are; None if there are none."""
    counts = sorted(len(prompt.token_ids) for prompt in prompts if not isinstance(prompt.token_ids, RowError))
    if not counts:
        return None
    return Lengths(counts[len(counts) // 2], counts[len(counts) * 95 // 100], counts[-1], sum(counts))


def _num_new(strategy: Strategy, prompt: Prompt, num_positions: int) -> int:
    """Most tokens that come after a prompt."""
    if isinstance(prompt.token_ids, RowError):
        return 0
    if isinstance(strategy, Score):
        return len(prompt.target_token_ids)
    length = len(prompt.token_ids)
    return max(0, min(max_steps(strategy, length), num_positions + 1 - length))


def _needs(plan: Plan, pairs: Sequence[tuple[Pair, Prompt]], scale: float) -> tuple[StrategyNeeds, ...]:
    new: Counter[str] = Counter()
    for pair, prompt in pairs:
        new[pair.strategy.name] += len(pair.seeds) * _num_new(pair.strategy, prompt, plan.model.num_positions)
    return tuple(
        StrategyNeeds(each.name, each.type, plan.dataset.num_rows * num_rows(each), round(new[each.name] * scale))
        for each in plan.strategies
    )


def _cache(plan: Plan, pairs: Sequence[tuple[Pair, Prompt]]) -> CacheNeeds | None:
    """Keys and values for the longest rows of the sample, as many as a replica decodes together."""
    model = plan.model
    token_bytes = 2 * model.num_layers * model.hidden_size * DTYPE_BYTES[plan.job.model.dtype]
    running = [(pair, prompt) for pair, prompt in pairs if not isinstance(prompt.token_ids, RowError)]
    running = [(pair, prompt) for pair, prompt in running if not isinstance(pair.strategy, Score)]
    if not running:
        return None
    positions = max(
        len(prompt.token_ids) + _num_new(pair.strategy, prompt, model.num_positions) - 1
        for pair, prompt in running
        if not isinstance(prompt.token_ids, RowError)
    )
    widest = max(_slots(pair.strategy) for pair, _ in running)
    in_shard = plan.shard_rows * sum(_slots(each) * _num_units(each) for each in plan.strategies)
    affordable = int(plan.job.run.cache_gib * 2**30) // (token_bytes * positions)
    return CacheNeeds(token_bytes, positions, max(widest, min(plan.job.run.batch_rows, affordable, in_shard)))


def _slots(strategy: Strategy) -> int:
    """Rows that must be decoded together."""
    return 0 if isinstance(strategy, Score) else num_slots(strategy)


def _num_units(strategy: Strategy) -> int:
    """How often: every sample runs alone, all beams run together."""
    return 1 if isinstance(strategy, BeamSearch) else num_rows(strategy)


def _takes(plan: Plan, num_done: int, device: str, trials: Sequence[Trial]) -> Takes:
    """Time and size by the last two trials, which had the largest batches."""
    paces = [trial.seconds / trial.rows for trial in trials[-2:]]
    sizes = [trial.part_bytes / trial.rows for trial in trials[-2:]]
    num_left = len(plan.shards) - num_done
    rows_left = min(num_left * plan.shard_rows, plan.dataset.num_rows)
    replica_s = (min(paces) * rows_left, max(paces) * rows_left)
    (_, most), gpus = plan.job.run.replica_limits, plan.job.run.gpus_per_replica
    run_s = None
    if most is not None:  # a replica does whole shards
        rows_each = min(-(-num_left // most) * plan.shard_rows, rows_left)
        run_s = (min(paces) * rows_each, max(paces) * rows_each)
    gpu_hours = None
    if device != "cpu":
        share = (1.0 if gpus == "auto" else gpus) / 3600
        gpu_hours = (replica_s[0] * share, replica_s[1] * share)
    num_rows_all = plan.dataset.num_rows
    return Takes(replica_s, run_s, gpu_hours, (int(min(sizes) * num_rows_all), int(max(sizes) * num_rows_all)))


def _check_errors(found: Forecast) -> None:
    """Refuse a job of which it is certain that it would fail for its errors."""
    limit = found.plan.job.run.max_error_rate
    if found.is_exact and found.error_rate > limit:
        counts = ", ".join(f"{name} {count:,}" for name, count in found.errors.items())
        raise ErrorRateError(
            f"{found.error_rate:.1%} of the {found.plan.num_output_rows:,} rows of the job would be errors ({counts}), "
            f"more than run.max_error_rate ({limit:.1%}).",
            "Mend the input, or raise run.max_error_rate.",
        )
