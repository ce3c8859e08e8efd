"""Publishing: whole or not at all, once, by whoever comes first; under races, kills, full disks and closed folders."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from pipeline import storage_local
from pipeline.errors import StorageError
from pipeline.storage import LocalFolder, open_folder

ROOT = Path(__file__).parents[1]
KEY = "data/part-00000.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    prepared = LocalFolder(tmp_path / "out")
    prepared.prepare()
    return prepared


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files(folder: LocalFolder) -> dict[str, bytes]:
    """All files below the folder by key."""
    paths = sorted(path for path in folder.root.rglob("*") if path.is_file())
    return {path.relative_to(folder.root).as_posix(): path.read_bytes() for path in paths}


def start(script: str, *arguments: str | Path, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Another process that runs a script; it sees its arguments in `sys.argv`."""
    command = [*prefix, sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def said(script: str, *arguments: str | Path) -> list[str]:
    """Lines that another process prints."""
    process = start(script, *arguments)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output.splitlines()


# One process


def test_what_is_published_is_stored_and_its_digest_returned(folder: LocalFolder) -> None:
    assert folder.publish(KEY, b"rows") == sha256(b"rows") == folder.sha256(KEY)
    assert folder.read(KEY) == b"rows"
    assert files(folder) == {KEY: b"rows"}


def test_a_second_publish_changes_nothing_and_returns_the_digest_of_the_first(folder: LocalFolder) -> None:
    folder.publish(KEY, b"first")
    before = (folder.root / KEY).stat()
    assert folder.publish(KEY, b"second") == sha256(b"first")
    assert files(folder) == {KEY: b"first"}
    after = (folder.root / KEY).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("data", [b"", memoryview(b"a view"), b"\0" * (1 << 20)])
def test_any_bytes_can_be_published(folder: LocalFolder, data: bytes | memoryview) -> None:
    assert folder.publish("_SUCCESS", data) == sha256(bytes(data))
    assert folder.read("_SUCCESS") == bytes(data)


def test_an_empty_file_counts_as_stored(folder: LocalFolder) -> None:
    folder.publish("_SUCCESS", b"")
    assert folder.read("_SUCCESS") == b""
    assert folder.publish("_SUCCESS", b"late") == sha256(b"")


def test_nothing_stored_reads_as_none(folder: LocalFolder) -> None:
    assert folder.read(KEY) is None


def test_keys_are_sorted_and_relative_to_the_output(folder: LocalFolder) -> None:
    for name in ("part-00010", "part-00002", "part-00001"):
        folder.publish(f"data/{name}.parquet", b"")
    folder.publish("_plan.json", b"{}")
    assert folder.list_keys("data") == ["data/part-00001.parquet", "data/part-00002.parquet", "data/part-00010.parquet"]
    assert folder.list_keys() == ["_plan.json", "_tmp", "data"]
    assert folder.list_keys("none") == []


def test_preparing_twice_keeps_what_is_there(folder: LocalFolder) -> None:
    folder.publish(KEY, b"rows")
    folder.prepare()
    assert files(folder) == {KEY: b"rows"}


def test_a_lease_can_be_replaced_and_removed_and_leaves_nothing_behind(folder: LocalFolder) -> None:
    folder.replace("_tmp/driver-00001.json", b"1")
    folder.replace("_tmp/driver-00001.json", b"2")
    assert files(folder) == {"_tmp/driver-00001.json": b"2"}
    folder.remove("_tmp/driver-00001.json")
    folder.remove("_tmp/driver-00001.json")
    assert files(folder) == {}


def test_a_file_system_is_exclusive_and_need_not_be_asked(folder: LocalFolder) -> None:
    assert folder.probed("_plan.json") is folder
    assert folder.is_exclusive


def test_a_path_is_opened_as_a_folder_from_where_we_are_and_from_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_folder("out/").name == f"{tmp_path}/out"
    assert open_folder("~/out") == LocalFolder(tmp_path / "home" / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_flushed_before_its_link_and_the_folder_after_it(folder: LocalFolder) -> None:
    """Without the first, a power loss could leave an empty file under a final name."""
    calls = []

    def watch(_frame: object, event: str, function: object) -> None:
        if event == "c_call" and function in (os.fsync, os.link, os.unlink):
            calls.append(function)

    sys.setprofile(watch)
    try:
        folder.publish(KEY, b"rows")
    finally:
        sys.setprofile(None)
    assert calls == [os.fsync, os.link, os.fsync, os.unlink]


# Other file systems


class FailingCall:
    """A call that fails the n-th time with an error code."""

    def __init__(self, call: Callable[..., Any], failing: int, code: int) -> None:
        self.call, self.failing, self.code, self.count = call, failing, code, 0

    def __call__(self, *arguments: Any) -> None:
        self.count += 1
        if self.count == self.failing:
            raise OSError(self.code, os.strerror(self.code))
        self.call(*arguments)


def linked_twice(source: Path, target: Path) -> None:
    """NFS, when the answer to the first request was lost: the repeated one finds the name taken, by itself."""
    os.link(source, target)
    os.link(source, target)


def test_a_link_that_nfs_made_and_then_reports_as_existing_is_ours(folder: LocalFolder) -> None:
    nfs = LocalFolder(folder.root, link=linked_twice)
    assert nfs.publish(KEY, b"rows") == sha256(b"rows")
    assert nfs.publish(KEY, b"other") == sha256(b"rows")
    assert files(folder) == {KEY: b"rows"}


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("is_made", [False, True])
def test_a_link_whose_answer_is_an_error_may_have_been_made_and_the_next_to_publish_finds_out(
    folder: LocalFolder, code: int, is_made: bool
) -> None:
    def ill(source: Path, target: Path) -> None:
        if is_made:
            os.link(source, target)
        raise OSError(code, os.strerror(code))

    with pytest.raises(StorageError, match=rf"{KEY}: {os.strerror(code)}\. .*run the same command again") as caught:
        LocalFolder(folder.root, link=ill).publish(KEY, b"rows")
    assert caught.value.exit_code == 4
    assert files(folder) == ({KEY: b"rows"} if is_made else {})
    assert folder.publish(KEY, b"rows") == sha256(b"rows")
    assert files(folder) == {KEY: b"rows"}


class UnclosableFile(io.FileIO):
    """On NFS, what could not be written may only be said when the file is closed."""

    def close(self) -> None:
        was_open = not self.closed
        super().close()
        if was_open:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_file_that_cannot_be_closed_is_not_published(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage_local, "open", UnclosableFile, raising=False)
        with pytest.raises(StorageError, match=f"{KEY}: Input/output error"):
            folder.publish(KEY, b"rows")
    assert files(folder) == {}
    assert folder.publish(KEY, b"rows") == sha256(b"rows")


@pytest.mark.parametrize(("failing", "stored"), [(1, {}), (2, {KEY: b"rows"})])
def test_what_cannot_be_flushed_is_an_error_and_published_only_if_its_bytes_were(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch, failing: int, stored: dict[str, bytes]
) -> None:
    """The first flush is that of the file, the second that of its folder."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailingCall(os.fsync, failing, errno.EIO))
        with pytest.raises(StorageError, match=f"{KEY}: Input/output error"):
            folder.publish(KEY, b"rows")
    assert files(folder) == stored
    assert folder.publish(KEY, b"rows") == sha256(b"rows")


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_refused_with_a_way_out(folder: LocalFolder, code: int) -> None:
    def refuse(_source: Path, _target: Path) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(StorageError, match=r"supports hard links.*or to s3://, gs:// or az://") as caught:
        LocalFolder(folder.root, link=refuse).publish("_plan.json", b"{}")
    assert caught.value.exit_code == 4
    assert files(folder) == {}


# Several at once


def test_of_many_threads_one_wins_and_all_get_its_digest(folder: LocalFolder) -> None:
    contents = [bytes([thread]) * 50_000 for thread in range(16)]
    barrier = Barrier(len(contents))

    def race(data: bytes) -> str:
        barrier.wait()
        return folder.publish(KEY, data)

    with ThreadPoolExecutor(len(contents)) as threads:
        digests = set(threads.map(race, contents))
    stored = files(folder)
    assert stored[KEY] in contents
    assert digests == {sha256(stored[KEY])}
    assert list(stored) == [KEY]


RACER = """
import sys
from pathlib import Path
from pipeline.storage import LocalFolder
folder, letter = LocalFolder(Path(sys.argv[1])), sys.argv[2].encode()
print("ready", flush=True)
for line in sys.stdin:
    print(folder.publish(line.strip(), letter * 100_000), flush=True)
"""


def test_of_many_processes_one_wins_each_key_and_all_get_its_digest(folder: LocalFolder) -> None:
    keys = [f"data/part-{number:05d}.parquet" for number in range(20)]
    racers = [start(RACER, folder.root, letter) for letter in "abcd"]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 4
    with ThreadPoolExecutor(len(racers)) as threads:
        outputs = list(threads.map(lambda racer: racer.communicate("\n".join(keys)), racers))
    stored = files(folder)
    assert list(stored) == keys
    assert set(stored.values()) <= {letter * 100_000 for letter in (b"a", b"b", b"c", b"d")}
    assert outputs == [("".join(f"{sha256(stored[key])}\n" for key in keys), "")] * len(racers)


WRITER = """
import hashlib, itertools, sys
from pathlib import Path
from pipeline.storage import LocalFolder
folder, first = LocalFolder(Path(sys.argv[1])), int(sys.argv[2])
for number in itertools.count(first):
    data = number.to_bytes(8, "big") * 500_000
    digest = folder.publish(f"data/part-{number:05d}.parquet", data + hashlib.sha256(data).digest())
    print(number, digest, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_no_torn_file_and_the_next_goes_on(folder: LocalFolder) -> None:
    promised = {}
    for kill in range(12):
        writer = start(WRITER, folder.root, max(0, len(promised) - 1))
        for _ in range(2 + kill % 3):
            number, digest = writer.stdout.readline().split()
            assert promised.setdefault(number, digest) == digest
        writer.kill()  # in the middle of the next part, wherever that is
        writer.communicate()
    stored = {path.name: path.read_bytes() for path in (folder.root / "data").iterdir()}
    assert {f"part-{int(number):05d}.parquet": digest for number, digest in promised.items()}.items() <= {
        name: sha256(data) for name, data in stored.items()
    }.items()
    assert all(name.startswith("part-") and name.endswith(".parquet") for name in stored)
    assert all(hashlib.sha256(data[:-32]).digest() == data[-32:] for data in stored.values())


# A disk or a folder that refuses

PUBLISH_TOO_MUCH = """
import sys
from pathlib import Path
from pipeline.errors import StorageError
from pipeline.storage import LocalFolder
folder = LocalFolder(Path(sys.argv[1]))
folder.prepare()
folder.publish("data/small.parquet", b"small")
{limit}
try:
    folder.publish("data/large.parquet", bytes(4 << 20))
except StorageError as error:
    print(error)
print(folder.list_keys("data"), folder.list_keys("_tmp"))
print(folder.publish("data/last.parquet", b"last"))
"""


def test_a_full_disk_is_said_with_advice_and_nothing_is_stored(tmp_path: Path) -> None:
    """On a disk of its own, of 1 MiB."""
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this user may not mount a small disk")
    process = start(PUBLISH_TOO_MUCH.format(limit=""), tmp_path, prefix=prefix)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.splitlines() == [
        f"cannot write or read {tmp_path}/data/large.parquet: No space left on device. "
        "Free some space and run the same command again; finished parts are kept.",
        "['data/small.parquet'] []",
        sha256(b"last"),
    ]


def test_a_file_that_grows_too_large_leaves_nothing_behind(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    assert said(PUBLISH_TOO_MUCH.format(limit=limit), tmp_path) == [
        f"cannot write or read {tmp_path}/data/large.parquet: File too large. "
        "Check that the folder exists and is writable, then run the same command again.",
        "['data/small.parquet'] []",
        sha256(b"last"),
    ]


IN_A_CLOSED_FOLDER = """
import os, sys
from pathlib import Path
from pipeline.errors import StorageError
from pipeline.storage import LocalFolder
os.chdir(sys.argv[1])
if os.geteuid() == 0:  # the superuser may write anywhere
    os.setgid(65534)
    os.setuid(65534)
for action in (
    lambda: LocalFolder(Path("closed")).prepare(),
    lambda: LocalFolder(Path("closed")).publish("_plan.json", b"{}"),
    lambda: LocalFolder(Path("half")).publish("data/part-00000.parquet", b"rows"),
    lambda: LocalFolder(Path("hidden")).read("_plan.json"),
):
    try:
        action()
    except StorageError as error:
        print(error)
"""


def test_a_folder_that_may_not_be_written_is_said_with_advice_and_nothing_is_stored(tmp_path: Path) -> None:
    modes = {"closed/_tmp": 0o555, "closed": 0o555, "half/_tmp": 0o777, "half/data": 0o555, "hidden": 0o000}
    for name in modes:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name, mode in modes.items():
        (tmp_path / name).chmod(mode)
    tmp_path.chmod(0o755)
    try:
        advice = "Permission denied. Check that the folder exists and is writable, then run the same command again."
        assert said(IN_A_CLOSED_FOLDER, tmp_path) == [
            f"cannot write or read {path}: {advice}"
            for path in ("closed", "closed/_plan.json", "half/data/part-00000.parquet", "hidden/_plan.json")
        ]
    finally:
        for name in modes:
            (tmp_path / name).chmod(0o755)
    assert files(LocalFolder(tmp_path)) == {}


def test_a_folder_removed_during_the_run_is_a_storage_error(folder: LocalFolder) -> None:
    """Once a FileNotFoundError with a traceback."""
    shutil.rmtree(folder.root)
    with pytest.raises(StorageError, match="No such file or directory"):
        folder.publish(KEY, b"rows")


def test_a_file_in_place_of_the_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(StorageError, match=f"cannot write or read {tmp_path}/out: Not a directory"):
        LocalFolder(tmp_path / "out").prepare()
