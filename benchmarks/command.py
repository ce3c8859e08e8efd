"""The options that the commands here share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

DTYPES = ("float32", "bfloat16")


def options(
    description: str,
    arguments: list[str] | None,
    *,
    dtypes: bool = False,
    peers: Sequence[str] = (),
    numbers: Mapping[str, int] | None = None,
    flags: Sequence[str] = (),
) -> argparse.Namespace:
    """Parse: `--quick` and `--pairs` always, others where they mean something.

    Args:
        description: for `--help`.
        arguments: in place of those of the process.
        dtypes: whether there is a choice of dtypes.
        peers: that `--only` may choose from.
        numbers: further options, whole numbers, and their defaults.
        flags: further options without a value.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, seconds, nothing kept: does it still run?")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of timings, in alternating order (default 5)")
    if dtypes:
        parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=[*DTYPES], help="(default both)")
    if peers:
        parser.add_argument("--only", nargs="+", choices=peers, default=[*peers], help="peers to compare with")
    for name, default in (numbers or {}).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default {default:,})")
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true")
    chosen = parser.parse_args(arguments)
    chosen.pairs = 1 if chosen.quick else chosen.pairs
    return chosen
