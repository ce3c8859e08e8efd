"""A run as a data set for others: the card, and folders that `datasets` loads with no script."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline.card import data_card, export, push_to_hub, write_card
from pipeline.cli import main
from pipeline.errors import OutputError
from pipeline.results import open_run
from pipeline.verify import verify
from tests.forgery import run_demo
from tests.test_retry import ILL, ill_on, retry

LOAD = """
import datasets, json, sys
names = sys.argv[3:]
loaded = {name: datasets.load_dataset(sys.argv[1], name, split="train", cache_dir=sys.argv[2]) for name in names}
print(json.dumps({name: [rows.num_rows, rows.column_names[:2]] for name, rows in loaded.items()}))
"""


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a retry."""
    folder = run_demo(tmp_path_factory.mktemp("mended"), engine_maker=ill_on(*ILL))
    retry(folder)
    return folder


def load(folder: Path, cache: Path, *names: str) -> dict[str, Any]:
    """Rows and first columns of each configuration, as `datasets` loads them in a process of its own."""
    command = [sys.executable, "-c", LOAD, str(folder), str(cache), *names]
    loaded: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return loaded


def header(card: str) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(card.split("---\n")[1])
    return values


def test_the_card_of_a_finished_run_is_the_one_that_lies_there(sound: Path) -> None:
    assert data_card(open_run(sound)) == (sound / "README.md").read_text()


def test_the_card_counts_rows_as_they_are_now_and_names_the_retries(mended: Path) -> None:
    card = data_card(open_run(mended))
    assert "56 completions of 7 prompts: 48 ok, 8 errors" in card
    assert [each["config_name"] for each in header(card)["configs"]] == ["generations", "retries", "vocab"]
    assert "Error rows were computed again into `retries/`" in card
    assert "56 completions of 7 prompts: 24 ok, 32 errors" in (mended / "README.md").read_text()


def test_the_header_says_what_the_hub_asks_for(sound: Path) -> None:
    values = header(data_card(open_run(sound)))
    assert values["pretty_name"] == "Completions of demo"
    assert (values["task_categories"], values["size_categories"]) == (["text-generation"], ["n<1K"])


def test_a_card_explains_every_column(sound: Path) -> None:
    card = data_card(open_run(sound))
    assert "| token_ranks | list<item: int32> | rank of each token in the model's own distribution, from 1 |" in card
    assert [line for line in card.splitlines() if line.endswith("| kept from the input |")] == [
        "| topic | struct<name: string, weight: double> | kept from the input |"
    ]


def test_datasets_loads_a_folder_with_retries_by_the_card_written_anew(mended: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mended, tmp_path / "out")
    assert write_card(open_run(folder)) == f"{folder}/README.md"
    loaded = load(folder, tmp_path / "cache", "generations", "retries", "vocab")
    assert loaded == {
        "generations": [56, ["row_id", "row_index"]],
        "retries": [32, ["row_id", "row_index"]],
        "vocab": [768, ["token_id", "token"]],
    }
    assert verify(folder).is_proven


def test_the_card_of_an_unfinished_run_is_not_written(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "out")
    (folder / "_SUCCESS").unlink()
    (folder / "README.md").unlink()
    with pytest.raises(OutputError, match="is not finished"):
        write_card(open_run(folder))
    assert not (folder / "README.md").exists()


def test_an_exported_run_has_each_retried_row_in_its_place(mended: Path, sound: Path, tmp_path: Path) -> None:
    folder = export(open_run(mended), tmp_path / "hub")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "_vocab.parquet",
        *(f"data/part-0000{number}.parquet" for number in range(3)),
    ]
    rows, undisturbed = (pq.read_table(each / "data").to_pylist() for each in (folder, sound))
    for name in ("row_index", "strategy", "sample_index", "status", "token_ids", "text"):
        assert [row[name] for row in rows] == [row[name] for row in undisturbed], name
    assert load(folder, tmp_path / "cache", "generations") == {"generations": [56, ["row_id", "row_index"]]}
    assert "retries" not in (folder / "README.md").read_text()


def test_an_export_of_a_run_without_retries_copies_its_parts(sound: Path, tmp_path: Path) -> None:
    folder = export(open_run(sound), tmp_path / "hub")
    for part in (sound / "data").iterdir():
        assert (folder / "data" / part.name).read_bytes() == part.read_bytes()


def test_an_export_goes_to_no_folder_that_holds_something(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(OutputError, match="is not empty"):
        export(open_run(sound), tmp_path)


class Hub:
    """Takes what would be uploaded."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: list[str] = []

    def create_repo(self, repo_id: str, **settings: Any) -> None:
        self.calls.append((repo_id, settings))

    def upload_folder(self, *, repo_id: str, folder_path: str, **settings: Any) -> None:
        self.calls.append((repo_id, settings))
        self.files = sorted(path.name for path in Path(folder_path).rglob("*") if path.is_file())


def test_a_push_makes_a_private_data_set_and_uploads_parts_vocabulary_and_card(sound: Path) -> None:
    hub = Hub()
    assert push_to_hub(open_run(sound), "me/set", api=hub) == "https://huggingface.co/datasets/me/set"
    assert hub.files == ["README.md", "_vocab.parquet", *(f"part-0000{number}.parquet" for number in range(3))]
    made, uploaded = hub.calls
    assert made == ("me/set", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert uploaded == ("me/set", {"repo_type": "dataset", "commit_message": "Completions made by batchgen"})


@pytest.fixture
def command() -> Callable[..., str]:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_the_command_prints_the_card_or_writes_it(mended: Path, tmp_path: Path, command: Callable[..., str]) -> None:
    folder = shutil.copytree(mended, tmp_path / "out")
    card = data_card(open_run(folder))
    assert command("card", folder) == card
    assert json.loads(command("card", folder, "--json")) == {"schema": 1, "card": card}
    assert json.loads(command("card", folder, "--write", "--json")) == {"schema": 1, "file": f"{folder}/README.md"}
    assert (folder / "README.md").read_text() == card


def test_the_command_explode_says_what_it_wrote(sound: Path, tmp_path: Path, command: Callable[..., str]) -> None:
    rows = pq.read_table(sound / "data")["top_token_ids"].to_pylist()
    count = sum(len(ids) for steps in rows for ids in steps or [])
    target = tmp_path / "long.parquet"
    assert command("explode", sound, "-o", target) == f"{count:,} rows · {target}\n"
    again = command("explode", sound, "-o", tmp_path / "again.parquet", "--json")
    assert json.loads(again) == {"schema": 1, "rows": count, "file": str(tmp_path / "again.parquet")}
