"""Ray's memory monitor under a run: the row for which a node has too little memory is found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline import job
from pipeline.cluster import RayExecutor
from pipeline.records import Request, Response
from pipeline.shard import Setup
from pipeline.tokenizer import Tokenizer
from tests.flows import EchoEngine, make_job, part_bytes, read_output, run_echo, write_prompts
from tests.local_ray import local_ray

GIB = 1 << 30


def memory() -> dict[str, int]:
    """Fields of /proc/meminfo, in bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, *_ in lines}


@pytest.fixture
def tight_ray() -> Iterator[None]:
    """Ray that ends a process once the machine uses 5 GiB more than now, of which Ray and other tests take some."""
    now = memory()
    if now["MemAvailable"] < 8 * GIB:
        pytest.skip("needs 8 GiB of free memory")
    limit = (now["MemTotal"] - now["MemAvailable"] + 5 * GIB) / now["MemTotal"]
    with local_ray(num_cpus=1, memory_usage_threshold=limit, memory_monitor_refresh_ms=50):
        yield


class HungryEngine(EchoEngine):
    """Takes all memory but a GiB for one prompt."""

    def __init__(self, prompt: tuple[int, ...]) -> None:
        self.prompt = prompt

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        if any(request.prompt_token_ids == self.prompt for request in requests):
            eaten = []
            while memory()["MemAvailable"] > GIB:
                eaten.append(b"x" * (32 << 20))  # written to, so that it is taken
        return super().generate(requests)


def hungry(_setup: Setup, tokenizer: Tokenizer) -> HungryEngine:
    return HungryEngine(tuple(tokenizer.encode(["Today"])[0]))


def test_a_row_for_which_there_is_too_little_memory_is_found_and_the_others_are_kept(
    tight_ray: None, tmp_path: Path
) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["Every bee", "Today", "The quiet fox"])
    work = make_job(source, tmp_path / "out", run={"shard_rows": 2})
    job.run(work, RayExecutor(work.run), engine_maker=hungry)
    run_echo(make_job(source, tmp_path / "undisturbed", run={"shard_rows": 2}))
    rows, others = (read_output(tmp_path / name).to_pylist() for name in ("out", "undisturbed"))
    assert [row["error_type"] for row in rows] == [None] * 3 + ["out_of_memory"] * 3 + [None] * 3
    assert rows[:3] + rows[6:] == others[:3] + others[6:]
    assert (
        part_bytes(tmp_path / "out")["part-00001.parquet"] == part_bytes(tmp_path / "undisturbed")["part-00001.parquet"]
    )
