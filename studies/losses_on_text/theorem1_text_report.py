"""Tables and figure of theorem1_text.py."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from text_runs import CONTROL, Difference, Method, difference, per_byte

from modeling_eem.evaluation.intervals import holm
from modeling_eem.files import write_atomically
from modeling_eem.report import Table
from modeling_eem.report.results import write_results

NAME = "theorem1-text"
LEVEL = 0.05
PLACES = ("best", "end")
_COLOURS = {"best": "#0072B2", "end": "#D55E00"}


def write_record(
    folder: Path, settings: Mapping[str, Any], runs: Mapping[str, Any], methods: Sequence[Method]
) -> list[Table]:
    """Write `theorem1-text.md`, `.json` and `.png`."""
    sizes = list(dict.fromkeys(run["size"] for name, run in runs.items() if "#" in name))
    compared = comparisons(runs, methods, sizes)
    tables = [overview(settings, runs, sizes), *(size_table(runs, methods, size, compared) for size in sizes)]
    write_atomically(folder / f"{NAME}.png", draw(compared, methods, sizes))
    content = {"settings": dict(settings), "runs": {name: rounded(run) for name, run in runs.items()}}
    write_results(
        folder,
        NAME,
        tables,
        content,
        {"Held-out bits a byte minus those of early-stopped cross-entropy": f"{NAME}.png"},
    )
    return tables


def seeds_of(runs: Mapping[str, Any], method: Method, size: int) -> list[dict[str, Any]]:
    found = {run["seed"]: run for name, run in runs.items() if name.rsplit(" #", 1)[0] == f"{method.name}, {size}"}
    return [found[seed] for seed in sorted(found)]


def comparisons(
    runs: Mapping[str, Any], methods: Sequence[Method], sizes: Sequence[int]
) -> dict[tuple[int, Method, str], tuple[Difference, float]]:
    """Each method at its best and at its end less the control at its best, with Holm's p-value of all of them."""
    found: dict[tuple[int, Method, str], Difference] = {}
    for size in sizes:
        stopped = [run["best"] for run in seeds_of(runs, CONTROL, size)]
        for method in methods:
            for place in PLACES:
                if (method, place) != (CONTROL, "best"):
                    bits = [run[place] for run in seeds_of(runs, method, size)]
                    found[size, method, place] = difference(bits, stopped, runs["test"]["bytes"])
    corrected = holm([each.p for each in found.values()])
    return {key: (each, p) for (key, each), p in zip(found.items(), corrected)}


def overview(settings: Mapping[str, Any], runs: Mapping[str, Any], sizes: Sequence[int]) -> Table:
    num_bytes = runs["test"]["bytes"]
    rows = [(name, str(value)) for name, value in settings.items()]
    for size in sizes:
        rows.append((f"learning rate chosen, {size} documents", f"{runs[f'{size}, rate']:g}"))
        rows.append((f"seeds, {size} documents", str(len(seeds_of(runs, CONTROL, size)))))
    rows += [
        (f"the teacher {name}, bits a byte", f"{per_byte([runs[f'bits of {name}']], num_bytes):.3f}")
        for name in ("larger", "other")
    ]
    rows.append(("test documents, bytes", f"{len(num_bytes)}, {sum(num_bytes):,}"))
    return Table(columns=("setting", "value"), rows=rows, title="Theorem 1 on text")


def size_table(
    runs: Mapping[str, Any],
    methods: Sequence[Method],
    size: int,
    compared: Mapping[tuple[int, Method, str], tuple[Difference, float]],
) -> Table:
    rows = []
    for method in methods:
        seeds = seeds_of(runs, method, size)
        row: list[Any] = [method.loss, method.entropies or "–", "/".join(str(run["stop"]) for run in seeds)]
        for place in PLACES:
            row.append(per_byte([run[place] for run in seeds], runs["test"]["bytes"]))
            less, p = compared.get((size, method, place), ("", 1.0))
            row.append(f"{less}{' *' if p < LEVEL else ''}")
        rows.append(tuple(row))
    return Table(
        columns=("loss", "e", "stopped at", "best", "best, less", "end", "end, less"),
        rows=rows,
        title=f"{size} documents: held-out bits a byte",
        notes=(
            "Stopped at: the measurement with the lowest validation value, one a seed, of 16. Best: there; end: after "
            "the last step. Less: minus cross-entropy at its best, and 95 % of the draws of seeds and documents "
            f"together. *: Holm's p-value of all differences of all sizes is below {LEVEL:g}.",
        ),
        formats=dict.fromkeys(PLACES, ".4f"),
    )


def draw(
    compared: Mapping[tuple[int, Method, str], tuple[Difference, float]],
    methods: Sequence[Method],
    sizes: Sequence[int],
) -> bytes:
    """A PNG: a panel a size, a line a method; filled where Holm's p-value tells the difference apart from none."""
    figure = Figure(figsize=(3.3 * len(sizes) + 1.8, 0.26 * len(methods) + 1.3), dpi=140, layout="constrained")
    heights = np.arange(len(methods))[::-1]
    for axes, size in zip(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes):
        axes.axvline(0, color="#6b6b6b", linewidth=1)
        for place, shift in zip(PLACES, (0.15, -0.15)):
            colour = _COLOURS[place]
            for height, method in zip(heights, methods):
                if (size, method, place) in compared:
                    less, p = compared[size, method, place]
                    axes.plot([less.low, less.high], [height + shift] * 2, color=colour, linewidth=1.2)
                    face = colour if p < LEVEL else "white"
                    axes.plot(less.mean, height + shift, "o", color=colour, markerfacecolor=face, markersize=4)
            axes.plot([], [], "o-", color=colour, markersize=4, label=f"at its {place}")
        axes.set_yticks(heights, [method.name for method in methods], fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(f"{size} documents", fontsize=9)
        axes.grid(axis="x", color="#ececec")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xscale("symlog", linthresh=0.1)
        low, high = axes.get_xlim()
        ticks = [sign * size for size in (0.05, 0.1, 0.2, 0.5, 1, 2, 5) for sign in (-1, 1)]
        axes.set_xticks([0, *(tick for tick in ticks if low < tick < high)])
        axes.xaxis.set_major_formatter("{x:g}")
    figure.supxlabel(
        "held-out bits a byte minus those of early-stopped cross-entropy (left is better; filled: told apart)",
        fontsize=8,
    )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def rounded(run: Any) -> Any:
    """Bits to a tenth, measurements to the fifth digit."""
    if not isinstance(run, dict):
        return run
    run = dict(run)
    for place in PLACES:
        if place in run:
            run[place] = [round(bits, 1) for bits in run[place]]
    if "validation" in run:
        run["validation"] = [round(value, 5) for value in run["validation"]]
    return run
