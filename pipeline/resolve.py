"""From a strategy as written to one the engine takes: words become token ids, and all ids are held against the model.

Done once per strategy when a run is planned, and on a worker for a row that changes a strategy for itself. It knows
nothing of rows, files or decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.checkpoint import Checkpoint
from pipeline.strategies import BeamSearch, Bias, Decoding, Dola, Score, Strategy
from pipeline.tokenizer import Tokenizer

ID_KEYS = (
    "stop_token_ids",
    "bad_words_ids",
    "allowed_words_ids",
    "force_words_ids",
    "sequence_bias",
    "negative_prompt_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)

Ids = tuple[int, ...]


class UnfitError(Exception):
    """Why a strategy cannot be used with a model: the key, the rule with the value, and the way out."""

    def __init__(self, key: str, what: str, way_out: str) -> None:
        super().__init__(what)
        self.key, self.what, self.way_out = key, what, way_out


def resolve(strategy: Strategy, tokenizer: Tokenizer, model: Checkpoint) -> Strategy:
    """The strategy with ids in place of all words; the keys that held words are empty.

    `bad_words` and `allowed_words` become all variants of each word; `force_words` get a leading space unless they
    begin with white space; `sequence_bias` and `negative_prompt` are tokenised as written.

    Raises:
        UnfitError: an id, a layer or a length is not the model's, or the model lacks a token that the strategy needs.
    """
    resolved = strategy if isinstance(strategy, Score) else _with_token_ids(strategy, tokenizer)
    for error in _misfits(resolved, model):
        raise error
    return resolved


def _with_token_ids(strategy: Decoding, tokenizer: Tokenizer) -> Decoding:
    negative = () if strategy.negative_prompt is None else tokenizer.encode([strategy.negative_prompt])[0]
    ids: dict[str, Any] = {
        "bad_words": (),
        "bad_words_ids": _united(strategy.bad_words_ids, tokenizer.variants_ids(strategy.bad_words)),
        "allowed_words": (),
        "allowed_words_ids": _united(strategy.allowed_words_ids, tokenizer.variants_ids(strategy.allowed_words)),
        "sequence_bias": tuple(_bias_of_ids(bias, tokenizer) for bias in strategy.sequence_bias),
        "negative_prompt": None,
        "negative_prompt_ids": (*strategy.negative_prompt_ids, *negative),
    }
    if isinstance(strategy, BeamSearch):
        words = [_forced(word, tokenizer) for word in strategy.force_words]
        ids["force_words"] = ()
        ids["force_words_ids"] = tuple(map(_needed, (*strategy.force_words_ids, *words)))
    return strategy.model_copy(update=ids)


def _united(phrases: tuple[Ids, ...], others: list[Ids]) -> tuple[Ids, ...]:
    return tuple(dict.fromkeys((*phrases, *others)))


def _bias_of_ids(bias: Bias, tokenizer: Tokenizer) -> Bias:
    return bias if bias.text is None else Bias(token_ids=tuple(tokenizer.encode([bias.text])[0]), bias=bias.bias)


def _forced(words: str | tuple[str, ...], tokenizer: Tokenizer) -> Ids | tuple[Ids, ...]:
    """Ids of a word inside a text, or those of each of several alternatives."""
    texts = (words,) if isinstance(words, str) else words
    spaced = [text if text[0].isspace() else f" {text}" for text in texts]
    phrases = tuple(tuple(ids) for ids in tokenizer.encode(spaced))
    return phrases[0] if isinstance(words, str) else phrases


def _needed(forced: Ids | tuple[Ids, ...]) -> Ids | tuple[Ids, ...]:
    """Without the alternatives that begin with another one: a text that holds them holds that one too."""
    unique = dict.fromkeys(phrase for phrase in forced if isinstance(phrase, tuple))
    shortest = [each for each in unique if not any(each[: len(other)] == other != each for other in unique)]
    return tuple(shortest) or forced


def _misfits(strategy: Strategy, model: Checkpoint) -> Iterator[UnfitError]:
    yield from _foreign_ids(strategy, model)
    match strategy:
        case Score():
            yield from _score_misfits(strategy, model)
            return
        case BeamSearch():
            yield from _force_misfits(strategy)
        case Dola():
            yield from _layer_misfits(strategy, model)
    yield from _eos_misfits(strategy, model)
    if len(strategy.negative_prompt_ids) > model.num_positions:
        length = f"has {len(strategy.negative_prompt_ids)} tokens, the context of model `{model.name}`"
        yield UnfitError("negative_prompt", f"`negative_prompt` {length} {model.num_positions}", "Shorten it.")
    phrases = [bias.token_ids for bias in strategy.sequence_bias]
    if twice := [phrase for index, phrase in enumerate(phrases) if phrase in phrases[:index]]:
        what = f"`sequence_bias` has two biases for the same tokens {list(twice[0] or ())}"
        yield UnfitError("sequence_bias", what, "Keep one of them.")


def _foreign_ids(strategy: Strategy, model: Checkpoint) -> Iterator[UnfitError]:
    for key in ID_KEYS:
        value = getattr(strategy, key, None)
        must, does = ("be an id", "is") if isinstance(value, int) else ("hold ids", "holds")
        for token_id in _flat(value):
            if token_id >= model.vocab_size:
                rule = f"`{key}` must {must} below {model.vocab_size}, the vocabulary of model `{model.name}`"
                yield UnfitError(key, f"{rule}, but {does} {token_id}", "Take the ids from the model's own tokenizer.")


def _flat(value: Any) -> Iterator[int]:
    """All ids in a value, however deep."""
    match value:
        case int():
            yield value
        case Bias():
            yield from value.token_ids or ()
        case tuple():
            for item in value:
                yield from _flat(item)


def _score_misfits(strategy: Score, model: Checkpoint) -> Iterator[UnfitError]:
    wants_bos = strategy.target_column is None and strategy.add_bos is not False
    if wants_bos and model.bos_token_id is None:
        what = f"`add_bos` scores a text after the bos_token_id, but model `{model.name}` has none"
        yield UnfitError("add_bos", what, "Set `add_bos: false` to take the first token for given.")


def _force_misfits(strategy: BeamSearch) -> Iterator[UnfitError]:
    """The longest must fit; together they may overlap, so how much room all need is not known before they are found."""
    shortest = [min(map(len, each)) if isinstance(each[0], tuple) else len(each) for each in strategy.force_words_ids]
    key = "max_length" if strategy.max_new_tokens is None else "max_new_tokens"
    limit = strategy.max_new_tokens or (strategy.max_length or 0) - 1  # a prompt has one token at least
    if max(shortest, default=0) > limit:
        what = f"`force_words` needs {max(shortest)} tokens, which `{key}` ({getattr(strategy, key)}) does not allow"
        yield UnfitError("force_words", what, f"Raise `{key}`, or force shorter words.")


def _layer_misfits(strategy: Dola, model: Checkpoint) -> Iterator[UnfitError]:
    for layer in () if isinstance(strategy.dola_layers, str) else strategy.dola_layers:
        if layer >= model.num_layers:
            rule = f"`dola_layers` must hold layers below {model.num_layers}, the last one of model `{model.name}`"
            yield UnfitError(
                "dola_layers", f"{rule}, but holds {layer}", "Take 0 for the embedding, n for the n-th layer."
            )


def _eos_misfits(strategy: Decoding, model: Checkpoint) -> Iterator[UnfitError]:
    if any(phrase == (eos,) for phrase in strategy.bad_words_ids for eos in model.eos_token_ids):
        what = "`bad_words_ids` must not ban the end of text"
        yield UnfitError("bad_words_ids", what, "Use `ignore_eos` to run past it.")
    if strategy.exponential_decay_length_penalty is not None and not model.eos_token_ids:
        key = "exponential_decay_length_penalty"
        what = f"`{key}` raises the score of the end of text, but model `{model.name}` has no eos_token_id"
        yield UnfitError(key, what, "Leave it out.")
