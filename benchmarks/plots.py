"""Curves as SVG beside the results they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.machine import result_path


def lines(
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    quick: bool,
) -> None:
    """Draw curves over a logarithmic x axis, y from zero, as `NAME.svg`."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": name}  # the same numbers give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for label, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", ylim=(0, None))
    ticks = sorted({x for points in curves.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(result_path(f"{name}.svg", quick), metadata={"Date": None})
    pyplot.close(figure)
