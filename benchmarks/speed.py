"""All that is promised about speed and memory, measured: `make bench`.

    python benchmarks/speed.py --output records
    python benchmarks/speed.py --only mixer-steps --only generation --repeats 5

Every ratio is of two things run in turn in one process, and every case has a process of its own, because what ran
before leaves its mark on memory. A figure that falls behind its floor by more than its own noise is reported, and the
exit code is then 1. On a machine with a GPU the same cases run there.
"""

import json
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import choice_cases
import exact_cases
import generation_cases
import limit_cases
import mode_cases
import part_cases
import prepare_cases
import surprisal_cases
import training_cases
import triangle_cases
import typer
from figures import Figure, figure_content, figure_table, machine
from growth import costs, draw_growth, growth_table
from profiles import profile_table, profiles
from rich.console import Console

from eem.console import waiting
from modeling_eem.report import write_results

GROWTH, PROFILE = "growth", "profile"
CASES = {
    **training_cases.CASES,
    **part_cases.CASES,
    **exact_cases.CASES,
    **generation_cases.CASES,
    **prepare_cases.CASES,
    **choice_cases.CASES,
    **triangle_cases.CASES,
    **limit_cases.CASES,
    **mode_cases.CASES,
    **surprisal_cases.CASES,
}


def speed(
    output: Annotated[Path | None, typer.Option(help="Folder for speed.md, speed.json and speed-growth.png.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Cases to run, by default all: {GROWTH}, {PROFILE}, …")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs that a ratio is the median of.")] = 7,
) -> None:
    """Measure, print the tables, and exit with 1 if a floor is missed."""
    all_names = [*CASES, PROFILE, GROWTH]
    if unknown := set(only or ()) - set(all_names):
        raise typer.BadParameter(f"no case {', '.join(sorted(unknown))}; there are {', '.join(all_names)}")
    console = Console()
    figures: list[Figure] = []
    names = [name for name in CASES if not only or name in only]
    for number, name in enumerate(names, 1):
        with waiting(f"{name} ({number} of {len(names)})"):
            figures += CASES[name](repeats) if only == [name] else _in_own_process(name, repeats)
    tables = [figure_table(figures, "Speed and memory")] if figures else []
    profiled, growth = [], []
    if not only or PROFILE in only:
        with waiting(PROFILE):
            profiled = profiles()
        tables.append(profile_table(profiled))
    if not only or GROWTH in only:
        with waiting(GROWTH):
            growth = costs(repeats)
        tables.append(growth_table(growth))
    for table in tables:
        console.print(table)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        pictures = {"How the cost of a training step grows": "speed-growth.png"} if growth else {}
        content = {
            "machine": machine(),
            "figures": [figure_content(figure) for figure in figures],
            "profiles": [asdict(profile) for pair in profiled for profile in pair],
            "growth": [asdict(cost) for cost in growth],
        }
        write_results(output, "speed", tables, content, pictures)
        if growth:  # after the commit was noted, which a picture among the files of the repository would make dirty
            draw_growth(growth, output / "speed-growth.png")
    if any(figure.is_behind for figure in figures):
        raise typer.Exit(1)


def _in_own_process(name: str, repeats: int) -> list[Figure]:
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--only", name, "--repeats", str(repeats), "--output", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        results = Path(folder) / "speed.json"  # is there too where a floor was missed
        if not results.is_file():
            raise RuntimeError(f"the case {name} failed:\n{done.stderr}")
        content = json.loads(results.read_text())
    names = [field.name for field in fields(Figure)]
    return [Figure(**{name: figure[name] for name in names}) for figure in content["figures"]]


if __name__ == "__main__":
    typer.run(speed)
