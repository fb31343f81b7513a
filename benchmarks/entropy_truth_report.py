"""What the truth benchmark writes: one score an estimator and truth, tables of them, and a figure over training.

Shapes: R rows, T tokens, N tokens that are scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_eem.report import Table, write_results
from modeling_eem.report.plots import COLOURS, GREY, INK, MARKERS, label_axes, save_png

NAME = "entropy-truth"
TRUTHS = {
    "surprisal": "the true surprisal -log2 p(x_j | x_<j)",
    "entropy": "the true conditional entropy H(X_j | x_<j)",
}
FIGURE_ESTIMATORS = ("exact", "two models", "sliding", "occlusion, loss", "causal", "teacher", "regression, token")


@dataclass(frozen=True)
class Score:
    """How an estimator's values go with a truth, over all tokens that it scores; NaN where that has no meaning.

    Attributes:
        estimator: its name.
        step: optimizer steps that its model was trained for.
        truth: "surprisal" or "entropy".
        tokens: how many were scored.
        error: mean absolute error in bits; NaN for values that are no bits.
        pearson: correlation; NaN where a side is constant.
        total: the sum of the values over the sum of the truth; NaN for values that are no bits.
    """

    estimator: str
    step: int
    truth: str
    tokens: int
    error: float
    pearson: float
    total: float


def compare(
    estimator: str, step: int, truth: str, values_RT: np.ndarray, truth_RT: np.ndarray, is_in_bits: bool = True
) -> Score:
    """Score values against a truth, NaN left out."""
    is_scored_RT = ~np.isnan(values_RT)
    values_N, truth_N = values_RT[is_scored_RT], truth_RT[is_scored_RT]
    varies = min(np.ptp(values_N), np.ptp(truth_N)) > 1e-9
    return Score(
        estimator,
        step,
        truth,
        tokens=len(values_N),
        error=float(np.abs(values_N - truth_N).mean()) if is_in_bits else float("nan"),
        pearson=float(np.corrcoef(values_N, truth_N)[0, 1]) if varies else float("nan"),
        total=float(values_N.sum() / truth_N.sum()) if is_in_bits else float("nan"),
    )


def write_record(folder: Path, settings: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Write `entropy-truth.md`, `.json` and `.png`.

    Args:
        settings: of the experiment, for the JSON.
        scores: as dicts, each with its `source` and `backbone`.

    Returns:
        The tables.
    """
    frame = pd.DataFrame(scores).astype({"error": float, "pearson": float, "total": float})
    last = frame[frame["step"] == frame["step"].max()]
    tables = [
        _by_source(last, "surprisal", "error", f"Mean absolute error against {TRUTHS['surprisal']}, bits"),
        _by_source(last, "entropy", "error", f"Mean absolute error against {TRUTHS['entropy']}, bits"),
        _by_source(last, "surprisal", "pearson", f"Pearson's correlation with {TRUTHS['surprisal']}"),
        _by_source(last, "entropy", "pearson", f"Pearson's correlation with {TRUTHS['entropy']}"),
        _by_source(last, "surprisal", "total", "Total: the sum of the values over the sum of the true surprisals"),
        _by_step(frame),
    ]
    _draw(folder / f"{NAME}.png", frame)
    caption = "Mean absolute error against the true surprisal, over training"
    content = {"settings": dict(settings), "scores": list(scores)}
    write_results(folder, NAME, tables, content, {caption: f"{NAME}.png"})
    return tables


def _by_source(last: pd.DataFrame, truth: str, measure: str, title: str) -> Table:
    """One line an estimator and backbone, one column a source; lines without a value are left out."""
    chosen = last[last["truth"] == truth]
    wide = chosen.pivot_table(index=["estimator", "backbone"], columns="source", values=measure, sort=False)
    wide = wide.dropna(how="all")
    sources = [source for source in chosen["source"].unique() if source in wide]
    return Table(
        columns=("estimator", "models", *sources),
        rows=[(*names, *(float(value) for value in line)) for names, line in zip(wide.index, wide[sources].values)],
        title=title,
    )


def _by_step(frame: pd.DataFrame) -> Table:
    """Errors against the surprisal after each snapshot, averaged over the sources that an estimator scores."""
    chosen = frame[(frame["truth"] == "surprisal") & frame["error"].notna()]
    steps = sorted(frame["step"].unique())
    wide = chosen.pivot_table(index=["estimator", "backbone"], columns="step", values="error", sort=False)
    wide = wide[wide[steps[0]].notna()]
    return Table(
        columns=("estimator", "models", *(f"{step} steps" for step in steps)),
        rows=[(*names, *(float(value) for value in line)) for names, line in zip(wide.index, wide[steps].values)],
        title="Mean absolute error against the true surprisal over training, bits, mean over the sources",
    )


def _draw(path: Path, frame: pd.DataFrame) -> None:
    """A row of panels a backbone, a panel a source: errors against the surprisal over training steps."""
    chosen = frame[(frame["truth"] == "surprisal") & frame["error"].notna()]
    sources, backbones = chosen["source"].unique(), chosen["backbone"].unique()
    size = (2.5 * len(sources) + 0.8, 2.6 * len(backbones) + 1.0)
    figure = Figure(figsize=size, dpi=140, layout="constrained")
    panels = figure.subplots(len(backbones), len(sources), sharex=True, sharey="col", squeeze=False)
    for row, backbone in zip(panels, backbones):
        for axes, source in zip(row, sources):
            of_panel = chosen[(chosen["source"] == source) & (chosen["backbone"] == backbone)]
            _draw_panel(axes, of_panel)
            label_axes(axes, "", backbone if source == sources[0] else "", source if row is panels[0] else "")
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.supxlabel("training steps", color=INK, fontsize=10)
    figure.supylabel("mean absolute error against the true surprisal, bits", color=INK, fontsize=10)
    save_png(path, figure)


def _draw_panel(axes: Axes, of_panel: pd.DataFrame) -> None:
    steps = sorted(of_panel["step"].unique())
    for estimator, colour, marker in zip(FIGURE_ESTIMATORS, COLOURS, MARKERS, strict=True):
        curve = of_panel[of_panel["estimator"] == estimator].sort_values("step")
        if len(curve):
            axes.plot(curve["step"], curve["error"], color=colour, marker=marker, markersize=4, label=estimator)
    for name, style in (("a constant", (0, (5, 4))), ("true entropy", (0, (1, 2)))):
        value = of_panel.loc[of_panel["estimator"] == name, "error"].item()
        axes.axhline(value, color=GREY, linewidth=1.2, linestyle=style, label=name, zorder=1)
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
