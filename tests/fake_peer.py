"""A peer that generates nothing and says that it did."""

from __future__ import annotations

from benchmarks.peers.serving import Once, Work, serve


def prepare(work: Work) -> Once:
    """Counts the tokens asked for."""
    return lambda: sum(work["limits"])


if __name__ == "__main__":
    serve(prepare)
