"""Layer norms, alone and after what a layer adds to the stream.

Shape letters: N tokens, E width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pipeline.engine import native


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm: scale and shift, (E,) each, and what keeps its division from zero."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """(N, E) -> (N, E)."""
        kernels = native.for_tensor(x)
        return kernels.add_norm(x, None, self) if kernels else plain_norm(x, self)

    def after_adding(self, x: Tensor, update: Tensor) -> Tensor:
        """Add `update` to `x` in place, and normalise the sum: (N, E) each."""
        kernels = native.for_tensor(x)
        return (kernels.add_norm if kernels else plain_add_norm)(x, update, self)


def plain_norm(x: Tensor, norm: Norm) -> Tensor:
    """A norm in torch."""
    return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, norm.epsilon)


def plain_add_norm(x: Tensor, update: Tensor, norm: Norm) -> Tensor:
    """`Norm.after_adding` in torch."""
    x += update
    return plain_norm(x, norm)
