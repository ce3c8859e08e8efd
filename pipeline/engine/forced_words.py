"""Completions that must hold given words: what a hypothesis has of them, and which tokens bring it closer.

An entry is one phrase of token ids, or several of which one must occur. Occurrences may overlap. The automaton is that
of Aho and Corasick (1975), kept as the suffix of the completion that begins an open phrase.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

Phrase = tuple[int, ...]


class Progress(NamedTuple):
    """Entries that have occurred, by index, and the longest suffix of the completion that begins an open phrase."""

    done: frozenset[int]
    suffix: Phrase


class ForcedWords:
    """Entries and the moves between states of progress."""

    start = Progress(frozenset(), ())

    def __init__(self, entries: tuple[tuple[Phrase, ...], ...]) -> None:
        self.entries = entries
        self.lengths = [max(map(len, phrases)) for phrases in entries]

    def next(self, progress: Progress, token: int) -> Progress:
        """Progress after one more token."""
        tail = (*progress.suffix, token)
        done = progress.done | {
            index for index in self._open(progress) for phrase in self.entries[index] if tail[-len(phrase) :] == phrase
        }
        suffixes = (tail[start:] for start in range(len(tail)))
        after = Progress(done, ())
        return Progress(done, next((suffix for suffix in suffixes if self._begins(after, suffix)), ()))

    def num_met(self, progress: Progress) -> int:
        """Forced tokens that are there: of an entry that occurred as many as its longest phrase has, and those that
        begin an open one."""
        return sum(self.lengths[index] for index in progress.done) + len(progress.suffix)

    def is_met(self, progress: Progress) -> bool:
        """Whether every entry has occurred."""
        return len(progress.done) == len(self.entries)

    def advancing(self, progress: Progress) -> list[int]:
        """Tokens that raise `num_met`, ascending."""
        tokens = {token for index in self._open(progress) for phrase in self.entries[index] for token in phrase}
        here = self.num_met(progress)
        return sorted(token for token in tokens if self.num_met(self.next(progress, token)) > here)

    def _open(self, progress: Progress) -> list[int]:
        return [index for index in range(len(self.entries)) if index not in progress.done]

    def _begins(self, progress: Progress, suffix: Phrase) -> bool:
        return any(phrase[: len(suffix)] == suffix for index in self._open(progress) for phrase in self.entries[index])


@lru_cache(maxsize=64)
def forced_words(entries: tuple[Phrase | tuple[Phrase, ...], ...]) -> ForcedWords:
    """The entries of `force_words_ids`; built once for all rows of a strategy."""
    return ForcedWords(tuple((entry,) if isinstance(entry[0], int) else entry for entry in entries))
