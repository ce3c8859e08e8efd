"""GPT-2's forward, written plainly over pre-laid-out weights and a slot KV cache.

Weights are read by transformers (safetensors only, nothing missing). The embeddings stay where they lie in the
memory-mapped file; linear layers are laid out anew. Tokens of all rows are one stream, whatever prompts they are from,
so nothing is computed for padding. It must equal `GPT2LMHeadModel` to 1e-5 in fp32, and in fp64 where rows have
hundreds of tokens: there transformers itself loses as much in fp32. Where the kernels can take all layers, `forward`
does in one call what is written here, with the same bits.

Shape letters: N tokens of all prompts, B rows, T prompt length, E width, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.engine import native
from pipeline.engine.attention import NewTokens, PromptTokens
from pipeline.engine.cache import PAGE, Memory, SlotCache
from pipeline.engine.forward import compiled_forward
from pipeline.engine.linear import ACTIVATIONS, IDENTITY, Activation, Linear, Shelf, linear
from pipeline.engine.norm import Norm
from pipeline.errors import ModelError

PREFILL_TOKENS = {"cpu": 512, "cuda": 8192}  # of prompts that go through the model together; a longer one goes alone


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer layer. `scale` multiplies the attention scores; `mlp_in` includes the activation."""

    ln_1: Norm
    attn_in: Linear
    attn_out: Linear
    ln_2: Norm
    mlp_in: Linear
    mlp_out: Linear
    scale: float


class States(NamedTuple):
    """Hidden states after the final norm: of the last layer, and of the early layers that were asked for.

    Layer l is transformers' `hidden_states[l]`, 0 the embedding; there early ones are not normed.
    """

    last: Tensor
    early: dict[int, Tensor]


class GPT2:
    """A loaded checkpoint and its two ways forward: `prefill` whole prompts, `decode` one token per slot."""

    def __init__(self, source: Any) -> None:
        """Lay out the tensors of a transformers `GPT2LMHeadModel`."""
        config = source.config
        tensors = {name: tensor.detach() for name, tensor in source.named_parameters(remove_duplicate=False)}
        self.num_heads = int(config.n_head)
        self.head_size = int(config.n_embd // config.n_head)
        self.num_positions = int(config.n_positions)
        self.vocab_size = int(config.vocab_size)
        self.wte = tensors["transformer.wte.weight"]  # (V, E)
        self.wpe = tensors["transformer.wpe.weight"]  # (positions, E)
        self.head = tensors["lm_head.weight"]  # (V, E)
        shelf = Shelf()
        self.blocks = [self._block(tensors, index, config, shelf) for index in range(config.n_layer)]
        self._logits = linear(self.head, None, shelf=shelf)
        self.ln_f = Norm(
            tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"], config.layer_norm_epsilon
        )
        self._compiled = compiled_forward(self)

    def _block(self, tensors: dict[str, Tensor], index: int, config: Any, shelf: Shelf) -> Block:
        def pair(name: str) -> tuple[Tensor, Tensor]:
            prefix = f"transformer.h.{index}.{name}"
            return tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"]

        def dense(name: str, activation: Activation = IDENTITY) -> Linear:
            weight, bias = pair(name)
            return linear(weight.t().contiguous(), bias, activation, shelf)  # GPT-2's files have (in, out)

        scale = 1 / math.sqrt(self.head_size) if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale /= index + 1
        return Block(
            ln_1=Norm(*pair("ln_1"), config.layer_norm_epsilon),
            attn_in=dense("attn.c_attn"),
            attn_out=dense("attn.c_proj"),
            ln_2=Norm(*pair("ln_2"), config.layer_norm_epsilon),
            mlp_in=dense("mlp.c_fc", _activation(config)),
            mlp_out=dense("mlp.c_proj"),
            scale=scale,
        )

    @property
    def device(self) -> str:
        """Where the weights lie, as `cpu` or `cuda:0`."""
        return str(self.wte.device)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token occupies in the cache."""
        return int(2 * len(self.blocks) * self.num_heads * self.head_size * self.wte.element_size())

    def new_cache(self, capacities: Sequence[int], memory: Memory | None = None) -> SlotCache:
        """An empty cache that fits this model; arguments as for `SlotCache`."""
        return SlotCache(
            layers=len(self.blocks),
            capacities=capacities,
            heads=self.num_heads,
            head_size=self.head_size,
            dtype=self.wte.dtype,
            device=self.device,
            memory=memory,
            is_mirrored=self.takes_slots_of_any_length,
        )

    @property
    def takes_slots_of_any_length(self) -> bool:
        """Whether slots of a cache may differ in length: the kernels look each one up."""
        return native.for_tensor(self.wte) is not None

    def whole_pages(self, num_positions: int) -> int:
        """At least so many positions that a head's keys fill whole pages of memory: a processor fetches the rest of one
        of its own accord. As many as asked for, if a key is shorter than two cache lines: it would be too many more.
        """
        num_bytes = int(self.head_size * self.wte.element_size())
        if num_bytes < 128 or PAGE % num_bytes:
            return num_positions
        per_page = PAGE // num_bytes
        return min(-(-num_positions // per_page) * per_page, self.num_positions)

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return len(self.blocks)

    def prefill(
        self,
        cache: SlotCache,
        first_slot: int,
        prompts: Sequence[tuple[int, ...]],
        early: Collection[int] = (),
        num_last: Sequence[int] | None = None,
    ) -> list[States]:
        """Run whole prompts into the slots from `first_slot` on.

        Args:
            early: layers whose states are wanted too.
            num_last: states of the last layer that are wanted, for the last tokens of each prompt. All by default; with
                fewer that layer has less to do.

        Returns:
            Hidden states of each prompt, (T, E); of the last layer (num_last, E).
        """
        states: list[States] = []
        num_last = num_last or [len(prompt) for prompt in prompts]
        for group in _groups(prompts, PREFILL_TOKENS[torch.device(self.device).type]):
            start, end = len(states), len(states) + len(group)
            states += self._prefill(cache, first_slot + start, group, early, num_last[start:end])
        return states

    def _prefill(
        self,
        cache: SlotCache,
        first_slot: int,
        prompts: Sequence[tuple[int, ...]],
        early: Collection[int],
        num_last: Sequence[int],
    ) -> Iterator[States]:
        lengths = [len(prompt) for prompt in prompts]
        tokens = PromptTokens(lengths, first_slot, self.device)
        input_ids = [token for prompt in prompts for token in prompt]
        states = self._forward(cache, tokens, input_ids, early, tokens.last(num_last))
        cache.lengths[first_slot : first_slot + len(prompts)] = torch.tensor(lengths, device=self.device)
        layers = {layer: torch.split(hidden, lengths) for layer, hidden in states.early.items()}
        for index, last in enumerate(torch.split(states.last, list(num_last))):
            yield States(last, {layer: hidden[index] for layer, hidden in layers.items()})

    def decode(
        self, cache: SlotCache, tokens: Sequence[int] | Tensor, early: Collection[int] = (), width: int | None = None
    ) -> States:
        """Append one token to each of the first B slots, which are extended in place.

        Args:
            tokens: B of them.
            early: layers whose states are wanted too.
            width: most tokens that a slot may hold then; in one that has more the last is replaced. With it, and with
                tokens that lie on the device, the host does not wait for the device.

        Returns:
            Hidden states, (B, E).
        """
        positions = cache.lengths[: len(tokens)].clone()
        if width is not None:
            positions.clamp_(max=width - 1)
        states = self._forward(cache, NewTokens(positions, width), tokens, early)
        cache.lengths[: len(tokens)] = positions + 1
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, E) -> (B, V), in the dtype of the weights; whoever computes with them does so in float32."""
        return self._logits(hidden)

    def _forward(
        self,
        cache: SlotCache,
        tokens: PromptTokens | NewTokens,
        ids: Sequence[int] | Tensor,
        early: Collection[int],
        wanted: Tensor | None = None,
    ) -> States:
        """A stream of tokens through all layers: N ids -> (N, E); of some tokens alone, `wanted` (M,), -> (M, E)."""
        input_ids = torch.as_tensor(ids, device=self.device)
        if self._compiled and tokens.suit_kernels and not early:
            return States(self._compiled(cache, tokens, input_ids, wanted), {})
        cache.token_ids[tokens.slots, tokens.positions] = input_ids
        x = F.embedding(input_ids, self.wte) + F.embedding(tokens.positions, self.wpe)  # (N, E)
        normed = self.blocks[0].ln_1(x)
        kept = {}
        for layer, block in enumerate(self.blocks):
            if layer in early:
                kept[layer] = self.ln_f(x)
            mixed = tokens.attend(block.attn_in(normed), cache.layer(layer), block.scale)
            is_last = layer == len(self.blocks) - 1
            if is_last and wanted is not None:
                x, mixed = x[wanted], mixed[wanted]
            normed = block.ln_2.after_adding(x, block.attn_out(mixed))
            next_norm = self.ln_f if is_last else self.blocks[layer + 1].ln_1
            normed = next_norm.after_adding(x, block.mlp_out(block.mlp_in(normed)))
        return States(normed, kept)


def load_model(folder: str, dtype: str, device: str) -> GPT2:
    """Read a GPT-2 checkpoint from a local folder.

    Args:
        folder: with `config.json` and `*.safetensors`.
        dtype: `float32` or `bfloat16`.
        device: `cpu` or `cuda`.

    Raises:
        ModelError: the files cannot be read, weights are missing, unexpected or of the wrong shape (transformers itself
            only logs that and leaves layers random), or the architecture is not GPT-2's.
    """
    from safetensors import SafetensorError
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        config = GPT2Config.from_pretrained(folder, local_files_only=True)
        _activation(config)
        model, info = GPT2LMHeadModel.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
            output_loading_info=True,
        )
    except ModelError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"checkpoint {folder} cannot be loaded: {error}.", "Get its files again, or give another checkpoint."
        ) from error
    _check_weights(folder, info)
    loaded = GPT2(model.to(device).eval())
    del model
    _return_freed_memory()
    return loaded


def _return_freed_memory() -> None:
    """Give the system what loading has freed, if glibc allocates: a sixth of a GiB for GPT-2. What it has just got back
    it gives out again in no time, so that a first cache is ready sooner: 0.3 s of a first shard of 1.6.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _activation(config: Any) -> Activation:
    if config.activation_function not in ACTIVATIONS:
        raise ModelError(
            f"activation_function `{config.activation_function}` of the checkpoint is not supported; "
            f"supported are {', '.join(ACTIVATIONS)}.",
            "Give a checkpoint with one of these.",
        )
    return ACTIVATIONS[config.activation_function]


def _groups(prompts: Sequence[tuple[int, ...]], most: int) -> Iterator[Sequence[tuple[int, ...]]]:
    """Runs of prompts of at most so many tokens together, at least one prompt each."""
    start = num_tokens = 0
    for index, prompt in enumerate(prompts):
        if index > start and num_tokens + len(prompt) > most:
            yield prompts[start:index]
            start, num_tokens = index, 0
        num_tokens += len(prompt)
    yield prompts[start:]


def _check_weights(folder: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint whose weights are not exactly those its `config.json` asks for."""
    problems = {
        "missing weights": list(info["missing_keys"]),
        # a constant of the attention that transformers saved until 4.x, as in DialoGPT; it means nothing here
        "unexpected weights": [name for name in info["unexpected_keys"] if not name.endswith("attn.masked_bias")],
        "weights of another shape": [
            f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in info["mismatched_keys"]
        ],
    }
    for problem, weights in problems.items():
        if weights:
            names = f"{', '.join(sorted(weights)[:4])}{' ...' if len(weights) > 4 else ''}"
            raise ModelError(
                f"checkpoint {folder} does not fit its config.json: {problem} {names}.",
                "Save the model again, with all of its layers: those without weights would be random.",
            )
