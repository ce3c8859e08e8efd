"""Run by the environment of `make oracle`: `generate` of a transformers that still has the strategies, JSON in and out.

In: {"checkpoint": folder, "cases": [{"prompt": token ids, "settings": arguments of generate}]} on stdin.
Out: per case {"token_ids": completion per returned row, padding included, "scores": of the rows, for beams}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from transformers import GPT2LMHeadModel


def answer(model: GPT2LMHeadModel, prompt: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    scores = getattr(output, "sequences_scores", None)
    return {
        "token_ids": output.sequences[:, len(prompt) :].tolist(),
        "scores": None if scores is None else scores.tolist(),
    }


def main() -> None:
    asked = json.load(sys.stdin)
    torch.set_num_threads(1)
    model = GPT2LMHeadModel.from_pretrained(asked["checkpoint"], use_safetensors=True).eval()
    with torch.inference_mode():
        json.dump([answer(model, case["prompt"], case["settings"]) for case in asked["cases"]], sys.stdout)


if __name__ == "__main__":
    main()
