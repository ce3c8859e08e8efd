"""Histograms and curves as the numbers an SVG needs; templates draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.statistics.ragged import Array

WIDTH, HEIGHT = 160, 48
MOST_BARS = 32


class Bar(NamedTuple):
    """A rectangle of a chart, and what it stands for."""

    x: float
    y: float
    width: float
    height: float
    title: str


class Chart(NamedTuple):
    """One small chart.

    Attributes:
        bars: left to right.
        points: of a curve, as SVG writes them; "" for a histogram.
        left, right: what the ends of the axis stand for.
        title: what it shows, for those who cannot see it.
    """

    bars: tuple[Bar, ...]
    points: str
    left: str
    right: str
    title: str


def histogram(counts: Array, size: int, unit: float, name: str) -> Chart:
    """Shares of a histogram over [0, size), in at most 32 bars.

    Args:
        counts: [value] how often.
        size: how many values the axis has; the same for all charts beside each other.
        unit: what one step of the axis is worth.
        name: what is counted.
    """
    per_bar = max(1, -(-size // MOST_BARS))
    num_bars = max(1, -(-size // per_bar))
    padded = np.zeros(num_bars * per_bar)
    padded[: len(counts)] = counts[: len(padded)]
    sums = padded.reshape(num_bars, per_bar).sum(axis=1)
    names = [_range(index * per_bar, per_bar, unit) for index in range(num_bars)]
    title = f"{name}, most often {names[int(sums.argmax())]}"
    return Chart(_bars(sums, names), "", "0", f"{(num_bars * per_bar - 1) * unit:g}", title)


def categories(counts: Sequence[int], names: Sequence[str], ends: tuple[str, str], name: str) -> Chart:
    """Shares of what is counted under names, a bar each; `ends` stand at the ends of the axis."""
    values = np.array(counts, np.float64)
    return Chart(_bars(values, names), "", *ends, f"{name}, most often {names[int(values.argmax())]}")


def _bars(values: Array, names: Sequence[str]) -> tuple[Bar, ...]:
    total, most, width = max(1, values.sum()), max(1, values.max()), WIDTH / len(values)
    return tuple(
        Bar(
            x=round(index * width, 2),
            y=round(HEIGHT - HEIGHT * float(value / most), 2),
            width=round(max(0.5, width - 1), 2),
            height=round(HEIGHT * float(value / most), 2),
            title=f"{name}: {100 * value / total:.3g} % ({round(value):,})",
        )
        for index, (value, name) in enumerate(zip(values.tolist(), names, strict=True))
        if value
    )


def curve(sums: Array, counts: Array, size: int, name: str) -> Chart:
    """Means by position, from 0 to 1, over `size` positions."""
    means = sums / np.maximum(1, counts)
    step = WIDTH / max(1, size - 1)
    every = max(1, len(means) // WIDTH)
    places = range(0, len(means), every)
    points = " ".join(f"{index * step:.1f},{HEIGHT - HEIGHT * means[index]:.1f}" for index in places)
    ends = f"{means[0]:.2f} at step 1, {means[-1]:.2f} at step {len(means)}" if len(means) else "no steps"
    return Chart((), points, "1", str(size), f"{name}: {ends}")


def _range(first: int, number: int, unit: float) -> str:
    if number == 1 and unit == 1:
        return str(first)
    end = (first + number - 1) if unit == 1 else (first + number)
    return f"{first * unit:g} to {end * unit:g}"
