"""docs/combinations.md is what the code says, and every combination that it calls working does its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from pipeline import checkpoint, job
from pipeline.engine import Engine, load_model
from pipeline.records import Completion, Request, Response, RowError, row_seed
from pipeline.resolve import resolve
from pipeline.strategies import PROCESSORS, SAMPLERS, Score, Strategy, num_rows
from pipeline.tokenizer import Tokenizer
from tests.combinations import BEGIN, GROUPS, KEYS, KINDS, PAGE, page, refusal, strategy, works_with
from tests.flows import make_job, read_output

PROMPTS = (
    "I skip across the street",
    "It was a sunny and bright",
    "It was a sunny and bright.",
    "I skip across the",
    "Count: one,",
)
EOS = 767
DECODING = [kind for kind in KINDS if kind != "score"]
OWN = GROUPS["Keys of one type"]

Answers = dict[tuple[str, ...], list[Response]]  # (kind, keys...) -> one response per prompt


def test_the_page_is_what_the_code_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text
    assert len(text.split(BEGIN)) == 2


def test_the_tables_have_every_key_of_every_type_once() -> None:
    fields = {key for kind in TypeAdapter(Strategy).json_schema()["$defs"].values() for key in kind["properties"]}
    listed = [key for keys in GROUPS.values() for key in keys]
    assert sorted(listed) == sorted(fields - {"name", "type", "text", "token_ids", "bias"})
    assert [key for key in listed if key in PROCESSORS] == list(PROCESSORS)
    assert [key for key in listed if key in SAMPLERS] == list(SAMPLERS)


@pytest.mark.parametrize(
    ("kind", "key", "why"),
    [
        (
            "greedy",
            "temperature",
            "`temperature` does not apply to `type: greedy`: greedy always takes the most probable token, so nothing "
            "is drawn",
        ),
        (
            "num_beam_groups",
            "top_p",
            "`top_p` has no effect without `do_sample: true`: beams take the best candidates otherwise",
        ),
        (
            "next_token",
            "presence_penalty",
            "`presence_penalty` has no effect under `type: next_token`: it acts on what was generated before a step",
        ),
        (
            "force_words",
            "do_sample",
            "`do_sample` draws its candidates and `force_words` sorts beams by the words they hold",
        ),
    ],
)
def test_a_refusal_names_the_two_keys_and_why(kind: str, key: str, why: str) -> None:
    assert refusal(strategy(kind, key)) == why


class Demo:
    """The demo model, and what it makes of strategies of the table on `PROMPTS`."""

    def __init__(self) -> None:
        self.checkpoint = checkpoint.inspect("demo")
        folder = checkpoint.locate("demo")
        self.tokenizer = Tokenizer(folder, self.checkpoint.vocab_size)
        self.engine = Engine(
            load_model(str(folder), "float32", "cpu"),
            eos_token_ids=self.checkpoint.eos_token_ids,
            token_bytes=self.tokenizer.token_bytes,
            num_alternatives=5,
        )
        self.prompts = [tuple(ids) for ids in self.tokenizer.encode(PROMPTS)]

    def requests(self, *names: str) -> list[Request]:
        read: Strategy = TypeAdapter(Strategy).validate_python(strategy(*names))
        resolved = resolve(read, self.tokenizer, self.checkpoint)
        seeds = tuple(row_seed(7, "row", names[0], sample) for sample in range(num_rows(resolved)))
        targets = [(prompt[:1], prompt[1:]) if isinstance(read, Score) else (prompt, ()) for prompt in self.prompts]
        return [Request(given, resolved, seeds, target) for given, target in targets]

    def answers(self, asked: list[tuple[str, ...]]) -> Answers:
        """Answers to all in one mixed batch."""
        requests = [request for names in asked for request in self.requests(*names)]
        responses = iter(self.engine.generate(requests))
        return {names: [next(responses) for _ in PROMPTS] for names in asked}


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo()


@pytest.fixture(scope="module")
def answers(demo: Demo) -> Answers:
    """What each kind gives, plain and with each key it takes, all of it in one batch."""
    return demo.answers([*((kind,) for kind in KINDS), *TAKEN])


def seen(response: Response) -> list[Any]:
    """All of a response that a processor, a sampler or a stop can change."""
    if isinstance(response.completions, RowError):
        return [response.completions]
    return [_fields(each) for each in response.completions]


def _fields(done: Completion) -> tuple[Any, ...]:
    drawn = None if done.sampling_logprobs is None else done.sampling_logprobs.tolist()
    return done.token_ids.tolist(), drawn, done.finish_reason, done.stop_match, done.sequence_score


TAKEN = [(kind, key) for kind in DECODING for key in works_with(kind) if key not in OWN]
# Of the candidates of contrastive search the best one or two are what counts on these prompts.
UNSEEN = {("contrastive_search", "top_k")}
# DoLa leaves few tokens to begin with: a biased one may not be among them, and bans may take them all.
CUT_BEFORE = {("dola", "sequence_bias")}
EMPTYING = {("dola", key) for key in KEYS if key.startswith(("no_repeat", "bad_words", "allowed_words", "suppress"))}


@pytest.mark.parametrize(("kind", "key"), sorted(set(TAKEN) - UNSEEN))
def test_a_key_that_a_strategy_takes_does_its_work(kind: str, key: str, answers: Answers, demo: Demo) -> None:
    plain, keyed = answers[(kind,)], answers[kind, key]
    assert any(seen(one) != seen(other) for one, other in zip(plain, keyed, strict=True))
    for prompt, response in zip(demo.prompts, keyed, strict=True):
        if isinstance(response.completions, RowError):
            assert (kind, key, response.completions.type) == (kind, key, "no_token_left")
            assert (kind, key) in EMPTYING
            continue
        assert len(response.completions) == (2 if key == "num_return_sequences" else 1)
        for done in response.completions:
            if key in LAWS and (kind, key) not in CUT_BEFORE:
                LAWS[key](done, prompt, demo.tokenizer)


def _keeps_out(key: str) -> Callable[..., None]:
    banned = {token for phrase in KEYS[key] for token in (phrase if isinstance(phrase, list) else [phrase])}

    def law(done: Completion, *_: Any) -> None:
        assert not banned & set(done.token_ids.tolist())

    return law


def _begins_otherwise(done: Completion, *_: Any) -> None:
    assert done.token_ids[0] not in KEYS["begin_suppress_tokens"]


def _begins_with_417(done: Completion, *_: Any) -> None:
    assert done.token_ids[0] == 417


def _no_banned_words(done: Completion, _: Any, tokenizer: Tokenizer) -> None:
    banned = {ids for ids in tokenizer.variants_ids(KEYS["bad_words"]) if len(ids) == 1}
    assert not banned & {(token,) for token in done.token_ids.tolist()}


def _no_early_end(done: Completion, *_: Any) -> None:
    assert EOS not in done.token_ids[: KEYS["min_new_tokens"] - 1]


def _allowed_alone(key: str) -> Callable[..., None]:
    def law(done: Completion, _: Any, tokenizer: Tokenizer) -> None:
        phrases = KEYS[key] if key.endswith("ids") else tokenizer.variants_ids(KEYS[key])
        assert set(done.token_ids.tolist()) <= {token for phrase in phrases for token in phrase} | {EOS}

    return law


def _last_is_eos_at_the_limit(done: Completion, *_: Any) -> None:
    assert done.token_ids[-1] == EOS
    assert done.finish_reason == "eos"


def _nothing_twice(done: Completion, prompt: tuple[int, ...], _: Any) -> None:
    assert len({*prompt, *done.token_ids.tolist()}) == len(set(prompt)) + len(done.token_ids)


def _stops_at_e(done: Completion, _: Any, tokenizer: Tokenizer) -> None:
    *before, last = done.token_ids.tolist()
    assert "e" not in tokenizer.decode(before)
    assert (done.finish_reason, done.stop_match) == ("stop", "e") or "e" not in tokenizer.decode([last])


def _stops_at_a_token(done: Completion, *_: Any) -> None:
    *before, last = done.token_ids.tolist()
    assert not set(before) & set(KEYS["stop_token_ids"])
    assert (done.finish_reason == "stop") is (last in KEYS["stop_token_ids"])


def _runs_past_eos(done: Completion, *_: Any) -> None:
    assert done.finish_reason == "length"


def _at_most_5(done: Completion, *_: Any) -> None:
    assert len(done.token_ids) <= 5


def _at_most_16_in_all(done: Completion, prompt: tuple[int, ...], _: Any) -> None:
    assert len(prompt) + len(done.token_ids) <= 16


LAWS: Mapping[str, Callable[..., None]] = {
    "sequence_bias": _begins_with_417,
    "no_repeat_ngram_size": _nothing_twice,
    "bad_words": _no_banned_words,
    "bad_words_ids": _keeps_out("bad_words_ids"),
    "min_new_tokens": _no_early_end,
    "allowed_words": _allowed_alone("allowed_words"),
    "allowed_words_ids": _allowed_alone("allowed_words_ids"),
    "forced_bos_token_id": _begins_with_417,
    "forced_eos_token_id": _last_is_eos_at_the_limit,
    "suppress_tokens": _keeps_out("suppress_tokens"),
    "begin_suppress_tokens": _begins_otherwise,
    "stop_strings": _stops_at_e,
    "stop_token_ids": _stops_at_a_token,
    "ignore_eos": _runs_past_eos,
    "max_new_tokens": _at_most_5,
    "max_length": _at_most_16_in_all,
}


def first(response: Response) -> Completion:
    assert not isinstance(response.completions, RowError)
    return response.completions[0]


def assert_equal(one: Completion, other: Completion) -> None:
    """Equal tokens and endings, and the same probabilities but for rounding."""
    assert one.token_ids.tolist() == other.token_ids.tolist()
    assert (one.finish_reason, one.stop_match) == (other.finish_reason, other.stop_match)
    assert one.token_logprobs.tolist() == pytest.approx(other.token_logprobs.tolist(), abs=1e-4)
    assert one.sequence_score == pytest.approx(other.sequence_score, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_strategy_gives_alone_what_it_gives_among_all_others(kind: str, answers: Answers, demo: Demo) -> None:
    alone = demo.answers([(kind,)])[(kind,)]
    for one, other in zip(alone, answers[(kind,)], strict=True):
        assert_equal(first(one), first(other))


@pytest.mark.parametrize("kind", [kind for kind, key in TAKEN if key == "num_return_sequences"])
def test_the_first_of_several_rows_is_the_only_one_of_one(kind: str, answers: Answers) -> None:
    for one, two in zip(answers[(kind,)], answers[kind, "num_return_sequences"], strict=True):
        assert_equal(first(two), first(one))


def test_every_strategy_takes_token_ids_for_prompts_too(demo: Demo, tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    ids = pa.array(demo.prompts, pa.list_(pa.int32()))
    pq.write_table(pa.table({"id": PROMPTS, "prompt": PROMPTS, "ids": ids, "target": [" castle"] * len(PROMPTS)}), path)
    strategies = [strategy(kind) for kind in KINDS] + [strategy("score", "target_column")]
    source = {"path": str(path), "id_column": "id"}
    texts = make_job(path, tmp_path / "texts", input=source, strategies=strategies)
    token_ids = texts.model_copy(
        update={
            "input": texts.input.model_copy(update={"prompt_column": None, "token_ids_column": "ids"}),
            "output": texts.output.model_copy(update={"path": str(tmp_path / "ids")}),
        }
    )
    for work in (texts, token_ids):
        assert job.run(work, job.here).error_rate == 0
    assert read_output(tmp_path / "ids").equals(read_output(tmp_path / "texts"))
    assert read_output(tmp_path / "ids").num_rows == len(strategies) * len(PROMPTS)
