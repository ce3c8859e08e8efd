"""The picture of a report on the pages: `python -m docs.generate_screenshot`, with Chromium on the machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, sync_playwright

from pipeline import job
from pipeline.jobfile import load_job
from pipeline.report import write_report

PICTURE = Path(__file__).parent / "pictures" / "report.png"


def shoot(browser: Browser, run: Path | str, target: Path) -> None:
    """Report on a run of jobs/demo.yaml, and take a picture of its first prompt with the card of a token."""
    with TemporaryDirectory() as scratch:
        report = write_report(run, Path(scratch, "report.html")).path
        page = browser.new_page(viewport={"width": 1200, "height": 520}, color_scheme="light")
        page.goto(f"file://{report}")
        page.wait_for_selector("html[data-ready]")
        prompt = page.locator('.prompt[aria-label="prompt skip-00"]')
        prompt.evaluate("element => window.scrollTo(0, element.offsetTop - 2)")
        prompt.locator('.cell[data-strategy="greedy"] .t').nth(9).hover()
        page.wait_for_selector("#card")
        page.screenshot(path=target)
        page.close()


def main() -> None:
    """Run the demo and take the picture."""
    with TemporaryDirectory() as scratch, sync_playwright() as playwright:
        run = job.run(load_job("jobs/demo.yaml", [f"output.path={scratch}/out"]), job.here)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shoot(browser, run.folder, PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
