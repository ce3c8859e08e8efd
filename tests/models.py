"""Small random GPT-2 models and engines over them."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.engine import GPT2, Engine


def random_model(
    *, vocab_size: int = 60, spread: float = 0.4, layers: int = 2, width: int = 32, positions: int = 64, seed: int = 0
) -> GPT2LMHeadModel:
    """A random checkpoint in eval mode. `spread` is the weights' standard deviation; more of it gives sharper
    distributions, so that decoding has something to decide."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        initializer_range=spread,
        bos_token_id=5,
        eos_token_id=5,
    )
    return GPT2LMHeadModel(config).eval()


def engine_for(model: GPT2LMHeadModel, *, eos: int = 5, num_alternatives: int = 5, **settings: Any) -> Engine:
    """An engine over a transformers model; token i prints as the character with code 32 + i % 90."""
    return Engine(
        GPT2(model),
        eos_token_ids=(eos,),
        token_bytes=token_bytes(model.config.vocab_size),
        num_alternatives=num_alternatives,
        **settings,
    )


def token_bytes(vocab_size: int) -> list[bytes]:
    """What the tokens print as."""
    return [bytes([32 + i % 90]) for i in range(vocab_size)]


def uneven_prompts(count: int, *, vocab_size: int, longest: int = 20, seed: int = 0) -> list[tuple[int, ...]]:
    """Random prompts of 1 to `longest` tokens."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(vocab_size) for _ in range(rng.randint(1, longest))) for _ in range(count)]
