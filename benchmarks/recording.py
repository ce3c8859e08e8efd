"""What recording costs, on one core: everything with the 10 or 100 best alternatives of a step, against nothing at all.

    python -m benchmarks.recording [--dtype float32 bfloat16] [--pairs 5] [--quick]

The work is one core's half of `uniform`. `nothing` only chooses tokens, `top_k=0` records log-probabilities, ranks and
entropies. With `BATCHGEN_KERNELS=torch` in the environment the same is asked of plain torch.
"""

from __future__ import annotations

import os

from benchmarks.choices import Way, measure
from benchmarks.command import options
from benchmarks.machine import write_result
from benchmarks.models import GPT2_124M, TINY
from benchmarks.teams import Peer
from benchmarks.workloads import uniform

NOTHING = "nothing"
TOP_K = {NOTHING: None, "top_k=0": 0, "top_k=10": 10, "top_k=100": 100}


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, dtypes=True)
    size = TINY if chosen.quick else GPT2_124M
    workload = uniform(2, 8, 4, size.vocab_size) if chosen.quick else uniform(64, 32, 32, size.vocab_size)
    ways = [Way(_recording(name, top_k), workload, 64) for name, top_k in TOP_K.items()]
    kernels = os.environ.get("BATCHGEN_KERNELS", "compiled")
    for dtype in chosen.dtype:
        result = measure(ways, size, dtype, chosen.pairs, quick=chosen.quick, base=NOTHING)
        for name in list(TOP_K)[1:]:
            ratio = result["time_against"][name]
            print(f"{dtype:10} {name:10} costs {ratio['median'] - 1:+.1%} of the clock, {ratio['cpu'] - 1:+.1%} of CPU")
        print(write_result(f"recording-{dtype}-{kernels}", result, chosen.quick))


def _recording(name: str, top_k: int | None) -> Peer:
    return Peer(name, "benchmarks.peers.batchgen", {"strategies": [[{"type": "greedy"}]], "top_k": top_k})


if __name__ == "__main__":
    main()
