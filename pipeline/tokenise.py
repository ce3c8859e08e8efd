"""Texts to tokens and back, to look at: ids, pieces and bytes. It needs the tokenizer of a model, not its weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pipeline import checkpoint
from pipeline.next_tokens import to_token_ids
from pipeline.recorded import Vocabulary
from pipeline.steps import tokens_document
from pipeline.tokenizer import Tokenizer


class Tokenised(NamedTuple):
    """Texts with their token ids; the text of ids is decoded from them."""

    model: str
    vocabulary: Vocabulary
    texts: tuple[tuple[str, tuple[int, ...]], ...]


def tokenise(prompts: Sequence[str | tuple[int, ...]], model: str) -> Tokenised:
    """Tokens of texts or of token ids.

    Args:
        prompts: texts or token ids.
        model: as in a job file.

    Raises:
        InputError: a text is empty or not Unicode, or an id is not in the vocabulary.
        ModelError: the model cannot be found or used.
    """
    found = checkpoint.inspect(model)
    tokenizer = Tokenizer(found.folder, found.vocab_size)
    token_ids = to_token_ids(prompts, tokenizer, replace(found, num_positions=sys.maxsize))  # no model reads them
    vocabulary = Vocabulary(tokenizer.tokens, tokenizer.token_bytes)
    return Tokenised(found.name, vocabulary, tuple((tokenizer.decode(ids), ids) for ids in token_ids))


def to_document(tokenised: Tokenised) -> dict[str, Any]:
    """The answer as JSON values, exact."""
    texts = [
        {"text": text, "token_ids": list(ids), "tokens": tokens_document(ids, tokenised.vocabulary)}
        for text, ids in tokenised.texts
    ]
    return {"model": tokenised.model, "vocab_size": len(tokenised.vocabulary.tokens), "texts": texts}
