"""Who may talk to Ray: the token, who can read it, on which addresses Ray listens, and which Ray is too old.

Ray reads its environment when it is imported, so `prepare` comes before that. It knows no Ray but a question
that every head answers, and never reads a token, so that none can get into a message or a log.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from pipeline.errors import ClusterError

OLDEST = (2, 60)
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # off is Ray's way to keep to 127.0.0.1, which it has for those systems


def prepare(environ: MutableMapping[str, str], home: Path) -> None:
    """Set what is not set: no telemetry, token authentication, and a Ray of this machine alone on loopback alone.

    With RAY_ADDRESS the token is that cluster's: it is shown where there is one.
    """
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not environ.get("RAY_ADDRESS"):
        environ.setdefault(LOOPBACK, "0")
        environ.setdefault("RAY_AUTH_MODE", "token")
    elif _has_token(environ, home):
        environ.setdefault("RAY_AUTH_MODE", "token")  # Ray does so for clusters that it finds, not for named ones


def ensure_token(environ: Mapping[str, str], home: Path) -> None:
    """Make a token that only its owner can read, where one is needed and there is none: all can read Ray's own."""
    if environ.get("RAY_AUTH_MODE") != "token" or _has_token(environ, home):
        return
    path = _token_file(environ, home)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):  # of somebody else's first run
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def complaints(environ: Mapping[str, str], home: Path) -> list[str]:
    """What is unsafe about the token, with the way out; a sentence each."""
    if environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return [
            "token authentication of Ray is off (RAY_AUTH_MODE): whoever reaches its ports runs code as you. "
            "docs/security.md tells how to turn it on."
        ]
    path = _token_file(environ, home)
    if environ.get("RAY_AUTH_TOKEN") or not path.exists() or not path.stat().st_mode & 0o077:
        return []
    mode = f"{path.stat().st_mode & 0o777:04o}"
    return [f"other users of this machine can read Ray's token {path} (mode {mode}): `chmod 600 {path}`"]


def check_version(version: str) -> None:
    """Refuse a Ray with holes that are known and closed since.

    Raises:
        ClusterError: it is too old.
    """
    major, minor = (int(number) for number in version.split(".")[:2])
    if (major, minor) < OLDEST:
        raise ClusterError(
            f"Ray {version} is installed, and must be {OLDEST[0]}.{OLDEST[1]} or later: older ones run code from "
            "crafted Parquet files (CVE-2026-41486) or start without a token.",
            "Install another: pip install 'ray[default]>=2.60,<2.64'",
        )


def check_asked(environ: Mapping[str, str], address: str) -> None:
    """Make sure that a cluster at `host:port` asks for the token that is shown to it; other addresses are not checked.

    With a token the driver asks for one too. Processes of a cluster without have none, and no replica would start.

    Raises:
        ClusterError: it answers without a token.
    """
    if environ.get("RAY_AUTH_MODE", "").lower() != "token" or "/" in address or ":" not in address:
        return
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=10)
        except grpc.RpcError:  # it asks for one, or speaks TLS
            return
    raise ClusterError(
        f"the Ray cluster at RAY_ADDRESS={address} has no token authentication, and would find no way back to a driver "
        "that has.",
        "Start it with a token (docs/security.md), or `export RAY_AUTH_MODE=disabled` here.",
    )


def refused(environ: Mapping[str, str], address: str) -> str:
    """What to do when a cluster answers and does not let us in. Ray says only that it failed to connect."""
    if environ.get("RAY_AUTH_MODE", "").lower() == "token":
        told = "RAY_AUTH_TOKEN" if environ.get("RAY_AUTH_TOKEN") else "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        return f"Ask who started it for the token: something listens at {address}, perhaps with another than {told}."
    return (
        f"Try with a token, as something listens at {address}: `export RAY_AUTH_MODE=token`, with the cluster's own "
        "token in ~/.ray/auth_token or RAY_AUTH_TOKEN."
    )


def _has_token(environ: Mapping[str, str], home: Path) -> bool:
    return bool(environ.get("RAY_AUTH_TOKEN")) or _token_file(environ, home).exists()


def _token_file(environ: Mapping[str, str], home: Path) -> Path:
    return Path(environ.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
