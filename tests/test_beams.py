"""When hypotheses end, and which beams run on, finish and are returned: decisions on hand-made candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engine.beams import Beams, Candidate, Ended, Finished
from pipeline.engine.hypothesis import Ending, Hypothesis, Step, completion
from pipeline.engine.measure import measure
from pipeline.strategies import BeamSearch, Greedy, Strategy

EOS = 9
TOKEN_BYTES = [b"a", b"b", b"ab", "é".encode()[:1], "é".encode()[1:], b"END", b"a.b", b"", b"", b""]
MEASURES = measure(torch.zeros(1, 10), 2)


def greedy(**values: Any) -> Greedy:
    return Greedy(name="g", type="greedy", **{"max_new_tokens": 100, **values})


def ending_of(strategy: Strategy, *, limit: int = 100, limit_reason: str = "length", eos: int | None = EOS) -> Ending:
    return Ending(
        strategy=strategy,
        kind=strategy,
        eos_token_ids=frozenset() if eos is None else frozenset({eos}),
        num_prompt_tokens=1,
        limit=limit,
        limit_reason=limit_reason,
        token_bytes=TOKEN_BYTES,
        longest_stop=max((len(stop.encode()) for stop in strategy.stop_strings), default=0),
    )


def step(token: int, previous: Step | None = None, logprob: float = -1.0) -> Step:
    return Step(previous, MEASURES, 0, token, logprob, logprob, 1)


def after(ending: Ending, *tokens: int) -> Hypothesis:
    """The hypothesis in slot 0 after these tokens."""
    row = Hypothesis((0,))
    for token in tokens:
        row = ending.child(row, step(token, row.step))
    return row


# when a row ends


def test_a_row_runs_on_without_a_reason_to_end() -> None:
    ending = ending_of(greedy())
    assert ending.reason(after(ending, 0, 1), 2) is None


@pytest.mark.parametrize(
    ("token", "reason"),
    [(EOS, ("eos", None)), (3, ("stop", 3)), (5, ("stop", "END")), (0, None)],
    ids=["eos", "stop-token", "stop-string", "other"],
)
def test_a_token_ends_a_row_by_its_own_reason(token: int, reason: tuple[str, str | int | None] | None) -> None:
    ending = ending_of(greedy(stop_token_ids=(3,), stop_strings=("END",)))
    assert ending.reason(Hypothesis((0,)), token) == reason


def test_an_end_of_text_token_that_is_also_a_stop_token_counts_as_eos() -> None:
    ending = ending_of(greedy(stop_token_ids=(EOS,)))
    assert ending.reason(Hypothesis((0,)), EOS) == ("eos", None)
    assert ending.stop_token_ids == (EOS,)


def test_a_stop_token_counts_before_a_stop_string_and_both_before_the_limit() -> None:
    ending = ending_of(greedy(stop_token_ids=(5,), stop_strings=("END", "a")), limit=1)
    assert ending.reason(Hypothesis((0,)), 5) == ("stop", 5)
    assert ending.reason(Hypothesis((0,)), 0) == ("stop", "a")
    assert ending.reason(Hypothesis((0,)), EOS) == ("eos", None)
    assert ending.reason(Hypothesis((0,)), 1) == ("length", None)


def test_without_eos_tokens_end_of_text_is_a_token_like_any_other() -> None:
    ending = ending_of(greedy(), eos=None)
    assert ending.reason(Hypothesis((0,)), EOS) is None
    assert ending.stop_token_ids == ()


@pytest.mark.parametrize("limit_reason", ["length", "context"])
def test_the_limit_ends_a_row_exactly_at_its_last_token(limit_reason: str) -> None:
    ending = ending_of(greedy(), limit=3, limit_reason=limit_reason)
    assert ending.reason(after(ending, 0), 0) is None
    assert ending.reason(after(ending, 0, 0), 0) == (limit_reason, None)


def test_nothing_but_the_limit_ends_a_row_before_min_new_tokens() -> None:
    ending = ending_of(greedy(min_new_tokens=3, stop_token_ids=(3,), stop_strings=("END",)), limit=4)
    for token, reason in ((EOS, ("eos", None)), (3, ("stop", 3)), (5, ("stop", "END"))):
        assert ending.reason(after(ending, 0), token) is None
        assert ending.reason(after(ending, 0, 0), token) == reason
    assert ending.reason(after(ending, 0, 0, 0), 0) == ("length", None)


def test_a_stop_string_may_span_tokens_and_end_inside_one() -> None:
    ending = ending_of(greedy(stop_strings=("bab", "ba.")))
    assert ending.reason(after(ending, 0, 1), 2) == ("stop", "bab")  # a b|ab
    assert ending.reason(after(ending, 0, 1), 6) == ("stop", "ba.")  # a b|a.b
    assert ending.reason(after(ending, 0, 0), 6) is None


def test_the_first_of_two_stop_strings_in_one_token_is_the_match() -> None:
    for stops in (("b", "a."), ("a.", "b")):
        ending = ending_of(greedy(stop_strings=stops))
        assert ending.reason(Hypothesis((0,)), 6) == ("stop", "a.")


def test_a_character_split_over_two_tokens_is_found_in_their_bytes() -> None:
    ending = ending_of(greedy(stop_strings=("é",)))
    assert ending.reason(after(ending, 0), 3) is None
    assert ending.reason(after(ending, 0, 3), 4) == ("stop", "é")


def test_special_tokens_have_no_text_and_complete_nothing() -> None:
    ending = ending_of(greedy(stop_strings=("ab",)))
    assert ending.reason(after(ending, 0, 8), 1) == ("stop", "ab")
    short_of_minimum = ending_of(greedy(stop_strings=("ab",), min_new_tokens=3))
    assert short_of_minimum.reason(after(short_of_minimum, 0, 1), 8) is None  # "ab" was complete one token earlier


def test_a_row_remembers_only_the_bytes_that_a_stop_string_could_need() -> None:
    ending = ending_of(greedy(stop_strings=("abc", "é")))
    assert after(ending, 0, 1, 5, 2).tail == b"Dab"
    assert after(ending_of(greedy()), 0, 1, 5, 2).tail == b""


# what a finished row is read back into


def test_a_completion_is_read_from_its_steps_in_order() -> None:
    first_logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]).log_softmax(-1)
    second_logits = torch.tensor([[3.0, 0.0, 0.0]]).log_softmax(-1)
    first = Step(None, measure(first_logits, 2), 1, 2, -1.5, -0.5, 3)
    second = Step(first, measure(second_logits, 2), 0, 0, -0.25, -0.125, 1)
    done = completion(second, 2, ("stop", "END"))
    assert done.token_ids.tolist() == [2, 0]
    assert (done.finish_reason, done.stop_match, done.sequence_score) == ("stop", "END", None)
    assert done.token_logprobs.tolist() == [-1.5, -0.25]
    assert done.sampling_logprobs is not None
    assert done.sampling_logprobs.tolist() == [-0.5, -0.125]
    assert done.token_ranks.tolist() == [3, 1]
    assert done.top_token_ids.tolist() == [[0, 1], [0, 1]]
    chosen = torch.stack([first_logits[1], second_logits[0]])
    np.testing.assert_allclose(done.top_probs, chosen[:, :2].exp(), atol=1e-6)
    np.testing.assert_allclose(done.entropies, -(chosen.exp() * chosen).sum(-1), atol=1e-6)


def test_beams_that_share_a_beginning_are_read_back_apart() -> None:
    shared = step(1, step(0))
    ends = [completion(step(token, shared), 2, ("length", None)) for token in (2, 3)]
    assert [end.token_ids.tolist() for end in ends] == [[0, 1, 2], [0, 1, 3]]


def test_a_beam_has_a_score_and_no_sampling_logprobs() -> None:
    done = completion(step(1), 2, ("eos", None), is_drawn=False, sequence_score=-0.75)
    assert (done.sequence_score, done.sampling_logprobs) == (-0.75, None)


def test_a_completion_without_tokens_has_empty_arrays_of_the_right_types() -> None:
    done = completion(None, 4, ("length", None))
    arrays = {
        "token_ids": ((0,), np.int32),
        "token_logprobs": ((0,), np.float32),
        "sampling_logprobs": ((0,), np.float32),
        "token_ranks": ((0,), np.int32),
        "entropies": ((0,), np.float32),
        "top_token_ids": ((0, 4), np.int32),
        "top_probs": ((0, 4), np.float32),
    }
    assert {name: (getattr(done, name).shape, getattr(done, name).dtype) for name in arrays} == arrays


def test_moving_a_row_changes_its_slot_only() -> None:
    row = Hypothesis((3,), step(1), 1, b"tail")
    assert row.moved((5,)) == Hypothesis((5,), row.step, 1, b"tail")
    assert row.moved((3,)) is row


# which beams run on and finish


def beams_of(
    *sequences: list[int],
    scores: list[float] | None = None,
    finished: list[float] | None = None,
    limit: int = 100,
    **values: Any,
) -> Beams:
    """A search whose running beams have generated these tokens, all of the same number."""
    strategy = BeamSearch(name="b", type="beam_search", **{"max_new_tokens": 100, "num_beams": 2, **values})
    ending = ending_of(strategy, limit=limit)
    return Beams(
        strategy=strategy,
        ending=ending,
        running=[after(ending, *tokens) for tokens in sequences],
        scores=scores or [0.0] * len(sequences),
        finished=[Finished(score, step(EOS), ("eos", None)) for score in finished or []],
    )


def test_the_best_candidates_that_do_not_end_run_on() -> None:
    search = beams_of([0], [1])
    candidates = [Candidate(-1.0, 1, 4), Candidate(-2.0, 0, 3), Candidate(-3.0, 0, 2), Candidate(-4.0, 1, 1)]
    assert search.choose(candidates) == (candidates[:2], [])


def test_a_prompt_alone_gives_all_the_first_beams() -> None:
    search = beams_of([])
    candidates = [Candidate(-1.0, 0, 4), Candidate(-2.0, 0, 3), Candidate(-3.0, 0, 2)]
    running, ended = search.choose(candidates)
    search.advance([(candidate, step(candidate.token)) for candidate in running], ended)
    assert [(row.step.token, row.num_generated) for row in search.running if row.step] == [(4, 1), (3, 1)]
    assert search.scores == [-1.0, -2.0]


def test_an_end_among_the_first_num_beams_finishes_and_one_further_down_is_dropped() -> None:
    search = beams_of([0, 0], [1, 1])
    candidates = [
        Candidate(-1.0, 0, 3),
        Candidate(-1.5, 1, EOS),
        Candidate(-2.0, 0, EOS),
        Candidate(-4.0, 1, 2),
    ]
    running, ended = search.choose(candidates)
    assert running == [candidates[0], candidates[3]]
    assert ended == [Ended(-0.5, candidates[1], ("eos", None))]  # -1.5 over three tokens


def test_enough_candidates_are_looked_at_to_run_on_although_all_stop_tokens_are_among_them() -> None:
    assert beams_of([0]).num_candidates == 4
    assert beams_of([0], stop_token_ids=(1, 2, EOS)).num_candidates == 8
    assert beams_of([0], num_beams=5, stop_token_ids=(1,)).num_candidates == 15
    search = beams_of([0], [1], stop_token_ids=(2, 3))
    stops = [Candidate(-float(place), place % 2, (2, 3, EOS)[place // 2]) for place in range(6)]
    others = [Candidate(-7.0, 0, 0), Candidate(-8.0, 1, 1), Candidate(-9.0, 1, 0)]
    running, ended = search.choose([*stops, *others])
    assert running == others[:2]
    assert [end.candidate for end in ended] == stops[:2]


@pytest.mark.parametrize(
    ("length_penalty", "expected"), [(0.0, -6.0), (1.0, -2.0), (2.0, -6 / 9), (-1.0, -18.0), (0.5, -6 / 3**0.5)]
)
def test_a_finished_score_is_divided_by_the_length_to_the_power_of_length_penalty(
    length_penalty: float, expected: float
) -> None:
    search = beams_of([0, 0], [1, 1], length_penalty=length_penalty)
    _, ended = search.choose([Candidate(-6.0, 0, EOS)])
    assert ended[0].score == pytest.approx(expected, rel=1e-6)


def test_at_the_limit_the_first_num_beams_finish_and_none_runs_on() -> None:
    search = beams_of([0, 0], [1, 1], limit=3)
    candidates = [Candidate(-3.0, 0, 1), Candidate(-6.0, 1, EOS), Candidate(-9.0, 1, 0)]
    running, ended = search.choose(candidates)
    assert running == []
    assert ended == [Ended(-1.0, candidates[0], ("length", None)), Ended(-2.0, candidates[1], ("eos", None))]


def test_only_the_best_num_beams_finished_are_kept_and_the_older_one_on_a_tie() -> None:
    search = beams_of([0], [1], finished=[-1.0, -2.0])
    old, new = search.finished, [Finished(-2.0, step(7), ("stop", 7)), Finished(-0.5, step(8), ("stop", 8))]
    search.advance([], new)
    assert search.finished == [new[1], old[0]]
    search = beams_of([0], [1], finished=[-1.0, -2.0])
    old = search.finished
    search.advance([], new[:1])
    assert search.finished == old


def test_children_follow_their_parents_and_keep_their_order() -> None:
    search = beams_of([0], [1])
    parents = search.running
    picks = [(Candidate(-1.0, 1, 4), step(4, parents[1].step)), (Candidate(-1.5, 1, 5), step(5, parents[1].step))]
    search.advance(picks, [])
    assert search.running == [search.ending.child(parents[1], taken) for _, taken in picks]
    assert search.scores == [-1.0, -1.5]


def test_early_stopping_ends_the_search_at_num_beams_finished() -> None:
    search = beams_of([0], [1], scores=[-0.1, -0.2], finished=[-5.0], early_stopping=True)
    assert not search.is_done
    search.advance([(Candidate(-0.1, 0, 1), step(1))], [Finished(-6.0, step(EOS), ("eos", None))])
    assert search.is_done
    assert search.running == []


@pytest.mark.parametrize("finished", [[], [-1.0]])
def test_a_search_goes_on_until_enough_beams_finished(finished: list[float]) -> None:
    assert not beams_of([0], [1], scores=[-90.0, -91.0], finished=finished).is_done


def test_a_search_without_running_beams_is_done() -> None:
    assert beams_of(finished=[-1.0]).is_done


@pytest.mark.parametrize(
    ("best_running", "settings", "is_done"),
    [
        # two tokens so far, eight at most; the worst finished beam has -1
        (-1.9, {}, False),
        (-2.0, {}, True),
        (-2.1, {}, True),
        (-2.1, {"early_stopping": "never"}, False),
        (-7.9, {"early_stopping": "never"}, False),
        (-8.0, {"early_stopping": "never"}, True),
        (-0.9, {"early_stopping": "never", "length_penalty": 0.0}, False),
        (-1.0, {"early_stopping": "never", "length_penalty": 0.0}, True),
        (-0.4, {"early_stopping": "never", "length_penalty": -1.0}, False),
        (-0.5, {"early_stopping": "never", "length_penalty": -1.0}, True),
        (-3.9, {"length_penalty": 2.0}, False),
        (-4.0, {"length_penalty": 2.0}, True),
        (-63.0, {"early_stopping": "never", "length_penalty": 2.0}, False),
        (-64.0, {"early_stopping": "never", "length_penalty": 2.0}, True),
    ],
)
def test_a_search_is_done_when_the_best_running_beam_cannot_beat_the_worst_finished_one(
    best_running: float, settings: dict[str, Any], is_done: bool
) -> None:
    search = beams_of([0, 0], [1, 1], scores=[best_running, -99.0], finished=[-0.5, -1.0], limit=8, **settings)
    assert search.is_done is is_done
