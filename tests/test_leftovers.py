"""`batchgen gc`: leftovers of dead attempts listed and deleted; never anything else, never beside a live driver."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline import cli, job
from pipeline.lease import Lease, this_driver
from pipeline.shard import Part, Shard
from pipeline.storage import LocalFolder
from tests.flows import echo, make_job, run_echo, write_prompts

DEAD = Lease(3, replace(this_driver(), started=0))
UNFINISHED = [f"_tmp/part-00001.parquet.{'a' * 32}", f"_tmp/_manifest.json.{'0' * 32}"]
NOT_OURS = ["_tmp/notes.txt", "_tmp/part-00001.parquet", "data/part-00009.parquet.tmp"]


@pytest.fixture
def work(tmp_path: Path) -> job.Job:
    return make_job(write_prompts(tmp_path / "prompts.parquet", ["Every bee", "Today"]), tmp_path / "out")


@pytest.fixture
def out(tmp_path: Path, work: job.Job) -> Path:
    """The output of a finished run with leftovers, and with files that only look like some."""
    run_echo(work)
    for key in [*UNFINISHED, *NOT_OURS, DEAD.key]:
        path = tmp_path / "out" / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(DEAD.document if key == DEAD.key else b"")
    return tmp_path / "out"


def gc(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["gc", *map(str, arguments)])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_leftovers_are_listed_and_kept(out: Path) -> None:
    before = files(out)
    said = gc(out)
    assert said.exit_code == 0
    assert said.stdout.splitlines() == [*sorted(UNFINISHED), DEAD.key]
    assert said.stderr == "3 leftovers to delete with --yes\n"
    assert files(out) == before


def test_with_yes_the_leftovers_go_and_nothing_else(out: Path) -> None:
    before = files(out)
    said = gc(out, "--yes")
    assert said.exit_code == 0
    assert said.stdout.splitlines() == [*sorted(UNFINISHED), DEAD.key]
    assert said.stderr.endswith("3 leftovers deleted\n")
    assert files(out) == before - {*UNFINISHED, DEAD.key}
    assert gc(out, "--yes").stderr == "no leftovers\n"


def test_a_run_collects_no_unfinished_writes(out: Path, work: job.Job) -> None:
    (out / "_SUCCESS").unlink()
    (out / NOT_OURS[-1]).unlink()
    run_echo(work)
    assert set(UNFINISHED) <= files(out)


@pytest.mark.parametrize("yes", [[], ["--yes"]])
def test_nothing_is_collected_beside_a_live_driver(work: job.Job, tmp_path: Path, yes: list[str]) -> None:
    out = tmp_path / "out"

    def meanwhile(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        (out / UNFINISHED[0]).touch()
        before = files(out)
        said = gc(out, *yes)
        assert (said.exit_code, said.stdout) == (4, "")
        assert f"is being worked on by process {os.getpid()} on" in said.stderr
        assert files(out) == before
        yield from job.here(open_worker, shards)

    job.run(work, meanwhile, engine_maker=echo)
    assert files(out) >= {UNFINISHED[0], "_SUCCESS"}


@pytest.mark.parametrize("yes", [[], ["--yes"]])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, yes: list[str]) -> None:
    LocalFolder(tmp_path / "mine").prepare()
    (tmp_path / "mine" / UNFINISHED[0]).touch()
    said = gc(tmp_path / "mine", *yes)
    assert said.exit_code == 2
    assert f"{tmp_path}/mine holds no `_plan.json`. Give the output folder of a run." in said.stderr
    assert files(tmp_path / "mine") == {UNFINISHED[0]}
