"""Greedy, everything of one length: 128 prompts of 32 tokens, 32 new ones each, GPT-2 124M with random weights.

    python -m benchmarks.uniform [--dtype float32 bfloat16] [--pairs 5] [--only PEER ...] [--quick]

The best case of static batches: nothing is padded, no row ends early. We record the 10 best alternatives of each step,
log-probabilities, ranks and entropies; peers record nothing.
"""

from __future__ import annotations

from benchmarks.comparison import Case, Question, answer
from benchmarks.models import GPT2_124M, TINY
from benchmarks.teams import Peer
from benchmarks.workloads import uniform

OUR_OPTIONS = {"strategies": [[{"type": "greedy"}]], "top_k": 10}
COMPUTE_TYPE = {"float32": "float32", "bfloat16": "int8"}  # of CTranslate2; its bfloat16 needs other CPUs


def peers(dtype: str) -> tuple[Peer, ...]:
    """Each with the options of this work."""
    return (
        Peer("transformers", "benchmarks.peers.transformers", {"settings": {"do_sample": False, "num_beams": 1}}),
        Peer("vllm", "benchmarks.peers.vllm", {"temperature": 0.0}, ".vllm"),
        Peer(
            "ctranslate2",
            "benchmarks.peers.ctranslate2",
            {"sampling_topk": 1, "compute_type": COMPUTE_TYPE[dtype]},
            ".ctranslate2",
        ),
    )


def case(dtype: str, quick: bool) -> Case:
    """The work."""
    size = TINY if quick else GPT2_124M
    workload = uniform(4, 8, 4, size.vocab_size) if quick else uniform(128, 32, 32, size.vocab_size)
    return Case(workload, workload, size, dtype)


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    answer(Question("uniform", __doc__ or "", case, OUR_OPTIONS, peers), arguments)


if __name__ == "__main__":
    main()
