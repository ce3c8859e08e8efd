"""`transformers.generate` on one prompt under a strategy of ours, drawing with the noise that we draw with.

What is settled here is how our keys are spelled there. What transformers does otherwise on purpose is for the tests to
leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

from pipeline.strategies import SAMPLERS, BeamSearch, Sampling
from tests.naive import Naive
from tests.naive.processors import allowed_tokens
from tests.naive.values import Noise

SAME = (
    "guidance_scale",
    "encoder_repetition_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)
BEAMS = ("num_beams", "num_return_sequences", "length_penalty", "early_stopping", "do_sample")


class Draw(LogitsProcessor):
    """The last of the processors: leaves the token that a Gumbel draw takes, and notes what it was drawn from."""

    def __init__(self, noise: Noise, num_prompt_tokens: int) -> None:
        self.noise, self.num_prompt_tokens = noise, num_prompt_tokens
        self.logprobs: list[torch.Tensor] = []  # of each step, (V,)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logprobs = scores[0].double().log_softmax(-1)
        step = input_ids.shape[1] - self.num_prompt_tokens
        noise = torch.tensor([self.noise(step, 0, token) for token in range(len(logprobs))], dtype=torch.float64)
        self.logprobs.append(logprobs)
        only = torch.full_like(scores, -torch.inf)
        only[0, (logprobs + noise).argmax()] = 0.0
        return only


class DrawingGPT2(GPT2LMHeadModel):  # type: ignore[misc]
    """A model whose samples and beams draw by Gumbel-max and Gumbel-top-k where transformers would by multinomial."""

    noise: Noise | None = None
    drawn: Draw | None = None

    def _get_logits_processor(self, *args: Any, **values: Any) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **values)
        return processors if self.drawn is None else LogitsProcessorList([*processors, self.drawn])

    def _get_top_k_continuations(self, accumulated_log_probs: torch.Tensor, **values: Any) -> tuple[torch.Tensor, ...]:
        if self.noise is None:
            return super()._get_top_k_continuations(accumulated_log_probs=accumulated_log_probs, **values)
        step = values["cur_len"] - values["decoder_prompt_len"]
        size = accumulated_log_probs.shape[1] // values["num_beams"]
        noise = [self.noise(step, beam, token) for beam in range(values["num_beams"]) for token in range(size)]
        _, rows, beams = super()._get_top_k_continuations(
            accumulated_log_probs=accumulated_log_probs + torch.tensor([noise]), **values | {"do_sample": False}
        )
        drawn = beams[:, :, step] * size + rows[:, :, values["cur_len"]]
        return accumulated_log_probs.gather(1, drawn), rows, beams


def drawing(model: GPT2LMHeadModel) -> DrawingGPT2:
    """A copy of the model that can be told its noise."""
    copy = DrawingGPT2(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy


def generate(model: DrawingGPT2, naive: Naive[Any]) -> tuple[Any, Draw | None]:
    """What transformers makes of the problem, and, of a sample, what its tokens were drawn from."""
    strategy, prompt = naive.strategy, torch.tensor([naive.prompt])
    model.noise = naive.noise if isinstance(strategy, BeamSearch) and strategy.do_sample else None
    model.drawn = (
        Draw(naive.noise, prompt.shape[1]) if isinstance(strategy, Sampling) and naive.noise is not None else None
    )
    with torch.inference_mode():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            eos_token_id=naive.stop_tokens or [-1],
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            max_new_tokens=naive.limit,
            **settings(naive),
        )
    return output, model.drawn


def settings(naive: Naive[Any]) -> dict[str, Any]:
    """The strategy's settings as arguments of `generate`."""
    strategy = naive.strategy
    values = {key: _plain(getattr(strategy, key)) for key in SAME if getattr(strategy, key) not in (None, ())}
    if strategy.sequence_bias:
        values["sequence_bias"] = [[list(one.token_ids or ()), one.bias] for one in strategy.sequence_bias]
    if strategy.bad_words_ids:
        values["bad_words_ids"] = [list(phrase) for phrase in strategy.bad_words_ids]
    if strategy.exponential_decay_length_penalty:
        start, factor = strategy.exponential_decay_length_penalty
        values["exponential_decay_length_penalty"] = (int(start), factor)
    if strategy.negative_prompt_ids and naive.is_guided:
        values["negative_prompt_ids"] = torch.tensor([strategy.negative_prompt_ids])
    if strategy.allowed_words_ids:
        values["prefix_allowed_tokens_fn"] = prefix_function(naive)
    return {"do_sample": False} | values | _own(strategy)


def _own(strategy: Any) -> dict[str, Any]:
    beams = {key: getattr(strategy, key) for key in BEAMS} if isinstance(strategy, BeamSearch) else {}
    if not isinstance(strategy, Sampling) and not beams.get("do_sample"):
        return beams
    samplers = {key: getattr(strategy, key) for key in SAMPLERS if getattr(strategy, key) is not None}
    return beams | {"do_sample": True, "top_k": 0} | samplers


def prefix_function(naive: Naive[Any]) -> Callable[[int, torch.Tensor], Sequence[int]]:
    """Allowed words as a function of the row; a row that has ended may have any one token."""

    def allowed(_row: int, tokens: torch.Tensor) -> Sequence[int]:
        return allowed_tokens(naive, tokens.tolist()[len(naive.prompt) :]) or [0]

    return allowed


def completion(output: Any, row: int, naive: Naive[Any]) -> list[int]:
    """Tokens of a row up to and with its end."""
    tokens = output.sequences[row, len(naive.prompt) :].tolist()
    ends = [place for place, token in enumerate(tokens) if token in naive.stop_tokens]
    return tokens[: ends[0] + 1] if ends else tokens


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
