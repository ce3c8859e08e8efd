"""Two runs, and two strategies of one, held against each other: what changed, from where on, how far, exit codes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.compare import View, compare_runs, compare_strategies, first_difference, kl, metrics
from pipeline.errors import InputError
from pipeline.results import open_run
from tests.flows import GREEDY, make_job, run_echo, write_prompts
from tests.forgery import PROMPTS, run_demo


def compare(*arguments: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def ids(*values: int) -> Any:
    return np.array(values, np.int32)


def view(top: list[dict[int, float]], token_ids: list[int] | None = None) -> View:
    """A completion with these candidates at each step."""
    return View(
        "r0",
        0,
        "s",
        0,
        "length",
        ids(1),
        ids(*(token_ids or [next(iter(step)) for step in top])),
        np.array([list(step) for step in top], np.int32),
        np.array([list(step.values()) for step in top], np.float32),
    )


@pytest.fixture(scope="module")
def hotter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `sound` in bfloat16, in other shards."""
    return run_demo(tmp_path_factory.mktemp("half"), model={"name": "demo", "dtype": "bfloat16"}, run={"shard_rows": 2})


@pytest.mark.parametrize(
    ("one", "other", "step"),
    [((1, 2), (1, 2), None), ((1, 2), (1, 3), 1), ((1, 2), (1, 2, 3), 2), ((), (1,), 0), ((), (), None)],
)
def test_the_first_difference_is_a_token_or_an_end(one: Any, other: Any, step: int | None) -> None:
    assert first_difference(ids(*one), ids(*other)) == step
    assert first_difference(ids(*other), ids(*one)) == step


def test_kl_is_over_shared_tokens_and_one_bucket_for_the_rest() -> None:
    """By hand: tokens 7 and 8 are shared, whatever their order; 9 and 5 are part of the rest."""
    found, off_by = kl(view([{7: 0.5, 8: 0.25, 9: 0.125}]), view([{8: 0.5, 7: 0.25, 5: 0.2}]), 1)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5) + 0.25 * math.log(0.25 / 0.25)
    assert found.tolist() == pytest.approx([expected])
    assert off_by == 0.25


def test_kl_of_the_same_distribution_is_0_and_of_disjoint_ones_finite() -> None:
    same = view([{7: 0.75, 8: 0.25}, {8: 1.0, 7: 0.0}])
    assert kl(same, same, 2)[0].tolist() == [0.0, 0.0]
    disjoint, off_by = kl(same, view([{1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.5}]), 2)
    assert (disjoint.tolist(), off_by) == ([0.0, 0.0], 0.0)  # nothing recorded says how they differ


def test_kl_is_never_more_than_that_of_the_whole_distributions() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        p, q = generator.dirichlet(np.full(12, 0.4), 2)
        tops = [dict(sorted(enumerate(each.tolist()), key=lambda pair: -pair[1])[:5]) for each in (p, q)]
        found, _ = kl(view([tops[0]]), view([tops[1]]), 1)
        assert found[0] <= (p * np.log((p + 1e-12) / (q + 1e-12))).sum() + 1e-5


def test_a_run_agrees_with_itself_and_with_itself_in_other_shards(sound: Path, tmp_path: Path) -> None:
    other = run_demo(tmp_path, run={"shard_rows": 2})
    for second in (sound, other):
        document = json.loads(compare(sound, second, "--json").stdout)
        assert (document["agrees"], document["changed_share"]) == (True, 0)
        assert document["kl_max"] < 1e-6
        assert sum(each["rows"] for each in document["strategies"]) == 8 * len(PROMPTS)
        assert {each["changed"] for each in document["strategies"]} == {0}
    assert "agree · 0 % of the rows changed" in compare(sound, other).stdout


def test_another_number_format_changes_what_it_changes(sound: Path, hotter: Path) -> None:
    """Against plain Python over the stored rows."""
    comparison = compare_runs(open_run(sound), open_run(hotter))
    rows = [
        {
            (row["row_id"], row["strategy"], row["sample_index"]): row
            for row in pq.read_table(folder / "data").to_pylist()
        }
        for folder in (sound, hotter)
    ]
    for found in comparison.by_strategy:
        steps: list[int] = []
        for key, one in rows[0].items():
            other = rows[1][key]
            if key[1] == found.names[0] and one["status"] == "ok" and one["token_ids"] != other["token_ids"]:
                pairs = zip(one["token_ids"], other["token_ids"], strict=False)
                shortest = min(len(one["token_ids"]), len(other["token_ids"]))
                steps.append(next((step for step, (a, b) in enumerate(pairs) if a != b), shortest))
        assert sorted(found.steps.elements()) == sorted(steps)
        assert found.num_changed == len(steps)
        assert 0 < found.kl_max < 0.5
        assert 0 < found.prob_off_by < 0.2
    assert comparison.settings == ('model.dtype: "float32" -> "bfloat16"',) or "shard_rows" in comparison.settings[0]
    (shown,) = {each["num_generated_tokens"] for each in rows[0].values() if each["strategy"] == "candidates"} - {0}
    assert shown == 1


def test_the_exit_code_follows_the_tolerances(sound: Path, hotter: Path) -> None:
    strict = compare(sound, hotter, "--max-kl", 1e-7, exit_code=5)
    assert "DIFFER · " in strict.stdout
    assert "a step has a KL above --max-kl 1e-07" in strict.stderr
    loose = compare(sound, hotter, "--max-changed", 1, "--max-kl", 10)
    assert "agree · " in loose.stdout
    assert not loose.stderr
    assert "more than --max-changed 0" in compare(sound, hotter, "--max-kl", 10, exit_code=5).stderr


def test_two_strategies_of_a_run_are_compared_sample_with_sample(sound: Path) -> None:
    comparison = compare_strategies(open_run(sound), "greedy", "stops")
    (found,) = comparison.by_strategy
    rows = {(row["row_id"], row["strategy"]): row for row in pq.read_table(sound / "data").to_pylist()}
    steps = []
    for index in range(len(PROMPTS)):
        one, other = rows[f"r{index}", "greedy"], rows[f"r{index}", "stops"]
        if one["token_ids"] != other["token_ids"]:
            steps.append(len(other["token_ids"]))  # both are greedy, and `stops` ends earlier
    assert steps
    assert sorted(found.steps.elements()) == sorted(steps)
    assert found.kl_max < 1e-6
    assert 'type: "greedy"' not in " ".join(comparison.settings)
    assert any(line.startswith("stop_strings") for line in comparison.settings)
    printed = compare(sound, "--strategies", "greedy,stops").stdout
    assert "greedy → stops" in printed
    assert "ended: stop" in printed
    compare(sound, "--strategies", "greedy,stops", "--max-changed", 0, exit_code=5)


def test_rows_on_one_side_alone_are_counted(sound: Path) -> None:
    comparison = compare_strategies(open_run(sound), "greedy", "hot")
    (found,) = comparison.by_strategy
    assert (found.num_rows, found.only_first, found.only_second) == (len(PROMPTS), 0, len(PROMPTS))
    assert found.changed_share > 0.5


def test_metrics_agree_with_the_rows(sound: Path) -> None:
    results = open_run(sound)
    rows = [row for row in pq.read_table(sound / "data").to_pylist() if row["strategy"] == "hot"]
    ok = [row for row in rows if row["status"] == "ok"]
    tokens = sum(row["num_generated_tokens"] for row in ok)
    assert metrics(results.sums["hot"]) == {
        "perplexity": pytest.approx(math.exp(-sum(row["cumulative_logprob"] for row in ok) / tokens)),
        "entropy": pytest.approx(sum(sum(row["entropies"]) for row in ok) / tokens),
        "rank1": sum(rank == 1 for row in ok for rank in row["token_ranks"]) / tokens,
        "length": tokens / len(ok),
        "eos": sum(row["finish_reason"] == "eos" for row in ok) / len(ok),
        "errors": (len(rows) - len(ok)) / len(rows),
    }


def echoed(folder: Path, prompts: list[str | None], **changes: Any) -> Path:
    """A run of the fake engine over these prompts."""
    folder.mkdir()
    source = write_prompts(folder / "prompts.parquet", prompts)
    run_echo(make_job(source, folder / "out", **changes))
    return folder / "out"


def test_a_row_with_another_prompt_is_changed_and_its_probabilities_are_not_compared(tmp_path: Path) -> None:
    before = echoed(tmp_path / "a", ["One two", "Three", "Four"])
    after = echoed(tmp_path / "b", ["One two", "Three!", "Four"])
    comparison = compare_runs(open_run(before), open_run(after))
    assert [(found.num_rows, found.num_changed, dict(found.steps)) for found in comparison.by_strategy] == [
        (3, 1, {0: 1}),
        (6, 2, {0: 2}),
    ]
    assert comparison.kl_max == 0


def test_a_longer_input_leaves_rows_on_one_side(tmp_path: Path) -> None:
    before = echoed(tmp_path / "a", ["One two"], strategies=[GREEDY])
    after = echoed(tmp_path / "b", ["One two", "Three"], strategies=[GREEDY])
    (found,) = compare_runs(open_run(before), open_run(after)).by_strategy
    assert (found.num_rows, found.num_changed, found.only_first, found.only_second) == (1, 0, 0, 1)
    compare(before, after, exit_code=5)


def test_runs_that_cannot_be_compared_are_refused(sound: Path, tmp_path: Path) -> None:
    other = echoed(tmp_path / "a", ["One two"], strategies=[GREEDY | {"name": "other"}])
    assert "share no strategy" in compare(sound, other, exit_code=2).stderr
    source = write_prompts(tmp_path / "p.parquet", ["One", "Two"], key=["x", "y"])
    named = make_job(source, tmp_path / "named", input={"path": str(source), "id_column": "key"})
    run_echo(named)
    plain = echoed(tmp_path / "b", ["One", "Two"])
    assert "input row 0 is `x` in one run and `r0`" in compare(tmp_path / "named", plain, exit_code=2).stderr
    with pytest.raises(InputError, match="has no strategy `hit`; there are `greedy`"):
        compare_strategies(open_run(sound), "greedy", "hit")


@pytest.mark.parametrize(
    "arguments", [("OUT",), ("OUT", "OUT", "--strategies", "a,b"), ("OUT", "--strategies", "greedy")]
)
def test_arguments_that_make_no_sense_are_refused(arguments: tuple[str, ...], sound: Path) -> None:
    shown = compare(*(str(sound) if each == "OUT" else each for each in arguments), exit_code=2)
    assert "give two runs" in shown.stderr or "takes two names" in shown.stderr


def test_no_examples_are_shown_when_none_are_asked_for(sound: Path, hotter: Path) -> None:
    many = compare(sound, hotter, "--max-changed", 1, "--max-kl", 10).stdout
    none = compare(sound, hotter, "--max-changed", 1, "--max-kl", 10, "-n", 0).stdout
    assert ("row_id\tstrategy" in many, "row_id\tstrategy" in none) == (True, False)
