"""eem evaluate correlation: how several estimates of the same tokens are related."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from eem.console import check_output, one_line_errors, progress_bar

if TYPE_CHECKING:
    from modeling_eem.evaluation.correlation import EntropyFolder

Result = TypeVar("Result")


@one_line_errors()
def correlation(
    entropies: Annotated[list[Path], typer.Option(help="Folders that `eem entropy` made from the same rows.")],
    output: Annotated[Path, typer.Option(help="Folder for correlation.md, correlation.json and the plots.")],
) -> None:
    """Regress every estimate on those before it; draw them against each other, and along a row.

    Example: `eem evaluate correlation --entropies entropies/exact entropies/causal --output results`
    """
    from rich.console import Console

    from modeling_eem.evaluation.correlation import (
        folder_curve,
        open_folders,
        regress_folders,
        regressions_table,
        scatter_points,
        words_table,
    )
    from modeling_eem.files import folder_at_once
    from modeling_eem.report import write_results
    from modeling_eem.report.entropy_plots import Band, index_plot, scatter_plot
    from modeling_eem.report.plots import COLOURS
    from modeling_eem.report.results import plain_name

    check_output(output)
    if len(entropies) > len(COLOURS):
        raise ValueError(f"a plot holds {len(COLOURS)} estimates, not {len(entropies)}: name fewer.")
    folders = open_folders(entropies)
    pairs = list(combinations(folders, 2))
    with progress_bar("comparing estimates", 2 * len(pairs) + 2 * len(folders)) as steps:
        regressions = {(x.name, y.name): _counted(steps.advance, regress_folders, x, y) for x, y in pairs}
        curves = {folder.name: _counted(steps.advance, folder_curve, folder) for folder in folders}
        words = {folder.name: _counted(steps.advance, folder.words) for folder in folders if folder.has_tokenizer}
        points = {
            (x.name, y.name): _counted(steps.advance, scatter_points, x, y, regressions[x.name, y.name].tokens)
            for x, y in pairs
        }
    bands = {
        name: Band(*(values.tolist() for values in (curve.index, curve.mean, curve.low, curve.high)))
        for name, curve in curves.items()
    }
    units = {folder.name: folder.unit for folder in folders}
    tables = [regressions_table(regressions, units), *([words_table(words, units)] if words else [])]
    content = {
        "estimates": {folder.name: {"method": folder.method, "unit": folder.unit} for folder in folders},
        "regressions": [{"x": x, "y": y, **asdict(fit)} for (x, y), fit in regressions.items()],
        "words": {name: asdict(split) for name, split in words.items()},
        "index": {
            name: {field: values.tolist() for field, values in asdict(curve).items()} for name, curve in curves.items()
        },
    }
    figures = {}
    with folder_at_once(output) as draft:
        for x, y in pairs:
            fit = regressions[x.name, y.name]
            file = f"{plain_name(f'scatter-{x.name}-{y.name}')}.png"
            if file in figures.values():  # "a-b" and "c", and "a" and "b-c"
                file = f"scatter-{len(figures) + 1}.png"
            scatter_plot(
                draft / file,
                *(values.tolist() for values in points[x.name, y.name]),
                labels=(x.label, y.label),
                line=(fit.slope.value, fit.intercept.value),
                title=f"R² {fit.r_squared.value:.3f}, {fit.tokens:,} tokens",
            )
            figures[f"{y.name} against {x.name}"] = file
        index_plot(draft / "index.png", bands)
        figures["entropy over a token's index in its row"] = "index.png"
        write_results(draft, "correlation", tables, content, figures)
    Console().print(*tables, f"{output}/correlation.md, correlation.json and {len(figures)} plots", sep="\n")


def _counted(
    advance: Callable[[int], None], compute: Callable[..., Result], *arguments: EntropyFolder | int
) -> Result:
    result = compute(*arguments)
    advance(1)
    return result
