"""On one GPU: our engine and `transformers.generate`, each at its best batch, and the work's matrix products alone.

    python -m benchmarks.gpu [--dtype float32 bfloat16] [--pairs 5] [--quick]

`uniform` is 4,096 prompts of 32 tokens with 32 new ones each, greedy; `ragged` is the work of `benchmarks.ragged` with
4,096 prompts, sampled. Batches are tried once on the first quarter. All runs once untimed, in this process, which needs
torch, transformers and pydantic and nothing of Ray; without a GPU it says so and ends, and `--quick` stays on the CPU.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.command import options
from benchmarks.machine import machine, write_result
from benchmarks.models import GPT2_124M, TINY, Size, checkpoint
from benchmarks.pairs import Run, in_turn, rates, ratio, ratios
from benchmarks.teams import Peer, here
from benchmarks.workloads import Workload, ragged, uniform

OURS, LIMIT = "batchgen", "linears"
BATCHES = {OURS: (128, 256, 512, 1024), "transformers": (128, 256, 512, 1024)}
WORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # ours, and of `transformers.generate`
    "uniform": ({"type": "greedy"}, {"do_sample": False}),
    "ragged": ({"type": "sampling"}, {"do_sample": True, "top_k": 0}),
}


def measure(name: str, dtype: str, pairs: int, quick: bool) -> dict[str, Any]:
    """Tokens per second, ratios and every timing of one work."""
    ours, theirs = WORKS[name]
    size, device = (TINY, "cpu") if quick else (GPT2_124M, "cuda")
    work, batches = _workload(name, size, quick), {each: (4,) if quick else some for each, some in BATCHES.items()}
    peers = [
        Peer(OURS, "benchmarks.peers.batchgen", {"strategies": [[ours]], "top_k": 10}),
        Peer("transformers", "benchmarks.peers.transformers", {"settings": theirs}),
    ]

    def ready(peer: Peer, part: Workload, batch: int) -> Run:
        return here(peer, part, checkpoint(size), dtype, batch, device=device)

    tried: dict[str, dict[int, float]] = {}
    for peer in peers:
        part = work.first(len(work.prompts) // 4)
        tried[peer.name] = {}
        for batch in batches[peer.name]:
            run = ready(peer, part, batch)
            tried[peer.name][batch] = round(part.num_tokens / min(run().wall_s for _ in range(2)), 1)
            print(f"{name}, {dtype}, {peer.name}, batch {batch}: {tried[peer.name][batch]} tokens/s", flush=True)
    best = {each: max(rates_, key=lambda batch: rates_[batch]) for each, rates_ in tried.items()}
    runs = {peer.name: ready(peer, work, best[peer.name]) for peer in peers}
    runs[LIMIT] = ready(Peer(LIMIT, "benchmarks.peers.linears", {}), work, best[OURS])
    for run in runs.values():
        run()  # graphs are recorded when a shape comes again, and are kept
    rounds = in_turn(runs, pairs)
    return {
        "work": work.described(),
        "batches": best,
        "trials": tried,
        "tokens_per_s": rates(rounds, work.num_tokens),
        "times_as_fast_as": {each: times for each, times in ratios(rounds, OURS).items() if each != LIMIT},
        "share_of_limit": ratio(rounds, LIMIT, OURS),
        "rounds": [{each: timing._asdict() for each, timing in one.items()} for one in rounds],
    }


def _workload(name: str, size: Size, quick: bool) -> Workload:
    rows = 8 if quick else 4096
    if name == "uniform":
        return uniform(rows, 32, 32, size.vocab_size)
    return ragged(rows, size.vocab_size, most_new=8) if quick else ragged(rows, size.vocab_size)


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    import torch

    chosen = options(__doc__ or "", arguments, dtypes=True)
    if not torch.cuda.is_available() and not chosen.quick:
        print("skipped: torch finds no GPU here")
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    for dtype in chosen.dtype:
        works = {name: measure(name, dtype, chosen.pairs, chosen.quick) for name in WORKS}
        for name, result in works.items():
            for peer, rate in result["tokens_per_s"].items():
                print(f"{dtype:10} {name:10} {peer:14} {rate:12.1f} tokens/s")
        size = asdict(TINY if chosen.quick else GPT2_124M)
        result = {"machine": machine() | {"gpu": device}, "model": size, "dtype": dtype, "works": works}
        print(write_result(f"gpu-{dtype}", result, chosen.quick))


if __name__ == "__main__":
    main()
