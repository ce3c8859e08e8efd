"""Input in object stores: the same rows as on a disk, whatever the output lies in; and stores that fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from pipeline import job
from pipeline.config import InputConfig
from pipeline.dataset import read, scan
from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.storage import open_folder
from tests.fake_store import DIALECTS, FakeStore, every, fake_store
from tests.flows import make_job, part_bytes, write_prompts

PROMPTS = ["The quiet fox", "Every bee", None, "", "I skip across the", "Today", "Every bee", "x" * 2000]


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, FakeStore]]:
    """A running store of each kind."""
    with ExitStack() as stack:
        servers = {scheme: stack.enter_context(fake_store(scheme)) for scheme in DIALECTS}
        for server in servers.values():
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
        yield servers


@pytest.mark.parametrize(
    ("source", "output"),
    [("disk", "s3"), ("s3", "disk"), ("gs", "az"), ("s3", "az"), ("az", "gs"), ("gs", "gs")],
)
def test_input_and_output_lie_anywhere_and_the_bytes_are_the_same(
    source: str, output: str, stores: dict[str, FakeStore], tmp_path: Path
) -> None:
    """With the real engine."""
    file = write_prompts(tmp_path / "prompts.parquet", PROMPTS)
    job.run(make_job(file, tmp_path / "undisturbed"), job.here)
    for server in stores.values():
        server.objects["in/prompts.parquet"] = file.read_bytes()
    path = str(file) if source == "disk" else f"{source}://bkt/in/prompts.parquet"
    out = str(tmp_path / "out") if output == "disk" else f"{output}://bkt/out"
    work = make_job(file, tmp_path, input={"path": path, "id_column": "id"}, output={"path": out, "top_k": 3})
    assert not job.run(work, job.here).was_finished
    assert job.run(work, job.here).was_finished
    folder = open_folder(out)
    parts = {key.removeprefix("data/"): folder.read(key) for key in folder.list_keys("data")}
    assert parts == part_bytes(tmp_path / "undisturbed")


def write_all(folder: Path) -> None:
    """The same rows in every format, in files that take several requests."""
    folder.mkdir()
    table = pa.table(
        {"id": [f"r{index}" for index in range(40_000)], "prompt": [f"row {index}" * 5 for index in range(40_000)]}
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=9000)
    pyarrow.feather.write_feather(table, folder / "a.arrow", compression="zstd", chunksize=5000)
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=5000)
    pyarrow.csv.write_csv(table, folder / "a.csv")
    lines = (f'{{"id": "{row["id"]}", "prompt": "{row["prompt"]}"}}\n' for row in table.to_pylist())
    (folder / "a.jsonl").write_text("".join(lines))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.csv", "a.jsonl"])
def test_every_format_is_read_by_ranges_as_from_a_disk(name: str, stores: dict[str, FakeStore], tmp_path: Path) -> None:
    write_all(tmp_path / "in")
    stores["az"].objects[f"in/{name}"] = (tmp_path / "in" / name).read_bytes()
    here, there = (scan(InputConfig(path=path)) for path in (str(tmp_path / "in" / name), f"az://bkt/in/{name}"))
    assert [(file.name, file.num_rows, file.sha256) for file in there.files] == [
        (file.name, file.num_rows, file.sha256) for file in here.files
    ]
    for lo, hi in ((0, 3), (8_998, 9_003), (39_990, 40_000)):
        assert read(there, lo, hi) == read(here, lo, hi)


@pytest.mark.parametrize("scheme", DIALECTS)
@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("in", ["b.parquet", "deep/a.parquet"]),
        ("in/", ["b.parquet", "deep/a.parquet"]),
        ("in/*.parquet", ["b.parquet"]),
        ("in/**/*.parquet", ["b.parquet", "deep/a.parquet"]),
        ("in/deep/a.parquet", ["a.parquet"]),
    ],
)
def test_objects_folders_and_patterns_are_found(
    path: str, names: list[str], scheme: str, stores: dict[str, FakeStore], tmp_path: Path
) -> None:
    file = write_prompts(tmp_path / "prompts.parquet", PROMPTS).read_bytes()
    for key in ("in/b.parquet", "in/deep/a.parquet", "in/_old/a.parquet", "in/.a.parquet", "inside/a.parquet"):
        stores[scheme].objects[key] = file
    stores[scheme].objects |= {"in/notes.txt": b"", "in/": b""}
    if "**" in path:  # asks for every folder
        names = ["_old/a.parquet", *names]
    assert [found.name for found in scan(InputConfig(path=f"{scheme}://bkt/{path}")).files] == names


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("s3://bkt/none", InputError, "`input.path` is s3://bkt/none, but there is no such object or folder"),
        ("s3://bkt/in/*.csv", InputError, "there is no such object or folder"),
        ("s3://bkt/texts", InputError, r"the folder s3://bkt/texts \(input.path\) holds no .parquet, .* object"),
        ("s3://bkt/texts/a.txt", InputError, "the format of s3://bkt/texts/a.txt .* is unknown"),
        ("s3://bkt/saved", InputError, "is a `datasets` folder. Copy it to a disk"),
        ("s3://bkt/a?b", ConfigError, "input.path must be s3://bucket/path and nothing more"),
        (["s3://bkt/in/a.parquet", "here.parquet"], InputError, "mixes files on a disk with objects"),
    ],
)
def test_what_cannot_be_input_is_named(
    path: str,
    error: type[Exception],
    words: str,
    stores: dict[str, FakeStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_prompts(tmp_path / "here.parquet", PROMPTS).read_bytes()
    stores["s3"].objects = {"in/a.parquet": file, "texts/a.txt": b"a", "saved/dataset_info.json": b"{}"}
    with pytest.raises(error, match=words):
        scan(InputConfig(path=path))


def test_a_pattern_takes_a_whole_bucket_but_no_hidden_or_empty_object(
    stores: dict[str, FakeStore], tmp_path: Path
) -> None:
    file = write_prompts(tmp_path / "prompts.parquet", PROMPTS).read_bytes()
    stores["gs"].objects = {"a.parquet": file, ".b.parquet": file, "c.parquet": b""}
    assert [found.name for found in scan(InputConfig(path="gs://bkt/*.parquet")).files] == ["a.parquet"]


def test_input_that_lies_in_the_output_is_refused(stores: dict[str, FakeStore], tmp_path: Path) -> None:
    stores["s3"].objects["out/in/a.parquet"] = write_prompts(tmp_path / "a.parquet", PROMPTS).read_bytes()
    places = {"input": {"path": "s3://bkt/out/in", "id_column": "id"}, "output": {"path": "s3://bkt/out"}}
    with pytest.raises(ConfigError, match=r"output.path s3://bkt/out holds input file s3://bkt/out/in/a\.parquet"):
        job.run(make_job(tmp_path, tmp_path, **places), job.here)


def test_an_object_that_changes_is_caught_at_the_next_read(stores: dict[str, FakeStore], tmp_path: Path) -> None:
    server = stores["gs"]
    server.objects["a.parquet"] = write_prompts(tmp_path / "a.parquet", PROMPTS).read_bytes()
    dataset = scan(InputConfig(path="gs://bkt/a.parquet"))
    server.objects["a.parquet"] = write_prompts(tmp_path / "a.parquet", [*PROMPTS[1:], "Yes"]).read_bytes()
    with pytest.raises(InputError, match=r"gs://bkt/a\.parquet has changed since the job was planned"):
        read(dataset, 0, 3)


def test_a_store_that_fails_is_survived_or_is_an_error_with_code_4_and_one_without_access_with_code_2(
    stores: dict[str, FakeStore], tmp_path: Path
) -> None:
    server = stores["s3"]
    server.objects["a.jsonl"] = b'{"prompt": "Today"}\n' * 3
    dataset = scan(InputConfig(path="s3://bkt/a.jsonl"))
    server.fault = every("GET", "501")
    with pytest.raises(StorageError, match=r"cannot read s3://bkt/a\.jsonl: .*501"):
        scan(InputConfig(path="s3://bkt/a.jsonl"))
    faults = ["500", "", "cut", "", "429"]
    server.fault = lambda _method, _key: faults.pop(0) if faults else ""
    assert read(dataset, 0, 3) == read(dataset, 0, 3)
    assert faults == []
    for fault, error, code in (("403", InputError, 2), ("501", StorageError, 4)):
        server.fault = every("GET", fault)
        with pytest.raises(error, match=rf"s3://bkt/a\.jsonl.*{fault}") as caught:
            read(dataset, 0, 3)
        assert caught.value.exit_code == code
