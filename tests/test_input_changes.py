"""An input file that changes: between plan and run, during the run, before the resume; caught and named every time."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pipeline import job
from pipeline.config import InputConfig
from pipeline.dataset import read, scan
from pipeline.errors import InputError, ModelError, OutputError
from pipeline.input_changes import stamp_of, unchanged
from pipeline.plan import make_plan
from pipeline.shard import Part, Shard, open_worker
from pipeline.storage import LocalFolder
from tests.flows import echo, make_job, part_bytes, run_echo, write_prompts

LINES = [f'{{"prompt": "row {row}"}}' for row in range(6)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(LINES) + "\n")
    return path


def rewrite(path: Path, old: str, new: str) -> None:
    """Change the content, and make sure that the clock has moved on."""
    planned = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(planned.st_atime_ns, planned.st_mtime_ns + 1_000_000))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_of_another_size_is_named_with_both_sizes(source: Path) -> None:
    dataset = scan(InputConfig(path=str(source)))
    rewrite(source, "row 5", "row 55")
    message = (
        f"{source} has changed since the job was planned: it had 120 bytes and has 121. "
        "Put the old file back, or give the job a new output folder."
    )
    with pytest.raises(InputError) as caught:
        read(dataset, 0, 1)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_a_file_of_the_same_size_is_named_with_both_digests(source: Path) -> None:
    """Once only sizes were compared, and rows of two versions came out as one run."""
    dataset = scan(InputConfig(path=str(source)))
    before = sha256(source)
    rewrite(source, "row 5", "row 9")
    with pytest.raises(InputError, match=f"its SHA-256 was {before[:12]}… and is {sha256(source)[:12]}…"):
        read(dataset, 0, 1)


def test_a_file_that_was_touched_or_copied_is_still_the_same(source: Path) -> None:
    dataset = scan(InputConfig(path=str(source)))
    rewrite(source, "", "")
    assert stamp_of(str(source)) != dataset.files[0].stamp
    assert read(dataset, 5, 6).prompts == ["row 5"]
    copy = source.with_name("copy")
    shutil.copyfile(source, copy)
    os.replace(copy, source)
    assert read(dataset, 5, 6).prompts == ["row 5"]


def test_a_file_that_changes_while_its_rows_are_read_is_caught_afterwards(source: Path) -> None:
    [file] = scan(InputConfig(path=str(source))).files
    with pytest.raises(InputError, match="has changed since the job was planned"), unchanged(file):
        rewrite(source, "row 5", "row 9")


def test_damage_by_a_change_during_the_reading_is_told_as_the_change(source: Path) -> None:
    [file] = scan(InputConfig(path=str(source))).files

    def read_badly() -> None:
        rewrite(source, "row 5", "row 9")
        raise InputError("cannot be read as jsonl.", "Mend it.")

    with pytest.raises(InputError, match="has changed since") as caught, unchanged(file):
        read_badly()
    assert "cannot be read" in str(caught.value.__context__)


def test_a_file_that_has_gone_is_named(source: Path) -> None:
    dataset = scan(InputConfig(path=str(source)))
    source.unlink()
    with pytest.raises(InputError, match=f"{source} cannot be opened: No such file or directory.*under the same path"):
        read(dataset, 0, 1)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_every_kind_of_input_is_planned_by_the_digest_of_its_bytes(source: Path, tmp_path: Path, suffix: str) -> None:
    path = source if suffix == "jsonl" else write_prompts(tmp_path / "prompts.parquet", ["a", "b"])
    plan = make_plan(make_job(path, tmp_path / "out", input={"path": str(path)}))
    assert plan.identity["inputs"] == [
        {
            "name": path.name,
            "rows": 6 if suffix == "jsonl" else 2,
            "size_bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
    ]


# Whole runs


def job_over(source: Path, output: Path, **changes: object) -> job.Job:
    return make_job(source, output, input={"path": str(source)}, run={"shard_rows": 2}, **changes)


def change_after(count: int, change: Callable[[], None]) -> job.Executor:
    """An executor that has something changed after so many shards."""

    def execute(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        yield from job.here(open_worker, shards[:count])
        change()
        yield from job.here(open_worker, shards[count:])

    return execute


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_change_during_the_run_stops_it_at_the_next_shard_and_the_old_file_lets_it_go_on(
    source: Path, tmp_path: Path, count: int
) -> None:
    run_echo(job_over(source, tmp_path / "undisturbed"))
    work = job_over(source, tmp_path / "out")
    with pytest.raises(InputError, match=r"prompts\.jsonl has changed since the job was planned: its SHA-256"):
        job.run(work, change_after(count, lambda: rewrite(source, "row 5", "row 9")), engine_maker=echo)
    assert len(part_bytes(tmp_path / "out")) == count
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    with pytest.raises(OutputError, match=r"inputs\.0 \(prompts\.jsonl\)\.sha256"):
        run_echo(work)
    rewrite(source, "row 9", "row 5")
    run_echo(work)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")


def test_before_a_resume_every_changed_file_is_named_with_what_changed(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.jsonl").write_text(source.read_text())
    work = job_over(folder, tmp_path / "out")
    run_echo(work)
    rewrite(folder / "b.jsonl", "row 5", "row 9")
    rewrite(folder / "c.jsonl", "row 0", "row 00")
    with pytest.raises(OutputError) as caught:
        run_echo(work)
    changes = [line.partition(":")[0] for line in str(caught.value).splitlines()[1:-1]]
    assert changes == [
        "  inputs.1 (b.jsonl).sha256",
        "  inputs.2 (c.jsonl).size_bytes",
        "  inputs.2 (c.jsonl).sha256",
    ]


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", "vocab.json"])
def test_a_replica_that_finds_another_checkpoint_than_the_planned_one_does_no_shard(
    source: Path, tmp_path: Path, name: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(Path(job.__file__).parent / "demo", model, ignore=shutil.ignore_patterns("__pycache__"))
    folder = LocalFolder(tmp_path / "out")
    setup = make_plan(job_over(source, tmp_path / "out", model=str(model))).setup(folder)
    open_worker(setup, echo)
    with (model / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ModelError, match=f"{model / name} is not the file that the job was planned with"):
        open_worker(setup, echo)
