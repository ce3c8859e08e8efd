"""A real run of every kind of strategy, and forgeries of it: rows changed, and all that counts them made to agree."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import job
from pipeline.metrics import add, part_sums
from pipeline.shard import EngineMaker, make_engine
from pipeline.writer import encode_part
from tests.flows import make_job, write_prompts

Rows = list[dict[str, Any]]

PROMPTS = ["The quiet fox", "Every bee", None, "", "I skip across the", "Today", "Count: one, two,"]
STRATEGIES = [
    {"name": "greedy", "type": "greedy", "max_new_tokens": 12},
    {"name": "hot", "type": "sampling", "max_new_tokens": 6, "temperature": 1.4, "num_return_sequences": 2},
    {"name": "beams", "type": "beam_search", "max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2},
    {"name": "stops", "type": "greedy", "max_new_tokens": 12, "stop_strings": ["e"], "min_new_tokens": 2},
    {"name": "context", "type": "greedy", "max_new_tokens": 500, "ignore_eos": True},
    {"name": "candidates", "type": "next_token"},
]
SHARD_ROWS = 3


def run_demo(
    folder: Path, engine_maker: EngineMaker = make_engine, execute: job.Executor = job.here, **changes: Any
) -> Path:
    """The output folder of a run of the demo model over `PROMPTS`, in three parts."""
    topics = [{"name": f"t{index}", "weight": float("nan")} for index in range(len(PROMPTS))]
    source = write_prompts(folder / "prompts.parquet", PROMPTS, topic=topics)
    kept = {"path": str(source), "id_column": "id", "keep_columns": ["topic"]}
    output = {"path": str(folder / "out"), "top_k": 4, "prompt_logprobs": True}
    settings: dict[str, Any] = {"input": kept, "output": output, "strategies": STRATEGIES, "seed": 7}
    work = make_job(source, folder / "out", **settings | {"run": {"shard_rows": SHARD_ROWS}} | changes)
    job.run(work, execute, engine_maker=engine_maker)
    return folder / "out"


def part_path(folder: Path, number: int) -> Path:
    """Where a part lies."""
    return folder / "data" / f"part-{number:05d}.parquet"


def read_part(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """A part without its metadata, and the metadata."""
    table = pq.read_table(path)
    metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    return table.replace_schema_metadata(None), metadata


def write_part(path: Path, table: pa.Table, metadata: dict[str, str]) -> None:
    """A part whose own sums are right, as far as its rows can be summed at all."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        metadata = metadata | {"batchgen.sums": json.dumps(part_sums(table))}
    path.write_bytes(encode_part(table, metadata))


def forge(folder: Path, change: Callable[[Rows], None], number: int = 0) -> None:
    """Change the rows of a part in place, and make its digest, its sums and the manifest agree with that."""
    table, metadata = read_part(part_path(folder, number))
    rows = table.to_pylist()
    change(rows)
    write_part(part_path(folder, number), pa.Table.from_pylist(rows, schema=table.schema), metadata)
    seal(folder)


def seal(folder: Path) -> None:
    """Make the manifest of a run, or of a retry, say what its parts are now."""
    path = folder / "_manifest.json"
    manifest = json.loads(path.read_text())
    sums, lines = [], []
    for part in sorted((folder / "data").iterdir()):
        table, metadata = read_part(part)
        num_ok = table["status"].to_pylist().count("ok")
        sums.append(json.loads(metadata["batchgen.sums"]))
        counts = {"rows": table.num_rows, "ok": num_ok, "errors": table.num_rows - num_ok}
        counts["generated_tokens"] = sum(table["num_generated_tokens"].to_pylist())
        lines.append({"key": f"data/{part.name}", **counts, "sha256": hashlib.sha256(part.read_bytes()).hexdigest()})
    manifest["parts"], manifest["strategies"] = lines, reduce(add, sums)
    for name in ("rows", "ok", "errors", "generated_tokens"):
        manifest["totals"][name] = sum(line[name] for line in lines)
    path.write_text(json.dumps(manifest))


def recount(row: dict[str, Any]) -> None:
    """Make the sums of a row those of its log-probabilities, which are float32 once stored."""
    row["cumulative_logprob"] = float(np.array(row["token_logprobs"], np.float32).sum(dtype=np.float64))
    row["perplexity"] = float(np.exp(-row["cumulative_logprob"] / len(row["token_logprobs"])))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON document in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
