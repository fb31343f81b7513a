"""Plots in one style, drawn without a screen and without matplotlib's global state.

A figure is as wide as a page, with letters of the page's size. It is on white, to be readable on dark pages too.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, ScalarFormatter

from modeling_eem.files import write_atomically

# Okabe & Ito: distinguishable with any colour vision; markers and line ends help in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
INK, GREY = "#222222", "#6b6b6b"
WIDTH = 8  # inches: the width of a page
_SPAN = 0.02  # an axis shows at least this share of the largest value, or rounding would fill it
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class LearningCurve:
    """One run: its values after numbers of training tokens.

    Attributes:
        name: the name in the legend.
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
        curves: one a run, at most seven.
        unit: the unit of the values, such as "held-out bits per byte"; the label of the vertical axis.
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

    figure = new_figure(4.8)
    axes = figure.subplots()
    labels = [(value, f"{name} {short(value)}", GREY) for name, value in references.items()]
    for curve, colour, marker in zip(curves, COLOURS, MARKERS):
        tokens, values = _columns(curve.held_out)
        axes.plot(*_columns(curve.train), color=colour, alpha=0.3, linewidth=1)
        axes.plot(tokens, values, color=colour, linewidth=2, marker=marker, markersize=5, label=curve.name)
        labels.append((values[-1], short(values[-1]), colour))
    for value in references.values():
        axes.axhline(value, color=GREY, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
    _limit_values(axes, curves, references)
    _label_in_margin(axes, labels)
    if any(curve.train for curve in curves):
        axes.plot([], [], color=GREY, alpha=0.5, linewidth=1, label="training")

    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    label_axes(axes, "training tokens", unit, title)
    scale_ticks(axes, "y")
    if len(curves) > 1 or curves[0].train or curves[0].name not in title:
        add_legend(axes)
    return save_png(path, figure)


def new_figure(height: float) -> Figure:
    """An empty figure as wide as a page, `height` inches high."""
    return Figure(figsize=(WIDTH, height), dpi=160, layout="constrained", facecolor="white")


def short(value: float) -> str:
    """Three significant digits: "3.14", "0.0123", "2.80×10⁻⁴"."""
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def scale_ticks(axes: Axes, which: Literal["x", "y"]) -> None:
    """Put short numbers at an axis's ticks, and a common power of ten into the axis's label.

    Call it last: it reads the limits, and widens an axis that shows less than a fiftieth of its values.
    """
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    largest = max(abs(low), abs(high))
    if (missing := _SPAN * largest - (high - low)) > 0:
        low, high = low - missing / 2, high + missing / 2
        axis.set_view_interval(low, high, ignore=True)
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    power = 0 if -2 <= exponent < 4 else exponent
    formatter = ScalarFormatter(useOffset=False)
    if power:
        digits = max(0, math.ceil(power - math.log10((high - low) / 4)))
        formatter = FuncFormatter(lambda value, _: f"{value / 10**power:.{digits}f}")
        axis.set_label_text(f"{axis.get_label_text()}  (×10{str(power).translate(_SUPERSCRIPTS)})")
    axis.set_major_formatter(formatter)


def label_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Names of both axes and a title, in the style of all plots."""
    axes.set_xlabel(x, color=INK, fontsize=11)
    axes.set_ylabel(y, color=INK, fontsize=11, wrap=True)
    axes.set_title(title, loc="left", color=INK, fontweight="bold", fontsize=12, wrap=True)
    axes.tick_params(colors=GREY, labelsize=10)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")


def add_legend(axes: Axes) -> None:
    """Add a legend of everything that has a label."""
    axes.legend(labelcolor=INK, facecolor="white", edgecolor="none", framealpha=0.9, fontsize=10)


def save_png(path: str | Path, figure: Figure) -> Path:
    """Write a figure, whole or not at all."""
    image = io.BytesIO()
    figure.savefig(image, format="png", facecolor="white", transparent=False)
    return write_atomically(path, image.getvalue())


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


def _limit_values(axes: Axes, curves: Sequence[LearningCurve], references: Mapping[str, float]) -> None:
    """Show all held-out values and references; the first training values are much higher and may be cut off."""
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
        axes.text(1.015, height, text, color=colour, fontsize=10, va="center", transform=axes.get_yaxis_transform())
