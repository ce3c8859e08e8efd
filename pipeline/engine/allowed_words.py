"""Completions made of given words alone: which tokens may come next.

The words are token-id phrases in a trie. A place is the set of trie nodes that the completion so far may stand at,
since one phrase may begin another. At the root a word begins; END stands beside it where one has just ended, and the
completion may end too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

Place = frozenset[int]
ROOT, END = 0, -1


class AllowedWords:
    """The trie of the phrases, and the stop tokens that may follow a whole word."""

    start: Place = frozenset({ROOT})

    def __init__(self, phrases: Sequence[Sequence[int]], stop_token_ids: Sequence[int]) -> None:
        self.stop_token_ids = frozenset(stop_token_ids)
        self.children: list[dict[int, int]] = [{}]  # of each node: token -> node
        self.ends: set[int] = set()  # nodes where a phrase is whole
        self.tokens: dict[Place, frozenset[int]] = {}  # what `allowed` has found out before
        for phrase in phrases:
            self.ends.add(self._insert(phrase))

    def allowed(self, place: Place) -> frozenset[int]:
        """Tokens that may come next, stop tokens included where a word has ended."""
        if place not in self.tokens:
            following = frozenset(token for node in place - {END} for token in self.children[node])
            self.tokens[place] = following | (self.stop_token_ids if END in place else frozenset())
        return self.tokens[place]

    def next(self, place: Place, token: int) -> Place:
        """The place after one more token; a token that was forced and belongs to no word leaves it as it is."""
        nodes = {self.children[node][token] for node in place - {END} if token in self.children[node]}
        return frozenset(nodes | {ROOT, END} if nodes & self.ends else nodes) or place

    def _insert(self, phrase: Sequence[int]) -> int:
        """The node of a phrase, made where it is not there yet."""
        node = ROOT
        for token in phrase:
            if token not in self.children[node]:
                self.children[node][token] = len(self.children)
                self.children.append({})
            node = self.children[node][token]
        return node


@lru_cache(maxsize=64)
def allowed_words(phrases: tuple[tuple[int, ...], ...], stop_token_ids: tuple[int, ...]) -> AllowedWords:
    """The words of a strategy; built once for all its rows."""
    return AllowedWords(phrases, stop_token_ids)
