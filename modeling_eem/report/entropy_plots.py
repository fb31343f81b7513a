"""Plots of per-token entropies: one estimate against another, and entropies along a row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_eem.report.plots import (
    COLOURS,
    GREY,
    INK,
    add_legend,
    label_axes,
    new_figure,
    save_png,
    scale_ticks,
    short,
)

_FEW_POINTS = 2000


@dataclass(frozen=True)
class Band:
    """A curve and its interval: one value of each at every x."""

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def scatter_plot(
    path: str | Path,
    x: Sequence[float],
    y: Sequence[float],
    *,
    labels: tuple[str, str],
    line: tuple[float, float],
    title: str = "",
) -> Path:
    """One value of a token against another, as a PNG: few as points, many as hexagons coloured by their count.

    Args:
        path: where the PNG goes.
        x, y: the tokens' values.
        labels: the axes' labels, with units.
        line: m and b of y = m x + b, drawn through the points.
        title: a line above the plot.

    Raises:
        ValueError: without points, or if x and y differ in length.
    """
    if not len(x) == len(y) > 0:
        raise ValueError(f"a scatter plot needs as many x as y, and at least one, not {len(x)} and {len(y)}.")
    figure = new_figure(5.6)
    axes = figure.subplots()
    if len(x) <= _FEW_POINTS:
        axes.plot(x, y, ".", color=COLOURS[0], alpha=0.45, markersize=5, markeredgewidth=0)
    else:
        hexagons = axes.hexbin(x, y, gridsize=55, bins="log", mincnt=1, cmap="viridis_r", linewidths=0.1)
        bar = figure.colorbar(hexagons, ax=axes)
        bar.outline.set_visible(False)
        bar.set_label("tokens a hexagon", color=INK, fontsize=11)
        bar.ax.tick_params(colors=GREY, labelsize=10)
    ends = [min(x), max(x)]
    axes.plot(
        ends,
        [line[0] * end + line[1] for end in ends],
        color=COLOURS[1],
        linewidth=2,
        label=f"y = {short(line[0])} x {'+' if line[1] >= 0 else '−'} {short(abs(line[1]))}",
    )
    axes.set_ylim(*_range(y))  # a steep line may leave at the top
    label_axes(axes, *labels, title)
    scale_ticks(axes, "x")
    scale_ticks(axes, "y")
    add_legend(axes)
    return save_png(path, figure)


def index_plot(path: str | Path, curves: Mapping[str, Band]) -> Path:
    """Mean normalised entropies over a token's index in its row, with shaded 95 % intervals, as a PNG.

    Raises:
        ValueError: without curves, or with more than seven.
    """
    if not 1 <= len(curves) <= len(COLOURS):
        raise ValueError(f"a plot holds 1 to {len(COLOURS)} curves, not {len(curves)}: draw several plots.")
    figure = new_figure(4.6)
    axes = figure.subplots()
    for (name, band), colour in zip(curves.items(), COLOURS):
        axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(band.x, band.mean, color=colour, linewidth=1.4, label=name)
    highest = max(value for band in curves.values() for value in (*band.mean, *band.high) if math.isfinite(value))
    axes.set_ylim(0, 1.04 * min(highest, 1.0))  # a mean of numbers in [0, 1] is in [0, 1]
    label_axes(
        axes,
        "token's index in its row",
        "entropy, each row mapped to [0, 1]",
        "Entropy along a row: mean over rows, and its 95 %",
    )
    add_legend(axes)
    return save_png(path, figure)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin
