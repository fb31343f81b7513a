"""Plots of quantization: the cost of each format, the sensitivity of each layer, the spread of a code's numbers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from modeling_eem.report.plots import COLOURS, GREY, INK, MARKERS, add_legend, label_axes, new_figure, save_png

# Losses differ by powers of ten. Below this many nats a token the axis is linear, to show gains too.
_LINEAR_BELOW = 1e-3
_PANELS_A_LINE = 5
_TICKS = 5  # of a panel's width; more would run into each other
_LEGEND_LETTERS = 90  # in a line of a legend as wide as the page


def format_costs(path: str | Path, costs: Mapping[str, Mapping[str, float]], title: str = "") -> Path:
    """Nats a token that each format of the code costs, as a PNG.

    Args:
        path: where the PNG goes.
        costs: model → format → nats a token more than with the unrounded code.
        title: a line above the plot.

    Raises:
        ValueError: without models, or with more than seven.
    """
    _check_number(costs)
    formats = list(dict.fromkeys(name for of_model in costs.values() for name in of_model))
    figure = new_figure(4.8)
    axes = figure.subplots()
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    axes.axhline(0, color=GREY, linewidth=0.8)
    for number, ((model, of_model), colour, marker) in enumerate(zip(costs.items(), COLOURS, MARKERS)):
        beside = 0.5 * (number - (len(costs) - 1) / 2) / len(costs)  # equal costs must not hide each other
        places = [formats.index(name) + beside for name in of_model]
        axes.plot(places, list(of_model.values()), marker, color=colour, markersize=7, alpha=0.85, label=model)
    axes.set_xticks(range(len(formats)), formats, rotation=35, ha="right")
    label_axes(axes, "", "nats a token more than unrounded", title)
    add_legend(axes)
    return save_png(path, figure)


def layer_sweep(
    path: str | Path, effects: Mapping[str, Mapping[tuple[str, str], Mapping[str, float]]], title: str = ""
) -> Path:
    """Nats a token that rounding one layer costs, one panel a (part, format), as a PNG.

    Args:
        path: where the PNG goes.
        effects: model → (part, format) → layer → nats a token; NaN is not drawn. Models may have different layers.
        title: a line above the plot.

    Raises:
        ValueError: without models, or with more than seven.
    """
    _check_number(effects)
    panels = list(dict.fromkeys(panel for of_model in effects.values() for panel in of_model))
    layers = list(
        dict.fromkeys(name for of_model in effects.values() for panel in of_model.values() for name in panel)
    )
    lines = -(-len(panels) // 2)
    figure = new_figure(0.9 + lines * (0.9 + 0.19 * len(layers)))
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontweight="bold", fontsize=12)
    grid = figure.subplots(lines, min(2, len(panels)), sharey=True, sharex=True, squeeze=False)
    all_axes = grid.flat
    for axes, panel in zip(all_axes, panels):
        axes.set_xscale("symlog", linthresh=_LINEAR_BELOW)
        axes.xaxis.get_major_locator().set_params(numticks=_TICKS)
        axes.axvline(0, color=GREY, linewidth=0.8)
        for (model, of_model), colour, marker in zip(effects.items(), COLOURS, MARKERS):
            values = of_model.get(panel, {})
            places = [layers.index(name) for name in values]
            axes.plot(list(values.values()), places, marker, color=colour, markersize=5, alpha=0.8, label=model)
        label_axes(axes, "nats a token more", "", f"{panel[0]}, {panel[1]}")
        axes.title.set_fontsize(11)
        axes.tick_params(axis="both", labelsize=9)
    all_axes[0].set_yticks(range(len(layers)), layers)
    all_axes[0].invert_yaxis()
    handles, labels = all_axes[0].get_legend_handles_labels()
    # A legend wider than the page would narrow the panels.
    columns = max(1, min(len(labels), _LEGEND_LETTERS // (max(map(len, labels)) + 4)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, labelcolor=INK, frameon=False)
    return save_png(path, figure)


def code_histograms(
    path: str | Path, edges: Sequence[float], windows: Sequence[Sequence[int]], title: str = ""
) -> Path:
    """The spread of a code's numbers: all windows together, and each window, as a PNG.

    Args:
        path: where the PNG goes.
        edges: the edges of the buckets, one more than there are buckets.
        windows: for each window, the count of every bucket.
        title: a line above the plot.
    """
    together = [sum(column) for column in zip(*windows)]
    shown = windows if len(windows) > 1 else []  # one window is all windows
    columns = min(_PANELS_A_LINE, max(len(shown), 1))
    lines = -(-len(shown) // columns)
    figure = new_figure(3.0 + 1.7 * lines)
    grid = figure.add_gridspec(1 + lines, columns, height_ratios=[1.8] + [1] * lines)
    axes = figure.add_subplot(grid[0, :])
    axes.stairs(*_rebinned(together, edges), fill=True, color=COLOURS[0])
    label_axes(axes, "value of a number of the code", "numbers", title or "All windows")
    for number, counts in enumerate(shown):
        axes = figure.add_subplot(grid[1 + number // columns, number % columns])
        axes.stairs(*_rebinned(counts, edges), fill=True, color=COLOURS[0])
        label_axes(axes, "", "", f"window {number + 1}")
        axes.title.set_fontsize(10)
        axes.tick_params(labelsize=9)
    for axes in figure.axes:
        axes.set_xlim(edges[0], edges[-1])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8 if axes is figure.axes[0] else 3))
    return save_png(path, figure)


def _rebinned(counts: Sequence[int], edges: Sequence[float]) -> tuple[list[int], list[float]]:
    """Join buckets until about twice the square root of their total count are left: few numbers then make no comb."""
    wanted = max(8, round(2 * math.sqrt(sum(counts))))
    joined = max(1, -(-len(counts) // wanted))
    starts = range(0, len(counts), joined)
    return [sum(counts[start : start + joined]) for start in starts], [*(edges[start] for start in starts), edges[-1]]


def _check_number(models: Mapping[str, object]) -> None:
    if not 1 <= len(models) <= len(COLOURS):
        raise ValueError(f"a plot holds 1 to {len(COLOURS)} models, not {len(models)}: draw several plots.")
