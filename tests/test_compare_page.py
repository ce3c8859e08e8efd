"""The page of a comparison in a real browser: its numbers are those of the terminal and of DuckDB, what changed is
marked, and the alternatives of both sides are there for pointer, keyboard and ear."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from pipeline import job
from pipeline.cli import main
from pipeline.compare import Pair, View, compare_runs
from pipeline.report.selection import ChangePicker
from pipeline.report.wording import change, number
from pipeline.results import open_run
from pipeline.statistics import Estimate
from tests.flows import GREEDY, SAMPLES, make_job, run_echo, write_prompts
from tests.forgery import PROMPTS, run_demo
from tests.pages import HOSTILE, opened, payload_of, shown_prompts, violations
from tests.test_compare import view
from tests.test_retry import ILL, ill_on, retry

LOOSE = ("--max-changed", "1", "--max-kl", "10")


def written(path: Path, *arguments: object, exit_code: int = 0) -> Path:
    result = CliRunner().invoke(main, ["compare", *map(str, arguments), "-o", str(path)])
    assert result.exit_code == exit_code, result.output
    assert result.stderr.splitlines()[-1].startswith(f"{path} · ")
    return path


def document_of(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["compare", *map(str, arguments), *LOOSE, "--json"])
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `sound` in bfloat16 and with another seed."""
    return run_demo(tmp_path_factory.mktemp("other"), model={"name": "demo", "dtype": "bfloat16"}, seed=8)


@pytest.fixture(scope="module")
def page_of_runs(sound: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("page") / "runs.html", sound, other, exit_code=5)


@pytest.fixture(scope="module")
def page_of_strategies(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("page") / "two.html", sound, "--strategies", "greedy,hot")


def joined(sound: Path, other: Path) -> duckdb.DuckDBPyRelation:
    """Rows of both runs beside each other; `step` is the first that differs, from 0, null for the same."""
    return duckdb.sql(f"""
        WITH pairs AS (
            SELECT a.row_id, a.strategy, a.sample_index, a.token_ids AS one, b.token_ids AS other,
                   a.top_token_ids AS one_ids, a.top_probs AS one_probs, b.top_probs AS other_probs,
                   list_position([p[1] IS DISTINCT FROM p[2] FOR p IN list_zip(a.token_ids, b.token_ids)], true) place
            FROM '{sound}/data/*.parquet' a JOIN '{other}/data/*.parquet' b USING (row_index, strategy, sample_index))
        SELECT *, CAST(place AS INTEGER) - 1 AS step FROM (SELECT * REPLACE (nullif(place, 0) AS place) FROM pairs)""")


def cell(page: Any, row_id: str, strategy: str) -> Any:
    return page.locator(f'.prompt[aria-label="prompt {row_id}"] .cell[data-strategy="{strategy}"]')


def pick_of(found: Any) -> dict[str, tuple[str, str]]:
    """Percentages of both sides by token, as the card shows them."""
    rows = found.locator("tbody tr").all()
    return {
        row.locator(".piece").inner_text(): tuple(p.removeprefix("▸ ") for p in row.locator(".p").all_text_contents())
        for row in rows
    }


# Numbers


def test_the_table_says_what_the_terminal_and_duckdb_say(
    browser: Any, sound: Path, other: Path, page_of_runs: Path
) -> None:
    counts = {
        name: (rows, changed, least)
        for name, rows, changed, least in joined(sound, other)
        .aggregate("strategy, count(*), count(step), min(step)", "strategy")
        .fetchall()
    }
    with opened(browser, page_of_runs) as page:
        for each in document_of(sound, other)["strategies"]:
            row = page.locator(".changes tbody tr", has=page.get_by_role("rowheader", name=each["first"], exact=True))
            cells = [text.split("\n")[0] for text in row.locator("td").all_inner_texts()]
            rows, changed, least = counts[each["first"]]
            median = each["median_first_step"]
            before = "–" if least is None else f"{least} (median {median})"
            divergence = [number(each[key]) for key in ("kl_mean", "kl_max", "prob_off_by")]
            assert (each["rows"], each["changed"]) == (rows, changed)
            assert [*cells[:2], *cells[3:]] == [str(rows), str(changed), before, *divergence]
            assert row.locator("svg").get_attribute("aria-label").startswith("same: ") or changed == rows


def test_the_charts_count_what_the_document_counts(sound: Path, other: Path, page_of_runs: Path) -> None:
    text = page_of_runs.read_text()
    for each in document_of(sound, other)["strategies"]:
        name = each["first"]
        for what, counts in (
            ("tokens before the first difference", each["first_steps"]),
            ("KL in nats", each["kl_steps"]),
        ):
            chart = re.search(rf'aria-label="{what}[^"]*, {name}, most often [^"]*">(.*?)</svg>', text, re.S)
            assert chart is not None
            bars = [int(count.replace(",", "")) for count in re.findall(r"\(([\d,]+)\)</title>", chart[1])]
            assert bars == [count for count in counts.values() if count]


def test_metrics_are_those_of_the_terminal_with_their_difference(
    browser: Any, sound: Path, other: Path, page_of_runs: Path
) -> None:
    with opened(browser, page_of_runs) as page:
        head = page.locator(".metrics thead th").all_inner_texts()
        bodies = page.locator(".metrics tbody").all()
        for body, each in zip(bodies, document_of(sound, other)["strategies"], strict=True):
            rows = [
                [text.split("\n")[0] for text in row.locator("th, td").all_inner_texts()]
                for row in body.locator("tr").all()
            ]
            for label, key in (("perplexity", "perplexity"), ("entropy", "entropy"), ("tokens", "length")):
                values = [each["metrics"][side][key] for side in ("first", "second")]
                shown = [row[head.index(label)] for row in rows]
                assert shown[:2] == [number(value) for value in values]
                assert shown[2] == change(Estimate(values[1] - values[0]), is_share=False)[0]


def test_the_verdict_and_what_differs_are_on_top(browser: Any, sound: Path, other: Path, page_of_runs: Path) -> None:
    with opened(browser, page_of_runs) as page:
        verdict = page.locator(".verdict").inner_text()
        share = document_of(sound, other)["changed_share"]
        assert verdict.startswith("DIFFER")
        assert f"{100 * share:.3g} % of the rows changed" in verdict
        note = page.locator(".verdict + .note").inner_text()
        assert note.startswith("Exit code 5 · more than --max-changed 0 of the rows changed")
        assert note.endswith(f"batchgen compare {sound} {other} --max-changed 0 --max-kl 0.001")
        assert page.locator(".settings li").all_inner_texts() == [
            "seed: 7 -> 8",
            'model.dtype: "float32" -> "bfloat16"',
        ]
        facts = page.locator(".facts-of").first
        assert facts.locator("tr", has_text="seed").locator("td").all_inner_texts() == ["7", "8"]
        assert facts.locator("tr", has_text="numbers").locator("td").all_inner_texts() == [
            "float32, determinism exact",
            "bfloat16, determinism fast",
        ]
        page.get_by_text("The same on both sides").click()
        assert page.locator(".facts-of").nth(1).locator("tr", has_text="model").locator("td").inner_text() == "demo"


def test_a_run_agrees_with_itself_and_says_so(browser: Any, sound: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "same.html", sound, sound)
    with opened(browser, path) as page:
        assert page.locator(".verdict").inner_text().startswith("agree")
        assert not page.locator("input[name=different]").is_checked()
        assert len(shown_prompts(page)) == len(PROMPTS)
        assert set(page.locator(".pair > header span:last-child").all_inner_texts()) == {"the same on both sides"}
        assert page.locator(".side").count() == 5 * len(PROMPTS) + 1  # candidates have a table, but for the error
        assert page.locator(".parts").count() == 0


# Prompts


def test_the_first_token_that_differs_is_marked_on_both_sides(
    browser: Any, sound: Path, other: Path, page_of_runs: Path
) -> None:
    changed = joined(sound, other).filter("step IS NOT NULL AND strategy = 'greedy'").fetchall()
    columns = joined(sound, other).columns
    assert changed
    with opened(browser, page_of_runs) as page:
        for values in changed:
            row = dict(zip(columns, values, strict=True))
            found = cell(page, row["row_id"], "greedy")
            marks = [found.locator(".side").nth(side).locator(".parts") for side in (0, 1)]
            assert [mark.get_attribute("data-i") for mark in marks] == [str(row["step"])] * 2
            assert f"the same for {row['step']} tokens, then changed" in found.locator("header").first.inner_text()
        names = page.eval_on_selector_all(".prompt .cell", "all => all.map(e => e.dataset.strategy)")
        assert names.count("greedy") == len(changed)


def test_the_card_has_the_percentages_of_both_sides(browser: Any, sound: Path, other: Path, page_of_runs: Path) -> None:
    pairs = joined(sound, other)
    row = dict(zip(pairs.columns, pairs.filter("step > 0 AND strategy = 'greedy'").fetchall()[0], strict=True))
    step = row["step"]
    with opened(browser, page_of_runs) as page:
        token = cell(page, row["row_id"], "greedy").locator(".side").first.locator(".parts")
        token.hover()
        card = pick_of(page.locator("#card"))
        stored = [sorted(row[name][step], reverse=True) for name in ("one_probs", "other_probs")]
        for side in (0, 1):
            shown = sorted((float(both[side][:-2]) for both in card.values() if both[side] != "–"), reverse=True)
            assert shown[:4] == pytest.approx([100 * p for p in stored[side]], rel=0.006)
        taken = page.locator("#card .taken").all_text_contents()
        assert len(taken) == 2
        assert all(text.startswith("▸ ") for text in taken)
        assert "→" in page.locator("#card .head").inner_text()
        token.click()
        page.mouse.move(0, 0)
        assert page.locator("#card").is_visible()
        page.keyboard.press("Escape")
        assert page.locator("#card").is_hidden()


def test_behind_the_difference_a_side_stands_alone(browser: Any, page_of_runs: Path) -> None:
    with opened(browser, page_of_runs) as page:
        side = page.locator(".side:has(.parts)").first
        side.locator(".t").last.hover()
        assert "saw another text here" in page.locator("#card").inner_text()
        assert page.locator("#card .both").count() == 0
        assert page.locator("#card .bars").count() == 1


def test_candidates_are_one_table_of_both_sides(browser: Any, sound: Path, page_of_runs: Path) -> None:
    with opened(browser, page_of_runs) as page:
        page.locator("input[name=different]").uncheck()
        shown = pick_of(cell(page, "r4", "candidates"))
        stored = duckdb.sql(
            f"SELECT top_probs[1] FROM '{sound}/data/*.parquet' WHERE row_id = 'r4' AND strategy = 'candidates'"
        )
        (probs,) = stored.fetchall()[0]
        assert [float(both[0][:-2]) for both in shown.values()] == pytest.approx([100 * p for p in probs], rel=0.006)


def test_the_keyboard_walks_the_tokens_and_the_ear_hears_both_sides(browser: Any, page_of_runs: Path) -> None:
    with opened(browser, page_of_runs) as page:
        page.keyboard.press("j")
        page.keyboard.press("Tab")  # the link
        for _ in range(8):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('.tokens')"):
                break
        assert page.locator("#live").inner_text().startswith("first: ")
        assert ". second: " in page.locator("#live").inner_text()
        assert page.locator("#card .both").is_visible()
        page.keyboard.press("End")
        assert "saw another text here" in page.locator("#live").inner_text()
        page.keyboard.press("Escape")
        assert page.locator("#card").is_hidden()


def test_filters_leave_what_is_asked_for(browser: Any, sound: Path, other: Path, page_of_runs: Path) -> None:
    pairs = joined(sound, other)

    def ids(where: str) -> list[str]:
        return [row_id for (row_id,) in pairs.filter(where).project("row_id").distinct().order("row_id").fetchall()]

    with opened(browser, page_of_runs) as page:
        assert shown_prompts(page) == ids("step IS NOT NULL")
        page.locator("select[name=strategy]").select_option("hot")
        page.locator("input[name=different]").uncheck()
        assert page.locator(".cell").count() == len(PROMPTS)
        page.locator("h1").click()
        page.keyboard.press("d")
        assert page.locator("input[name=different]").is_checked()
        assert page.locator(".cell").count() == len(ids("step IS NOT NULL AND strategy = 'hot'"))
        page.locator("#reset").click()
        page.locator("input[name=different]").uncheck()
        page.locator("#search").fill("EVERY BEE")
        assert shown_prompts(page) == ["r1"]
        address = page.evaluate("location.hash")
    with opened(browser, page_of_runs, address) as page:
        assert shown_prompts(page) == ["r1"]


def test_samples_are_stepped_through_in_pairs(browser: Any, page_of_strategies: Path) -> None:
    with opened(browser, page_of_strategies) as page:
        found = cell(page, "r0", "greedy → hot")
        assert "1 of 2" in found.locator(".stepper").inner_text()
        assert "only in" not in found.locator(".changed").inner_text()
        found.get_by_label("next sample").click()
        assert found.locator(".changed").inner_text() == "only in the second"
        assert found.locator(".side").first.inner_text() == "first\n\nno such row"
        assert page.locator(".settings li").first.inner_text() == "max_new_tokens: 12 -> 6"
        assert page.locator(".verdict + .note").inner_text().startswith("No tolerance was asked for. Exit code 0")


# Kinds of runs


def echoed(folder: Path, prompts: list[str | None], **changes: Any) -> Path:
    folder.mkdir()
    run_echo(make_job(write_prompts(folder / "p.parquet", prompts), folder / "out", **changes))
    return folder / "out"


def test_another_prompt_is_shown_and_nothing_in_it_acts(browser: Any, tmp_path: Path) -> None:
    before = echoed(tmp_path / "a", ["One two", "Three", None], strategies=[GREEDY])
    after = echoed(tmp_path / "b", ["One two", HOSTILE, "Four", "Five six"], strategies=[GREEDY])
    with opened(browser, written(tmp_path / "c.html", before, after, exit_code=5)) as page:
        assert shown_prompts(page) == ["r1", "r2", "r3"]
        assert page.locator(".second-prompt .text").first.text_content() == HOSTILE
        assert page.evaluate("window.hacked") is None
        words = [cell(page, row_id, "greedy").locator(".changed").inner_text() for row_id in ("r1", "r2", "r3")]
        assert words == ["changed from the first token on", "changed from the first token on", "only in the second"]
        assert "error: prompt_null" in cell(page, "r2", "greedy").inner_text()
        cell(page, "r1", "greedy").locator(".t").first.hover()
        assert "saw another text here" in page.locator("#card").inner_text()
        assert page.locator(".changes tbody td").first.inner_text().endswith("1 only in the second")


def test_the_same_text_in_other_tokens_is_another_prompt(browser: Any, tmp_path: Path) -> None:
    folders = []
    for name, cut in (("a", "truncate_left"), ("b", "truncate_right")):
        source = write_prompts(tmp_path / f"{name}.parquet", ["I skip across the " * 100])
        given = {"path": str(source), "id_column": "id", "on_long_prompt": cut}
        run_echo(make_job(source, tmp_path / name, input=given, strategies=[GREEDY]))
        folders.append(tmp_path / name)
    with opened(browser, written(tmp_path / "c.html", *folders, exit_code=5)) as page:
        assert page.locator(".second-prompt").inner_text() == "in the second: the same text, in other tokens"
        page.locator(".tokens .t").first.hover()
        assert page.locator("#card .both").count() == 0


def test_runs_that_recorded_differently_many_alternatives_are_compared(browser: Any, tmp_path: Path) -> None:
    folders = []
    for top_k in (0, 2, 5):
        source = write_prompts(tmp_path / f"{top_k}.parquet", ["I skip across the"])
        output = {"path": str(tmp_path / f"k{top_k}"), "top_k": top_k}
        job.run(make_job(source, tmp_path / f"k{top_k}", output=output, strategies=[GREEDY]), job.here)
        folders.append(tmp_path / f"k{top_k}")
    for name, (first, second), num_bars in (("c", folders[1:], 7), ("d", folders[:2], 3)):
        with opened(browser, written(tmp_path / f"{name}.html", first, second)) as page:
            page.locator("input[name=different]").uncheck()
            cell(page, "r0", "greedy").locator(".t").first.hover()
            assert page.locator("#card .bar").count() == num_bars


def test_a_large_run_is_sampled_and_the_page_says_how(tmp_path: Path) -> None:
    prompts = [f"I skip across the {at}" for at in range(120)]
    before = echoed(tmp_path / "a", prompts, strategies=[GREEDY, SAMPLES], run={"shard_rows": 50})
    changed = [prompt if at % 10 else f"The fox {at}" for at, prompt in enumerate(prompts)]
    after = echoed(tmp_path / "b", changed, strategies=[GREEDY, SAMPLES], run={"shard_rows": 64})
    path = written(tmp_path / "c.html", before, after, "--prompts", 30, exit_code=5)
    document = path.read_text()
    assert "30 of 120: the first, those that changed as far as there is room" in document
    header, _ = payload_of(document)
    shown = {prompt["index"] for prompt in header["prompts"]}
    assert len(shown) == 30
    assert {*range(0, 120, 10), *range(4)} <= shown
    assert {why for prompt in header["prompts"] for why in prompt["why"]} == {
        *("among the first", "changed", "greedy changes earliest", "greedy changes latest", "greedy largest KL"),
        *("samples changes earliest", "samples changes latest", "samples largest KL"),
    }
    again = written(tmp_path / "d.html", before, after, "--prompts", 30, exit_code=5)
    assert again.read_text() == document


def test_every_way_to_change_is_a_reason_to_be_shown() -> None:
    plain = view([{7: 1.0}, {8: 1.0}])
    picker = ChangePicker(2)
    pairs = [
        (plain, None),
        (None, plain),
        (plain, plain._replace(end="error")),
        (plain, plain._replace(end="eos")),
        (plain, view([{7: 1.0}, {9: 1.0}])),
    ]
    for index, (one, other) in enumerate(pairs):
        sides: list[View | None] = [each and each._replace(row_index=index) for each in (one, other)]
        step = {2: 2, 3: 2, 4: 1}.get(index)
        picker.add(("a", "b"), Pair(sides[0], sides[1], step, plain.top_probs[:, 0].astype(float)[:0], 0.0))
    picker.chosen(picker.num_prompts)
    assert picker.num_prompts == 5
    assert {
        reason: [prompt for _, prompt in found] for reason, found in picker.lowest.items() if reason != "changed"
    } == {
        "a → b only in the first": [0],
        "a → b only in the second": [1],
        "a → b is an error on one side": [2],
        "a → b ends in another way": [3],
        "a → b changes earliest": [4],
        "a → b changes latest": [4],
    }
    assert len(picker.lowest["changed"]) == 2  # as many as there is room for


def test_rows_that_a_retry_mended_are_compared_and_shown(sound: Path, tmp_path: Path) -> None:
    folder = run_demo(tmp_path, engine_maker=ill_on(*ILL))
    assert compare_runs(open_run(sound), open_run(folder)).changed_share > 0.3
    retry(folder)
    header, _ = payload_of(written(tmp_path / "c.html", sound, folder).read_text())
    assert set(header["rows"]["step"]) == {None}
    assert None not in header["rows"]["other"]


# The command


def test_a_page_is_replaced_only_when_asked_and_before_anything_is_read(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.html"
    path.write_text("mine")
    result = CliRunner().invoke(main, ["compare", str(sound), "nowhere", "-o", str(path)])
    assert (result.exit_code, path.read_text()) == (2, "mine")
    assert "is there already. Give another name with -o, or --force" in result.output
    assert written(path, sound, sound, "--force").read_text().startswith("<!doctype html>")


def test_nothing_in_the_document_asks_for_anything(page_of_runs: Path) -> None:
    text = page_of_runs.read_text()
    assert re.findall(r'(?:src|href)="([^#][^"]*)"', text) == ["data:,"]
    assert "url(" not in text.split("</style>")[0]
    assert text.count("<script") == 2


# Ways to look at it


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_keeps_the_rules_of_wcag(browser: Any, page_of_runs: Path, scheme: str) -> None:
    with opened(browser, page_of_runs, color_scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        page.locator("#search").fill("Count")
        page.locator("input[name=different]").uncheck()
        page.locator(".parts").first.click()
        assert page.locator("#card .both").is_visible()
        assert violations(page) == []


def test_a_narrow_window_needs_no_sideways_scrolling(browser: Any, page_of_runs: Path) -> None:
    with opened(browser, page_of_runs, viewport={"width": 320, "height": 700}) as page:
        page.locator(".parts").first.hover()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_print_opens_what_is_folded_and_leaves_out_what_only_a_screen_can_do(browser: Any, page_of_runs: Path) -> None:
    with opened(browser, page_of_runs) as page:
        page.emulate_media(media="print")
        assert page.locator("#filters").is_hidden()
        folded = page.locator(".facts-of").nth(1).locator("tr", has_text="numpy")
        assert folded.bounding_box()["height"] > 0
        assert page.pdf(print_background=True).startswith(b"%PDF")


def test_without_scripts_the_tables_and_the_first_changes_are_there(
    browser: Any, sound: Path, other: Path, page_of_runs: Path
) -> None:
    with opened(browser, page_of_runs, java_script_enabled=False) as page:
        changed = sum(each["changed"] for each in document_of(sound, other)["strategies"])
        assert page.locator("noscript tbody tr").count() == changed
        assert page.locator(".metrics tbody").count() == 6
