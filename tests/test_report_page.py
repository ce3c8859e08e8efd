"""The report in a real browser: pointer, keyboard, filters, themes; nothing is asked of the network, nothing acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import job
from pipeline.report import write_report
from tests.flows import make_job, run_echo, write_prompts
from tests.pages import HOSTILE, PROMPTS, count, make_run, opened, rows_of, shown_prompts, violations


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def report(run_folder: Path) -> Path:
    return write_report(run_folder, run_folder.parent / "report.html").path


def cell(page: Any, row_id: str, strategy: str) -> Any:
    return page.locator(f'.prompt[aria-label="prompt {row_id}"] .cell[data-strategy="{strategy}"]')


def one_row(folder: Path, row_id: str, strategy: str, sample: int = 0) -> dict[str, Any]:
    return rows_of(folder, f"row_id = '{row_id}' AND strategy = '{strategy}' AND sample_index = {sample}")[0]


# What is there


def test_every_completion_on_the_page_is_the_stored_text(browser: Any, run_folder: Path, report: Path) -> None:
    with opened(browser, report) as page:
        for strategy in ("greedy", "beams", "contrast", "given"):
            for row_id in ("r0", "r1", "r4", "r6"):
                row = one_row(run_folder, row_id, strategy)
                found = cell(page, row_id, strategy).locator(".t:not(.special)").all_text_contents()
                assert "".join(found) == (row["text"] if strategy != "given" else row["prompt"])
        assert page.locator(".prompt").count() == len(PROMPTS)


def test_error_rows_say_what_happened(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        failed = cell(page, "r5", "greedy")
        assert "error: prompt_null" in failed.inner_text()
        assert "column `prompt` is null" in failed.inner_text()
        assert page.locator('.prompt[aria-label="prompt r5"] > header').inner_text().endswith("no prompt")


def test_candidates_are_bars_with_percentages(browser: Any, run_folder: Path, report: Path) -> None:
    with opened(browser, report) as page:
        bars = cell(page, "r0", "candidates").locator(".bars li")
        assert bars.locator(".piece").all_text_contents() == ["·line", "·street", "·river", "·road", "·bridge"]
        probs = one_row(run_folder, "r0", "candidates")["top_probs"][0]
        assert bars.locator(".p").all_text_contents() == [f"{float(f'{100 * prob:.3g}'):g} %" for prob in probs]
        widths = bars.locator(".bar").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
        assert [width / widths[0] for width in widths] == pytest.approx([prob / probs[0] for prob in probs], abs=0.02)


def test_nothing_in_a_prompt_or_a_kept_column_acts(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        header = page.locator('.prompt[aria-label="prompt r2"] > header')
        assert header.locator(".text").text_content() == HOSTILE
        assert HOSTILE[:80] in header.locator(".facts").inner_text()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0
        text = page.locator('.prompt[aria-label="prompt r3"] > header .text').text_content()
        assert text.startswith("a␀␛[31m⟨U+202E⟩evil⟨U+202C⟩⟨U+2066⟩⟨U+FEFF⟩ é 😀 𝒳 ⟨U+E0041⟩ עברית")
        lines = page.locator('.prompt[aria-label="prompt r7"] > header .text').text_content()
        assert lines == "1.⏎\n␉lines␍⏎\n"


def test_a_character_of_several_tokens_is_painted_once_and_its_bytes_can_be_seen(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        given = cell(page, "r3", "given")
        assert "😀" in given.locator(".tokens").text_content()
        assert "\ufffd" not in given.locator(".tokens").text_content()
        given.locator(".t.part").first.hover()
        assert page.locator("#card .head").inner_text() == "⟨E2⟩"  # of U+202E


# Colour


def bins(ranks: list[int]) -> list[str]:
    return [f"c{sum(rank > bound for bound in (1, 10, 100, 1000))}" for rank in ranks]


def test_tokens_are_coloured_by_rank_and_the_legend_counts_them(browser: Any, run_folder: Path, report: Path) -> None:
    with opened(browser, report) as page:
        row = one_row(run_folder, "r4", "hot")
        classes = cell(page, "r4", "hot").locator(".t").evaluate_all("all => all.map(e => e.classList[1])")
        assert classes == bins(row["token_ranks"])
        rows = rows_of(run_folder, "strategy <> 'candidates' AND status = 'ok'")
        every = bins([rank for each in rows for rank in each["token_ranks"]])
        counts = [
            text.split("\u2002")[1].replace(",", "") for text in page.locator("#legend button").all_text_contents()
        ]
        assert counts == [str(every.count(f"c{bin_}")) for bin_ in range(5)]


@pytest.mark.parametrize("colour", ["probability", "entropy", "sampled", "none"])
def test_other_colours_can_be_chosen(browser: Any, run_folder: Path, report: Path, colour: str) -> None:
    row = one_row(run_folder, "r4", "hot")
    numbers = {
        "probability": [
            sum(2.718281828**value < bound for bound in (0.5, 0.1, 0.01, 0.001)) for value in row["token_logprobs"]
        ],
        "entropy": [sum(value >= bound for bound in (1, 2, 4, 6)) for value in row["entropies"]],
        "none": [0] * len(row["token_ids"]),
    }
    with opened(browser, report, f"#colour={colour}") as page:
        classes = cell(page, "r4", "hot").locator(".t").evaluate_all("all => all.map(e => e.classList[1])")
        if colour == "sampled":
            assert set(classes) <= {f"d{number}" for number in range(5)}
            assert len(set(classes)) > 1
        else:
            assert classes == [f"c{number}" for number in numbers[colour]]


def test_a_click_on_the_legend_shows_only_its_tokens(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.locator("#legend button").nth(1).click()
        assert page.locator("#legend button").nth(1).get_attribute("aria-pressed") == "true"
        spots = page.locator(".tokens .t.spot")
        assert spots.count() == page.locator(".tokens .t.c1").count() > 0
        page.locator("#legend button").nth(1).click()
        assert page.locator(".tokens .t.spot").count() == 0


# The card


def test_the_card_of_a_token_lists_the_alternatives_with_percentages(
    browser: Any, run_folder: Path, report: Path
) -> None:
    with opened(browser, report) as page:
        cell(page, "r0", "greedy").locator(".t").first.hover()
        card = page.locator("#card")
        assert card.is_visible()
        assert card.locator(".head").inner_text() == "·line"
        assert card.locator(".piece").all_text_contents() == ["·line", "·street", "·river", "·road", "·bridge"]
        assert card.locator(".p").first.inner_text() == "19.2 %"
        assert card.locator(".taken .piece").all_text_contents() == ["·line"]
        row = one_row(run_folder, "r0", "greedy")
        assert (
            f"step 1 of {len(row['token_ids'])} · token {row['token_ids'][0]} · bytes 20 6C 69 6E 65"
            in card.inner_text()
        )
        page.mouse.move(2, 2)
        assert card.is_hidden()


def test_a_token_that_is_no_alternative_is_added_with_its_rank(browser: Any, run_folder: Path, report: Path) -> None:
    row = one_row(run_folder, "r4", "hot")
    step = next(at for at, rank in enumerate(row["token_ranks"]) if rank > 5)
    with opened(browser, report) as page:
        cell(page, "r4", "hot").locator(".t").nth(step).hover()
        items = page.locator("#card .bars li")
        assert items.count() == 6
        assert items.last.locator(".place").inner_text() == str(row["token_ranks"][step])
        assert items.last.get_attribute("class") == "taken"


def test_a_click_keeps_the_card_and_escape_closes_it(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        cell(page, "r0", "greedy").locator(".t").first.click()
        cell(page, "r1", "greedy").locator(".t").first.hover()
        assert page.locator("#card .head").inner_text() == "·line"
        page.keyboard.press("Escape")
        assert page.locator("#card").is_hidden()


def test_a_report_without_alternatives_says_so(browser: Any, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["I skip across the", None])
    job.run(make_job(source, tmp_path / "out", output={"path": str(tmp_path / "out"), "top_k": 0}), job.here)
    report = write_report(tmp_path / "out", tmp_path / "r.html").path
    with opened(browser, report) as page:
        page.locator(".tokens .t").first.hover()
        assert "no alternatives were recorded" in page.locator("#card").inner_text()
        assert page.locator("#card .bars").count() == 0
        assert "p 19.2 %" in page.locator("#card").inner_text().replace("\n", " ")


def test_all_steps_can_be_read_as_a_table(browser: Any, run_folder: Path, report: Path) -> None:
    with opened(browser, report) as page:
        greedy = cell(page, "r0", "greedy")
        greedy.get_by_text("steps as a table").click()
        ranks = greedy.locator("tbody tr td:nth-child(3)").all_text_contents()
        assert ranks == [str(rank) for rank in one_row(run_folder, "r0", "greedy")["token_ranks"]]
        greedy.get_by_text("steps as a table").click()
        assert greedy.locator("table").count() == 0


# Keyboard


def test_a_completion_is_one_stop_and_arrows_walk_its_tokens(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.locator("#reset").focus()
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('.tokens')"):
                break
        card, live = page.locator("#card .head"), page.locator("#live")
        assert card.inner_text() == "·line"
        assert live.inner_text() == "·line, rank 1, 19.2 %. ·line 19.2 %, ·street 16.8 %, ·river 12.8 %"
        page.keyboard.press("ArrowRight")
        assert card.inner_text() == "·to"
        page.keyboard.press("End")
        last = card.inner_text()
        page.keyboard.press("ArrowRight")
        assert card.inner_text() == last
        page.keyboard.press("Home")
        assert card.inner_text() == "·line"
        page.keyboard.press("Escape")
        assert page.locator("#card").is_hidden()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "steps as a table"


def test_letters_move_filter_and_turn(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.ariaLabel") == "prompt r1"
        page.keyboard.press("k")
        assert page.evaluate("document.activeElement.ariaLabel") == "prompt r0"
        page.keyboard.press("c")
        assert page.locator("select[name=colour]").input_value() == "probability"
        page.keyboard.press("t")
        page.keyboard.press("t")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 29)"
        page.keyboard.press("/")
        page.keyboard.type("fox")
        assert shown_prompts(page) == ["r1"]
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.locator("#keys").uncheck()
        page.keyboard.press("Escape")
        page.keyboard.press("d")
        assert not page.locator("input[name=different]").is_checked()


# Samples and filters


def test_samples_are_stepped_through_by_button_and_key(browser: Any, run_folder: Path, report: Path) -> None:
    with opened(browser, report) as page:
        hot = cell(page, "r0", "hot")
        texts = [one_row(run_folder, "r0", "hot", sample)["text"] for sample in range(3)]
        for sample in (1, 2, 0):
            hot.get_by_label("next sample").click()
            assert f"{sample + 1} of 3" in hot.locator(".stepper").inner_text()
            shown = hot.locator(".t:not(.special)").all_text_contents()
            assert "".join(shown).replace("⏎", "") == texts[sample]
        hot.locator(".tokens").focus()
        page.keyboard.press("[")
        assert "3 of 3" in hot.locator(".stepper").inner_text()
        assert page.evaluate("document.activeElement.matches('.tokens')")


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("strategy", "beams", "strategy = 'beams'"),
        ("finish", "stop", "finish_reason = 'stop'"),
        ("error", "ok", "status = 'ok'"),
        ("error", "prompt_null", "error_type = 'prompt_null'"),
    ],
)
def test_filters_show_the_rows_that_duckdb_finds(
    browser: Any, run_folder: Path, report: Path, field: str, value: str, where: str
) -> None:
    with opened(browser, report) as page:
        page.locator(f"select[name={field}]").select_option(value)
        expected = count(run_folder, "count(DISTINCT row_id)", where)
        assert page.locator("#status").inner_text() == f"{expected} of {len(PROMPTS)} prompts"
        assert page.locator(".cell").count() == count(run_folder, "count(DISTINCT (row_id, strategy))", where)
        page.locator("#reset").click()
        assert page.locator(".prompt").count() == len(PROMPTS)


def test_search_finds_ids_prompts_and_completions(browser: Any, run_folder: Path, report: Path) -> None:
    with opened(browser, report) as page:
        for text, where in (
            ("R6", "row_id = 'r6'"),
            ("<SCRIPT>", "prompt LIKE '%<script>%' OR topic LIKE '%<script>%'"),
            ("LINE", "text ILIKE '%line%' OR prompt ILIKE '%line%'"),
        ):
            page.locator("#search").fill(text)
            assert len(shown_prompts(page)) == count(run_folder, "count(DISTINCT row_id)", where)
        page.locator("#search").fill("nowhere to be found")
        assert "Nothing matches" in page.locator("#status").inner_text()


def test_prompts_without_a_difference_can_be_left_out(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.locator("input[name=different]").check()
        assert "r5" not in shown_prompts(page)
        assert "r0" in shown_prompts(page)


def test_a_view_is_a_link(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.locator("select[name=strategy]").select_option("beams")
        page.locator("#search").fill("fox")
        address = page.evaluate("location.hash")
    with opened(browser, report, address) as page:
        assert shown_prompts(page) == ["r1"]
        assert page.locator(".cell").count() == 1
        assert page.locator("#search").input_value() == "fox"
        page.get_by_role("link", name="link to r1").click()
        assert page.locator("select[name=strategy]").input_value() == ""
        page.locator("table.strategies a", has_text="contrast").click()
        page.locator(".cell").nth(7).wait_for()
        assert page.locator(".cell").count() == 8


def test_where_a_completion_parts_from_the_baseline_is_marked(browser: Any, run_folder: Path, report: Path) -> None:
    greedy, other = (one_row(run_folder, "r0", name)["token_ids"] for name in ("greedy", "hot"))
    step = next(at for at, (left, right) in enumerate(zip(greedy, other, strict=False)) if left != right)
    with opened(browser, report) as page:
        assert cell(page, "r0", "hot").locator(".parts").get_attribute("data-i") == str(step)
        stops = cell(page, "r0", "stops")
        assert stops.locator(".foot").inner_text().startswith("= greedy as far as the shorter one goes")
        assert stops.locator(".cut").all_text_contents() == ["e"]  # of '·line'
        assert "stop “e”" in stops.inner_text()


def test_a_long_prompt_is_shown_in_part_until_all_of_it_is_asked_for(browser: Any, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["I skip across the " + "😀" * 3000])
    run_echo(make_job(source, tmp_path / "out"))
    report = write_report(tmp_path / "out", tmp_path / "r.html").path
    with opened(browser, report) as page:
        text = page.locator(".prompt > header .text")
        assert len(text.text_content()) < 2000
        page.get_by_role("button", name="3,018 of 3,018 characters").click()
        assert text.text_content().count("😀") == 3000


def test_long_lists_come_in_pages(browser: Any, tmp_path: Path) -> None:
    prompts = [f"I skip across the {number}" for number in range(60)]
    run_echo(make_job(write_prompts(tmp_path / "p.parquet", prompts), tmp_path / "out"))
    report = write_report(tmp_path / "out", tmp_path / "r.html").path
    with opened(browser, report) as page:
        assert shown_prompts(page) == [f"r{number}" for number in range(25)]
        page.get_by_role("button", name="next ›").click()
        page.get_by_role("button", name="next ›").click()
        assert shown_prompts(page) == [f"r{number}" for number in range(50, 60)]
        assert page.get_by_role("button", name="next ›").is_disabled()
        page.locator("select[name=per]").select_option("all")
        assert len(shown_prompts(page)) == 60


# Ways to look at it


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_keeps_the_rules_of_wcag(browser: Any, report: Path, scheme: str) -> None:
    with opened(browser, report, color_scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        cell(page, "r0", "greedy").get_by_text("steps as a table").click()
        cell(page, "r4", "hot").locator(".t").first.click()
        assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_that_of_the_system(browser: Any, report: Path, scheme: str) -> None:
    with opened(browser, report, color_scheme=scheme) as page:
        expected = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 29)"}[scheme]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == expected


@pytest.mark.parametrize("width", [320, 768])
def test_a_narrow_window_needs_no_sideways_scrolling(browser: Any, report: Path, width: int) -> None:
    with opened(browser, report, viewport={"width": width, "height": 700}) as page:
        cell(page, "r0", "greedy").locator(".t").first.hover()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_print_leaves_out_what_only_a_screen_can_do(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.emulate_media(media="print")
        assert page.locator("#filters").is_hidden()
        assert page.locator(".prompt").count() == len(PROMPTS)
        assert page.pdf(print_background=True).startswith(b"%PDF")


def test_without_scripts_there_are_summary_table_and_first_completions(
    browser: Any, run_folder: Path, report: Path
) -> None:
    with opened(browser, report, java_script_enabled=False) as page:
        assert page.locator("table.strategies tbody tr").count() == 7
        assert page.locator("noscript tbody tr").count() == min(100, count(run_folder, "count(*)"))
        assert "80" in page.locator(".tiles").inner_text()
