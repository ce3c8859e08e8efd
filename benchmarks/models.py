"""Checkpoints to measure with: GPT-2 of any size with seeded random weights and a tokenizer as large as the real one.

They are made once and kept under `out/benchmarks`. The tokenizer is a byte-level BPE whose merges are all pairs of two
bytes, most usual first, up to GPT-2's 50,257 entries: it knows no language, and costs what the real one costs.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

SEED = 0
FOLDER = Path("out/benchmarks")


@dataclass(frozen=True, slots=True)
class Size:
    """What decides how much a model computes, under the names of `GPT2Config`."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    vocab_size: int = 50257


GPT2_124M = Size()
SMALL = Size(n_layer=2, n_head=4, n_embd=64, n_positions=256, vocab_size=2000)
TINY = Size(n_layer=1, n_head=2, n_embd=16, n_positions=320, vocab_size=300)


def checkpoint(size: Size, parent: Path = FOLDER) -> Path:
    """Folder with the weights in float32, seed 0, and the tokenizer."""
    name = "gpt2-" + "-".join(str(value) for value in asdict(size).values())
    folder = parent.absolute() / name
    if not folder.exists():
        half_made = folder.with_suffix(".tmp")
        shutil.rmtree(half_made, ignore_errors=True)
        _save(size, half_made)
        half_made.rename(folder)
    return folder


def _save(size: Size, folder: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    end = size.vocab_size - 1
    config = GPT2Config(**asdict(size), bos_token_id=end, eos_token_id=end)
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    tokenizer = json.dumps(_tokenizer(size.vocab_size), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}\n', encoding="utf-8")


def _tokenizer(vocab_size: int) -> dict[str, object]:
    """`tokenizer.json` of a byte-level BPE: 256 bytes, then pairs of them, then the end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = "etaoinshrdlucmfwypvbgkjqxz"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda symbol: (letters + symbol).index(symbol))
    num_merges = vocab_size - len(alphabet) - 1
    merges = sorted(((left, right) for left in range(256) for right in range(256)), key=lambda pair: (sum(pair), pair))[
        :num_merges
    ]
    pairs = [(alphabet[left], alphabet[right]) for left, right in merges]
    tokens = [*alphabet, *(left + right for left, right in pairs)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    values: dict[str, object] = json.loads(tokenizer.to_str())
    return values
