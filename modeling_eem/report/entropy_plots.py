"""Plots of per-token entropies: one estimate against another, and entropies along a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from modeling_eem.report.plots import COLOURS, add_legend, label_axes, save_png

_FEW_POINTS = 2000


@dataclass(frozen=True)
class Band:
    """A curve and its interval, a value at each x."""

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
    """One value of a token against another, as a PNG: few as points, many as hexagons coloured by how many they hold.

    Args:
        path: where the PNG goes.
        x, y: the tokens' values.
        labels: of the axes, units included.
        line: m and b of y = m x + b, drawn through the points.
        title: a line above.

    Raises:
        ValueError: without points, or for an x or y without its partner.
    """
    if not len(x) == len(y) > 0:
        raise ValueError(f"a scatter plot needs as many x as y, and at least one, not {len(x)} and {len(y)}.")
    figure = Figure(figsize=(6.4, 5.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    if len(x) <= _FEW_POINTS:
        axes.plot(x, y, ".", color=COLOURS[0], alpha=0.45, markersize=5, markeredgewidth=0)
    else:
        hexagons = axes.hexbin(x, y, gridsize=55, bins="log", mincnt=1, cmap="viridis_r", linewidths=0.1)
        figure.colorbar(hexagons, ax=axes, label="tokens a hexagon").outline.set_visible(False)
    ends = [min(x), max(x)]
    axes.plot(
        ends,
        [line[0] * end + line[1] for end in ends],
        color=COLOURS[1],
        linewidth=2,
        label=f"y = {line[0]:.3f} x {'+' if line[1] >= 0 else '−'} {abs(line[1]):.3f}",
    )
    axes.set_ylim(*_range(y))  # a steep line may leave at the top
    label_axes(axes, *labels, title)
    add_legend(axes)
    return save_png(path, figure)


def index_plot(path: str | Path, curves: Mapping[str, Band]) -> Path:
    """Mean normalised entropies over a token's index in its row, as a PNG, 95 % intervals shaded.

    Raises:
        ValueError: without curves, or with more than seven.
    """
    if not 1 <= len(curves) <= len(COLOURS):
        raise ValueError(f"a plot holds 1 to {len(COLOURS)} curves, not {len(curves)}: draw several plots.")
    figure = Figure(figsize=(8, 4.6), dpi=160, layout="constrained")
    axes = figure.subplots()
    for (name, band), colour in zip(curves.items(), COLOURS):
        axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(band.x, band.mean, color=colour, linewidth=1.4, label=name)
    axes.set_ylim(0, 1.05 * max(max(band.mean) for band in curves.values()))
    label_axes(axes, "token's index in its row", "entropy, each row mapped to [0, 1]", "Mean over rows, and its 95 %")
    add_legend(axes)
    return save_png(path, figure)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin
