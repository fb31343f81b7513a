"""A table on a terminal of any width: no number and no name is ever cut.

It takes the first of these forms that fits: columns side by side, with names over several lines if that helps; rows
side by side, one line a column (transposed); one table for each value of the first column, below that value; one
block a row, one line a value. In the last form a value that is longer than a line continues on the next line.
"""

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

_BETWEEN, _EDGES = 3, 4  # characters between columns, and at both ends of a line

Cells = Sequence[Sequence[str]]


def lay_out(columns: Sequence[str], cells: Cells, to_right: Sequence[bool], width: int) -> Iterator[RenderableType]:
    """What `rich` prints for a table in `width` characters.

    Args:
        columns: the columns' names.
        cells: the text of each row and column.
        to_right: whether a column's texts are on the right.
        width: the terminal's width.
    """
    if (widths := _fit(columns, cells, width)) is not None:
        yield _grid([_fold(name, size) for name, size in zip(columns, widths)], cells, widths, to_right)
        return
    upright = [[name, *column] for name, column in zip(columns, zip(*cells))]
    widths = [max(map(_longest_line, column)) for column in zip(*upright)]
    if cells and _total(widths) <= width:
        first, *others = upright
        yield _grid(first, others, widths, [False, *[True] * len(cells)])
        return
    if (grouped := _grouped(columns, cells, to_right, width)) is not None:
        yield from grouped
        return
    indent = min(max(map(cell_len, columns), default=0), width // 2) + 2
    for number, row in enumerate(cells):
        if number:
            yield Text("")
        for name, text in zip(columns, row):
            yield from _line(name, text, indent, width)


def _grouped(
    columns: Sequence[str], cells: Cells, to_right: Sequence[bool], width: int
) -> list[RenderableType] | None:
    """A table for each value of the first column, of one width; None if they do not fit, or no two rows share it."""
    groups = {row[0]: [other[1:] for other in cells if other[0] == row[0]] for row in cells}
    widths = _fit(columns[1:], [row[1:] for row in cells], width)
    if len(groups) == len(cells) or widths is None or len(columns) < 3:
        return None
    headings = [_fold(name, size) for name, size in zip(columns[1:], widths)]
    shown: list[RenderableType] = []
    for name, rows in groups.items():
        shown.append(Text(f"{columns[0]}: {name}", style="bold", overflow="fold"))
        shown.append(_grid(headings, rows, widths, to_right[1:]))
    return shown


def _line(name: str, text: str, indent: int, width: int) -> Iterator[RenderableType]:
    """A value after its name, or below it if both take more than a line."""
    label = name.ljust(len(name) + max(indent - cell_len(name), 2))
    if cell_len(label) + _longest_line(text) <= width and "\n" not in text:
        yield Text.assemble((label, "bold"), text)
    else:
        yield Text(name, style="bold", overflow="fold")
        yield Padding(Text(text, overflow="fold"), (0, 0, 0, 2))


def _fit(columns: Sequence[str], cells: Cells, width: int) -> list[int] | None:
    """Widths of columns side by side, as wide as their texts and the words of their names; None if they do not fit."""
    widths = [
        max([*map(cell_len, name.split()), *(_longest_line(row[i]) for row in cells)], default=0)
        for i, name in enumerate(columns)
    ]
    room = width - _total(widths)
    if room < 0:
        return None
    for i, name in enumerate(columns):  # whole names, from the left, while there is room
        more = min(max(cell_len(name) - widths[i], 0), room)
        if widths[i] + more == cell_len(name) or len(_fold(name, widths[i] + more)) < len(_fold(name, widths[i])):
            widths[i], room = widths[i] + more, room - more
    return widths


def _grid(columns: Sequence[str], cells: Cells, widths: Sequence[int], to_right: Sequence[bool]) -> RichTable:
    table = RichTable(header_style="bold")
    for name, size, is_right in zip(columns, widths, to_right):
        table.add_column(Text(name), justify="right" if is_right else "left", min_width=size, no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _fold(name: str, width: int) -> str:
    return "\n".join(textwrap.wrap(name, max(width, 1), break_long_words=False, break_on_hyphens=False)) or name


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _BETWEEN * (len(widths) - 1) + _EDGES
