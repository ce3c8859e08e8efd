"""Linear layers, (B, in) -> (B, out), with their activation.

On a CPU the weights are packed once for oneDNN, which multiplies small batches of float32 faster than MKL does from
rows (the head of GPT-2 at 128 rows: 93 ms for 171), and applies the activation on the way. Elsewhere they stay rows of
a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]

_ROWS = 128  # the batch for which oneDNN chooses its layout; the choice matters little from 32 on


class Activation(NamedTuple):
    """A function of torch, and what oneDNN calls it: name and algorithm."""

    function: Callable[[Tensor], Tensor]
    name: str
    algorithm: str


ACTIVATIONS = {
    "gelu_new": Activation(partial(F.gelu, approximate="tanh"), "gelu", "tanh"),
    "gelu_pytorch_tanh": Activation(partial(F.gelu, approximate="tanh"), "gelu", "tanh"),
    "gelu": Activation(F.gelu, "gelu", "none"),
    "relu": Activation(F.relu, "relu", ""),
    "silu": Activation(F.silu, "swish", ""),
}
IDENTITY = Activation(lambda x: x, "none", "")


def linear(weight: Tensor, bias: Tensor | None, activation: Activation = IDENTITY) -> Linear:
    """activation(x @ weight.T + bias) as a function of x; `weight` is (out, in), `bias` (out,)."""
    if can_pack(weight):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation.name, [], activation.algorithm)
    return lambda x: activation.function(F.linear(x, weight, bias))


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN can hold these weights in a layout of its own."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return weight.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
