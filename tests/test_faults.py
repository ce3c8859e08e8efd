"""Kills at every named step of publishing, and disks that refuse: no torn file, no false end, the same bytes after."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import faults
from pipeline.errors import StorageError
from pipeline.storage import LocalFolder
from tests.flows import make_job, part_bytes, run_echo, write_prompts

ROOT = Path(__file__).parents[1]
PROMPTS = ["The quiet fox", "Every bee", None, "I skip across the", "Today", "Every bee", "x" * 2000]
FILES = [
    "_tmp/driver-00001.json",
    "_plan.json",
    "_vocab.parquet",
    *(f"data/part-0000{index}.parquet" for index in range(3)),
    "README.md",
    "_manifest.json",
    "_SUCCESS",
]

SHARED = """
import json, os, signal, subprocess, sys
from pathlib import Path
from pipeline.errors import StorageError
from tests.flows import make_job, part_bytes, run_echo
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
run_echo(make_job(source, folder / "undisturbed"))
expected = part_bytes(folder / "undisturbed")

def looks_finished(out):
    if not (out / "_SUCCESS").exists():
        return False
    manifest = json.loads((out / "_manifest.json").read_text())
    assert len(manifest["parts"]) == len(expected) and part_bytes(out) == expected
    assert {"_plan.json", "_vocab.parquet", "README.md"} <= set(os.listdir(out))
    return True
"""

KILLED_AT_EVERY_STEP = """
for number, fault in enumerate(json.loads(sys.argv[3])):
    out = folder / str(number)
    child = os.fork()  # a process for each kill, without loading the libraries again
    if child == 0:
        os.environ["BATCHGEN_FAULT"] = fault
        run_echo(make_job(source, out))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (fault, status)
    parts = part_bytes(out) if (out / "data").exists() else {}
    assert parts.items() <= expected.items(), fault
    was_finished, leftovers = looks_finished(out), sorted(os.listdir(out / "_tmp"))
    run_echo(make_job(source, out))
    assert looks_finished(out) and part_bytes(out) == expected, fault
    print(json.dumps([fault, sorted(parts), was_finished, leftovers]))
"""


def start(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> list[str]:
    """Lines that a script prints in a process of its own."""
    command = [*prefix, sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.parquet", PROMPTS)


def test_a_run_killed_at_any_step_of_publishing_any_file_is_finished_by_the_next_with_the_same_bytes(
    source: Path, tmp_path: Path
) -> None:
    kills = [(key, step) for key in FILES for step in faults.STEPS]
    lines = start(SHARED + KILLED_AT_EVERY_STEP, source, tmp_path, json.dumps([f"{k}:{s}:1" for k, s in kills]))
    for (key, step), line in zip(kills, lines, strict=True):
        fault, parts, was_finished, leftovers = json.loads(line)
        is_linked = step in ("linked", "published")
        assert fault == f"{key}:{step}:1"
        reached = FILES[: FILES.index(key) + is_linked]
        assert parts == [Path(name).name for name in reached if name.startswith("data/")]
        assert was_finished is ("_SUCCESS" in reached)
        left = [name for name in leftovers if name.startswith(f"{Path(key).name}.")]
        assert len(left) == (step in ("written", "synced", "linked"))
        assert len(leftovers) == len(left) + (FILES[0] in reached)


def test_a_fault_waits_for_its_turn_and_its_file(source: Path, tmp_path: Path) -> None:
    lines = start(SHARED + KILLED_AT_EVERY_STEP, source, tmp_path, json.dumps(["data/*:linked:2", "*:before:6"]))
    assert [json.loads(line)[1] for line in lines] == [
        ["part-00000.parquet", "part-00001.parquet"],
        ["part-00000.parquet", "part-00001.parquet"],
    ]


# Disks that refuse, in whole runs

ON_SMALL_DISKS = """
disk = folder / "disk"
disk.mkdir()
for kib in range(8, 400, 12):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", disk], check=True)
    try:
        run_echo(make_job(source, disk / "out"))
        said = "finished"
    except StorageError as error:
        said = str(error).replace(str(disk), "DISK")
    assert looks_finished(disk / "out") is (said == "finished")
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    run_echo(make_job(source, disk / "out"))
    assert looks_finished(disk / "out")
    subprocess.run(["umount", disk], check=True)
    print(said)
"""

ON_A_READ_ONLY_DISK = """
from tests.test_job import StoppedError, stop_after
from pipeline import job
from tests.flows import echo
try:
    job.run(make_job(source, folder / "half"), stop_after(1), engine_maker=echo)
except StoppedError:
    pass
(folder / "new").mkdir()
for name in ("new", "half", "undisturbed"):
    out = folder / name
    subprocess.run(["mount", "--bind", out, out], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", out], check=True)
    before = sorted(out.rglob("*"))
    try:
        print("finished before:", run_echo(make_job(source, out)).was_finished)
    except StorageError as error:
        print(error.exit_code, str(error).replace(str(out), "OUT"))
    assert sorted(out.rglob("*")) == before and looks_finished(out) is (name == "undisturbed")
    subprocess.run(["umount", out], check=True)
    run_echo(make_job(source, out))
    assert looks_finished(out)
"""

WITHOUT_PERMISSION = """
os.chdir(folder)
if os.geteuid() == 0:  # the superuser may write anywhere
    os.setgid(65534)
    os.setuid(65534)
try:
    run_echo(make_job(source, folder / "closed" / "out"))
except StorageError as error:
    print(error.exit_code, error)
"""


@pytest.fixture
def mounting() -> tuple[str, ...]:
    """What a command begins with to mount disks of its own."""
    prefix = ("unshare", "--user", "--map-root-user", "--mount")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("this user may not mount disks")
    return prefix


def test_a_disk_that_fills_up_at_any_point_of_a_run_stops_it_and_with_more_room_it_is_finished(
    source: Path, tmp_path: Path, mounting: tuple[str, ...]
) -> None:
    lines = start(SHARED + ON_SMALL_DISKS, source, tmp_path, prefix=mounting)
    assert "finished" in lines
    refused = [line for line in lines if line != "finished"]
    assert all("No space left on device. Free some space and run the same command again" in line for line in refused)
    places = {line.partition(":")[0].removeprefix("cannot write or read DISK/out/") for line in refused}
    assert len(places) >= 4, places  # in the middle of several files
    assert any(place.startswith("data/part-") for place in places)


def test_a_read_only_output_is_said_and_left_as_it_is_and_a_finished_one_is_still_finished(
    source: Path, tmp_path: Path, mounting: tuple[str, ...]
) -> None:
    advice = "Read-only file system. Check that the folder exists and is writable, then run the same command again."
    assert start(SHARED + ON_A_READ_ONLY_DISK, source, tmp_path, prefix=mounting) == [
        f"4 cannot write or read OUT: {advice}",
        f"4 cannot write or read OUT/_tmp/driver-00001.json: {advice}",
        "finished before: True",
    ]


@pytest.mark.parametrize("answer", ["exists", "made, error", "error"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_whatever_nfs_answers_to_the_link_of_any_file_the_run_or_the_next_one_is_as_undisturbed(
    source: Path, tmp_path: Path, answer: str, code: int
) -> None:
    run_echo(make_job(source, tmp_path / "undisturbed"))
    for number in range(len(FILES)):
        out, answers = tmp_path / str(number), iter([""] * number + [answer])

        def link(temporary: Path, final: Path, answers: Iterator[str] = answers) -> None:
            answered = next(answers, "")
            if answered != "error":
                os.link(temporary, final)
            if answered:
                answered_code = errno.EEXIST if answered == "exists" else code
                raise OSError(answered_code, os.strerror(answered_code))

        with contextlib.nullcontext() if answer == "exists" else pytest.raises(StorageError, match=os.strerror(code)):
            run_echo(make_job(source, out), open_output=lambda path, link=link: LocalFolder(Path(path), link))
        is_there = FILES[: number + (answer != "error")]
        assert (out / "_SUCCESS").exists() is (answer == "exists" or FILES[-1] in is_there)
        run_echo(make_job(source, out))
        assert part_bytes(out) == part_bytes(tmp_path / "undisturbed")
        assert (out / "_SUCCESS").exists()


def test_an_output_without_permission_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    with_access = Path(tempfile.mkdtemp())  # pytest's folders are closed to others
    (with_access / "closed").mkdir()
    try:
        source = write_prompts(with_access / "prompts.parquet", PROMPTS)
        for folder, mode in ((with_access, 0o777), (with_access / "closed", 0o555)):
            folder.chmod(mode)
        assert start(SHARED + WITHOUT_PERMISSION, source, with_access) == [
            f"4 cannot write or read {with_access}/closed/out: Permission denied. "
            "Check that the folder exists and is writable, then run the same command again."
        ]
        assert list((with_access / "closed").iterdir()) == []
    finally:
        shutil.rmtree(with_access)
