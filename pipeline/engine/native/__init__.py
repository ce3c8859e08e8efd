"""Compiled kernels for CPU tensors: the parts of a decode step that torch does in many passes, done in one.

`kernels()` compiles the C++ beside this file for this machine on first use and keeps the library in the user's cache
folder. Where there is no C++ compiler, or `BATCHGEN_KERNELS=torch` says so, it gives None and the engine runs plain
torch; the recorded numbers agree to rounding, and in float32 the token ids are the same. Each kernel is a drop-in for
the plain function it names.

Shape letters: B rows, E width, I inputs, O outputs, H heads, D head size, T positions, V vocabulary, K kept, N chosen
tokens.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.engine.native.build import library_path

if TYPE_CHECKING:
    from pipeline.engine.cache import LayerCache
    from pipeline.engine.norm import Norm

log = logging.getLogger(__name__)

GROUP = 32  # outputs that `linear` takes together, and inputs, of which it takes multiples

_SIGNATURES = {
    "forward_float32": "ppppip",
    "forward_bfloat16": "ppppip",
    "linear_float32": "pppiiiipp",
    "linear_bfloat16": "pppiiiipp",
    "attend_float32": "ppppppiiifp",
    "attend_bfloat16": "ppppppiiifp",
    "add_norm_float32": "ppppiifp",
    "add_norm_bfloat16": "ppppiifp",
    "measure_float32": "piiiipppp",
    "measure_bfloat16": "piiiipppp",
    "top_k_float32": "piiiipp",
    "top_k_bfloat16": "piiiipp",
    "rank_float32": "piippip",
    "rank_bfloat16": "piippip",
    "score_float32": "piippippipp",
    "score_bfloat16": "piippippipp",
    "draw_float32": "ppiiifppppp",
    "draw_bfloat16": "ppiiifppppp",
    "keep_mass": "pppiip",
    "pack": "pppiiipp",
}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


class _Layout(ctypes.Structure):
    """`Layout` of `linear.h`."""

    _fields_ = [(name, ctypes.c_int64) for name in ("row", "group")]


class Kernels:
    """The functions of a compiled library."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        for name, letters in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
        self._multiplied = [dtype for dtype in (torch.float32, torch.bfloat16) if self._multiplies(dtype)]

    def _multiplies(self, dtype: torch.dtype) -> bool:
        function = getattr(self._library, f"multiplies_{_name(dtype)}")
        function.restype = ctypes.c_bool
        return bool(function())

    def takes(self, weight: Tensor) -> bool:
        """Whether `linear` works for these weights, (O, I), on this processor."""
        return weight.dtype in self._multiplied and weight.shape[1] % GROUP == 0

    def linear(self, x: Tensor, weights: Tensor, biases: Tensor, outputs: int, is_gelu: bool) -> Tensor:
        """x @ weight.T + bias, with GELU by tanh if asked: (B, I) -> (B, O), rows with room for whole groups.

        Args:
            weights: packed as `linear.h` says, in groups of `GROUP` outputs.
            biases: float32, zeros up to a whole group.
        """
        out = torch.empty((len(x), len(biases)), dtype=x.dtype)
        layout = _Layout(row=len(biases), group=GROUP)
        self._call(_typed("linear", x), x, weights, biases, *x.shape, outputs, is_gelu, ctypes.byref(layout), out)
        return out[:, :outputs]

    def forward(self, model: Any, cache: Any, tokens: Any, wanted: Tensor | None, out: Tensor) -> None:
        """All layers, as `forward.cpp` says, of which the first three are structures."""
        num_wanted = 0 if wanted is None else len(wanted)
        self._call(_typed("forward", out), model, cache, tokens, wanted, num_wanted, out)

    def attend(self, fused: Tensor, layer: LayerCache, slots: Tensor, positions: Tensor, scale: float) -> Tensor:
        """`attention.plain_attend`, and `PromptTokens.plain_attend`: tokens of one slot stand together, in order."""
        out = torch.empty((len(fused), layer.heads * layer.head_size), dtype=fused.dtype)
        tensors = fused, layer.kept, layer.starts, layer.capacities, slots, positions
        self._call(_typed("attend", fused), *tensors, len(fused), layer.heads, layer.head_size, scale, out)
        return out

    def add_norm(self, x: Tensor, update: Tensor | None, norm: Norm) -> Tensor:
        """`norm.plain_add_norm`; without an update the norm alone."""
        out = torch.empty_like(x)
        self._call(_typed("add_norm", x), x, update, norm.weight, norm.bias, *x.shape, norm.epsilon, out)
        return out

    def measure(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`measure.plain_measure`."""
        rows, vocab = logits.shape
        log_normalisers, entropies = torch.empty(2, rows)
        token_ids, probs = torch.empty((rows, k), dtype=torch.int32), torch.empty((rows, k))
        outs = log_normalisers, entropies, token_ids, probs
        logits = _in_rows(logits)
        self._call(_typed("measure", logits), logits.data_ptr(), rows, vocab, logits.stride(0), k, *outs)
        return outs

    def score(
        self, logits: Tensor, log_normalisers: Tensor, best: Tensor, rows: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`measure.plain_score`."""
        logprobs, ranks = torch.empty(len(rows)), torch.empty_like(tokens)
        logits = _in_rows(logits)
        scores = logits.data_ptr(), logits.shape[1], logits.stride(0)
        chosen = best, best.shape[1], rows, tokens, len(rows)
        self._call(_typed("score", logits), *scores, log_normalisers, *chosen, logprobs, ranks)
        return logprobs, ranks

    def top_k(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """`ranking.plain_top_k`."""
        rows, vocab = scores.shape
        token_ids, values = torch.empty((rows, k), dtype=torch.int64), torch.empty((rows, k))
        scores = _in_rows(scores)
        self._call(_typed("top_k", scores), scores.data_ptr(), rows, vocab, scores.stride(0), k, token_ids, values)
        return values.to(scores.dtype), token_ids

    def rank(self, scores: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """`ranking.plain_rank`."""
        ranks = torch.empty_like(tokens)
        scores = _in_rows(scores)
        places = rows, tokens, len(tokens)
        self._call(_typed("rank", scores), scores.data_ptr(), scores.shape[1], scores.stride(0), *places, ranks)
        return ranks

    def draw(
        self,
        scores: Tensor,
        token_ids: Tensor | None,
        temperature: float,
        seeds: Tensor,
        steps: Tensor,
        log_normalisers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`sampling.plain_draw`."""
        tokens, logprobs = torch.empty(len(scores), dtype=torch.int64), torch.empty(len(scores))
        scores = _in_rows(scores)
        where = scores.data_ptr(), token_ids, *scores.shape, scores.stride(0)
        self._call(_typed("draw", scores), *where, temperature, seeds, steps, log_normalisers, tokens, logprobs)
        return tokens, logprobs

    def keep_mass(self, preferences: Tensor, weights: Tensor, goals: Tensor) -> Tensor:
        """`filters.plain_keep_mass`."""
        is_kept = torch.empty(preferences.shape, dtype=torch.bool)
        self._call("keep_mass", preferences, weights, goals, *preferences.shape, is_kept)
        return is_kept

    def pack(self, scores: Tensor, token_ids: Tensor | None, is_kept: Tensor) -> tuple[Tensor, Tensor]:
        """`filters.plain_pack`."""
        shape = (len(scores), max(1, int(is_kept.count_nonzero(-1).max())))
        packed, packed_ids = torch.full(shape, -torch.inf), torch.zeros(shape, dtype=torch.int64)
        self._call("pack", scores, token_ids, is_kept, *scores.shape, shape[1], packed, packed_ids)
        return packed, packed_ids

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a function with addresses for tensors; those it writes to must be contiguous, others may be copied."""
        held = [each.contiguous() if isinstance(each, Tensor) else each for each in arguments]
        getattr(self._library, name)(*(each.data_ptr() if isinstance(each, Tensor) else each for each in held))


def _in_rows(scores: Tensor) -> Tensor:
    """(B, V), each row in one piece, for which they are copied only if need be."""
    return scores if scores.stride(1) == 1 else scores.contiguous()


def _typed(name: str, tensor: Tensor) -> str:
    """Name of the function for tensors of this dtype."""
    return f"{name}_{_name(tensor.dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
    """The kernels if they can take this tensor: on the CPU, in float32 or bfloat16."""
    return kernels() if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16) else None


def for_weight(weight: Tensor) -> Kernels | None:
    """The kernels if they can multiply with these weights, (O, I)."""
    found = for_tensor(weight)
    return found if found and found.takes(weight) else None
