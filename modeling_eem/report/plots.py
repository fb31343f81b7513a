"""Plots, drawn without a screen and without matplotlib's global state."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from modeling_eem.files import write_atomically

# Okabe & Ito: told apart with any colour vision; the markers and line ends help in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
INK, GREY = "#222222", "#6b6b6b"


@dataclass(frozen=True)
class LearningCurve:
    """One run: what it scored after how many training tokens.

    Attributes:
        name: as the legend shows it.
        held_out: (tokens seen, value) pairs on held-out text.
        train: (tokens seen, value) pairs on training text, in the same unit; drawn faintly.
    """

    name: str
    held_out: Sequence[tuple[float, float]]
    train: Sequence[tuple[float, float]] = ()


def learning_curves(
    path: str | Path,
    curves: Sequence[LearningCurve],
    *,
    unit: str,
    title: str = "",
    references: Mapping[str, float] | None = None,
) -> Path:
    """Draw runs over training tokens as a PNG at `path`: training faint, held-out marked, references dashed.

    Args:
        path: where the PNG goes.
        curves: one a run, seven at most.
        unit: what the values are, such as "held-out bits per byte"; labels the vertical axis.
        title: a line above the plot.
        references: name → value of horizontal lines, such as xz's bits per byte.

    Raises:
        ValueError: without curves, with more than seven, or if a run has no finite held-out value.
    """
    if not 1 <= len(curves) <= len(COLOURS):
        raise ValueError(f"a plot holds 1 to {len(COLOURS)} curves, not {len(curves)}: draw several plots.")
    for curve in curves:
        if not any(math.isfinite(value) for _, value in curve.held_out):
            raise ValueError(f"the run {curve.name!r} has no finite held-out value to draw.")
    references = references or {}

    figure = Figure(figsize=(8, 4.8), dpi=160, layout="constrained")
    axes = figure.subplots()
    labels = [(value, f"{name} {value:.2f}", GREY) for name, value in references.items()]
    for curve, colour, marker in zip(curves, COLOURS, MARKERS):
        tokens, values = _columns(curve.held_out)
        axes.plot(*_columns(curve.train), color=colour, alpha=0.3, linewidth=1)
        axes.plot(tokens, values, color=colour, linewidth=2, marker=marker, markersize=5, label=curve.name)
        labels.append((values[-1], f"{values[-1]:.2f}", colour))
    for value in references.values():
        axes.axhline(value, color=GREY, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
    _limit_values(axes, curves, references)
    _label_in_margin(axes, labels)
    if any(curve.train for curve in curves):
        axes.plot([], [], color=GREY, alpha=0.5, linewidth=1, label="the same on training text")

    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    label_axes(axes, "training tokens", unit, title)
    add_legend(axes)
    return save_png(path, figure)


def label_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Names of both axes and a title, in the style of all plots."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.set_title(title, loc="left", color=INK, fontweight="bold")
    axes.tick_params(colors=GREY)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")


def add_legend(axes: Axes) -> None:
    """A legend of what carries a label."""
    axes.legend(labelcolor=INK, facecolor="white", edgecolor="none", framealpha=0.9)


def save_png(path: str | Path, figure: Figure) -> Path:
    """Write a figure, whole or not at all."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return write_atomically(path, image.getvalue())


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


def _limit_values(axes: Axes, curves: Sequence[LearningCurve], references: Mapping[str, float]) -> None:
    """Show all held-out values and references; the first training values, many times as high, may leave at the top."""
    shown = [*references.values(), *(value for curve in curves for value in _columns(curve.held_out)[1])]
    lowest = min([*shown, *(value for curve in curves for value in _columns(curve.train)[1])])
    margin = 0.06 * (max(shown) - lowest) or 0.5
    axes.set_ylim(lowest - margin, max(shown) + margin)


def _label_in_margin(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write (value, text, colour) right of the plot at the value's height; labels that would overlap move up."""
    low, high = axes.get_ylim()
    height = -math.inf
    for value, text, colour in sorted(labels):
        height = max(value, height + 0.05 * (high - low))
        axes.text(1.015, height, text, color=colour, fontsize=9, va="center", transform=axes.get_yaxis_transform())
