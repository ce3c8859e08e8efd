"""A cluster that changes under a run: nodes lost, added, and both. Real raylets on this machine, with logical GPUs.

Replicas block on a pipe until the test lets them do another shard, and say on a second one that they have started.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.cluster_utils import Cluster

from pipeline import dispatch, job
from pipeline.cluster import RayExecutor
from pipeline.errors import ConfigError
from pipeline.records import Request, Response
from pipeline.shard import Setup
from pipeline.storage import LocalFolder
from pipeline.tokenizer import Tokenizer
from tests.flows import EchoEngine, echo, make_job, part_bytes, run_echo, write_prompts

NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80 << 20}
MACHINES = ("127.0.0.1", "127.0.0.2")
PROMPTS = ["The quiet fox", "Every bee", "I skip across the", "Today"] * 10


class TurnstileEngine(EchoEngine):
    """Takes a ticket, one byte of a pipe, for every shard."""

    def __init__(self, tickets: Path) -> None:
        self.tickets = os.open(tickets, os.O_RDONLY)

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        os.read(self.tickets, 1)
        return super().generate(requests)


def turnstile(folder: Path, _setup: Setup, _tokenizer: Tokenizer) -> TurnstileEngine:
    place = [ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")]
    (folder / f"{os.getpid()}.place").write_text(json.dumps(place))
    with (folder / "arrivals").open("wb", buffering=0) as arrivals:
        arrivals.write(b"x")
    return TurnstileEngine(folder / "tickets")


@dataclass
class Door:
    """The test's ends of both pipes."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("arrivals", "tickets"):
            os.mkfifo(self.folder / name)
        self.arrivals, self.tickets = (os.open(self.folder / name, os.O_RDWR) for name in ("arrivals", "tickets"))

    def await_arrivals(self, count: int) -> None:
        for _ in range(count):
            os.read(self.arrivals, 1)

    def admit(self, count: int) -> None:
        os.write(self.tickets, b"x" * count)

    def close(self) -> None:
        """Nobody will arrive any more; who waits need not."""
        os.write(self.arrivals, b"x" * 100)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One node, the head, on which this process is the driver. A test removes the nodes that it adds."""
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=NODE | {"include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray does not wait for the processes that it ends
        del cluster
        gc.collect()


def run_while(tmp_path: Path, change: Callable[[Door], None], **run: object) -> None:
    """Do a job of 20 shards in a thread, for only this one can add nodes; the bytes must be those of a quiet run."""
    source = write_prompts(tmp_path / "prompts.parquet", PROMPTS)
    works = [make_job(source, tmp_path / name, run={"shard_rows": 2, **run}) for name in ("quiet", "out")]
    run_echo(works[0])
    door = Door(tmp_path)
    with ThreadPoolExecutor(1) as thread:
        execute, engine_maker = RayExecutor(works[1].run), partial(turnstile, tmp_path)
        running = thread.submit(job.run, works[1], execute, engine_maker=engine_maker)
        running.add_done_callback(lambda _: door.close())
        try:
            change(door)
        finally:
            door.admit(1000)  # whatever happened, the run must end
        running.result()
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "quiet")


def places(tmp_path: Path) -> list[list[str]]:
    """Where replicas started: the node, and the GPUs that each sees there."""
    return sorted(json.loads(path.read_text()) for path in tmp_path.glob("*.place"))


@pytest.mark.parametrize("graceful", [False, True])
def test_a_node_lost_in_the_middle_of_a_run_costs_nothing(cluster: Cluster, tmp_path: Path, graceful: bool) -> None:
    node = cluster.add_node(**NODE)

    def change(door: Door) -> None:
        door.await_arrivals(2)
        door.admit(5)
        cluster.remove_node(node, allow_graceful=graceful)

    run_while(tmp_path, change)


def test_one_three_and_one_replica_again(cluster: Cluster, tmp_path: Path) -> None:
    def change(door: Door) -> None:
        door.await_arrivals(1)
        door.admit(3)
        nodes: list[Any] = [cluster.add_node(**NODE) for _ in range(2)]
        door.await_arrivals(2)
        door.admit(6)
        for node in nodes:
            cluster.remove_node(node)

    run_while(tmp_path, change, replicas={"min": 1, "max": 3})


def test_each_gpu_of_each_node_has_one_replica_or_each_of_the_kind_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.add_node(**NODE | {"num_gpus": 2}, resources={"accelerator_type:L4": 1})
    there = [[node.node_id, "0"], [node.node_id, "1"]]
    for kind, expected in ((None, [[cluster.head_node.node_id, "0"], *there]), ("L4", there)):
        folder = tmp_path / str(kind)
        folder.mkdir()
        run_while(folder, partial(Door.await_arrivals, count=len(expected)), accelerator_type=kind)
        assert places(folder) == sorted(expected)
    cluster.remove_node(node)


def test_two_replicas_share_a_gpu_at_the_same_time(cluster: Cluster, tmp_path: Path) -> None:
    run_while(tmp_path, lambda door: door.await_arrivals(2), gpus_per_replica=0.5)
    assert places(tmp_path) == [[cluster.head_node.node_id, "0"]] * 2


def test_replicas_spread_over_the_nodes_that_have_their_labels(cluster: Cluster, tmp_path: Path) -> None:
    nodes = [cluster.add_node(**NODE, labels={"ray.io/market-type": "spot"}) for _ in range(2)]
    only_spot = {"label_selector": {"ray.io/market-type": "spot"}}
    run_while(tmp_path, lambda door: door.await_arrivals(2), replicas=2, gpus_per_replica=0, **only_spot)
    assert places(tmp_path) == sorted([node.node_id, ""] for node in nodes)  # and see no GPU
    for node in nodes:
        cluster.remove_node(node)


def asked_for(cluster: Cluster) -> list[dict[str, float]]:
    """The resources of all that finds no node, as Ray tells an autoscaler."""
    state = get_cluster_resource_state(GcsClient(cluster.gcs_address))
    return [dict(pending.request.resources_bundle) for pending in state.pending_resource_requests]


def test_with_autoscaling_replicas_wait_for_a_node_that_can_hold_them(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "PATIENCE_S", 0.0)  # not half a minute until the word about it
    said: SimpleQueue[logging.LogRecord] = SimpleQueue()
    monkeypatch.setattr(dispatch.log, "handlers", [QueueHandler(said)])
    nodes: list[Any] = []

    def change(door: Door) -> None:
        try:
            words = (said.get(timeout=60).getMessage() for _ in range(60))  # one in a second
            asked = next(
                found for word in words if "still waiting for a replica" in word and (found := asked_for(cluster))
            )
            assert asked == [{"CPU": 1, "GPU": 1}]
            assert (places(tmp_path), part_bytes(tmp_path / "out")) == ([], {})
        finally:
            nodes.append(cluster.add_node(**NODE, labels={"zone": "late"}))  # else the run would never end
        door.await_arrivals(1)

    late = {"label_selector": {"zone": "late"}}
    run_while(tmp_path, change, autoscaling=True, shared_output=True, replicas=1, gpus_per_replica=1, **late)
    assert places(tmp_path) == [[nodes[0].node_id, "0"]]
    cluster.remove_node(nodes[0])


class UnsharedFolder(LocalFolder):
    """A folder of which each machine has its own."""

    def read(self, key: str) -> bytes | None:
        return super().read(key) if ray.util.get_node_ip_address() == MACHINES[0] else None


def test_a_local_output_on_two_machines_must_be_said_to_be_shared_and_be_so(cluster: Cluster, tmp_path: Path) -> None:
    """Linux answers on any address that begins with 127, so a second one is a second machine to Ray."""
    node = cluster.add_node(**NODE, node_ip_address=MACHINES[1], labels={"zone": "other"})
    source = write_prompts(tmp_path / "prompts.parquet", PROMPTS)
    there: dict[str, Any] = {"replicas": 1, "gpus_per_replica": 0, "label_selector": {"zone": "other"}}
    try:
        work = make_job(source, tmp_path / "out", run=there)
        with pytest.raises(ConfigError, match=rf"elsewhere too: {MACHINES[1]}\. .*run\.shared_output: true"):
            job.run(work, RayExecutor(work.run), engine_maker=echo)
        shared = make_job(source, tmp_path / "out", run=there | {"shared_output": True})
        with pytest.raises(ConfigError) as refused:
            job.run(
                shared, RayExecutor(shared.run), engine_maker=echo, open_output=lambda path: UnsharedFolder(Path(path))
            )
        assert str(refused.value) == (
            f"a replica on {socket.gethostname()} finds no {tmp_path / 'out'}/_plan.json, which the driver wrote: that "
            "machine has another folder of this name. Use a folder that all machines share, or a URL such as "
            "s3://bucket/out."
        )
        assert job.run(shared, RayExecutor(shared.run), engine_maker=echo).manifest["totals"]["rows"] == 3 * len(
            PROMPTS
        )
        here = make_job(source, tmp_path / "here", run=there | {"label_selector": {"zone": "!other"}})
        job.run(here, RayExecutor(here.run), engine_maker=echo)
    finally:
        cluster.remove_node(node)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "here")
