"""Every block of README.md and docs/*.md does what it says and shows what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handbook.__main__ import rewrite
from tests.handbook.blocks import PAGES, Command, Shown, blocks, parse
from tests.handbook.compare import alike, updated
from tests.handbook.run import BlockError, Reader
from tests.local_ray import local_ray

NOT_RUN = {"README.md": 2, "docs/cluster.md": 4, "docs/reading.md": 1, "docs/start.md": 1, "docs/watching.md": 1}
PAGE = """
<!-- not run: for a test -->
```console
$ batchgen head out
```

```console
$ echo one
one
$ true
```

```python
1 + 1
```

```text
2
```

```text
for itself
```
"""


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with local_ray(num_cpus=1):
        yield


@pytest.fixture
def reader(tmp_path: Path, demo_run: Path) -> Iterator[Reader]:
    with Reader(tmp_path, demo_run) as opened:
        yield opened


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_does_what_it_says(page: str, reader: Reader) -> None:
    for block in blocks(page):
        for shown, found in reader.do(block):
            assert shown.lines == found, f"{page}:{shown.line + 1}: `make docs-update` puts in what came out"


def test_blocks_that_are_not_run_are_these() -> None:
    left_out = Counter(block.page for page in PAGES for block in blocks(page) if "not run" in block.said)
    assert left_out == NOT_RUN


def test_a_page_is_taken_apart() -> None:
    left_out, console, python, text = parse("page.md", PAGE)
    assert (left_out.said, left_out.place) == ({"not run": "for a test"}, "page.md:4")
    assert console.commands == [Command("echo one", Shown(["one"], 8)), Command("true", None)]
    assert (python.text, python.below) == ("1 + 1\n", Shown(["2"], 17))
    assert (text.language, text.text, text.said) == ("text", "for itself\n", {})


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```console\n$ batchgen head nowhere\n```", "ended with 2"),
        ("```console\n$ false | false\n```", "ended with 1"),
        ("```python\n1 / 0\n```", "ZeroDivisionError"),
        ("```python\nprint(1)\n```", "prints what the page does not show"),
        ("```sql\nSELECT 1 WHERE false\n```", "finds nothing"),
        ("```bash\necho\n```", "nothing is known of blocks of `bash`"),
        ("```yaml\nrun: {replica: 2}\n```", "Did you mean `replicas`"),
        ("```yaml\n- {name: a, type: greedy, temperature: 2.0}\n```", "temperature"),
    ],
)
def test_a_block_that_fails_is_told(text: str, wrong: str, reader: Reader) -> None:
    with pytest.raises(BlockError, match=wrong):
        list(reader.do(parse("page.md", text)[0]))


def test_output_that_differs_is_told_and_put_in(reader: Reader, tmp_path: Path) -> None:
    text = (
        '```console\n$ echo one; echo two\none\n$ echo three\n3\n```\n\n```python\nprint("x")\n```\n\n```text\ny\n```\n'
    )
    found = [difference for block in parse("page.md", text) for difference in reader.do(block)]
    assert found == [(Shown(["one"], 2), ["one", "two"]), (Shown(["3"], 4), ["three"]), (Shown(["y"], 12), ["x"])]
    page = tmp_path / "page.md"
    page.write_text(text)
    rewrite(page, found)
    assert not [each for block in parse("page.md", page.read_text()) for each in reader.do(block)]


def test_a_command_of_the_project_runs_as_on_a_terminal(reader: Reader) -> None:
    (block,) = parse("page.md", '```console\n$ batchgen tokenize "a b"\nnothing\n```')
    ((_, found),) = reader.do(block)
    assert found[:3] == ["a│·b", "2 tokens · 3 characters · 3 bytes", "#  token   id  bytes"]


@pytest.mark.parametrize(
    ("shown", "found", "is_alike"),
    [
        (["done in 3 s · 1,000 tok/s"], ["done in 12.5 s · 987 tok/s"], True),
        (["rows  0.1 MB  7c1e09ab"], ["rows  12 KiB  0123456789abcdef"], True),
        (["2 s to 3 s on one replica"], ["5 min on one replica"], True),
        (["a  3 s   b"], ["a  100 s b"], True),
        (["a  3   b"], ["a  3  b"], False),
        (["511 rows"], ["512 rows"], False),
        (["a", "...", "c"], ["a", "b", "b", "c"], True),
        (["a", "...", "c"], ["a", "b", "d"], False),
        (["a", "..."], ["a"], True),
        (["since 2026-11-25T12:04:10+00:00"], ["since 2027-01-01T00:00:00+00:00"], True),
    ],
)
def test_what_varies_does_not_count(shown: list[str], found: list[str], is_alike: bool) -> None:
    assert alike(shown, found) is is_alike


def test_what_was_left_out_in_the_end_stays_out() -> None:
    assert updated(["a", "b", "..."], ["x ", "y", "z", "w"]) == ["x", "y", "..."]
    assert updated(["a", "..."], []) == []
