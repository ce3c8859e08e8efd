"""How a run stands, by its folder: states, numbers and exit codes, on a file system and in an object store."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from moto.server import ThreadedMotoServer

from pipeline import job
from pipeline.cli import main
from pipeline.config import Job
from pipeline.errors import ErrorRateError, InputError, StorageError
from pipeline.lease import Lease, hold, this_driver
from pipeline.records import Request, Response, RowError
from pipeline.retry import carry_out
from pipeline.retry import look as outlook
from pipeline.shard import Part
from pipeline.shards import Shards
from pipeline.status import Again, observe
from pipeline.status_screen import Line, between, duration, lines, sentence, spent
from pipeline.storage import LocalFolder, open_folder
from pipeline.tokenizer import Tokenizer
from tests.flows import EchoEngine, echo, make_job, run_echo, write_prompts

PROMPTS = ["The quiet fox", "Every bee", None, "", "I skip across the", "Today", "Every bee", "In the stable"] * 3
NOW = 2_000_000_000.0


class HaltedError(Exception):
    """The driver of a test stops here."""


def halting(num_parts: int, make_worker: object, shards: Shards) -> Iterator[Part]:
    yield from islice(job.here(make_worker, shards), num_parts)  # type: ignore[arg-type]
    raise HaltedError


def partial_run(work: Job, num_parts: int) -> None:
    with pytest.raises(HaltedError):
        job.run(work, lambda make_worker, shards: halting(num_parts, make_worker, shards), engine_maker=echo)  # type: ignore[arg-type]


@pytest.fixture
def work(tmp_path: Path) -> Job:
    return make_job(write_prompts(tmp_path / "prompts.parquet", PROMPTS), tmp_path / "out")


def at(folder: Path, ages_s: Sequence[float]) -> None:
    """Make it so that the parts were stored so long ago."""
    for path, age in zip(sorted((folder / "data").iterdir()), ages_s, strict=True):
        os.utime(path, (NOW - age, NOW - age))


def leased(folder: Path, age_s: float, **changes: object) -> None:
    """A driver's lease, last renewed so long ago."""
    lease = Lease(1, replace(this_driver(), **changes))  # type: ignore[arg-type]
    (folder / lease.key).write_bytes(lease.document)
    os.utime(folder / lease.key, (NOW - age_s, NOW - age_s))


def look(folder: Path) -> dict[str, object]:
    return observe(folder).look(NOW).to_json()


def test_numbers_of_a_run_under_way_are_those_of_its_parts(work: Job, tmp_path: Path) -> None:
    partial_run(work, 5)
    at(tmp_path / "out", [20, 18, 16, 14, 12])
    leased(tmp_path / "out", 4, host="node-3", pid=4711, since="12:04", place="elsewhere")
    table = pq.read_table(tmp_path / "out" / "data", columns=["status", "num_generated_tokens"])
    tokens = sum(table["num_generated_tokens"].to_pylist())
    of_later_parts = sum(table["num_generated_tokens"].to_pylist()[9:])
    assert look(tmp_path / "out") == {
        "folder": str(tmp_path / "out"),
        "state": "in progress",
        "shards": {"done": 5, "planned": 8},
        "rows": {"done": 45, "planned": 72},
        "errors": {"prompt_null": 6},
        "error_rate": 6 / 45,
        "errors_left": 6,
        "retries": [],
        "max_error_rate": 1.0,
        "is_past_max_error_rate": False,
        "generated_tokens": tokens,
        "rows_per_s": 36 / 8,
        "tokens_per_s": of_later_parts / 8,
        "eta_s": (27 / 4.5, 27 / 4.5),
        "last_part_age_s": 12.0,
        "usual_gap_s": 2.0,
        "driver": "process 4711 on node-3, since 12:04",
        "lease_age_s": 4.0,
        "timings": None,
    }


def test_a_finished_run_is_finished_and_has_nothing_left(work: Job, tmp_path: Path) -> None:
    totals = run_echo(work).manifest["totals"]
    seen = look(tmp_path / "out")
    assert (seen["state"], seen["eta_s"], seen["driver"]) == ("finished", None, None)
    assert seen["timings"] == json.loads((tmp_path / "out" / "_manifest.json").read_text())["timings"]
    assert seen["rows"] == {"done": totals["rows"], "planned": totals["rows"]}
    assert seen["generated_tokens"] == totals["generated_tokens"]
    assert sum(seen["errors"].values()) == totals["errors"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("age_s", "changes", "state"),
    [
        (500.0, {}, "in progress"),  # its process can be seen to live
        (5.0, {"started": 1}, "stopped"),  # can be seen to have ended
        (59.0, {"place": "another host"}, "in progress"),
        (61.0, {"place": "another host"}, "quiet"),
    ],
)
def test_whether_a_driver_is_there_is_said_as_far_as_it_can_be_known(
    work: Job, tmp_path: Path, age_s: float, changes: dict[str, object], state: str
) -> None:
    partial_run(work, 5)
    leased(tmp_path / "out", age_s, **changes)
    seen = look(tmp_path / "out")
    assert seen["state"] == state
    assert (seen["eta_s"] is None) == (state != "in progress") or seen["rows_per_s"] is None


def test_without_a_lease_nobody_works_on_the_run(work: Job, tmp_path: Path) -> None:
    partial_run(work, 2)
    assert look(tmp_path / "out")["state"] == "stopped"


def test_a_run_that_its_errors_stopped_has_failed(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", [None] * 9)
    work = make_job(source, tmp_path / "out", run={"shard_rows": 3, "max_error_rate": 0.3})
    with pytest.raises(ErrorRateError):
        run_echo(work)
    seen = look(tmp_path / "out")
    assert (seen["state"], seen["is_past_max_error_rate"], seen["error_rate"]) == ("failed", True, 1.0)


def test_before_the_first_part_there_is_neither_rate_nor_age(work: Job, tmp_path: Path) -> None:
    partial_run(work, 0)
    seen = look(tmp_path / "out")
    assert [seen[key] for key in ("error_rate", "last_part_age_s", "rows_per_s", "eta_s")] == [None] * 4
    assert seen["shards"] == {"done": 0, "planned": 8}


def test_looking_writes_nothing_and_reads_each_part_once(work: Job, tmp_path: Path) -> None:
    partial_run(work, 3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    observer = observe(tmp_path / "out")
    first = observer.look(NOW)
    for path in (tmp_path / "out" / "data").iterdir():
        path.write_bytes(b"")
    assert observer.look(NOW).num_rows == first.num_rows == 27
    assert before.keys() == set((tmp_path / "out").rglob("*"))


def test_files_in_parts_spare_reading_the_parts(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", PROMPTS * 3)
    work = make_job(source, tmp_path / "out", run={"shard_rows": 1})
    run_echo(work)
    for path in sorted((tmp_path / "out" / "data").iterdir())[:64]:
        path.write_bytes(b"")
    assert look(tmp_path / "out")["rows"] == {"done": 216, "planned": 216}


def test_parts_of_others_do_not_count_and_damaged_ones_are_named(work: Job, tmp_path: Path) -> None:
    partial_run(work, 2)
    (tmp_path / "out" / "data" / "part-00099.parquet").write_bytes(b"stray")
    assert look(tmp_path / "out")["shards"] == {"done": 2, "planned": 8}
    (tmp_path / "out" / "data" / "part-00001.parquet").write_bytes(b"torn")
    with pytest.raises(StorageError, match=r"part-00001\.parquet is not a part of this run, or is damaged"):
        look(tmp_path / "out")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no `_plan\.json`"):
        observe(tmp_path)


def test_footers_longer_than_the_first_read_are_read_whole(
    work: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial_run(work, 2)
    monkeypatch.setattr("pipeline.manifest.FOOTER_BYTES", 16)
    assert look(tmp_path / "out")["rows"] == {"done": 18, "planned": 72}


# The screen


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (8.4, "8 s"), (89, "89 s"), (91, "2 min"), (3 * 3600, "3.0 h"), (100 * 3600, "4.2 d"), (9e6, "104 d")],
)
def test_times_are_said_in_their_largest_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_range_that_reads_the_same_is_one_time() -> None:
    assert between(181, 185) == "3 min"
    assert between(181, 305) == "3 min to 5 min"


def test_the_lines_say_what_is_known_and_no_more(work: Job, tmp_path: Path) -> None:
    partial_run(work, 5)
    at(tmp_path / "out", [20, 18, 16, 14, 12])
    leased(tmp_path / "out", 4, host="node-3", pid=4711, since="12:04", place="elsewhere")
    status = observe(tmp_path / "out").look(NOW)
    assert ["".join([head, " " * (not rest.startswith(" ")), rest]) for head, rest in lines(status)] == [
        f"in progress · 5 of 8 shards · 45 of 72 rows · {status.generated_tokens} tokens · 7 tok/s · eta 6 s · "
        "last part 12 s ago (one every 2 s)",
        "errors 6 (13.333% of these rows, limit 1 of all): prompt_null 6",
        "driver process 4711 on node-3, since 12:04; lease renewed 4 s ago",
    ]
    leased(tmp_path / "out", 4, started=1)
    stopped = sentence(observe(tmp_path / "out").look(NOW))
    assert (
        stopped
        == f"stopped · 5 of 8 shards · 45 of 72 rows · {status.generated_tokens} tokens · last part 12 s ago · 6 errors"
    )


# The command


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["status", *map(str, arguments)])


def test_what_a_run_took_is_said_as_far_as_it_is_known() -> None:
    replica_s = {"starting": 5.0, "working": 7200.0, "idle": 0.3}
    known = {"elapsed_s": 9.0, "replica_s": replica_s, "batch_occupancy": 0.876, "step_s": 0.01234}
    assert spent(known) == "replicas starting 5 s, working 2.0 h, idle 0 s · batches 88% full · 12.3 ms a step"
    assert spent({"elapsed_s": 9.0, "shards_s": 3.0}) == ""  # of an earlier version


def test_piped_it_is_plain_lines_and_json_is_one_document(work: Job, tmp_path: Path) -> None:
    run_echo(work)
    plain = command(tmp_path / "out")
    assert plain.exit_code == 0
    assert re.fullmatch(
        r"finished · 8 of 8 shards · 72 of 72 rows · \d+ tokens · last part \d+ s ago\n"
        r"errors 9 \(12\.500% of these rows, limit 1 of all\): prompt_null 9\n"
        r"spent batches 50% full · [\d.e-]+ ms a step\n",
        plain.output,
    )
    document = json.loads(command(tmp_path / "out", "--json").output)
    assert document["schema"] == 1
    assert document["state"] == "finished"


@pytest.mark.parametrize(
    ("state", "exit_code"), [("finished", 0), ("stopped", 4), ("in progress", 6), ("failed", 3), ("finished, past", 3)]
)
def test_the_exit_status_tells_states_apart(tmp_path: Path, state: str, exit_code: int) -> None:
    limit = 0.05 if state in ("failed", "finished, past") else 1.0
    source = write_prompts(tmp_path / "prompts.parquet", PROMPTS)
    work = make_job(source, tmp_path / "out", run={"shard_rows": 3, "max_error_rate": 1.0})
    if state.startswith("finished"):
        run_echo(work)
    else:
        partial_run(work, 8 if state == "failed" else 2)
    plan = tmp_path / "out" / "_plan.json"
    plan.write_text(plan.read_text().replace('"max_error_rate": 1.0', f'"max_error_rate": {limit}'))
    with hold(LocalFolder(tmp_path / "out")) if state == "in progress" else open(os.devnull):  # type: ignore[attr-defined]
        assert command(tmp_path / "out", "--exit-status").exit_code == exit_code
        assert command(tmp_path / "out").exit_code == 0


def test_watching_goes_on_while_somebody_may_work_and_ends_with_the_run(work: Job, tmp_path: Path) -> None:
    """The run is finished by the second look itself, so that nothing waits."""
    from pipeline.cli_watch import _looks

    partial_run(work, 5)
    observer = observe(tmp_path / "out")
    with hold(LocalFolder(tmp_path / "out")):
        looks = _looks(observer, 0.0)
        assert [next(looks).state for _ in range(3)] == ["in progress"] * 3
    run_echo(work)
    assert [look.state for look in looks] == ["finished"]
    watched = command(tmp_path / "out", "--watch", "--exit-status")
    assert (watched.exit_code, watched.output.count("\n")) == (0, 1)


def test_on_a_terminal_there_is_a_bar_within_the_width(work: Job, tmp_path: Path) -> None:
    run_echo(work)
    reader, writer = pty.openpty()
    call = [sys.executable, "-m", "pipeline.cli", "status", str(tmp_path / "out")]
    subprocess.run(call, stdout=writer, check=True, env=os.environ | {"COLUMNS": "60", "TERM": "xterm-256color"})
    shown = os.read(reader, 1 << 16).decode()
    assert "━" * 40 in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b[1;32mfinished\x1b[0m" in shown
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 60 for line in shown.splitlines())


# An object store


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "s",
        "REGION": "x",
        "ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bkt", method="PUT")):
        pass
    yield "s3://bkt"
    server.stop()


def test_a_run_in_an_object_store_is_seen_as_one_on_a_disk_is(work: Job, tmp_path: Path, bucket: str) -> None:
    partial_run(work, 5)
    away = work.model_copy(update={"output": work.output.model_copy(update={"path": f"{bucket}/out"})})
    partial_run(away, 5)
    same = ("state", "shards", "rows", "errors", "generated_tokens", "error_rate", "driver")
    here, there = look(tmp_path / "out"), observe(f"{bucket}/out").look().to_json()
    assert {key: there[key] for key in same} == {key: here[key] for key in same}
    assert isinstance(there["last_part_age_s"], float)
    assert there["last_part_age_s"] < 600
    folder = open_folder(f"{bucket}/out")
    assert folder.read_end("_plan.json", 4) == (folder.read("_plan.json") or b"")[-4:]
    assert folder.read_end("_plan.json", 1 << 20) == folder.read("_plan.json")
    assert folder.read_end("nothing", 4) is None
    with hold(folder):
        assert observe(f"{bucket}/out").look().state == "in progress"


class Ailing(EchoEngine):
    """Fails on one prompt."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ill = tuple(tokenizer.encode(["Today"])[0])

    def _response(self, request: Request) -> Response:
        is_ill = request.prompt_token_ids == self.ill
        return Response(RowError("process_died", "it was ill")) if is_ill else super()._response(request)


def test_errors_that_a_retry_mended_no_longer_count_against_the_run(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["Every bee"] * 6 + ["Today"] * 2 + [None])
    work = make_job(source, tmp_path / "out", run={"shard_rows": 3, "max_error_rate": 0.2})
    job.run(work, job.here, engine_maker=lambda setup, tokenizer: Ailing(tokenizer))
    assert command(tmp_path / "out", "--exit-status").exit_code == 3

    planned = outlook(tmp_path / "out", ["process_died"])
    assert planned is not None
    with pytest.raises(HaltedError):
        carry_out(planned, lambda make_worker, shards: halting(0, make_worker, shards), engine_maker=echo)  # type: ignore[arg-type]
    begun = observe(tmp_path / "out").look()
    assert begun.retries == [Again("0001", is_finished=False, rows=6, num_done=0, num_ok=0)]
    assert Line("retries", "0001 of 6 rows, 0 done and not finished, 0 ok now: 9 errors left") in lines(begun)

    carry_out(planned, job.here, engine_maker=echo)
    seen = look(tmp_path / "out")
    assert (seen["errors"], seen["errors_left"]) == ({"process_died": 6, "prompt_null": 3}, 3)
    assert seen["retries"] == [{"name": "0001", "is_finished": True, "rows": 6, "num_done": 6, "num_ok": 6}]
    done = command(tmp_path / "out", "--exit-status")
    assert done.exit_code == 0
    assert "retries 0001 of 6 rows, 6 ok now: 3 errors left\n" in done.output
