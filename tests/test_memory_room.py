"""What an engine needs is worked out and compared with what is free before anything runs."""

from __future__ import annotations

import re

import pytest

from pipeline.engine import GPT2, check_room
from pipeline.engine.memory import free_on, needed_bytes
from pipeline.errors import ModelError
from tests.models import random_model

MODEL = GPT2(random_model(vocab_size=1000, width=32, positions=64))
GIB = 1 << 30


def test_what_is_needed_grows_with_the_cache_until_all_slots_are_full() -> None:
    full = 16 * 64 * MODEL.kv_bytes_per_token
    around = needed_bytes(MODEL, 16, 0)
    assert around >= 16 * 1000 * 4 * 2
    assert needed_bytes(MODEL, 16, full // 2) == around + full // 2
    assert needed_bytes(MODEL, 16, 100 * full) == around + full


def test_what_does_not_fit_is_refused_with_both_numbers_and_the_keys() -> None:
    sentence = re.compile(
        r"a replica needs about 1\.\d\d GiB on cpu beside its weights, but 1\.00 GiB are free: `run\.cache_gib` is 1 "
        r"and `run\.batch_rows` is 500000\. Lower either, or run fewer replicas\."
    )
    model = GPT2(random_model(vocab_size=50, width=32, positions=64))
    check_room(model, 500000, GIB, lambda _: 2 * GIB)
    with pytest.raises(ModelError, match=sentence):
        check_room(model, 500000, GIB, lambda _: GIB)


def test_a_device_that_nobody_knows_is_trusted() -> None:
    check_room(MODEL, 16, 1 << 60, lambda _: None)


def test_this_machine_says_what_is_free() -> None:
    free = free_on("cpu")
    assert free is None or 0 < free < 1 << 50
