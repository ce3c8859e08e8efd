"""`transformers.generate` in static batches; a `StoppingCriteria` ends every row at its own limit.

Options: `settings`, arguments of `generate`. It runs under transformers 5 and, for what that dropped, under 4.41.
"""

from __future__ import annotations

from typing import Any

from benchmarks.peers.serving import Once, Work, batches, serve


def prepare(work: Work) -> Once:
    """Load the checkpoint; each call generates for all prompts, in batches."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(len(work["cores"]))
    torch.manual_seed(0)
    model = GPT2LMHeadModel.from_pretrained(work["checkpoint"], use_safetensors=True)
    model = model.to(work["device"], getattr(torch, work["dtype"])).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    calls = [_arguments(work, rows) for rows in batches(work)]

    @torch.inference_mode()
    def once() -> int:
        for arguments in calls:
            model.generate(**arguments, **work["options"]["settings"]).cpu()
        return sum(work["limits"])  # of a batch as long as its longest row, the rest is padding

    return once


def _arguments(work: Work, rows: list[int]) -> dict[str, Any]:
    """Padded on the left, with a mask, and stopped row by row."""
    import torch
    from transformers import StoppingCriteriaList

    prompts, limits = [work["prompts"][row] for row in rows], [work["limits"][row] for row in rows]
    longest = max(map(len, prompts))
    device = work["device"]
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)  # (B, T)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    arguments = {"input_ids": padded, "attention_mask": mask, "max_new_tokens": max(limits)}
    if len({*limits}) == 1:
        return arguments
    ends = torch.tensor([longest + limit for limit in limits], device=device)

    def is_done(token_ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        return token_ids.shape[1] >= ends

    return {**arguments, "stopping_criteria": StoppingCriteriaList([is_done])}


if __name__ == "__main__":
    serve(prepare, "torch", "transformers")
