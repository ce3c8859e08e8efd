"""Token, permissions and versions of Ray, with environments and homes of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.access import LOOPBACK, check_version, complaints, ensure_token, prepare, refused
from pipeline.errors import ClusterError
from tests.commands import ROOT
from tests.flows import write_prompts
from tests.local_ray import ray_head

ALONE = {"RAY_USAGE_STATS_ENABLED": "0", LOOPBACK: "0", "RAY_AUTH_MODE": "token"}


def token_file(home: Path, mode: int) -> Path:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("secret")
    path.chmod(mode)
    return path


def prepared(environ: dict[str, str], home: Path) -> dict[str, str]:
    prepare(environ, home)
    ensure_token(environ, home)
    return environ


def test_a_ray_of_this_machine_alone_has_a_token_that_only_its_owner_can_read(tmp_path: Path) -> None:
    assert prepared({}, tmp_path) == ALONE
    path = tmp_path / ".ray" / "auth_token"
    token = path.read_text()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777, len(token)) == (0o600, 0o700, 64)
    assert complaints(ALONE, tmp_path) == []
    assert prepared({}, tmp_path) == ALONE
    assert path.read_text() == token


@pytest.mark.parametrize(
    "environ",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "secret"}],
)
def test_no_token_is_made_where_none_is_needed(environ: dict[str, str], tmp_path: Path) -> None:
    assert prepared(dict(environ), tmp_path) == ALONE | environ
    assert not (tmp_path / ".ray").exists()


def test_a_clusters_token_is_shown_where_there_is_one(tmp_path: Path) -> None:
    there = {"RAY_ADDRESS": "10.0.0.5:6379", "RAY_USAGE_STATS_ENABLED": "0"}
    assert prepared(dict(there), tmp_path) == there
    with_token = there | {"RAY_AUTH_TOKEN": "secret"}
    assert prepared(dict(with_token), tmp_path) == with_token | {"RAY_AUTH_MODE": "token"}
    token_file(tmp_path, 0o600)
    assert prepared(dict(there), tmp_path) == there | {"RAY_AUTH_MODE": "token"}
    off = there | {"RAY_AUTH_MODE": "disabled"}
    assert prepared(dict(off), tmp_path) == off


@pytest.mark.parametrize(("mode", "shown"), [(0o644, "0644"), (0o640, "0640"), (0o602, "0602")])
def test_a_token_file_that_others_can_read_or_write_is_complained_about(mode: int, shown: str, tmp_path: Path) -> None:
    path = token_file(tmp_path, mode)
    [complaint] = complaints(ALONE, tmp_path)
    assert complaint == f"other users of this machine can read Ray's token {path} (mode {shown}): `chmod 600 {path}`"
    assert complaints(ALONE | {"RAY_AUTH_TOKEN": "secret"}, tmp_path) == []  # then the file is not used
    elsewhere = ALONE | {"RAY_AUTH_TOKEN_PATH": str(path)}
    assert complaints(elsewhere, tmp_path / "another") == [complaint]


@pytest.mark.parametrize("environ", [{}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_ray_without_a_token_is_complained_about(environ: dict[str, str], tmp_path: Path) -> None:
    [complaint] = complaints(environ, tmp_path)
    assert complaint.startswith("token authentication of Ray is off (RAY_AUTH_MODE)")


@pytest.mark.parametrize("version", ["2.54.0", "2.59.1", "1.13.0", "2.9.3"])
def test_a_ray_with_known_holes_is_refused(version: str) -> None:
    with pytest.raises(ClusterError, match=rf"Ray {version} is installed, and must be 2\.60 or later"):
        check_version(version)


@pytest.mark.parametrize("version", ["2.60.0", "2.60.0rc1", "2.63.1", "3.0.0.dev0"])
def test_later_ones_are_not(version: str) -> None:
    check_version(version)


def test_a_run_does_not_start_a_ray_with_known_holes(tmp_path: Path) -> None:
    script = (
        "import ray\nray.__version__ = '2.54.0'\nray.init = None\nfrom pipeline.cli import main\n"
        f"main(['run', 'jobs/demo.yaml', '--output', {str(tmp_path / 'out')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 4
    assert "Ray 2.54.0 is installed, and must be 2.60 or later" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "Try with a token, as something listens at 10.0.0.5:6379: `export RAY_AUTH_MODE=token`"),
        (
            {"RAY_AUTH_MODE": "disabled"},
            "Try with a token, as something listens at 10.0.0.5:6379: `export RAY_AUTH_MODE=token`",
        ),
        ({"RAY_AUTH_MODE": "token"}, "perhaps with another than RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}, "perhaps with another than RAY_AUTH_TOKEN."),
    ],
)
def test_a_refusal_is_explained_by_what_was_shown_to_the_cluster(environ: dict[str, str], words: str) -> None:
    said = refused(environ, "10.0.0.5:6379")
    assert words in said
    assert "secret" not in said


LISTENING = """
import json, os, pipeline.cluster as cluster
with cluster._connected():
    import psutil
    me = psutil.Process()
    open_ports = [port for each in [me, *me.children(recursive=True)] for port in each.net_connections("tcp")]
    print(json.dumps(sorted({port.laddr.ip for port in open_ports if port.status == "LISTEN"})))
"""


def test_a_ray_of_this_machine_alone_listens_on_loopback_alone_and_the_run_says_who_can_read_its_token(
    tmp_path: Path,
) -> None:
    path = token_file(tmp_path, 0o644)
    environ = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        capture_output=True,
        text=True,
        check=True,
        env=environ | {"RAY_AUTH_TOKEN_PATH": str(path)},
    )
    assert json.loads(done.stdout) == ["127.0.0.1", "::ffff:127.0.0.1"]
    said = f"other users of this machine can read Ray's token {path} (mode 0644): `chmod 600 {path}`"
    assert said in done.stderr.splitlines()


JOB = """
model: demo
input: {path: %s, id_column: id}
output: {path: unused}
strategies: [{name: greedy, type: greedy, max_new_tokens: 2}]
run: {replicas: 1}
"""


def test_a_cluster_without_authentication_needs_a_driver_without_it_which_warns(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "prompts.parquet", ["Today"])
    (tmp_path / "job.yaml").write_text(JOB % source)
    done = {}
    with ray_head("--num-cpus=1", "--include-dashboard=false", RAY_AUTH_MODE="disabled") as ports:
        for mode in ("disabled", "token"):
            shown = {"RAY_ADDRESS": f"127.0.0.1:{ports['port']}", "RAY_AUTH_MODE": mode}
            command = [sys.executable, "-m", "jobs.generate", str(tmp_path / "job.yaml")]
            done[mode] = subprocess.run(
                [*command, "--output", str(tmp_path / mode)],
                env=os.environ | shown,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
    assert done["disabled"].returncode == 0, done["disabled"].stderr
    assert (tmp_path / "disabled" / "_SUCCESS").exists()
    assert "token authentication of Ray is off (RAY_AUTH_MODE)" in done["disabled"].stderr
    assert done["token"].returncode == 4
    assert f"{shown['RAY_ADDRESS']} has no token authentication" in done["token"].stderr
    assert "`export RAY_AUTH_MODE=disabled`" in done["token"].stderr
