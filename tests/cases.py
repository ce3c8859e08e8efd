"""Random jobs for property-based tests: every kind of decoding, any processors, samplers, stops and batch shapes.

All are over one small vocabulary and a short context, so that bans, limits and ties of every sort come up. Nothing here
runs anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from pipeline.records import Request
from pipeline.strategies import (
    PROCESSORS,
    SAMPLERS,
    BeamSearch,
    Bias,
    ContrastiveSearch,
    Decoding,
    Dola,
    Greedy,
    NextToken,
    Sampling,
    num_rows,
)

VOCABULARY, POSITIONS, LAYERS, EOS = 40, 24, 3, 5

Settings = dict[str, Any]

TOKEN = st.integers(0, VOCABULARY - 1)
WORD = TOKEN.filter(lambda token: token != EOS)
PHRASE = st.lists(WORD, min_size=1, max_size=3).map(tuple)
PHRASES = st.lists(PHRASE, min_size=1, max_size=4, unique=True).map(tuple)
TOKENS = st.lists(TOKEN, min_size=1, max_size=5, unique=True).map(tuple)
# Bans of nearly all tokens, so that rows run out of them.
NEARLY_ALL = st.sets(TOKEN, max_size=6).map(lambda kept: tuple(sorted(set(range(VOCABULARY)) - kept)))
BIASES = st.dictionaries(PHRASE, st.sampled_from([-5.0, -1.0, 0.5, 3.0]), min_size=1, max_size=4).map(
    lambda biases: tuple(Bias(token_ids=phrase, bias=bias) for phrase, bias in biases.items())
)

PROCESSOR_SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "guidance_scale": st.sampled_from([0.5, 1.0, 1.5, 3.0]),
    "sequence_bias": BIASES,
    "encoder_repetition_penalty": st.sampled_from([0.7, 1.0, 1.5]),
    "repetition_penalty": st.sampled_from([0.8, 1.0, 1.2, 2.0]),
    "frequency_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
    "presence_penalty": st.sampled_from([-0.5, 0.0, 1.0]),
    "no_repeat_ngram_size": st.integers(1, 3),
    "bad_words_ids": PHRASES,
    "min_new_tokens": st.integers(1, 6),
    "allowed_words_ids": PHRASES,
    "forced_bos_token_id": TOKEN,
    "forced_eos_token_id": TOKEN,
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 4).map(float), st.sampled_from([0.5, 1.3, 3.0])),
    "suppress_tokens": TOKENS | NEARLY_ALL,
    "begin_suppress_tokens": TOKENS,
}
SAMPLER_SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.5, 0.9, 1.6]),
    "top_h": st.sampled_from([0.3, 0.8]),
    "top_k": st.integers(1, 45),
    "top_p": st.sampled_from([0.3, 0.8, 0.95, 1.0]),
    "min_p": st.sampled_from([0.02, 0.2]),
    "typical_p": st.sampled_from([0.3, 0.8, 1.0]),
    "epsilon_cutoff": st.sampled_from([0.005, 0.05]),
    "eta_cutoff": st.sampled_from([0.005, 0.3]),
}
KINDS = ("greedy", "next_token", "sampling", "beams", "drawn", "diverse", "constrained", "contrastive", "dola")


@dataclass(frozen=True)
class Job:
    """Every prompt under every strategy, and how many rows run together."""

    prompts: tuple[tuple[int, ...], ...]
    strategies: tuple[Decoding, ...]
    max_slots: int

    @property
    def requests(self) -> list[Request]:
        return [
            Request(prompt, strategy, tuple(10_000 * place + 100 * index + row for row in range(num_rows(strategy))))
            for place, prompt in enumerate(self.prompts)
            for index, strategy in enumerate(self.strategies)
        ]


@st.composite
def jobs(draw: st.DrawFn, kinds: Sequence[str] = KINDS, processors: Sequence[str] = PROCESSORS) -> Job:
    """Jobs of uneven prompts under one to three strategies."""
    prompt = st.lists(TOKEN, min_size=1, max_size=8) | st.lists(TOKEN, min_size=1, max_size=POSITIONS)
    return Job(
        draw(st.lists(prompt.map(tuple), min_size=1, max_size=3).map(tuple)),
        draw(st.lists(decodings(kinds, processors), min_size=1, max_size=3).map(tuple)),
        draw(st.sampled_from([1, 3, 8, 64])),
    )


@st.composite
def decodings(draw: st.DrawFn, kinds: Sequence[str], processors: Sequence[str]) -> Decoding:
    """One strategy of one of these kinds, under some of these processors."""
    kind = draw(st.sampled_from(kinds))
    values: Settings = {"name": kind} | draw(some(PROCESSOR_SETTINGS, [*processors])) | draw(stops())
    if values.get("guidance_scale") and draw(st.booleans()):
        values["negative_prompt_ids"] = draw(st.lists(TOKEN, min_size=1, max_size=6).map(tuple))
    if values.get("ignore_eos"):
        values.pop("exponential_decay_length_penalty", None)
    forced = {values.get("forced_bos_token_id"), values.get("forced_eos_token_id")}
    if forced & {*values.get("suppress_tokens", ())}:
        values.pop("suppress_tokens")
    if kind == "next_token":  # what acts on earlier tokens is refused
        refused = {"frequency_penalty", "presence_penalty", "exponential_decay_length_penalty"}
        return NextToken(type="next_token", **{key: value for key, value in values.items() if key not in refused})
    return draw(generating(kind, values | draw(limits(values.get("min_new_tokens", 1)))))


@st.composite
def generating(draw: st.DrawFn, kind: str, values: Settings) -> Decoding:
    """A strategy of this kind with these settings and what is its own."""
    match kind:
        case "greedy":
            return Greedy(type="greedy", **values)
        case "sampling":
            values |= draw(some(SAMPLER_SETTINGS, SAMPLERS))
            return Sampling(type="sampling", num_return_sequences=draw(st.integers(1, 3)), **values)
        case "contrastive":
            alpha = st.sampled_from([0.2, 0.6, 1.0])
            values |= {"penalty_alpha": draw(alpha), "top_k": draw(st.integers(2, 5))}
            return ContrastiveSearch(type="contrastive_search", **values)
        case "dola":
            layers = st.sampled_from(["low", "high"]) | st.sets(st.integers(0, LAYERS - 1), min_size=1).map(tuple)
            return Dola(type="dola", dola_layers=draw(layers), **values)
        case _:
            return BeamSearch(type="beam_search", **values | draw(beams(kind)))


@st.composite
def beams(draw: st.DrawFn, kind: str) -> Settings:
    """What beam search of this kind has of its own."""
    num_beams = draw(st.sampled_from([2, 4]) if kind == "diverse" else st.integers(2, 4))
    values = {
        "num_beams": num_beams,
        "num_return_sequences": draw(st.integers(1, num_beams)),
        "length_penalty": draw(st.sampled_from([-1.0, 0.0, 1.0, 1.5])),
        "early_stopping": draw(st.sampled_from([True, False, "never"])),
    }
    match kind:
        case "drawn":
            values |= {"do_sample": True} | draw(some(SAMPLER_SETTINGS, SAMPLERS))
        case "diverse":
            values |= {"num_beam_groups": draw(st.sampled_from([2, num_beams]))}
            values |= {"diversity_penalty": draw(st.sampled_from([0.3, 2.0]))}
        case "constrained":
            values |= {"force_words_ids": draw(st.lists(PHRASE | PHRASES, min_size=1, max_size=2).map(tuple))}
    return values


def some(settings: dict[str, st.SearchStrategy[Any]], keys: Sequence[str]) -> st.SearchStrategy[Settings]:
    """A setting for up to five of the keys."""
    known = [key for key in keys if key in settings]
    chosen = st.sets(st.sampled_from(known), max_size=5) if known else st.just(set())
    return chosen.flatmap(lambda keys: st.fixed_dictionaries({key: settings[key] for key in sorted(keys)}))


def stops() -> st.SearchStrategy[Settings]:
    """Ways to stop. Tokens print as one character each."""
    text = st.lists(TOKEN, min_size=1, max_size=2).map(lambda tokens: "".join(chr(32 + token) for token in tokens))
    optional = {
        "stop_token_ids": st.lists(WORD, min_size=1, max_size=3, unique=True).map(tuple),
        "stop_strings": st.lists(text, min_size=1, max_size=3, unique=True).map(tuple),
        "ignore_eos": st.just(True),
    }
    return st.fixed_dictionaries({}, optional=optional)


def limits(least: int) -> st.SearchStrategy[Settings]:
    """One of the two limits, at least as high as `min_new_tokens`."""
    new_tokens = st.integers(least, 10).map(lambda limit: {"max_new_tokens": limit})
    return new_tokens | st.integers(max(2, least), POSITIONS).map(lambda limit: {"max_length": limit})
