"""Strides: what a device decodes by itself is what the host would have, and it never waits for the host."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.engine import GPT2, filters, native, ranking, stride
from pipeline.engine.filters import FILTERS, narrow
from pipeline.engine.processors import APPLY
from pipeline.engine.stride import Strides, can_stride
from pipeline.engine.units import Limits, make_units
from pipeline.records import Request, Response, RowError
from pipeline.strategies import BeamSearch, Greedy, Sampling, Strategy
from tests.models import engine_for, random_model, uneven_prompts

MODEL = random_model(vocab_size=90)


def greedy(**values: Any) -> Greedy:
    return Greedy(name="g", type="greedy", **{"max_new_tokens": 20, **values})


def sampling(**values: Any) -> Sampling:
    return Sampling(name="s", type="sampling", **{"max_new_tokens": 20, **values})


ON_DEVICE: dict[str, Any] = {
    "encoder_repetition_penalty": 1.2,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[3], [4, 5]],
    "min_new_tokens": 3,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 5,
    "exponential_decay_length_penalty": (2, 1.1),
    "suppress_tokens": [8],
    "begin_suppress_tokens": [9],
    "top_h": 0.5,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.01,
}
ON_HOST: dict[str, Any] = {
    "guidance_scale": 1.5,
    "sequence_bias": [{"token_ids": [3], "bias": 1.0}],
    "allowed_words_ids": [[3], [4]],
}
STRATEGIES: dict[str, Strategy] = {
    "greedy": greedy(),
    "drawn": sampling(),
    "filters": sampling(top_k=40, top_p=0.9, temperature=1.3),
    "penalties": greedy(repetition_penalty=1.4, no_repeat_ngram_size=2, min_new_tokens=5),
}


def requests(*strategies: Strategy, count: int = 12) -> list[Request]:
    return [
        Request(prompt, strategy, (row,))
        for row, prompt in enumerate(uneven_prompts(count, vocab_size=90))
        for strategy in strategies
    ]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch, and the branches that a GPU takes, on a CPU."""
    for module in (filters, ranking):
        monkeypatch.setattr(module, "is_static", lambda _: True)
    monkeypatch.setattr(native, "kernels", lambda: None)


@pytest.fixture(params=["cpu", "as on a gpu"])
def device(request: pytest.FixtureRequest) -> None:
    """Both ways."""
    if request.param != "cpu":
        request.getfixturevalue("as_on_a_gpu")


def assert_same(found: list[Response], expected: list[Response]) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(other.completions, RowError):
            assert one.completions == other.completions
            continue
        assert not isinstance(one.completions, RowError)
        for left, right in zip(one.completions, other.completions, strict=True):
            assert (left.finish_reason, left.stop_match) == (right.finish_reason, right.stop_match)
            for name in ("token_ids", "token_ranks", "top_token_ids"):
                assert np.array_equal(getattr(left, name), getattr(right, name)), name
            for name in ("token_logprobs", "sampling_logprobs", "entropies", "top_probs"):
                if getattr(right, name) is None:  # beams are not drawn
                    assert getattr(left, name) is None
                else:
                    assert getattr(left, name).dtype == np.float32
                    np.testing.assert_allclose(getattr(left, name), getattr(right, name), atol=1e-5, err_msg=name)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("steps", [2, 16])
@pytest.mark.parametrize("names", [[name] for name in STRATEGIES] + [list(STRATEGIES)], ids=" ".join)
def test_a_stride_gives_what_single_steps_give(names: list[str], steps: int) -> None:
    work = requests(*(STRATEGIES[name] for name in names))
    plain, strides = (engine_for(MODEL, max_slots=5, steps_per_sync=each) for each in (1, steps))
    assert_same(strides.generate(work), plain.generate(work))
    assert_same(strides.generate(work[:7]), plain.generate(work[:7]))  # on the strides of the first call


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ON_DEVICE)
def test_every_key_gives_what_single_steps_give(name: str) -> None:
    work = requests(sampling(**{name: ON_DEVICE[name]}))
    plain, strides = (engine_for(MODEL, max_slots=5, steps_per_sync=each) for each in (1, 6))
    assert_same(strides.generate(work), plain.generate(work))


def test_stop_strings_and_stop_tokens_end_rows_inside_a_stride() -> None:
    work = requests(sampling(stop_strings=["a", "0"]), sampling(stop_token_ids=[11, 12, 13], max_new_tokens=40))
    plain, strides = (engine_for(MODEL, max_slots=5, steps_per_sync=each) for each in (1, 16))
    expected = plain.generate(work)
    completions = [response.completions for response in expected]
    reasons = {one.finish_reason for each in completions if not isinstance(each, RowError) for one in each}
    assert reasons == {"stop", "eos", "length"}
    assert_same(strides.generate(work), expected)


def test_beams_beside_them_are_decoded_step_by_step() -> None:
    """A row's trace then has steps and stretches in turn."""
    work = requests(
        BeamSearch(name="b", type="beam_search", num_beams=2, max_new_tokens=9), sampling(max_new_tokens=30), count=6
    )
    plain, strides = (engine_for(MODEL, max_slots=7, steps_per_sync=each) for each in (1, 4))
    assert_same(strides.generate(work), plain.generate(work))


@pytest.mark.usefixtures("device")
def test_errors_are_those_of_single_steps() -> None:
    banned = greedy(suppress_tokens=[token for token in range(90) if token != 8], no_repeat_ngram_size=1)
    work = requests(banned, greedy())
    model = random_model(vocab_size=90)
    with torch.no_grad():
        model.transformer.wpe.weight[24:] = torch.nan
    plain, strides = (engine_for(model, max_slots=5, steps_per_sync=each) for each in (1, 16))
    expected = plain.generate(work)
    errors = {each.completions.type for each in expected if isinstance(each.completions, RowError)}
    assert errors == {"no_token_left", "logits_not_finite"}
    assert_same(strides.generate(work), expected)


def test_usage_counts_rows_until_they_end() -> None:
    plain, strides = (engine_for(MODEL, max_slots=4, steps_per_sync=each) for each in (1, 4))
    work = requests(greedy(max_new_tokens=9, ignore_eos=True), count=4)
    for engine in (plain, strides):
        engine.generate(work)
    assert strides.usage == plain.usage  # 8 steps are two strides
    work = requests(greedy(max_new_tokens=6, ignore_eos=True), greedy(max_new_tokens=4, ignore_eos=True), count=2)
    strides.generate(work)
    assert strides.usage.used_slot_steps == 4 * 8 + 2 * 5 + 2 * 3
    assert strides.usage.num_decode_steps == 8 + 5


@pytest.mark.usefixtures("as_on_a_gpu")
def test_filters_one_after_another_keep_the_same_without_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU what a filter drops stays in its place, banned, for the next one to see."""
    strategy = sampling(top_h=0.9, top_k=60, top_p=0.95, min_p=0.001, typical_p=0.9, epsilon_cutoff=1e-3, temperature=2)
    scores = torch.randn((16, 90), generator=torch.Generator().manual_seed(0)) * 3
    masked, all_ids = narrow(strategy, scores)
    assert torch.equal(all_ids, torch.arange(90).expand(16, 90))
    monkeypatch.undo()
    values, token_ids = narrow(strategy, scores)
    assert torch.equal(masked, torch.full_like(scores, -torch.inf).scatter_reduce(1, token_ids, values, "amax"))
    assert (masked.isfinite().sum(-1) > 1).any()


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what cannot be recorded as a CUDA graph: values from the host. Tensors without data, on `meta`, refuse
    the rest themselves: answers for the host, and shapes that depend on data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "lift" not in str(func), f"{func} brings values from the host"
        for each in tree_leaves((args, kwargs)):
            assert not isinstance(each, torch.Tensor) or each.device.type == "meta", (
                f"{func} takes a tensor of the host"
            )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ON_DEVICE)
@torch.inference_mode()
def test_nothing_in_a_step_waits_for_the_device(name: str) -> None:
    strategy = sampling(**{name: ON_DEVICE[name]})
    model = GPT2(random_model(vocab_size=90).to("meta"))
    (unit,) = make_units(0, Request((1, 2), strategy, (0,)), 3, Limits(frozenset({5}), [b""] * 90, 64))
    unit.state.begin(unit.state.ending.root((0,)), torch.zeros(0))
    strides = Strides(model, model.new_cache([64] * 8), 3, 16)
    made = strides._stride([unit.state], [(unit.state.ending, [0])], 16)
    made.step()  # makes what is kept
    with NoWaiting():  # type: ignore[no-untyped-call]
        made.step()


def test_keys_are_those_that_the_device_can_follow() -> None:
    def unit(**values: Any) -> Any:
        (made,) = make_units(0, Request((1, 2), sampling(**values), (0,)), 3, Limits(frozenset(), [b""] * 90, 64))
        return made

    assert {*ON_DEVICE, *ON_HOST, "diversity_penalty"} == {*APPLY, *FILTERS}  # that one is for beams alone
    assert can_stride([unit(**{key: value}) for key, value in ON_DEVICE.items()])
    assert not any(can_stride([unit(**{key: value}), unit()]) for key, value in ON_HOST.items())


@pytest.mark.usefixtures("device")
def test_rows_that_run_on_into_nan_leave_none_for_those_that_come_after_them() -> None:
    """A mask hides what is stale, but NaN shows through: the row that gets the slot next would seem broken."""
    model = random_model(vocab_size=90)
    with torch.no_grad():
        model.transformer.wpe.weight[12:] = torch.nan
    work = [Request((row + 1,), greedy(max_new_tokens=4, ignore_eos=True), (row,)) for row in range(4)]
    longer = [Request((9,), greedy(max_new_tokens=11, ignore_eos=True), (9,))]  # keeps the stride going for 10 steps
    strides = engine_for(model, max_slots=3, steps_per_sync=16)
    found = strides.generate(work + longer)
    assert not any(isinstance(each.completions, RowError) for each in found)
    assert_same(found, engine_for(model, max_slots=3).generate(work + longer))
    (cache,) = [each.cache for each in strides._strides.values()]
    assert not cache.kept.isnan().any()


def test_a_cache_that_is_used_again_knows_nothing_of_the_rows_before() -> None:
    """Samples of a prompt would take keys and values from rows of another call that began alike."""
    engine = engine_for(MODEL, max_slots=5, steps_per_sync=4)
    work = [Request((1, 2, 3), sampling(num_return_sequences=3), (4, 5, 6))]
    engine.generate(work)
    ((_, strides),) = engine._strides.items()
    assert strides.cache.lengths.tolist() == [0] * 5
    first = engine.generate(work)
    engine.generate([Request((1, 2, 4, 5), greedy(), (0,))])
    assert_same(engine.generate(work), first)
    assert engine._strides[5, 32] is strides


@pytest.fixture
def without_gc() -> Iterator[None]:
    """What is given up must go at once."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_gc")
def test_caches_of_another_shape_share_the_memory_of_the_largest() -> None:
    engine, plain = (engine_for(MODEL, max_slots=5, steps_per_sync=each) for each in (4, 1))
    kept = []
    for limit in (10, 40, 5, 40):
        work = [Request((1, 2, 3), greedy(max_new_tokens=limit, ignore_eos=True), (0,))]
        assert_same(engine.generate(work), plain.generate(work))
        kept.append(ref([*engine._strides.values()][-1]))
    assert [each() is not None for each in kept] == [False, True, True, True]
    assert [*engine._strides] == [(5, 64), (5, 8)]  # what came before the largest went with its memory
    large, small = (each.cache.kept.untyped_storage().data_ptr() for each in engine._strides.values())
    assert large == small


def test_without_alternatives_nothing_of_them_is_kept() -> None:
    plain, strides = (engine_for(MODEL, num_alternatives=0, max_slots=5, steps_per_sync=each) for each in (1, 4))
    assert_same(strides.generate(requests(sampling())), plain.generate(requests(sampling())))


def test_the_stride_used_longest_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stride, "_MOST_STRIDES", 2)
    plain, strides = (engine_for(MODEL, max_slots=5, steps_per_sync=each) for each in (1, 3))
    assert_same(strides.generate(requests(*STRATEGIES.values())), plain.generate(requests(*STRATEGIES.values())))
    assert [len(each._strides) for each in strides._strides.values()] == [2]


def test_strides_go_with_the_memory_that_was_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, plain = (engine_for(MODEL, max_slots=6, steps_per_sync=each) for each in (4, 1))
    advance, failures = Strides.advance, [torch.OutOfMemoryError("on a GPU")]

    def once(self: Strides, *args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return advance(self, *args, **kwargs)

    monkeypatch.setattr(Strides, "advance", once)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    work = requests(sampling())
    assert_same(engine.generate(work), plain.generate(work))
    assert (engine.max_slots, [*engine._strides]) == (3, [(3, 64)])


def test_a_stride_is_recorded_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    replays = []

    def recorded(_: Strides, step: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            replays.append(step)
            step()

        return replay

    monkeypatch.setattr(Strides, "_recorded", recorded)
    engine, plain = (engine_for(MODEL, max_slots=5, steps_per_sync=each) for each in (4, 1))
    work = [Request((row, 1), greedy(max_new_tokens=13, ignore_eos=True), (0,)) for row in range(5)]
    for num_replays in (8, 20):  # three strides of four steps, of which the first of all is not recorded
        assert_same(engine.generate(work), plain.generate(work))
        assert len(replays) == num_replays


class FakeGraph:
    """A graph that cannot be replayed."""

    replay = "replay"


@pytest.fixture
def strides(monkeypatch: pytest.MonkeyPatch) -> Strides:
    """Strides that believe in CUDA."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the stream before")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(torch.cuda, "set_to", stream))
    monkeypatch.setattr(torch.cuda, "set_to", None, raising=False)
    made = Strides(GPT2(MODEL), GPT2(MODEL).new_cache([64] * 4), 3, 4)
    made._pool = object()
    return made


def refuse(error: type[RuntimeError]) -> None:
    raise error("operation not permitted when stream is capturing")


def test_a_recording_gives_its_replay(strides: Strides) -> None:
    assert strides._recorded(lambda: None) == "replay"


def test_where_cuda_refuses_once_nothing_is_recorded_again(strides: Strides, caplog: pytest.LogCaptureFixture) -> None:
    assert strides._recorded(lambda: refuse(RuntimeError)) is None
    assert strides._recorded(lambda: None) is None
    assert [record.message for record in caplog.records] == [
        "decoding goes on without CUDA graphs, at less speed: operation not permitted when stream is capturing"
    ]
    assert torch.cuda.set_to == "the stream before"  # type: ignore[attr-defined]


def test_a_recording_that_runs_out_of_memory_says_so(strides: Strides) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        strides._recorded(lambda: refuse(torch.OutOfMemoryError))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("names", [[name] for name in STRATEGIES] + [list(STRATEGIES)], ids=" ".join)
def test_a_gpu_gives_the_tokens_of_a_cpu(names: list[str]) -> None:
    work = requests(*(STRATEGIES[name] for name in names))
    expected = engine_for(random_model(vocab_size=90), max_slots=5).generate(work)
    on_gpu = engine_for(random_model(vocab_size=90).to("cuda"), max_slots=5)
    assert_same(on_gpu.generate(work), expected)
    assert_same(on_gpu.generate(work), expected)
