"""The record of `convergence.py`: steps to a held-out loss, the noise of gradients, and a figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from theorem1_report import Estimate
from theorem1_runs import CONTROL, Curves, Key, Method

from modeling_eem.report import Table
from modeling_eem.report.plots import new_figure, save_png
from modeling_eem.report.results import write_results

Noise = list[list[dict[str, float]]]  # a point of training, a method
Found = Mapping[tuple[float, Key], Curves]  # by learning rate and run
SHARES = (0.25, 0.5, 1.0)  # of the control's training, at whose best values the others are compared

_COLOURS = {
    "cross_entropy": "#222222",
    "hinge": "#0072B2",
    "distance": "#009E73",
    "selective": "#D55E00",
    "complement": "#CC79A7",
}


def steps_to(curves: Curves, level: float) -> float:
    """The step at which the held-out value first comes to `level`, interpolated; infinite if it never does."""
    before: tuple[float, float] | None = None
    for step, value in zip(curves.steps, curves.test, strict=True):
        if value <= level:
            if before is None or before[1] == value:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - level) / (before[1] - value)
        before = step, value
    return math.inf


def best_rate(found: Found, source: str, method: Method) -> float:
    """The learning rate with the lowest mean of last values."""
    rates = sorted({rate for rate, _ in found})
    return min(rates, key=lambda rate: float(np.mean([run.test[-1] for run in runs(found, rate, source, method)])))


def runs(found: Found, rate: float, source: str, method: Method) -> list[Curves]:
    """One for each seed, in the seeds' order."""
    chosen = {
        key.seed: curves
        for (at, key), curves in found.items()
        if (at, key.source, key.loss, key.target) == (rate, source, method.loss, method.target)
    }
    return [chosen[seed] for seed in sorted(chosen)]


def speed(found: Found, source: str, method: Method) -> dict[str, object]:
    """Of one method: its rate, its last value, and its steps over the control's to the control's own values."""
    rate = best_rate(found, source, method)
    mine, control = (
        runs(found, its_rate, source, its)
        for its_rate, its in ((rate, method), (best_rate(found, source, CONTROL), CONTROL))
    )
    ratios: dict[str, list[float]] = {}
    for share in SHARES:
        ratios[f"{share:g}"] = []
        for one, other in zip(mine, control, strict=True):
            level = min(other.test[: max(1, round(share * len(other.test)))])
            ratios[f"{share:g}"].append(steps_to(one, level) / steps_to(other, level))
    return {"rate": rate, "last": Estimate.of([run.test[-1] for run in mine]), "ratios": ratios}


def _ratio_text(ratios: Sequence[float]) -> str:
    reached = [ratio for ratio in ratios if math.isfinite(ratio)]
    if len(reached) < len(ratios):
        return f"{len(reached)} of {len(ratios)} come there" if reached else "never"
    return str(Estimate.of(reached))


def speed_table(found: Found, source: str, methods: Sequence[Method]) -> Table:
    rows = []
    for method in methods:
        its = speed(found, source, method)
        texts = [_ratio_text(ratios) for ratios in its["ratios"].values()]  # pyright: ignore[reportAttributeAccessIssue]
        rows.append((method.loss, method.target or "–", f"{its['rate']:g}", str(its["last"]), *texts))
    return Table(
        columns=("loss", "e", "rate", "last", *(f"steps to {share:.0%}" for share in SHARES)),
        rows=rows,
        title=f"{source}: steps of training, as multiples of cross-entropy's",
        notes=(
            "To 25 %: to the best held-out value of cross-entropy's first quarter of steps, and so on. Each loss at "
            "the better of its learning rates. last: nats a token above the entropy after the last step. Mean over "
            "seeds ± half of the 95 % interval.",
        ),
    )


def noise_means(noise: Mapping[tuple[str, int], Noise], source: str, name: str) -> np.ndarray:
    """`[seeds, points, methods]`."""
    return np.array(
        [[[each[name] for each in point] for point in found] for (at, _), found in noise.items() if at == source]
    )


def noise_table(noise: Mapping[tuple[str, int], Noise], source: str, methods: Sequence[Method], steps: int) -> Table:
    """Noise scales at each point, and the cosine of a batch's gradient with the truth's, in the mean over points."""
    scales_SPM = noise_means(noise, source, "noise_scale")
    batch_SPM = noise_means(noise, source, "batch_cosine")
    cosine_SPM = noise_means(noise, source, "cosine")
    points = scales_SPM.shape[1]
    rows = []
    for place, method in enumerate(methods):
        paired = [float(value) for value in (batch_SPM[:, :, place] - batch_SPM[:, :, methods.index(CONTROL)]).mean(1)]
        rows.append(
            (
                method.loss,
                method.target or "–",
                *(_count(float(np.median(scales_SPM[:, point, place]))) for point in range(points)),
                f"{cosine_SPM[:, :, place].mean():.3f}",
                f"{batch_SPM[:, :, place].mean():.3f}",
                "–" if method == CONTROL else str(Estimate.of(paired)),
            )
        )
    at = [f"B, step {(point + 1) * steps // points}" for point in range(points)]
    return Table(
        columns=("loss", "e", *at, "all rows", "a batch", "less cross-entropy"),
        rows=rows,
        title=f"{source}: noise of gradients, at the weights of a training with cross-entropy",
        notes=(
            "B: noise scale in tokens, the median over seeds. all rows, a batch: cosine between this loss's gradient "
            "and that of the expected cross-entropy, over all measured rows and over a batch; less cross-entropy: a "
            "batch's, paired.",
        ),
    )


def _count(value: float) -> str:
    return "no signal" if math.isinf(value) else f"{value:,.0f}"


def _draw(path: Path, found: Found, noise: Mapping[tuple[str, int], Noise], methods: Sequence[Method]) -> None:
    sources = list(dict.fromkeys(source for source, _ in noise))
    shown = [method for method in methods if method.loss in _COLOURS and method.target != "entropy"]
    figure = new_figure(6.4)
    panels = figure.subplots(2, len(sources), squeeze=False)
    for column, source in enumerate(sources):
        for method in shown:
            curves = runs(found, best_rate(found, source, method), source, method)
            values = np.mean([run.test for run in curves], axis=0)
            panels[0][column].plot(
                curves[0].steps, values, color=_COLOURS[method.loss], label=method.loss, linewidth=1.5
            )
            scales = np.median(noise_means(noise, source, "noise_scale")[:, :, methods.index(method)], axis=0)
            at = [curves[0].steps[-1] * (point + 1) / len(scales) for point in range(len(scales))]
            panels[1][column].plot(at, scales, color=_COLOURS[method.loss], marker="o", markersize=3, linewidth=1.5)
        panels[0][column].set_title(source, fontsize=9)
        panels[1][column].set_xlabel("training steps", fontsize=8)
        for axes in (panels[0][column], panels[1][column]):
            _style(axes)
    panels[0][0].set_ylabel("nats a token above the entropy", fontsize=8)
    panels[1][0].set_ylabel("noise scale, tokens", fontsize=8)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    save_png(path, figure)


def _style(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.tick_params(labelsize=7)


def write_record(
    folder: Path,
    found: Found,
    noise: Mapping[tuple[str, int], Noise],
    methods: Sequence[Method],
    settings: Mapping[str, object],
) -> None:
    """Write `convergence.md`, `convergence.json` and `convergence.png`."""
    sources = list(dict.fromkeys(source for source, _ in noise))
    steps = max(curves.steps[-1] for curves in found.values())
    tables = [speed_table(found, source, methods) for source in sources]
    tables += [noise_table(noise, source, methods, steps) for source in sources]
    figure = "convergence.png"
    folder.mkdir(parents=True, exist_ok=True)
    _draw(folder / figure, found, noise, methods)
    content = {
        "settings": settings,
        "runs": [
            {**vars(key), "rate": rate, "steps": curves.steps, "test": [round(value, 5) for value in curves.test]}
            for (rate, key), curves in found.items()
        ],
        "noise": [{"source": source, "seed": seed, "points": points} for (source, seed), points in noise.items()],
        "methods": [vars(method) for method in methods],
    }
    caption = "Held-out loss on fresh rows with true surprisals, and the noise scale of each loss's gradients"
    write_results(folder, "convergence", tables, content, {caption: figure})
    for table in tables:
        print(table.to_markdown())


__all__ = ["Noise", "best_rate", "noise_table", "runs", "speed", "speed_table", "steps_to", "write_record"]
