"""The parts of docs/strategies.md that are made from the code: tables of keys, and samples of the demo model.

`python -m tests.strategies_page` writes them anew. A table of keys is the JSON Schema's; a sample is what a job with
the strategy in the YAML block above it gives.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from docs.generate_reference import keys_table
from pipeline import job
from pipeline.jobfile import parse_job
from pipeline.jobfile_schema import strategy_types
from pipeline.results import open_run
from tests.flows import read_output, write_prompts

PAGE = Path(__file__).parent.parent / "docs" / "strategies.md"
PROMPT = "I skip across the"
KEYS = re.compile(r"(<!-- keys of (\w+): ([\w ]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
SAMPLE = re.compile(r"(```yaml\n(.*?)```\n\n```text\n).*?(```\n)", re.DOTALL)


def page(text: str) -> str:
    """The page with its tables and samples made anew."""
    strategies = [YAML(typ="safe").load(match[2]) for match in SAMPLE.finditer(text)]
    shown = samples(strategies)
    text = KEYS.sub(lambda match: f"{match[1]}{_keys_table(match[2], match[3].split())}{match[4]}", text)
    return SAMPLE.sub(lambda match: f"{match[1]}{shown[YAML(typ='safe').load(match[2])['name']]}{match[3]}", text)


def _keys_table(kind: str, keys: list[str]) -> str:
    rules = strategy_types()[kind]["properties"]
    return keys_table({key: rules[key] for key in keys}) + "\n"


def samples(strategies: list[dict[str, Any]]) -> dict[str, str]:
    """By the name of each strategy the rows that it gives for `PROMPT`, one a line."""
    with TemporaryDirectory() as folder:
        source = write_prompts(Path(folder) / "prompts.parquet", [PROMPT])
        output = Path(folder) / "out"
        values = {"input": {"path": str(source), "id_column": "id"}, "output": {"path": str(output)}}
        job.run(parse_job({"model": "demo", "seed": 70, "strategies": strategies, **values}), job.here)
        rows = read_output(output).to_pylist()
        texts = [row["text"] for row in open_run(output).head(len(rows))]
    shown: dict[str, str] = {}
    for row, text in zip(rows, texts, strict=True):
        line = f"{row['sample_index']} {text}  ({row['finish_reason']}, {_score(row)})\n"
        shown[row["strategy"]] = shown.get(row["strategy"], "") + line
    return shown


def _score(row: dict[str, Any]) -> str:
    """The score of a beam, the perplexity of what was scored, or else the log-probability of the completion."""
    if row["sequence_score"] is not None:
        return f"sequence_score {row['sequence_score']:.3f}"
    if row["finish_reason"] == "scored":
        return f"perplexity {row['perplexity']:.2f}"
    return f"cumulative_logprob {row['cumulative_logprob']:.2f}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
