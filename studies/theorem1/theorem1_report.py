"""Tables with confidence intervals, and figures of small multiples, for the Theorem 1 experiments.

A method is compared with early-stopped cross-entropy seed by seed: both saw the same data and began alike, so their
difference varies less than either. Intervals are Student's, 95 %, over seeds.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import stats
from theorem1_runs import CONTROL, Curves, Key, Method

from modeling_eem.files import write_atomically
from modeling_eem.report import Table
from modeling_eem.report.results import write_results

_COLOURS = ("#0072B2", "#D55E00")  # of the targets, the same in all panels
_GREY, _INK = "#6b6b6b", "#222222"


@dataclass(frozen=True)
class Experiment:
    """Finished runs and what their numbers mean.

    Attributes:
        name: of the record's files.
        title: says what was done, in a few words.
        unit: of all values; less is better.
        settings: the numbers that all runs share.
        results: the runs; every source and size has every method, each with the same seeds.
        log_scale: whether the figures' vertical axis is logarithmic; all values are then positive.
    """

    name: str
    title: str
    unit: str
    settings: Mapping[str, float]
    results: Mapping[Key, Curves]
    log_scale: bool = False

    @property
    def cells(self) -> list[tuple[str, int]]:
        """(source, size), in order."""
        return sorted({(key.source, key.size) for key in self.results})

    @property
    def methods(self) -> list[Method]:
        """In the order of the runs, the control first."""
        return _unique(Method(key.loss, key.target) for key in self.results)

    def runs(self, source: str, size: int, method: Method) -> list[Curves]:
        """One for each seed, in the seeds' order."""
        found = {
            key.seed: curves
            for key, curves in self.results.items()
            if (key.source, key.size, key.loss, key.target) == (source, size, method.loss, method.target)
        }
        return [found[seed] for seed in sorted(found)]


@dataclass(frozen=True)
class Estimate:
    """Mean and half the width of its 95 % interval (Student's, over seeds)."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """ValueError for fewer than two values: one says nothing of its own spread."""
        if len(values) < 2:
            raise ValueError(f"an interval needs two seeds at least, not {len(values)}.")
        quantile = float(stats.t.ppf(0.975, len(values) - 1))
        return cls(float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values)))

    @property
    def sign(self) -> int:
        """-1 or 1 if the whole interval lies below or above 0, else 0."""
        return 0 if abs(self.mean) <= self.half_width else int(math.copysign(1, self.mean))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


def summarize(experiment: Experiment, source: str, size: int) -> dict[Method, dict[str, Estimate]]:
    """What the table of one source and size holds: each method at its end and at its best, and both compared."""
    stopped = [run.test[run.stop] for run in experiment.runs(source, size, CONTROL)]
    summary = {}
    for method in experiment.methods:
        runs = experiment.runs(source, size, method)
        columns = {"best": [run.test[run.stop] for run in runs], "end": [run.test[-1] for run in runs]}
        columns |= {
            f"{name} - stopped": [value - control for value, control in zip(values, stopped, strict=True)]
            for name, values in list(columns.items())
        }
        columns["train, best"] = [run.train[run.stop] for run in runs]
        columns["train, end"] = [run.train[-1] for run in runs]
        summary[method] = {name: Estimate.of(values) for name, values in columns.items()}
    return summary


def summary_table(experiment: Experiment, source: str, size: int) -> Table:
    """One line a method; below, what the intervals of the paired differences allow to say."""
    summary = summarize(experiment, source, size)
    names = ["best", "end", "best - stopped", "end - stopped", "train, best", "train, end"]
    notes = []
    for place in ("best", "end"):
        signs = {method: estimates[f"{place} - stopped"].sign for method, estimates in summary.items()}
        for sign, verdict in ((-1, "below"), (1, "above"), (0, "not told apart from")):
            chosen = [_name(method) for method, its in signs.items() if its == sign]
            if place == "best" and sign == 0:
                chosen.remove(_name(CONTROL))  # compared with itself
            if chosen:
                notes.append(f"At its {place} {verdict} early-stopped cross-entropy: {'; '.join(chosen)}.")
    return Table(
        columns=("loss", "e", *names),
        rows=[
            (method.loss, method.target or "–", *(str(estimates[name]) for name in names))
            for method, estimates in summary.items()
        ],
        title=f"{source}, {size} training rows: {experiment.unit}",
        notes=notes,
    )


def write_record(folder: Path, experiment: Experiment) -> list[Table]:
    """Write `name.md`, `name.json` and a figure for each size, the first size's as `name.png`.

    Returns:
        The tables, one a source and size.
    """
    sizes = _unique(key.size for key in experiment.results)
    figures = {}
    for size in sizes:
        file = f"{experiment.name}.png" if size == sizes[0] else f"{experiment.name}-{size}.png"
        write_atomically(folder / file, draw(experiment, size))
        figures[f"{experiment.title}, {size} training rows"] = file
    tables = [summary_table(experiment, source, size) for source, size in experiment.cells]
    first_cell = experiment.cells[0]
    overview = Table(
        columns=("setting", "value"),
        rows=[
            ("seeds", str(len(experiment.runs(*first_cell, CONTROL)))),
            *((name, f"{value:.4g}") for name, value in experiment.settings.items()),
        ],
        title=experiment.title,
        notes=[
            "best: the test value at the step with the lowest validation value; end: after the last step.",
            "best - stopped, end - stopped: the difference to early-stopped cross-entropy (its best), seed by seed.",
            "train: cross-entropy on training rows at the same steps, in the same unit.",
            "Mean over seeds ± half of the 95 % interval (Student's); intervals are not corrected for their number.",
        ],
    )
    content = {
        "settings": dict(experiment.settings),
        "summary": [
            {
                "source": source,
                "size": size,
                **asdict(method),
                **{name: asdict(its) for name, its in estimates.items()},
            }
            for source, size in experiment.cells
            for method, estimates in summarize(experiment, source, size).items()
        ],
        "runs": [{**asdict(key), **_rounded(curves)} for key, curves in experiment.results.items()],
    }
    write_results(folder, experiment.name, [overview, *tables], content, figures)
    return tables


def draw(experiment: Experiment, size: int) -> bytes:
    """A PNG: a row of panels a source, a panel a loss; test values over steps, mean and 95 % interval.

    The control is grey in every panel, and its early-stopped value a dashed line.
    """
    sources = [source for source, its_size in experiment.cells if its_size == size]
    losses = _unique(method.loss for method in experiment.methods if method != CONTROL)
    targets = _unique(method.target for method in experiment.methods if method.target)
    figure = Figure(figsize=(2.1 * len(losses) + 0.6, 2.1 * len(sources) + 0.9), dpi=140, layout="constrained")
    panels = figure.subplots(len(sources), len(losses), sharex=True, sharey="row", squeeze=False)
    for row, source in zip(panels, sources):
        for axes, loss in zip(row, losses):
            _draw_curve(axes, experiment.runs(source, size, CONTROL), _GREY, "cross_entropy")
            stopped = summarize(experiment, source, size)[CONTROL]["best"]
            axes.axhline(stopped.mean, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), label="cross_entropy, stopped")
            for method in (method for method in experiment.methods if method.loss == loss):
                colour = _COLOURS[targets.index(method.target)] if method.target else _INK
                label = f"e = {method.target}" if method.target else "without e"
                _draw_curve(axes, experiment.runs(source, size, method), colour, label)
            axes.tick_params(colors=_GREY, labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#ececec", linewidth=0.8)
            if experiment.log_scale:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
        row[0].set_ylabel(source, color=_INK, fontsize=9)
    for axes, loss in zip(panels[0], losses):
        axes.set_title(loss, color=_INK, fontsize=9, fontweight="bold")
    handles = {}
    for axes in panels.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8
    )
    for axes in panels[-1]:
        axes.set_xlabel("training steps", color=_INK, fontsize=8)
    figure.supylabel(experiment.unit, color=_INK, fontsize=9)
    figure.suptitle(f"{experiment.title}: held out, {size} training rows", color=_INK, fontsize=11, x=0.01, ha="left")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _draw_curve(axes: Axes, runs: Sequence[Curves], colour: str, label: str) -> None:
    estimates = [Estimate.of(values) for values in zip(*(run.test for run in runs), strict=True)]
    means = np.array([estimate.mean for estimate in estimates])
    halves = np.array([estimate.half_width for estimate in estimates])
    axes.plot(runs[0].steps, means, color=colour, linewidth=1.6, label=label)
    # On a logarithmic axis an interval that reaches 0 has no lower end.
    axes.fill_between(
        runs[0].steps, np.maximum(means - halves, means / 10), means + halves, color=colour, alpha=0.15, linewidth=0
    )


def _unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _name(method: Method) -> str:
    return f"{method.loss} ({method.target})" if method.target else method.loss


def _rounded(curves: Curves) -> dict[str, list]:
    return {
        name: values if name == "steps" else [round(value, 5) for value in values]
        for name, values in asdict(curves).items()
    }
