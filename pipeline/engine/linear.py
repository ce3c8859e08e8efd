"""Linear layers, (B, in) -> (B, out), with their activation.

On a CPU their weights are packed once: for the kernels (`native`), where these can multiply on this processor, else for
oneDNN, which multiplies small batches of float32 faster than MKL does from rows. Elsewhere they stay rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.engine import native

Linear = Callable[[Tensor], Tensor]

_ROWS = 128  # the batch for which oneDNN chooses its layout; the choice matters little from 32 on
_ALIGNMENT = 64  # bytes of a cache line
_TILE = 16  # outputs, and pairs of inputs, of a tile


class Activation(NamedTuple):
    """A function of torch, and what oneDNN calls it: name and algorithm."""

    function: Callable[[Tensor], Tensor]
    name: str
    algorithm: str

    @property
    def is_fused(self) -> bool:
        """Whether the kernels apply it to the sums they have; any other is applied to what they give."""
        return self.name == "none" or self.algorithm == "tanh"


ACTIVATIONS = {
    "gelu_new": Activation(partial(F.gelu, approximate="tanh"), "gelu", "tanh"),
    "gelu_pytorch_tanh": Activation(partial(F.gelu, approximate="tanh"), "gelu", "tanh"),
    "gelu": Activation(F.gelu, "gelu", "none"),
    "relu": Activation(F.relu, "relu", ""),
    "silu": Activation(F.silu, "swish", ""),
}
IDENTITY = Activation(lambda x: x, "none", "")


class Shelf:
    """Memory for packed weights of layers, side by side in the order in which they are asked for. That should be the
    order of their use, for the kernels fetch ahead. In huge pages where the system has them.
    """

    _BYTES = 64 << 20  # taken at once; what is not used costs nothing

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """So many elements, not initialised."""
        num_bytes = -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        if len(self._free) < num_bytes:
            memory = torch.from_numpy(np.zeros(max(num_bytes, self._BYTES) + _ALIGNMENT, np.uint8))
            self._free = memory[-memory.data_ptr() % _ALIGNMENT :]
        taken, self._free = self._free[:num_bytes], self._free[num_bytes:]
        return taken.view(dtype)[:count]


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A layer that the kernels multiply."""

    kernels: native.Kernels
    weights: Tensor
    biases: Tensor
    outputs: int
    is_gelu: bool

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        return self.kernels.linear(x, self.weights, self.biases, self.outputs, self.is_gelu)


def linear(
    weight: Tensor, bias: Tensor | None, activation: Activation = IDENTITY, shelf: Shelf | None = None
) -> Linear:
    """activation(x @ weight.T + bias) as a function of x; `weight` is (out, in), `bias` (out,).

    Args:
        shelf: where to put packed weights; by default they get memory of their own.
    """
    kernels = native.for_weight(weight)
    if kernels:
        is_gelu = activation.is_fused and activation is not IDENTITY
        packed, biases = _packed(weight, shelf or Shelf()), _padded_bias(weight, bias)
        product = PackedLinear(kernels, packed, biases, len(weight), is_gelu)
        return product if activation.is_fused else lambda x: activation.function(product(x))
    if _onednn_packs(weight):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation.name, [], activation.algorithm)
    return lambda x: activation.function(F.linear(x, weight, bias))


def _packed(weight: Tensor, shelf: Shelf) -> Tensor:
    """Weights in the layout of `Kernels.linear`, groups of outputs with zeros at the end, (groups, ...)."""
    group = native.GROUP
    num_whole, rest = divmod(len(weight), group)
    packed = shelf.take((num_whole + bool(rest)) * group * weight.shape[1], weight.dtype)
    tiles = _tiles(weight[: num_whole * group])
    packed[: tiles.numel()].view(tiles.shape).copy_(tiles)
    if rest:
        tiles = _tiles(F.pad(weight[num_whole * group :], (0, 0, 0, group - rest)))
        packed[-tiles.numel() :].view(tiles.shape).copy_(tiles)
    return packed


def _tiles(weight: Tensor) -> Tensor:
    """Whole groups of outputs, (out, in), in the order in which the kernel reads them."""
    shape = -1, native.GROUP // _TILE, _TILE, weight.shape[1] // (2 * _TILE)
    if weight.dtype == torch.float32:
        return weight.view(*shape, 2 * _TILE).permute(0, 3, 1, 4, 2)
    return weight.view(*shape, _TILE, 2).permute(0, 3, 1, 4, 2, 5)


def _padded_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float32, with zeros up to a whole group."""
    biases = torch.zeros(len(weight)) if bias is None else bias.float()
    return F.pad(biases, (0, -len(weight) % native.GROUP))


def _onednn_packs(weight: Tensor) -> bool:
    """Whether oneDNN can hold these weights in a layout of its own."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return weight.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
