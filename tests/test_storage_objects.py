"""Object stores, S3, Google's and Azure's: lost answers, conflicts and lies.

On good days S3 is moto's server; all others are fake ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from click.testing import CliRunner
from moto.server import ThreadedMotoServer

from pipeline import cli, job
from pipeline.errors import ConfigError, InUseError, StorageError
from pipeline.object_store import Patience
from pipeline.replay import replay
from pipeline.retry import carry_out, look
from pipeline.shard import Part, Shard
from pipeline.storage import ObjectFolder, open_folder
from pipeline.verify import verify
from tests.fake_store import DIALECTS, FakeStore, every, fake_store, no_fault, puts
from tests.flows import echo, make_job, part_bytes, run_echo, write_prompts
from tests.test_retry import ill_on

KEY = "data/part-00000.parquet"
QUICK = Patience(timeout_s=0.3, retries=2, attempts=3, pause_s=0.001)
BRISK = Patience(timeout_s=10, retries=2, attempts=3, pause_s=0.001)
PROMPTS = ["The quiet fox", "Every bee", None, "", "I skip across the", "Today", "Every bee", "x" * 2000]


@pytest.fixture(params=DIALECTS)
def scheme(request: pytest.FixtureRequest) -> str:
    """Each kind of store in turn, unless a test says which."""
    return str(request.param)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ObjectFolder]:
    """The folder of a fake server, which is the endpoint from then on."""

    def folder(server: FakeStore, patience: Patience = BRISK) -> ObjectFolder:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return ObjectFolder.at(f"{server.url}/out", patience)

    return folder


@pytest.fixture(scope="module")
def moto_endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(
    scheme: str, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A new bucket, as a URL."""
    with fake_store(scheme) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        if scheme != "s3":
            yield server.url
            return
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    url = f"s3://b{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
    put(url)
    yield url


def put(url: str) -> None:
    """A bucket, or an empty object whatever its key, past the library."""
    scheme, _, path = url.partition("://")
    endpoint = os.environ[DIALECTS[scheme].endpoint]
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{path}", data=b"", method="PUT")):
        pass


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.parquet", PROMPTS)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# A server on a good day


def test_what_is_published_is_stored_once_and_its_digest_returned(bucket: str) -> None:
    folder = ObjectFolder.at(f"{bucket}/out")
    assert folder.read(KEY) is None
    assert folder.publish(KEY, memoryview(b"first")) == sha256(b"first")
    assert folder.publish(KEY, b"second") == sha256(b"first") == folder.sha256(KEY)
    assert folder.read(KEY) == b"first"
    assert folder.publish("_SUCCESS", b"") == sha256(b"")
    assert folder.read("_SUCCESS") == b""


def test_keys_are_sorted_and_relative_to_the_output_without_markers_of_folders(bucket: str) -> None:
    folder = ObjectFolder.at(f"{bucket}/deep/out/")
    for key in ("data/part-00010.parquet", "data/part-00002.parquet", "_plan.json", "_tmp/driver-00001.json"):
        folder.publish(key, b"")
    ObjectFolder.at(bucket).publish("deep/out-of-it", b"")
    for marker in ("deep/out/", "deep/out/data/"):
        put(f"{bucket}/{marker}")
    assert folder.list_keys() == ["_plan.json", "_tmp", "data"]
    assert folder.list_keys("data") == ["data/part-00002.parquet", "data/part-00010.parquet"]
    assert folder.list_keys("none") == []


def test_leases_can_be_replaced_and_removed(bucket: str) -> None:
    folder = ObjectFolder.at(bucket)
    folder.replace("_tmp/x", b"1")
    folder.replace("_tmp/x", b"2")
    assert folder.read("_tmp/x") == b"2"
    folder.remove("_tmp/x")
    folder.remove("_tmp/x")
    assert folder.read("_tmp/x") is None


def test_a_pickled_folder_works_and_holds_no_credentials(bucket: str) -> None:
    folder = ObjectFolder.at(bucket)
    folder.publish(KEY, b"rows")
    pickled = pickle.dumps(folder)
    assert b"hidden-secret" not in pickled
    assert b"http" not in pickled
    assert pickle.loads(pickled).read(KEY) == b"rows"


def test_a_bucket_that_does_not_exist_is_said(scheme: str, bucket: str) -> None:
    absent = f"{scheme}://no-such-bucket/out"
    with pytest.raises(StorageError, match=rf"{absent}/_plan\.json.*Make the bucket, or choose another"):
        ObjectFolder.at(absent, BRISK).publish("_plan.json", b"{}")


def test_of_many_threads_one_wins_and_all_get_its_digest(scheme: str, connect: Callable[..., ObjectFolder]) -> None:
    contents = [bytes([thread]) * 50_000 for thread in range(12)]
    barrier = Barrier(len(contents))
    with fake_store(scheme) as server, ThreadPoolExecutor(len(contents)) as threads:
        folder = connect(server)

        def race(data: bytes) -> str:
            barrier.wait()
            return folder.publish(KEY, data)

        digests = set(threads.map(race, contents))
        assert server.objects[f"out/{KEY}"] in contents
        assert digests == {sha256(server.objects[f"out/{KEY}"])}


# Bad days

LOST = ["500", "429", "cut", "done, 500", "done, cut", "409", "done, silence", "late"]


@pytest.mark.parametrize("fault", LOST)
def test_a_file_is_stored_whatever_happens_to_the_first_request(
    scheme: str, fault: str, connect: Callable[..., ObjectFolder]
) -> None:
    with fake_store(scheme, puts(fault)) as server:
        folder = connect(server, QUICK)
        assert folder.publish(KEY, b"rows") == sha256(b"rows")
        assert server.objects == {f"out/{KEY}": b"rows"}


@pytest.mark.parametrize("fault", LOST)
def test_whoever_came_first_is_found_whatever_happens_to_the_first_request(
    scheme: str, fault: str, connect: Callable[..., ObjectFolder]
) -> None:
    with fake_store(scheme, puts(fault)) as server:
        folder = connect(server, QUICK)
        server.objects[f"out/{KEY}"] = b"first"
        assert folder.publish(KEY, b"second") == sha256(b"first")
        assert server.objects == {f"out/{KEY}": b"first"}


@pytest.mark.parametrize("faults", [("409", "409"), ("late", "409"), ("500", "done, 500", "cut")])
def test_several_faults_in_a_row_are_survived(
    scheme: str, faults: Sequence[str], connect: Callable[..., ObjectFolder]
) -> None:
    with fake_store(scheme, puts(*faults)) as server:
        assert connect(server, QUICK).publish(KEY, b"rows") == sha256(b"rows")
        assert server.objects == {f"out/{KEY}": b"rows"}


@pytest.mark.parametrize(
    ("fault", "puts_sent", "message"),
    [
        ("403", 1, r"403 Forbidden.*that may get, put, list and delete objects"),
        ("409", 3, r"409 Conflict.*run the same command again"),
        ("501", 9, r"501 Not Implemented.*run the same command again"),
        ("500", 9, r"500 Internal Server Error.*finished parts are kept"),
        ("cut", 9, r"error sending request.*Check the endpoint and the network"),
    ],
)
def test_a_store_that_keeps_failing_is_one_clear_error_and_nothing_is_stored(
    scheme: str, fault: str, puts_sent: int, message: str, connect: Callable[..., ObjectFolder]
) -> None:
    with fake_store(scheme, every("PUT", fault)) as server:
        folder = connect(server)
        with pytest.raises(StorageError, match=rf"(?s){scheme}://bkt/out/{KEY}: .*{message}") as caught:
            folder.publish(KEY, b"rows")
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
        assert server.objects == {}
        assert len(server.put_keys()) == puts_sent


@pytest.mark.parametrize("use", [lambda f: f.read(KEY), lambda f: f.list_keys(), lambda f: f.sha256(KEY)])
@pytest.mark.parametrize("fault", ["403", "500"])
def test_a_store_that_cannot_be_read_is_a_storage_error(
    scheme: str, fault: str, use: Callable[[ObjectFolder], object], connect: Callable[..., ObjectFolder]
) -> None:
    with fake_store(scheme, every("GET", fault)) as server:
        folder = connect(server)
        with pytest.raises(StorageError, match=f"cannot write or read {scheme}://bkt/out/.*{fault}"):
            use(folder)


def test_credentials_in_an_endpoint_are_not_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_store("s3") as server:
        environment = server.environment
    host = environment["AWS_ENDPOINT_URL"].removeprefix("http://")
    for name, value in (environment | {"AWS_ENDPOINT_URL": f"http://key:hidden@{host}"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=rf"http://…{host}/bkt") as caught:
        ObjectFolder.at("s3://bkt/out", QUICK).list_keys()
    assert "hidden" not in str(caught.value)


def test_a_server_that_is_not_there_is_a_storage_error(scheme: str, connect: Callable[..., ObjectFolder]) -> None:
    with fake_store(scheme) as server:
        folder = connect(server)
    with pytest.raises(StorageError, match="Check the endpoint and the network"):
        folder.publish(KEY, b"rows")


def test_a_key_that_is_missing_has_no_digest(scheme: str, connect: Callable[..., ObjectFolder]) -> None:
    with fake_store(scheme) as server, pytest.raises(StorageError, match=rf"{scheme}://bkt/out/{KEY} is missing"):
        connect(server).sha256(KEY)


# URLs and endpoints


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hdfs://host/out", "or begin with s3:// or gs:// or az://, but is 'hdfs://host/out'"),
        ("file:///out", "must be a folder, or begin with"),
        ("s3a://key:secret@bkt/out", "but is 's3a://…bkt/out'"),
        ("https://bkt.host/out?sig=secret", "but is 'https://bkt.host/out…'"),
        ("s3://", "must be s3://bucket/path with plain names"),
        ("s3:///out", "must be s3://bucket/path with plain names"),
        ("s3://bkt/a//b", "plain names"),
        ("s3://bkt/a/../b", "plain names"),
        ("s3://key:secret@bkt/out", "holds credentials, a port"),
        ("s3://bkt:9000/out", "holds credentials, a port"),
        ("s3://bkt/out?region=eu", r"`\?`"),
        ("s3://bkt/part#1", "`#`"),
        ("az://container/out", r"az://container/out cannot be opened: .*Account must be specified.*AZURE_\*"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_folder(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bkt", "s3://bkt/", "s3://bkt/a/b/", "gs://bkt/out"])
def test_a_url_is_opened_and_written_without_a_closing_slash(url: str) -> None:
    assert open_folder(url).name == url.rstrip("/")


def test_an_azure_container_is_opened_with_the_account_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    assert open_folder("az://container/out").name == "az://container/out"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
@pytest.mark.parametrize(
    "endpoint", ["localhost:9000", "nonsense", "http://", "http://host:port", "ftp://host", "http://a b", "http://[::1"]
)
def test_an_endpoint_that_is_no_url_is_refused_by_name(
    variable: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library aborts on some of them, past every `except Exception`."""
    monkeypatch.setenv(variable, endpoint)
    with pytest.raises(ConfigError, match=rf"{variable} in the environment must be as https://host:port"):
        open_folder("s3://bkt/out")


# Whole runs


def undisturbed(source: Path, tmp_path: Path) -> dict[str, bytes]:
    run_echo(make_job(source, tmp_path / "undisturbed"))
    return part_bytes(tmp_path / "undisturbed")


def run_there(source: Path, url: str, execute: job.Executor = job.here, patience: Patience = BRISK) -> job.Run:
    work = make_job(source, Path("unused"), output={"path": url, "top_k": 3})
    return job.run(work, execute, engine_maker=echo, open_output=partial(ObjectFolder.at, patience=patience))


def parts_there(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {key.removeprefix("out/data/"): data for key, data in objects.items() if key.startswith("out/data/")}


def assert_finished_or_not_looking_so(objects: dict[str, bytes], expected: dict[str, bytes]) -> bool:
    """Whether the folder is finished; then it has every part, as undisturbed, and a manifest that agrees."""
    assert parts_there(objects).items() <= expected.items()
    if "out/_SUCCESS" not in objects:
        return False
    stored = {part["key"]: part["sha256"] for part in json.loads(objects["out/_manifest.json"])["parts"]}
    assert stored == {f"data/{name}": sha256(data) for name, data in expected.items()}
    assert parts_there(objects) == expected
    assert {"out/_plan.json", "out/_vocab.parquet", "out/README.md"} <= set(objects)
    return True


def test_a_run_on_a_store_gives_the_bytes_of_a_run_on_a_disk(source: Path, tmp_path: Path, bucket: str) -> None:
    job.run(make_job(source, tmp_path / "out"), job.here)  # with the real engine
    work = make_job(source, Path("unused"), output={"path": f"{bucket}/runs/out/", "top_k": 3})
    finished = job.run(work, job.here)
    assert (finished.folder, finished.was_finished) == (f"{bucket}/runs/out", False)
    folder = open_folder(finished.folder)
    assert folder.list_keys() == ["README.md", "_SUCCESS", "_manifest.json", "_plan.json", "_vocab.parquet", "data"]
    local = [*(f"data/{name}" for name in part_bytes(tmp_path / "out")), "_plan.json", "_vocab.parquet", "_SUCCESS"]
    local_job = (tmp_path / "out" / "_plan.json").read_text().replace(str(tmp_path / "out"), f"{bucket}/runs/out/")
    (tmp_path / "out" / "_plan.json").write_text(local_job)
    assert {key: folder.read(key) for key in local} == {key: (tmp_path / "out" / key).read_bytes() for key in local}
    manifest = json.loads(folder.read("_manifest.json") or b"")
    assert manifest == finished.manifest
    assert manifest["published_by"] == "replicas"
    assert manifest["parts"] == json.loads((tmp_path / "out" / "_manifest.json").read_text())["parts"]
    assert b"24 completions of 8 prompts" in (folder.read("README.md") or b"")
    assert job.run(work, job.here).was_finished


def test_a_run_on_a_store_is_proven_generated_again_and_retried_there(source: Path, bucket: str) -> None:
    work = make_job(source, Path("unused"), output={"path": f"{bucket}/out", "top_k": 3})
    job.run(work, job.here, engine_maker=ill_on("Today"))
    outlook = look(f"{bucket}/out")
    assert outlook is not None
    with pytest.raises(StoppedError):
        carry_out(outlook, stop_after(1))
    assert verify(f"{bucket}/out", num_rescored=4).is_proven
    outlook = look(f"{bucket}/out")
    assert outlook is not None
    assert outlook.is_resumed
    retried = carry_out(outlook, job.here)
    assert (retried.folder, retried.manifest["published_by"]) == (f"{bucket}/out/retries/0001", "replicas")
    assert verify(f"{bucket}/out").is_proven
    assert [verdict.result for verdict in replay(f"{bucket}/out", "r5")] == ["identical"] * 3


def test_of_two_that_retry_a_run_the_second_is_refused(source: Path, bucket: str) -> None:
    work = make_job(source, Path("unused"), output={"path": f"{bucket}/out", "top_k": 3})
    run_echo(work)
    outlook = look(f"{bucket}/out")
    assert outlook is not None

    def second(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        with pytest.raises(InUseError, match=r"/out/retries/0001 is being worked on by process"):
            carry_out(outlook, job.here, engine_maker=echo)
        yield from job.here(open_worker, shards)

    assert carry_out(outlook, second, engine_maker=echo).num_errors == outlook.counts.total() > 0


def test_head_shows_a_run_on_a_store_as_it_does_one_on_a_disk(source: Path, tmp_path: Path, bucket: str) -> None:
    run_echo(make_job(source, tmp_path / "out"))
    run_there(source, f"{bucket}/out")
    there, here = (CliRunner().invoke(cli.main, ["head", str(out)]) for out in (f"{bucket}/out", tmp_path / "out"))
    assert there.exit_code == here.exit_code == 0
    assert there.stdout == here.stdout
    assert "The quiet fox" in there.stdout
    nothing = CliRunner().invoke(cli.main, ["head", f"{bucket}/other"])
    assert (nothing.exit_code, "is not the output folder of a run" in nothing.stderr) == (2, True)


class StoppedError(Exception):
    """Raised by an executor that stops early."""


def stop_after(count: int) -> job.Executor:
    def execute(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        yield from job.here(open_worker, shards[:count])
        raise StoppedError

    return execute


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_run_stopped_on_a_store_goes_on_where_it_was(source: Path, tmp_path: Path, bucket: str, done: int) -> None:
    expected = undisturbed(source, tmp_path)
    url = f"{bucket}/out"
    with pytest.raises(StoppedError):
        run_there(source, url, stop_after(done))
    folder = open_folder(url)
    assert len(folder.list_keys("data")) == done
    run_there(source, url)
    assert {key.removeprefix("data/"): folder.read(key) for key in folder.list_keys("data")} == expected
    assert folder.list_keys("_tmp") == []


@pytest.mark.parametrize("offset", range(5))
def test_a_store_that_fails_one_request_in_ten_makes_no_difference(
    scheme: str, source: Path, tmp_path: Path, connect: Callable[..., ObjectFolder], offset: int
) -> None:
    expected = undisturbed(source, tmp_path)
    faults = ["500", "done, 500", "cut", "done, cut", "500"]
    count = 0

    def one_in_ten(_method: str, _key: str) -> str:
        nonlocal count
        count += 1
        return faults[count // 10 % len(faults)] if count % 10 == 2 * offset else ""

    with fake_store(scheme, one_in_ten) as server:
        connect(server)
        run_there(source, f"{scheme}://bkt/out")
        assert count > 20
        assert assert_finished_or_not_looking_so(server.objects, expected)


@pytest.mark.parametrize("fault", ["done, 500", "done, cut", "409", "cut"])
def test_every_put_may_need_a_second_look(
    scheme: str, source: Path, tmp_path: Path, connect: Callable[..., ObjectFolder], fault: str
) -> None:
    """The first request for each key goes wrong."""
    expected = undisturbed(source, tmp_path)
    seen: set[str] = set()

    def first_put(method: str, key: str) -> str:
        is_first = method == "PUT" and key not in seen
        seen.update({key} if is_first else ())
        return fault if is_first else ""

    with fake_store(scheme, first_put) as server:
        connect(server)
        assert run_there(source, f"{scheme}://bkt/out").manifest["published_by"] == "replicas"
        assert assert_finished_or_not_looking_so(server.objects, expected)


@pytest.mark.parametrize("fault", ["403", "409", "done, cut"])
def test_a_run_that_cannot_store_a_file_stops_with_code_4_and_the_next_one_finishes(
    scheme: str, source: Path, tmp_path: Path, connect: Callable[..., ObjectFolder], fault: str
) -> None:
    """For each file in turn: from there on the store takes nothing more."""
    expected = undisturbed(source, tmp_path)
    with fake_store(scheme) as server:
        connect(server)
        run_there(source, f"{scheme}://bkt/out")
        stored = list(dict.fromkeys(server.put_keys()))
    assert [key.removeprefix("out/") for key in stored] == [
        "_tmp/driver-00001.json",
        "_plan.json",
        "_vocab.parquet",
        *(f"data/part-0000{index}.parquet" for index in range(3)),
        "README.md",
        "_manifest.json",
        "_SUCCESS",
    ]
    for key in stored:
        with fake_store(scheme) as server:
            connect(server)
            broken: list[str] = []

            def after(method: str, found: str, key: str = key, broken: list[str] = broken) -> str:
                broken.extend([found] if found == key and method == "PUT" else ())
                return fault if broken and method == "PUT" else ""

            server.fault = after
            error = None
            try:
                run_there(source, f"{scheme}://bkt/out")
            except StorageError as raised:
                error = raised
            server.fault = no_fault
            is_finished = assert_finished_or_not_looking_so(server.objects, expected)
            assert is_finished is (error is None)
            assert error is None or (error.exit_code == 4 and f"{scheme}://bkt/out/" in str(error))
            assert fault == "done, cut" or not is_finished
            run_there(source, f"{scheme}://bkt/out")
            assert assert_finished_or_not_looking_so(server.objects, expected)


# A store that lies


def test_whether_a_store_honours_the_condition_is_found_out_without_harm(
    scheme: str, connect: Callable[..., ObjectFolder]
) -> None:
    for honest in (True, False):
        with fake_store(scheme, honours_condition=honest) as server:
            folder = connect(server)
            folder.publish("_plan.json", b"{}")
            assert folder.probed("_plan.json").is_exclusive is honest
            assert server.objects == {"out/_plan.json": b"{}"}


def test_where_the_store_ignores_the_condition_only_the_driver_publishes_and_says_so(
    scheme: str, source: Path, tmp_path: Path, connect: Callable[..., ObjectFolder], caplog: pytest.LogCaptureFixture
) -> None:
    expected = undisturbed(source, tmp_path)
    came: list[Part] = []

    def watched(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        for part in job.here(open_worker, shards):
            assert f"out/{part.key}" not in server.objects
            came.append(pickle.loads(pickle.dumps(part)))
            yield came[-1]

    with fake_store(scheme, honours_condition=False) as server:
        connect(server)
        finished = run_there(source, f"{scheme}://bkt/out", watched)
        assert [bytes(part.unpublished or b"") for part in came] == list(expected.values())
        assert finished.manifest["published_by"] == "driver"
        assert f"{scheme}://bkt/out stores a file although its name is taken" in caplog.text
        assert assert_finished_or_not_looking_so(server.objects, expected)


def test_where_the_store_ignores_the_condition_a_stored_file_is_kept_all_the_same(
    scheme: str,
    connect: Callable[..., ObjectFolder],
) -> None:
    with fake_store(scheme, honours_condition=False) as server:
        folder = connect(server)
        folder.publish("_plan.json", b"{}")
        alone = folder.probed("_plan.json")
        assert alone.publish(KEY, b"first") == sha256(b"first")
        assert alone.publish(KEY, b"second") == sha256(b"first")
        assert server.objects[f"out/{KEY}"] == b"first"


# Two drivers


def test_a_second_driver_on_a_store_is_refused_and_told_who_holds_the_folder(source: Path, bucket: str) -> None:
    def meanwhile(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        with pytest.raises(
            InUseError, match=rf"{bucket}/out is being worked on by process {os.getpid()} on \S+, since 2"
        ):
            run_there(source, f"{bucket}/out")
        yield from job.here(open_worker, shards)

    assert not run_there(source, f"{bucket}/out", meanwhile).was_finished
