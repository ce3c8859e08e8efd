"""Puts what came out in the place of what pages show, where they differ: `python -m tests.handbook [PAGE...]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import job
from pipeline.jobfile import load_job
from tests.handbook.blocks import PAGES, ROOT, blocks
from tests.handbook.compare import updated
from tests.handbook.run import Difference, Reader
from tests.local_ray import local_ray


def rewrite(path: Path, differences: list[Difference]) -> None:
    """Put in what came out, from the last place to the first, so that places stay as they are."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for shown, found in reversed(differences):
        lines[shown.line : shown.line + len(shown.lines)] = updated(shown.lines, found)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def update(pages: list[str]) -> None:
    """Do all blocks and put in what came out."""
    os.chdir(ROOT)
    with TemporaryDirectory() as scratch, local_ray(num_cpus=1):
        demo_run = Path(scratch, "demo")
        job.run(load_job("jobs/demo.yaml", [f"output.path={demo_run}"]), job.here)
        for page in pages:
            folder = Path(scratch, page.replace("/", "-"))
            folder.mkdir()
            with Reader(folder, demo_run) as reader:
                rewrite(ROOT / page, [difference for block in blocks(page) for difference in reader.do(block)])


if __name__ == "__main__":
    update(sys.argv[1:] or PAGES)
