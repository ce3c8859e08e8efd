"""The limit that the machine sets: a job's matrix products and nothing else.

Every linear layer of GPT-2 with weights of its own, the head included: prompts together in large pieces, then decode
steps of a full batch until every new token is paid for. No attention, no norms, no choice of tokens. "packed" is the
engine's own way, the fastest known: its kernels, or oneDNN where they are off; "linear" is `F.linear` on plain weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.serving import Once, Work, serve

if TYPE_CHECKING:
    from torch import Tensor

LINEAR, PACKED = "linear", "packed"
PREFILL_ROWS = {"cpu": 512, "cuda": 8192}  # the rate is flat from here on

Layer = Callable[["Tensor"], object]


def prepare(work: Work) -> Once:
    """Lay out random weights of the checkpoint's shape; each call multiplies what the job needs."""
    import torch

    from pipeline.engine import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(len(work["cores"]))
    config = json.loads((Path(work["checkpoint"]) / "config.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, work["dtype"])
    device = work["device"]
    blocks, head = linears(config, dtype, PACKED if device == "cpu" else LINEAR, device)
    rows = max(PREFILL_ROWS[device], work["batch"])
    inputs = {width: torch.randn(rows, width).to(device, dtype) for width, _ in {*shapes(config)}}

    def multiply(rows: int, num_heads: int) -> None:
        for width, layer in blocks if rows else ():
            layer(inputs[width][:rows])
        if num_heads:
            head(inputs[config["n_embd"]][:num_heads])

    @cache
    def forward(rows: int, num_heads: int) -> Callable[[], None]:
        """On a GPU a graph, so that its host is not the limit."""
        if device == "cpu":
            return partial(multiply, rows, num_heads)
        multiply(rows, num_heads)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            multiply(rows, num_heads)
        return graph.replay

    @torch.inference_mode()
    def once() -> int:
        for rows, num_heads in products(work):
            forward(rows, num_heads)()
        if device != "cpu":
            torch.cuda.synchronize()
        return sum(work["limits"])

    return once


def products(work: Work) -> list[tuple[int, int]]:
    """Rows that go through the blocks, and of those through the head, one forward after another."""
    batch = min(work["batch"], len(work["prompts"]))
    prompt_tokens = sum(map(len, work["prompts"]))
    most = PREFILL_ROWS[work["device"]]
    pieces = [min(most, prompt_tokens - start) for start in range(0, prompt_tokens, most)]
    firsts = [min(batch, len(work["prompts"]) - start) for start in range(0, len(work["prompts"]), batch)]
    left = sum(work["limits"]) - len(work["limits"])  # the first token of a row comes of its prompt
    steps = [min(batch, left - start) for start in range(0, left, batch)]
    return [(rows, 0) for rows in pieces] + [(0, rows) for rows in firsts] + [(rows, rows) for rows in steps]


def shapes(config: dict[str, Any]) -> list[tuple[int, int]]:
    """(in, out) of the four linear layers of a block."""
    width = config["n_embd"]
    return [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]


def linears(config: dict[str, Any], dtype: Any, way: str, device: str = "cpu") -> tuple[list[tuple[int, Layer]], Layer]:
    """Every layer with the width it takes, and the head."""
    import torch
    import torch.nn.functional as F

    from pipeline.engine.linear import Shelf, linear

    shelf = Shelf()

    def layer(fan_in: int, fan_out: int) -> Layer:
        weight = torch.randn(fan_out, fan_in).to(device, dtype)
        return linear(weight, None, shelf=shelf) if way == PACKED else lambda x: F.linear(x, weight)

    blocks = [(fan_in, layer(fan_in, out)) for _ in range(config["n_layer"]) for fan_in, out in shapes(config)]
    return blocks, layer(config["n_embd"], config["vocab_size"])


if __name__ == "__main__":
    serve(prepare, "torch")
