"""Shared by all commands: list options, one-line errors, checks of output folders, progress.

Nothing heavy is imported here: `eem --help` reads this file.
"""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from eem.launch import is_first_to_say, lost_process, num_processes

# Library that `pip install modeling-eem` leaves out → the extra that brings it.
EXTRAS = {
    "datatrove": "prepare",
    "gradio": "view",
    "immutabledict": "harness",
    "langdetect": "harness",
    "nltk": "harness",
    "peft": "peft",
    "ray": "ray",
    "tensorboard": "tensorboard",
}
_SECONDS_A_LINE = 15.0
_FIRST_SHARE = 0.05  # of all steps, which a first update must be to tell a speed
_COMPILED_SHAPES = 256  # more than a step of any model here has


class Command(TyperCommand):
    """A command with usage errors of one line, and list options that take all following values.

    `--data A B` is `--data A --data B`, so a shell's `--data *.parquet` works. Another required option given twice is
    refused: of two run files one would be forgotten without a word. Of an optional one the last counts, as elsewhere.
    Use as `@app.command(cls=Command)`.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        options = {name: each for each in self.params if isinstance(each, TyperOption) for name in each.opts}
        lists = {name for name, option in options.items() if option.multiple}
        single = {name for name, option in options.items() if option.required and not option.multiple}
        expanded: list[str] = []
        current, given = "", set()
        for argument in args:
            if argument.startswith("-"):
                current = argument.partition("=")[0]
                if current in given:
                    raise typer.BadParameter(f"{current} is given twice: leave one out.")
                given |= {current} & single
            elif current in lists and expanded[-1] != current:
                expanded.append(current)
            expanded.append(argument)
        return super().parse_args(ctx, expanded)

    def invoke(self, ctx: typer.Context) -> Any:
        # On CPUs with bfloat16, bitsandbytes warns at import that it found no kernel on the Hub; it needs none.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        # oneDNN compiles a product for every shape, and it and PyTorch keep 1,024 of them, megabytes each.
        for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
            os.environ.setdefault(name, str(_COMPILED_SHAPES))
        # A codec model has no config.json, and needs none.
        logging.getLogger("huggingface_hub.hub_mixin").setLevel(logging.ERROR)
        return super().invoke(ctx)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        return _one_line_main(super().main, standalone_mode, *args, **extra)


class Commands(TyperGroup):
    """A group of commands with usage errors of one line: `typer.Typer(cls=Commands)`."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        return _one_line_main(super().main, standalone_mode, *args, **extra)


def _one_line_main(main: Callable[..., Any], standalone_mode: bool, *args: Any, **extra: Any) -> Any:
    """Prints usage errors in one line, which logs and programs can read; typer's own error is a box of several."""
    if not standalone_mode:
        return main(*args, standalone_mode=False, **extra)
    try:
        code = main(*args, standalone_mode=False, **extra)
    except typer.TyperException as error:
        if message := error.format_message():  # empty if a group without a command printed its help
            print_error(message)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def new_app(help: str) -> typer.Typer:
    """An empty group of commands with the settings of all our groups."""
    return typer.Typer(
        cls=Commands,
        help=help,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
    )


@contextmanager
def one_line_errors(is_shared: bool = False) -> Iterator[None]:
    """Turn errors that the user can fix into one line on stderr and an exit code.

    Bad input (ValueError, OSError) and the missing library of an extra exit with 2, Ctrl-C with 130. If one launch
    started several processes, one of them prints the error, and all exit with the same code.

    Args:
        is_shared: whether several processes may share the command's work; otherwise more than one is an error.
    """
    try:
        if not is_shared and num_processes() > 1:
            raise ValueError("this command runs in one process: start it without torchrun or accelerate launch.")
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            said = str(error.strerror)
            print_error(said if said.startswith(str(error.filename)) else f"{error.filename}: {said}")
        else:
            print_error(str(error))
        raise typer.Exit(2) from error
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library in EXTRAS:
            print_error(f'{library} is not installed: pip install "modeling-eem[{EXTRAS[library]}]"')
        elif error.name is None:  # a library's own words on what an option of its own needs
            print_error(str(error))
        else:
            raise
        raise typer.Exit(2) from error
    except RuntimeError as error:
        message = lost_process(error)
        if message is None:
            raise
        if message:
            print_error(message)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped before anything new was written; the same command starts again.", err=True)
        raise typer.Exit(130) from error


@contextmanager
def keeps(said: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, say what was kept and how to go on, in place of the sentence of `one_line_errors`."""
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo(f"stopped: {said()}", err=True)
        raise typer.Exit(130) from error


def print_error(message: str) -> None:
    """Print one line on stderr; if several processes make the same mistake, only one prints it."""
    line = f"error: {' '.join(message.split())}"
    if is_first_to_say(line):
        typer.echo(line, err=True)


def quiet_loading() -> None:
    """Switch off transformers' progress bars while it loads weights: commands show their own progress."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def check_output(folder: Path) -> None:
    """ValueError if a file is where results need a folder. Call it before the work, not after it."""
    from modeling_eem.files import existing_part

    if not (place := existing_part(folder)).is_dir():
        raise ValueError(f"{place} is a file: name a folder for --output.")


class Steps:
    """The progress of a command's work, with a note beside it."""

    def __init__(self, total: int | None):
        self.total = total
        self.done = 0
        self.note = ""
        self.begun = time.monotonic()
        self.first = 0

    def advance(self, steps: int = 1) -> None:
        """Add finished steps."""
        self.update(self.done + steps)

    def update(
        self,
        done: int | None = None,
        note: str | None = None,
        description: str | None = None,
        total: int | None = None,
    ) -> None:
        """Set the number of all finished steps, a note, a description or the total."""
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        self.show(description)

    def resume(self, done: int) -> None:
        """Set the steps that were finished before this start; they do not count for its speed."""
        self.first = self.done = done

    def tell(self, note: str) -> None:
        """Set a note that belongs into a log, at once."""
        self.update(note=note)

    def show(self, description: str | None) -> None:
        """Show the progress; a subclass does it."""


class _Lines(Steps):
    """Progress without a terminal, as in a log: a line every fifteen seconds, with the time left.

    The speed is that since the first finished step, because what comes before it (loading, compiling) comes once. A
    first step that is a small share of all tells nothing yet.
    """

    def __init__(self, description: str, total: int | None):
        super().__init__(total)
        self.description = description
        self.told = self.begun
        self.is_warm = False
        self.stream = sys.stderr  # keep this stream: libraries redirect sys.stderr while they work

    def tell(self, note: str) -> None:
        self.told = -math.inf
        super().tell(note)

    def show(self, description: str | None) -> None:
        self.description = description or self.description
        now = time.monotonic()
        speed = (self.done - self.first) / max(now - self.begun, 1e-9)
        if not self.is_warm and self.done > self.first:
            is_much = self.total is not None and self.done - self.first >= _FIRST_SHARE * self.total
            speed = speed if is_much else 0.0
            self.is_warm, self.first, self.begun = True, self.done, now
        if now - self.told < _SECONDS_A_LINE:
            return
        self.told = now
        parts = [f"{self.description}: {self.done:,}" + (f" of {self.total:,}" if self.total else "")]
        if self.total and speed > 0:
            left = max(self.total - self.done, 0) / speed
            from modeling_eem.report.numbers import duration  # the package is loaded by now

            parts.append(f"{duration(left)} left")
        parts += [self.note] if self.note else []
        print(", ".join(parts), file=self.stream, flush=True)


@contextmanager
def progress_bar(description: str, total: int | None = None, quiet: bool = False) -> Iterator[Steps]:
    """Progress on stderr: on a terminal a bar that disappears at the end, elsewhere plain lines with the time left.

    Args:
        total: steps in all; None if unknown.
        quiet: show nothing, for all processes except the first.
    """
    if quiet:
        yield Steps(total)
    elif sys.stderr.isatty():
        with _bar(description, total) as steps:
            yield steps
    else:
        yield _Lines(description, total)


@contextmanager
def waiting(description: str, quiet: bool = False) -> Iterator[None]:
    """Progress of work of unknown length, on stderr: a spinner on a terminal, elsewhere a line every 15 seconds."""
    if quiet:
        yield
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(description):
            yield
    else:
        stream, begun, over = sys.stderr, time.monotonic(), threading.Event()

        def tell() -> None:
            while not over.wait(_SECONDS_A_LINE):
                print(f"{description}: {time.monotonic() - begun:.0f} s so far", file=stream, flush=True)

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Steps]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(file=sys.stderr), transient=True)
    task = bar.add_task(description, total=total, note="")

    class Shown(Steps):
        def show(self, description: str | None) -> None:
            bar.update(task, completed=self.done, total=self.total, note=self.note, description=description)

    with bar:
        yield Shown(total)
