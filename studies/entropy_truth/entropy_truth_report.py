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
REFERENCES = ("true entropy", "true surprisal", "a constant")  # of a source, whatever the models
FIGURE_ESTIMATORS = (
    "exact",
    "exact, large code",
    "sliding",
    "occlusion, loss",
    "causal",
    "teacher",
    "regression, token",
)


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
        scores: as dicts, each with its `source`, `backbone` and `seed`.

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
    return _table(last[last["truth"] == truth], "source", measure, title)


def _by_step(frame: pd.DataFrame) -> Table:
    """Errors against the surprisal after each snapshot, averaged over the sources that an estimator scores."""
    chosen = frame[(frame["truth"] == "surprisal") & frame["error"].notna()]
    over_training = chosen.groupby("estimator")["step"].transform("nunique") > 1
    title = "Mean absolute error against the true surprisal over training, bits, mean over the sources"
    lines = ["estimator", "backbone", "seed", "step"]
    over_sources = chosen[over_training].groupby(lines, sort=False, as_index=False)["error"].mean()
    return _table(over_sources.assign(step=over_sources["step"].astype(str) + " steps"), "step", "error", title)


def _table(chosen: pd.DataFrame, column: str, measure: str, title: str) -> Table:
    """The values of `measure`, a line an estimator and backbone in the order of their first scores.

    Means over seeds and, if there are several, their standard deviation.
    """
    is_reference = chosen["estimator"].isin(REFERENCES)
    chosen = chosen.assign(backbone=chosen["backbone"].mask(is_reference, "–"))
    chosen = chosen.drop_duplicates(["estimator", "backbone", "seed", column])
    lines = {"index": ["estimator", "backbone"], "columns": column, "values": measure, "sort": False}
    wide = chosen.pivot_table(**lines)
    estimators = list(chosen["estimator"].unique())
    wide = wide.dropna(how="all").sort_index(
        level="estimator", key=lambda names: names.map(estimators.index), sort_remaining=False, kind="stable"
    )
    names = [name for name in chosen[column].unique() if name in wide]
    spread = chosen.pivot_table(**lines, aggfunc="std").reindex(index=wide.index, columns=names)
    rows = zip(wide.index, wide[names].values, spread.values)
    return Table(
        columns=("estimator", "models", *names),
        rows=[(*line, *map(_with_spread, means, deviations)) for line, means, deviations in rows],
        title=title,
    )


def _with_spread(mean: float, deviation: float) -> str | None:
    """None where nothing was scored."""
    if np.isnan(mean):
        return None
    return f"{mean:.3f}" if np.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def _draw(path: Path, frame: pd.DataFrame) -> None:
    """A row of panels a backbone, a panel a source: errors against the surprisal over training steps."""
    chosen = frame[(frame["truth"] == "surprisal") & frame["error"].notna()]
    sources, backbones = chosen["source"].unique(), chosen["backbone"].unique()
    size = (2.5 * len(sources) + 0.8, 2.6 * len(backbones) + 1.0)
    figure = Figure(figsize=size, dpi=140, layout="constrained")
    panels = figure.subplots(len(backbones), len(sources), sharex=True, sharey="col", squeeze=False)
    for row, backbone in zip(panels, backbones):
        for axes, source in zip(row, sources):
            _draw_panel(axes, chosen[(chosen["source"] == source) & (chosen["backbone"] == backbone)])
            is_first, is_last = backbone == backbones[0], backbone == backbones[-1]
            label_axes(
                axes,
                "training steps" if is_last else "",
                f"{backbone}: bits" if source == sources[0] else "",
                source if is_first else "",
            )
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=9, frameon=False, fontsize=9)
    title = "Mean absolute error against the true surprisal, bits"
    figure.suptitle(title, color=INK, fontsize=11, x=0.01, ha="left")
    save_png(path, figure)


def _draw_panel(axes: Axes, of_panel: pd.DataFrame) -> None:
    steps = sorted(of_panel["step"].unique())
    for estimator, colour, marker in zip(FIGURE_ESTIMATORS, COLOURS, MARKERS, strict=True):
        curve = of_panel[of_panel["estimator"] == estimator].groupby("step")["error"].mean()
        if len(curve):
            axes.plot(curve.index, curve, color=colour, marker=marker, markersize=4, label=estimator)
    for name, style in (("a constant", (0, (5, 4))), ("true entropy", (0, (1, 2)))):
        value = of_panel.loc[of_panel["estimator"] == name, "error"].mean()
        axes.axhline(value, color=GREY, linewidth=1.2, linestyle=style, label=name, zorder=1)
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
