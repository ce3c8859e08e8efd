"""What recording costs: the 10 or 100 best alternatives of every step against none, on one core.

    python -m benchmarks.recording [--dtype float32 bfloat16] [--pairs 5] [--quick]

The work is one core's half of `uniform`. The log-probability, rank and entropy of each step are recorded in all cases.
"""

from __future__ import annotations

from benchmarks.choices import Way, measure
from benchmarks.command import options
from benchmarks.machine import write_result
from benchmarks.models import GPT2_124M, TINY
from benchmarks.teams import Peer
from benchmarks.workloads import uniform

TOP_K = (0, 10, 100)


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, dtypes=True)
    size = TINY if chosen.quick else GPT2_124M
    workload = uniform(2, 8, 4, size.vocab_size) if chosen.quick else uniform(64, 32, 32, size.vocab_size)
    ways = [Way(_recording(top_k), workload, 64) for top_k in TOP_K]
    for dtype in chosen.dtype:
        result = measure(ways, size, dtype, chosen.pairs, quick=chosen.quick, base="top_k=0")
        for name in ("top_k=10", "top_k=100"):
            ratio = result["time_against"][name]
            print(f"{dtype:10} {name:10} costs {ratio['median'] - 1:+.1%} of the clock, {ratio['cpu'] - 1:+.1%} of CPU")
        print(write_result(f"recording-{dtype}", result, chosen.quick))


def _recording(top_k: int) -> Peer:
    return Peer(f"top_k={top_k}", "benchmarks.peers.batchgen", {"strategies": [[{"type": "greedy"}]], "top_k": top_k})


if __name__ == "__main__":
    main()
