"""What `batchgen next` shows: on terminals of several widths, in a pipe, with hostile tokens, and as README says."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from rich.console import Console

from pipeline.cli import main
from pipeline.next_screen import piece, print_answer, print_fitted
from pipeline.next_tokens import Candidate, NextTokens, Prediction, Shared, Shift, next_tokens

ROOT = Path(__file__).parent.parent
STYLES = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE = [
    b"\x1b]52;c;aGk=\x07",
    b" [bold]",
    b"\n\t\x00",
    b"\xe2\x82",
    b" \xe4\xba",
    b"\xc2\x9b2J",
    "\u202egnp".encode(),
]


def candidate(token_bytes: bytes, *, token: str | None = "T", rank: int = 1, logprob: float = -1.0) -> Candidate:
    return Candidate(rank, token, token_bytes, rank, logprob)


def hostile_answer() -> NextTokens:
    """Two prompts whose every text would like to act on a terminal."""
    candidates = tuple(candidate(text, rank=rank) for rank, text in enumerate(HOSTILE, start=1))
    prompt = Prediction("\x1b[2J\u202e[red]x \n", (1, 2), 1.0, candidates)
    shared = tuple(Shared(one, one) for one in candidates)
    return NextTokens("model\x1b[31m", "c", "float32", 50257, (prompt, prompt), (Shift(1, 2, 0.1, 0.2, 1e-12, shared),))


def screen(answer: NextTokens, width: int, encoding: str = "utf-8") -> list[str]:
    """Lines on a terminal of this width, without colours."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    print_fitted(answer, Console(file=stream, width=width, color_system=None))
    stream.seek(0)
    return [line.rstrip() for line in stream.read().splitlines()]


def on_terminal(answer: NextTokens) -> str:
    """What `print_answer` writes to a pseudo-terminal."""
    return on_terminal_of(lambda: print_answer(answer))


def on_terminal_of(say: Callable[[], None]) -> str:
    """What a call writes to a pseudo-terminal; it must fit the terminal's buffer."""
    leader, follower = pty.openpty()
    with open(follower, "w", encoding="utf-8") as terminal, contextlib.redirect_stdout(terminal):
        say()
    return drained(leader)


def drained(leader: int) -> str:
    """All that was written to a pseudo-terminal that nobody holds open any more."""
    written = b""
    with contextlib.suppress(OSError):  # its end
        while True:
            written += os.read(leader, 1 << 16)
    os.close(leader)
    return written.decode()


def command(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["next", *arguments], input=stdin)


@pytest.fixture(scope="module")
def answer() -> NextTokens:
    return next_tokens(["I skip across the", "I walk across the"], model="demo", dtype="float32", k=3)


@pytest.mark.parametrize(
    ("token_bytes", "shown"),
    [
        (b" line", "·line"),
        (b"   ", "···"),
        ("·".encode(), "⟨U+00B7⟩"),
        ("\u00a0x\u3000".encode(), "⟨U+00A0⟩x⟨U+3000⟩"),
        (b"\n", "⏎"),
        (b"\x1b[2J\x07\x7f", "␛[2J␇␡"),
        ("\u202eab\u200b".encode(), "⟨U+202E⟩ab⟨U+200B⟩"),
        ("\x9b2J".encode(), "⟨U+009B⟩2J"),
        (b"\xe2\x82", "⟨E2 82⟩"),
        (b" \xe4\xba", "·⟨E4 BA⟩"),
        ("京☀".encode(), "京☀"),
        (b"[bold]", "[bold]"),
    ],
)
def test_a_piece_hides_nothing_and_does_nothing(token_bytes: bytes, shown: str) -> None:
    assert piece(candidate(token_bytes)) == shown


def test_a_token_without_bytes_shows_its_name() -> None:
    assert piece(candidate(b"", token="<|endoftext|>")) == "<|endoftext|>"
    assert piece(candidate(b"", token=None)) == "⟨no token⟩"


def test_two_prompts_stand_side_by_side_with_what_they_share_below(answer: NextTokens) -> None:
    assert screen(answer, 80) == [
        "1  I skip across the                     2  I walk across the",
        "4 tokens · entropy 2.29                  6 tokens · entropy 2.58",
        "#  token     id    prob                  #  token     id    prob",
        "1  ·line    423  19.2 %  █████████████   1  ·line    423  13.9 %  █████████▍",
        "2  ·street  374  16.8 %  ███████████▎    2  ·field   486  13.2 %  ████████▉",
        "3  ·river   417  12.8 %  ████████▋       3  ·road    501  13.1 %  ████████▉",
        "",
        "1 → 2 · 1 of 3 candidates shared",
        "token   id      #             prob  points",
        "·line  423  1 → 1  19.2 % → 13.9 %    -5.3",
        "KL(1‖2) 0.231 nats · KL(2‖1) 0.532 nats · JS 0.0632 nats (at most 0.693)",
        "",
        "KL(a‖b) = Σ p_a ln(p_a/p_b) over all 768 tokens",
        "· is a space; entropy in nats; demo, float32",
    ]


def test_one_prompt_has_no_number_and_no_comparison(answer: NextTokens) -> None:
    lines = screen(NextTokens("demo", "c", "float32", 768, answer.predictions[:1], ()), 80)
    assert lines[0] == "I skip across the"
    assert lines[-1] == "· is a space; entropy in nats; demo, float32"
    assert len(lines) == 8


@pytest.mark.parametrize("width", [40, 56, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(answer: NextTokens, width: int) -> None:
    many = NextTokens("demo", "c", "float32", 768, answer.predictions * 3, answer.shifts)
    lines = screen(many, width)
    assert max(map(cell_len, lines)) <= width
    text = " ".join(lines)
    assert text.count("·street  374  16.8 %") == text.count("·road    501  13.1 %") == 3
    assert re.search(r"·line +(423 +)?1 → 1  19\.2 % → 13\.9 % +-5\.3", text)


def test_narrow_terminals_stack_the_blocks(answer: NextTokens) -> None:
    lines = screen(answer, 40)
    assert lines[0] == "1  I skip across the"
    assert "2  I walk across the" in lines


def test_a_long_prompt_shows_its_end_and_blanks_at_its_edges() -> None:
    prompt = Prediction("word " * 50 + "京都 ", (1,), 0.0, (candidate(b"x"),))
    heading = screen(NextTokens("demo", "c", "float32", 9, (prompt,), ()), 30)[0]
    assert heading == "…ord word word word word 京都·"
    assert cell_len(heading) == 30


def test_a_prompt_of_a_special_token_shows_its_ids() -> None:
    prompt = Prediction("", (767, 767), 0.0, (candidate(b"x"),))
    assert screen(NextTokens("demo", "c", "float32", 768, (prompt,), ()), 80)[0] == "ids 767 767"


@pytest.mark.parametrize(
    ("logprob", "shown"),
    [(-1.0, "36.8 %"), (-7.0, "0.09 %"), (-9.0, "0.01 %"), (-10.0, "0.005 %"), (-12.0, "<0.001 %")],
)
def test_small_probabilities_get_more_decimals_and_never_read_as_zero(logprob: float, shown: str) -> None:
    prompt = Prediction("a", (1,), 0.0, (candidate(b"x", logprob=logprob),))
    assert f"  {shown}  " in "\n".join(screen(NextTokens("demo", "c", "float32", 9, (prompt,), ()), 80))


def test_a_terminal_that_is_ascii_only_gets_no_bars_and_all_numbers(answer: NextTokens) -> None:
    lines = screen(answer, 80, encoding="ascii")
    assert lines[3].split() == ["1", "?line", "423", "19.2", "%", "1", "?line", "423", "13.9", "%"]


@pytest.mark.parametrize("width", [40, 80])
def test_nothing_in_a_model_or_a_prompt_acts_on_a_terminal(width: int) -> None:
    text = "\n".join(screen(hostile_answer(), width))
    assert not set(text) & set("\x1b\x07\x00\t\x9b\u202e")
    for shown in ("␛]52;c;aGk=␇", "·[bold]", "⏎␉␀", "⟨E2 82⟩", "·⟨E4 BA⟩", "⟨U+009B⟩2J", "⟨U+202E⟩gnp", "model␛[31m"):
        assert shown in text


def test_nothing_in_a_model_or_a_prompt_breaks_the_columns_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(hostile_answer())
    candidates, shifts, shared = capsys.readouterr().out.split("\n\n")
    assert [line.count("\t") for line in candidates.splitlines()] == [4] * 15
    assert [line.count("\t") for line in shifts.splitlines()] == [5] * 2
    assert [line.count("\t") for line in shared.splitlines()] == [8] * 8
    assert not set(candidates + shared) & set("\x1b\x07\x00\x9b\u202e")


def test_a_terminal_gets_bars_in_colour_and_no_color_takes_only_the_colour(
    answer: NextTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = on_terminal(answer)
    assert "\x1b[36;49m█" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_terminal(answer)
    assert "\x1b[36" not in plain
    assert STYLES.sub("", plain) == STYLES.sub("", coloured)


def test_a_pipe_gets_tab_separated_numbers_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    done = command("I skip across the", "-k", "3")
    assert done.exit_code == 0
    assert done.stderr == ""
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header == ["prompt", "rank", "token", "token_id", "percent"]
    assert [row[:4] for row in rows] == [
        ["1", "1", "·line", "423"],
        ["1", "2", "·street", "374"],
        ["1", "3", "·river", "417"],
    ]
    assert [float(row[4]) for row in rows] == pytest.approx([19.1851, 16.7732, 12.8457], abs=1e-3)


def test_a_pipe_gets_three_tables_for_several_prompts() -> None:
    done = command("I skip across the", "I walk across the", "-k", "3")
    candidates, shifts, shared = ([line.split("\t") for line in t.splitlines()] for t in done.stdout.split("\n\n"))
    assert len(candidates) == 7
    assert shifts[0] == ["first", "second", "shared", "kl_first_second", "kl_second_first", "js"]
    assert [float(value) for value in shifts[1]] == pytest.approx([1, 2, 1, 0.2313, 0.531532, 0.0631732], rel=1e-4)
    assert shared[0][2:] == [
        "token", "token_id", "rank_first", "rank_second", "percent_first", "percent_second", "change"
    ]  # fmt: skip
    assert shared[1][:6] == ["1", "2", "·line", "423", "1", "1"]
    assert float(shared[1][8]) == pytest.approx(-5.3068, abs=1e-3)


def test_prompts_come_from_stdin_one_per_line_among_others() -> None:
    done = command("Today", "-", "--ids", "767", "--json", "-k", "1", stdin="I skip\r\n\tÉ\u2028x\n".encode())
    document = json.loads(done.stdout)
    assert [one["prompt"] for one in document["predictions"]] == ["Today", "I skip", "\tÉ\u2028x", ""]
    assert document["predictions"][3]["prompt_token_ids"] == [767]
    assert done.stdout.isascii()
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ([], b"", "error: there is no prompt"),
        (["-"], b"", "error: there is no prompt"),
        (["-"], b"a\n\nb\n", "error: prompt 2 is empty"),
        (["-"], b"a\nb\xe4d\n", "error: prompt 2 is not valid Unicode"),
        ([""], b"", "error: prompt 1 is empty"),
        (["word " * 200], b"", "error: prompt 1 has 601 tokens"),
        (["--ids", "40 x"], b"", "error: --ids must be token ids"),
        (["--ids", "768"], b"", "error: prompt 1 has token id 768"),
        (["a", "--model", "./nowhere"], b"", "error: model.name `./nowhere` is not a folder"),
        (["a", "-k", "0"], b"", "Invalid value for '-k'"),
        (["a", "--dtype", "float16"], b"", "'float16' is not one of"),
    ],
)
def test_what_is_wrong_is_one_message_and_exit_code_2(arguments: list[str], stdin: bytes, words: str) -> None:
    done = command(*arguments, stdin=stdin)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stdout == ""


def test_the_command_in_a_process_of_its_own_fits_its_terminal_and_takes_bytes_that_are_no_unicode() -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    arguments = [sys.executable, "-m", "pipeline.cli", "next", "I skip across the"]
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    env.pop("COLUMNS", None)
    with subprocess.Popen(arguments, stdout=follower, stderr=subprocess.PIPE, stdin=follower, cwd=ROOT, env=env) as run:
        assert run.stderr is not None
        assert run.stderr.read() == b""
    os.close(follower)
    lines = [line.rstrip() for line in STYLES.sub("", drained(leader)).splitlines()]
    assert lines[0] == "I skip across the"
    assert lines[3] == " 1  ·line    423  19.2 %  ████████████████████████"
    bad = subprocess.run([*arguments[:-1], b"bad \xff"], capture_output=True, cwd=ROOT, check=False)
    assert bad.returncode == 2
    assert b"error: prompt 1 is not valid Unicode: its character 5" in bad.stderr
