"""A measured figure, and the table of many: what `make bench` and `make bench-gpu` print and record."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from paired import matmul_peak

from modeling_eem.report import Table


@dataclass
class Figure:
    """One row of the table: what was measured, several times, and what it must not fall behind.

    Attributes:
        what: names the measurement.
        values: one a repeat.
        floor: the least, or with `is_ceiling` the most, that the median may be; None where nothing was promised.
        unit: "×" for ratios.
    """

    what: str
    values: list[float]
    floor: float | None = None
    is_ceiling: bool = False
    unit: str = "×"
    notes: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the medians of resampled repeats lie here: the measurement's own noise."""
        draws = np.random.default_rng(0).choice(self.values, size=(2000, len(self.values)))
        low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
        return float(low), float(high)

    @property
    def is_behind(self) -> bool:
        """Whether the floor is missed by more than the noise."""
        if self.floor is None:
            return False
        low, high = self.interval
        return low > self.floor if self.is_ceiling else high < self.floor


def figure_table(figures: Sequence[Figure], title: str) -> Table:
    """A row a figure, with the machine and the figures' own notes below."""
    rows = []
    for figure in figures:
        low, high = figure.interval
        floor = "" if figure.floor is None else f"{'≤' if figure.is_ceiling else '≥'} {figure.floor:.3g}"
        verdict = "" if figure.floor is None else "BEHIND" if figure.is_behind else "ok"
        rows.append((figure.what, f"{figure.median:.3g} {figure.unit}", f"{low:.3g} … {high:.3g}", floor, verdict))
    its = machine()
    return Table(
        columns=("what", "median", "95 %", "floor", ""),
        rows=rows,
        title=title,
        notes=(
            f"{its['device']}, {its['threads']} threads, {its['peak_gflops']:.0f} GFLOP/s of float32 "
            "matrix product at the end.",
            "BEHIND: the floor is missed by more than the interval; ok: it is held, or missed within the noise.",
            *(note for figure in figures for note in figure.notes),
        ),
    )


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "peak_gflops": matmul_peak() / 1e9,
    }


def figure_content(figure: Figure) -> dict:
    """A figure as a record holds it."""
    return {
        **asdict(figure),
        "median": figure.median,
        "interval_95": figure.interval,
        "is_behind": figure.is_behind,
    }
