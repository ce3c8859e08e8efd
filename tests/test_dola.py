"""Which early layer DoLa contrasts the last one with, and what the contrast is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from pipeline.engine.dola import contrast, early_layers, jensen_shannon
from pipeline.strategies import Dola


@pytest.mark.parametrize(
    ("layers", "num_layers", "expected"),
    [
        ("low", 12, (2, 4)),
        ("high", 12, (6, 8, 10)),
        ("low", 48, (2, 4, 6, 8, 10, 12, 14, 16, 18)),
        ("high", 48, (28, 30, 32, 34, 36, 38, 40, 42, 44, 46)),
        ("low", 3, (2,)),
        ("high", 3, (1,)),
        ("low", 2, (1,)),
        ("high", 2, (1,)),
        ("low", 1, (0,)),
        ("high", 1, (0,)),
        ((4, 1, 1), 6, (1, 4)),
    ],
)
def test_layers_are_those_of_transformers_and_never_none(
    layers: Any, num_layers: int, expected: tuple[int, ...]
) -> None:
    strategy = Dola(name="d", type="dola", max_new_tokens=1, dola_layers=layers)
    assert early_layers(strategy, num_layers) == expected


def test_the_divergence_is_that_of_jensen_and_shannon() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(3, 7, generator=generator).log_softmax(-1)
    others = (3 * torch.randn(2, 3, 7, generator=generator)).log_softmax(-1)
    expected = [[jensenshannon(p.exp(), q.exp()) ** 2 for p, q in zip(one, layer, strict=True)] for layer in others]
    np.testing.assert_allclose(jensen_shannon(one, others), expected, rtol=1e-4)


def test_each_row_is_contrasted_with_the_layer_that_is_furthest_from_its_own_last_one() -> None:
    last = torch.log(torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1]]))
    near, far = [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]
    early = torch.log(torch.tensor([[near, far], [far, near]]))
    ratios = torch.log(torch.tensor([[0.5 / 0.1, 0.4 / 0.2, 0.1 / 0.7]] * 2))
    torch.testing.assert_close(contrast(last, early), ratios)


def test_equal_divergences_take_the_lower_layer() -> None:
    last = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    early = torch.log(torch.tensor([[[0.2, 0.6, 0.2]], [[0.2, 0.2, 0.6]]]))
    assert contrast(last, early).argmin() == 1


def test_a_token_less_than_a_tenth_as_probable_as_the_best_is_out() -> None:
    last = torch.log(torch.tensor([[0.60, 0.0601, 0.0599, 0.28]]))
    scores = contrast(last, torch.zeros(1, 1, 4))
    assert torch.isinf(scores).tolist() == [[False, False, True, False]]
