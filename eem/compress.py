"""eem compress, eem decompress: files into `.eem` files and back, with zstd's options.

eem compress notes.txt
eem decompress notes.txt.eem
tar c notes | eem compress > notes.tar.eem
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from eem.console import keeps, one_line_errors, progress_bar
from eem.shared_options import options_of, with_options

_CODEC_ONLY = "MODELING_EEM_CODEC_ONLY"
_BROKEN_PIPE = 128 + 13  # the signal SIGPIPE


def _file_options(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files; - or none: standard input to standard output.", readable=False),  # one by one
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Folder or Hub name of a codec model; if not given, ours or the file's own."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where one input's output goes; -: standard output.")
    ] = None,
    to_stdout: Annotated[bool, typer.Option("--stdout", "-c", help="Write to standard output; keep sources.")] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite; write compressed bytes to a terminal.")
    ] = False,
    keep: Annotated[
        bool,
        typer.Option("--keep/--rm", "-k", help="Keep sources, or remove files once their output is one on the disk."),
    ] = True,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Take each file in folders by itself.")] = False,
    threads: Annotated[
        int, typer.Option("--threads", "-T", help="Threads; 0: OMP_NUM_THREADS, else all cores.", min=0)
    ] = 0,
    test: Annotated[
        bool, typer.Option("--test", "-t", help="Test whether files are whole: decode them, write nothing.")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", "-l", help="Show what files are made of.")] = False,
    max_output: Annotated[
        int | None, typer.Option("--max-output", help="Refuse files that hold more plain bytes than this.", min=0)
    ] = None,
    salvage: Annotated[
        bool,
        typer.Option("--salvage", help="Recover undamaged windows of damaged files; if any is lost, exit with 3."),
    ] = False,
) -> None:
    """Options of both commands."""


@with_options(options_of(_file_options))
@one_line_errors()
def compress(
    decompress: Annotated[bool, typer.Option("--decompress", "-d", help="The same as `eem decompress`.")] = False,
    carry: Annotated[
        bool,
        typer.Option(
            "--carry", help="Windows see half of the one before; so far files got longer; damage costs more."
        ),
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print size and time, write nothing; with -l the model's estimate.")
    ] = False,
    **options: Any,
) -> None:
    """Compress files: FILE becomes FILE.eem, which every machine decodes to the same bytes.

    Options are named as in zstd. It is slow, as all neural compressors are: `--estimate` shows how slow.

    Example: `eem compress notes.txt`
    """
    reads = decompress or options["test"] or options["listing"]
    of_reading = {"--max-output": options["max_output"] is not None, "--salvage": options["salvage"]}
    _refuse({"--carry": carry}, reads, "is for compressing: leave it out")
    _refuse({"--carry": carry}, estimate, "is not in an estimate, which is of windows alone: leave it out")
    _refuse({"--estimate": estimate}, decompress or options["test"], "is for compressing, or with -l: leave it out")
    _refuse(of_reading, not reads, "is for decompressing: add -d")
    _run_on_files({"decompress": decompress, "estimate": estimate}, **options, carry=carry)


@with_options(options_of(_file_options))
@one_line_errors()
def decompress(**options: Any) -> None:
    """Decompress files: FILE.eem becomes FILE.

    A file of another model is refused before anything is decoded, and a damaged one before anything keeps its name.

    Example: `eem decompress notes.txt.eem`
    """
    _run_on_files({"decompress": True}, **options)


def _refuse(given: dict[str, bool], is_wrong: bool, why: str) -> None:
    for name, is_given in given.items():
        if is_given and is_wrong:
            raise ValueError(f"{name} {why}.")


def _run_on_files(modes: dict[str, bool], files: list[Path] | None, test: bool, listing: bool, **options: Any) -> None:
    """Process each file; after an error go on with the others, then exit with 2. Exit with 3 if a salvage lost bytes.

    If nobody reads the output any more, exit with 141 at once, as a shell reports of other commands.

    Args:
        modes: other modes that are asked for. A listing or a test comes first; without any mode, compress.
        options: those of `FileOptions`.
    """
    with _without_models():
        from modeling_eem.codec import file_operations

    wanted = {"list": listing, "test": test, **modes}
    mode = next((name for name, is_wanted in wanted.items() if is_wanted), "compress")
    output, writes = options["output"], mode in ("compress", "decompress")
    _refuse({"--output": output is not None}, not writes, "names a file, and nothing is written: leave it out")
    _refuse({"--output": output not in (None, Path("-"))}, options["to_stdout"], "and -c name two outputs: choose one")
    paths, asked = files or [], file_operations.FileOptions(**options)
    kept = "finished files are kept, and the unfinished one left nothing; run the same command with the rest."
    with keeps(lambda: kept), _quiet_at_broken_pipes():
        if mode in ("list", "estimate"):
            results = _answer(
                lambda say: (
                    file_operations.list_files(paths, asked, say, modes.get("estimate", False))
                    if mode == "list"
                    else file_operations.estimate_files(paths, asked, say)
                )
            )
        else:
            do = {
                "compress": file_operations.compress_files,
                "decompress": file_operations.decompress_files,
                "test": file_operations.test_files,
            }
            results = do[mode](paths, asked, _to_stderr, _watch)
    if any(result.error is not None for result in results):
        raise typer.Exit(2)
    if any(result.losses for result in results):
        raise typer.Exit(3)


@contextmanager
def _without_models() -> Iterator[None]:
    """Import the codec without PyTorch and transformers: in one second instead of six, in half the memory."""
    before = os.environ.get(_CODEC_ONLY)
    os.environ[_CODEC_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CODEC_ONLY]
        else:
            os.environ[_CODEC_ONLY] = before


def _answer(do: Callable) -> list:
    """Print answers to standard output, and errors to standard error."""
    lines: list[str] = []
    results = do(lines.append)
    errors = {result.line for result in results if result.error is not None}
    for line in lines:
        typer.echo(f"error: {line}" if line in errors else _printable(line), err=line in errors)
    return results


def _printable(line: str) -> str:
    """A line for standard output, with `\\udcff` for a byte of a file's name that is no text, as on standard error."""
    encoding = sys.stdout.encoding or "utf-8"  # a stream in memory has none
    return line.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def _quiet_at_broken_pipes() -> Iterator[None]:
    """Exit without a word when the reader of an output is gone, as `head` is after its last line."""
    try:
        yield
    except BrokenPipeError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # at its exit Python writes what is left in them
            with suppress(AttributeError, OSError):
                os.dup2(nowhere, stream.fileno())
        raise typer.Exit(_BROKEN_PIPE) from error


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def _watch(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    with progress_bar(name, total) as steps:
        yield steps.advance
