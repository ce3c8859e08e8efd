"""Compiled kernels for CPU tensors: the parts of a decode step that torch does in many passes, done in one.

`kernels()` compiles `kernels.cpp` for this machine on first use and keeps the library in the user's cache folder. Where
there is no C++ compiler, or `BATCHGEN_KERNELS=torch` says so, it gives None and the engine runs plain torch; the token
ids are the same, the recorded numbers agree to rounding. Each kernel is a drop-in for the plain function it names.

Shape letters: B rows, H heads, D head size, T positions, V vocabulary, K kept, N chosen tokens.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.engine.native.build import library_path

log = logging.getLogger(__name__)

_SIGNATURES = {
    "attend_float32": "ppppiiiifp",
    "attend_bfloat16": "ppppiiiifp",
    "measure": "piiipppp",
    "top_k": "piiipp",
    "rank": "pippip",
    "draw": "piipppp",
}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


class Kernels:
    """The functions of a compiled library."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        for name, letters in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None

    def attend(self, fused: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
        """`attention.plain_attend`."""
        _, heads, num_positions, size = keys.shape
        out = torch.empty((len(fused), heads * size), dtype=fused.dtype)
        attend = self._library.attend_bfloat16 if fused.dtype == torch.bfloat16 else self._library.attend_float32
        pointers = [tensor.data_ptr() for tensor in (fused.contiguous(), keys, values, positions)]
        attend(*pointers, len(fused), heads, size, num_positions, scale, out.data_ptr())
        return out

    def measure(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`measure.plain_measure`."""
        rows, vocab = logits.shape
        log_normalisers, entropies = torch.empty(2, rows)
        token_ids, values = torch.empty((rows, k), dtype=torch.int32), torch.empty((rows, k))
        outs = [tensor.data_ptr() for tensor in (log_normalisers, entropies, token_ids, values)]
        self._library.measure(logits.contiguous().data_ptr(), rows, vocab, k, *outs)
        return log_normalisers, entropies, token_ids, values

    def top_k(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """`ranking.plain_top_k`."""
        rows, vocab = scores.shape
        token_ids, values = torch.empty((rows, k), dtype=torch.int64), torch.empty((rows, k))
        self._library.top_k(scores.contiguous().data_ptr(), rows, vocab, k, token_ids.data_ptr(), values.data_ptr())
        return values, token_ids

    def rank(self, scores: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """`ranking.plain_rank`."""
        ranks = torch.empty_like(tokens)
        pointers = [tensor.data_ptr() for tensor in (rows.contiguous(), tokens.contiguous())]
        vocab = scores.shape[1]
        self._library.rank(scores.contiguous().data_ptr(), vocab, *pointers, len(tokens), ranks.data_ptr())
        return ranks

    def draw(self, scores: Tensor, seeds: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """`sampling.plain_draw`."""
        rows, vocab = scores.shape
        tokens, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
        pointers = [tensor.data_ptr() for tensor in (seeds.contiguous(), steps.contiguous(), tokens, logprobs)]
        self._library.draw(scores.contiguous().data_ptr(), rows, vocab, *pointers)
        return tokens, logprobs


@lru_cache(maxsize=1)
def kernels() -> Kernels | None:
    """The compiled kernels, or None where they are off or cannot be built."""
    if os.environ.get("BATCHGEN_KERNELS") == "torch":
        return None
    path = library_path()
    try:
        return None if path is None else Kernels(path)
    except OSError as error:
        log.warning("the engine runs without its kernels, at less speed: %s cannot be loaded: %s", path, error)
        return None


def for_tensor(tensor: Tensor) -> Kernels | None:
    """The kernels if they can take this tensor: on the CPU, in float32."""
    return kernels() if tensor.device.type == "cpu" and tensor.dtype == torch.float32 else None
