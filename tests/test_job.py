"""The whole run in this process with a fake engine: rows accounted for, documents written, resume, refusals."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import job
from pipeline.errors import ConfigError, ErrorRateError, InputError, ModelError, OutputError, StorageError
from pipeline.plan import make_plan
from pipeline.records import row_seed
from pipeline.shard import Part, Shard
from pipeline.strategies import PROCESSORS, SAMPLERS
from tests.flows import echo, make_job, part_bytes, read_output, run_echo, write_prompts

PROMPTS = ["The quiet fox", "Every bee", None, "", "I skip across the", "Today", "Every bee", "x" * 2000]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.parquet", PROMPTS, topic=[f"t{i}" for i in range(len(PROMPTS))])


class StoppedError(Exception):
    """Raised by an executor that stops early."""


def stop_after(count: int) -> job.Executor:
    """An executor that dies after this many shards."""

    def execute(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        yield from job.here(open_worker, shards[:count])
        raise StoppedError

    return execute


def test_every_input_row_gives_a_row_per_strategy_and_sample_in_order(source: Path, tmp_path: Path) -> None:
    run_echo(make_job(source, tmp_path / "out"))
    table = read_output(tmp_path / "out")
    keys = list(zip(*(table[name].to_pylist() for name in ("row_index", "strategy", "sample_index")), strict=True))
    assert keys == [
        (row, strategy, sample)
        for row in range(len(PROMPTS))
        for strategy, sample in (("greedy", 0), ("samples", 0), ("samples", 1))
    ]
    assert table["row_id"].to_pylist() == [f"r{row}" for row, _, _ in keys]


def test_a_bad_prompt_is_an_error_row_and_its_neighbours_are_untouched(source: Path, tmp_path: Path) -> None:
    run_echo(make_job(source, tmp_path / "out"))
    rows = read_output(tmp_path / "out").to_pylist()
    errors = {row["row_id"]: row["error_type"] for row in rows if row["status"] == "error"}
    assert errors == {"r2": "prompt_null", "r7": "prompt_too_long"}
    for row in rows:
        if row["status"] == "error":
            assert row["error_message"]
            assert row["num_prompt_tokens"] == row["num_generated_tokens"] == 0
            assert all(row[name] is None for name in ("text", "token_ids", "finish_reason", "top_probs"))
        else:
            assert row["token_ids"] == row["prompt_token_ids"][:2]
            assert row["error_type"] is row["error_message"] is None


def test_the_row_seed_depends_on_what_names_the_row_and_replays_it(source: Path, tmp_path: Path) -> None:
    run_echo(make_job(source, tmp_path / "out", seed=70))
    rows = read_output(tmp_path / "out").select(["row_id", "strategy", "sample_index", "seed"]).to_pylist()
    assert [row["seed"] for row in rows] == [
        row_seed(70, row["row_id"], row["strategy"], row["sample_index"]) for row in rows
    ]
    assert len({row["seed"] for row in rows}) == len(rows)


def test_kept_columns_come_through_on_every_row(source: Path, tmp_path: Path) -> None:
    kept = {"path": str(source), "id_column": "id", "keep_columns": ["topic"]}
    run_echo(make_job(source, tmp_path / "out", input=kept))
    table = read_output(tmp_path / "out")
    assert table["topic"].to_pylist() == [f"t{row}" for row in table["row_index"].to_pylist()]


def test_the_manifest_accounts_for_every_row_and_byte(source: Path, tmp_path: Path) -> None:
    finished = run_echo(make_job(source, tmp_path / "out"))
    folder = tmp_path / "out"
    manifest = json.loads((folder / "_manifest.json").read_text())
    assert manifest == finished.manifest
    assert manifest["totals"] == {
        "input_rows": 8,
        "rows": 24,
        "ok": 18,
        "errors": 6,
        "truncated_prompts": 0,
        "generated_tokens": sum(row["num_generated_tokens"] for row in read_output(folder).to_pylist()),
    }
    assert finished.error_rate == 6 / 24
    assert [part["key"] for part in manifest["parts"]] == [f"data/part-0000{index}.parquet" for index in range(3)]
    for part in manifest["parts"]:
        assert part["sha256"] == hashlib.sha256((folder / part["key"]).read_bytes()).hexdigest()
        assert part["rows"] == pq.read_metadata(folder / part["key"]).num_rows
    assert manifest["determinism"] == "exact"
    assert (manifest["processors"], manifest["samplers"]) == ([*PROCESSORS], [*SAMPLERS])
    assert manifest["samplers"][:3] == ["temperature", "top_h", "top_k"]
    assert (folder / "_SUCCESS").read_bytes() == b""
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "_SUCCESS",
        "_manifest.json",
        "_plan.json",
        "_tmp",
        "_vocab.parquet",
        "data",
    ]
    assert list((folder / "_tmp").iterdir()) == []


def test_timings_are_of_the_parts_that_this_driver_saw_and_of_its_replicas(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    seen: list[Part] = []

    def execute(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        for part in job.here(open_worker, shards):
            seen.append(part)
            yield part
        return {"working": 2.0, "idle": 0.12345}

    with pytest.raises(StoppedError):
        job.run(work, stop_after(1), engine_maker=echo)
    timings = job.run(work, execute, engine_maker=echo).manifest["timings"]
    assert len(seen) == 2
    assert timings.pop("elapsed_s") > 0
    assert timings == {
        "shards_s": round(sum(part.seconds for part in seen), 3),
        "engine_s": round(sum(part.engine_s for part in seen), 3),
        "generated_tokens": sum(part.generated_tokens for part in seen),
        "replica_s": {"working": 2.0, "idle": 0.123},
        "batch_occupancy": 0.5,
        "step_s": round(sum(part.engine_s for part in seen) / 4, 6),
    }
    again = make_job(source, tmp_path / "again")
    assert run_echo(again).manifest["timings"]["replica_s"] == {}


def test_the_plan_names_inputs_shards_model_and_versions(source: Path, tmp_path: Path) -> None:
    run_echo(make_job(source, tmp_path / "out"))
    plan = json.loads((tmp_path / "out" / "_plan.json").read_text())
    assert plan["identity"]["inputs"] == [
        {
            "name": "prompts.parquet",
            "rows": 8,
            "size_bytes": source.stat().st_size,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    ]
    assert plan["shards"] == {
        "count": 3,
        "first": ["data/part-00000.parquet", 0, 3],
        "last": ["data/part-00002.parquet", 6, 8],
    }
    assert set(plan["identity"]["model"]["files"]) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert plan["versions"]["torch"].startswith("2.")


def test_the_vocabulary_explains_every_token_id(source: Path, tmp_path: Path) -> None:
    run_echo(make_job(source, tmp_path / "out"))
    vocabulary = pq.read_table(tmp_path / "out" / "_vocab.parquet").to_pylist()
    row = read_output(tmp_path / "out").to_pylist()[0]
    assert [entry["token_id"] for entry in vocabulary] == list(range(len(vocabulary)))
    assert b"".join(vocabulary[token]["bytes"] for token in row["prompt_token_ids"]).decode() == "The quiet fox"


def test_the_data_card_lets_datasets_load_the_folder(source: Path, tmp_path: Path) -> None:
    import datasets

    run_echo(make_job(source, tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "24 completions of 8 prompts: 18 ok, 6 errors" in card
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["row_id"][:4] == ["r0", "r0", "r0", "r1"]
    vocabulary = datasets.load_dataset(str(tmp_path / "out"), "vocab", split="train", cache_dir=str(tmp_path / "cache"))
    assert vocabulary.column_names == ["token_id", "token", "bytes"]


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_stopped_run_resumes_to_the_same_bytes(source: Path, tmp_path: Path, done: int) -> None:
    run_echo(make_job(source, tmp_path / "undisturbed"))
    work = make_job(source, tmp_path / "out")
    with pytest.raises(StoppedError):
        job.run(work, stop_after(done), engine_maker=echo)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    assert len(before) == done
    finished = run_echo(work)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")
    assert finished.manifest["parts"] == json.loads((tmp_path / "undisturbed" / "_manifest.json").read_text())["parts"]
    for name, changed in before.items():
        assert (tmp_path / "out" / "data" / name).stat().st_mtime_ns == changed


def test_a_run_stopped_before_its_manifest_resumes_without_a_worker(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    run_echo(work)
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "_manifest.json").unlink()

    def nobody(_open: object, _shards: object) -> Iterator[Part]:
        raise AssertionError("there is no work left")

    job.run(work, nobody, engine_maker=echo)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_finished_job_run_again_does_nothing(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    assert not run_echo(work).was_finished
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("*"))}
    assert run_echo(work).was_finished
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("*"))} == before


def test_another_job_in_the_same_folder_is_refused_and_told_what_differs(source: Path, tmp_path: Path) -> None:
    run_echo(make_job(source, tmp_path / "out", seed=1))
    other = make_job(
        source, tmp_path / "out", seed=2, strategies=[{"name": "g", "type": "greedy", "max_new_tokens": 9}]
    )
    with pytest.raises(OutputError) as caught:
        run_echo(other)
    assert "strategies.0.max_new_tokens: 4 -> 9" in str(caught.value)
    assert "seed: 1 -> 2" in str(caught.value)
    assert "Choose another folder with --output" in str(caught.value)


def test_a_changed_input_is_another_job(source: Path, tmp_path: Path) -> None:
    run_echo(make_job(source, tmp_path / "out"))
    write_prompts(source, [*PROMPTS[:-1], "y"], topic=["t"] * len(PROMPTS))
    with pytest.raises(OutputError, match=r'inputs\.0 \(prompts\.parquet\)\.sha256: "\w{64}" -> "\w{64}"'):
        run_echo(make_job(source, tmp_path / "out"))


def test_another_number_of_replicas_is_the_same_job(source: Path, tmp_path: Path) -> None:
    run_echo(make_job(source, tmp_path / "out"))
    same = make_job(source, tmp_path / "out", run={"shard_rows": 3, "replicas": 7, "max_error_rate": 0.9})
    assert run_echo(same).was_finished


def test_a_folder_that_is_no_run_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds `thesis\.txt` and no `_plan\.json`"):
        run_echo(make_job(source, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_damaged_part_stops_the_resume_and_is_named(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    with pytest.raises(StoppedError):
        job.run(work, stop_after(2), engine_maker=echo)
    part = tmp_path / "out" / "data" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StorageError, match=r"part-00001\.parquet is not a part of this run, or is damaged"):
        run_echo(work)


def test_the_plan_is_the_same_on_every_machine(source: Path, tmp_path: Path) -> None:
    here = make_plan(make_job(source, tmp_path / "a", run={"shard_rows": "auto", "replicas": 1}))
    there = make_plan(make_job(source, tmp_path / "b", run={"shard_rows": "auto", "replicas": 64}))
    assert here.fingerprint == there.fingerprint
    assert list(here.shards) == list(there.shards) == [Shard("data/part-00000.parquet", 0, 8)]


def test_output_bytes_do_not_depend_on_where_the_input_lies(source: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / source.name
    moved.write_bytes(source.read_bytes())
    run_echo(make_job(source, tmp_path / "a"))
    run_echo(make_job(moved, tmp_path / "b"))
    assert part_bytes(tmp_path / "a") == part_bytes(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "./nowhere"}, ModelError, "is not a folder"),
        ({"input": {"path": "nowhere.parquet"}}, InputError, "nowhere.parquet"),
        (
            {"strategies": [{"name": "s", "type": "greedy", "max_new_tokens": 2, "stop_token_ids": [99999]}]},
            ConfigError,
            "`stop_token_ids` must hold ids below",
        ),
        (
            {"strategies": [{"name": "s", "type": "greedy", "max_new_tokens": 2, "bad_words_ids": [[99999]]}]},
            ConfigError,
            "`bad_words_ids` must hold ids below",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    work = make_job(source, tmp_path / "out", **changes)
    with pytest.raises(error, match=message):
        run_echo(work)
    assert not (tmp_path / "out").exists()


def test_a_job_that_cannot_stay_within_its_error_rate_is_stopped_as_soon_as_that_is_certain(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["Today", None, "Every bee", None, None, "Today", "Today", "Today"])
    work = make_job(source, tmp_path / "out", run={"shard_rows": 2, "max_error_rate": 0.25})
    with pytest.raises(ErrorRateError) as caught:
        run_echo(work)
    assert str(caught.value).startswith(
        "9 of the 24 rows of the job are errors already, more than run.max_error_rate (25.0%) of all. All results"
    )
    assert caught.value.exit_code == 3
    kept = part_bytes(tmp_path / "out")
    assert list(kept) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]

    def nobody(_open: object, _shards: object) -> Iterator[Part]:
        raise AssertionError("it is certain before any work")

    with pytest.raises(ErrorRateError):
        job.run(work, nobody, engine_maker=echo)
    allowed = make_job(source, tmp_path / "out", run={"shard_rows": 2, "max_error_rate": 0.375})
    assert run_echo(allowed).error_rate == 9 / 24
    assert kept.items() <= part_bytes(tmp_path / "out").items()


def test_the_last_part_may_bring_the_errors_above_the_rate_and_the_run_is_finished(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["Today", "Every bee", None])
    finished = run_echo(make_job(source, tmp_path / "out", run={"shard_rows": 1, "max_error_rate": 0}))
    assert finished.error_rate == 1 / 3
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_progress_is_told_of_every_part(source: Path, tmp_path: Path) -> None:
    class Listener:
        def __init__(self) -> None:
            self.done: list[str] = []
            self.parts: list[str] = []

        def start(self, num_rows: int, num_shards: int, done: Sequence[Part]) -> None:
            self.planned = (num_rows, num_shards)
            self.done = [part.key for part in done]

        def part(self, part: Part) -> None:
            self.parts.append(part.key)

    work = make_job(source, tmp_path / "out")
    with pytest.raises(StoppedError):
        job.run(work, stop_after(1), engine_maker=echo)
    listener = Listener()
    run_echo(work, progress=listener)
    assert listener.planned == (24, 3)
    assert listener.done == ["data/part-00000.parquet"]
    assert listener.parts == ["data/part-00001.parquet", "data/part-00002.parquet"]


def test_an_engine_error_is_a_row_error(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["!", "Every bee"])  # "!" is token 0, on which the engine fails
    run_echo(make_job(source, tmp_path / "out"))
    rows = read_output(tmp_path / "out").to_pylist()
    assert [row["error_type"] for row in rows] == ["no_token_left"] * 3 + [None] * 3
    assert rows[0]["prompt"] == "!"


def test_banning_the_end_of_text_is_refused_with_a_way_out(source: Path, tmp_path: Path) -> None:
    eos = json.loads((Path(job.__file__).parent / "demo" / "config.json").read_text())["eos_token_id"]
    greedy = {"name": "g", "type": "greedy", "max_new_tokens": 2, "bad_words_ids": [[eos]]}
    with pytest.raises(ConfigError, match=r"must not ban the end of text.*Use `ignore_eos`"):
        run_echo(make_job(source, tmp_path / "out", strategies=[greedy]))


def test_bad_rows_leave_the_completions_of_their_neighbours_as_they_are(tmp_path: Path) -> None:
    good = ["The quiet fox", "<|endoftext|>", "", "Every bee"]
    bad = {
        "bad_json": '{"id": "x1", "prompt": ',
        "prompt_not_text": '{"id": "x2", "prompt": 7}',
        "prompt_not_unicode": '{"id": "x3", "prompt": "\\ud800"}',
        "prompt_null": '{"id": "x4"}',
        "prompt_too_long": json.dumps({"id": "x5", "prompt": "word " * 500}),
    }
    lines = [json.dumps({"id": f"r{index}", "prompt": prompt}) for index, prompt in enumerate(good)]
    (tmp_path / "good.jsonl").write_text("\n".join(lines) + "\n")
    mixed = [line for pair in zip([*lines, lines[0].replace("r0", "r4")], bad.values(), strict=True) for line in pair]
    (tmp_path / "mixed.jsonl").write_text("\n".join(mixed) + "\n")
    strategies = [
        {"name": "greedy", "type": "greedy", "max_new_tokens": 9},
        {"name": "hot", "type": "sampling", "max_new_tokens": 9, "temperature": 1.3},
    ]
    for name in ("good", "mixed"):
        job.run(make_job(tmp_path / f"{name}.jsonl", tmp_path / name, strategies=strategies), job.here)
    rows = read_output(tmp_path / "mixed").to_pylist()
    assert len(rows) == len(mixed) * 2
    assert [row["error_type"] for row in rows if row["status"] == "error"] == [kind for kind in bad for _ in range(2)]
    found = {(row["row_id"], row["strategy"]): row for row in rows}
    for row in read_output(tmp_path / "good").to_pylist():
        same = found[row["row_id"], row["strategy"]]  # in another batch: ids exact, probabilities to 1e-5
        exact = ("prompt", "text", "prompt_token_ids", "token_ids", "finish_reason", "top_token_ids", "seed")
        assert [same[name] for name in exact] == [row[name] for name in exact]
        assert same["token_logprobs"] == pytest.approx(row["token_logprobs"], abs=1e-5)
    end_of_text = found["r1", "greedy"]["prompt_token_ids"]
    assert len(end_of_text) > 1  # text, not the token


def test_a_prompt_that_fills_the_context_ends_with_finish_reason_context(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["Every bee"])
    greedy = {"name": "g", "type": "greedy", "max_new_tokens": 500, "ignore_eos": True}
    job.run(make_job(source, tmp_path / "out", strategies=[greedy]), job.here)
    [row] = read_output(tmp_path / "out").to_pylist()
    assert row["finish_reason"] == "context"
    assert row["num_prompt_tokens"] + row["num_generated_tokens"] == 128 + 1


def test_a_part_of_another_run_or_with_other_rows_is_not_taken_for_ours(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    run_echo(make_job(source, tmp_path / "other", seed=5))
    with pytest.raises(StoppedError):
        job.run(work, stop_after(1), engine_maker=echo)
    stranger = tmp_path / "out" / "data" / "part-00001.parquet"
    stranger.write_bytes((tmp_path / "other" / "data" / "part-00001.parquet").read_bytes())
    with pytest.raises(StorageError, match="its fingerprint is that of another run"):
        run_echo(work)
    stranger.write_bytes((tmp_path / "out" / "data" / "part-00000.parquet").read_bytes())
    (tmp_path / "out" / "data" / "part-00002.parquet").write_bytes(stranger.read_bytes())
    with pytest.raises(StorageError, match=r"part-00002\.parquet.*it has 9 rows"):  # two input rows were planned
        run_echo(work)


def test_success_is_only_written_when_the_parts_lie_in_the_folder(source: Path, tmp_path: Path) -> None:
    """Once the driver believed its replicas: a node that wrote to a folder of its own went unnoticed."""

    def elsewhere(open_worker: Callable[[], job.Worker], shards: Sequence[Shard]) -> Iterator[Part]:
        for part in job.here(open_worker, shards):
            if part.key.endswith("1.parquet"):
                (tmp_path / "out" / part.key).unlink()
            yield part

    with pytest.raises(StorageError, match=r"lacks 1 of 3 parts and holds 0 others, first data/part-00001\.parquet"):
        job.run(make_job(source, tmp_path / "out"), elsewhere, engine_maker=echo)
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_finished_run_that_lost_a_part_computes_it_again(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    run_echo(work)
    before = part_bytes(tmp_path / "out")
    (tmp_path / "out" / "data" / "part-00001.parquet").unlink()
    assert not run_echo(work).was_finished
    assert part_bytes(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("hdfs://host/out", ConfigError, "or begin with s3:// or gs:// or az://, but is 'hdfs://host/out'"),
        ("{tmp}/prompts.parquet", OutputError, "is a file"),
        ("{tmp}", ConfigError, r"holds input file .*prompts\.parquet"),
    ],
)
def test_an_output_path_that_cannot_work_is_refused(
    source: Path, tmp_path: Path, output: str, error: type[Exception], message: str
) -> None:
    work = make_job(source, tmp_path / "x", output={"path": output.format(tmp=tmp_path), "top_k": 3})
    with pytest.raises(error, match=message):
        run_echo(work)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.parquet"]


def test_a_damaged_plan_is_one_clear_error(source: Path, tmp_path: Path) -> None:
    work = make_job(source, tmp_path / "out")
    run_echo(work)
    (tmp_path / "out" / "_plan.json").write_text("{")
    with pytest.raises(StorageError, match="a document of the output folder is damaged"):
        run_echo(work)


def test_long_input_rows_make_small_shards(tmp_path: Path) -> None:
    """Kept values stand in every output row: a shard of many long ones once overflowed what a column can hold."""
    source = write_prompts(
        tmp_path / "p.parquet", ["Today"] * 64, blob=[random.Random(i).randbytes(50_000).hex() for i in range(64)]
    )
    samples = {"name": "s", "type": "sampling", "max_new_tokens": 4, "num_return_sequences": 40}
    kept = {"path": str(source), "id_column": "id", "keep_columns": ["blob"]}
    work = make_job(source, tmp_path / "out", input=kept, strategies=[samples], run={})
    assert make_plan(work).shard_rows == 4


def test_resuming_with_other_libraries_is_said(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = make_job(source, tmp_path / "out")
    with pytest.raises(StoppedError):
        job.run(work, stop_after(1), engine_maker=echo)
    plan = json.loads((tmp_path / "out" / "_plan.json").read_text())
    plan["versions"]["torch"] = "1.0"
    (tmp_path / "out" / "_plan.json").write_text(json.dumps(plan))
    run_echo(work)
    assert 'bytes may differ: torch: "1.0" -> ' in caplog.text
