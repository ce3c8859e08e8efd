"""An example of every key of the job file that is not a choice, for editors to offer: the JSON Schema has them.

Keys of sections are named with their section, keys of strategies alone.
"""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, list[Any]] = {
    "model": ["demo", "openai-community/gpt2", "checkpoints/mine"],
    "model.name": ["demo", "openai-community/gpt2", "checkpoints/mine"],
    "model.revision": ["main", "607a30d783dfa663caf39e06633721c8d4cfcd7e"],
    "input.path": ["prompts.parquet", "data/*.jsonl", ["a.csv", "b.csv"], "s3://bucket/in", "hf://user/set"],
    "input.id_column": ["id"],
    "input.prompt_column": ["prompt"],
    "input.prompt_template": ["Q: {question}\nA:"],
    "input.token_ids_column": ["input_ids"],
    "input.keep_columns": [["topic", "source"]],
    "output.path": ["out/mine", "s3://bucket/out", "gs://bucket/out", "az://container/out"],
    "output.top_k": [10, 0],
    "strategies": [[{"name": "greedy", "type": "greedy", "max_new_tokens": 40}]],
    "strategy_columns": [{"max_new_tokens": "limit", "seed": "seed"}],
    "seed": [0, 70],
    "run.replicas": ["auto", 4, {"min": 1, "max": 4}],
    "run.replicas.max": [4],
    "run.replicas.min": [1],
    "run.gpus_per_replica": ["auto", 0.5, 1],
    "run.accelerator_type": ["L4", "A100"],
    "run.label_selector": [{"ray.io/market-type": "spot"}],
    "run.shard_rows": ["auto", 1024],
    "run.batch_rows": [128, 512],
    "run.cache_gib": [2.0, 16.0],
    "run.max_error_rate": [0.05, 0.0],
    "run.grace_s": [25, 110],
    "name": ["greedy", "nucleus"],
    "guidance_scale": [1.5],
    "negative_prompt": ["It was a sad day."],
    "negative_prompt_ids": [[40, 294]],
    "sequence_bias": [[{"text": " castle", "bias": 2.0}]],
    "sequence_bias.text": [" castle"],
    "sequence_bias.token_ids": [[40, 294]],
    "sequence_bias.bias": [2.0, -5.0],
    "encoder_repetition_penalty": [1.2],
    "repetition_penalty": [1.2],
    "frequency_penalty": [0.5],
    "presence_penalty": [0.5],
    "no_repeat_ngram_size": [3],
    "bad_words": [["street"]],
    "bad_words_ids": [[[374]]],
    "min_new_tokens": [5],
    "allowed_words": [["yes", "no"]],
    "allowed_words_ids": [[[374], [417]]],
    "forced_bos_token_id": [40],
    "forced_eos_token_id": [50256],
    "exponential_decay_length_penalty": [[20, 1.1]],
    "suppress_tokens": [[374]],
    "begin_suppress_tokens": [[220, 50256]],
    "stop_strings": [["\n", "."]],
    "stop_token_ids": [[13]],
    "max_new_tokens": [40],
    "max_length": [128],
    "temperature": [0.8],
    "top_h": [0.4],
    "top_k": [50],
    "top_p": [0.95],
    "min_p": [0.05],
    "typical_p": [0.9],
    "epsilon_cutoff": [0.0003],
    "eta_cutoff": [0.0003],
    "num_return_sequences": [1, 4],
    "num_beams": [5],
    "length_penalty": [1.0, 0.6],
    "num_beam_groups": [2],
    "diversity_penalty": [1.0],
    "force_words": [["castle", ["river", "sea"]]],
    "force_words_ids": [[[374], [[417], [501]]]],
    "penalty_alpha": [0.6],
    "dola_layers": ["low", [0, 2]],
    "target_column": ["answer"],
}


def add_examples(properties: dict[str, Any], section: str = "") -> None:
    """Put examples into the rules for these keys, and for those inside them."""
    for key, rules in properties.items():
        name = f"{section}{key}"
        if name in EXAMPLES:
            rules["examples"] = EXAMPLES[name]
        for inside in (rules, rules.get("items", {}), *rules.get("anyOf", [])):
            if isinstance(inside, dict) and key not in ("grid", "strategy_columns", "strategies"):
                add_examples(inside.get("properties", {}), f"{name}.")
        for kind in rules.get("items", {}).get("allOf", []) if key == "strategies" else ():
            add_examples(kind["then"]["properties"])
