"""A model's embeddings and layers in one call of the kernels, where these can multiply with all of its weights.

Shape letters: N tokens, M of them wanted, E width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.engine.linear import PackedLinear
from pipeline.engine.norm import Norm

if TYPE_CHECKING:
    from pipeline.engine.attention import NewTokens, PromptTokens
    from pipeline.engine.cache import SlotCache
    from pipeline.engine.model import GPT2

_Addresses = ctypes.c_void_p * 2  # of weights and biases, or of a norm's scale and shift


class _Block(ctypes.Structure):
    """`Block` of `forward.cpp`."""

    _fields_ = [
        *((name, _Addresses) for name in ("attn_in", "attn_out", "ln_2", "mlp_in", "mlp_out", "next_norm")),
        ("scale", ctypes.c_float),
    ]


class _Model(ctypes.Structure):
    """`Model` of `forward.cpp`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("wte", "wpe")),
        ("first_norm", _Addresses),
        ("blocks", ctypes.POINTER(_Block)),
        *((name, ctypes.c_int64) for name in ("layers", "width", "inner", "heads")),
        ("epsilon", ctypes.c_float),
    ]


class _Cache(ctypes.Structure):
    """`Cache` of `forward.cpp`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("kept", "token_ids", "starts", "capacities")),
        *((name, ctypes.c_int64) for name in ("positions", "longest")),
    ]


class _Tokens(ctypes.Structure):
    """`Tokens` of `forward.cpp`."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("ids", "slots", "positions")), ("count", ctypes.c_int64)]


class CompiledForward:
    """A model from embeddings to its last norm; `linears` are four of each block, in the order of their use."""

    def __init__(self, model: GPT2, linears: Sequence[PackedLinear]) -> None:
        norms = [*(block.ln_1 for block in model.blocks[1:]), model.ln_f]
        blocks = (_Block * model.num_layers)()
        for index, (block, next_norm) in enumerate(zip(model.blocks, norms, strict=True)):
            attn_in, attn_out, mlp_in, mlp_out = map(_dense, linears[4 * index : 4 * index + 4])
            blocks[index] = _Block(attn_in, attn_out, _norm(block.ln_2), mlp_in, mlp_out, _norm(next_norm), block.scale)
        self._held = model.wte, model.wpe, model.blocks, norms  # whose memory the structures point to
        self._kernels, self._like = linears[0].kernels, model.wte
        self._model = _Model(
            wte=model.wte.data_ptr(),
            wpe=model.wpe.data_ptr(),
            first_norm=_norm(model.blocks[0].ln_1),
            blocks=blocks,
            layers=model.num_layers,
            width=model.wte.shape[1],
            inner=linears[2].outputs,
            heads=model.num_heads,
            epsilon=model.ln_f.epsilon,
        )

    def __call__(
        self, cache: SlotCache, tokens: PromptTokens | NewTokens, ids: Tensor, wanted: Tensor | None
    ) -> Tensor:
        """Put tokens through all layers, and keep them, their keys and values in the cache.

        Args:
            ids: (N,) int64.
            wanted: (M,) int64, ascending; all by default.

        Returns:
            Behind the last norm, (M, E).
        """
        places = _Tokens(ids.data_ptr(), tokens.slots.data_ptr(), tokens.positions.data_ptr(), len(ids))
        parts = (cache.kept, cache.token_ids, cache.starts, cache.capacities)
        room = _Cache(*(part.data_ptr() for part in parts), int(cache.capacities.sum()), cache.num_positions)
        out: Tensor = self._like.new_empty((len(ids) if wanted is None else len(wanted), self._like.shape[1]))
        self._kernels.forward(ctypes.byref(self._model), ctypes.byref(room), ctypes.byref(places), wanted, out)
        return out


def compiled_forward(model: GPT2) -> CompiledForward | None:
    """The layers, if the kernels can take them all; their activation is GELU then."""
    layers = [layer for block in model.blocks for layer in (block.attn_in, block.attn_out, block.mlp_in, block.mlp_out)]
    packed = [layer for layer in layers if isinstance(layer, PackedLinear)]
    are_all = len(packed) == len(layers) and all(mlp_in.is_gelu for mlp_in in packed[2::4])
    return CompiledForward(model, packed) if are_all else None


def _dense(layer: PackedLinear) -> ctypes.Array[ctypes.c_void_p]:
    return _Addresses(layer.weights.data_ptr(), layer.biases.data_ptr())


def _norm(norm: Norm) -> ctypes.Array[ctypes.c_void_p]:
    return _Addresses(norm.weight.data_ptr(), norm.bias.data_ptr())
