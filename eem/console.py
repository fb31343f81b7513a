"""What all commands share: list options that take several values, errors of one line, outputs, a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperCommand, TyperOption


class ListOptionsCommand(TyperCommand):
    """A command whose list options take all values that follow: `--data A B` is `--data A --data B`.

    So a shell's `--data *.parquet` works. Use as `@app.command(cls=ListOptionsCommand)`.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        lists = {
            name
            for option in self.params
            if isinstance(option, TyperOption) and option.multiple
            for name in option.opts
        }
        expanded: list[str] = []
        current = ""
        for argument in args:
            if argument.startswith("-"):
                current = argument.partition("=")[0]
            elif current in lists and expanded[-1] != current:
                expanded.append(current)
            expanded.append(argument)
        return super().parse_args(ctx, expanded)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what is wrong with the input (ValueError, OSError) into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        is_about_a_file = isinstance(error, OSError) and error.filename is not None
        message = f"{error.filename}: {error.strerror}" if is_about_a_file else str(error)
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        raise typer.Exit(2) from error


def check_output(folder: Path) -> None:
    """ValueError for a file where results would need a folder: to be called before the work, not after it."""
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"{path} is a file: name a folder for --output.")
            return


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, as the function that moves it on by so many steps of `total`; gone when the work is done."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda steps: progress.advance(task, steps)
