"""One table, three forms: Markdown for cards and records, rich for the terminal, JSON for other programs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from modeling_eem.report.numbers import readable
from modeling_eem.report.terminal import lay_out

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of values under named columns. `rich.print(table)` shows it in the terminal, whatever its width.

    Attributes:
        columns: the columns' names, all different.
        rows: each one value a column; None and NaN mean "not measured" and are shown as an en dash.
        title: a line above the table.
        notes: lines below the table: units, conventions, what a value leaves out.
        formats: column name → format specification of its numbers, see `readable`. The JSON form keeps all digits.

    Raises:
        ValueError: for repeated columns, a row of another length, or a format for a missing column.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    notes: Sequence[str] = ()
    formats: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns must have different names, not {list(self.columns)}.")
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"each row needs {len(self.columns)} values, one a column, not {list(row)}.")
        for name in self.formats:
            if name not in self.columns:
                raise ValueError(f"formats names {name!r}, which is none of the columns {list(self.columns)}.")

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown, with numbers to the right; it ends in a newline."""
        rows = [[_markdown_cell(cell) for cell in row] for row in [list(self.columns), *self._cells()]]
        widths = [max(3, *map(len, column)) for column in zip(*rows)]
        aligns = [">" if to_right else "<" for to_right in self._right_aligned()]
        rows.insert(1, ["-" * (width - 1) + (":" if align == ">" else "-") for width, align in zip(widths, aligns)])
        lines = [[f"{cell:{align}{width}}" for cell, align, width in zip(row, aligns, widths)] for row in rows]
        blocks = [f"**{self.title}**"] if self.title else []
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if self.notes:
            blocks.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(blocks) + "\n"

    def to_json(self) -> str:
        """`{"title", "columns", "rows": [{column: value}], "notes"}` as JSON; NaN and infinity become null."""
        rows = [{name: _json_value(value) for name, value in zip(self.columns, row)} for row in self.rows]
        content = {"title": self.title, "columns": list(self.columns), "rows": rows, "notes": list(self.notes)}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="bold", overflow="fold")
        yield from lay_out(self.columns, self._cells(), self._right_aligned(), options.max_width)
        for note in self.notes:
            yield Text(note, style="dim", overflow="fold")

    def _cells(self) -> list[list[str]]:
        formats = [self.formats.get(name, "") for name in self.columns]
        return [[_text(value, spec) for value, spec in zip(row, formats)] for row in self.rows]

    def _right_aligned(self) -> list[bool]:
        return [not any(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]


def _text(value: Cell, spec: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    return readable(value, spec)


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").splitlines())


def _json_value(value: Cell) -> Cell:
    return None if isinstance(value, float) and not math.isfinite(value) else value
