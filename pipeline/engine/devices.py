"""What a GPU asks of code that a CPU does not."""

from __future__ import annotations

from torch import Tensor


def is_static(tensor: Tensor) -> bool:
    """Whether no decision and no shape may depend on what is in the tensor: on a GPU the host would have to wait for
    it, and a CUDA graph could not be made of it."""
    return tensor.device.type != "cpu"
