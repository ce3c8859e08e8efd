"""Sampled at temperature 1, rows of all lengths as in earnest: 384 prompts, log-normal, median 28, at most 256.

    python -m benchmarks.ragged [--dtype float32 bfloat16] [--pairs 5] [--only PEER ...] [--quick]

A text ends with a chance of 1.6 % at every step, after 128 tokens at the latest; where, is drawn beforehand, so that
all do the same work, and only tokens before the end count. transformers gets prompts sorted by length, as people do,
and keeps rows that have ended until the batch is done; vLLM and we fill their places. CTranslate2
has no limit per row. We record as in `uniform`.
"""

from __future__ import annotations

from benchmarks.comparison import Case, Question, answer
from benchmarks.models import GPT2_124M, TINY
from benchmarks.teams import Peer
from benchmarks.workloads import ragged

TRIAL_ROWS = 128
OUR_OPTIONS = {"strategies": [[{"type": "sampling", "temperature": 1.0}]], "top_k": 10}


def peers(_dtype: str) -> tuple[Peer, ...]:
    """Each with the options of this work."""
    return (
        Peer(
            "transformers",
            "benchmarks.peers.transformers",
            {"settings": {"do_sample": True, "temperature": 1.0, "top_k": 0}},
        ),
        Peer("vllm", "benchmarks.peers.vllm", {"temperature": 1.0}, ".vllm"),
    )


def case(dtype: str, quick: bool) -> Case:
    """The work."""
    size = TINY if quick else GPT2_124M
    workload = ragged(4, size.vocab_size, longest=16, most_new=8) if quick else ragged(384, size.vocab_size)
    return Case(workload, workload.first(TRIAL_ROWS), size, dtype)


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    answer(Question("ragged", __doc__ or "", case, OUR_OPTIONS, peers), arguments)


if __name__ == "__main__":
    main()
