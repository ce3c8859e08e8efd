"""vLLM on CPU: continuous batching, one thread on each core it is given.

Options: `temperature`, 0 for greedy. Nothing is recorded. It compiles the model when it starts, which is not timed.
"""

from __future__ import annotations

import os

from benchmarks.peers.serving import Once, Work, serve

CACHE_GIB = 4


def prepare(work: Work) -> Once:
    """Load the checkpoint; each call generates for all prompts."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler in this process, on these cores
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, work["cores"])),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=work["checkpoint"],
        dtype=work["dtype"],
        skip_tokenizer_init=True,
        max_num_seqs=work["batch"],
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    temperature = work["options"]["temperature"]
    prompts = [{"prompt_token_ids": prompt} for prompt in work["prompts"]]
    params = [
        SamplingParams(temperature=temperature, max_tokens=limit, ignore_eos=True, detokenize=False)
        for limit in work["limits"]
    ]
    return lambda: sum(len(each.outputs[0].token_ids) for each in llm.generate(prompts, params, use_tqdm=False))


if __name__ == "__main__":
    serve(prepare, "torch", "vllm-cpu")
