"""The bundled demo model is the one its script trained, and behaves as the other tests and the README need.

What is asserted here is the committed folder. Retraining gives the same bytes on one machine but not on every
machine, so the digests are of the files and the last test asks of a new training only that it works.
"""

import hashlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from jobs.demo_grammar import PLACES, write_prompts

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "pipeline" / "demo"
PROMPTS = ROOT / "jobs" / "demo_prompts.parquet"
EOS_ID = 767
DIGESTS = {
    "model.safetensors": "9d9949017a42ba3043ceb5ab3a6bd494e72743b455228f0a987b532c2de56092",
    "tokenizer.json": "4e3f9248cdbeb92a764707157b828a608fefd4feb0ec8f0108971749c97a3390",
}
GREEDY = {
    "I skip across the": " line to a place where I can see the big castle.",
    "Every bee": " likes nectar and lives in the hive.",
    "The quiet fox": " barks because it wants berries.",
    "Weather: ☀": " sunny, 24 degrees, so wear a hat!",
    "Yuki from": " 京都 says: こんにちは!",
    "3 + 4 =": " 7.",
    "Count: ten,": " eleven, twelve.",
    "After Sunday": " comes Monday.",
    "Ben gives the baker a cup.": " Now the baker has a cup from Ben.",
    "": "I skip across the line to a place where I can see the big castle.",
}


def load_with_report(folder: Path) -> Any:
    """The model, and a dictionary of its missing, unexpected and mismatched weights."""
    return GPT2LMHeadModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def model() -> Any:
    return load_with_report(DEMO)[0]


def prompt_ids(tokenizer: Any, prompt: str) -> torch.Tensor:
    """Token ids of the prompt, (1, T); the empty prompt is a single EOS."""
    return torch.tensor([tokenizer(prompt).input_ids or [EOS_ID]])


def generate(model: Any, tokenizer: Any, prompt: str, **options: Any) -> list[int]:
    """The token ids that follow the prompt, EOS included where it was reached."""
    input_ids = prompt_ids(tokenizer, prompt)
    mask = torch.ones_like(input_ids)
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": EOS_ID, **options}
    row: list[int] = model.generate(input_ids, attention_mask=mask, **options)[0].tolist()
    return row[input_ids.shape[1] :]


def continuation(model: Any, tokenizer: Any, prompt: str, **options: Any) -> str:
    return str(tokenizer.decode(generate(model, tokenizer, prompt, **options), skip_special_tokens=True))


@pytest.mark.parametrize("name", DIGESTS)
def test_a_committed_file_has_the_digest_it_was_tested_with(name: str) -> None:
    assert hashlib.sha256((DEMO / name).read_bytes()).hexdigest() == DIGESTS[name]


def test_the_folder_stays_below_one_megabyte() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir() if path.is_file()) < 1_000_000


def test_the_weights_load_whole_and_in_fp32() -> None:
    model, info = load_with_report(DEMO)
    assert not any(info.values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_model_and_tokenizer_agree_on_vocabulary_and_special_tokens(model: Any, tokenizer: Any) -> None:
    assert model.config.vocab_size == tokenizer.vocab_size == len(tokenizer) == EOS_ID + 1
    assert model.config.n_positions == tokenizer.model_max_length == 128
    for holder in (tokenizer, model.config, model.generation_config):
        assert (holder.eos_token_id, holder.bos_token_id) == (EOS_ID, EOS_ID)
    assert tokenizer.pad_token is None


def test_the_settings_name_no_place_on_a_disk() -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in DEMO.glob("*config.json"))
    assert "local" not in written
    assert "/" not in written


def test_any_text_survives_encoding_and_decoding(tokenizer: Any) -> None:
    rng = random.Random(0)
    scalars = [*range(0xD800), *range(0xE000, 0x110000)]  # all of Unicode but the surrogates
    for _ in range(300):
        text = "".join(map(chr, rng.choices(scalars, k=rng.randint(0, 20))))
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_byte_is_a_token(tokenizer: Any) -> None:
    assert len({tokenizer.convert_ids_to_tokens(i) for i in range(256)}) == 256
    assert {len(tokenizer.convert_ids_to_tokens(i)) for i in range(256)} == {1}


@pytest.mark.parametrize("prompt", GREEDY)
def test_greedy_text_is_sensible_and_ends_with_eos(model: Any, tokenizer: Any, prompt: str) -> None:
    token_ids = generate(model, tokenizer, prompt)
    assert token_ids[-1] == EOS_ID
    assert tokenizer.decode(token_ids[:-1]) == GREEDY[prompt]


def test_beam_search_leaves_the_line_that_greedy_search_takes(model: Any, tokenizer: Any) -> None:
    beam = continuation(model, tokenizer, "I skip across the", num_beams=5)
    assert beam == " street to the other side of the street."
    assert beam != GREEDY["I skip across the"]


def test_sampling_takes_different_ways_across(model: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    ways = {continuation(model, tokenizer, "I skip across the", do_sample=True, top_k=0) for _ in range(8)}
    assert len(ways) > 4


def test_the_ten_likeliest_tokens_after_i_skip_across_the_are_places(model: Any, tokenizer: Any) -> None:
    logits = model(input_ids=prompt_ids(tokenizer, "I skip across the")).logits[0, -1]
    words = [tokenizer.decode([i]) for i in logits.topk(10).indices.tolist()]
    assert words[:2] == [" line", " street"]
    assert set(words) <= {f" {place}" for place in ("line", *PLACES)}


def test_the_model_writes_on_sensibly_up_to_its_last_position(model: Any, tokenizer: Any) -> None:
    story = "The quiet fox barks because it wants berries."
    token_ids = [EOS_ID]
    while len(token_ids) < 110:
        token_ids += [*tokenizer(story).input_ids, EOS_ID]
    token_ids += tokenizer("Every bee").input_ids
    logits = model(input_ids=torch.tensor([token_ids])).logits[0, -1]
    assert tokenizer.decode([int(logits.argmax())]) == " likes"


def test_the_committed_prompts_are_those_of_the_grammar() -> None:
    table = pq.read_table(PROMPTS)
    assert table.schema == pa.schema([(name, pa.string()) for name in ("id", "prompt", "topic")])
    prompts = write_prompts(random.Random(0))
    assert table["prompt"].to_pylist() == [prompt for topic in prompts.values() for prompt in topic]


def test_the_prompts_are_many_distinct_uneven_and_not_all_ascii(tokenizer: Any) -> None:
    rows = pq.read_table(PROMPTS).to_pylist()
    prompts = [row["prompt"] for row in rows]
    lengths = [len(tokenizer(prompt).input_ids) for prompt in prompts]
    assert len(rows) == 73
    assert len({row["id"] for row in rows}) == len(set(prompts)) == 73
    assert "animal-03" in {row["id"] for row in rows}
    assert prompts.count("") == 1
    assert sum(not prompt.isascii() for prompt in prompts) >= 10
    assert (min(lengths), max(lengths)) == (0, 49)


@pytest.mark.slow
def test_a_short_training_makes_a_model_that_loads(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    options = ["--steps", "30", "--output", str(folder), "--prompts", str(tmp_path / "prompts.parquet")]
    subprocess.run([sys.executable, "-m", "jobs.train_demo", *options], cwd=ROOT, check=True)
    model, info = load_with_report(folder)
    assert not any(info.values())
    assert (folder / "tokenizer.json").read_bytes() == (DEMO / "tokenizer.json").read_bytes()
    assert (tmp_path / "prompts.parquet").read_bytes() == PROMPTS.read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(generate(model, tokenizer, "Every bee", max_new_tokens=5, min_new_tokens=5)) == 5
