"""A table with numbers on the heat map's colours, as a part of an HTML page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modeling_eem.report.rendering import render


@dataclass(frozen=True)
class _Cell:
    text: str
    level: float | None = None


def value_table_html(
    columns: Sequence[str],
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    scales: Sequence[tuple[float, float] | None],
    notes: Sequence[str] = (),
) -> str:
    """Rows of a name and its numbers. A number's colour shows its place in its column's scale; NaN is left empty.

    The page must include `value_table_css()` and the properties that `heat_panels_html` names.

    Args:
        columns: headings of the names and of each column of numbers.
        values: `[rows, columns]`.
        scales: for each column of numbers, the values of the faintest and the strongest colour; None for whole
            numbers, which are not coloured.
        notes: lines below the table.
    """
    rows = [
        [_Cell(name), *(_cell(value, scale) for value, scale in zip(numbers, scales))]
        for name, numbers in zip(names, values)
    ]
    return render("value_table.html.jinja", columns=columns, rows=rows, notes=notes)


def value_table_css() -> str:
    """The style sheet of `value_table_html`."""
    return render("value_table.css.jinja")


def _cell(value: float, scale: tuple[float, float] | None) -> _Cell:
    if math.isnan(value):
        return _Cell("")
    if scale is None:
        return _Cell(f"{value:,.0f}")
    low, high = scale
    return _Cell(f"{value:.3f}", min(max((value - low) / (high - low or 1.0), 0.0), 1.0))
