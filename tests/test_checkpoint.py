"""Finding a checkpoint, and what is refused before anything is loaded. The hub is a server on this machine, or none."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import AutoConfig, GPT2Config, dynamic_module_utils

from pipeline.checkpoint import DEMO, Checkpoint, inspect, locate
from pipeline.engine import load_model
from pipeline.errors import ModelError
from pipeline.tokenizer import Tokenizer

NOBODYS = "no-such-user/no-such-model"
UNREACHABLE = (
    f"model `{NOBODYS}` is not a local folder, and the hub cannot be reached to look it up. "
    "Connect to the network, give a local folder, or use `demo`."
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo checkpoint."""
    return Path(shutil.copytree(DEMO, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.py", "__pycache__")))


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; `...` removes one."""
    document = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def refusal(name: str | Path, revision: str | None = None) -> str:
    with pytest.raises(ModelError) as refused:
        inspect(str(name), revision)
    return str(refused.value)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# What a good checkpoint says of itself


def test_demo_is_the_model_in_the_package() -> None:
    found = inspect("demo")
    names = ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors")
    assert found == Checkpoint(
        name="demo",
        folder=DEMO,
        commit=found.commit,
        digests={name: sha256(DEMO / name) for name in names},
        num_positions=128,
        num_layers=3,
        hidden_size=64,
        vocab_size=768,
        eos_token_ids=(767,),
        bos_token_id=767,
    )


def test_a_local_folder_is_found_by_its_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert locate(str(folder)) == locate("checkpoint") == locate("./checkpoint") == folder
    found = inspect("checkpoint")
    assert (found.name, found.folder) == ("checkpoint", folder)


def test_a_folder_in_the_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate("~/checkpoint") == folder


def test_what_the_files_do_not_say_is_gpt2s(folder: Path) -> None:
    change(folder / "config.json", n_positions=..., n_layer=..., vocab_size=..., eos_token_id=..., bos_token_id=...)
    (folder / "generation_config.json").unlink()
    found = inspect(str(folder))
    assert (found.num_positions, found.num_layers, found.vocab_size) == (1024, 12, 50257)
    assert (found.eos_token_ids, found.bos_token_id) == ((50256,), 50256)


@pytest.mark.parametrize(("given", "expected"), [(5, (5,)), ([5, 6], (5, 6)), ([], ()), (None, ()), (0, (0,))])
def test_the_generation_config_decides_what_ends_a_text(folder: Path, given: Any, expected: tuple[int, ...]) -> None:
    change(folder / "generation_config.json", eos_token_id=given)
    assert inspect(str(folder)).eos_token_ids == expected


def test_without_a_generation_config_the_config_decides(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=..., bos_token_id=...)
    change(folder / "config.json", eos_token_id=7, bos_token_id=8)
    found = inspect(str(folder))
    assert (found.eos_token_ids, found.bos_token_id) == ((7,), 8)


def test_a_model_may_have_no_start_token(folder: Path) -> None:
    change(folder / "generation_config.json", bos_token_id=None)
    assert inspect(str(folder)).bos_token_id is None


# Digests


def test_the_commit_of_a_local_folder_is_a_digest_of_its_files(folder: Path) -> None:
    found = inspect(str(folder))
    assert found.commit == inspect("demo").commit
    assert found.commit.startswith("sha256:")
    assert len(found.commit) == len("sha256:") + 16


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_changing_a_file_changes_its_digest_and_the_commit(folder: Path, name: str) -> None:
    before = inspect(str(folder))
    with (folder / name).open("ab") as file:
        file.write(b" ")
    after = inspect(str(folder))
    assert {key for key in before.digests if before.digests[key] != after.digests[key]} == {name}
    assert after.digests[name] == sha256(folder / name)
    assert after.commit != before.commit


def test_files_the_result_does_not_depend_on_have_no_digest(folder: Path) -> None:
    before = inspect(str(folder))
    (folder / "README.md").write_text("a card")
    (folder / "pytorch_model.bin").write_bytes(b"never loaded")
    change(folder / "tokenizer_config.json", model_max_length=5)
    assert inspect(str(folder)) == before


def test_every_file_of_split_weights_has_a_digest(folder: Path) -> None:
    for part in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        shutil.copy(folder / "model.safetensors", folder / part)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    assert [name for name in inspect(str(folder)).digests if name.startswith("model")] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


# What is refused


@pytest.mark.parametrize(("type_", "shown"), [("llama", "llama"), (..., "None")])
def test_another_architecture_is_refused(folder: Path, type_: Any, shown: str) -> None:
    change(folder / "config.json", model_type=type_)
    assert refusal(folder) == (
        f"model `{folder}` has model_type `{shown}`; only gpt2, its sizes and fine-tunes run. Give one of these."
    )


def test_a_folder_without_a_config_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    expected = f"config.json is missing in {tmp_path}; found nothing. Give the folder of a checkpoint."
    assert refusal(tmp_path) == expected
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).touch()
    assert refusal(tmp_path) == expected.replace("nothing", "a.txt, b.txt")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_json_file_is_refused_by_name(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    assert refusal(folder).startswith(f"{folder / file} cannot be read: ")


def test_a_config_that_is_no_object_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")
    assert refusal(folder) == f"{folder / 'config.json'} must hold a JSON object, but holds a list. Get it again."


@pytest.mark.parametrize("key", ["n_positions", "vocab_size"])
@pytest.mark.parametrize("value", [None, 0, "768", 12.5, True])
def test_a_size_that_is_no_count_is_refused(folder: Path, key: str, value: Any) -> None:
    change(folder / "config.json", **{key: value})
    assert refusal(folder) == (
        f"`{key}` in {folder / 'config.json'} must be a whole number above 0, but is {value!r}. "
        "Set it to what the weights have."
    )


@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id"])
@pytest.mark.parametrize("value", [768, -1, "767", [767, 900]])
def test_a_special_token_outside_the_vocabulary_is_refused(folder: Path, key: str, value: Any) -> None:
    """Once an IndexError in the middle of a run: of an empty prompt, or of min_new_tokens."""
    change(folder / "generation_config.json", **{key: value})
    shown = 900 if isinstance(value, list) else value
    assert refusal(folder) == (
        f"`{key}` of the model in {folder} must be below its vocab_size of 768, but is {shown!r}. "
        "Set it in generation_config.json, to null for none."
    )


def test_a_small_vocabulary_without_special_tokens_of_its_own_is_refused(folder: Path) -> None:
    change(folder / "config.json", eos_token_id=..., bos_token_id=...)
    (folder / "generation_config.json").unlink()
    assert "must be below its vocab_size of 768, but is 50256, the default." in refusal(folder)


def test_weights_in_pickles_only_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refusal(folder) == (
        f"model `{folder}` has only pytorch_model.bin, a pickle, which can run code when loaded. Give "
        "safetensors: load it once with transformers where you trust it, and save_pretrained() it to a new folder."
    )


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder).startswith(f"model `{folder}` has no weights. Give safetensors: ")


@pytest.mark.parametrize(
    "name", ["./none", "../none", "/none", "~/none", "a/b/c", "~no-such-user/checkpoint", "config.json"]
)
def test_a_path_that_is_no_folder_is_refused_without_asking_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(folder)
    assert refusal(name) == f"model.name `{name}` is not a folder. Give a checkpoint folder, a hub id, or `demo`."


@pytest.mark.parametrize("name", ["two words", "-x", "a..b", "x" * 300, "demo/", "x\0y"])
def test_a_name_that_the_hub_cannot_have_is_refused(name: str) -> None:
    assert refusal(name).startswith(f"model.name `{name}` is neither a local folder nor a possible hub id: ")


def test_code_that_comes_with_a_checkpoint_is_never_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    (folder / "modeling_x.py").write_text(
        "from pathlib import Path\nfrom transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer\n"
        f"Path({str(marker)!r}).touch()\n"
    )
    classes = {"AutoConfig": "GPT2Config", "AutoModel": "GPT2LMHeadModel", "AutoModelForCausalLM": "GPT2LMHeadModel"}
    change(folder / "config.json", auto_map={name: f"modeling_x.{value}" for name, value in classes.items()})
    tokenizers = ["modeling_x.GPT2Tokenizer", "modeling_x.GPT2Tokenizer"]
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": tokenizers})
    found = inspect(str(folder))
    Tokenizer(found.folder, found.vocab_size)
    load_model(str(found.folder), "float32", "cpu")
    assert not marker.exists()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(GPT2Config, "_auto_class", None)  # trusted code sets it, and no model could be saved any more
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()  # so it would have been seen


def test_no_code_of_ours_trusts_code_that_comes_with_a_checkpoint() -> None:
    root = Path(__file__).parents[1]
    sources = [path for name in ("pipeline", "jobs", "benchmarks") for path in (root / name).rglob("*.py")]
    said = [re.findall(r"trust_remote_code\W*\w*", path.read_text()) for path in sources]
    assert {each for found in said for each in found} == {"trust_remote_code=False"}


# The hub


def test_a_hub_id_without_network_is_refused_in_one_sentence_and_a_way_out() -> None:
    assert refusal(NOBODYS) == UNREACHABLE


def ask(revision: str | None = None, **environment: str) -> str:
    """What another process prints of `inspect` on a hub id: the commit and the token that ends a text, or the error."""
    script = (
        "from pipeline.checkpoint import inspect\n"
        "from pipeline.errors import ModelError\n"
        "try:\n"
        f"    found = inspect({NOBODYS!r}, {revision!r})\n"
        "    print(found.commit, found.eos_token_ids, sorted(path.name for path in found.folder.iterdir()))\n"
        "except ModelError as error:\n"
        "    print(error)\n"
    )
    foreign = re.compile("HF_|HUGGINGFACE|.*_PROXY$", re.IGNORECASE)
    inherited = {key: value for key, value in os.environ.items() if not foreign.match(key)}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=inherited | environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.rstrip("\n")


def test_an_unreachable_hub_is_said_in_one_line_and_nothing_else(tmp_path: Path) -> None:
    assert ask(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path)) == UNREACHABLE


class Hub(BaseHTTPRequestHandler):
    """A hub that serves the demo checkpoint's commit at `main` and knows nothing else."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    others: ClassVar[dict[str, bytes]] = {
        "pytorch_model.bin": b"a pickle",
        "README.md": b"a card",
        "run.py": b"import os",
    }
    has_model: ClassVar[bool] = True

    def do_GET(self) -> None:
        files = {path.name: path.read_bytes() for path in DEMO.glob("*.*s*")} | self.others
        parts = self.path.partition("?")[0].strip("/").split("/")
        if not self.has_model:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
        elif parts[:1] == ["api"] and "tree" in parts:
            tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": name} for name in files]
            self._answer(200, {}, json.dumps(tree).encode())
        elif parts[0] == "api" and parts[-1] in ("main", self.commit):
            siblings = [{"rfilename": name} for name in files]
            self._answer(200, {}, json.dumps({"id": NOBODYS, "sha": self.commit, "siblings": siblings}).encode())
        elif parts[0] == "api":
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            content = files[parts[-1]]
            etag = hashlib.sha256(content).hexdigest()
            self._answer(200, {"X-Repo-Commit": self.commit, "ETag": f'"{etag}"'}, content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        self._answer(403, {})

    def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(handler: type[Hub]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_hub_model_is_downloaded_without_code_or_pickles_and_found_again_offline(tmp_path: Path) -> None:
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    with serving(Hub) as endpoint:
        assert ask(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path)) == f"{Hub.commit} (767,) {files}"
    assert ask(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)) == f"{Hub.commit} (767,) {files}"
    assert ask(Hub.commit, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)) == f"{Hub.commit} (767,) {files}"


class Busy(Hub):
    """A hub that tells nobody about the weights before two processes have asked."""

    asked: ClassVar = threading.Barrier(2, timeout=60)
    downloads: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        if self.path.endswith("/model.safetensors"):
            self.asked.wait()
        super().do_HEAD()

    def do_GET(self) -> None:
        if self.command == "GET" and "/resolve/" in self.path:
            self.downloads.append(Path(self.path).name)
        super().do_GET()


def test_processes_that_need_a_hub_model_at_the_same_time_download_it_once(tmp_path: Path) -> None:
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    with serving(Busy) as endpoint, ThreadPoolExecutor() as pool:
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_ETAG_TIMEOUT": "60"}
        both = [pool.submit(ask, **environment) for _ in range(2)]
        assert {each.result() for each in both} == {f"{Hub.commit} (767,) {files}"}
    assert sorted(Busy.downloads) == files


def test_an_unknown_revision_is_named(tmp_path: Path) -> None:
    with serving(Hub) as endpoint:
        said = ask("v9", HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path))
    assert (
        said == f"model `{NOBODYS}` has no revision `v9` on the hub. Set model.revision to one it has, or leave it out."
    )


def test_a_model_the_hub_does_not_know_is_named(tmp_path: Path) -> None:
    with serving(type("Empty", (Hub,), {"has_model": False})) as endpoint:
        said = ask(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path))
    assert said == (
        f"model `{NOBODYS}` is neither a local folder nor a model on the hub that you may read. "
        "Check the name, or log in with `hf auth login`."
    )


def test_a_proxy_that_refuses_is_an_unreachable_hub(tmp_path: Path) -> None:
    with serving(Hub) as proxy:
        said = ask(HF_ENDPOINT="https://hub.invalid", HTTPS_PROXY=proxy, HF_HOME=str(tmp_path))
    assert said == UNREACHABLE


def test_a_cache_that_cannot_be_written_is_not_taken_for_a_missing_network(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with serving(Hub) as endpoint:
        said = ask(HF_ENDPOINT=endpoint, HF_HUB_CACHE=str(tmp_path / "file" / "hub"))
    assert said.startswith(f"model `{NOBODYS}` cannot be downloaded from the hub: [Errno 20] Not a directory")
