"""GPT-2's forward, written plainly over pre-laid-out weights and a slot KV cache.

Weights are read by transformers (safetensors only, nothing missing). The embeddings stay where they lie in the
memory-mapped file; linear layers are turned once from GPT-2's (in, out) to (out, in), which small batches multiply a
sixth faster. Positions are explicit everywhere. It must equal `GPT2LMHeadModel` to 1e-5 in fp32.

Shape letters: B rows, T prompt length (padded), E width, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.engine.cache import SlotCache
from pipeline.errors import ModelError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm's scale and shift, (E,) each."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer: weight (out, in), bias (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer layer. `scale` multiplies the attention scores."""

    ln_1: Norm
    attn_in: Dense
    attn_out: Dense
    ln_2: Norm
    mlp_in: Dense
    mlp_out: Dense
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
        self.activation = _activation(config)
        self.epsilon: float = config.layer_norm_epsilon
        self.wte = tensors["transformer.wte.weight"]  # (V, E)
        self.wpe = tensors["transformer.wpe.weight"]  # (positions, E)
        self.head = tensors["lm_head.weight"]  # (V, E)
        self.ln_f = Norm(tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"])
        self.blocks = [self._block(tensors, index, config) for index in range(config.n_layer)]

    def _block(self, tensors: dict[str, Tensor], index: int, config: Any) -> Block:
        def pair(name: str) -> tuple[Tensor, Tensor]:
            prefix = f"transformer.h.{index}.{name}"
            return tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"]

        def dense(name: str) -> Dense:
            weight, bias = pair(name)
            return Dense(weight.t().contiguous(), bias)

        scale = 1 / math.sqrt(self.head_size) if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale /= index + 1
        return Block(
            ln_1=Norm(*pair("ln_1")),
            attn_in=dense("attn.c_attn"),
            attn_out=dense("attn.c_proj"),
            ln_2=Norm(*pair("ln_2")),
            mlp_in=dense("mlp.c_fc"),
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

    def new_cache(self, slots: int, positions: int) -> SlotCache:
        """An empty cache that fits this model."""
        return SlotCache(
            layers=len(self.blocks),
            slots=slots,
            heads=self.num_heads,
            positions=positions,
            head_size=self.head_size,
            dtype=self.wte.dtype,
            device=self.device,
        )

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return len(self.blocks)

    def prefill(
        self, cache: SlotCache, first_slot: int, prompts: list[tuple[int, ...]], early: Collection[int] = ()
    ) -> States:
        """Run whole prompts into the slots from `first_slot` on.

        Prompts are padded on the right: under the causal mask no real token sees a pad, and what pads leave in the
        cache lies past the row's length. Their keys and values are zeros, since NaN shows through a mask.

        Args:
            early: layers whose states are wanted too.

        Returns:
            Hidden states, (B, T, E); those past a prompt's length mean nothing.
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        width = int(lengths.max())
        input_ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.device)
        slots = slice(first_slot, first_slot + len(prompts))
        cache.token_ids[slots, :width] = input_ids
        cache.lengths[slots] = lengths.to(self.device)
        pads = (torch.arange(width) >= lengths[:, None])[:, None, :, None].to(self.device)  # (B, 1, T, 1)
        x = F.embedding(input_ids, self.wte) + self.wpe[:width]  # (B, T, E)
        kept = {}
        for layer, block in enumerate(self.blocks):
            if layer in early:
                kept[layer] = self._norm(self.ln_f, x)
            query, key, value = self._heads(block, x)  # (B, H, T, D) each
            key, value = key.masked_fill(pads, 0), value.masked_fill(pads, 0)
            cache.keys[layer, slots, :, :width] = key
            cache.values[layer, slots, :, :width] = value
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=block.scale)
            x = self._residual(block, x, mixed)
        return States(self._norm(self.ln_f, x), kept)

    def decode(self, cache: SlotCache, tokens: Tensor, early: Collection[int] = ()) -> States:
        """Append one token to each of the first B slots.

        Args:
            cache: slots 0..B-1 are extended in place.
            tokens: (B,) int64.
            early: layers whose states are wanted too.

        Returns:
            Hidden states, (B, E).
        """
        rows = torch.arange(len(tokens), device=self.device)
        positions = cache.lengths[: len(tokens)].clone()  # (B,) of the new token
        width = int(positions.max()) + 1
        hidden = torch.arange(width, device=self.device) > positions[:, None]  # (B, T)
        mask = torch.zeros(hidden.shape, dtype=self.wte.dtype, device=self.device).masked_fill(hidden, float("-inf"))
        mask = mask[:, None, None]  # (B, 1, 1, T); additive, or every layer would convert it again
        cache.token_ids[rows, positions] = tokens
        cache.lengths[rows] += 1
        x = (F.embedding(tokens, self.wte) + F.embedding(positions, self.wpe))[:, None]  # (B, 1, E)
        kept = {}
        for layer, block in enumerate(self.blocks):
            if layer in early:
                kept[layer] = self._norm(self.ln_f, x)[:, 0]
            query, key, value = self._heads(block, x)  # (B, H, 1, D) each
            cache.keys[layer, rows, :, positions] = key[:, :, 0]
            cache.values[layer, rows, :, positions] = value[:, :, 0]
            keys = cache.keys[layer, : len(tokens), :, :width]
            values = cache.values[layer, : len(tokens), :, :width]
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=block.scale)
            x = self._residual(block, x, mixed)
        return States(self._norm(self.ln_f, x)[:, 0], kept)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, E) -> (B, V) float32."""
        return F.linear(hidden, self.head).float()

    def _heads(self, block: Block, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of a layer, (B, T, E) -> three times (B, H, T, D)."""
        batch, width, _ = x.shape
        fused = block.attn_in(self._norm(block.ln_1, x))  # (B, T, 3E)
        query, key, value = fused.view(batch, width, 3, self.num_heads, self.head_size).permute(2, 0, 3, 1, 4)
        return query, key, value

    def _residual(self, block: Block, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of a layer: attention output and MLP, each added to the stream. `mixed` is (B, H, T, D)."""
        x = x + block.attn_out(mixed.transpose(1, 2).reshape(x.shape))
        return x + block.mlp_out(self.activation(block.mlp_in(self._norm(block.ln_2, x))))

    def _norm(self, norm: Norm, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, self.epsilon)


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
        raise ModelError(f"checkpoint {folder} cannot be loaded: {error}") from error
    _check_weights(folder, info)
    return GPT2(model.to(device).eval())


def _activation(config: Any) -> Callable[[Tensor], Tensor]:
    if config.activation_function not in ACTIVATIONS:
        raise ModelError(
            f"activation_function `{config.activation_function}` of the checkpoint is not supported; "
            f"supported are {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[config.activation_function]


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
                f"checkpoint {folder} does not fit its config.json: {problem} {names}. "
                "Layers without their weights would be random; save the model again."
            )
