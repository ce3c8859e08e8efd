"""Checkpoints: from a name to a local folder, and what the folder says without loading a weight.

A name is `demo`, a local folder, or a hub id; the hub is asked only for the last. Loading the weights is the engine's
work, on each replica; here is what the driver must know and check first.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError

DEMO = Path(__file__).parent / "demo"
CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run needs to know of its model.

    Attributes:
        name: as given in the job; replicas find the folder by it.
        folder: where the files lie on this machine.
        commit: the hub's commit, or `sha256:...` of the files of a local folder.
        digests: file name -> SHA-256, of all files the result depends on.
        num_positions: longest context.
        num_layers: transformer blocks.
        hidden_size: width of a state.
        vocab_size: rows of the embedding.
        eos_token_ids: tokens that end a text; may be empty.
        bos_token_id: what an empty prompt becomes.
    """

    name: str
    folder: Path
    commit: str
    digests: dict[str, str]
    num_positions: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


def locate(name: str, revision: str | None = None) -> Path:
    """Local folder of a checkpoint; a hub id is downloaded into the hub's cache first.

    Raises:
        ModelError: there is no such folder, or the hub cannot be reached or does not know the name.
    """
    if name == "demo":
        return DEMO
    folder = Path(os.path.expanduser(name))  # leaves the ~ of an unknown user, where Path.expanduser raises
    if os.path.isdir(folder):
        return folder.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.exists(folder):
        raise ModelError(f"model.name `{name}` is not a folder.", "Give a checkpoint folder, a hub id, or `demo`.")
    return _download(name, revision)


def inspect(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint and check everything that can be checked without loading it.

    Raises:
        ModelError: as `locate`; or the folder lacks a file, is not a GPT-2, contradicts itself, or has its weights
            in pickles only.
    """
    folder = locate(name, revision)
    config = _read_json(folder, "config.json")
    if config.get("model_type") != "gpt2":
        raise ModelError(
            f"model `{name}` has model_type `{config.get('model_type')}`; only gpt2, its sizes and fine-tunes run.",
            "Give one of these.",
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {pickles[0]}, a pickle, which can run code when loaded" if pickles else "no weights"
        raise ModelError(
            f"model `{name}` has {found}.",
            "Give safetensors: load it once with transformers where you trust "
            "it, and save_pretrained() it to a new folder.",
        )
    generation = _read_json(folder, "generation_config.json") if (folder / "generation_config.json").exists() else {}
    special = {key: generation.get(key, config.get(key, 50256)) for key in ("eos_token_id", "bos_token_id")}
    vocab_size = _count(folder, config, "vocab_size", 50257)
    token_ids = {key: _token_ids(folder, key, value, vocab_size) for key, value in special.items()}
    digests = _digests(folder)
    return Checkpoint(
        name=name,
        folder=folder,
        commit=_commit(folder, digests),
        digests=digests,
        num_positions=_count(folder, config, "n_positions", 1024),
        num_layers=_count(folder, config, "n_layer", 12),
        hidden_size=_count(folder, config, "n_embd", 768),
        vocab_size=vocab_size,
        eos_token_ids=token_ids["eos_token_id"],
        bos_token_id=next(iter(token_ids["bos_token_id"]), None),
    )


def check_unchanged(folder: Path, planned: dict[str, str]) -> None:
    """Make sure that a replica's files are those that the job was planned with.

    Raises:
        ModelError: a file is another one, missing or new.
    """
    found = _digests(folder)
    differing = sorted(name for name in planned | found if planned.get(name) != found.get(name))
    if differing:
        raise ModelError(
            f"{folder / differing[0]} is not the file that the job was planned with.",
            "Put the same checkpoint on every machine; give a changed one a new folder, and its job a new output.",
        )


def _digests(folder: Path) -> dict[str, str]:
    files = [path for pattern in (*CONFIG_FILES, *TOKENIZER_FILES, *WEIGHTS) for path in sorted(folder.glob(pattern))]
    return {path.name: _sha256(path) for path in files}


def _download(name: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        patterns = [*CONFIG_FILES, *TOKENIZER_FILES, *WEIGHTS]
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"model `{name}` has no revision `{revision}` on the hub.",
            "Set model.revision to one it has, or leave it out.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"model `{name}` is neither a local folder nor a model on the hub that you may read.",
            "Check the name, or log in with `hf auth login`.",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        # HTTPError is httpx's; that of a proxy which refuses is no OSError.
        raise ModelError(
            f"model `{name}` is not a local folder, and the hub cannot be reached to look it up.",
            "Connect to the network, give a local folder, or use `demo`.",
        ) from error
    except OSError as error:
        raise ModelError(
            f"model `{name}` cannot be downloaded from the hub: {error}.",
            "Make room for it, or mend what this names, and run the command again.",
        ) from error
    except ValueError as error:  # not a possible repository name
        raise ModelError(
            f"model.name `{name}` is neither a local folder nor a possible hub id: {error}.", "Write it as user/name."
        ) from error


def _commit(folder: Path, digests: dict[str, str]) -> str:
    if folder.parent.name == "snapshots":  # the hub's cache names the folder by its commit
        return folder.name
    return "sha256:" + hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ModelError(
            f"{name} is missing in {folder}; found {found}.", "Give the folder of a checkpoint."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / name} cannot be read: {error}.", "Get it again.") from error
    if not isinstance(values, dict):
        raise ModelError(
            f"{folder / name} must hold a JSON object, but holds a {type(values).__name__}.", "Get it again."
        )
    return values


def _count(folder: Path, config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise ModelError(
            f"`{key}` in {folder / 'config.json'} must be a whole number above 0, but is {value!r}.",
            "Set it to what the weights have.",
        )
    return value


def _token_ids(folder: Path, key: str, value: Any, vocab_size: int) -> tuple[int, ...]:
    token_ids = tuple(value) if isinstance(value, list) else () if value is None else (value,)
    for token_id in token_ids:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise ModelError(
                f"`{key}` of the model in {folder} must be below its vocab_size of {vocab_size}, but is {token_id!r}"
                f"{', the default' if token_id == 50256 else ''}.",
                "Set it in generation_config.json, to null for none.",
            )
    return token_ids


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
