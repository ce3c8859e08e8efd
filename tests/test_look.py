"""preview, show, head, tokenize: what they print on terminals of several widths, in a pipe, and as JSON."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from rich.console import Console

from pipeline.cli import main
from pipeline.painting import legend, painted, piece
from pipeline.recorded import Vocabulary
from pipeline.replay import find_rows
from pipeline.results import open_run
from pipeline.steps import rows_document, steps
from pipeline.steps_screen import blocks, print_steps
from pipeline.tokenise import tokenise
from pipeline.tokenise_screen import print_fitted, print_tokens
from tests.test_next_screen import HOSTILE, STYLES, on_terminal_of

ROOT = Path(__file__).parent.parent
Rows = list[dict[str, Any]]


def command(*arguments: object, stdin: bytes = b"", exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == exit_code, result.output
    return result


def screen(rows: Rows, vocabulary: Vocabulary, width: int, *, has_steps: bool = True) -> list[str]:
    """Lines on a terminal of this width, without colours."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None)
    for block in blocks(rows, vocabulary, console, has_steps=has_steps):
        console.print(block)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.fixture(scope="module")
def vocabulary(demo_run: Path) -> Vocabulary:
    return open_run(demo_run).vocabulary


@pytest.fixture(scope="module")
def skip(demo_run: Path) -> Callable[[str], Rows]:
    """Rows of skip-00 under a strategy."""
    rows = find_rows(open_run(demo_run).run, "skip-00")
    return lambda strategy: [row for row in rows if row["strategy"] == strategy]


def ended(row: dict[str, Any], count: int) -> dict[str, Any]:
    """The row as if it had ended after so many tokens."""
    lists = (
        "token_ids",
        "token_logprobs",
        "sampling_logprobs",
        "token_ranks",
        "entropies",
        "top_token_ids",
        "top_probs",
    )
    cut = {name: row[name][:count] for name in lists if row[name] is not None}
    return row | cut | {"num_generated_tokens": count, "text": " line to a place"}


def test_show_has_a_line_per_step_with_what_else_could_have_come(
    skip: Callable[[str], Rows], vocabulary: Vocabulary
) -> None:
    assert screen([ended(skip("nucleus")[1], 12)], vocabulary, 80) == [
        "skip-00  4 tokens",
        "I skip across the",
        "",
        "  tokens  I   ·skip  ·across  ·the",
        "  ids     40    294      295   259",
        "",
        "nucleus 1  length · 12 tokens · perplexity 1.41",
        " line to a place",
        "",
        "step  token    id     prob  sampled  rank  entropy  alternatives",
        "   0  ·line   423   19.2 %   22.9 %     1     2.29  ·street 16.8 %",
        "   1  ·to     270  100.0 %  100.0 %     1     0.00",
        "   2  ·a      260  100.0 %  100.0 %     1     0.00",
        "   3  ·place  427  100.0 %  100.0 %     1     0.00",
        "   4  ·where  426  100.0 %  100.0 %     1     0.00",
        "   5  ·I      299   99.9 %  100.0 %     1     0.01",
        "   6  ·can    424   99.8 %  100.0 %     1     0.02  ·see 0.2 %",
        "   7  ·see    366  100.0 %  100.0 %     1     0.01",
        "   8  ·the    259  100.0 %  100.0 %     1     0.00",
        "   9  ·b      268   28.3 %   29.2 %     1     1.40  ·bl 26.9 %   ·far 23.5 %",
        "  10  ig      339   99.7 %  100.0 %     1     0.03  il 0.1 %",
        "  11  ·h      286   17.0 %   16.1 %     4     1.58  ·c 32.7 %   ·s 20.9 %",
        "",
        "· is a space; rank of the token: ¹ above 10, ² above 100, ³ above 1000",
    ]


def test_preview_has_ids_and_probabilities_below_the_tokens_and_candidates_with_bars(
    skip: Callable[[str], Rows], vocabulary: Vocabulary
) -> None:
    rows = [ended(skip("greedy")[0], 4), *skip("candidates")]
    assert screen(rows, vocabulary, 50, has_steps=False)[6:] == [
        "greedy  eos · 4 tokens · perplexity 1.4",
        " line to a place",
        "",
        "  tokens  ·line   ·to      ·a       ·place",
        "  ids        423      270      260      427",
        "  prob    19.2 %  100.0 %  100.0 %  100.0 %",
        "",
        "candidates  most probable next tokens · entropy",
        "2.29",
        " #  token     id    prob",
        " 1  ·line    423  19.2 %  ██████████",
        " 2  ·street  374  16.8 %  ████████▋",
        " 3  ·river   417  12.8 %  ██████▋",
        " 4  ·road    501   8.4 %  ████▍",
        " 5  ·bridge  439   8.1 %  ████▏",
        " 6  ·field   486   7.8 %  ████",
        " 7  ·garden  540   7.1 %  ███▋",
        " 8  ·room    625   6.1 %  ███▏",
        " 9  ·border  565   5.7 %  ██▉",
        "10  ·park    682   4.1 %  ██▏",
        "",
        "· is a space; rank of the token: ¹ above 10, ²",
        "above 100, ³ above 1000",
    ]


@pytest.mark.parametrize("has_steps", [True, False])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(
    width: int, has_steps: bool, demo_run: Path, vocabulary: Vocabulary
) -> None:
    rows = find_rows(open_run(demo_run).run, "skip-00")
    lines = screen(rows, vocabulary, width, has_steps=has_steps)
    assert max(map(cell_len, lines)) <= width
    assert not [line for line in lines if "…" in line]


def test_wide_terminals_show_more_alternatives(skip: Callable[[str], Rows], vocabulary: Vocabulary) -> None:
    line = screen(skip("greedy"), vocabulary, 120)[10]
    assert line.endswith("·street 16.8 %   ·river 12.8 %   ·road 8.4 %   ·bridge 8.1 %")


def test_an_error_row_says_what_is_wrong(sound: Path) -> None:
    results = open_run(sound)
    lines = screen(find_rows(results.run, "r2")[:1], results.vocabulary, 80)
    assert lines[:3] == ["r2  0 tokens", "⟨null⟩", ""]
    assert "greedy  error prompt_null" in lines


def test_hostile_text_does_nothing_to_the_terminal() -> None:
    hostile = Vocabulary(["T"] * len(HOSTILE), HOSTILE)
    ids = list(range(len(HOSTILE)))
    numbers = [-1.0] * len(ids)
    row = {
        "row_id": "\x1b[2J",
        "row_index": 0,
        "strategy": "s\x1b[31m",
        "sample_index": 0,
        "status": "ok",
        "prompt": "[red]\x1b]0;x\x07\n\u202e",
        "text": "\x1b[2J\n[bold]",
        "prompt_token_ids": ids,
        "token_ids": ids,
        "finish_reason": "stop",
        "stop_match": "\x1b[5m",
        "num_generated_tokens": len(ids),
        "perplexity": 2.0,
        "token_logprobs": numbers,
        "sampling_logprobs": None,
        "token_ranks": [1, 5, 50, 500, 5000, 1, 1],
        "entropies": [0.5] * len(ids),
        "top_token_ids": [ids] * len(ids),
        "top_probs": [[0.1] * len(ids)] * len(ids),
    }
    for has_steps in (True, False):
        text = "\n".join(screen([row], hostile, 80, has_steps=has_steps))
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x9b\u202e]", text)
        assert "[red]␛]0;x␇" in text
        assert "[bold]" in text


def test_rarer_ranks_are_marked_with_and_without_colour() -> None:
    ranks = (1, 2, 10, 11, 100, 101, 1000, 1001)
    assert [painted("x", rank, has_colour=False).plain for rank in ranks] == [
        *["x"] * 3,
        *["x¹"] * 2,
        *["x²"] * 2,
        "x³",
    ]
    styles = [str(painted("x", rank, has_colour=True).style) for rank in ranks]
    assert len(dict.fromkeys(styles)) == 5
    assert ["underline" in style for style in styles] == [False] * 5 + [True] * 3
    assert " 11–100 " in legend(has_colour=True).plain


@pytest.mark.parametrize(
    "arguments", [("show", "OUT", "--row-id", "skip-00"), ("preview", "jobs/demo.yaml", "-n", "1")]
)
def test_a_pipe_gets_one_uncut_line_per_step(
    arguments: tuple[str, ...], demo_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    printed = command(*(str(demo_run) if each == "OUT" else each for each in arguments)).stdout
    header, *lines = [line.split("\t") for line in printed.splitlines()]
    assert header[:5] == ["row_id", "strategy", "#", "step", "token"]
    assert {len(line) for line in lines} == {len(header)}
    assert "\x1b" not in printed
    assert "…" not in printed
    stored = pq.read_table(demo_run / "data", filters=[("row_id", "=", "skip-00")]).to_pylist()
    assert [int(line[5]) for line in lines] == [token for row in stored for token in row["token_ids"]]
    assert lines[0][:6] == ["skip-00", "greedy", "0", "0", "·line", "423"]
    assert lines[0][10].startswith("·line 0.19185")


def test_errors_go_to_stderr_in_a_pipe(sound: Path) -> None:
    done = command("show", sound, "--row-id", "r2", "--strategy", "greedy")
    assert done.stdout.count("\n") == 1
    assert done.stderr.startswith("error row: r2 greedy 0: prompt_null: ")


def test_json_has_every_step_exactly(demo_run: Path, vocabulary: Vocabulary, skip: Callable[[str], Rows]) -> None:
    printed = command("show", demo_run, "--row-id", "skip-00", "--strategy", "nucleus", "--sample-index", 1, "--json")
    document = json.loads(printed.stdout)
    assert document == {"schema": 1, "rows": rows_document([skip("nucleus")[1]], vocabulary)}
    (row,) = document["rows"]
    (completion,) = row["completions"]
    assert [token["text"] for token in row["prompt_tokens"]] == ["I", " skip", " across", " the"]
    assert "".join(step["text"] for step in completion["steps"]) == completion["text"]
    third = completion["steps"][11]
    stored = steps(skip("nucleus")[1])[11]
    assert (
        (third["token_id"], third["prob"], third["rank"])
        == (stored.token_id, stored.prob, stored.rank)
        == (
            286,
            pytest.approx(0.17, abs=0.001),
            4,
        )
    )
    assert third["alternatives"][3]["token_id"] == 286
    assert third["alternatives"][3]["prob"] == pytest.approx(third["prob"])


def test_a_row_or_strategy_that_is_not_there_is_named(demo_run: Path) -> None:
    unknown = command("show", demo_run, "--row-id", "x", exit_code=2)
    assert "has row `x`" in unknown.stderr
    wrong = command("show", demo_run, "--row-id", "skip-00", "--strategy", "hot", exit_code=2)
    assert "row `skip-00` has no strategy `hot`; it has `greedy` sample 0, " in wrong.stderr


def test_preview_gives_what_the_run_gives_and_writes_nothing(
    demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    output = f"output.path={tmp_path}/out"
    document = json.loads(command("preview", "jobs/demo.yaml", "-n", 2, "--set", output, "--json").stdout)
    assert document["input_rows"] == 73
    assert [row["row_id"] for row in document["rows"]] == ["skip-00", "skip-01"]
    stored = pq.read_table(demo_run / "data").slice(0, 14).to_pylist()
    found = [
        (row["row_id"], each["strategy"], each["text"], [step["token_id"] for step in each["steps"]])
        for row in document["rows"]
        for each in row["completions"]
    ]
    assert found == [(row["row_id"], row["strategy"], row["text"], row["token_ids"]) for row in stored]
    assert not any(tmp_path.iterdir())


def test_preview_needs_no_ray_and_refuses_what_a_run_would() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from pipeline.cli import main; "
        "r = CliRunner().invoke(main, ['preview', 'jobs/demo.yaml', '-n', '1']); "
        "print(r.exit_code, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "0 False\n"
    wrong = command("preview", ROOT / "jobs" / "demo.yaml", "--set", "strategies.nucleus.top_p=1.3", exit_code=2)
    assert "`top_p` must be" in wrong.stderr


def test_head_gives_the_first_rows_of_a_strategy(demo_run: Path) -> None:
    rows = json.loads(command("head", demo_run, "-n", 3, "--strategy", "nucleus", "--json").stdout)["rows"]
    places = [(row["row_id"], row["sample_index"]) for row in rows]
    assert places == [("skip-00", 0), ("skip-00", 1), ("skip-01", 0)]
    (candidates,) = json.loads(command("head", demo_run, "-n", 1, "--strategy", "candidates", "--json").stdout)["rows"]
    assert candidates["text"].startswith('" line" 19.2 %, " street" 16.8 %')
    wrong = command("head", demo_run, "--strategy", "hot", exit_code=2)
    assert "has no strategy `hot`; there are `greedy`, `no_repeats`" in wrong.stderr


TEXT = "Naïve\n京 x"


def test_tokenize_shows_pieces_ids_and_bytes() -> None:
    tokenised = tokenise(["I skip across the"], "demo")
    stream = io.StringIO()
    print_fitted(*tokenised.texts[0], tokenised, Console(file=stream, width=60, color_system=None))
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == [
        "I│·skip│·across│·the",
        "4 tokens · 17 characters · 17 bytes",
        "#  token     id  bytes",
        "0  I         40  49",
        "1  ·skip    294  20 73 6B 69 70",
        "2  ·across  295  20 61 63 72 6F 73 73",
        "3  ·the     259  20 74 68 65",
        "",
    ]


def test_tokenize_in_a_pipe_and_as_json_gives_all_bytes_back() -> None:
    document = json.loads(command("tokenize", TEXT, "--json").stdout)
    (found,) = document["texts"]
    assert bytes(byte for token in found["tokens"] for byte in token["bytes"]).decode() == TEXT == found["text"]
    lines = [line.split("\t") for line in command("tokenize", "-", stdin=TEXT.encode()).stdout.splitlines()]
    assert lines[0] == ["text", "#", "id", "token", "bytes"]
    assert bytes.fromhex("".join(line[4] for line in lines[1:])).decode() == TEXT.replace("\n", "")
    assert {line[0] for line in lines[1:]} == {"1", "2"}


def test_tokenize_turns_ids_into_text_and_takes_texts_longer_than_the_model_reads() -> None:
    document = json.loads(command("tokenize", "--ids", "40 294 295 259", "--json").stdout)
    assert document["texts"][0]["text"] == "I skip across the"
    long = json.loads(command("tokenize", "word " * 500, "--json").stdout)
    assert len(long["texts"][0]["token_ids"]) > 256
    assert "token id 99999" in command("tokenize", "--ids", "99999", exit_code=2).stderr


def test_terminals_get_colours_and_no_color_gets_none(
    skip: Callable[[str], Rows], vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    rows = skip("nucleus")[1:]
    coloured = on_terminal_of(lambda: print_steps(rows, vocabulary))
    assert STYLES.search(coloured)
    assert "101–1000" in coloured
    assert STYLES.search(on_terminal_of(lambda: print_tokens(tokenise(["I skip"], "demo"))))
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_terminal_of(lambda: print_steps(rows, vocabulary))
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", plain)
    assert "¹ above 10" in plain


def test_pieces_of_a_split_character_are_written_as_bytes() -> None:
    assert piece(b"\xe2\x82", "x") == "⟨E2 82⟩"


@pytest.mark.parametrize("name", ["verify", "replay", "show", "head", "gc", "card", "explode"])
def test_every_command_that_reads_a_run_speaks_json(name: str, sound: Path, tmp_path: Path) -> None:
    options = {"replay": ["--row-id", "r0", "--strategy", "greedy"], "show": ["--row-id", "r0"]}.get(name, [])
    options += ["-o", str(tmp_path / "long.parquet")] if name == "explode" else []
    printed = command(name, sound, *options, "--json").stdout
    assert json.loads(printed)["schema"] == 1
    assert printed.count("\n") == 1
