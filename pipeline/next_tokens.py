"""What may come next: the most probable next tokens of a few prompts, and how the distribution moves between prompts.

Prompts in, exact values out, in this process and without Ray; `next_screen` shows them. It is for people who look: to
have the candidates of many prompts, run a job with a `next_token` strategy. All probabilities are raw.

Shape letters: V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline import checkpoint
from pipeline.errors import InputError
from pipeline.tokenizer import Tokenizer

MAX_PROMPTS = 64

Logprobs = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may come next.

    Attributes:
        token_id: its id.
        token: as the tokenizer prints it; None for a row of the embedding that the tokenizer does not know.
        token_bytes: what it adds to a text; b"" for special tokens.
        rank: from 1; equal probabilities rank by token id.
        logprob: in nats.
    """

    token_id: int
    token: str | None
    token_bytes: bytes
    rank: int
    logprob: float

    @property
    def prob(self) -> float:
        """Its probability, 0..1."""
        return math.exp(self.logprob)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What may follow one prompt: `candidates` best first, `entropy` of the whole distribution in nats."""

    prompt: str
    prompt_token_ids: tuple[int, ...]
    entropy: float
    candidates: tuple[Candidate, ...]


class Shared(NamedTuple):
    """A token that is a candidate after two prompts."""

    before: Candidate
    after: Candidate

    @property
    def change(self) -> float:
        """Probability gained from the first prompt to the second, -1..1."""
        return self.after.prob - self.before.prob


@dataclass(frozen=True, slots=True)
class Shift:
    """How the distribution moves from one prompt to another. Divergences are over the whole vocabulary, in nats.

    Attributes:
        first, second: numbers of the prompts, from 1.
        kl_first_second: KL(first || second), the sum of p_first * ln(p_first / p_second).
        kl_second_first: KL(second || first).
        js: Jensen-Shannon divergence, 0..ln 2: the mean of both KL divergences to the mean distribution.
        shared: candidates of both, by their rank after the first.
    """

    first: int
    second: int
    kl_first_second: float
    kl_second_first: float
    js: float
    shared: tuple[Shared, ...]


@dataclass(frozen=True, slots=True)
class NextTokens:
    """The answer: a prediction per prompt, and a shift from the first prompt to each other one."""

    model: str
    model_commit: str
    dtype: str
    vocab_size: int
    predictions: tuple[Prediction, ...]
    shifts: tuple[Shift, ...]


def next_tokens(prompts: Sequence[str | tuple[int, ...]], *, model: str, dtype: str, k: int) -> NextTokens:
    """The k most probable next tokens of each prompt.

    Args:
        prompts: texts or token ids.
        model, dtype: as in a job file.
        k: candidates per prompt; more than the vocabulary means all of it.

    Raises:
        InputError: no prompts, too many, or one that the model cannot take.
        ModelError: the model cannot be found or used.
    """
    _check_number(len(prompts))
    found = checkpoint.inspect(model)
    tokenizer = Tokenizer(found.folder, found.vocab_size)
    token_ids = to_token_ids(prompts, tokenizer, found)
    logprobs = _logprobs(found, dtype, token_ids)
    predictions = tuple(predict(ids, row, tokenizer, k) for ids, row in zip(token_ids, logprobs, strict=True))
    shifts = tuple(shift((1, n), predictions, logprobs) for n in range(2, len(prompts) + 1))
    return NextTokens(found.name, found.commit, dtype, found.vocab_size, predictions, shifts)


def parse_ids(text: str) -> tuple[int, ...]:
    """Token ids written with blanks or commas between.

    Raises:
        InputError: a word is not a whole number.
    """
    words = text.replace(",", " ").split()
    for word in words:
        if not re.fullmatch("[0-9]{1,9}", word):
            raise InputError(
                f"--ids must be token ids, but has {word[:40]!r}.", 'Write them as in --ids "40 14267 1973 262".'
            )
    return tuple(map(int, words))


def to_token_ids(
    prompts: Sequence[str | tuple[int, ...]], tokenizer: Tokenizer, found: checkpoint.Checkpoint
) -> list[tuple[int, ...]]:
    """Token ids of each prompt.

    Raises:
        InputError: a prompt is empty, too long, not Unicode, or has an id outside the vocabulary.
    """
    token_ids = []
    for number, prompt in enumerate(prompts, start=1):
        ids = prompt if isinstance(prompt, tuple) else _encoded(number, prompt, tokenizer)
        _check(number, ids, found)
        token_ids.append(ids)
    return token_ids


def predict(token_ids: tuple[int, ...], logprobs: Logprobs, tokenizer: Tokenizer, k: int) -> Prediction:
    """What a distribution over the next token, (V,), says of a prompt."""
    best = np.argsort(-logprobs, kind="stable")[:k].tolist()  # stable: ties by lower token id
    return Prediction(
        prompt=tokenizer.decode(token_ids),
        prompt_token_ids=token_ids,
        entropy=float(-(np.exp(logprobs) * logprobs).sum()),
        candidates=tuple(
            Candidate(
                token_id, tokenizer.tokens[token_id], tokenizer.token_bytes[token_id], rank, float(logprobs[token_id])
            )
            for rank, token_id in enumerate(best, start=1)
        ),
    )


def shift(numbers: tuple[int, int], predictions: Sequence[Prediction], logprobs: Logprobs) -> Shift:
    """How the distribution moves between the prompts with these numbers."""
    before, after = (predictions[number - 1].candidates for number in numbers)
    p, q = (logprobs[number - 1] for number in numbers)
    by_id = {candidate.token_id: candidate for candidate in after}
    return Shift(
        *numbers,
        kl_first_second=kl(p, q),
        kl_second_first=kl(q, p),
        js=js(p, q),
        shared=tuple(Shared(one, by_id[one.token_id]) for one in before if one.token_id in by_id),
    )


def kl(p: Logprobs, q: Logprobs) -> float:
    """KL(p || q) in nats of two distributions given by their finite log-probabilities, (V,) each."""
    return max(0.0, float((np.exp(p) * (p - q)).sum()))  # rounding may leave a little below 0


def js(p: Logprobs, q: Logprobs) -> float:
    """Jensen-Shannon divergence in nats, 0..ln 2 (Lin 1991); arguments as for `kl`."""
    middle = np.logaddexp(p, q) - math.log(2)
    return (kl(p, middle) + kl(q, middle)) / 2


def to_document(answer: NextTokens) -> dict[str, Any]:
    """The answer as JSON values, exact."""
    return {
        "schema": 1,
        "model": {"name": answer.model, "commit": answer.model_commit, "dtype": answer.dtype},
        "vocab_size": answer.vocab_size,
        "predictions": [
            {
                "prompt": prediction.prompt,
                "prompt_token_ids": list(prediction.prompt_token_ids),
                "entropy": prediction.entropy,
                "candidates": [_token(one) | _place(one) for one in prediction.candidates],
            }
            for prediction in answer.predictions
        ],
        "shifts": [
            {
                "first": shift.first,
                "second": shift.second,
                "kl_first_second": shift.kl_first_second,
                "kl_second_first": shift.kl_second_first,
                "js": shift.js,
                "shared": [
                    _token(one.before)
                    | {"first": _place(one.before), "second": _place(one.after), "change": one.change}
                    for one in shift.shared
                ],
            }
            for shift in answer.shifts
        ],
    }


def _token(candidate: Candidate) -> dict[str, Any]:
    text = candidate.token_bytes.decode("utf-8", "replace")
    return {"token_id": candidate.token_id, "token": candidate.token, "text": text, "bytes": [*candidate.token_bytes]}


def _place(candidate: Candidate) -> dict[str, Any]:
    return {"rank": candidate.rank, "prob": candidate.prob, "logprob": candidate.logprob}


def _check_number(num_prompts: int) -> None:
    if num_prompts == 0:
        raise InputError("there is no prompt.", 'Give one, as in `batchgen next "I skip across the"`.')
    if num_prompts > MAX_PROMPTS:
        raise InputError(
            f"at most {MAX_PROMPTS} prompts can be compared, but {num_prompts} are given.",
            "Give fewer; for the candidates of many prompts, run a job with a strategy of `type: next_token`.",
        )


def _encoded(number: int, prompt: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"prompt {number} is not valid Unicode: its character {error.start + 1} is {prompt[error.start]!a}, "
            "half of a pair or a byte that is not UTF-8.",
            "Write it in UTF-8, or give token ids with --ids.",
        ) from error
    return tuple(tokenizer.encode([prompt])[0])


def _check(number: int, token_ids: tuple[int, ...], found: checkpoint.Checkpoint) -> None:
    if not token_ids:
        begin = "" if found.bos_token_id is None else f"; for what a text begins with, --ids {found.bos_token_id}"
        raise InputError(f"prompt {number} is empty; it must have at least one token.", f"Give it a text{begin}.")
    if len(token_ids) > found.num_positions:
        raise InputError(
            f"prompt {number} has {len(token_ids)} tokens, but the model `{found.name}` reads at most "
            f"{found.num_positions}.",
            "Shorten it.",
        )
    wrong = [token_id for token_id in token_ids if token_id >= found.vocab_size]
    if wrong:
        raise InputError(
            f"prompt {number} has token id {wrong[0]}, but the model `{found.name}` knows only 0 to "
            f"{found.vocab_size - 1}.",
            "Give ids of this model, or its name with --model.",
        )


def _logprobs(found: checkpoint.Checkpoint, dtype: str, token_ids: Sequence[tuple[int, ...]]) -> Logprobs:
    """Log-probabilities of all next tokens, (prompts, V), on the GPU if there is one."""
    import torch

    from pipeline.engine import load_model
    from pipeline.engine.distribution import next_token_logprobs

    torch.set_float32_matmul_precision("highest")  # whatever the environment says: TF32 is not exact
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return next_token_logprobs(load_model(str(found.folder), dtype, device), token_ids)
