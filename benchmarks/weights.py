"""What replicas on one machine share of a model: GPT-2 124M in float32, loaded by one process, then by two at once.

    python -m benchmarks.weights [--replicas 2] [--quick]

The kernel says it, in `/proc/PID/smaps`, while all of them hold the model. PSS counts a page that n processes map as an
n-th of it, so the PSS of a node's processes adds up to what they take together.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.command import options
from benchmarks.machine import machine, write_result
from benchmarks.models import GPT2_124M, TINY, Size, checkpoint

DTYPE = "float32"
FIELD = re.compile(r"(\w+): +(\d+) kB")
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")


def memory(pid: int, file: Path | None = None) -> Counter[str]:
    """Bytes under the names that proc(5) has for them: of all that a process maps, or of one file."""
    found: Counter[str] = Counter()
    is_meant = file is None
    for line in Path(f"/proc/{pid}/{'smaps' if file else 'smaps_rollup'}").read_text().splitlines():
        if file and MAPPING.match(line):
            is_meant = line.endswith(f" {file}")
        elif is_meant and (field := FIELD.match(line)):
            found[field[1]] += 1024 * int(field[2])
    return found


def hold(folder: Path, pipe: Connection) -> None:
    """Load the model and hold it until told to end; tell what the process had of its own before."""
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401  # what `load_model` would import

    from pipeline.engine import load_model

    before = memory(os.getpid())["Anonymous"]
    model = load_model(str(folder), DTYPE, "cpu")
    gc.collect()
    pipe.send(before)
    pipe.recv()
    del model


def shares(folder: Path, replicas: int) -> list[dict[str, int]]:
    """Bytes of each of so many processes that hold the model at once."""
    context = multiprocessing.get_context("spawn")
    file = (folder / "model.safetensors").resolve()
    processes, pipes = [], []
    for _ in range(replicas):
        here, there = context.Pipe()
        with closing(there):  # else its end would not be seen
            processes.append(context.Process(target=hold, args=(folder, there), daemon=True))
            processes[-1].start()
        pipes.append(here)
    before = [pipe.recv() for pipe in pipes]
    found = [
        _share(memory(process.pid or 0), memory(process.pid or 0, file), had)
        for process, had in zip(processes, before, strict=True)
    ]
    for process, pipe in zip(processes, pipes, strict=True):
        pipe.send(None)
        process.join()
    return found


def _share(whole: Counter[str], mapped: Counter[str], had: int) -> dict[str, int]:
    return {
        "rss_bytes": whole["Rss"],
        "pss_bytes": whole["Pss"],
        "private_bytes": whole["Private_Clean"] + whole["Private_Dirty"],
        "anonymous_before_bytes": had,
        "anonymous_bytes": whole["Anonymous"],
        "file_rss_bytes": mapped["Rss"],
        "file_pss_bytes": mapped["Pss"],
        "file_private_bytes": mapped["Private_Clean"] + mapped["Private_Dirty"],
    }


def measure(size: Size, counts: list[int]) -> dict[str, Any]:
    """For each number of processes, what each of them has."""
    conditions, folder = machine(), checkpoint(size)
    return {
        "machine": conditions,
        "model": asdict(size),
        "dtype": DTYPE,
        "file_bytes": (folder / "model.safetensors").stat().st_size,
        "runs": [{"replicas": count, "processes": shares(folder, count)} for count in counts],
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    chosen = options(__doc__ or "", arguments, numbers={"replicas": 2})
    result = measure(TINY, [1]) if chosen.quick else measure(GPT2_124M, [1, chosen.replicas])
    print(f"MiB; the file has {result['file_bytes'] / 2**20:.0f}")
    for run in result["runs"]:
        for process in run["processes"]:
            values = (f"{name.removesuffix('_bytes')} {value / 2**20:.0f}" for name, value in process.items())
            print(f"{run['replicas']} at once: ", "  ".join(values))
    print(write_result("weights", result, chosen.quick))


if __name__ == "__main__":
    main()
