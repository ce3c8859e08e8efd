"""The report's file: what it holds agrees with the folder, what it shows is chosen with a reason, and nothing acts."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from pipeline import job
from pipeline.cli import main
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.records import Completion, Request, Response
from pipeline.report import charts, write_report
from pipeline.report.selection import Picker
from pipeline.report.wording import between, duration, number, sentences, share
from pipeline.results import open_run
from pipeline.statistics import Estimate, summarise
from pipeline.statistics.rows import read_strategies
from tests.flows import EchoEngine, make_job, run_echo, write_prompts
from tests.forgery import run_demo
from tests.pages import HOSTILE, PROMPTS, make_run, payload_of, rows_of
from tests.test_retry import ILL, ill_on, retry

STYLE = (Path(__file__).parent.parent / "pipeline/report/assets/style.css").read_text()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def document(run_folder: Path) -> str:
    return report_of(run_folder, run_folder.parent / "report.html")


def report_of(folder: Path, path: Path, **options: Any) -> str:
    write_report(folder, path, **options)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements of a document with their attributes and text."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.open: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.cells and self.cells[-1] and ({"td", "th"} & set(self.open)):
            self.cells[-1][-1] += data + "|"


# The block for the script


def test_every_row_and_step_is_embedded_as_stored(run_folder: Path, document: str) -> None:
    header, columns = payload_of(document)
    rows = rows_of(run_folder)
    tokens = [token_id for row in rows for token_id in row["token_ids"] or ()]
    ids = np.array([entry[0] for entry in header["vocabulary"]])
    assert ids[columns["token"]].tolist() == tokens
    assert header["rows"]["steps"] == [row["num_generated_tokens"] for row in rows]
    assert [header["strategies"][index]["name"] for index in header["rows"]["strategy"]] == [
        row["strategy"] for row in rows
    ]
    for key, name in (("finish", "finish_reason"), ("errorType", "error_type"), ("stop", "stop_match")):
        assert header["rows"][key] == [row[name] for row in rows]
    ranks = [rank for row in rows for rank in row["token_ranks"] or ()]
    assert columns["rank"].tolist() == ranks
    logprobs = [value for row in rows for value in row["token_logprobs"] or ()]
    np.testing.assert_allclose(columns["surprise"] / 1000, -np.array(logprobs), atol=0.00051)


def test_alternatives_are_embedded_as_stored_and_missing_values_as_missing(run_folder: Path, document: str) -> None:
    header, columns = payload_of(document)
    rows = [row for row in rows_of(run_folder) if row["token_ids"]]
    ids = np.array([entry[0] for entry in header["vocabulary"]])
    expected = [token_id for row in rows for step in row["top_token_ids"] for token_id in step]
    assert ids[columns["topToken"]].tolist() == expected
    probs = np.array([prob for row in rows for step in row["top_probs"] for prob in step])
    np.testing.assert_allclose(np.exp(columns["topSurprise"] / -1000.0), probs, rtol=0.0006)
    is_drawn = [row["sampling_logprobs"] is not None for row in rows for _ in row["token_ids"]]
    assert (columns["sampled"] != 0xFFFF).tolist() == is_drawn
    assert set(is_drawn) == {True, False}


def test_prompts_are_embedded_exactly(document: str) -> None:
    header, _ = payload_of(document)
    assert [prompt["text"] for prompt in header["prompts"]] == PROMPTS
    assert {value for prompt in header["prompts"] for _, value in prompt["kept"]} == {HOSTILE}


def test_a_prompt_of_token_ids_is_shown_as_text(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["x"], ids=pa.array([[40, 294]], pa.list_(pa.int32())))
    given = {"path": str(source), "id_column": "id", "token_ids_column": "ids"}
    run_echo(make_job(source, tmp_path / "out", input=given))
    header, _ = payload_of(report_of(tmp_path / "out", tmp_path / "r.html"))
    assert [prompt["text"] for prompt in header["prompts"]] == ["I skip"]


def test_rows_without_alternatives_are_embedded_without(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["I skip across the", None])
    output = {"path": str(tmp_path / "out"), "top_k": 0}
    job.run(make_job(source, tmp_path / "out", output=output), job.here)
    _, columns = payload_of(report_of(tmp_path / "out", tmp_path / "r.html"))
    assert (len(columns["token"]), len(columns["topToken"]), len(columns["topSurprise"])) == (12, 0, 0)


def test_a_run_of_nothing_but_errors_has_a_report(tmp_path: Path) -> None:
    run_echo(make_job(write_prompts(tmp_path / "p.parquet", [None, None]), tmp_path / "out"))
    header, columns = payload_of(report_of(tmp_path / "out", tmp_path / "r.html"))
    assert header["rows"]["errorType"] == ["prompt_null"] * 6
    assert {name: len(values) for name, values in columns.items() if len(values)} == {}


def test_prompts_and_kept_columns_are_cut_so_that_the_file_stays_small(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["é" * 3_000_000, "I skip"], topic=["k" * 500_000, "short"])
    kept = {"path": str(source), "id_column": "id", "keep_columns": ["topic"]}
    run_echo(make_job(source, tmp_path / "out", input=kept))
    document = report_of(tmp_path / "out", tmp_path / "r.html")
    header, _ = payload_of(document)
    assert [(len(each["text"]), each["length"]) for each in header["prompts"]] == [(20_000, 3_000_000), (6, 6)]
    assert [len(each["kept"][0][1]) for each in header["prompts"]] == [1000, 5]
    assert len(document) < 200_000


# The document


def test_the_table_says_what_duckdb_says(run_folder: Path, document: str) -> None:
    rows = {row[0].split("|")[0]: row for row in Page(document).cells if len(row) > 8}
    labels = [cell.strip("|") for cell in rows.pop("strategy")]
    for name, cells in rows.items():
        stored = rows_of(run_folder, f"strategy = '{name}' AND status = 'ok'")
        tokens = sum(row["num_generated_tokens"] for row in stored)
        perplexity = np.exp(-sum(row["cumulative_logprob"] for row in stored) / tokens)
        assert cells[labels.index("perplexity")].split("|")[0] == number(float(perplexity))
        assert cells[labels.index("tokens")].split("|")[0] == number(tokens / len(stored))
    assert set(rows) == {"greedy", "hot", "beams", "stops", "contrast", "candidates", "given"}


def test_nothing_in_the_document_asks_for_anything_or_acts(document: str) -> None:
    elements = Page(document).elements
    attributes = [(name, value or "") for _, found in elements for name, value in found.items()]
    assert [name for name, _ in attributes if name.startswith("on") or name == "style"] == []
    links = [value for name, value in attributes if name in ("src", "href", "action")]
    assert {link[:1] for link in links} <= {"#", "d"}
    assert [link for link in links if link.startswith("d")] == ["data:,"]
    assert [tag for tag, _ in elements if tag in ("img", "iframe", "object", "embed", "base")] == []
    assert [tag for tag, _ in elements].count("script") == 2
    assert "url(" not in STYLE


def test_the_policy_allows_exactly_the_style_and_the_script_of_the_document(document: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', document)
    style, script = (
        re.search(r"<style>(.*?)</style>", document, re.S),
        re.findall(r"<script.*?>(.*?)</script>", document, re.S),
    )
    assert policy is not None
    assert style is not None
    digests = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in (script[1], style[1])]
    assert policy[1].replace("&#39;", "'") == (
        f"default-src 'none'; script-src 'sha256-{digests[0]}'; style-src 'sha256-{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def test_text_from_data_is_escaped_and_its_control_characters_shown(document: str) -> None:
    outside = re.sub(r"<script.*?</script>", "", document, flags=re.S)
    assert "window.hacked" in outside  # for those without JavaScript
    assert "<img" not in document
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", document) == []
    assert "␀␛[31m⟨U+202E⟩evil" in outside


def test_the_same_folder_gives_the_same_bytes(run_folder: Path, document: str) -> None:
    assert report_of(run_folder, run_folder.parent / "again.html") == document


def test_a_run_under_way_has_a_report(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["I skip across the"] * 7)
    run_echo(make_job(source, tmp_path / "out"))
    for name in ("_SUCCESS", "_manifest.json", "data/part-00002.parquet"):
        (tmp_path / "out" / name).unlink()
    assert "6 of 7 prompts" in report_of(tmp_path / "out", tmp_path / "r.html")


def test_rows_that_a_retry_mended_are_in_the_report_and_its_query_counts_them(tmp_path: Path) -> None:
    folder = run_demo(tmp_path, engine_maker=ill_on(*ILL))
    retry(folder)
    page = report_of(folder, tmp_path / "r.html")
    header, _ = payload_of(page)
    assert {each for each in header["rows"]["errorType"] if each} == {"prompt_null"}
    assert len(header["rows"]["errorType"]) == 8 * 7
    assert "32 rows computed again by retry-errors" in page
    query = re.search(r"<pre>(SELECT.*?)</pre>", page, re.S)
    assert query is not None
    found = {name: rest for name, *rest in duckdb.sql(unescape(query[1])).fetchall()}
    for each in summarise(open_run(folder)).strategies:
        assert found[each.name] == [each.totals["ok"], pytest.approx(each.metric("perplexity").value)]


# Refusals


def test_a_file_is_replaced_only_when_asked(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"report\.html is there already\. Give another name with -o, or --force"):
        write_report(run_folder, path)
    assert path.read_text() == "mine"
    write_report(run_folder, path, may_replace=True)
    assert path.read_text().startswith("<!doctype html>")


def test_what_cannot_be_reported_on_is_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no row with row_id 'nobody'"):
        write_report(run_folder, tmp_path / "r.html", row_ids=["nobody"])
    with pytest.raises(ConfigError, match=r"not `nobody`\. Choose one of greedy, hot, beams, stops, contrast\."):
        write_report(run_folder, tmp_path / "r.html", baseline="nobody")
    run_echo(make_job(write_prompts(tmp_path / "p.parquet", ["a b"]), tmp_path / "out"))
    (tmp_path / "out/data/part-00000.parquet").unlink()
    with pytest.raises(InputError, match="holds no parts yet"):
        write_report(tmp_path / "out", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_command_says_what_it_wrote(run_folder: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "r.html")
    done = CliRunner().invoke(main, ["report", str(run_folder), "-o", target, "--prompts", "5", "--row-id", "r7"])
    assert (done.exit_code, done.output) == (0, f"{target} · 0.1 MB · 5 of 8 prompts\n")
    again = CliRunner().invoke(main, ["report", str(run_folder), "-o", target])
    assert again.exit_code == 2
    assert "is there already" in again.output


# Which prompts are shown


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 prompts; those divisible by 50 fail, and 61 has completions twice as likely to be unlike the rest."""
    folder = tmp_path_factory.mktemp("many")
    prompts = [None if at % 50 == 0 else f"{'I skip across the' if at != 61 else 'The fox'} {at}" for at in range(200)]
    work = make_job(write_prompts(folder / "p.parquet", prompts), folder / "out", run={"shard_rows": 64})
    run_echo(work)
    return folder / "out"


def chosen(folder: Path, num_shown: int, piece_rows: int = 4096, wanted: tuple[str, ...] = ()) -> dict[int, list[str]]:
    results = open_run(folder)
    picker = Picker(num_shown, wanted)
    for rows in read_strategies(results, "greedy", piece_rows):
        picker.add(rows)
    return picker.chosen(results.run.num_input_rows)


def test_all_prompts_are_shown_without_reasons_where_there_is_room(many: Path) -> None:
    assert chosen(many, 200) == {prompt: [] for prompt in range(200)}


def test_a_sample_holds_the_first_every_error_and_extremes_and_the_rest_at_random(many: Path) -> None:
    found = chosen(many, 60)
    assert len(found) == 60
    assert list(found) == sorted(found)
    assert {0, *range(1, 20), 50, 100, 150} <= set(found)
    assert "error: prompt_null" in found[150]
    assert "among the first" in found[3]
    drawn = [prompt for prompt, why in found.items() if not why]
    assert len(drawn) >= 20
    assert 0 < np.mean(drawn) - 60 < 100  # spread over the run


def test_the_choice_is_the_same_every_time_and_for_pieces_of_any_size(many: Path) -> None:
    assert chosen(many, 60) == chosen(many, 60, piece_rows=7) == chosen(many, 60, piece_rows=50)


def test_prompts_asked_for_are_shown_whatever_else_there_is(many: Path) -> None:
    found = chosen(many, 1, wanted=("r133", "r77"))
    assert found == {77: ["asked for"], 133: ["asked for"]}


def test_a_document_says_what_it_shows_of_what(many: Path, tmp_path: Path) -> None:
    header, columns = payload_of(report_of(many, tmp_path / "r.html", num_prompts=60))
    assert len(header["prompts"]) == 60
    assert header["isSample"]
    assert sum(header["rows"]["steps"]) == len(columns["token"])
    assert "60 of 200: the first," in (tmp_path / "r.html").read_text()


# Words and numbers


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0.0, "0"), (1.0, "1.00"), (0.03456, "0.0346"), (12.34, "12.3"), (99.96, "100"), (12345.6, "12,346")],
)
def test_numbers_have_three_digits(value: float | None, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "–"), (0.0, "0 %"), (1.0, "100 %"), (0.01234, "1.23 %"), (0.46, "46.0 %")]
)
def test_shares_are_percent(value: float | None, expected: str) -> None:
    assert share(value) == expected


def test_an_interval_is_left_out_where_there_is_none_or_only_a_point() -> None:
    assert between(Estimate(0.2, 0.1, 0.3), True) == "10.0–30.0"
    assert between(Estimate(2.0, 1.5, 2.5), False) == "1.50–2.50"
    assert between(Estimate(1.0), False) == between(Estimate(1.0, 1.0, 1.0), False) == ""


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.41, "0.41 s"), (41.2, "41.2 s"), (78.4, "1 min 18 s"), (11_100.0, "3 h 5 min")]
)
def test_durations_are_in_words(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_the_sentences_of_a_run(many: Path, run_folder: Path) -> None:
    assert list(sentences(summarise(open_run(many)))) == [
        "12 rows are errors (2.00 %): prompt_null 12",
        "samples gave the same tokens as greedy throughout",
    ]
    first = next(iter(sentences(summarise(open_run(run_folder)))))
    assert first == "10 rows are errors (12.5 %): prompt_null 10"


class Stuck(EchoEngine):
    """Greedy completions are one token over and over, samples are not."""

    def _response(self, request: Request) -> Response:
        steps = np.arange(1, 13, dtype=np.int32)
        flat = np.zeros(12, np.float32)
        completion = Completion(
            token_ids=np.full(12, 5, np.int32) if request.strategy.type == "greedy" else steps,
            finish_reason="length",
            stop_match=None,
            token_logprobs=flat,
            sampling_logprobs=None,
            token_ranks=steps,
            entropies=flat,
            top_token_ids=np.zeros((12, 0), np.int32),
            top_probs=np.zeros((12, 0), np.float32),
        )
        return Response((completion,) * len(request.seeds))


def test_repetition_and_loops_are_named_where_there_is_no_doubt(tmp_path: Path) -> None:
    work = make_job(write_prompts(tmp_path / "p.parquet", ["a b c"] * 12), tmp_path / "out")
    job.run(work, job.here, engine_maker=lambda *_: Stuck())
    assert list(sentences(summarise(open_run(tmp_path / "out")))) == [
        "every row is ok",
        "greedy repeats itself most: 88.9 % of a completion's 4-grams stood in it before",
        "100 % of the completions of greedy end in a loop",
        "samples parts from greedy in 100 % of its completions, half of them by token 1",
    ]


def test_a_histogram_adds_up_and_says_what_its_bars_are() -> None:
    chart = charts.histogram(np.array([0, 3, 0, 1]), 5, 1, "tokens")
    assert [(bar.x, bar.height, bar.title) for bar in chart.bars] == [
        (32.0, 48.0, "1: 75 % (3)"),
        (96.0, 16.0, "3: 25 % (1)"),
    ]
    assert (chart.left, chart.right, chart.title) == ("0", "4", "tokens, most often 1")
    wide = charts.histogram(np.ones(100), 100, 1, "tokens")
    assert [bar.title for bar in wide.bars][:2] == ["0 to 3: 4 % (4)", "4 to 7: 4 % (4)"]
    assert charts.histogram(np.array([1, 1]), 4, 0.25, "entropy").bars[1].title == "0.25 to 0.5: 50 % (1)"
    assert charts.histogram(np.zeros(0), 3, 1, "tokens").bars == ()


def test_a_curve_is_the_mean_at_each_step() -> None:
    chart = charts.curve(np.array([2.0, 0.5]), np.array([2, 1]), 3, "mean p")
    assert chart.points == "0.0,0.0 80.0,24.0"
    assert chart.title == "mean p: 1.00 at step 1, 0.50 at step 2"


# Colours


def colours(theme: int) -> dict[str, str]:
    """Custom properties of the style, of the light (0) or dark (1) theme."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", STYLE)
    return {name: both[theme] for name, *both in pairs}


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(left: str, right: str) -> float:
    lighter, darker = sorted((luminance(left), luminance(right)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_every_text_can_be_read_on_its_ground(theme: int) -> None:
    found = colours(theme)
    grounds = ("page", "panel")
    pairs = [(found[ink], found[ground]) for ink in ("ink", "muted", "accent", "bad") for ground in grounds]
    pairs += [(found[f"{name}-ink"], found[name]) for name in ("c1", "c2", "c3", "c4", "d0", "d1", "d3", "d4")]
    assert min(contrast(*pair) for pair in pairs) >= 4.5


@pytest.mark.parametrize("theme", [0, 1])
def test_ranks_are_told_apart_in_grey_and_by_underlines(theme: int) -> None:
    found = colours(theme)
    greys = [
        luminance(found[name]) ** (1 / 3) for name in ("page", "c1", "c2", "c3", "c4")
    ]  # OKLab's lightness of a grey
    steps = np.diff(greys) * (1 if theme else -1)
    assert steps.min() >= 0.05
    assert re.findall(r"\.(c\d) \{ background[^}]*border-bottom: (\w+ \w+)", STYLE) == [
        ("c2", "2px dotted"),
        ("c3", "2px solid"),
        ("c4", "4px double"),
    ]
