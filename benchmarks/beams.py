"""Beam search against `transformers.generate`, contrastive search against that of transformers 4.41, on one core.

    python -m benchmarks.beams [--dtype float32 bfloat16] [--pairs 5] [--quick]

16 prompts of 32 tokens, 32 new ones; 5 beams, that is 80 rows; or 4 candidates per step, that is 64. No text ends
early. Contrastive search needs the environment of `make oracle`.
"""

from __future__ import annotations

from typing import Any

from benchmarks.choices import Way, measure
from benchmarks.command import options
from benchmarks.machine import write_result
from benchmarks.models import GPT2_124M, TINY
from benchmarks.teams import Peer
from benchmarks.workloads import Workload, uniform

BEAMS = {"num_beams": 5}
CONTRASTIVE = {"penalty_alpha": 0.6, "top_k": 4}
SEARCHES: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "beam_search": (BEAMS, {"do_sample": False} | BEAMS, None),
    "contrastive_search": (CONTRASTIVE, CONTRASTIVE, ".oracle"),
}
OUR_BATCH = 80


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, dtypes=True)
    size = TINY if chosen.quick else GPT2_124M
    workload = uniform(2, 8, 4, size.vocab_size) if chosen.quick else uniform(16, 32, 32, size.vocab_size)
    for dtype in chosen.dtype:
        for search in SEARCHES:
            result = measure(_ways(search, workload), size, dtype, chosen.pairs, quick=chosen.quick, base="batchgen")
            for name, rate in result["tokens_per_s"].items():
                print(f"{dtype:10} {search:20} {name:14} {rate:8.1f} tokens/s")
            if ratio := result["time_against"].get("transformers"):
                print(f"{dtype:10} {search:20} ours is {ratio['median']:.2f} times as fast")
            print(write_result(f"{search}-{dtype}", result, chosen.quick))


def _ways(search: str, workload: Workload) -> list[Way]:
    settings, their_settings, environment = SEARCHES[search]
    our_options = {"strategies": [[{"type": search} | settings]], "top_k": 10}
    return [
        Way(Peer("batchgen", "benchmarks.peers.batchgen", our_options), workload, OUR_BATCH),
        Way(
            Peer("transformers", "benchmarks.peers.transformers", {"settings": their_settings}, environment),
            workload,
            len(workload.prompts),
        ),
    ]


if __name__ == "__main__":
    main()
