"""Plots of quantization: what each format costs, what each layer minds, how a code's numbers are spread."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from modeling_eem.report.plots import COLOURS, GREY, INK, MARKERS, add_legend, label_axes, save_png

# Losses differ by powers of ten; below this many nats a token the axis is linear, so that gains can be shown.
_LINEAR_BELOW = 1e-3


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
    figure = Figure(figsize=(9, 4.8), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    axes.axhline(0, color=GREY, linewidth=0.8)
    for (model, of_model), colour, marker in zip(costs.items(), COLOURS, MARKERS):
        places = [formats.index(name) for name in of_model]
        axes.plot(places, list(of_model.values()), marker, color=colour, markersize=7, alpha=0.85, label=model)
    axes.set_xticks(range(len(formats)), formats, rotation=35, ha="right")
    label_axes(axes, "", "nats a token more than unrounded", title)
    add_legend(axes)
    return save_png(path, figure)


def layer_sweep(
    path: str | Path, effects: Mapping[str, Mapping[tuple[str, str], Mapping[str, float]]], title: str = ""
) -> Path:
    """Nats a token that rounding one layer costs, a panel a (part, format), as a PNG.

    Args:
        path: where the PNG goes.
        effects: model → (part, format) → layer → nats a token; NaN is not drawn. Models may have other layers.
        title: a line above the plot.

    Raises:
        ValueError: without models, or with more than seven.
    """
    _check_number(effects)
    panels = list(dict.fromkeys(panel for of_model in effects.values() for panel in of_model))
    layers = list(
        dict.fromkeys(name for of_model in effects.values() for panel in of_model.values() for name in panel)
    )
    figure = Figure(figsize=(3 + 2.6 * len(panels), 1.5 + 0.17 * len(layers)), dpi=130, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontweight="bold")
    all_axes = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels):
        axes.set_xscale("symlog", linthresh=_LINEAR_BELOW)
        axes.axvline(0, color=GREY, linewidth=0.8)
        for (model, of_model), colour, marker in zip(effects.items(), COLOURS, MARKERS):
            values = of_model.get(panel, {})
            places = [layers.index(name) for name in values]
            axes.plot(list(values.values()), places, marker, color=colour, markersize=4, alpha=0.8, label=model)
        label_axes(axes, "nats a token more", "", f"{panel[0]}, {panel[1]}")
        axes.title.set_fontsize(9)
        axes.tick_params(axis="both", labelsize=7)
    all_axes[0].set_yticks(range(len(layers)), layers)
    all_axes[0].invert_yaxis()
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), labelcolor=INK, frameon=False)
    return save_png(path, figure)


def code_histograms(
    path: str | Path, edges: Sequence[float], windows: Sequence[Sequence[int]], title: str = ""
) -> Path:
    """How a code's numbers are spread: all windows together, and each, as a PNG.

    Args:
        path: where the PNG goes.
        edges: of the buckets, one more than there are.
        windows: a count a bucket for each window.
        title: a line above the plot.
    """
    together = [sum(column) for column in zip(*windows)]
    rows = -(-len(windows) // 5)
    figure = Figure(figsize=(11, 2.6 + 1.4 * rows), dpi=130, layout="constrained")
    grid = figure.add_gridspec(1 + rows, 5, height_ratios=[1.8] + [1] * rows)
    axes = figure.add_subplot(grid[0, :])
    axes.stairs(together, edges, fill=True, color=COLOURS[0])
    label_axes(axes, "", "numbers", title or "all windows")
    for number, counts in enumerate(windows):
        axes = figure.add_subplot(grid[1 + number // 5, number % 5])
        axes.stairs(counts, edges, fill=True, color=COLOURS[0])
        label_axes(axes, "", "", f"window {number + 1}")
        axes.title.set_fontsize(8)
        axes.tick_params(labelsize=7)
    for axes in figure.axes:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    return save_png(path, figure)


def _check_number(models: Mapping[str, object]) -> None:
    if not 1 <= len(models) <= len(COLOURS):
        raise ValueError(f"a plot holds 1 to {len(COLOURS)} models, not {len(models)}: draw several plots.")
