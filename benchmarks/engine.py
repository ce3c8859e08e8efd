"""The engine against `transformers.generate`: same random GPT-2, same prompts, greedy, the same number of tokens.

    python -m benchmarks.engine [--rows 32] [--prompt-tokens 32] [--new-tokens 32] [--dtype float32] [--pairs 5]

Prompts have one length, so that transformers needs no padding, and no token ends a row: this is its best case. The
engine records `top_k` alternatives, log-probabilities, ranks and entropies at every step; transformers records nothing.
Both share one set of weights, run on one torch thread, and are warmed up. Timings alternate, first one then the other,
and the ratio is taken within a pair, because speed drifts on a machine that others use too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.machine import machine, write_result
from pipeline.engine import GPT2, Engine
from pipeline.records import Request, Response, RowError
from pipeline.strategies import Greedy

SEED = 0
NUM_THREADS = 1

Generate = Callable[[], Tensor]


def random_gpt2(dtype: str) -> GPT2LMHeadModel:
    """GPT-2 124M with random weights; no token ends its texts."""
    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(GPT2Config()).to(getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def ours(model: GPT2LMHeadModel, prompts: Tensor, new_tokens: int, top_k: int) -> Generate:
    """The engine on these prompts, (B, T); gives the new tokens, (B, S)."""
    engine = Engine(GPT2(model), eos_token_ids=(), token_bytes=[], num_alternatives=top_k, max_slots=len(prompts))
    strategy = Greedy(name="greedy", type="greedy", max_new_tokens=new_tokens)
    requests = [Request(tuple(prompt), strategy, (0,)) for prompt in prompts.tolist()]

    def generate() -> Tensor:
        return torch.tensor([_token_ids(response) for response in engine.generate(requests)])

    return generate


def _token_ids(response: Response) -> list[int]:
    assert not isinstance(response.completions, RowError), response.completions
    token_ids: list[int] = response.completions[0].token_ids.tolist()
    return token_ids


def theirs(model: GPT2LMHeadModel, prompts: Tensor, new_tokens: int) -> Generate:
    """`transformers.generate` on the same."""
    limits = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}

    @torch.inference_mode()
    def generate() -> Tensor:
        token_ids: Tensor = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, num_beams=1, **limits
        )
        return token_ids[:, prompts.shape[1] :]

    return generate


def seconds(generate: Generate, name: str) -> dict[str, float]:
    """Of one call: on the clock, and of CPU, which others on the machine disturb less."""
    start, cpu_start = time.perf_counter(), time.process_time()
    generate()
    taken, cpu_taken = time.perf_counter() - start, time.process_time() - cpu_start
    return {f"{name}_s": round(taken, 4), f"{name}_cpu_s": round(cpu_taken, 4)}


def alternate(engine: Generate, transformers: Generate, pairs: int) -> list[dict[str, float]]:
    """Time both in turn; who goes first changes from pair to pair."""
    order = [(engine, "engine"), (transformers, "transformers")]
    timings = []
    for _ in range(pairs):
        timings.append({key: value for each in order for key, value in seconds(*each).items()})
        order.reverse()
    return timings


def agreement(left: Tensor, right: Tensor) -> dict[str, float]:
    """Shares of rows and of tokens, (B, S), that agree; after its first other token a row goes its own way."""
    same = left == right
    return {"tokens": round(same.float().mean().item(), 5), "rows": round(same.all(-1).float().mean().item(), 5)}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Warm up, compare, time."""
    torch.set_num_threads(NUM_THREADS)
    conditions = machine()
    model = random_gpt2(arguments.dtype)
    shape = (arguments.rows, arguments.prompt_tokens)
    prompts = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(SEED))
    engine = ours(model, prompts, arguments.new_tokens, arguments.top_k)
    transformers = theirs(model, prompts, arguments.new_tokens)
    agree = agreement(engine(), transformers())  # also the warm-up
    timings = alternate(engine, transformers, arguments.pairs)
    return {
        "machine": conditions | {"threads": NUM_THREADS},
        "model": "GPT-2 124M architecture, random weights",
        "dtype": arguments.dtype,
        "rows": arguments.rows,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "recorded_top_k": arguments.top_k,
        "seed": SEED,
        "agreement": agree,
        **summary(timings, arguments.rows * arguments.new_tokens),
        "pairs": timings,
    }


def summary(timings: Sequence[dict[str, float]], num_tokens: int) -> dict[str, Any]:
    """Medians over the pairs: tokens per second of each, and the ratio within a pair, above 1 where we are faster."""
    return {
        "engine_tokens_per_s": round(num_tokens / median(pair["engine_s"] for pair in timings), 1),
        "transformers_tokens_per_s": round(num_tokens / median(pair["transformers_s"] for pair in timings), 1),
        "ratio": _spread([pair["transformers_s"] / pair["engine_s"] for pair in timings]),
        "cpu_ratio": _spread([pair["transformers_cpu_s"] / pair["engine_cpu_s"] for pair in timings]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description="New tokens per second of the engine and of transformers.generate.")
    parser.add_argument("--rows", type=int, default=32, help="batch size")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--top-k", type=int, default=10, help="alternatives the engine records per step")
    result = measure(parser.parse_args())
    for pair in result["pairs"]:
        print("   ".join(f"{key} {value:.2f}" for key, value in sorted(pair.items())))
    print(f"engine        {result['engine_tokens_per_s']:8.1f} tokens/s, top {result['recorded_top_k']} recorded")
    print(f"transformers  {result['transformers_tokens_per_s']:8.1f} tokens/s")
    for name in ("ratio", "cpu_ratio"):
        ratio = result[name]
        print(f"{name:13} {ratio['median']:8.2f}  ({ratio['min']:.2f} to {ratio['max']:.2f} over the pairs)")
    print(f"agree         {result['agreement']['tokens']:8.2%} of tokens, {result['agreement']['rows']:.2%} of rows")
    print(write_result(f"engine-{result['dtype']}", result))


if __name__ == "__main__":
    main()
