"""An S3 server for one bucket that does what real ones do on bad days. Atomic: one request at a time.

A fault is named by what happens to a request: it is answered `500`, `501`, `403` or `409` with nothing done; or done
and then answered 500 (`done, 500`), cut off (`done, cut`) or never answered (`done, silence`); or `cut` off before it;
or done when the next PUT has come (`late`), without an answer.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

MODIFIED = "2026-01-01T00:00:00.000Z"

Fault = Callable[[str, str], str]  # (method, key) -> name of a fault, or "" for none


def no_fault(_method: str, _key: str) -> str:
    return ""


def puts(*faults: str) -> Fault:
    """These faults for the first PUTs, in order, and then none."""
    left = list(faults)
    return lambda method, _key: left.pop(0) if method == "PUT" and left else ""


def every(method: str, fault: str) -> Fault:
    """The fault for every request of a method."""
    return lambda found, _key: fault if found == method else ""


class FakeS3(ThreadingHTTPServer):
    """Attributes: the stored objects by key, the requests so far, and whether `If-None-Match: *` is honoured."""

    daemon_threads = True

    def __init__(self, fault: Fault, honours_condition: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.honours_condition = fault, honours_condition
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.late: list[tuple[str, bytes]] = []
        self.lock, self.is_closing = threading.Lock(), threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put_keys(self) -> list[str]:
        """Keys of the PUTs so far."""
        return [key for method, key in self.requests if method == "PUT"]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no news."""


@contextmanager
def fake_s3(fault: Fault = no_fault, *, honours_condition: bool = True) -> Iterator[FakeS3]:
    """A running server."""
    server = FakeS3(fault, honours_condition)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.is_closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeS3

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix("/bkt").removeprefix("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append((self.command, key))
            fault = self.server.fault(self.command, key)
            answer = self.answer(fault, key, parse_qs(parts.query), body)
        if answer is None:
            if fault in ("late", "done, silence"):
                self.server.is_closing.wait()
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = handle_any  # noqa: N815

    def answer(self, fault: str, key: str, query: dict[str, list[str]], body: bytes) -> Answer | None:
        """What to send, None for nothing."""
        if self.command == "PUT":
            while self.server.late:
                self.server.objects.setdefault(*self.server.late.pop())
        if fault.isdigit():
            return error(int(fault), "ConditionalRequestConflict" if fault == "409" else "Fault")
        if fault == "late":
            self.server.late.append((key, body))
        if fault in ("late", "cut"):
            return None
        done = self.done(key, query, body)
        if fault == "done, 500":
            return error(500, "InternalError")
        return None if fault else done

    def done(self, key: str, query: dict[str, list[str]], body: bytes) -> Answer:
        objects = self.server.objects
        if self.command == "PUT":
            if self.server.honours_condition and self.headers.get("If-None-Match") == "*" and key in objects:
                return error(412, "PreconditionFailed")
            objects[key] = body
            return 200, tag(body), b""
        if self.command == "POST":  # DeleteObjects
            keys = [found.decode() for found in re.findall(rb"<Key>(.*?)</Key>", body)]
            for found in keys:
                objects.pop(found, None)
            deleted = "".join(f"<Deleted><Key>{found}</Key></Deleted>" for found in keys)
            return 200, {}, f"<DeleteResult>{deleted}</DeleteResult>".encode()
        if not key:
            return 200, {}, listing(objects, query["prefix"][0], query.get("delimiter", [""])[0])
        if self.command == "DELETE":
            objects.pop(key, None)
            return 204, {}, b""
        return (200, tag(objects[key]), objects[key]) if key in objects else error(404, "NoSuchKey")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


Answer = tuple[int, dict[str, str], bytes]


def tag(body: bytes) -> dict[str, str]:
    return {"ETag": f'"{hashlib.md5(body).hexdigest()}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


def error(status: int, code: str) -> Answer:
    return status, {}, f"<Error><Code>{code}</Code></Error>".encode()


def listing(objects: dict[str, bytes], prefix: str, delimiter: str) -> bytes:
    """ListObjectsV2 in one page."""
    contents, folders = [], set()
    for key, body in sorted(objects.items()):
        if not key.startswith(prefix):
            continue
        head, cut, _ = key.removeprefix(prefix).partition(delimiter or "\0")
        if cut:
            folders.add(f"{prefix}{head}{cut}")
        else:
            contents.append(
                f"<Contents><Key>{key}</Key><Size>{len(body)}</Size><LastModified>{MODIFIED}</LastModified></Contents>"
            )
    common = "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in sorted(folders))
    inside = f"<IsTruncated>false</IsTruncated>{''.join(contents)}{common}"
    return f"<ListBucketResult><Name>bkt</Name><Prefix>{prefix}</Prefix>{inside}</ListBucketResult>".encode()
