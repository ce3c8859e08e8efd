"""Ray: replicas that hold a worker each, in one process and on one GPU or CPU. It knows no decoding.

`RayPool` is the `Pool` of `dispatch`: it turns calls of actors and what Ray says of them into events. Ray restarts and
retries nothing by itself; what a death means is decided by the ledger.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import access
from pipeline.config import RunConfig
from pipeline.dispatch import Begun, Died, Dispatcher, Event, Finished, Started
from pipeline.errors import BatchgenError, ClusterError, ConfigError
from pipeline.job import OpenWorker
from pipeline.ledger import LEASES_PER_REPLICA, Ledger, Work
from pipeline.lifeline import Lifeline, ask, check_listening, check_owner
from pipeline.placement import Need, Node, check_room, check_shared, room
from pipeline.records import RowError
from pipeline.shard import Part, Shard, Worker

access.prepare(os.environ, Path.home())  # Ray reads it when it is imported

import ray  # noqa: E402
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError  # noqa: E402

from pipeline.cluster_metrics import DriverMetrics, ReplicaMetrics  # noqa: E402

log = logging.getLogger("batchgen.cluster")

KILLED = RowError("killed_replica", "generating for this row killed or crashed its replica, each time it was tried")
NO_MEMORY = RowError("out_of_memory", "generating for this row needed more memory than there was, each time")

IDLE_GPU = (
    "REPLICAS HOLD GPUS THAT THEY CANNOT USE, and compute on one CPU core each: torch finds no CUDA. Look at "
    "`nvidia-smi` and `python -c 'import torch; print(torch.version.cuda)'` on the nodes, or set "
    "run.gpus_per_replica: 0."
)


class Replica:
    """The actor: one worker in one process. With a GPU, Ray calls it from two threads, so that one shard is read and
    tokenised or written while another is decoded; the engine has a thread for itself."""

    def __init__(self, open_worker: Callable[[], Worker], has_gpu: bool) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # as many as it has CPUs; Ray sees to it only where it is not set
        if not has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it alone where no GPU was asked for
        self.has_gpu, self.metrics = has_gpu, ReplicaMetrics()
        self.turns = ThreadPoolExecutor(1, "engine")
        self.opening = self.turns.submit(self._open, open_worker)  # what goes wrong answers a call and is no death

    def _open(self, open_worker: Callable[[], Worker]) -> Worker:
        worker = replace(open_worker(), turns=self.turns)
        gc.freeze()  # modules, tokenizer and model stay: no need to walk through them in search of garbage
        return worker

    def ready(self) -> None:
        """Answers once the process runs."""

    def begin(self) -> tuple[int, bool]:
        """Answers when the replica comes to work: only then may that be what it dies of.

        Returns:
            Most steps of an input row; whether a GPU was given in vain.
        """
        return self.opening.result().steps_per_row, self.has_gpu and _cuda_is_unusable()

    def do(self, work: Work) -> Part | None:
        """Do it."""
        worker = self.opening.result()
        if work.is_trial:
            worker.attempt(work.shard, work.poisoned)
            return None
        part = worker(work.shard, work.poisoned)
        self.metrics.part(part)
        return part


class Call(NamedTuple):
    """One that is not answered yet: whose, for which work, and what the answer means."""

    replica: int
    work: Work | None
    event: Callable[[Any], Event]


@dataclass(slots=True)
class RayPool:
    """Replicas as actors.

    Attributes:
        start_actor: starts one.
        room: replicas to have.
        check_ray: raises ClusterError if it was Ray that died, and all replicas with it.
        actors: by the number of the replica.
        calls: in the order in which they were made.
        shown: errors of the engine whose traceback is in the log.
        is_idle_shown: whether it is in the log that GPUs are of no use.
    """

    start_actor: Callable[[], Any]
    room: Callable[[], int]
    check_ray: Callable[[], None]
    actors: dict[int, Any] = field(default_factory=dict)
    calls: dict[Any, Call] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)
    shown: set[RowError] = field(default_factory=set)
    is_idle_shown: bool = False

    def start(self) -> int:
        """Begin to start a replica."""
        replica = next(self.numbers)
        self.actors[replica] = self.start_actor()
        self.calls[self.actors[replica].ready.remote()] = Call(replica, None, lambda _: Started(replica))
        return replica

    def give(self, replica: int, work: Work) -> None:
        """Two calls; where a replica is at two works, their answers come in any order."""
        actor = self.actors[replica]
        self.calls[actor.begin.remote()] = Call(replica, None, partial(self._begun, replica, work))
        self.calls[actor.do.remote(work)] = Call(replica, work, partial(Finished, replica, work))

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Answers in the order of the calls, so that what a replica did counts before what became of it."""
        if not self.calls:
            time.sleep(timeout_s)
            return
        ray.wait(list(self.calls), num_returns=1, timeout=timeout_s)
        answered = set(ray.wait(list(self.calls), num_returns=len(self.calls), timeout=0)[0])
        for reference in [reference for reference in self.calls if reference in answered]:
            if reference in self.calls:  # and not dropped with its replica meanwhile
                yield self._event(reference)

    def kill(self, replica: int) -> None:
        """End the process and forget its calls."""
        ray.kill(self.actors.pop(replica))
        self.calls = {reference: call for reference, call in self.calls.items() if call.replica != replica}

    def _begun(self, replica: int, work: Work, answer: tuple[int, bool]) -> Begun:
        steps_per_row, gpu_is_idle = answer
        if gpu_is_idle and not self.is_idle_shown:
            self.is_idle_shown = True
            log.warning(IDLE_GPU)
        return Begun(replica, work, steps_per_row)

    def _event(self, reference: Any) -> Event:
        replica, work, event = self.calls.pop(reference)
        try:
            return event(ray.get(reference))
        except RayTaskError as error:
            if isinstance(error.cause, BatchgenError):
                raise error.cause from error
            died = Died(replica, cause_of(error), _words(error), work)
            self._show(died.cause, error)
        except RayError as error:  # a death, whatever Ray calls it
            check_owner(str(error))
            self.check_ray()
            died = Died(replica, cause_of(error), _words(error))
        self.kill(replica)  # after an error of the engine the process is not trusted; after a death it may still linger
        return died

    def _show(self, cause: RowError, error: RayTaskError) -> None:
        """Once for each error: a row that meets it does so many times until it is found."""
        if cause not in self.shown:
            self.shown.add(cause)
            log.warning("the engine failed: %s", error)


def _cuda_is_unusable() -> bool:
    """Whether this process has loaded torch and torch finds no CUDA; an engine without torch needs none."""
    torch = sys.modules.get("torch")
    return torch is not None and not torch.cuda.is_available()


def cause_of(error: RayError) -> RowError:
    """What a row is said to have died of. The same for the same cause: Ray's words name processes and machines."""
    if isinstance(error, OutOfMemoryError):
        return NO_MEMORY
    if not isinstance(error, RayTaskError):
        return KILLED
    cause = error.cause
    if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":  # torch's, which is not known here
        return NO_MEMORY
    first_line = re.sub(r"\b0x[0-9a-f]+", "0x…", str(cause)).strip().partition("\n")[0]
    return RowError("engine_error", f"the engine failed on this row: {type(cause).__name__}: {first_line}")


def _words(error: RayError) -> str:
    """One line of what Ray says: the exception, or how the process ended."""
    text = f"{type(error.cause).__name__}: {error.cause}" if isinstance(error, RayTaskError) else str(error)
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()] or [""]
    line = lines[0] if isinstance(error, RayTaskError | OutOfMemoryError) else lines[-1]
    return line.partition(" Some common causes include")[0]


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Does shards on Ray: on the cluster of RAY_ADDRESS where that is set, else on one started here for the run."""

    config: RunConfig

    def __call__(self, open_worker: OpenWorker, shards: Sequence[Shard]) -> Generator[Part, None, dict[str, float]]:
        """Yield parts as they are published. SIGTERM makes the run end in good order.

        Returns:
            State -> seconds that replicas were in it, all together.

        Raises:
            ConfigError: the cluster cannot hold the replicas, or its machines do not share the output folder.
            ClusterError: Ray cannot be reached or died, or replicas die again and again.
            StoppedError: after SIGTERM.
        """
        with _connected(), _sigterm() as is_stopping:
            need = self._need()
            nodes = _nodes()
            check_output = partial(self._check_output, open_worker.setup.folder.name, need)
            check_output(nodes)
            if not self.config.autoscaling:
                check_room(self.config.replica_limits[0], need, nodes)
            wanted = self._num_replicas(need, nodes)
            log.info("replicas=%d gpus_per_replica=%g", min(wanted, len(shards)), need.gpus)
            start = partial(_actor_class(need).remote, ray.put(open_worker), need.gpus > 0)
            check_ray = _lifeline().check

            def places() -> int:
                check_ray()
                nodes = ask(_nodes)
                check_output(nodes)
                return self._num_replicas(need, nodes)

            pool = RayPool(start, places, check_ray)
            metrics = DriverMetrics()
            dispatcher = Dispatcher(Ledger(shards), pool, self.config.grace_s, is_stopping, listener=metrics)
            try:
                for part in dispatcher.run():
                    metrics.part(part)
                    yield part
            finally:
                dispatcher.close()
                log.info("replica seconds: %s", " ".join(f"{state}={s:.1f}" for state, s in metrics.replica_s.items()))
            return metrics.replica_s

    def _need(self) -> Need:
        gpus = self.config.gpus_per_replica
        if gpus == "auto":
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
            if gpus == 0 and self.config.autoscaling:
                raise ConfigError(
                    "run.gpus_per_replica is auto, but no node with a GPU is there to go by, and with run.autoscaling "
                    "one may come.",
                    "Set run.gpus_per_replica: 1 for nodes with GPUs, 0 for nodes without.",
                )
        return Need(gpus, self.config.accelerator_type, self.config.label_selector)

    def _check_output(self, output: str, need: Need, nodes: Sequence[Node]) -> None:
        """Refuse a local output folder that replicas may not share; nodes may come at any time."""
        if self.config.shared_output or "://" in output:
            return
        check_shared(output, _driver_address(), need, nodes, self.config.autoscaling)

    def _num_replicas(self, need: Need, nodes: Sequence[Node]) -> int:
        """How many replicas to have now; those that wait are what nodes come for."""
        fewest, most = self.config.replica_limits
        if most is not None and self.config.autoscaling:
            return most
        found = room(need, nodes)
        return max(fewest, found if most is None else min(found, most))


def _actor_class(need: Need) -> Any:
    """`Replica` placed where `need` says, on the node with the fewest of them."""
    return ray.remote(Replica).options(
        num_cpus=1,
        num_gpus=need.gpus,
        max_concurrency=LEASES_PER_REPLICA if need.gpus else 1,  # a CPU core only loses by it
        accelerator_type=need.accelerator_type,
        label_selector=dict(need.label_selector) or None,
        scheduling_strategy="SPREAD",
        max_restarts=0,
        max_task_retries=0,
    )


def _nodes() -> list[Node]:
    return [
        Node(node["NodeManagerAddress"], node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]
    ]


def _lifeline() -> Lifeline:
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:  # the driver hangs on a proxy, and Ray's client raises when that is gone
        return Lifeline(address, address)
    own = _own_node()
    return Lifeline(f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}", ray.get_runtime_context().gcs_address)


def _own_node() -> dict[str, Any]:
    """The node that the driver is on."""
    here = ray.get_runtime_context().get_node_id()
    return next(node for node in ray.nodes() if node["NodeID"] == here)


def _driver_address() -> str:
    """Of the driver's machine, which is no node's where it hangs on a proxy."""
    address = os.environ.get("RAY_ADDRESS", "")
    return address if "://" in address else str(_own_node()["NodeManagerAddress"])


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Take SIGTERM as a request to stop; gives a function that says whether it came."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone may receive signals
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Ray for the length of a run; a cluster that was there before is left running."""
    access.check_version(ray.__version__)
    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)  # Ray puts its own in place
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _connect(address)
    else:
        _start()
    for complaint in access.complaints(os.environ, Path.home()):
        log.warning("%s", complaint)
    try:
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _start() -> None:
    """Start a Ray of this machine alone."""
    access.ensure_token(os.environ, Path.home())
    try:
        ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (RuntimeError, ValueError, OSError, RayError) as error:
        raise ClusterError(
            f"Ray could not be started on this machine: {error}.",
            "Free memory and disk here, or set RAY_ADDRESS to a cluster.",
        ) from error


def _connect(address: str) -> None:
    """Connect to the cluster of RAY_ADDRESS."""
    try:
        check_listening(address)
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster is at RAY_ADDRESS={address}: {error}.",
            "Start it, or unset RAY_ADDRESS to use this machine.",
        ) from error
    access.check_asked(os.environ, address)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except (RuntimeError, ValueError, OSError, RayError) as error:
        raise ClusterError(
            f"the Ray cluster at RAY_ADDRESS={address} cannot be used: {error}.",
            access.refused(os.environ, address),
        ) from error
