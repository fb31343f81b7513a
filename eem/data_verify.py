"""eem data verify: whether rows are as they were written."""

from pathlib import Path
from typing import Annotated

import typer

from eem.console import one_line_errors, waiting


@one_line_errors()
def verify(
    rows: Annotated[Path, typer.Option(help="A folder of `eem data prepare` or `eem entropy`.")],
) -> None:
    """Read every byte of the rows of a folder and compare it with what was written.

    Commands that use rows read the ends of each file only: that finds a file that was cut off or replaced, but no
    changed bit in its middle. Exits with 2 and names the file if one has changed.

    Example: `eem data verify --rows rows`
    """
    with waiting("reading modules"):
        from modeling_eem.data.row_checksums import open_rows, verify_rows

    if not rows.is_dir():
        raise ValueError(f"{rows} does not exist: name a folder of eem data prepare or eem entropy.")
    splits = open_rows(rows)
    with waiting(f"reading {rows}"):
        verify_rows(rows)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    typer.echo(f"{rows}: as written: {counts}")
