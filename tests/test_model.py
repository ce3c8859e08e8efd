"""The plain forward against transformers' GPT-2, and what `load_model` refuses."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from pipeline.engine import GPT2, load_model, native
from pipeline.engine.attention import KERNEL_TOKENS
from pipeline.errors import ModelError
from tests.models import uneven_prompts

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled_attention": {"scale_attn_weights": False},
    "upcast_attention": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "untied_head": {"tie_word_embeddings": False},
    "gelu": {"activation_function": "gelu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "narrow_mlp": {"n_inner": 24},
    "one_head": {"n_head": 1},
    "one_layer": {"n_layer": 1},
    "large_epsilon": {"layer_norm_epsilon": 0.1},
}


def source_model(**values: Any) -> GPT2LMHeadModel:
    """A model none of whose tensors has its initial value: biases and norms would otherwise be zeros and ones."""
    torch.manual_seed(0)
    settings = {"vocab_size": 50, "n_positions": 40, "n_embd": 32, "n_layer": 3, "n_head": 4, **values}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=5, eos_token_id=5, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@torch.inference_mode()
def reference(model: GPT2LMHeadModel, tokens: tuple[int, ...]) -> torch.Tensor:
    """Logits of every position of one row without padding, (T, V)."""
    return model(torch.tensor([tokens])).logits[0].float()


@torch.inference_mode()
def prefilled(model: GPT2, prompts: list[tuple[int, ...]], *, first_slot: int = 0) -> list[torch.Tensor]:
    """Logits of every position of prompts that are run together."""
    cache = model.new_cache([model.num_positions] * (first_slot + len(prompts)))
    return [model.logits(states.last) for states in model.prefill(cache, first_slot, prompts)]


@torch.inference_mode()
def decoded(model: GPT2, rows: list[tuple[int, ...]], lengths: list[int]) -> list[torch.Tensor]:
    """As `prefilled`, but only the first `lengths` tokens at once, and the others one at a time for all rows."""
    cache = model.new_cache([model.num_positions] * len(rows))
    states = model.prefill(cache, 0, [row[:length] for row, length in zip(rows, lengths, strict=True)])
    logits = [[model.logits(each.last)] for each in states]
    for step in range(len(rows[0]) - lengths[0]):
        newest = [row[length + step] for row, length in zip(rows, lengths, strict=True)]
        for row, values in enumerate(model.logits(model.decode(cache, newest).last)):
            logits[row].append(values[None])
    assert cache.lengths.tolist() == [len(row) for row in rows]
    assert [cache.token_ids[slot, : len(row)].tolist() for slot, row in enumerate(rows)] == [[*row] for row in rows]
    return [torch.cat(parts) for parts in logits]


@torch.inference_mode()
def ways_through(model: GPT2, num_prompts: int) -> list[torch.Tensor]:
    """States of prompts, of some of their tokens, and of a step, and what the cache holds then."""
    prompts = uneven_prompts(num_prompts, vocab_size=50)
    cache = model.new_cache([model.num_positions] * 2 * len(prompts))
    whole = model.prefill(cache, 0, prompts)
    ends = model.prefill(cache, len(prompts), prompts, num_last=[min(2, len(prompt)) for prompt in prompts])
    step = model.decode(cache, [slot % 50 for slot in range(2 * len(prompts))])
    return [*(states.last for states in [*whole, *ends, step]), cache.kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("values", "num_prompts"),
    [
        ({}, 5),
        (VARIANTS["inverse_layer_idx"], 5),
        (VARIANTS["gelu_pytorch_tanh"], 5),
        (VARIANTS["one_layer"], 5),
        (VARIANTS["large_epsilon"], 5),
        ({"n_layer": 1, "n_embd": 768, "n_inner": 1600}, 80),  # rows in pieces, inner states in panels and a rest
    ],
    ids=["plain", "inverse_layer_idx", "gelu_pytorch_tanh", "one_layer", "large_epsilon", "many_rows"],
)
def test_all_layers_in_one_call_give_what_they_give_one_by_one(
    values: dict[str, Any], num_prompts: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GPT2(source_model(**values).to(dtype))
    if not native.for_weight(model.head):
        pytest.skip(f"the kernels do not multiply {dtype} on this processor")
    assert model._compiled
    together = ways_through(model, num_prompts)
    monkeypatch.setattr(model, "_compiled", None)
    for found, expected in zip(together, ways_through(model, num_prompts), strict=True):
        assert found.isfinite().all()
        assert torch.equal(found, expected)


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_prefilled_prompts_of_any_length_equal_transformers(values: dict[str, Any]) -> None:
    source = source_model(**values)
    prompts = [*uneven_prompts(7, vocab_size=50), (1,), tuple(range(40))]
    for prompt, logits in zip(prompts, prefilled(GPT2(source), prompts, first_slot=2), strict=True):
        torch.testing.assert_close(logits, reference(source, prompt), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[KERNEL_TOKENS], [KERNEL_TOKENS + 1], [KERNEL_TOKENS + 1, 3]])
def test_prompts_as_long_as_the_kernel_takes_and_longer_ones_equal_transformers(lengths: list[int]) -> None:
    source = source_model(n_positions=KERNEL_TOKENS + 1)
    prompts = [tuple(token % 50 for token in range(length)) for length in lengths]
    for prompt, logits in zip(prompts, prefilled(GPT2(source), prompts), strict=True):
        torch.testing.assert_close(logits, reference(source, prompt), atol=1e-5, rtol=0)


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_tokens_decoded_one_at_a_time_equal_transformers(values: dict[str, Any]) -> None:
    source = source_model(**values)
    lengths = [1, 9, 4, 28]
    rows = [tuple(prompt) for prompt in torch.randint(50, (4, 40), generator=torch.Generator().manual_seed(0)).tolist()]
    rows = [row[: length + 12] for row, length in zip(rows, lengths, strict=True)]
    for row, logits in zip(rows, decoded(GPT2(source), rows, lengths), strict=True):
        torch.testing.assert_close(logits, reference(source, row), atol=1e-5, rtol=0)


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_the_last_states_alone_equal_those_of_all_tokens(values: dict[str, Any]) -> None:
    model, prompts = GPT2(source_model(**values)), [*uneven_prompts(7, vocab_size=50), (1,), tuple(range(40))]
    num_last = [min(len(prompt), 1 + index % 3) for index, prompt in enumerate(prompts)]
    caches = [model.new_cache([model.num_positions] * len(prompts)) for _ in range(2)]
    with torch.inference_mode():
        whole = model.prefill(caches[0], 0, prompts, early=[0])
        ends = model.prefill(caches[1], 0, prompts, early=[0], num_last=num_last)
    for all_states, states, count in zip(whole, ends, num_last, strict=True):
        torch.testing.assert_close(states.last, all_states.last[-count:], atol=1e-5, rtol=0)
        assert torch.equal(states.early[0], all_states.early[0])
    assert torch.equal(caches[0].kept, caches[1].kept)


def test_every_variant_differs_from_the_plain_model() -> None:
    prompt = tuple(range(30))
    plain = reference(source_model(), prompt)
    for name, values in VARIANTS.items():
        is_same_function = name in ("plain", "gelu_pytorch_tanh")
        assert torch.allclose(plain, reference(source_model(**values), prompt), atol=1e-4) is is_same_function


def test_bfloat16_weights_give_logits_near_transformers() -> None:
    source = source_model().bfloat16()
    for prompt, logits in zip([(1, 2, 3), (4,)], prefilled(GPT2(source), [(1, 2, 3), (4,)]), strict=True):
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), reference(source, prompt), atol=0.15, rtol=0)


def test_a_broken_position_does_not_reach_shorter_prompts_beside_it() -> None:
    # Pads used to take the embeddings of later positions; a NaN there came through the causal mask, as 0 * NaN.
    source = source_model()
    with torch.no_grad():
        source.transformer.wpe.weight[6:] = float("nan")
    long, short = prefilled(GPT2(source), [tuple(range(10)), (1, 2, 3)])
    assert torch.isnan(long[6:]).all()
    torch.testing.assert_close(short, reference(source, (1, 2, 3)), atol=1e-5, rtol=0)


def test_the_model_knows_its_sizes() -> None:
    model = GPT2(source_model(n_layer=2))
    assert (model.num_positions, model.vocab_size, model.num_heads, model.head_size) == (40, 50, 4, 8)
    assert model.device == "cpu"
    assert model.kv_bytes_per_token == 2 * 2 * 32 * 4
    cache = model.new_cache([9, 7, 5])
    assert cache.kept.nbytes == (9 + 7 + 5) * model.kv_bytes_per_token
    assert GPT2(source_model(n_layer=2).bfloat16()).kv_bytes_per_token == 2 * 2 * 32 * 2


@pytest.mark.parametrize(
    ("head_size", "dtype", "expected"),
    [
        (64, torch.bfloat16, [32, 32, 64, 96, 100]),  # 128 bytes of 4,096
        (64, torch.float32, [16, 32, 48, 80, 100]),
        (48, torch.float32, [1, 32, 33, 70, 97]),  # 192 bytes: no page has a whole number of them
        (32, torch.bfloat16, [1, 32, 33, 70, 97]),  # a line each
    ],
)
def test_slots_have_whole_pages_of_keys_but_no_more_than_the_model_has_positions(
    head_size: int, dtype: torch.dtype, expected: list[int]
) -> None:
    model = GPT2(source_model(n_embd=2 * head_size, n_head=2, n_positions=100).to(dtype))
    assert [model.whole_pages(count) for count in (1, 32, 33, 70, 97)] == expected


def test_an_unknown_activation_is_refused_by_name() -> None:
    source = source_model()
    source.config.activation_function = "tanh"
    with pytest.raises(ModelError, match=r"activation_function `tanh` .* supported are gelu_new, .*, relu, silu"):
        GPT2(source)


# load_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good checkpoint."""
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("saved")
    source_model().save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path, metadata={"format": "pt"})


def assert_loads_as_saved(folder: Path) -> None:
    (logits,) = prefilled(load_model(str(folder), "float32", "cpu"), [(1, 2, 3, 4)])
    torch.testing.assert_close(logits, reference(source_model(), (1, 2, 3, 4)), atol=1e-5, rtol=0)


LEFT = """
import ctypes, sys
from pathlib import Path
from pipeline.engine import keep_freed_memory, load_model

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "RssAnon" in line)

keep_freed_memory()
model = load_model(sys.argv[1], "bfloat16", "cpu")
before = held()
ctypes.CDLL(None).malloc_trim(0)
print((before - held()) / 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed so")
def test_what_loading_frees_goes_back_to_the_system(tmp_path: Path) -> None:
    """A replica of GPT-2 held 165 MiB of copies that nobody would use again."""
    source_model(n_embd=512, n_layer=6).save_pretrained(tmp_path)
    left = subprocess.run([sys.executable, "-c", LEFT, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(left.stdout) < 5  # MiB; without it 40


def test_a_saved_checkpoint_loads_as_it_was(saved: Path) -> None:
    assert_loads_as_saved(saved)


def test_a_checkpoint_in_several_files_loads_as_it_was(tmp_path: Path) -> None:
    source_model().save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_loads_as_saved(tmp_path)


def test_a_checkpoint_with_the_hubs_old_names_loads_as_it_was(checkpoint: Path) -> None:
    # openai-community/gpt2 has no `transformer.` and keeps its causal masks; DialoGPT and others keep masked_bias too.
    def as_on_the_hub(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        for layer in range(3):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(40, 40).tril()[None, None]
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-10000.0)
        return tensors

    rewrite(checkpoint, as_on_the_hub)
    assert_loads_as_saved(checkpoint)


def test_an_untied_head_is_read_from_the_file(tmp_path: Path) -> None:
    source = source_model(tie_word_embeddings=False)
    source.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "float32", "cpu")
    assert not torch.equal(model.head, model.wte)
    assert torch.equal(model.head, source.lm_head.weight)


def test_bfloat16_is_rounded_from_a_float32_file(saved: Path) -> None:
    model = load_model(str(saved), "bfloat16", "cpu")
    assert torch.equal(model.wte, source_model().transformer.wte.weight.bfloat16())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_embeddings_in_the_files_own_dtype_stay_in_the_mapped_file(saved: Path) -> None:
    model = load_model(str(saved), "float32", "cpu")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [
        tuple(int(end, 16) for end in columns[0].split("-"))
        for columns in maps
        if columns[-1] == str(saved / "model.safetensors")
    ]
    for tensor in (model.wte, model.head, model.wpe):
        assert any(start <= tensor.data_ptr() < end for start, end in ranges)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"n_layer": 4},
            r"does not fit its config.json: missing weights transformer\.h\.3\.attn\.c_attn\.bias, .* \.\.\.",
        ),
        ({"n_layer": 2}, r"does not fit its config.json: unexpected weights transformer\.h\.2\..* \.\.\."),
        ({"n_positions": 80}, r"weights of another shape transformer\.wpe\.weight \[40, 32\] instead of \[80, 32\]"),
        ({"vocab_size": 51}, r"weights of another shape transformer\.wte\.weight \[50, 32\] instead of \[51, 32\]"),
        ({"n_embd": 64}, r"weights of another shape transformer\.h\.0\.attn\.c_attn\.bias \[96\] instead of \[192\]"),
        ({"n_inner": 64}, r"weights of another shape transformer\.h\.0\.mlp\.c_fc\.bias \[128\] instead of \[64\]"),
        ({"tie_word_embeddings": False}, r"missing weights lm_head\.weight\. "),
        ({"n_head": 5}, "divisible"),
        ({"activation_function": "quick_gelu"}, "activation_function `quick_gelu` .* is not supported"),
        ({"activation_function": "none_such"}, "activation_function `none_such` .* is not supported"),
    ],
    ids=lambda value: "-".join(value) + "-" + "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    checkpoint: Path, values: dict[str, Any], message: str
) -> None:
    configure(checkpoint, **values)
    with pytest.raises(ModelError, match=message):
        load_model(str(checkpoint), "float32", "cpu")


def without(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def test_a_file_without_some_weights_is_refused_by_their_names(checkpoint: Path) -> None:
    rewrite(checkpoint, without("transformer.h.1.ln_2.bias", "transformer.wpe.weight"))
    with pytest.raises(
        ModelError,
        match=r"missing weights transformer\.h\.1\.ln_2\.bias, transformer\.wpe\.weight\. Save the model again",
    ):
        load_model(str(checkpoint), "float32", "cpu")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2", ')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "file not fully covered"),
        (empty, "header too small"),
        (pickle_instead, "no file named model.safetensors"),
        (cut_config, "not a valid JSON file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(
    checkpoint: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(checkpoint)
    with pytest.raises(ModelError, match=rf"^checkpoint {re.escape(str(checkpoint))} cannot be loaded: .*{message}"):
        load_model(str(checkpoint), "float32", "cpu")


def test_a_missing_file_of_several_is_one_clear_error(tmp_path: Path) -> None:
    source_model().save_pretrained(tmp_path, max_shard_size="40KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ModelError, match=rf"^checkpoint {re.escape(str(tmp_path))} cannot be loaded: "):
        load_model(str(tmp_path), "float32", "cpu")
