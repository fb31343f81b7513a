"""What all commands share: list options, one-line errors, where output goes, progress.

Nothing heavy is imported here: `eem --help` reads this file.
"""

import logging
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

# Which extra of this package brings a library that `pip install modeling-eem` leaves out.
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


class Command(TyperCommand):
    """A command whose usage errors are one line, and whose list options take all values that follow.

    `--data A B` is `--data A --data B`, so a shell's `--data *.parquet` works. Use as `@app.command(cls=Command)`.
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

    def invoke(self, ctx: typer.Context) -> Any:
        # On CPUs with bfloat16, bitsandbytes warns at import that it found no kernel on the Hub; it does without.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        # A codec model has no config.json, and needs none.
        logging.getLogger("huggingface_hub.hub_mixin").setLevel(logging.ERROR)
        return super().invoke(ctx)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        return _one_line_main(super().main, standalone_mode, *args, **extra)


class Commands(TyperGroup):
    """A group of commands whose usage errors are one line: `typer.Typer(cls=Commands)`."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        return _one_line_main(super().main, standalone_mode, *args, **extra)


def _one_line_main(main: Callable[..., Any], standalone_mode: bool, *args: Any, **extra: Any) -> Any:
    """typer's own error is a box of several lines; ours is a line that a log or another program can read."""
    if not standalone_mode:
        return main(*args, standalone_mode=False, **extra)
    try:
        code = main(*args, standalone_mode=False, **extra)
    except typer.TyperException as error:
        if message := error.format_message():  # empty where a group without a command printed its help
            print_error(message)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def new_app(help: str) -> typer.Typer:
    """An empty group of commands, set up as all of ours are."""
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
    """Turn what the user can change into one line on stderr, and the exit code that says what it was.

    Bad input (ValueError, OSError) and a library that an extra brings exit with 2, Ctrl-C with 130. Of several
    processes that one launch started one says what is wrong, and all exit alike.

    Args:
        is_shared: whether several processes share the command's work; it is refused to them otherwise.
    """
    try:
        if not is_shared and num_processes() > 1:
            raise ValueError("this command runs in one process: start it without torchrun or accelerate launch.")
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            print_error(f"{error.filename}: {error.strerror}")
        else:
            print_error(str(error))
        raise typer.Exit(2) from error
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        print_error(f'{library} is not installed: pip install "modeling-eem[{EXTRAS[library]}]"')
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
    """Say on Ctrl-C what was kept and how to go on, instead of `one_line_errors`' own sentence."""
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo(f"stopped: {said()}", err=True)
        raise typer.Exit(130) from error


def print_error(message: str) -> None:
    """One line on stderr; of several processes with the same mistake one prints it."""
    line = f"error: {' '.join(message.split())}"
    if is_first_to_say(line):
        typer.echo(line, err=True)


def quiet_loading() -> None:
    """No bars of transformers' own while it loads weights: commands show how far their work is."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def check_output(folder: Path) -> None:
    """ValueError for a file where results would need a folder: to be called before the work, not after it."""
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"{path} is a file: name a folder for --output.")
            return


class Steps:
    """What a command tells of its work: how far it is, and a note beside that."""

    def __init__(self, total: int | None):
        self.total = total
        self.done = 0
        self.note = ""
        self.begun = time.monotonic()
        self.first = 0

    def advance(self, steps: int = 1) -> None:
        """So many steps more are done."""
        self.update(self.done + steps)

    def update(
        self,
        done: int | None = None,
        note: str | None = None,
        description: str | None = None,
        total: int | None = None,
    ) -> None:
        """So many steps are done in all."""
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        self.show(description)

    def resume(self, done: int) -> None:
        """So many steps were done before this start; they say nothing of its speed."""
        self.first = self.done = done

    def show(self, description: str | None) -> None:
        """Nothing, unless a subclass shows it."""


class _Lines(Steps):
    """Progress where no one watches, a log say: a line every fifteen seconds, with the time that is left."""

    def __init__(self, description: str, total: int | None):
        super().__init__(total)
        self.description = description
        self.told = self.begun
        self.stream = sys.stderr  # this very stream: libraries turn sys.stderr away while they work

    def show(self, description: str | None) -> None:
        self.description = description or self.description
        now = time.monotonic()
        if now - self.told < _SECONDS_A_LINE:
            return
        self.told = now
        parts = [f"{self.description}: {self.done:,}" + (f" of {self.total:,}" if self.total else "")]
        if self.total and self.done > self.first:
            left = (now - self.begun) / (self.done - self.first) * max(self.total - self.done, 0)
            from modeling_eem.report.numbers import duration  # long work has the package loaded

            parts.append(f"{duration(left)} left")
        parts += [self.note] if self.note else []
        print(", ".join(parts), file=self.stream, flush=True)


@contextmanager
def progress_bar(description: str, total: int | None = None, quiet: bool = False) -> Iterator[Steps]:
    """Progress on stderr: a bar on a terminal, gone when the work is done; plain lines with time left elsewhere.

    Args:
        total: steps in all; None where no one knows.
        quiet: show nothing: for all processes but the first.
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
    """Work whose length no one knows: a spinner on a terminal, elsewhere a line every fifteen seconds, on stderr."""
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
