"""Runs to report on, reports taken apart, and a headless Chromium to open them in."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from pipeline import job
from tests.flows import make_job, write_prompts

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'
UNICODE = "a\x00\x1b[31m\u202eevil\u202c\u2066\ufeff é 😀 𝒳 \U000e0041 עברית ![x](javascript:1) {{ 7*7 }}"
PROMPTS = ["I skip across the", "The quiet fox", HOSTILE, UNICODE, "Today", None, "Count: one, two,", "1.\n\tlines\r\n"]
STRATEGIES = [
    {"name": "greedy", "type": "greedy", "max_new_tokens": 12},
    {"name": "hot", "type": "sampling", "max_new_tokens": 16, "temperature": 1.8, "num_return_sequences": 3},
    {"name": "beams", "type": "beam_search", "max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2},
    {"name": "stops", "type": "greedy", "max_new_tokens": 12, "stop_strings": ["e"]},
    {"name": "contrast", "type": "contrastive_search", "max_new_tokens": 8, "penalty_alpha": 0.6, "top_k": 4},
    {"name": "candidates", "type": "next_token"},
    {"name": "given", "type": "score"},
]


def make_run(folder: Path) -> Path:
    """A run of the demo model with every kind of strategy, over prompts that want to be more than text."""
    source = write_prompts(folder / "prompts.parquet", PROMPTS, topic=[HOSTILE] * len(PROMPTS))
    kept = {"path": str(source), "id_column": "id", "keep_columns": ["topic"]}
    output = {"path": str(folder / "out"), "top_k": 5}
    job.run(make_job(source, folder / "out", input=kept, output=output, strategies=STRATEGIES), job.here)
    return folder / "out"


def rows_of(folder: Path, where: str = "true") -> list[dict[str, Any]]:
    """Rows of a run as DuckDB reads them, in order."""
    found = duckdb.sql(f"SELECT * FROM '{folder}/data/*.parquet' WHERE {where}")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def count(folder: Path, what: str, where: str = "true") -> int:
    """A number that DuckDB finds in a run."""
    found = duckdb.sql(f"SELECT {what} FROM '{folder}/data/*.parquet' WHERE {where}").fetchall()
    return int(found[0][0])


def payload_of(document: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and columns of the block that a page carries."""
    embedded = re.search(r'id="data">([^<]*)<', document)
    assert embedded is not None
    block = gzip.decompress(base64.b64decode(embedded[1]))
    size = int.from_bytes(block[:4], "little")
    header, offset, columns = json.loads(block[4 : 4 + size]), 4 + size, {}
    for name, length, width in header["columns"]:
        columns[name] = np.frombuffer(block, f"<u{width}", length, offset)
        offset += length * width
    assert offset == len(block)
    return header, columns


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, document: Path, address: str = "", **options: Any) -> Iterator[Any]:
    """A page of its own. Whatever it logs, throws or asks for besides the file fails the test."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    page, found = context.new_page(), []
    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda request: found.append(request.url))
    page.goto(f"file://{document}{address}")
    if options.get("java_script_enabled", True):
        page.wait_for_selector("html[data-ready]")
    yield page
    assert {each.split("#")[0] for each in found} == {f"file://{document}"}
    context.close()


def shown_prompts(page: Any) -> list[str]:
    return [
        label.removeprefix("prompt ")
        for label in page.eval_on_selector_all(".prompt", "all => all.map(e => e.ariaLabel)")
    ]


def violations(page: Any) -> list[tuple[str, str]]:
    """Rules of WCAG 2.2 AA that the page breaks, and an element that does."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = axe.run(page, options={"runOnly": rules}).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found]
