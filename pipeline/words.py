"""Token ids by words: a byte-level BPE cuts a text into words first, and the ids of a word depend on nothing else.

So each word is encoded once and its ids are remembered, as OpenAI's encoder.py does; prompts are then looked up word by
word, several times as fast as the library encodes them. Only ASCII is cut here: beyond it what is a letter depends on
the library's version of Unicode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

Encode = Callable[[Sequence[str]], list[list[int]]]

# GPT-2's pattern, with what Unicode calls letters, digits and white space within ASCII.
_WORD = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+")
_MAX_CHARACTERS = 1 << 19  # of the remembered words, but for those of the last texts; with their ids about 20 MB


class WordIds:
    """Remembers the ids of words."""

    def __init__(self, encode: Encode) -> None:
        """`encode` gives the token ids of any texts."""
        self._encode = encode
        self._ids: dict[str, list[int]] = {}
        self._num_characters = 0

    def __call__(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Token ids of each text; texts must be ASCII."""
        cut = [_WORD.findall(text) for text in texts]
        known = self._knowing(cut).__getitem__
        return (list(chain.from_iterable(map(known, words))) for words in cut)

    def _knowing(self, cut: Sequence[Sequence[str]]) -> dict[str, list[int]]:
        """The ids of these words, and of others; as many are remembered as there is room for."""
        ids = self._ids
        new = [word for word in dict.fromkeys(chain.from_iterable(cut)) if word not in ids]
        ids.update(zip(new, self._encode(new), strict=True))
        self._num_characters += sum(map(len, new))
        if self._num_characters > _MAX_CHARACTERS:
            self._ids, self._num_characters = {}, 0
        return ids
