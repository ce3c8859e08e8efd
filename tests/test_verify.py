"""Proof of an output folder: a sound one passes, and each kind of damage gives exactly its own finding."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipeline import cli, job, proofs
from pipeline.checkpoint import DEMO
from pipeline.errors import InputError, ModelError
from pipeline.proofs.endings import Ended
from pipeline.recorded import RecordedModel, Vocabulary, open_run
from pipeline.records import row_seed
from pipeline.replay import replay
from pipeline.rescore import Rescorer
from pipeline.strategies import ContrastiveSearch, Greedy, Score
from pipeline.verify import STATEMENTS, Report, verify
from pipeline.writer import encode_part
from tests.flows import make_job, write_prompts
from tests.forgery import STRATEGIES, Rows, edit, forge, part_path, read_part, recount, run_demo, seal, write_part

Damage = Callable[[Rows], None]

GREEDY = Greedy(name="g", type="greedy", max_new_tokens=4)
IGNORING = Greedy(name="g", type="greedy", max_new_tokens=4, ignore_eos=True)
LONG = Greedy(name="g", type="greedy", max_length=6)
STOPPING = Greedy(name="g", type="greedy", max_new_tokens=4, min_new_tokens=2, stop_token_ids=[2], stop_strings=["5"])
CONTRAST = ContrastiveSearch(name="c", type="contrastive_search", max_new_tokens=4, penalty_alpha=0.6, top_k=2)
GUIDED = Greedy(name="g", type="greedy", max_new_tokens=4, guidance_scale=2, negative_prompt_ids=[1] * 7)
GUIDED_BY_TEXT = Greedy(name="g", type="greedy", max_new_tokens=4, guidance_scale=2, negative_prompt="long")
SCORE = Score(name="s", type="score")


def differs(said: str, must: str) -> str:
    """What is said of an ending that is not the one it must be."""
    return f"it ended as {said} tokens, but must end as {must} tokens"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound run, to be damaged."""
    return shutil.copytree(sound, tmp_path / "out")


def wrong(report: Report) -> dict[str, tuple[int, str, str]]:
    """Check -> number of findings, place and message of the first."""
    return {
        outcome.check: (outcome.num_wrong, outcome.first.place, outcome.first.message)
        for outcome in report.outcomes
        if outcome.first
    }


def result(report: Report, check: str) -> tuple[str, str | None]:
    [outcome] = [outcome for outcome in report.outcomes if outcome.check == check]
    return outcome.result, outcome.note


def row_of(rows: Rows, row_id: str, strategy: str, sample: int = 0) -> dict[str, Any]:
    [row] = [row for row in rows if (row["row_id"], row["strategy"], row["sample_index"]) == (row_id, strategy, sample)]
    return row


def change(row_id: str, strategy: str, sample: int = 0, /, **values: Any) -> Damage:
    """Set columns of one row; a function makes the new value of the old one."""

    def damage(rows: Rows) -> None:
        row = row_of(rows, row_id, strategy, sample)
        for name, value in values.items():
            row[name] = value(row[name]) if callable(value) else value

    return damage


def test_a_finished_run_is_proven(sound: Path) -> None:
    report = verify(sound, num_rescored=10)
    assert report.is_proven
    assert (report.state, report.num_parts, report.num_planned_parts, report.num_rows) == ("finished", 3, 3, 56)
    assert [(outcome.check, outcome.result) for outcome in report.outcomes] == [
        (check, "not checked" if check == "retries" else "ok") for check in STATEMENTS
    ]


def test_the_sound_run_holds_every_kind_of_row(sound: Path) -> None:
    """Otherwise half of the checks would have nothing to look at."""
    rows = pq.read_table(sound / "data").to_pylist()
    assert {row["finish_reason"] for row in rows} == {"eos", "stop", "length", "context", None}
    assert {row["error_type"] for row in rows} == {None, "prompt_null"}
    assert max(rank for row in rows for rank in row["token_ranks"] or ()) > 4  # chosen outside the alternatives


ROW_DAMAGES: list[tuple[str, str, Damage, str]] = [
    # (what was done, the check that must see it, how it was done, what it must say)
    ("a row lost", "rows", lambda rows: rows.pop(1), "input row 0, strategy hot, sample 0 is missing"),
    (
        "a row twice",
        "rows",
        lambda rows: rows.insert(2, rows[1]),
        "input row 0, strategy hot, sample 0 stands here again",
    ),
    (
        "a sample too many",
        "rows",
        lambda rows: rows.insert(3, {**rows[2], "sample_index": 2, "seed": row_seed(7, "r0", "hot", 2)}),
        "input row 0, strategy hot, sample 2 does not belong here",
    ),
    (
        "two rows swapped",
        "order",
        lambda rows: rows.insert(1, rows.pop(2)),
        "it belongs before the row above it",
    ),
    (
        "another id on one row",
        "ids",
        change("r0", "candidates", row_id="x", seed=row_seed(7, "x", "candidates", 0)),
        "`row_id` is 'x', but 'r0' in the first row of its input row",
    ),
    ("another prompt on one row", "ids", change("r0", "hot", prompt="The"), "`prompt` is 'The', but 'The quiet fox'"),
    ("another kept value on one row", "ids", change("r0", "hot", topic={"name": "t1"}), "`topic` is {'name': 't1'"),
    ("another seed", "seeds", change("r0", "greedy", seed=lambda seed: seed ^ 1), "seed is "),
    ("a status of its own", "status", change("r0", "greedy", status="fine"), "status is `fine`"),
    ("an error without a reason", "status", change("r2", "greedy", error_type=None), "`error_type` is null"),
    ("an error with a text", "status", change("r2", "greedy", text="hello"), "`text` is 'hello', but must be null"),
    ("an error with tokens counted", "status", change("r2", "hot", num_prompt_tokens=3), "`num_prompt_tokens` is 3"),
    ("a completion without an ending", "status", change("r0", "greedy", finish_reason=None), "`finish_reason` is null"),
    ("a completion with an error", "status", change("r0", "greedy", error_type="x"), "`error_type` is 'x'"),
    ("candidates with a text", "status", change("r0", "candidates", text=" "), "`text` is ' ', but must be null"),
    ("a greedy row with a score", "status", change("r0", "greedy", sequence_score=0.0), "`sequence_score` is 0.0"),
    ("a beam without a score", "status", change("r0", "beams", sequence_score=None), "`sequence_score` is null"),
    ("a beam that was drawn", "status", change("r0", "beams", sampling_logprobs=[0.0] * 5), "`sampling_logprobs` is"),
    (
        "a list cut short",
        "lists",
        change("r0", "greedy", token_ranks=lambda ranks: ranks[:-1]),
        "`token_ranks` has 10 entries, but num_generated_tokens is 11",
    ),
    (
        "a prompt counted wrong",
        "lists",
        change("r0", "greedy", num_prompt_tokens=lambda size: size + 1),
        "`prompt_token_ids` has 6 entries, but num_prompt_tokens is 7",
    ),
    (
        "an alternative lost",
        "lists",
        change("r0", "greedy", top_probs=lambda steps: [steps[0][:-1], *steps[1:]]),
        "a step of `top_probs` has not 4 entries",
    ),
    (
        "a null in a list",
        "lists",
        change("r0", "greedy", entropies=lambda entropies: [None, *entropies[1:]]),
        "`entropies` holds a null",
    ),
    (
        "an unknown token",
        "tokens",
        change("r0", "greedy", prompt_token_ids=lambda ids: [*ids[:-1], 10**6]),
        "`prompt_token_ids` holds an id outside 0..",
    ),
    (
        "an unknown alternative",
        "tokens",
        change("r0", "greedy", top_token_ids=lambda steps: [[-1, *steps[0][1:]], *steps[1:]]),
        "`top_token_ids` holds an id outside 0..",
    ),
    ("another text", "text", change("r0", "greedy", text=lambda text: text[:-1]), "text is '"),
    ("a text not cut", "text", change("r0", "stops", text=lambda text: text + "e"), "text is '"),
    (
        "another reason",
        "endings",
        change("r0", "greedy", finish_reason="length"),
        "it ended as `length` after 11 tokens, but must end as `eos` after 11 tokens",
    ),
    (
        "a stop nobody asked for",
        "endings",
        change("r0", "greedy", finish_reason="stop", stop_match="zzz"),
        "it ended as `stop` ('zzz') after 11 tokens, but must end as `eos` after 11 tokens",
    ),
    (
        "alternatives swapped",
        "top_k",
        change(
            "r0",
            "candidates",
            top_token_ids=lambda steps: [[*steps[0][:2], steps[0][3], steps[0][2]]],
            top_probs=lambda steps: [[*steps[0][:2], steps[0][3], steps[0][2]]],
        ),
        "is not in order",
    ),
    (
        "an alternative twice",
        "top_k",
        change("r0", "candidates", top_token_ids=lambda steps: [[*steps[0][:3], steps[0][2]]]),
        "has a token twice",
    ),
    (
        "more than everything",
        "top_k",
        change("r0", "greedy", top_probs=lambda steps: [[steps[0][0] - n / 1000 for n in range(4)], *steps[1:]]),
        "sums to ",
    ),
    (
        "another rank",
        "chosen",
        change("r0", "greedy", token_ranks=lambda ranks: [2, *ranks[1:]]),
        "step 0: token ",
    ),
    (
        "a rank of 0",
        "chosen",
        change("r0", "greedy", token_ranks=lambda ranks: [*ranks[:2], 0, *ranks[3:]]),
        "step 2: log-probabilities ",
    ),
    (
        "another probability of the chosen token",
        "chosen",
        lambda rows: (change("r0", "greedy", token_logprobs=lambda v: [v[0] - 1, *v[1:]])(rows), recount(rows[0])),
        "does not fit",
    ),
    ("a negative entropy", "chosen", change("r0", "greedy", entropies=lambda e: [-1.0, *e[1:]]), "entropy -1.0"),
    ("another sum", "totals", change("r0", "greedy", cumulative_logprob=lambda total: total - 0.01), "but the sum "),
    ("another perplexity", "totals", change("r0", "greedy", perplexity=lambda value: value + 0.1), "perplexity is "),
    ("no perplexity", "totals", change("r0", "greedy", perplexity=None), "perplexity is nan, but must be "),
    ("beams out of order", "totals", change("r0", "beams", 1, sequence_score=0.5), "sequence_score is 0.5, above "),
]


@pytest.mark.parametrize(
    ("check", "damage", "message"), [case[1:] for case in ROW_DAMAGES], ids=[c[0] for c in ROW_DAMAGES]
)
def test_each_damage_to_rows_is_found_by_its_own_check_alone(
    folder: Path, check: str, damage: Damage, message: str
) -> None:
    forge(folder, damage)
    found = wrong(verify(folder))
    assert list(found) == [check]
    assert message in found[check][2]
    assert found[check][1].startswith("data/part-00000.parquet")


def test_every_check_of_rows_has_a_damage_that_it_finds() -> None:
    assert {case[1] for case in ROW_DAMAGES} == set(proofs.STATEMENTS)


def test_a_chosen_token_outside_the_alternatives_must_be_less_probable_than_they_are(folder: Path) -> None:
    def damage(rows: Rows) -> None:
        row = row_of(rows, "r3", "hot")
        assert row["token_ranks"][0] > 4
        row["token_logprobs"][0] = math.log(row["top_probs"][0][0])
        recount(row)

    forge(folder, damage, number=1)
    [(check, (_, _, message))] = wrong(verify(folder)).items()
    assert check == "chosen"
    assert "does not fit" in message


def test_the_place_of_a_finding_names_part_position_and_row(folder: Path) -> None:
    forge(folder, change("r4", "hot", 1, seed=5), number=1)
    [(num_wrong, place, _)] = wrong(verify(folder)).values()
    assert num_wrong == 1
    assert place == "data/part-00001.parquet row 10 (row_id r4, hot, sample 1)"


@pytest.mark.parametrize(
    ("ended", "problem"),
    [
        (Ended(GREEDY, 1, [3, 9], "eos", None), None),
        (Ended(GREEDY, 1, [3, 4, 3, 4], "length", None), None),
        (Ended(GREEDY, 1, [], "length", None), "it ended as `length` after 0 tokens, but nothing ends it there"),
        (Ended(GREEDY, 1, [3], "bored", None), "it ended as `bored` after 1 tokens, but nothing ends it there"),
        (Ended(GREEDY, 1, [3, 9, 3, 9], "eos", None), differs("`eos` after 4", "`eos` after 2")),
        (Ended(GREEDY, 1, [3, 4, 3, 9], "length", None), differs("`length` after 4", "`eos` after 4")),
        (Ended(GREEDY, 1, [3] * 5, "length", None), differs("`length` after 5", "`length` after 4")),
        (Ended(GREEDY, 1, [3, 9], "eos", "x"), differs("`eos` ('x') after 2", "`eos` after 2")),
        (Ended(GREEDY, 6, [3, 4, 3], "context", None), None),
        (Ended(GREEDY, 5, [3, 4, 3, 4], "context", None), differs("`context` after 4", "`length` after 4")),
        (Ended(LONG, 6, [], "length", None), None),
        (Ended(IGNORING, 1, [9, 9, 9, 9], "length", None), None),
        (Ended(IGNORING, 1, [9], "eos", None), "it ended as `eos` after 1 tokens, but nothing ends it there"),
        (Ended(STOPPING, 1, [3, 3, 2], "stop", "tok2"), None),
        (Ended(STOPPING, 1, [3, 3, 2], "stop", "b2"), differs("`stop` ('b2') after 3", "`stop` ('tok2') after 3")),
        (Ended(STOPPING, 1, [1, 3, 4, 5], "stop", "5"), None),
        (Ended(STOPPING, 1, [2], "stop", "t"), "it ended as `stop` ('t') after 1 tokens, but nothing ends it there"),
        (Ended(STOPPING, 1, [2, 3, 2], "stop", "tok2"), None),  # before min_new_tokens nothing stops
        (Ended(CONTRAST, 6, [3, 4], "context", None), None),  # it feeds its last token, which takes a position
        (Ended(GUIDED, 2, [3, 4], "context", None), None),  # a negative prompt of 7 tokens
        (Ended(GUIDED_BY_TEXT, 2, [3, 4], "context", None), None),  # of nobody knows how many
        (Ended(GUIDED_BY_TEXT, 2, [3, 9, 3], "context", None), differs("`context` after 3", "`eos` after 2")),
        (Ended(SCORE, 2, [3, 9, 3], "scored", None), None),
        (Ended(SCORE, 2, [3, 9, 3], "length", None), differs("`length` after 3", "`scored` after 3")),
    ],
)  # fmt: skip
def test_endings_that_can_and_cannot_be(ended: Ended, problem: str | None) -> None:
    """Token 9 is the end of text, 2 a stop token; there are 8 positions, so a prompt of 6 leaves room for 3 tokens."""
    model = RecordedModel("m", "c", num_positions=8, vocab_size=10, eos_token_ids=(9,))
    vocabulary = Vocabulary([f"tok{i}" for i in range(10)], [f"b{i}".encode() for i in range(10)])
    assert ended.problem(model, vocabulary) == problem


def test_several_damages_are_counted_and_the_first_is_shown(folder: Path) -> None:
    def damage(rows: Rows) -> None:
        for row in rows[3:7]:
            row["seed"] += 1

    forge(folder, damage)
    [(num_wrong, place, _)] = wrong(verify(folder)).values()
    assert (num_wrong, place) == (4, "data/part-00000.parquet row 3 (row_id r0, beams, sample 0)")


EVERY_KIND: list[dict[str, Any]] = [
    {"name": "candidates", "type": "next_token", "repetition_penalty": 1.3},
    {"name": "least", "type": "greedy", "max_new_tokens": 12, "min_new_tokens": 8, "stop_strings": ["e"]},
    {"name": "length", "type": "greedy", "max_length": 8, "stop_token_ids": [259]},
    {"name": "hot", "type": "sampling", "max_new_tokens": 500, "temperature": 1.5, "ignore_eos": True},
    {"name": "contrast", "type": "contrastive_search", "max_new_tokens": 500, "penalty_alpha": 0.6, "top_k": 4},
    {"name": "dola", "type": "dola", "max_new_tokens": 8, "dola_layers": "low"},
    {"name": "score", "type": "score"},
    {"name": "target", "type": "score", "target_column": "id"},
    {"name": "guided", "type": "greedy", "max_new_tokens": 200, "guidance_scale": 1.5, "negative_prompt": "Every bee"},
    {"name": "groups", "type": "beam_search", "max_new_tokens": 8, "num_beams": 4, "num_return_sequences": 4}
    | {"num_beam_groups": 2, "diversity_penalty": 1.0},
    {"name": "drawn", "type": "beam_search", "max_new_tokens": 8, "num_beams": 4, "do_sample": True, "top_k": 20},
    {"name": "forced", "type": "beam_search", "max_new_tokens": 12, "num_beams": 4, "force_words": ["river"]},
    {"name": "first", "type": "greedy", "max_new_tokens": 5, "min_new_tokens": 3, "forced_bos_token_id": 767},
]


def test_every_kind_of_strategy_is_proven_rescored_and_replayed(tmp_path: Path) -> None:
    folder = run_demo(tmp_path, strategies=EVERY_KIND)
    report = verify(folder, num_rescored=200)
    assert wrong(report) == {}
    num_ok = pq.read_table(folder / "data")["status"].to_pylist().count("ok")
    assert (result(report, "rescore")[1] or "").startswith(f"{num_ok} rows; ")
    assert {verdict.result for verdict in replay(folder, "r4")} == {"identical"}


def run_with_columns(folder: Path, keep_columns: list[str]) -> Path:
    """A run whose rows bring limits, stop strings and seeds of their own."""
    columns = {"limit": [9, None, 5], "stops": [["e"], None, ["zzz"]], "own": [1, None, 3]}
    source = write_prompts(folder / "columns.parquet", ["The quiet fox", "Every bee", "Today"], **columns)
    strategies = [
        {"name": "hot", "type": "sampling", "max_length": 40, "num_return_sequences": 2},
        {"name": "score", "type": "score"},
    ]
    work = make_job(
        source,
        folder / "out",
        input={"path": str(source), "id_column": "id", "keep_columns": keep_columns},
        strategies=strategies,
        strategy_columns={"max_new_tokens": "limit", "stop_strings": "stops", "seed": "own"},
    )
    job.run(work, job.here)
    return folder / "out"


def test_what_columns_set_for_their_row_is_held_against_them_where_they_were_kept(tmp_path: Path) -> None:
    folder = run_with_columns(tmp_path, ["limit", "stops", "own"])
    assert wrong(verify(folder)) == {}
    assert [row["finish_reason"] for row in pq.read_table(folder / "data").to_pylist()][:2] == ["stop", "stop"]

    def damage(rows: Rows) -> None:
        for row in rows[:3]:
            row["limit"], row["own"] = 2, 2

    forge(folder, damage)
    found = wrong(verify(folder))
    assert {check: count for check, (count, _, _) in found.items()} == {"endings": 2, "seeds": 3}
    assert "must end as `length` after 2 tokens" in found["endings"][2]


def test_what_columns_set_that_were_not_kept_is_said_not_to_be_checked(tmp_path: Path) -> None:
    folder = run_with_columns(tmp_path, [])
    report = verify(folder, num_rescored=9)
    assert wrong(report) == {}
    assert result(report, "seeds") == (
        "not checked",
        "rows may bring their own, in column `own`, which was not kept",
    )
    assert result(report, "endings") == (
        "ok",
        "not of hot: columns that were not kept set `max_new_tokens`, `stop_strings`",
    )
    assert {verdict.result for verdict in replay(folder, "r0")} == {"identical"}
    forge(folder, change("r0", "hot", text="?"))
    assert list(wrong(verify(folder))) == ["text"]


def test_derived_row_ids_are_those_of_file_and_position(tmp_path: Path) -> None:
    run_demo(tmp_path, input={"path": str(tmp_path / "prompts.parquet")})
    assert verify(tmp_path / "out").is_proven

    def damage(rows: Rows) -> None:
        for row in rows:
            row["row_id"] = row["row_id"].replace(":1", ":2")
            row["seed"] = row_seed(7, row["row_id"], row["strategy"], row["sample_index"])

    forge(tmp_path / "out", damage)
    [(check, (num_wrong, _, message))] = wrong(verify(tmp_path / "out")).items()
    assert (check, num_wrong) == ("ids", 8)
    assert message == "row_id is `prompts.parquet:2`, but input row 1 is `prompts.parquet:1`"


# The folder, its documents and the files in it


def test_a_part_that_is_missing_from_a_finished_run_is_found(folder: Path) -> None:
    part_path(folder, 1).unlink()
    found = wrong(verify(folder))
    assert found == {"parts": (1, "data/part-00001.parquet", "it is missing, though the run is finished")}


@pytest.mark.parametrize("name", ["part-00009.parquet", "part-00000.parquet.tmp", "folder"])
def test_anything_foreign_in_data_is_found(folder: Path, name: str) -> None:
    (folder / "data" / name).mkdir() if name == "folder" else (folder / "data" / name).write_bytes(b"")
    found = wrong(verify(folder))
    assert list(found) == ["names"]
    assert found["names"][1] == f"data/{name}"


def test_bytes_that_are_not_those_of_the_manifest_are_found_though_every_row_is_right(folder: Path) -> None:
    path = part_path(folder, 1)
    pq.write_table(pq.read_table(path), path)  # other encodings, same rows and metadata
    found = wrong(verify(folder))
    assert list(found) == ["digests"]
    assert found["digests"][:2] == (1, "data/part-00001.parquet")


def test_a_flipped_bit_is_found_by_the_page_checksum_and_the_digest(folder: Path) -> None:
    data = bytearray(part_path(folder, 0).read_bytes())
    data[200] ^= 1
    part_path(folder, 0).write_bytes(data)
    assert set(wrong(verify(folder))) == {"digests", "file"}


def test_a_torn_part_is_found(folder: Path) -> None:
    data = part_path(folder, 0).read_bytes()
    part_path(folder, 0).write_bytes(data[: len(data) // 2])
    found = wrong(verify(folder))
    assert set(found) == {"digests", "file"}
    assert "it cannot be read whole" in found["file"][2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batchgen.fingerprint", "f" * 64),
        ("batchgen.schema_version", "1"),
        ("batchgen.model_commit", "sha256:other"),
        ("batchgen.dtype", "bfloat16"),
    ],
)
def test_a_part_of_another_run_is_found_by_its_metadata(folder: Path, name: str, value: str) -> None:
    table, metadata = read_part(part_path(folder, 2))
    write_part(part_path(folder, 2), table, metadata | {name: value})
    seal(folder)
    [(check, (num_wrong, place, message))] = wrong(verify(folder)).items()
    assert (check, num_wrong, place) == ("file", 1, "data/part-00002.parquet")
    assert message.startswith(f"its `{name}` is {value}, but must be ")


def test_sums_of_a_part_that_are_not_those_of_its_rows_are_found(folder: Path) -> None:
    table, metadata = read_part(part_path(folder, 0))
    sums = json.loads(metadata["batchgen.sums"])
    sums["hot"]["ranks"]["<=10"] += 1
    part_path(folder, 0).write_bytes(encode_part(table, metadata | {"batchgen.sums": json.dumps(sums)}))
    seal(folder)
    edit(folder / "_manifest.json", lambda manifest: add_one(manifest["strategies"]["hot"]["ranks"], "<=10", -1))
    [(check, (_, _, message))] = wrong(verify(folder)).items()
    assert check == "file"
    assert message == "its `batchgen.sums` are not those of its rows: hot.ranks.<=10 is 1, but must be 0"


def add_one(counts: dict[str, Any], name: str, amount: int = 1) -> None:
    counts[name] += amount


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda table: table.drop_columns(["entropies"]), "its columns are row_id, row_index"),
        (
            lambda table: table.set_column(1, "row_index", table["row_index"].cast(pa.int32())),
            "column `row_index` is int32, but must be int64 not null",
        ),
        (
            lambda table: table.drop_columns(["topic"]).append_column("topic", pa.nulls(table.num_rows, pa.string())),
            "kept column `topic` is string, but struct<name: string, weight: double> in the first part",
        ),
    ],
)
def test_columns_that_are_not_the_declared_ones_are_found(
    folder: Path, alter: Callable[[pa.Table], pa.Table], message: str
) -> None:
    table, metadata = read_part(part_path(folder, 1))
    write_part(part_path(folder, 1), alter(table), metadata)
    seal(folder)
    [(check, (_, place, found))] = wrong(verify(folder)).items()
    assert (check, place) == ("schema", "data/part-00001.parquet")
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("change_manifest", "message"),
    [
        (lambda manifest: add_one(manifest["totals"], "errors"), "totals.errors is 9, but must be 8"),
        (lambda manifest: add_one(manifest["parts"][0], "ok"), "its ok is 16, in the manifest 17"),
        (lambda manifest: manifest["parts"].pop(), "it lacks data/part-00002.parquet, against the plan"),
        (lambda manifest: manifest.update(fingerprint="f"), "its fingerprint is f, the plan's "),
        (
            lambda manifest: add_one(manifest["strategies"]["greedy"], "sum_logprob", -1),
            "strategies.greedy.sum_logprob is ",
        ),
    ],
)
def test_a_manifest_that_miscounts_is_found(
    folder: Path, change_manifest: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(folder / "_manifest.json", change_manifest)
    [(check, (_, _, found))] = wrong(verify(folder)).items()
    assert check == "manifest"
    assert found.startswith(message)


@pytest.mark.parametrize("name", ["_manifest.json", "_vocab.parquet"])
def test_a_document_missing_from_a_finished_run_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    [(check, (_, place, message))] = wrong(verify(folder)).items()
    assert (check, place) == ({"_manifest.json": "manifest", "_vocab.parquet": "vocabulary"}[check and name], name)
    assert message == "it is missing, though the run is finished"


def test_a_manifest_that_is_damaged_or_says_nothing_is_found(folder: Path) -> None:
    (folder / "_manifest.json").write_text("{")
    assert "is damaged" in wrong(verify(folder))["manifest"][2]
    assert list(wrong(verify(folder))) == ["manifest"]
    (folder / "_manifest.json").write_text("{}")
    assert wrong(verify(folder))["manifest"][2].startswith("its fingerprint is None, the plan's ")
    assert list(wrong(verify(folder))) == ["manifest"]


def test_a_vocabulary_of_another_model_is_found(folder: Path) -> None:
    table = pq.read_table(folder / "_vocab.parquet")
    pq.write_table(table.slice(0, 10), folder / "_vocab.parquet")
    report = verify(folder)
    assert list(wrong(report)) == ["vocabulary"]
    assert result(report, "text") == ("not checked", "there is no vocabulary to use")


@pytest.mark.parametrize(
    ("change_plan", "message"),
    [
        (lambda plan: plan["identity"]["inputs"][0].update(sha256="0"), "its identity hashes to "),
        (lambda plan: plan["job"]["input"].update(on_long_prompt="truncate_left"), "`input` of its job is not that of"),
        (lambda plan: add_one(plan, "output_rows"), "it says 57 rows of output of 7 rows of input, but each makes 8"),
        (
            lambda plan: plan.update(input_rows=8, output_rows=64),
            "its inputs have 7 rows, it says 8",
        ),
    ],
)
def test_a_plan_that_was_changed_is_found(
    folder: Path, change_plan: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(folder / "_plan.json", change_plan)
    [(check, (_, place, found))] = wrong(verify(folder)).items()
    assert (check, place) == ("plan", "_plan.json")
    assert found.startswith(message)


def test_shards_that_are_not_those_of_the_inputs_are_found(folder: Path) -> None:
    edit(folder / "_plan.json", lambda plan: add_one(plan["shards"], "count"))
    [(check, (_, _, found))] = wrong(verify(folder)).items()
    assert check == "plan"
    assert found == (
        'it says its shards are {"count": 4, "first": ["data/part-00000.parquet", 0, 3], "last": '
        '["data/part-00002.parquet", 6, 7]}, but its inputs make {"count": 3, "first": ["data/part-00000.parquet", 0, '
        '3], "last": ["data/part-00002.parquet", 6, 7]}'
    )


def test_a_damaged_plan_leaves_nothing_to_believe(folder: Path) -> None:
    (folder / "_plan.json").write_text("{")
    report = verify(folder)
    assert (report.state, report.is_proven, list(wrong(report))) == ("damaged", False, ["plan"])
    assert {outcome.result for outcome in report.outcomes} == {"wrong", "not checked"}


def test_a_folder_that_is_not_a_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no `_plan\.json`: it is not the output folder of a run"):
        verify(tmp_path)


def test_a_folder_with_columns_of_another_version_is_refused(folder: Path) -> None:
    edit(folder / "_plan.json", lambda plan: plan["identity"]["batchgen"].update(schema_version=99))
    with pytest.raises(InputError, match=r"has columns of version 99, and this batchgen knows "):
        verify(folder)


# Running


def test_a_running_folder_is_proven_as_far_as_it_goes(folder: Path) -> None:
    for name in ("_SUCCESS", "_manifest.json", "README.md", "data/part-00001.parquet"):
        (folder / name).unlink()
    report = verify(folder)
    assert report.is_proven
    assert (report.state, report.num_parts, report.num_planned_parts, report.num_rows) == ("running", 2, 3, 32)
    assert result(report, "parts") == ("not checked", "the run is not finished")
    assert result(report, "digests") == ("not checked", "there is no manifest yet")
    assert result(report, "text") == result(report, "rows") == ("ok", None)


def test_a_running_folder_without_a_part_says_what_could_not_be_checked(folder: Path) -> None:
    for name in ("_SUCCESS", "_manifest.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "data")
    report = verify(folder)
    assert (report.is_proven, report.num_rows) == (True, 0)
    assert result(report, "rows") == ("not checked", "there is no part yet")


def test_damage_is_found_in_a_running_folder_too(folder: Path) -> None:
    (folder / "_SUCCESS").unlink()
    (folder / "_manifest.json").rename(folder.parent / "kept.json")
    table, metadata = read_part(part_path(folder, 0))
    write_part(part_path(folder, 0), table.slice(0, 8), metadata)
    found = wrong(verify(folder))
    assert found == {"rows": (16, "data/part-00000.parquet", "input row 1, strategy greedy, sample 0 is missing")}


# Rescoring


def scale_probabilities(by: float) -> Damage:
    """Make every probability of a step so much of what it was: nothing but the model can tell."""

    def damage(rows: Rows) -> None:
        row = row_of(rows, "r0", "hot")
        row["token_logprobs"][2] += math.log(by)
        recount(row)
        row["top_probs"][2] = [prob * by for prob in row["top_probs"][2]]

    return damage


def test_probabilities_that_only_the_model_can_refute_are_found_by_rescoring(folder: Path) -> None:
    forge(folder, scale_probabilities(0.5))
    assert verify(folder).is_proven
    report = verify(folder, num_rescored=100)
    [(check, (num_wrong, place, message))] = wrong(report).items()
    assert (check, num_wrong) == ("rescore", 1)
    assert place == "data/part-00000.parquet row 1 (row_id r0, hot, sample 0)"
    assert message.startswith("the model says otherwise by up to 0.5 in a probability")
    assert (result(report, "rescore")[1] or "").startswith("48 rows; largest difference 0.5")


def test_prompt_logprobs_are_rescored_too(folder: Path) -> None:
    forge(folder, change("r0", "hot", prompt_logprobs=lambda values: [None, values[1] - 0.1, *values[2:]]))
    assert list(wrong(verify(folder, num_rescored=100))) == ["rescore"]


def test_rescored_rows_are_spread_over_parts_and_strategies(sound: Path) -> None:
    run = open_run(sound)
    parts = {shard.key: pq.read_table(sound / shard.key) for shard in run.shards}
    rescorer = Rescorer(run, 12, list(parts))
    picks = {key: rescorer.picks(key, table) for key, table in parts.items()}
    assert [len(positions) for positions in picks.values()] == [4, 4, 4]
    assert all(len(set(positions)) == 4 for positions in picks.values())
    strategies = [parts[key]["strategy"][position].as_py() for key in picks for position in picks[key]]
    assert sorted(strategies) == sorted([strategy["name"] for strategy in STRATEGIES] * 2)
    assert picks == {key: Rescorer(run, 12, list(parts)).picks(key, table) for key, table in parts.items()}


@pytest.mark.parametrize(
    ("dtype", "allowed", "is_within"),
    [
        ("float32", "0.0001 in a probability, 0.001 in a log-probability", False),
        ("bfloat16", "0.2 in a probability, 1 in a log-probability", True),
    ],
)
def test_each_dtype_is_rescored_within_its_own_tolerance(
    dtype: str, allowed: str, is_within: bool, tmp_path: Path
) -> None:
    folder = run_demo(tmp_path, model={"name": "demo", "dtype": dtype})
    assert verify(folder, num_rescored=100).is_proven
    forge(folder, scale_probabilities(0.9))
    report = verify(folder, num_rescored=100)
    assert report.is_proven is is_within
    note = result(report, "rescore")[1] or ""
    assert note.startswith("48 rows; largest difference ")
    assert note.endswith(f"; allowed are {allowed}")


def test_rescoring_with_another_model_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    model = shutil.copytree(DEMO, tmp_path / "model")
    folder = run_demo(tmp_path, model=str(model))
    assert verify(folder, num_rescored=2).is_proven
    edit(model / "generation_config.json", lambda values: values.update(temperature=0.5))
    assert verify(folder).is_proven
    with pytest.raises(ModelError, match=r"generation_config\.json is not the file that the job was planned with"):
        verify(folder, num_rescored=2)


# The command


def batchgen(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_the_command_exits_with_0_when_proven_and_shows_a_line_per_check(sound: Path) -> None:
    done = batchgen("verify", sound, "--rescore", "3")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "check\tresult\twhat must be true\tfirst place, or why not"
    assert [line.split("\t")[0] for line in lines[1:-1]] == list(STATEMENTS)
    assert lines[-1] == f"proven · finished · 3 of 3 parts · 56 rows · {sound}"


def test_the_command_exits_with_5_when_something_is_wrong_and_says_where(folder: Path) -> None:
    forge(folder, change("r0", "hot", text="\x1b[31m"))
    done = batchgen("verify", folder)
    assert done.exit_code == 5
    assert done.stderr.startswith("wrong: text: data/part-00000.parquet row 1 (row_id r0, hot, sample 0): text is ")
    assert "\x1b" not in done.output
    assert done.stdout.splitlines()[-1].startswith("NOT proven, 1 checks found something wrong · finished")
    document = json.loads(batchgen("verify", folder, "--json").stdout)
    assert (document["schema"], document["is_proven"], document["state"]) == (1, False, "finished")
    [found] = [check for check in document["checks"] if check["result"] == "wrong"]
    assert (found["check"], found["num_wrong"]) == ("text", 1)
    assert found["first"] == {
        "check": "text",
        "message": found["first"]["message"],
        "part": "data/part-00000.parquet",
        "row": 1,
        "row_id": "r0",
        "strategy": "hot",
        "sample_index": 0,
    }


def test_the_command_exits_with_2_where_there_is_no_run(tmp_path: Path) -> None:
    done = batchgen("verify", tmp_path)
    assert done.exit_code == 2
    assert "is not the output folder of a run" in done.stderr
