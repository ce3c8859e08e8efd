"""An object store of one bucket that does what real ones do on bad days. Atomic: one request at a time.

It speaks what obstore says to S3, to Google's XML API or to Azure's Blob service, and takes any signature.

A fault is named by what happens to a request: it is answered with a status, such as `500`, and nothing done; or done
and then answered 500 (`done, 500`), cut off (`done, cut`) or never answered (`done, silence`); or `cut` off before it;
or done when the next PUT has come (`late`), without an answer.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

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


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of store is spoken to.

    Attributes:
        endpoint: the variable of the environment that names the server.
        credentials: other variables.
        condition: the header of a PUT that wants its name to be free.
        taken: status and code where it is not.
    """

    endpoint: str
    credentials: dict[str, str]
    condition: tuple[str, str]
    taken: tuple[int, str]


DIALECTS = {
    "s3": Dialect(
        "AWS_ENDPOINT_URL",
        {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden-secret", "AWS_REGION": "us-east-1"},
        ("If-None-Match", "*"),
        (412, "PreconditionFailed"),
    ),
    "gs": Dialect(
        "GOOGLE_BASE_URL",
        {
            "GOOGLE_SERVICE_ACCOUNT_KEY": '{"disable_oauth": true, "client_email": "", "private_key": "hidden-secret", '
            '"private_key_id": ""}'
        },
        ("x-goog-if-generation-match", "0"),
        (412, "PreconditionFailed"),
    ),
    "az": Dialect(
        "AZURE_STORAGE_ENDPOINT",
        {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "aGlkZGVuLXNlY3JldA=="},
        ("If-None-Match", "*"),
        (409, "BlobAlreadyExists"),
    ),
}


class FakeStore(ThreadingHTTPServer):
    """Attributes: the stored objects by key, the requests so far, and whether the condition of a PUT is honoured."""

    daemon_threads = True

    def __init__(self, scheme: str, fault: Fault, honours_condition: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme, self.dialect = scheme, DIALECTS[scheme]
        self.fault, self.honours_condition = fault, honours_condition
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.late: list[tuple[str, bytes]] = []
        self.lock, self.is_closing = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        """Of the bucket."""
        return f"{self.scheme}://bkt"

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which a process finds the server."""
        return self.dialect.credentials | {self.dialect.endpoint: f"http://127.0.0.1:{self.server_address[1]}"}

    def put_keys(self) -> list[str]:
        """Keys of the PUTs so far."""
        return [key for method, key in self.requests if method == "PUT"]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no news."""


@contextmanager
def fake_store(scheme: str, fault: Fault = no_fault, *, honours_condition: bool = True) -> Iterator[FakeStore]:
    """A running server."""
    server = FakeStore(scheme, fault, honours_condition)
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
    disable_nagle_algorithm = True  # the body would wait 40 ms for the head to be acknowledged
    server: FakeStore

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append((self.command, key))
            fault = self.server.fault(self.command, key)
            known = bucket == "bkt"
            answer = self.answer(fault, key, parse_qs(parts.query), body) if known else error(404, "NoSuchBucket")
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
            name, value = self.server.dialect.condition
            if self.server.honours_condition and self.headers.get(name) == value and key in objects:
                return error(*self.server.dialect.taken)
            objects[key] = body
            return 201 if self.server.scheme == "az" else 200, tag(body), b""
        if self.command == "POST":
            return delete_blobs(objects, body) if self.server.scheme == "az" else delete_objects(objects, body)
        if not key:
            listed = blobs if self.server.scheme == "az" else contents
            prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
            return 200, {}, listed(*under(objects, prefix, delimiter))
        if key not in objects:
            return error(404, "NoSuchKey")
        if self.command == "DELETE":
            del objects[key]
            return 204, {}, b""
        return self.ranged(objects[key])

    def ranged(self, body: bytes) -> Answer:
        """The object, or the bytes of it that are asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            return 200, tag(body), body
        first, last = int(asked[1]), min(int(asked[2]), len(body) - 1)
        return 206, tag(body) | {"Content-Range": f"bytes {first}-{last}/{len(body)}"}, body[first : last + 1]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


Answer = tuple[int, dict[str, str], bytes]


def tag(body: bytes) -> dict[str, str]:
    return {"ETag": f'"{hashlib.md5(body).hexdigest()}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


def error(status: int, code: str) -> Answer:
    return status, {}, f"<Error><Code>{code}</Code></Error>".encode()


def delete_objects(objects: dict[str, bytes], body: bytes) -> Answer:
    """DeleteObjects of S3."""
    keys = [found.decode() for found in re.findall(rb"<Key>(.*?)</Key>", body)]
    for key in keys:
        objects.pop(key, None)
    deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
    return 200, {}, f"<DeleteResult>{deleted}</DeleteResult>".encode()


def delete_blobs(objects: dict[str, bytes], body: bytes) -> Answer:
    """Blob Batch of Azure: a multipart answer with one of HTTP for each deletion."""
    answers = []
    for number, found in enumerate(re.findall(rb"^DELETE /bkt/(\S+) HTTP", body, re.MULTILINE)):
        known = objects.pop(unquote(found.decode()), None) is not None
        status = "202 Accepted" if known else "404 The specified blob does not exist."
        code = "" if known else "x-ms-error-code: BlobNotFound\r\n"
        answers.append(
            f"--batch\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
            f"HTTP/1.1 {status}\r\n{code}\r\n\r\n"
        )
    return 202, {"Content-Type": "multipart/mixed; boundary=batch"}, f"{''.join(answers)}--batch--\r\n".encode()


def under(objects: dict[str, bytes], prefix: str, delimiter: str) -> tuple[dict[str, bytes], list[str]]:
    """Objects directly under a prefix, and folders there."""
    found, folders = {}, set()
    for key, body in sorted(objects.items()):
        head, cut, _ = key.removeprefix(prefix).partition(delimiter or "\0")
        if key.startswith(prefix) and cut:
            folders.add(f"{prefix}{head}{cut}")
        elif key.startswith(prefix):
            found[key] = body
    return found, sorted(folders)


def contents(found: dict[str, bytes], folders: list[str]) -> bytes:
    """ListObjectsV2 of S3 and Google, in one page."""
    modified = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    files = "".join(
        f"<Contents><Key>{key}</Key><Size>{len(body)}</Size>{modified}</Contents>" for key, body in found.items()
    )
    common = "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{files}{common}</ListBucketResult>".encode()


def blobs(found: dict[str, bytes], folders: list[str]) -> bytes:
    """List Blobs of Azure, in one page."""
    modified = "<Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified>"
    files = "".join(
        f"<Blob><Name>{key}</Name><Properties>{modified}<Content-Length>{len(body)}</Content-Length>"
        f"<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
        for key, body in found.items()
    )
    common = "".join(f"<BlobPrefix><Name>{folder}</Name></BlobPrefix>" for folder in folders)
    return f"<EnumerationResults><Blobs>{files}{common}</Blobs><NextMarker /></EnumerationResults>".encode()
