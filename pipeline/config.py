"""The job file as values: what `load_job` (in `jobfile`) builds and everything else reads.

Keys, defaults and rules are these models and nothing else; the JSON Schema is exported from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from pipeline import grid
from pipeline.strategies import Decoding, Frozen, ListOf, NextToken, Score, Strategy, Text, broken_rule

NOT_FROM_COLUMNS = {
    "name": "it names rows of the output",
    "type": "it decides what other keys there are",
    "num_return_sequences": "how many rows there are is planned before one is read",
    "target_column": "it names a column itself",
}


class ModelConfig(Frozen):
    """Which checkpoint to run, and in which number format."""

    name: str = Field(min_length=1, description="Hub id, local folder, or `demo` (the tiny model in the package).")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub; the commit is recorded.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="float32 is exact for any batch; bfloat16 is faster, and may differ across batches.",
    )


class InputConfig(Frozen):
    """Where the prompts are and how to read them."""

    path: Text | Annotated[ListOf[Text], Field(min_length=1)] = Field(
        description="File, glob, folder or list of them; or s3://bucket/path, gs://, az://, hf://user/set."
    )
    id_column: str | None = Field(default=None, description="Column with a unique key; default: file and position.")
    prompt_column: str | None = Field(default=None, description="Text column (default: `prompt`).")
    prompt_template: str | None = Field(
        default=None, min_length=1, description="Prompt made of columns, as `Q: {question}`; only literal {column}."
    )
    token_ids_column: str | None = Field(default=None, description="Column of token-id lists to use as prompts.")
    keep_columns: ListOf[str] = Field(default=(), description="Columns passed through to the output.")
    on_long_prompt: Literal["error", "truncate_left", "truncate_right"] = Field(
        default="error", description="What to do with a prompt longer than the context."
    )
    on_empty_prompt: Literal["bos", "error"] = Field(
        default="bos", description="What to do with a prompt without tokens."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_prompt_column(cls, values: Any) -> Any:
        sources = ("prompt_column", "prompt_template", "token_ids_column")
        if isinstance(values, dict) and not any(values.get(key) is not None for key in sources):
            return {**values, "prompt_column": "prompt"}
        return values

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = {
            "prompt_column": self.prompt_column,
            "prompt_template": self.prompt_template,
            "token_ids_column": self.token_ids_column,
        }
        named = [key for key, value in sources.items() if value is not None]
        if len(named) != 1:
            chosen = " and ".join(f"`{key}`" for key in named)
            message = f"prompts come from one of {', '.join(f'`{key}`' for key in sources)}, not {chosen}"
            raise broken_rule(message, "Set one of them.", named[-1])
        return self


class OutputConfig(Frozen):
    """Where the completions go and what is recorded of each step."""

    path: str = Field(
        min_length=1, description="Output folder, or s3://, gs:// or az:// and a bucket; one job, one folder."
    )
    top_k: int = Field(default=10, ge=0, le=1000, description="Alternatives recorded per step; 0 = none.")
    prompt_logprobs: bool = Field(default=False, description="Record the log-probability of each prompt token.")


class ReplicaRange(Frozen):
    """How many replicas there may be, where that changes with the cluster."""

    min: int = Field(default=1, ge=1, description="Replicas that must find room before the job starts.")
    max: int = Field(ge=1, description="Replicas to have at most, as room comes and as long as there is work.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max < self.min:
            message = f"`run.replicas.max` must be at least `min`, {self.min}, but is {self.max}"
            raise broken_rule(message, "Raise `max` or lower `min`.", "max")
        return self


class RunConfig(Frozen):
    """How the work is spread.

    Only `shard_rows`, `batch_rows` and `cache_gib` can change a byte of the output: products of other shapes round
    differently.
    """

    replicas: Literal["auto"] | Annotated[int, Field(ge=1)] | ReplicaRange = Field(
        default="auto",
        description="Copies of the model, or {min: 1, max: 4} of them; auto: one per GPU, else one per CPU core.",
    )
    gpus_per_replica: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        default="auto", description="GPUs per replica, fractions allowed; auto: 1 where there are GPUs, else 0."
    )
    accelerator_type: Text | None = Field(
        default=None, description="Kind of GPU by Ray's name, as `L4` or `A100`; any by default."
    )
    label_selector: Mapping[Text, Text] = Field(
        default={},
        description="Labels that a node must have, as {ray.io/market-type: spot}; Ray's rules, `!` and `in()` too.",
    )
    autoscaling: bool = Field(
        default=False, description="Nodes come when replicas wait for them, so do not ask whether there is room now."
    )
    shared_output: bool = Field(
        default=False, description="A local output path is the same folder on all machines, as on NFS."
    )
    shard_rows: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto", description="Input rows per shard, which is one unit of work, retry and output file."
    )
    batch_rows: int = Field(default=128, ge=1, description="Most rows that a replica decodes together.")
    cache_gib: float = Field(
        default=2.0,
        gt=0,
        description="Most GiB of keys and values in a replica; one prompt with its beams always fits.",
    )
    max_error_rate: float = Field(
        default=0.05, ge=0, le=1, description="Share of error rows above which the job stops and exits with 3."
    )
    grace_s: float = Field(
        default=25,
        ge=0,
        description="Seconds that shards under way have to finish after SIGTERM; then the job exits with 4.",
    )

    @field_validator("gpus_per_replica")
    @classmethod
    def _whole_gpus(cls, value: float | str) -> float | str:
        if isinstance(value, float) and value > 1 and not value.is_integer():
            message = f"`run.gpus_per_replica` above 1 must be a whole number, but is {value}"
            raise broken_rule(message, "Round it.")
        return value

    @model_validator(mode="after")
    def _number_asked_for(self) -> Self:
        if self.autoscaling and self.replicas == "auto":
            message = "`run.replicas` must not be auto under `run.autoscaling`: nodes come for the replicas that wait"
            raise broken_rule(message, "Set it to how many of them there should be, as 4 or {max: 4}.", "replicas")
        return self

    @property
    def replica_limits(self) -> tuple[int, int | None]:
        """Fewest and most replicas; None for as many as there is room for."""
        match self.replicas:
            case ReplicaRange(min=fewest, max=most):
                return fewest, most
            case int(number):
                return number, number
            case _:
                return 1, None


def _without_fault(item: Any) -> Any:
    """A strategy whose grid, if it still has one, is told to be wrong."""
    if error := grid.fault(item):
        raise error
    return item


def _overridable(key: str, info: ValidationInfo) -> str:
    """A key that a column may set: `seed`, or one that a strategy of the job has."""
    if key in NOT_FROM_COLUMNS:
        raise PydanticCustomError("not_from_column", "{why}", {"why": NOT_FROM_COLUMNS[key]})
    types = [kind for kind in (*get_args(Decoding), Score) if key in kind.model_fields]
    if not types and key != "seed":
        raise PydanticKnownError("extra_forbidden")
    strategies = info.data.get("strategies", ())
    if strategies and types and not any(isinstance(strategy, tuple(types)) for strategy in strategies):
        raise PydanticCustomError("not_from_column", "{why}", {"why": f"no strategy of this job has `{key}`"})
    return key


class Job(Frozen):
    """A whole job file; strategies with a `grid` are taken as the strategies that they stand for."""

    model: ModelConfig
    input: InputConfig
    output: OutputConfig
    strategies: ListOf[Annotated[Strategy, BeforeValidator(_without_fault)]] = Field(
        min_length=1, description="Ways to decode; each prompt goes through all."
    )
    strategy_columns: Mapping[Annotated[str, AfterValidator(_overridable)], Text] = Field(
        default={},
        description="Keys of strategies, or `seed`, and the columns that set them for their row, where not null.",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of all sampling; each row derives its own.")
    run: RunConfig = RunConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("strategies", mode="before")
    @classmethod
    def _expand_grids(cls, value: Any) -> Any:
        return [expanded.values for expanded in grid.expand(value)] if isinstance(value, list | tuple) else value

    @field_validator("strategies")
    @classmethod
    def _unique_names(cls, strategies: tuple[Strategy, ...]) -> tuple[Strategy, ...]:
        names = [strategy.name for strategy in strategies]
        for index, name in enumerate(names):
            if name in names[:index]:
                message = f"strategy names must be unique, but an earlier one is `{name}` too"
                raise broken_rule(message, "Rename one of them.", index, "name")
        return strategies

    @model_validator(mode="after")
    def _candidates_recorded(self) -> Self:
        if self.output.top_k == 0 and any(isinstance(strategy, NextToken) for strategy in self.strategies):
            message = "`output.top_k` must be at least 1 for a strategy of `type: next_token`, but is 0"
            raise broken_rule(message, "Raise it to how many candidates you want.", "output", "top_k")
        return self
