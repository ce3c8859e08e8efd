"""CTranslate2 on CPU: the checkpoint converted once, static batches, one limit for all rows.

Options: `compute_type`; `sampling_topk`, 1 for greedy, 0 to draw from the whole vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.serving import Once, Work, batches, serve


def prepare(work: Work) -> Once:
    """Convert the checkpoint where that is not done yet, and load it; each call generates for all prompts."""
    import ctranslate2

    folder = Path(work["checkpoint"] + "-ctranslate2")
    if not folder.exists():
        ctranslate2.converters.TransformersConverter(work["checkpoint"]).convert(str(folder))
    options = work["options"]
    generator = ctranslate2.Generator(
        str(folder), compute_type=options["compute_type"], inter_threads=1, intra_threads=len(work["cores"])
    )
    vocabulary = _vocabulary(folder)
    settings = {"sampling_topk": options["sampling_topk"], "include_prompt_in_result": False, "end_token": []}
    calls = [_arguments(work, rows, vocabulary) for rows in batches(work)]

    def once() -> int:
        results = [each for arguments in calls for each in generator.generate_batch(**arguments, **settings)]
        return sum(len(each.sequences_ids[0]) for each in results)

    return once


def _vocabulary(folder: Path) -> list[str]:
    import json

    tokens: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return tokens


def _arguments(work: Work, rows: list[int], vocabulary: list[str]) -> dict[str, Any]:
    prompts = [[vocabulary[token] for token in work["prompts"][row]] for row in rows]
    limit = max(work["limits"])
    return {"start_tokens": prompts, "max_length": limit, "min_length": limit}


if __name__ == "__main__":
    serve(prepare, "ctranslate2")
