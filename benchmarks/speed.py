"""All that is promised about speed and memory, measured: `make bench`.

    python benchmarks/speed.py --output records/speed
    python benchmarks/speed.py --only mixer-steps --only generation --repeats 5

Every ratio is of two things run in turn in one process; a figure that falls behind its floor by more than its own
noise is reported, and the exit code is then 1. On a machine with a GPU the same cases run there.
"""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import generation_cases
import part_cases
import torch
import training_cases
import typer
from paired import Figure, matmul_peak
from rich.console import Console

from modeling_eem.report import Table, provenance, write_atomically

CASES = {**training_cases.CASES, **part_cases.CASES, **generation_cases.CASES}


def speed(
    output: Annotated[Path | None, typer.Option(help="Where to write .md and .json, without the ending.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Cases to run, by default all.")] = None,
    repeats: Annotated[int, typer.Option(help="Pairs that a ratio is the median of.")] = 7,
) -> None:
    """Measure, print the table, and exit with 1 if a floor is missed."""
    if unknown := set(only or ()) - set(CASES):
        raise typer.BadParameter(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    console = Console()
    figures: list[Figure] = []
    for name in only or CASES:
        with console.status(name):
            figures += CASES[name](repeats)
    table = _table(figures)
    console.print(table)
    if output is not None:
        origin = provenance()
        told = (
            f"`{origin['command']}`; {', '.join(origin[name] for name in ('date', 'commit', 'versions', 'machine'))}."
        )
        text = f"# Speed and memory\n\n{table.to_markdown()}\n\n{told}\n"
        write_atomically(output.with_suffix(".md"), text)
        write_atomically(output.with_suffix(".json"), json.dumps(_json(figures), indent=2) + "\n")
    if any(figure.is_behind for figure in figures):
        raise typer.Exit(1)


def _table(figures: list[Figure]) -> Table:
    rows = []
    for figure in figures:
        low, high = figure.interval
        floor = "" if figure.floor is None else f"{'≤' if figure.is_ceiling else '≥'} {figure.floor:.3g}"
        verdict = "" if figure.floor is None else "BEHIND" if figure.is_behind else "ok"
        rows.append((figure.what, f"{figure.median:.3g} {figure.unit}", f"{low:.3g} … {high:.3g}", floor, verdict))
    machine = _machine()
    notes = [note for figure in figures for note in figure.notes]
    return Table(
        columns=("what", "median", "95 %", "floor", ""),
        rows=rows,
        title="Speed and memory",
        notes=(
            f"{machine['device']}, {machine['threads']} threads, {machine['peak_gflops']:.0f} GFLOP/s sgemm",
            *notes,
        ),
    )


def _machine() -> dict[str, str | int | float]:
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "peak_gflops": matmul_peak() / 1e9,
    }


def _json(figures: list[Figure]) -> dict:
    return {
        "provenance": provenance(),
        "machine": _machine(),
        "figures": [
            {
                **asdict(figure),
                "median": figure.median,
                "interval_95": figure.interval,
                "is_behind": figure.is_behind,
            }
            for figure in figures
        ],
    }


if __name__ == "__main__":
    typer.run(speed)
