"""The engine alone, as Python: prompts in, completions out, in this process and without Ray or files.

    Engine("demo").generate(["I skip across the"], [{"name": "greedy", "type": "greedy", "max_new_tokens": 8}])

The same functions make the rows as in a run, so they are the same rows; a bad prompt is an error row here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from pipeline import checkpoint, display
from pipeline.config import Job
from pipeline.dataset import Dataset, Slice
from pipeline.errors import ConfigError
from pipeline.head import SHOWN, cells, first_rows
from pipeline.in_process import generated
from pipeline.jobfile import parse_job
from pipeline.plan import Plan, resolved
from pipeline.recorded import Vocabulary
from pipeline.shard import Generates
from pipeline.storage import LocalFolder
from pipeline.strategies import Score, Strategy
from pipeline.tokenizer import Tokenizer

GREEDY = {"name": "greedy", "type": "greedy", "max_new_tokens": 20}
MOST_SHOWN = 50
Row = dict[str, Any]


class Completions(Sequence[Row]):
    """Output rows, one per (prompt, strategy, sample), in this order; shows itself as a table.

    Attributes:
        table: the columns of the output, as in a part.
        vocabulary: how each token id prints, and its bytes.
    """

    def __init__(self, table: pa.Table, vocabulary: Vocabulary) -> None:
        self.table, self.vocabulary = table, vocabulary

    @cached_property
    def texts(self) -> list[str | None]:
        """The text of each row; None for errors and for `next_token`."""
        texts: list[str | None] = self.table["text"].to_pylist()
        return texts

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Completions: ...
    def __getitem__(self, index: int | slice) -> Row | Completions:
        """A row as a dict of its columns, or some rows."""
        if isinstance(index, slice):
            return Completions(self.table.take(pa.array(range(*index.indices(len(self))), pa.int64())), self.vocabulary)
        row: Row = self.table.slice(range(len(self))[index], 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[Row]:
        return iter(self.table.to_pylist())

    def __repr__(self) -> str:
        return display.as_text(self._title, SHOWN, self._cells)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return display.as_html(self._title, SHOWN, self._cells)

    def __rich__(self) -> Any:
        """What `rich.print` shows."""
        return display.as_rich(self._title, SHOWN, self._cells)

    @property
    def _title(self) -> str:
        more = f", the first {MOST_SHOWN} shown" if len(self) > MOST_SHOWN else ""
        return f"{len(self):,} completions{more}"

    @property
    def _cells(self) -> list[list[object]]:
        return cells(first_rows([self.table], self.vocabulary, MOST_SHOWN))


class Engine:
    """A model ready to generate, on the GPU if there is one.

    Args:
        model: hub id, local folder, or `demo`.
        revision: branch, tag or commit on the hub.
        dtype: `float32`, which is exact for any batch, or `bfloat16`.
        top_k: alternatives recorded per step.
        prompt_logprobs: whether to record the log-probability of each prompt token.

    Raises:
        ModelError: the model cannot be found or used.
        ConfigError: another argument is not as in a job file.
    """

    def __init__(
        self,
        model: str = "demo",
        *,
        revision: str | None = None,
        dtype: str = "float32",
        top_k: int = 10,
        prompt_logprobs: bool = False,
    ) -> None:
        self._settings: dict[str, dict[str, Any]] = {
            "model": {"name": model, "revision": revision, "dtype": dtype},
            "input": {"path": "-"},
            "output": {"path": "-", "top_k": top_k, "prompt_logprobs": prompt_logprobs},
        }
        self._job((GREEDY,), 0)
        self._model = checkpoint.inspect(model, revision)
        self._tokenizer = Tokenizer(self._model.folder, self._model.vocab_size)

    @property
    def vocabulary(self) -> Vocabulary:
        """How each token id prints, and its bytes."""
        return Vocabulary(self._tokenizer.tokens, self._tokenizer.token_bytes)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        strategies: Sequence[Mapping[str, Any] | Strategy] = (GREEDY,),
        *,
        seed: int = 0,
    ) -> Completions:
        """Complete every prompt under every strategy.

        Args:
            prompts: texts or token ids.
            strategies: as in a job file.
            seed: of all sampling. A row's own seed is that of a run whose ids are "0", "1" and so on.

        Raises:
            ConfigError: a strategy is wrong, does not fit the model, or needs columns, which there are none of here.
        """
        job = self._job(strategies, seed)
        if any(isinstance(each, Score) and each.target_column is not None for each in job.strategies):
            raise ConfigError("`target_column` needs an input with columns.", "Score prompts here, or run a job.")
        empty = Dataset(job.input, (), pa.schema([]))
        strategies = resolved(job, self._tokenizer, self._model)
        setup = Plan(job, empty, self._model, self._tokenizer, strategies, shard_rows=1).setup(LocalFolder(Path()))
        values = [prompt if isinstance(prompt, str) else [*prompt] for prompt in prompts]
        kept = pa.table({"": pa.nulls(len(values))}).select([])
        rows = Slice(0, [str(index) for index in range(len(values))], [*values], kept, {})
        return Completions(generated(rows, setup, self._tokenizer, self._engine), self.vocabulary)

    @cached_property
    def _engine(self) -> Generates:
        """The decode engine, loaded by the first call."""
        import torch

        from pipeline.engine import Engine as DecodeEngine
        from pipeline.engine import load_model

        torch.set_float32_matmul_precision("highest")  # whatever the environment says: TF32 is not exact
        device = "cuda" if torch.cuda.is_available() else "cpu"
        output = self._job((GREEDY,), 0).output
        return DecodeEngine(
            load_model(str(self._model.folder), self._settings["model"]["dtype"], device),
            eos_token_ids=self._model.eos_token_ids,
            token_bytes=self._tokenizer.token_bytes,
            num_alternatives=output.top_k,
            with_prompt_logprobs=output.prompt_logprobs,
        )

    def _job(self, strategies: Sequence[Mapping[str, Any] | Strategy], seed: int) -> Job:
        """The job that checks what was given, by the rules and in the words of the job file."""
        values = [each if isinstance(each, Mapping) else each.model_dump(exclude_unset=True) for each in strategies]
        return parse_job({**self._settings, "strategies": [dict(each) for each in values], "seed": seed})
