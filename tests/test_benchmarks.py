"""The benchmarks still run: each command on a tiny model, in this process, its numbers thrown away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.models import TINY, checkpoint
from benchmarks.pairs import Timing, in_turn, ratio
from benchmarks.peers import linears
from benchmarks.peers.serving import Work, batches
from benchmarks.teams import Layout, Peer, layouts, session_cpu_s, team
from benchmarks.workloads import Workload, ragged, uniform
from pipeline.tokenizer import Tokenizer
from tests.commands import ROOT

COMMANDS = (
    "limit",
    "uniform",
    "ragged",
    "recording",
    "shared_prefill",
    "beams",
    "pipeline",
    "growth",
    "flow",
    "replicas",
    "memory",
    "engine_memory",
    "weights",
    "gpu",
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for Ray's workers, which look in the folder of their driver


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_and_leaves_a_result_with_its_conditions(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import_module(f"benchmarks.{name}").main(["--quick"])
    path = Path(capsys.readouterr().out.splitlines()[-1])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.parent == Path("out/benchmarks/quick")
    assert result["machine"]["cores"] == len(os.sched_getaffinity(0))


def test_processes_of_a_team_share_the_work_and_count_its_tokens(tmp_path: Path) -> None:
    workload = Workload(((1, 2), (3,), (4, 5, 6)), (2, 3, 4))
    with team(Peer("fake", "tests.fake_peer", {}), workload, tmp_path, "float32", Layout(2, 1, 8)) as started:
        assert started.num_tokens == 9
        assert started().wall_s > 0


def test_a_peer_that_generates_less_is_refused(tmp_path: Path) -> None:
    peer = Peer("fake", "tests.fake_peer", {}, completions=2)
    with (
        team(peer, Workload(((1,),), (2,)), tmp_path, "float32", Layout(1, 1, 8)) as started,
        pytest.raises(RuntimeError, match="2 new tokens where 4 were asked for"),
    ):
        started()


def test_layouts_are_one_process_or_one_per_core_with_batches_that_are_filled() -> None:
    assert layouts(2, 128, (32, 64, 128)) == [
        Layout(1, 2, 32),
        Layout(1, 2, 64),
        Layout(1, 2, 128),
        Layout(2, 1, 32),
        Layout(2, 1, 64),
    ]


def test_shares_of_a_workload_hold_every_row_once_and_about_the_same_work() -> None:
    workload = ragged(101, 300)
    left, right = workload.share(0, 2), workload.share(1, 2)
    assert sorted(left.prompts + right.prompts) == sorted(workload.prompts)
    assert sorted(left.limits + right.limits) == sorted(workload.limits)
    assert abs(left.num_tokens - right.num_tokens) < 0.1 * workload.num_tokens


def test_ragged_work_has_the_lengths_of_user_traffic_and_ends_by_chance() -> None:
    workload = ragged(4000, 300)
    lengths, limits = sorted(map(len, workload.prompts)), workload.limits
    assert 26 <= lengths[2000] <= 30
    assert (lengths[0], lengths[-1]) == (1, 256)
    assert max(limits) == 128
    assert sum(limits) / len(limits) == pytest.approx((1 - 0.984**128) / 0.016, rel=0.05)


def test_the_limit_pays_for_every_token_once_at_full_batch() -> None:
    work = _work(uniform(6, 300, 3, 50), batch=4)
    assert linears.products(work) == [(512, 0)] * 3 + [(264, 0), (0, 4), (0, 2), (4, 4), (4, 4), (4, 4)]


def test_static_batches_hold_prompts_of_like_length() -> None:
    work = _work(Workload(((1,), (1, 1, 1), (1, 1)), (1, 1, 1)), batch=2)
    assert batches(work) == [[1, 2], [0]]


def test_the_order_of_timings_turns_round_from_round_to_round() -> None:
    done: list[str] = []

    def run(name: str, wall_s: float) -> Timing:
        done.append(name)
        return Timing(wall_s, 2 * wall_s)

    rounds = in_turn({"slow": lambda: run("slow", 3.0), "fast": lambda: run("fast", 2.0)}, 2)
    assert done == ["slow", "fast", "fast", "slow"]
    assert ratio(rounds, "slow", "fast") == {"median": 1.5, "min": 1.5, "max": 1.5, "cpu": 1.5}


WORKING = """
import time
while time.process_time() < 0.1: pass
print("done", flush=True)
input()
"""


def test_cpu_seconds_of_a_session_are_those_of_its_processes() -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WORKING]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        assert session_cpu_s(process.pid) == pytest.approx(0.1, abs=0.05)
        process.communicate("\n")


def test_a_made_up_checkpoint_is_read_by_the_pipeline_and_its_tokenizer_is_whole(tmp_path: Path) -> None:
    tokenizer = Tokenizer(checkpoint(TINY, tmp_path), TINY.vocab_size)
    (ids,) = tokenizer.encode(["the quiet street"])
    assert tokenizer.decode(ids) == "the quiet street"
    assert len(ids) < len("the quiet street")
    assert all(tokenizer.token_bytes[:-1])


def _work(workload: Workload, batch: int) -> Work:
    return Work(
        checkpoint="",
        dtype="float32",
        cores=[0],
        batch=batch,
        device="cpu",
        prompts=[list(prompt) for prompt in workload.prompts],
        limits=list(workload.limits),
        options={},
    )
