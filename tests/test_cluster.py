"""Real Ray on this machine: same bytes for any number of replicas, dead replicas replaced, errors told apart."""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError

from pipeline import health, job, shard
from pipeline.cluster import IDLE_GPU, KILLED, NO_MEMORY, RayExecutor, RayPool, Replica, cause_of
from pipeline.config import Job, RunConfig
from pipeline.dataset import Dataset, Slice
from pipeline.dispatch import Dispatcher
from pipeline.errors import ClusterError, ConfigError, ModelError, StoppedError, StorageError
from pipeline.ledger import Ledger
from pipeline.plan import make_plan
from pipeline.records import Request, Response, RowError
from pipeline.shard import Generates, Part, Setup, Shard, Worker, make_engine, open_worker
from pipeline.storage import LocalFolder
from pipeline.tokenizer import Tokenizer
from tests.flows import EchoEngine, echo, make_job, part_bytes, read_output, run_echo, write_prompts
from tests.local_ray import local_ray

PROMPTS = ["The quiet fox", "Every bee", "", "I skip across the", "Today", "Count: one, two,", "In the stable"] * 3


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One local Ray for the module, with more logical CPUs than cores, two logical GPUs, and too many threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "3")  # which the processes of replicas inherit
        with local_ray(num_cpus=4, num_gpus=2):
            yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.parquet", PROMPTS)


NEWER: list[dict[str, Any]] = [
    {"name": "contrast", "type": "contrastive_search", "max_new_tokens": 6, "penalty_alpha": 0.6, "top_k": 3},
    {"name": "dola", "type": "dola", "max_new_tokens": 6, "dola_layers": "low"},
    {"name": "guided", "type": "greedy", "max_new_tokens": 6, "guidance_scale": 1.5, "negative_prompt": " the"},
    {"name": "typical", "type": "sampling", "max_new_tokens": 6, "typical_p": 0.9, "eta_cutoff": 0.001},
    *(
        {"name": name, "type": "beam_search", "max_new_tokens": 6, "num_beams": 4, "num_return_sequences": 2, **values}
        for name, values in {
            "drawn": {"do_sample": True, "top_k": 20},
            "diverse": {"num_beam_groups": 2, "diversity_penalty": 1.0},
            "forced": {"force_words": ["fox"]},
        }.items()
    ),
]


def on_ray(work: Job, **run: object) -> RayExecutor:
    return RayExecutor(work.run.model_copy(update={"gpus_per_replica": 0.0, **run}))


def noting_threads(notes: Path, setup: Setup, tokenizer: Tokenizer) -> Generates:
    """The real engine, once the process has written down how many threads it takes."""
    engine = make_engine(setup, tokenizer)
    (notes / f"{os.getpid()}").write_text(f"OMP {os.environ['OMP_NUM_THREADS']}, torch {torch.get_num_threads()}")
    return engine


def test_one_replica_three_replicas_and_no_ray_give_the_same_bytes_with_one_thread_for_each_cpu(
    source: Path, tmp_path: Path
) -> None:
    strategies = [
        {"name": "greedy", "type": "greedy", "max_new_tokens": 12, "repetition_penalty": 1.3},
        {"name": "samples", "type": "sampling", "max_new_tokens": 12, "top_p": 0.9, "num_return_sequences": 2},
        {"name": "pure", "type": "sampling", "max_new_tokens": 12, "temperature": 1.2},
        {"name": "beams", "type": "beam_search", "max_new_tokens": 12, "num_beams": 3, "num_return_sequences": 2},
        {"name": "next", "type": "next_token"},
        *NEWER,
    ]
    jobs = {name: make_job(source, tmp_path / name, strategies=strategies) for name in ("here", "one", "three")}
    job.run(jobs["here"], job.here)
    job.run(jobs["one"], on_ray(jobs["one"], replicas=1))
    (tmp_path / "notes").mkdir()
    job.run(jobs["three"], on_ray(jobs["three"], replicas=3), engine_maker=partial(noting_threads, tmp_path / "notes"))
    expected = part_bytes(tmp_path / "here")
    assert len(expected) == 7
    assert part_bytes(tmp_path / "one") == expected
    assert part_bytes(tmp_path / "three") == expected
    assert {path.read_text() for path in (tmp_path / "notes").iterdir()} == {"OMP 1, torch 1"}


def test_shards_of_any_size_give_the_same_tokens(source: Path, tmp_path: Path) -> None:
    tables = []
    for rows in (2, 21):
        work = make_job(source, tmp_path / f"{rows}", strategies=NEWER, run={"shard_rows": rows})
        job.run(work, job.here)
        tables.append(read_output(tmp_path / f"{rows}").select(["row_id", "strategy", "token_ids", "finish_reason"]))
    assert tables[0].equals(tables[1])
    assert tables[0].num_rows == 10 * len(PROMPTS)


class WaitingEngine(EchoEngine):
    """Answers for a shard only when the next one has been read, as long as there is one. It watches what reads, in a
    process of its own."""

    def __init__(self, num_shards: int) -> None:
        self.num_shards, self.num_answered = num_shards, 0
        self.first_rows, self.news = set[int](), threading.Condition()
        read = shard.read

        def watched(dataset: Dataset, lo: int, hi: int) -> Slice:
            with self.news:
                self.first_rows.add(lo)
                self.news.notify()
            return read(dataset, lo, hi)

        shard.read = watched

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        self.num_answered += 1
        needed = min(self.num_answered + 1, self.num_shards)
        with self.news:
            assert self.news.wait_for(lambda: len(self.first_rows) >= needed, 60), "the next shard is not read"
        return super().generate(requests)


def waiting(num_shards: int, _setup: Setup, _tokenizer: Tokenizer) -> WaitingEngine:
    return WaitingEngine(num_shards)


def test_a_replica_with_a_gpu_reads_the_next_shard_while_it_decodes_one(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    finished = job.run(work, on_ray(work, replicas=1, gpus_per_replica=1.0), engine_maker=partial(waiting, 7))
    assert finished.manifest["totals"]["errors"] == 0


class DyingEngine(EchoEngine):
    """Kills its process when it meets the prompt, unless the marker file says it did so often enough."""

    def __init__(self, prompt: tuple[int, ...], marker: Path, deaths: int) -> None:
        self.prompt, self.marker, self.deaths = prompt, marker, deaths

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        if any(request.prompt_token_ids == self.prompt for request in requests):
            with self.marker.open("a") as file:
                file.write("x")
            if self.marker.stat().st_size <= self.deaths:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(requests)


def dying(marker: Path, deaths: int, _setup: Setup, tokenizer: Tokenizer) -> DyingEngine:
    return DyingEngine(tuple(tokenizer.encode(["Today"])[0]), marker, deaths)


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_a_replica_killed_mid_shard_is_replaced_and_the_bytes_are_the_same(
    source: Path, tmp_path: Path, gpus: float
) -> None:
    run_echo(make_job(source, tmp_path / "undisturbed"))
    work = make_job(source, tmp_path / "out")
    executor = on_ray(work, replicas=2, gpus_per_replica=gpus)
    job.run(work, executor, engine_maker=partial(dying, tmp_path / "marker", 2))
    assert (tmp_path / "marker").stat().st_size > 2
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")


class DoomedEngine(EchoEngine):
    """Kills its process whatever it is to do, as long as the fault is there."""

    def __init__(self, fault: Path) -> None:
        self.fault = fault

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        if self.fault.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(requests)


def doomed(fault: Path, _setup: Setup, _tokenizer: Tokenizer) -> DoomedEngine:
    return DoomedEngine(fault)


def test_where_every_replica_dies_the_run_stops_with_the_causes_and_goes_on_when_the_fault_is_gone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "MOST_DEATHS", 6)  # not 20, with minutes of pauses
    monkeypatch.setattr(health, "LONGEST_DELAY_S", 0.0)
    fault, out = tmp_path / "fault", tmp_path / "out"
    fault.touch()
    work = make_job(source, out)
    with pytest.raises(ClusterError) as caught:
        job.run(work, on_ray(work, replicas=2), engine_maker=partial(doomed, fault))
    assert caught.value.exit_code == 4
    assert re.match(
        r"replicas died 6 times in a row \(6 killed_replica\) and nothing was done in between, last on input rows? .*"
        r"Finished parts are kept\. Look at the memory and the logs of the nodes, then run the same command again\.$",
        str(caught.value),
    )
    assert sorted(path.name for path in out.iterdir()) == ["_plan.json", "_tmp", "_vocab.parquet", "data"]
    assert part_bytes(out) == {}
    fault.unlink()
    job.run(work, on_ray(work, replicas=2), engine_maker=partial(doomed, fault))
    run_echo(make_job(source, tmp_path / "undisturbed"))
    assert part_bytes(out) == part_bytes(tmp_path / "undisturbed")


class FragileEngine(EchoEngine):
    """Dies on one prompt and fails on another."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.killer, self.bug = (tuple(ids) for ids in tokenizer.encode(["kill me", "confuse me"]))

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        prompts = {request.prompt_token_ids for request in requests}
        if self.killer in prompts:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.bug in prompts:
            raise RuntimeError("shapes (3, 4) and (5,) do not agree")
        return super().generate(requests)


def fragile(_setup: Setup, tokenizer: Tokenizer) -> FragileEngine:
    return FragileEngine(tokenizer)


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_rows_that_kill_or_break_the_engine_become_error_rows_and_everything_else_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gpus: float
) -> None:
    prompts = ["The quiet fox", "Every bee", "Today", "kill me", "confuse me"]
    source = write_prompts(tmp_path / "prompts.parquet", prompts)
    work = make_job(source, tmp_path / "out", run={"shard_rows": 2})
    finished = job.run(work, on_ray(work, replicas=2, gpus_per_replica=gpus), engine_maker=fragile)
    engine_error = "the engine failed on this row: RuntimeError: shapes (3, 4) and (5,) do not agree"
    errors = {3: KILLED, 4: RowError("engine_error", engine_error)}
    rows = read_output(tmp_path / "out").to_pylist()
    assert [row["prompt"] for row in rows] == [prompt for prompt in prompts for _ in range(3)]
    assert {
        row["row_index"]: RowError(row["error_type"], row["error_message"]) for row in rows if row["status"] == "error"
    } == errors
    assert finished.manifest["totals"]["errors"] == 2 * 3
    assert caplog.text.count('raise RuntimeError("shapes (3, 4)') == 1  # the traceback, once

    plan = make_plan(work)  # the bytes do not tell how the rows were found
    told = LocalFolder(tmp_path / "told")
    told.prepare()
    for each in plan.shards:
        open_worker(plan.setup(told), echo)(each, errors)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "told")


class HangingEngine(EchoEngine):
    """Waits for ever, for a pipe that nobody writes to, when it meets the prompt."""

    def __init__(self, prompt: tuple[int, ...], pipe: Path) -> None:
        self.prompt, self.pipe = prompt, pipe

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        if any(request.prompt_token_ids == self.prompt for request in requests):
            self.pipe.read_bytes()
        return super().generate(requests)


def hanging(pipe: Path, _setup: Setup, tokenizer: Tokenizer) -> HangingEngine:
    return HangingEngine(tuple(tokenizer.encode(["I skip across the"])[0]), pipe)


class Leaps:
    """A clock that leaps a day ahead when the driver hears that one more replica is to generate for a row."""

    def __init__(self, ledger: Ledger, row: int) -> None:
        self.ledger, self.row, self.replicas = ledger, row, set[int]()

    def __call__(self) -> float:
        works = {replica: self.ledger.current(replica) for replica in self.ledger.leases}
        self.replicas |= {replica for replica, work in works.items() if work and work.rows == [self.row]}
        return time.monotonic() + 86400 * len(self.replicas)


def with_leaps(row: int, make_worker: Callable[[], Worker], shards: Sequence[Shard]) -> Iterator[Part]:
    """An executor with one replica."""
    start = partial(ray.remote(Replica).options(num_cpus=1).remote, make_worker, False)
    ledger = Ledger(shards)
    clock = Leaps(ledger, row)
    dispatcher = Dispatcher(ledger, RayPool(start, lambda: 1, lambda: None), grace_s=0, clock=clock)
    try:
        yield from dispatcher.run()
    finally:
        dispatcher.close()
        assert len(clock.replicas) == 3


def test_a_replica_that_hangs_is_ended_and_the_row_is_said_to_have_hung(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:5])
    work = make_job(source, tmp_path / "out", run={"shard_rows": 1})
    os.mkfifo(tmp_path / "pipe")
    job.run(work, partial(with_leaps, 3), engine_maker=partial(hanging, tmp_path / "pipe"))
    rows = read_output(tmp_path / "out").to_pylist()
    assert [row["error_type"] for row in rows] == [None] * 9 + ["hung"] * 3 + [None] * 3


def test_what_ray_says_of_a_death_decides_the_error_type() -> None:
    assert cause_of(OutOfMemoryError("1 worker(s) were killed due to the node running low on memory")) == NO_MEMORY
    assert cause_of(ActorDiedError()) == cause_of(NodeDiedError("its node died")) == KILLED
    assert cause_of(RayTaskError("do", "", torch.OutOfMemoryError("tried to allocate 2.00 GiB"))) == NO_MEMORY
    assert cause_of(RayTaskError("do", "", MemoryError())) == NO_MEMORY
    assert cause_of(RayTaskError("do", "", ValueError("bad <Row at 0x7f00beef>\nmore"))) == RowError(
        "engine_error", "the engine failed on this row: ValueError: bad <Row at 0x…>"
    )


def test_sigterm_lets_the_shards_under_way_finish_and_the_job_goes_on_later(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    before = signal.getsignal(signal.SIGTERM)
    stop = Listener(lambda _part: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError, match=r"kept\. Run the same command again to resume"):
        job.run(work, on_ray(work, replicas=1), stop, engine_maker=echo)
    assert signal.getsignal(signal.SIGTERM) is before
    assert 1 <= len(part_bytes(tmp_path / "out")) < 7
    job.run(work, on_ray(work, replicas=1), engine_maker=echo)
    run_echo(make_job(source, tmp_path / "undisturbed"))
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")


def test_when_a_dead_replica_cannot_be_replaced_the_others_do_its_shards(source: Path, tmp_path: Path) -> None:
    """Once its shards waited for ever for a replacement that had no place, while an idle replica held on to its own."""
    work = make_job(source, tmp_path / "out")
    blocker = ray.remote(EchoEngine).options(num_cpus=2).remote()  # leaves room for two replicas
    ray.get(blocker.__ray_ready__.remote())
    late: list[Any] = []

    def steal_the_place(_part: Part) -> None:
        if not late:  # asks for a CPU before the replica that is about to die can be replaced
            late.append(ray.remote(EchoEngine).options(num_cpus=1).remote())

    job.run(
        work,
        on_ray(work, replicas=2),
        Listener(steal_the_place),
        engine_maker=partial(dying, tmp_path / "marker", 1),
    )
    assert read_output(tmp_path / "out").num_rows == len(PROMPTS) * 3


class Listener:
    """Progress that calls a function for each part."""

    def __init__(self, call: Callable[[Part], None]) -> None:
        self.part = call

    def start(self, num_rows: int, num_shards: int, done: object) -> None:
        pass


def no_model(_setup: Setup, _tokenizer: Tokenizer) -> EchoEngine:
    raise ModelError("checkpoint x does not fit.", "Save it again.")


def test_a_model_that_does_not_load_on_the_replica_is_that_error_at_once(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    with pytest.raises(ModelError, match="checkpoint x does not fit"):
        job.run(work, on_ray(work, replicas=2), engine_maker=no_model)


def no_disk(_setup: Setup, _tokenizer: Tokenizer) -> EchoEngine:
    raise StorageError("cannot write or read data/part-00000.parquet: No space left on device.", "Free some.")


def test_a_full_disk_on_the_replica_is_a_storage_error(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    with pytest.raises(StorageError, match="No space left"):
        job.run(work, on_ray(work, replicas=2), engine_maker=no_disk)


def which_gpu(marker: Path, _setup: Setup, _tokenizer: Tokenizer) -> EchoEngine:
    """An engine that has torch, as a real one would."""
    importlib.import_module("torch")
    (marker / f"{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    meet(marker.parent / "meeting")
    return EchoEngine()


def meet(pipe: Path) -> None:
    """Wait for another process that comes here too: a named pipe opens when both of its ends do."""
    try:
        pipe.with_suffix(".first").touch(exist_ok=False)
        end = os.O_RDONLY
    except FileExistsError:
        end = os.O_WRONLY
    os.close(os.open(pipe, end))


def test_each_replica_is_pinned_to_a_gpu_of_its_own_and_one_that_cannot_use_it_says_so(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "marker"
    marker.mkdir()
    os.mkfifo(tmp_path / "meeting")  # else one replica may do all before the other has started
    work = make_job(source, tmp_path / "out")
    job.run(work, RayExecutor(work.run), engine_maker=partial(which_gpu, marker))
    assert sorted(path.read_text() for path in marker.iterdir()) == ["0", "1"]
    assert caplog.text.count(IDLE_GPU) == 1  # the GPUs are logical ones


def test_more_replicas_than_the_cluster_can_hold_are_refused_and_not_waited_for(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"asks for 3 replicas of 1 CPU and 1 GPUs each.*room for 2"):
        job.run(work, RayExecutor(RunConfig(replicas=3)), engine_maker=echo)
    with pytest.raises(ConfigError, match="room for 4"):
        job.run(work, RayExecutor(RunConfig(replicas=5, gpus_per_replica=0)), engine_maker=echo)
    with pytest.raises(ConfigError, match=r"1 CPU and 1 L4 GPUs each.*room for 0 .*4 CPUs and 2 GPUs: no L4"):
        job.run(work, RayExecutor(RunConfig(accelerator_type="L4")), engine_maker=echo)
    at_least_five = RunConfig(replicas={"min": 5, "max": 9}, gpus_per_replica=0)
    with pytest.raises(ConfigError, match=r"asks for 5 replicas .*room for 4"):
        job.run(work, RayExecutor(at_least_five), engine_maker=echo)
    fractions = make_job(source, tmp_path / "fractions")
    job.run(fractions, RayExecutor(RunConfig(replicas=4, gpus_per_replica=0.5)), engine_maker=echo)
    assert read_output(tmp_path / "fractions").num_rows == len(PROMPTS) * 3


@pytest.mark.parametrize(("limits", "started"), [({"min": 1, "max": 9}, 2), ({"max": 1}, 1)])
def test_a_range_of_replicas_takes_the_room_that_there_is(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, limits: dict[str, int], started: int
) -> None:
    caplog.set_level(logging.INFO)
    work = make_job(source, tmp_path / "out", run={"shard_rows": 1, "replicas": limits})
    job.run(work, RayExecutor(work.run), engine_maker=echo)
    assert f"replicas={started} gpus_per_replica=1" in caplog.text
    assert read_output(tmp_path / "out").num_rows == len(PROMPTS) * 3


def test_with_ray_address_the_command_uses_that_cluster_and_leaves_it_running(source: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        f"model: demo\ninput: {{path: {source}, id_column: id}}\noutput: {{path: {tmp_path / 'out'}}}\n"
        "strategies: [{name: greedy, type: greedy, max_new_tokens: 3}]\nrun: {replicas: 1, gpus_per_replica: 0.5}\n"
    )
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "jobs.generate", str(tmp_path / "job.yaml")]
    done = subprocess.run(
        command,
        env=os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "replicas=1 gpus_per_replica=0.5" in done.stderr  # only this cluster has logical GPUs
    assert read_output(tmp_path / "out").num_rows == len(PROMPTS)
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
