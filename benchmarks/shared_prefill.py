"""Four strategies over the same long prompts: one job against four jobs, on one core.

    python -m benchmarks.shared_prefill [--dtype float32 bfloat16] [--pairs 5] [--quick]

32 prompts of 256 tokens, 16 new ones for each strategy. In one job a prompt goes through the model once.
"""

from __future__ import annotations

from benchmarks.choices import Way, measure
from benchmarks.command import options
from benchmarks.machine import write_result
from benchmarks.models import GPT2_124M, TINY
from benchmarks.teams import Peer
from benchmarks.workloads import uniform

STRATEGIES = (
    {"name": "greedy", "type": "greedy"},
    {"name": "sampling", "type": "sampling"},
    {"name": "top_k", "type": "sampling", "temperature": 0.8, "top_k": 50},
    {"name": "top_p", "type": "sampling", "temperature": 0.8, "top_p": 0.94},
)
ONE_JOB, FOUR_JOBS = "one_job", "four_jobs"
BATCH = 128


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, dtypes=True)
    size = TINY if chosen.quick else GPT2_124M
    workload = uniform(2, 16, 4, size.vocab_size) if chosen.quick else uniform(32, 256, 16, size.vocab_size)
    calls = {ONE_JOB: [[*STRATEGIES]], FOUR_JOBS: [[strategy] for strategy in STRATEGIES]}
    ways = [
        Way(_peer(name, {"strategies": strategies, "top_k": 10}), workload, BATCH) for name, strategies in calls.items()
    ]
    for dtype in chosen.dtype:
        result = measure(ways, size, dtype, chosen.pairs, quick=chosen.quick, base=FOUR_JOBS)
        print(f"{dtype:10} one job takes {result['time_against'][ONE_JOB]['median']:.2f} of the time of four jobs")
        print(write_result(f"shared_prefill-{dtype}", result, chosen.quick))


def _peer(name: str, our_options: dict[str, object]) -> Peer:
    return Peer(name, "benchmarks.peers.batchgen", our_options, completions=len(STRATEGIES))


if __name__ == "__main__":
    main()
