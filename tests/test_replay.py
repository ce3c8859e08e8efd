"""Rows generated again: identical where nothing changed, and else the first step that differs, and by how much."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipeline import cli
from pipeline.checkpoint import DEMO
from pipeline.errors import InputError, ModelError
from pipeline.replay import Verdict, replay
from pipeline.rescore import Difference
from tests.flows import echo
from tests.forgery import STRATEGIES, Rows, edit, forge, part_path, run_demo

COMPLETIONS = [("greedy", 0), ("hot", 0), ("hot", 1), ("beams", 0), ("beams", 1), ("stops", 0), ("context", 0)]


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound run, to be changed."""
    return shutil.copytree(sound, tmp_path / "out")


def batchgen(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def set_step(rows: Rows, name: str, step: int, value: object) -> None:
    """Change a step of row r0 under `greedy`."""
    rows[0][name][step] = value


@pytest.mark.parametrize("row_id", ["r0", "r3", "r6"])
def test_every_completion_of_a_row_is_identical_when_generated_again_alone(sound: Path, row_id: str) -> None:
    verdicts = replay(sound, row_id)
    assert [(verdict.strategy, verdict.sample_index) for verdict in verdicts] == [*COMPLETIONS, ("candidates", 0)]
    assert {(verdict.result, verdict.message, verdict.step) for verdict in verdicts} == {("identical", None, None)}
    assert all(verdict.difference.is_within(Difference(2e-5, 2e-5)) for verdict in verdicts)


def test_replay_needs_neither_the_input_nor_a_finished_run(folder: Path, tmp_path: Path) -> None:
    work = json.loads((folder / "_plan.json").read_text())["job"]
    assert Path(work["input"]["path"]).exists()
    edit(folder / "_plan.json", lambda plan: plan["job"]["input"].update(path=str(tmp_path / "gone.parquet")))
    for name in ("_SUCCESS", "_manifest.json", "data/part-00002.parquet"):
        (folder / name).unlink()
    assert {verdict.result for verdict in replay(folder, "r4")} == {"identical"}


def test_a_strategy_and_a_sample_can_be_chosen(sound: Path) -> None:
    [verdict] = replay(sound, "r6", "beams", 1)
    assert verdict[:4] == ("beams", 1, 5, "identical")


def test_a_derived_id_finds_its_row(tmp_path: Path) -> None:
    folder = run_demo(tmp_path, input={"path": str(tmp_path / "prompts.parquet")}, strategies=STRATEGIES[:1])
    part_path(folder, 0).write_bytes(b"")  # not even looked at
    assert [verdict.result for verdict in replay(folder, "prompts.parquet:4")] == ["identical"]
    with pytest.raises(InputError, match=r"has row `prompts\.parquet:7`"):
        replay(folder, "prompts.parquet:7")


def test_a_changed_token_is_the_first_step_that_differs(folder: Path) -> None:
    forge(folder, lambda rows: set_step(rows, "token_ids", 2, 11))
    [verdict] = replay(folder, "r0", "greedy")
    assert (verdict.result, verdict.step) == ("differs", 2)
    token = pq.read_table(folder / "_vocab.parquet").to_pylist()[11]["token"]
    assert verdict.message is not None
    assert verdict.message.startswith(f"step 2: stored 11 {token!r} with probability 0.")
    assert ", here " in verdict.message
    assert verdict.difference.is_within(Difference(2e-5, 2e-5))


def test_a_changed_probability_is_told_with_its_step_and_size(folder: Path) -> None:
    forge(folder, lambda rows: set_step(rows, "token_logprobs", 3, rows[0]["token_logprobs"][3] - 0.5))
    [verdict] = replay(folder, "r0", "greedy")
    assert (verdict.result, verdict.step) == ("differs", 3)
    assert verdict.difference.logprob == pytest.approx(0.5, abs=1e-4)
    assert (verdict.message or "").startswith("step 3: stored ")


def test_a_completion_that_goes_on_where_the_other_ends_differs_there(folder: Path) -> None:
    def cut(rows: Rows) -> None:
        for name, values in rows[0].items():
            if isinstance(values, list) and not name.startswith("prompt"):
                rows[0][name] = values[:-1]
        rows[0]["num_generated_tokens"] -= 1

    forge(folder, cut)
    [verdict] = replay(folder, "r0", "greedy")
    assert (verdict.result, verdict.step) == ("differs", 10)
    assert (verdict.message or "").startswith("step 10: stored the end, `eos`, here ")


def test_a_changed_text_or_ending_differs_though_no_token_does(folder: Path) -> None:
    forge(folder, lambda rows: rows[0].update(text="?"))
    [verdict] = replay(folder, "r0", "greedy")
    assert (verdict.result, verdict.step) == ("differs", None)
    assert verdict.message == "text is '?', here ' barks because it wants berries.'"


def test_another_engine_is_seen_at_once(sound: Path) -> None:
    [verdict] = replay(sound, "r0", "greedy", engine_maker=echo)
    assert (verdict.result, verdict.step) == ("differs", 0)


def near_tie(folder: Path) -> Verdict:
    """What replay says after the third token was swapped for the runner-up, with its probability."""

    def swap(rows: Rows) -> None:
        set_step(rows, "token_ids", 2, rows[0]["top_token_ids"][2][1])

    forge(folder, swap)
    [verdict] = replay(folder, "r0", "greedy")
    return verdict


def test_bfloat16_may_give_another_token_where_the_distributions_agree(tmp_path: Path) -> None:
    folder = run_demo(tmp_path, model={"name": "demo", "dtype": "bfloat16"})
    verdict = near_tie(folder)
    assert (verdict.result, verdict.step) == ("near tie", 2)
    assert batchgen("replay", folder, "--row-id", "r0", "--strategy", "greedy").exit_code == 0
    forge(folder, lambda rows: set_step(rows, "top_probs", 2, [0.3, 0.2, 0.1, 0.0]))
    [verdict] = replay(folder, "r0", "greedy")
    assert (verdict.result, verdict.step) == ("differs", 2)


def test_float32_may_not(folder: Path) -> None:
    assert near_tie(folder).result == "differs"


def test_error_rows_have_nothing_to_replay(sound: Path) -> None:
    with pytest.raises(InputError, match=r"row `r2` holds errors alone here.*column `prompt` is null.*retry-errors"):
        replay(sound, "r2")


def test_error_rows_beside_completions_are_said_and_not_replayed(folder: Path) -> None:
    nothing = dict.fromkeys(("text", "token_ids", "finish_reason", "token_logprobs", "top_probs", "prompt_token_ids"))
    forge(folder, lambda rows: rows[0].update(nothing, status="error", error_type="x", error_message="it was ill"))
    verdicts = replay(folder, "r0")
    assert verdicts[0][:5] == ("greedy", 0, 11, "error row", "it was ill")
    assert {verdict.result for verdict in verdicts[1:]} == {"identical"}


def test_a_row_strategy_or_sample_that_is_not_there_is_refused(sound: Path) -> None:
    with pytest.raises(InputError, match=r"no part of .* has row `nobody`"):
        replay(sound, "nobody")
    with pytest.raises(
        InputError, match=r"row `r0` has no strategy `hot` with sample 2; it has `greedy` sample 0, `hot`"
    ):
        replay(sound, "r0", "hot", 2)


def test_a_model_that_changed_is_refused(tmp_path: Path) -> None:
    model = shutil.copytree(DEMO, tmp_path / "model")
    folder = run_demo(tmp_path, model=str(model), strategies=STRATEGIES[:1])
    edit(model / "config.json", lambda values: values.update(layer_norm_epsilon=1e-3))
    with pytest.raises(ModelError, match=r"model/config\.json is not the file that the job was planned with"):
        replay(folder, "r0")
    shutil.rmtree(model)
    with pytest.raises(ModelError, match="is not a folder"):
        replay(folder, "r0")


def test_the_command_prints_a_line_per_completion_and_exits_with_5_where_one_differs(folder: Path) -> None:
    done = batchgen("replay", folder, "--row-id", "r0")
    assert done.exit_code == 0
    assert [line.split("\t")[:4] for line in done.stdout.splitlines()[:3]] == [
        ["strategy", "#", "tokens", "result"],
        ["greedy", "0", "11", "identical"],
        ["hot", "0", "6", "identical"],
    ]
    forge(folder, lambda rows: set_step(rows, "token_ids", 2, 11))
    done = batchgen("replay", folder, "--row-id", "r0", "--json")
    assert done.exit_code == 5
    document = json.loads(done.stdout)
    assert (document["schema"], document["row_id"]) == (1, "r0")
    first = document["completions"][0]
    assert (first["strategy"], first["result"], first["step"]) == ("greedy", "differs", 2)
    assert batchgen("replay", folder, "--row-id", "nobody").exit_code == 2
