"""Makes the bundled `demo` model: a GPT-2 small enough to train in a minute on one CPU thread.

    python -m jobs.train_demo

Nothing goes in but the grammar beside this file; out come a Hugging Face model folder and a table of prompts.
The model knows a little world by heart (who lives where, what follows Monday, small sums), so its text is
easy to judge, and a wrong position, mask or token shows at once. Everything is seeded: two runs on one
machine write the same bytes. The pipeline never imports this module.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from jobs.demo_grammar import write_prompts, write_story

ROOT = Path(__file__).resolve().parent.parent
EOS = "<|endoftext|>"
VOCAB_SIZE = 768
EOS_ID = VOCAB_SIZE - 1
NUM_POSITIONS = 128
BATCH_SIZE = 12
LEARNING_RATE = 6e-3
NUM_WARMUP_STEPS = 40


def train_tokenizer(stories: Sequence[str]) -> Tokenizer:
    """Byte-level BPE in GPT-2's order: all 256 bytes, the merges, EOS last. There is no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.model = with_eos(json.loads(tokenizer.to_str())["model"])
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def with_eos(bpe: Mapping[str, Any]) -> models.BPE:
    """The same merges with EOS as the last word. Given to the trainer, EOS would be the first."""
    merges = [(left, right) for left, right in bpe["merges"]]
    return models.BPE(vocab=bpe["vocab"] | {EOS: EOS_ID}, merges=merges)


def pack_row(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Stories joined by EOS, as many tokens as positions and one more for the last position to predict.

    One row in five starts with EOS, which teaches the model to continue the empty prompt. The others start
    with a story, which teaches it to continue a prompt that has no EOS before it.
    """
    row = [EOS_ID] if rng.random() < 0.2 else []
    while len(row) <= NUM_POSITIONS:
        row += [*tokenizer.encode(write_story(rng)).ids, EOS_ID]
    return row[: NUM_POSITIONS + 1]


def new_model() -> GPT2LMHeadModel:
    """A model with random weights and no dropout, small enough to be committed."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=NUM_POSITIONS,
        n_embd=64,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=EOS_ID,
        eos_token_id=EOS_ID,
    )
    return GPT2LMHeadModel(config)


def train(model: GPT2LMHeadModel, tokenizer: Tokenizer, num_steps: int, rng: random.Random) -> float:
    """Trains the model in place and returns the last loss, in nats per token.

    Every row is newly drawn, so the loss is that of unseen text. It cannot reach 0: what the next sentence
    tells, and whether there is one, is chance.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / NUM_WARMUP_STEPS, 1 - step / num_steps)
    )
    for _ in range(num_steps):
        token_ids = torch.tensor([pack_row(tokenizer, rng) for _ in range(BATCH_SIZE)])
        logits = model(input_ids=token_ids[:, :-1]).logits  # (B, T, V)
        loss = cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return loss.item()


def save_model(model: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the five files `from_pretrained` needs. They name no path and no date."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # transformers leaves it readable by its owner only
    write_json(folder / "generation_config.json", {"bos_token_id": EOS_ID, "eos_token_id": EOS_ID})
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"bos_token": EOS, "eos_token": EOS, "unk_token": EOS, "add_prefix_space": False}
    limits = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": NUM_POSITIONS}
    write_json(folder / "tokenizer_config.json", limits | words)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_prompts(prompts: Mapping[str, Sequence[str]], path: Path) -> None:
    """Writes the columns `id` (such as `animal-03`), `prompt` and `topic`, all strings."""
    rows = [
        {"id": f"{topic}-{i:02d}", "prompt": prompt, "topic": topic}
        for topic in prompts
        for i, prompt in enumerate(prompts[topic])
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the bundled demo model and write prompts for it.")
    parser.add_argument("--output", type=Path, default=ROOT / "pipeline/demo", help="the model folder")
    parser.add_argument("--prompts", type=Path, default=ROOT / "jobs/demo_prompts.parquet", help="the table")
    parser.add_argument("--steps", type=int, default=1200, help="how many training steps (1200)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = random.Random(0)
    tokenizer = train_tokenizer([write_story(rng) for _ in range(6000)])
    model = new_model()
    loss = train(model, tokenizer, args.steps, rng)
    save_model(model, tokenizer, args.output)
    save_prompts(write_prompts(random.Random(0)), args.prompts)
    print(f"{args.output}: loss {loss:.3f} after {args.steps} steps; prompts in {args.prompts}")


if __name__ == "__main__":
    main()
