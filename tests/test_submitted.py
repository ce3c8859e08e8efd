"""What a submitted job refuses, and its last line."""

from __future__ import annotations

import sys

import pytest

from pipeline.errors import ConfigError
from pipeline.submitted import MARK, check_output, told


@pytest.mark.parametrize("path", ["out", "./out", "../out", "out/demo"])
def test_a_relative_output_is_refused_in_a_submitted_job_alone(path: str) -> None:
    check_output(path, {})
    with pytest.raises(ConfigError, match=r"must not be relative in a submitted job, but is .*which Ray deletes"):
        check_output(path, {MARK: "{}"})


@pytest.mark.parametrize("path", ["/shared/out", "s3://bucket/out"])
def test_outputs_that_stay_are_taken(path: str) -> None:
    check_output(path, {MARK: "{}"})


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (None, '{"exit_code": 0, "result": "done"}'),
        (2, '{"exit_code": 2, "result": "config or input refused"}'),
        (3, '{"exit_code": 3, "result": "too many errors"}'),
        (4, '{"exit_code": 4, "result": "safe to run again"}'),
        (5, '{"exit_code": 5, "result": "something is wrong"}'),
        ("words", '{"exit_code": 1, "result": "bug"}'),
    ],
)
def test_the_last_line_tells_the_exit_code(
    code: int | str | None, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        told(lambda: sys.exit(code))
    assert stopped.value.code == code
    assert capsys.readouterr().out == f"BATCHGEN {line}\n"


def test_a_bug_keeps_its_traceback_and_has_a_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        told(lambda: 1 / 0)
    assert capsys.readouterr().out == 'BATCHGEN {"exit_code": 1, "result": "bug"}\n'
