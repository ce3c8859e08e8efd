"""What shells complete: commands, options, strategies of an output folder; asked as click asks, and once by a bash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from pipeline.cli import main

STRATEGIES = ["greedy", "no_repeats", "nucleus", "top_k", "beam5", "candidates"]


def completed(*words: str) -> list[tuple[str, str]]:
    """Kind and value of what may stand in the place of the last word."""
    *before, incomplete = words
    found = ShellComplete(main, {}, "batchgen", "_BATCHGEN_COMPLETE").get_completions(before, incomplete)
    return [(item.type, item.value) for item in found]


def test_commands_and_options_are_completed() -> None:
    assert completed("re") == [("plain", "replay"), ("plain", "report"), ("plain", "retry-errors")]
    assert ("plain", "--prompt-column") in completed("init", "data.parquet", "--p")
    assert completed("next", "--dtype", "b") == [("plain", "bfloat16")]
    assert completed("completion", "") == [("plain", "bash"), ("plain", "zsh"), ("plain", "fish")]


def test_files_and_folders_are_left_to_the_shell() -> None:
    assert completed("run", "jobs/d") == [("file", "jobs/d")]
    assert completed("init", "a.parquet", "b") == [("file", "b")]
    assert completed("status", "out/d") == [("dir", "out/d")]
    assert completed("compare", "out/a", "out/b") == [("dir", "out/b")]
    assert completed("run", "job.yaml", "--output", "o") == [("dir", "o")]


@pytest.mark.parametrize(
    ("words", "prefix", "names"),
    [
        (["show", "OUT", "--row-id", "x", "--strategy"], "", STRATEGIES),
        (["head", "OUT", "--strategy"], "n", ["no_repeats", "nucleus"]),
        (["replay", "--row-id", "x", "OUT", "--strategy"], "beam", ["beam5"]),
        (["report", "OUT", "--baseline"], "z", []),
        (["compare", "OUT", "--strategies"], "greedy,n", ["greedy,no_repeats", "greedy,nucleus"]),
    ],
)
def test_strategies_are_those_of_the_run(demo_run: Path, words: list[str], prefix: str, names: list[str]) -> None:
    line = [str(demo_run) if word == "OUT" else word for word in words]
    assert completed(*line, prefix) == [("plain", name) for name in names]


@pytest.mark.parametrize("plan", [None, "", "[]", '{"job": {"strategies": [{}]}}'])
def test_a_folder_that_is_no_run_has_no_strategies(tmp_path: Path, plan: str | None) -> None:
    if plan is not None:
        (tmp_path / "_plan.json").write_text(plan)
    assert completed("head", str(tmp_path), "--strategy", "") == []
    assert completed("head", "--strategy", "") == []
    assert completed("head", "s3://bucket/out", "--strategy", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_the_command(shell: str) -> None:
    script = CliRunner().invoke(main, ["completion", shell])
    assert script.exit_code == 0
    assert f"_BATCHGEN_COMPLETE={shell}_complete" in script.stdout


def test_a_bash_completes_what_is_on_its_line(tmp_path: Path, demo_run: Path) -> None:
    command = tmp_path / "batchgen"
    command.write_text(f"#!{sys.executable}\nfrom pipeline.cli import main\nmain()\n")
    command.chmod(0o755)
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    ask = f"""{script}
    COMP_WORDS=(batchgen head {demo_run} --strategy n); COMP_CWORD=4
    _batchgen_completion {command}; echo "${{COMPREPLY[@]}}"
    complete -p batchgen
    """
    answer = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [
        "no_repeats nucleus",
        "complete -o nosort -F _batchgen_completion batchgen",
    ]


def test_completing_loads_nothing_heavy(demo_run: Path) -> None:
    code = (
        "import sys; from click.shell_completion import ShellComplete; from pipeline.cli import main; "
        f"c = ShellComplete(main, {{}}, 'b', 'c').get_completions(['head', {str(demo_run)!r}, '--strategy'], ''); "
        "print(len(c), *[n for n in ('torch', 'ray', 'pyarrow', 'rich', 'pydantic') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "6\n"
