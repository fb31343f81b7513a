"""Plots of curves: losses over tokens on two kinds of axis, and cross-entropy over the bits of embeddings."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import EngFormatter, LogFormatter

from modeling_eem.report.plots import (
    COLOURS,
    GREY,
    INK,
    MARKERS,
    add_legend,
    label_axes,
    new_figure,
    save_png,
    scale_ticks,
)

Points = Sequence[tuple[float, float]]
_PANELS = {"linear": "Loss over tokens", "log-linear": "Loss over tokens, logarithmic axis"}


def loss_curves(
    path: str | Path,
    curves: Mapping[str, Points],
    fits: Mapping[str, Mapping[str, Points]],
    differences: Mapping[str, Points],
    unit: str,
) -> Path:
    """Runs on a linear and on a logarithmic axis of tokens, and their differences, one panel each, as a PNG.

    Args:
        path: where the PNG goes.
        curves: run → (tokens, loss).
        fits: "linear" and "log-linear" → run → (tokens, fitted loss), dashed, each on the axis where it is straight.
        differences: name → (tokens, difference); a third panel if there are any.
        unit: the unit of the losses.

    Raises:
        ValueError: without runs, or with more than seven.
    """
    if not 1 <= len(curves) <= len(COLOURS):
        raise ValueError(f"a plot holds 1 to {len(COLOURS)} curves, not {len(curves)}: draw several plots.")
    figure = new_figure(3.6 * (3 if differences else 2))
    all_axes = figure.subplots(3 if differences else 2, 1)
    for axes, kind in zip(all_axes, ("linear", "log-linear")):
        for (name, points), colour, marker in zip(curves.items(), COLOURS, MARKERS):
            axes.plot(*zip(*points), color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)
            axes.plot(*zip(*fits[kind][name]), color=colour, linewidth=1, linestyle=(0, (5, 4)))
        if kind == "log-linear":
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(_MinorTokens())
        axes.plot([], [], color=GREY, linewidth=1, linestyle=(0, (5, 4)), label=f"{kind} fit")
        label_axes(axes, "training tokens", unit, _PANELS[kind])
        scale_ticks(axes, "y")
        add_legend(axes)
    if differences:
        axes = all_axes[2]
        for (name, points), colour, marker in zip(differences.items(), COLOURS[1:], MARKERS[1:]):
            axes.plot(*zip(*points), color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)
        axes.axhline(0, color=GREY, linewidth=0.8)
        label_axes(axes, "training tokens", unit, "Difference between runs")
        scale_ticks(axes, "y")
        add_legend(axes)
    for axes in all_axes:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(which="minor", colors=GREY)
    return save_png(path, figure)


class _MinorTokens(LogFormatter):
    """Labels such as "200k" between powers of ten, where `LogFormatter` finds room."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return EngFormatter(sep="")(x) if super().__call__(x, pos) else ""


def entropy_floor_plot(
    path: str | Path,
    points: Mapping[str, tuple[float, float]],
    used: Collection[str],
    line: tuple[float, float],
    crossing: float,
    interval: tuple[float, float],
    ideal: tuple[str, float],
) -> Path:
    """Cross-entropy against the embedding's size, the fitted line, and where it meets zero, as a PNG.

    Args:
        path: where the PNG goes.
        points: run → (bits per byte of embedding, cross-entropy in bits per byte).
        used: the runs that the line was fitted to; others are drawn hollow.
        line: intercept and slope.
        crossing, interval: where the line meets zero, and its interval; an infinite interval is not drawn.
        ideal: name and bits per byte of an entropy; its ideal line of slope -1 is drawn.
    """
    figure = new_figure(4.8)
    axes = figure.subplots()
    for name, (embedding, cross_entropy) in points.items():
        axes.plot(embedding, cross_entropy, "o", color=COLOURS[0], markerfacecolor=None if name in used else "white")
        axes.annotate(name, (embedding, cross_entropy), (5, 6), textcoords="offset points", fontsize=9, color=GREY)
    axes.plot([0, crossing], [line[0], 0], color=COLOURS[0], linewidth=1, linestyle=(0, (5, 4)), label="fitted line")
    name, entropy = ideal
    axes.plot([0, entropy], [entropy, 0], color=INK, linewidth=1, linestyle=":", label=f"ideal, {name} {entropy:.3f}")
    axes.axhline(0, color=GREY, linewidth=0.8)
    if math.isfinite(interval[0]):
        ends = [max(interval[0], 0.0), interval[1]]
        axes.plot(ends, [0, 0], color=COLOURS[1], linewidth=5, alpha=0.5, solid_capstyle="butt", label="its 95 %")
    axes.plot(crossing, 0, "D", color=COLOURS[1], label=f"crossing {crossing:.3f}")
    axes.set_xlim(0, 1.12 * max([crossing, entropy, *(embedding for embedding, _ in points.values())]))
    label_axes(axes, "bits per byte of embedding", "cross-entropy, bits per byte", "How small an embedding tells all")
    add_legend(axes)
    return save_png(path, figure)
