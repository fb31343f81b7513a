"""All that is measured on a GPU: `make bench-gpu`.

    python benchmarks/gpu.py --output records
    python benchmarks/gpu.py --only training --repeats 10
    python benchmarks/gpu.py --scale tiny

One GPU, no network, under ten minutes. No GPU has run it yet; `--scale tiny` runs the same code on a CPU in seconds,
where its figures mean nothing. A target that is missed by more than the noise makes the exit code 1. The codec is not
here: it computes in integers on the CPU, on every machine.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from figures import Figure, figure_content, figure_table, machine
from gpu_cases import CASES
from gpu_scale import SCALES
from gpu_training import bfloat16_peak, trained, training_figures, training_table
from rich.console import Console

from eem.console import waiting
from modeling_eem.report import write_results

TRAINING = "training"


def gpu(
    output: Annotated[Path | None, typer.Option(help="Folder for gpu.md and gpu.json.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Cases to run, by default all: {', '.join([TRAINING, *CASES])}.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs that a figure is the median of.")] = 7,
    scale: Annotated[Literal["published", "tiny"], typer.Option(help="Sizes; a CPU takes tiny only.")] = "published",
) -> None:
    """Measure, print the tables, and exit with 1 if a target is missed."""
    if unknown := set(only or ()) - {TRAINING, *CASES}:
        raise typer.BadParameter(f"no case {', '.join(sorted(unknown))}; there are {', '.join([TRAINING, *CASES])}")
    if scale == "published" and not torch.cuda.is_available():
        raise typer.BadParameter("this machine has no GPU that PyTorch sees: --scale tiny tries the code on a CPU")
    console, sizes = Console(), SCALES[scale]
    tables, measured = [], []
    figures: list[Figure] = []
    if not only or TRAINING in only:
        with waiting(TRAINING):
            peak, origin = bfloat16_peak(sizes)
            measured = list(trained(sizes, repeats))
        figures += training_figures(measured, peak, scale == "published")
        tables.append(training_table(measured, sizes, peak, origin))
    for name, case in CASES.items():
        if not only or name in only:
            with waiting(name):
                figures += case(sizes, repeats)
    tables.append(figure_table(figures, "Speed and memory on a GPU"))
    for table in tables:
        console.print(table)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": machine(),
            "scale": asdict(sizes),
            "training": [asdict(its) for its in measured],
            "figures": [figure_content(figure) for figure in figures],
        }
        write_results(output, "gpu", tables, content)
    if any(figure.is_behind for figure in figures):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(gpu)
