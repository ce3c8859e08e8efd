"""Byte-level BPE: text to token ids, token ids to bytes, and strategies' words to token ids.

Ids are the truth and text is derived: a completion may end inside a character. `<|endoftext|>` in a prompt is text; to
feed special tokens, give token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pipeline.errors import ModelError
from pipeline.stops import find_stop
from pipeline.words import WordIds

USE_ITS_OWN = "Put the files of the checkpoint's own tokenizer there."
_BATCH = 32  # texts whose encodings stay in the processor's cache until their ids are taken


class Tokenizer:
    """A GPT-2 tokenizer read from a checkpoint folder.

    Attributes:
        tokens: how each id prints, None for ids the tokenizer does not know.
        token_bytes: bytes of each id; b"" for special and unknown ones. Both have one entry per row of the embedding.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`.

        Args:
            folder: of the checkpoint.
            vocab_size: of the model; the tokenizer may know fewer ids, never more.

        Raises:
            ModelError: files are missing or damaged, ids exceed the model's, or it is not a byte-level BPE.
        """
        self._tokenizer = _read(folder)
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            raise ModelError(
                f"the tokenizer in {folder} is not a byte-level BPE: it has no ByteLevel decoder.", USE_ITS_OWN
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # their names in a text are text
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        if vocabulary and max(vocabulary.values()) >= vocab_size:
            raise ModelError(
                f"the tokenizer in {folder} knows ids up to {max(vocabulary.values())}, but the model has only "
                f"{vocab_size} tokens.",
                USE_ITS_OWN,
            )
        added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        is_special = all(token.special for token in added.values())  # another one stands before words
        self._word_ids = WordIds(self._encode) if is_special and _cuts_as_gpt2(self._tokenizer) else None
        self.tokens: list[str | None] = [None] * vocab_size
        self.token_bytes = [b""] * vocab_size
        for token, token_id in vocabulary.items():
            self.tokens[token_id] = token
            if token_id not in added:
                self.token_bytes[token_id] = _to_bytes(token, folder)
            elif not added[token_id].special:
                self.token_bytes[token_id] = token.encode()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; texts must be valid Unicode."""
        if self._word_ids is None:
            return self._encode(texts)
        by_word = self._word_ids([text for text in texts if text.isascii()])
        others = iter(self._encode([text for text in texts if not text.isascii()]))
        return [next(by_word if text.isascii() else others) for text in texts]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            encoding.ids
            for start in range(0, len(texts), _BATCH)
            for encoding in self._tokenizer.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False)
        ]

    def decode(self, token_ids: Iterable[int], stop: str | None = None) -> str:
        """As `text_of`, with this vocabulary."""
        return text_of(self.token_bytes, token_ids, stop)

    def variants_ids(self, words: Iterable[str]) -> list[tuple[int, ...]]:
        """Token-id sequences of words: as given, lower, Capitalised and UPPER, each with and without a leading space.

        What bans or allows words works on these sequences; the same letters cut into other tokens are not caught.
        """
        variants = [
            space + form
            for word in words
            for form in (word, word.lower(), word.capitalize(), word.upper())
            for space in ("", " ")
        ]
        return [tuple(ids) for ids in dict.fromkeys(map(tuple, self.encode(variants)))]

    def vocabulary(self) -> pa.Table:
        """The table `_vocab.parquet`: token_id, token, bytes."""
        return pa.table(
            {
                "token_id": pa.array(range(len(self.tokens)), pa.int32()),
                "token": pa.array(self.tokens, pa.string()),
                "bytes": pa.array(self.token_bytes, pa.binary()),
            }
        )


def text_of(token_bytes: Sequence[bytes], token_ids: Iterable[int], stop: str | None = None) -> str:
    """Text of token ids without special tokens; U+FFFD stands for what is not whole.

    Args:
        token_bytes: of every id.
        token_ids: of a completion or a prompt.
        stop: the stop string that the last token completed; the text is cut before it.
    """
    pieces = [token_bytes[token_id] for token_id in token_ids]
    text = b"".join(pieces)
    if stop is not None and (found := find_stop(text, len(pieces[-1]), (stop,))):
        text = text[: found[0]]
    return text.decode("utf-8", errors="replace")


def _read(folder: Path) -> Any:
    try:
        if (folder / "tokenizer.json").exists():
            return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            tokenizer = tokenizers.Tokenizer(
                models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
            )
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            if tokenizer.token_to_id("<|endoftext|>") is not None:
                tokenizer.add_special_tokens(["<|endoftext|>"])
            return tokenizer
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"the tokenizer in {folder} cannot be read: {error}.", "Get its files again.") from error
    raise ModelError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt.", USE_ITS_OWN)


def _cuts_as_gpt2(tokenizer: Any) -> bool:
    """Whether a text is cut by GPT-2's pattern, and by nothing else, into words that always get the same ids."""
    cutter = tokenizer.pre_tokenizer
    return (
        isinstance(cutter, pre_tokenizers.ByteLevel)
        and cutter.use_regex
        and not cutter.add_prefix_space
        and tokenizer.normalizer is None
        and isinstance(tokenizer.model, models.BPE)
        and not tokenizer.model.dropout
    )


def _to_bytes(token: str, folder: Path) -> bytes:
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError as error:
        raise ModelError(
            f"the tokenizer in {folder} is not a byte-level BPE: token {token!r} is not made of bytes.", USE_ITS_OWN
        ) from error


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (`bytes_to_unicode` in OpenAI's encoder.py), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
