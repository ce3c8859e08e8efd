"""Object stores: which URLs mean one, and how to reach it. S3 and what speaks like it, Google Cloud Storage, Azure.

Endpoint and credentials come from the environment of each process. Knows neither input nor output.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from pipeline.errors import ConfigError

SCHEMES = ("s3", "gs", "az")
ENDPOINTS = (
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AZURE_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
)
REFUSED = (PermissionDeniedError, UnauthenticatedError)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try: by default about three minutes with a store that does not answer at all.

    Attributes:
        timeout_s: for one request with its body.
        retries: of a request that fails in a way that may pass.
        attempts: to publish a file, each with its retries.
        pause_s: before the first retry or second attempt; doubles each time.
    """

    timeout_s: float = 600.0
    retries: int = 8
    attempts: int = 4
    pause_s: float = 0.1

    @property
    def pauses_s(self) -> list[float]:
        """Pause after each attempt to publish."""
        return [self.pause_s * 2**attempt for attempt in range(self.attempts)]


PATIENT = Patience()


def checked(url: str, setting: str) -> str:
    """The URL without a closing slash, if it is a bucket and a path and nothing else.

    Raises:
        ConfigError: it is not, or the store is not one of `SCHEMES`; it names the setting that has the URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"{setting} must be a folder, or begin with {' or '.join(f'{known}://' for known in SCHEMES)}, "
            f"but is {without_secrets(url)!r}.",
            "Give one of these.",
        )
    if "@" in parts.netloc or ":" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{setting} must be {parts.scheme}://bucket/path and nothing more, but holds credentials, a port, `?` or "
            "`#`.",
            "Put endpoint and credentials into the environment.",
        )
    segments = parts.path.strip("/").split("/") if parts.path.strip("/") else []
    if not parts.netloc or any(segment in ("", ".", "..") for segment in segments):
        raise ConfigError(
            f"{setting} must be {parts.scheme}://bucket/path with plain names, but is {url!r}.", "Write it so."
        )
    return "/".join([f"{parts.scheme}://{parts.netloc}", *segments])


def connect(url: str, setting: str, patience: Patience) -> Any:
    """The store of a URL from `checked`, as obstore has it; keys count from the path of the URL.

    Raises:
        ConfigError: the environment lacks something, or an endpoint in it is no URL.
    """
    _check_endpoints()
    pause = timedelta(seconds=patience.pause_s)
    has_http = any(os.environ.get(variable, "").startswith("http://") for variable in ENDPOINTS)
    try:
        return from_url(
            url,
            client_options={
                "timeout": timedelta(seconds=patience.timeout_s),
                "connect_timeout": timedelta(seconds=min(10.0, patience.timeout_s)),
                "allow_http": has_http,  # said by the endpoint itself
            },
            retry_config={
                "max_retries": patience.retries,
                "backoff": {"init_backoff": pause, "max_backoff": timedelta(seconds=15), "base": 2},
            },
        )
    except BaseError as error:
        raise ConfigError(
            f"{setting} {url} cannot be opened: {first_line(error)}.",
            "Set what is missing in the environment: AWS_*, GOOGLE_* or AZURE_*.",
        ) from error


def _check_endpoints() -> None:
    """Refuse endpoints that are no URL; the library would not raise an error but abort."""
    for variable in ENDPOINTS:
        value = os.environ.get(variable)
        if value and not _is_http_url(value):
            raise ConfigError(
                f"{variable} in the environment must be as https://host:port, but is {without_secrets(value)!r}.",
                "Write it so, or unset it.",
            )


def _is_http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    is_plain = value.isascii() and value.isprintable() and " " not in value
    return is_plain and parts.scheme in ("http", "https") and bool(parts.hostname)


def first_line(error: Exception) -> str:
    """What a store says, without where in its library that was."""
    return without_secrets(str(error).splitlines()[0])[:300].rstrip(". ")


def without_secrets(text: str) -> str:
    """A text to show, without what URLs in it say before `@` and after `?`: there may be credentials."""
    return re.sub(r"(?<=://)[^/\s]*@|\?\S*", "…", text)
