"""The site is built without a warning, asks the network for nothing, and its reference has everything that there is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

import pyarrow as pa
import pytest

import pipeline
from docs.generate_pictures import draw
from docs.generate_screenshot import PICTURE, shoot
from pipeline import errors
from pipeline.cli import main
from pipeline.jobfile_schema import json_schema
from pipeline.records import ROW_ERRORS
from pipeline.schema import output_schema

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


class Page(HTMLParser):
    """Of a page the ids, the links, what a browser loads with it, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        if tag == "a":
            self.links.append(given.get("href") or "")
        elif tag == "link" or "src" in given:
            self.loaded.append(given.get("src") or given.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_link_inside_the_site_has_its_goal(pages: dict[Path, Page]) -> None:
    missing = []
    for path, page in pages.items():
        for link in page.links:
            file, place = urldefrag(link)
            if urlparse(link).scheme:
                continue
            goal = (path.parent / unquote(file)).resolve() if file else path
            if not goal.exists() or (place and goal in pages and unquote(place) not in pages[goal].ids):
                missing.append((path.name, link))
    assert missing == []
    assert len(pages) > 15


def test_a_browser_loads_nothing_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert {link for page in pages.values() for link in page.loaded if urlparse(link).netloc} == set()


def test_every_page_stands_in_the_list_of_pages(pages: dict[Path, Page], site: Path) -> None:
    sources = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {Path(link).stem for link in pages[site / "index.html"].links} >= sources


def test_the_reference_has_every_command_column_key_and_name(pages: dict[Path, Page], site: Path) -> None:
    written = {path.stem: page for path, page in pages.items() if path.parent == site / "reference"}
    assert written["commands"].ids >= {"run", *main.commands}
    assert written["python"].ids >= {f"pipeline.{name}" for name in pipeline.__all__ if name != "__version__"}
    assert set(written["columns"].words) >= set(output_schema(pa.schema([])).names)
    assert written["job-file"].ids >= set(map(slug, json_schema()["properties"]))
    assert set(written["errors"].words) >= {*ROW_ERRORS, *map(str, errors.EXIT_CODES), "InUseError"}


def slug(heading: str) -> str:
    return heading.replace("_", "-")


def test_the_script_draws_the_pictures_of_the_pages(tmp_path: Path) -> None:
    draw(tmp_path)
    drawn, kept = ({path.name: path.read_bytes() for path in of.glob("*.svg")} for of in (tmp_path, PICTURES))
    assert drawn == kept
    shown = re.findall(r"]\(pictures/(.*?svg)\)", (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(kept)


def test_the_script_takes_the_picture_of_a_report(browser: Any, demo_run: Path, tmp_path: Path) -> None:
    """Fonts differ from machine to machine, so only kind and size are compared."""
    shoot(browser, demo_run, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:24] == PICTURE.read_bytes()[:24]


def test_every_page_fits_a_phone_and_says_nothing_on_the_console(browser: Any, pages: dict[Path, Page]) -> None:
    page, said = browser.new_page(viewport={"width": 360, "height": 800}), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    for path in pages:
        page.goto(f"file://{path}")
        said += [path.name] if page.evaluate("document.documentElement.scrollWidth") > 360 else []
    page.close()
    assert said == []


def test_exit_codes_of_errors_and_of_the_readme_are_the_listed_ones() -> None:
    table = README.split("| exit code | meaning |\n|---|---|\n")[1].split("\n\n")[0]
    assert table.splitlines() == [f"| {code} | {meaning} |" for code, meaning in errors.EXIT_CODES.items()]
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    assert {each.exit_code for each in classes} == {2, 3, 4}


def test_every_type_of_error_row_is_listed_in_the_code_and_in_the_readme() -> None:
    raised = {pattern for path in (ROOT / "pipeline").rglob("*.py") for pattern in row_errors(path)}
    matched = {name for name in ROW_ERRORS for pattern in raised if re.fullmatch(pattern, name)}
    assert matched == set(ROW_ERRORS)
    assert [pattern for pattern in raised if not any(re.fullmatch(pattern, name) for name in ROW_ERRORS)] == []
    paragraph = README.split("A bad prompt is a row with status `error`")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", paragraph)) == set(ROW_ERRORS)


def row_errors(path: Path) -> list[str]:
    """What a module calls its error rows, as patterns: a name in braces may be any word."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    types = [call.args[0] for call in calls if getattr(call.func, "id", "") == "RowError" and call.args]
    return [
        "".join(str(part.value) if isinstance(part, ast.Constant) else r"\w+" for part in type_.values)
        if isinstance(type_, ast.JoinedStr)
        else str(ast.literal_eval(type_))
        for type_ in types
        if isinstance(type_, ast.JoinedStr | ast.Constant)
    ]
