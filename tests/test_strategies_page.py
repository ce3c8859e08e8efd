"""docs/strategies.md shows what the code does: its samples and tables of keys are made anew and compared."""

from __future__ import annotations

import re
from typing import get_args

from pipeline.strategies import Decoding, Drawing, Generating, Processed, Score
from tests.strategies_page import KEYS, PAGE, SAMPLE, page

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_samples_and_tables_are_what_the_code_gives() -> None:
    assert page(TEXT) == TEXT


def test_every_type_and_kind_has_a_sample() -> None:
    shown = " ".join(match[2] for match in SAMPLE.finditer(TEXT))
    types = [kind.model_fields["type"].annotation for kind in (*get_args(Decoding), Score)]
    assert set(re.findall(r"type: (\w+)", shown)) == {get_args(literal)[0] for literal in types}
    assert [key for key in ("do_sample", "num_beam_groups", "force_words") if f"{key}: " not in shown] == []


def test_every_key_of_a_type_has_its_row() -> None:
    """Those that all share are in the table of processors."""
    listed = {(match[2], key) for match in KEYS.finditer(TEXT) for key in match[3].split()}
    shared = Processed.model_fields.keys() | {"type", "max_new_tokens", "max_length"}
    for kind in (*get_args(Decoding), Score):
        name = get_args(kind.model_fields["type"].annotation)[0]
        filters = Drawing.model_fields.keys() - Generating.model_fields.keys() if name == "beam_search" else set()
        assert {key for of, key in listed if of == name} - shared == kind.model_fields.keys() - shared - filters
