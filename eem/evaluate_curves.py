"""eem evaluate curves: normalized loss against training tokens, for one run or several."""

import math
from pathlib import Path
from typing import Annotated

import typer

from eem.console import check_output, one_line_errors


@one_line_errors()
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of `eem train`; differences are from the first.")],
    output: Annotated[Path, typer.Option(help="Folder for curves.md, curves.json and curves.png.")],
    reach: Annotated[
        list[float] | None,
        typer.Option(help="Losses (nats a token) to reach; if not given, the lowest that all runs have reached."),
    ] = None,
) -> None:
    """Draw, fit and compare runs' losses on held-out text during training.

    Example: `eem evaluate curves runs/causal runs/eem --reach 5.8 5.7 --output results`
    """
    from rich.console import Console

    from modeling_eem.evaluation.curves import common_loss, curves_table, reach_table, read_run_curve
    from modeling_eem.files import folder_at_once
    from modeling_eem.report import write_results
    from modeling_eem.report.curve_plots import loss_curves
    from modeling_eem.report.plots import COLOURS

    check_output(output)
    if len(runs) > len(COLOURS):
        raise ValueError(f"a plot holds {len(COLOURS)} runs, not {len(runs)}: name fewer.")
    if not all(map(math.isfinite, reach or ())):
        raise ValueError("--reach takes finite losses.")
    read = [read_run_curve(folder) for folder in runs]
    if len({curve.name for curve in read}) < len(read):
        raise ValueError("two runs' folders have the same name: rename one.")
    first, *others = read
    differences = {f"{other.name} less {first.name}": other.less(first) for other in others}
    tables = [curves_table(read), reach_table(read, reach or [common_loss(read)])]
    Console().print(*tables)
    fits = {
        kind: {curve.name: [(x, curve.fits[index].loss(x)) for x, _ in curve.points] for curve in read}
        for index, kind in enumerate(("linear", "log-linear"))
    }
    points = {curve.name: curve.points for curve in read}
    content = {
        "runs": {
            curve.name: {
                "points": curve.points,
                "fits": {fit.kind: vars(fit) for fit in curve.fits},
            }
            for curve in read
        },
        "reached": [dict(zip(tables[1].columns, row)) for row in tables[1].rows],
        "differences": differences,
    }
    with folder_at_once(output) as folder:
        loss_curves(folder / "curves.png", points, fits, differences, "normalized loss, nats a token")
        write_results(folder, "curves", tables, content, {"normalized loss against tokens": "curves.png"})
