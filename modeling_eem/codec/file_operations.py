"""The work of `eem compress` and `eem decompress` on files, folders, standard input and output, as in zstd.

A path `-`, or no path, is standard input to standard output. After an error each function goes on with the next file.
It returns one FileResult a file; the exit code is 2 if any has an `error`, otherwise 3 if any has `losses`. If nobody
reads the output any more, a BrokenPipeError ends the function. `say` prints a line (the command line passes one that
prints to standard error); `watch` makes a progress bar.
"""

import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from modeling_eem.codec.archive import Layout, describe
from modeling_eem.codec.codec import Codec
from modeling_eem.codec.container import CodecError, DamagedFile, Header
from modeling_eem.codec.estimate import Estimate
from modeling_eem.codec.report import Report
from modeling_eem.codec.streams import Progress, Source, Writer, no_progress, write_fully
from modeling_eem.codec.threads import set_num_threads
from modeling_eem.codec.whole_files import whole_file
from modeling_eem.files import is_part

SUFFIX = ".eem"
_LARGE = 10_000_000  # for larger inputs, in bytes, the expected time is printed first
_LARGE_SAMPLE = 1 << 16
_TIMED_BYTES, _TIMED_SECONDS = 100_000, 0.01  # less takes as long as the start, and shows no speed
_STANDARD = Path("-")

Say = Callable[[str], None]
Watch = Callable[[str, int | None], AbstractContextManager[Progress]]
"""Given a file's name and its plain (when decompressing: file) bytes if known, a context that yields the callback."""


def no_watch(name: str, total: int | None) -> AbstractContextManager[Progress]:
    """No progress bar."""
    return nullcontext(no_progress)


@dataclass(frozen=True)
class FileOptions:
    """The options of the command line.

    Attributes:
        model: a folder or Hub name; None for the default model, or the file's own.
        output: where one input's output goes; `-` is standard output.
        force: overwrite, and write compressed bytes to a terminal.
        keep: keep sources; otherwise a file is removed once its output is a file on the disk.
        recursive: take folders, each file by itself; without it a folder is an error.
        threads: number of threads; 0: OMP_NUM_THREADS, else all cores.
        carry: for `compress_files`: windows take context from the previous window.
        max_output: for `decompress_files` and `test_files`: the most plain bytes that a file may hold.
        salvage: for `decompress_files`: write what a damaged file still holds, and report what is lost.
    """

    model: str | None = None
    output: Path | None = None
    to_stdout: bool = False
    force: bool = False
    keep: bool = True
    recursive: bool = False
    threads: int = 0
    carry: bool = False
    max_output: int | None = None
    salvage: bool = False


@dataclass
class FileResult:
    """The result for one input: where it went, its sizes, or a one-line error.

    Attributes:
        seconds: what coding took; 0 where nothing was coded.
        losses: a salvaged file lacks plain bytes, or may lack some.
        note: what else the line says.
    """

    source: Path
    target: Path | None = None
    plain_bytes: int = 0
    file_bytes: int = 0
    seconds: float = 0.0
    error: str | None = None
    losses: bool = False
    note: str = ""
    report: Report | None = None
    estimate: Estimate | None = None

    @property
    def line(self) -> str:
        """Sizes, ratio and speed in words, where they tell something."""
        if self.error is not None:
            return f"{self.source}: {self.error}"
        said = f"{self.source}: {self.plain_bytes:,} plain bytes, {self.file_bytes:,} in the file"
        if self.plain_bytes:
            ratio = self.file_bytes / self.plain_bytes
            said += f" ({100 * ratio:.1f} %, {8 * ratio:.3f} bits a byte)"
        if self.plain_bytes >= _TIMED_BYTES and self.seconds >= _TIMED_SECONDS:
            speed = self.plain_bytes / self.seconds / 1000
            said += f", {speed:,.0f} kB/s" if speed >= 10 else f", {speed:.1f} kB/s"
        return f"{said}; {self.note}" if self.note else said


class _Models:
    """Codecs, each loaded on first use."""

    def __init__(self, options: FileOptions) -> None:
        self._options = options
        self._given: Codec | None = None
        self._by_id: dict[bytes | None, Codec] = {}
        if options.threads:
            set_num_threads(options.threads)

    def to_compress(self) -> Codec:
        if self._given is None:
            carry, model = self._options.carry, self._options.model
            self._given = Codec.default(carry) if model is None else Codec.from_pretrained(model, carry=carry)
        return self._given

    def to_salvage(self) -> Codec:
        """The codec for a file with a damaged header: the given one, else the default, else one for bytes only."""
        try:
            return self.to_compress()
        except CodecError:
            return Codec(None)

    def to_read(self, header: Header) -> Codec:
        """The codec for a file: the given one if the file names a model, else the file's own."""
        if header.model_id is not None and self._options.model is not None:
            return self.to_compress()
        if header.model_id not in self._by_id:
            self._by_id[header.model_id] = Codec.for_header(header)
        return self._by_id[header.model_id]


def compress_files(
    paths: Sequence[Path], options: FileOptions, say: Say = print, watch: Watch = no_watch
) -> list[FileResult]:
    """Compress each file to `FILE.eem` beside it, or as the options say."""
    models = _Models(options)
    inputs = _inputs(paths, options, lambda path: path.suffix != SUFFIX)
    if len(inputs) > 1 and _goes_to_stdout(inputs[0].source, options):
        raise CodecError("several files cannot share one .eem: compress them one by one, or pack them with tar first.")

    def compress(result: FileResult) -> None:
        given = _STANDARD if _goes_to_stdout(result.source, options) else options.output
        if given is None and result.source.suffix == SUFFIX:
            raise CodecError(f"its name ends in {SUFFIX} already: -d decompresses it, -o or -c compresses it again.")
        target = result.target = given or result.source.with_name(result.source.name + SUFFIX)
        if target == _STANDARD and _standard("output").isatty() and not options.force:
            raise CodecError("compressed bytes would go to the terminal: name a file with -o, or force it with -f.")
        codec = models.to_compress()
        with _reading(result.source) as reader, _writing(result.source, target, options) as writer:
            size = _size(result.source)
            if size is not None and size > _LARGE:
                seconds = _estimate(result.source, codec, _LARGE_SAMPLE).seconds
                say(f"{result.source}: about {_duration(seconds)} for {size:,} bytes")
            with watch(str(result.source), size) as progress:
                result.report = codec.compress_stream(reader, writer, progress)
        result.plain_bytes, result.file_bytes = result.report.plain_bytes, result.report.file_bytes
        result.note = result.report.note if codec.model is not None else ""

    return _each(inputs, options, compress, say)


def decompress_files(
    paths: Sequence[Path], options: FileOptions, say: Say = print, watch: Watch = no_watch
) -> list[FileResult]:
    """Decompress each `FILE.eem` to FILE beside it, or as the options say."""
    models = _Models(options)
    inputs = _inputs(paths, options, lambda path: path.suffix == SUFFIX)

    def decompress(result: FileResult) -> None:
        given = _STANDARD if _goes_to_stdout(result.source, options) else options.output
        if given is None and result.source.suffix != SUFFIX:
            raise CodecError(f"its name does not end in {SUFFIX}: name the output with -o, or use -c.")
        target = result.target = given or result.source.with_suffix("")
        with _reading(result.source) as reader:
            if options.salvage:
                _salvage(reader, result, target, options, models, say)
            else:
                _decode(reader, result, models, options, watch, lambda: _writing(result.source, target, options))

    return _each(inputs, options, decompress, say)


def test_files(
    paths: Sequence[Path], options: FileOptions, say: Say = print, watch: Watch = no_watch
) -> list[FileResult]:
    """Decode each file, to test whether it is whole; nothing is written."""
    models = _Models(options)

    def test(result: FileResult) -> None:
        with _reading(result.source) as reader:
            _decode(reader, result, models, options, watch, lambda: nullcontext(_Nowhere()))

    return _each(_inputs(paths, options, lambda path: path.suffix == SUFFIX), options, test, say, removes=False)


test_files.__test__ = False  # not one of pytest's


def list_files(
    paths: Sequence[Path], options: FileOptions, say: Say = print, estimate: bool = False
) -> list[FileResult]:
    """Print what each file is made of."""
    models = _Models(options)

    def show(result: FileResult) -> None:
        if result.source == _STANDARD:
            raise CodecError("a listing needs a file: it reads only parts of it, from the end on.")
        with open(result.source, "rb", buffering=0) as file:
            layout = Layout(file)
            result.report = models.to_read(layout.header).open(file).report(True) if estimate else describe(layout)
        result.plain_bytes, result.file_bytes = result.report.plain_bytes, result.report.file_bytes
        say(result.line)
        for line in result.report.lines():
            say(f"  {line}")

    inputs = _inputs(paths, options, lambda path: path.suffix == SUFFIX)
    return _each(inputs, options, show, say, removes=False, codes=False)


def estimate_files(paths: Sequence[Path], options: FileOptions, say: Say = print) -> list[FileResult]:
    """Print the size and time that each file would take; nothing is written."""
    models = _Models(options)

    def estimate(result: FileResult) -> None:
        result.estimate = _estimate(result.source, models.to_compress())
        result.plain_bytes, result.file_bytes = result.estimate.plain_bytes, round(result.estimate.file_bytes)
        result.note = f"about {_duration(result.estimate.seconds)}"
        say(result.line)

    inputs = _inputs(paths, options, lambda path: path.suffix != SUFFIX)
    return _each(inputs, options, estimate, say, removes=False, codes=False)


def _each(
    inputs: Sequence[FileResult],
    options: FileOptions,
    work: Callable[[FileResult], None],
    say: Say,
    removes: bool = True,
    codes: bool = True,
) -> list[FileResult]:
    """Do `work` for every input that has no error yet; an error ends only that input.

    Args:
        removes: remove sources if the options say so; one that lost bytes stays.
        codes: `work` codes the file: it is timed, and its line is said after it. Other work says its own line.
    """
    for result in inputs:
        begin = time.perf_counter()
        try:
            if result.error is None:
                work(result)
                if removes and not options.keep and _is_replaced(result):
                    result.source.unlink()
        except BrokenPipeError:  # nobody reads the output any more
            raise
        except OSError as error:
            is_about_source = error.filename is None or str(error.filename) == str(result.source)
            said = str(error.strerror or error)
            result.error = said if is_about_source else f"{error.filename}: {said}"
        except ValueError as error:
            result.error = str(error)
        if codes:
            result.seconds = time.perf_counter() - begin
        if codes or result.error is not None:
            say(result.line)
    return list(inputs)


def _is_replaced(result: FileResult) -> bool:
    """Whether a file now stands for the source, which is one itself: a device or a pipe keeps nothing."""
    if result.losses or result.target is None or result.target == _STANDARD:
        return False
    return result.target.is_file() and result.source.is_file()


def _inputs(paths: Sequence[Path], options: FileOptions, is_wanted: Callable[[Path], bool]) -> list[FileResult]:
    """The files that `paths` name, in order: the paths themselves, and with --recursive the wanted files in folders.

    A folder without --recursive, and one that cannot be read, has an error; the others are done all the same.

    Raises:
        CodecError: for several inputs for one output.
    """
    found: list[FileResult] = []
    for path in paths or [_STANDARD]:
        if path == _STANDARD or not path.is_dir():
            found.append(FileResult(path))
        elif options.recursive:
            found += _within(path, is_wanted)
        else:
            found.append(FileResult(path, error="it is a folder: -r takes each file in it by itself."))
    if len(found) > 1 and options.output is not None:
        raise CodecError("-o names one file, and there are several inputs: leave -o out.")
    return found


def _within(folder: Path, is_wanted: Callable[[Path], bool]) -> list[FileResult]:
    """The wanted files of a folder and of those in it, by name, and the folders that cannot be read."""
    unread: list[FileResult] = []

    def note(error: OSError) -> None:
        unread.append(FileResult(Path(error.filename), error=str(error.strerror)))

    paths = [
        Path(parent, name) for parent, _, names in os.walk(folder, onerror=note) for name in names if not is_part(name)
    ]
    return unread + [FileResult(path) for path in sorted(paths) if path.is_file() and is_wanted(path)]


def _goes_to_stdout(source: Path, options: FileOptions) -> bool:
    return options.to_stdout or options.output == _STANDARD or (source == _STANDARD and options.output is None)


@contextmanager
def _reading(source: Path) -> Iterator[BinaryIO]:
    if source == _STANDARD:
        yield _standard("input").buffer
    else:
        with open(source, "rb") as file:
            yield file


@contextmanager
def _writing(source: Path, target: Path, options: FileOptions) -> Iterator[BinaryIO]:
    if target == _STANDARD:
        output = _standard("output").buffer
        yield output
        output.flush()
        return
    is_file = source != _STANDARD
    if is_file and target.exists() and target.samefile(source):
        raise CodecError("input and output are the same file: name another with -o.")
    with whole_file(target, options.force, source if is_file else None) as file:
        yield file


def _standard(name: str) -> TextIO:
    """Standard "input" or "output"; Python has None for one that is closed."""
    stream = sys.stdin if name == "input" else sys.stdout
    if stream is None:
        raise CodecError(f"standard {name} is closed: name a file.")
    return stream


class _Nowhere:
    """Discards all bytes."""

    def write(self, data: bytes) -> int:
        return len(data)


def _decode(
    reader: BinaryIO,
    result: FileResult,
    models: _Models,
    options: FileOptions,
    watch: Watch,
    writing: Callable[[], AbstractContextManager[Writer]],
) -> None:
    size = None
    if result.source != _STANDARD and reader.seekable():
        footer = Layout(reader).footer  # finds damage at the end, or too much output, first
        if options.max_output is not None and footer.plain_length > options.max_output:
            raise CodecError(f"it holds {footer.plain_length} plain bytes: --max-output allows {options.max_output}.")
        size = footer.plain_length
        reader.seek(0)
    source = Source(reader)
    codec = models.to_read(Header.from_bytes(source.peek(64)))
    with writing() as writer, watch(str(result.source), size) as progress:
        result.plain_bytes = codec.decompress_stream(source, writer, options.max_output, progress)
    result.file_bytes = source.taken


def _salvage(
    reader: BinaryIO, result: FileResult, target: Path, options: FileOptions, models: _Models, say: Say
) -> None:
    blob = reader.read()
    try:
        header = Header.from_bytes(blob)
    except DamagedFile:
        codec = models.to_salvage()
    else:
        codec = models.to_read(header)
    salvaged = codec.salvage(blob, options.max_output)
    for line in salvaged.lines():
        say(f"{result.source}: {line}")
    with _writing(result.source, target, options) as writer:
        for _, plain in sorted(salvaged.windows.items()):
            write_fully(writer, plain)
            result.plain_bytes += len(plain)
    result.file_bytes = len(blob)
    result.losses = salvaged.has_losses


def _size(source: Path) -> int | None:
    return source.stat().st_size if source != _STANDARD and source.is_file() else None


def _estimate(source: Path, codec: Codec, sample: int = 1 << 20) -> Estimate:
    if source == _STANDARD:
        return codec.estimate(_standard("input").buffer.read(), sample)
    if os.path.getsize(source) == 0:  # an empty file, or a pipe, which cannot be mapped either
        return codec.estimate(source.read_bytes(), sample)
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return codec.estimate(mapped, sample)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


__all__ = [
    "SUFFIX",
    "FileOptions",
    "FileResult",
    "Say",
    "Watch",
    "compress_files",
    "decompress_files",
    "estimate_files",
    "list_files",
    "test_files",
]
