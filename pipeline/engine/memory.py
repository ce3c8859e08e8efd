"""What an engine will need beside the weights, and whether the device has it: asked before anything runs.

Nothing grows with the number of prompts: the cache has a limit, a step holds a few times its logits, and prompts go
through the model a limited number of tokens at a time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.engine.model import GPT2, PREFILL_TOKENS
from pipeline.errors import ModelError

# float32: as the model gives them, as processed, and in between; a GPU holds the noise too, and a graph has its own.
COPIES_OF_LOGITS = {"cpu": 3, "cuda": 2 * 14}
COPIES_OF_STATES = 24  # of a prefilled token, in widths: the stream, queries, keys, values, and the MLP, with room

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Let this process hold on to memory that it will want again: before the first tensor is made.

    What glibc, where that is what allocates, would give back after each shard it would take again page by page: 16,000
    faults in a shard of 128 prompts, 2 to 4 % of its time, for 6,000. And torch takes large tensors in huge pages: into
    others the head writes the logits of 128 rows in 16 ms instead of 9, since it waits for addresses.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def needed_bytes(model: GPT2, max_slots: int, cache_bytes: int) -> int:
    """Most bytes that the cache, a step and a prefill take together."""
    cache = min(cache_bytes, max_slots * model.num_positions * model.kv_bytes_per_token)
    device = torch.device(model.device).type
    step = max_slots * model.vocab_size * 4 * COPIES_OF_LOGITS[device]
    tokens = max(PREFILL_TOKENS[device], model.num_positions)
    return cache + step + tokens * model.num_heads * model.head_size * 4 * COPIES_OF_STATES


def check_room(
    model: GPT2, max_slots: int, cache_bytes: int, free_bytes: Callable[[str], int | None] | None = None
) -> None:
    """Refuse to start what the device cannot hold.

    Args:
        free_bytes: of a device; None where nobody knows.

    Raises:
        ModelError: more is needed than is free.
    """
    needed, free = needed_bytes(model, max_slots, cache_bytes), (free_bytes or free_on)(model.device)
    if free is not None and needed > free:
        raise ModelError(
            f"a replica needs about {_gib(needed)} on {model.device} beside its weights, but {_gib(free)} are free: "
            f"`run.cache_gib` is {cache_bytes / 2**30:.4g} and `run.batch_rows` is {max_slots}.",
            "Lower either, or run fewer replicas.",
        )


def free_on(device: str) -> int | None:
    """Bytes that a process can still have: of a GPU by CUDA, of a machine by Linux, and by its container."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_available(), _left_in_container()]
    return min((each for each in found if each is not None), default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_container(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"
