"""How the cost of a step grows with the context, the width and the batch, against what its FLOPs say."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure as Canvas
from paired import matmul_peak, seconds
from training_cases import mixer, mixer_step_flops, ours_step, random_rows

from modeling_eem.report import Table

LAYERS = 4
# (length, width, rows): one of them grows, the others stay.
GROWTH = {
    "tokens of context": [(length, 256, 4096 // length) for length in (128, 256, 512, 1024, 2048)],
    "width": [(512, width, 8) for width in (128, 256, 384, 512)],
    "rows a step": [(512, 256, rows) for rows in (1, 2, 4, 8, 16)],
}


@dataclass(frozen=True)
class Cost:
    """A flat mixer's training step: what it took (s), and its useful FLOPs at the peak of the matrix product (s)."""

    grows: str
    length: int
    width: int
    rows: int
    took: float
    least: float

    @property
    def size(self) -> int:
        return {"tokens of context": self.length, "width": self.width, "rows a step": self.rows}[self.grows]


def costs(repeats: int) -> list[Cost]:
    """Medians of `repeats` steps, the peak measured beside each."""
    measured = []
    for grows, sizes in GROWTH.items():
        for length, width, rows in sizes:
            step = ours_step(mixer(length=length, width=width, layers=LAYERS), random_rows(length, rows))
            step()
            flops = mixer_step_flops(length, width, rows, LAYERS)
            pairs = [(seconds(step), flops / matmul_peak()) for _ in range(repeats)]
            took, least = (statistics.median(values) for values in zip(*pairs))
            measured.append(Cost(grows, length, width, rows, took, least))
    return measured


def growth_table(measured: list[Cost]) -> Table:
    return Table(
        columns=("grows", "context", "width", "rows", "ms a step", "ms by FLOPs", "share of peak", "tokens/s"),
        rows=[
            (
                cost.grows,
                cost.length,
                cost.width,
                cost.rows,
                1e3 * cost.took,
                1e3 * cost.least,
                100 * cost.least / cost.took,
                cost.length * cost.rows / cost.took,
            )
            for cost in measured
        ],
        title="How the cost of a training step grows",
        notes=(
            f"Flat mixers of {LAYERS} layers, 8,000 tokens; rows of {GROWTH['tokens of context'][0][0]} to "
            f"{GROWTH['tokens of context'][-1][0]} tokens hold 4,096 a step together.",
            "By FLOPs: what the step has to multiply, of the mixing its triangle only, at the speed of the machine's "
            "own matrix product, measured beside each step.",
        ),
        formats={"ms a step": ".1f", "ms by FLOPs": ".1f", "share of peak": ".0f", "tokens/s": ",.0f"},
    )


def draw_growth(measured: list[Cost], path: Path) -> None:
    """Measured and least times on logarithmic axes, a panel for each thing that grows."""
    canvas = Canvas(figsize=(11, 3.8), layout="constrained")
    for axes, grows in zip(canvas.subplots(1, len(GROWTH), sharey=True), GROWTH):
        here = [cost for cost in measured if cost.grows == grows]
        sizes = [cost.size for cost in here]
        axes.loglog(sizes, [1e3 * cost.took for cost in here], "o-", color="#0072B2", label="measured")
        axes.loglog(sizes, [1e3 * cost.least for cost in here], "s--", color="#D55E00", label="FLOPs at the peak")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel(grows)
        axes.grid(alpha=0.3)
    lows = [math.floor(math.log10(1e3 * min(cost.least, cost.took))) for cost in measured]
    highs = [math.ceil(math.log10(1e3 * max(cost.least, cost.took))) for cost in measured]
    canvas.axes[0].set_ylim(10.0 ** min(lows), 10.0 ** max(highs))
    canvas.axes[0].set_ylabel("ms a training step")
    canvas.axes[0].legend(frameon=False)
    canvas.savefig(path, dpi=150)
