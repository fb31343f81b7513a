"""Text files as a stream of documents, one in memory at a time.

| name | a document is |
|---|---|
| `.txt` | about a mebibyte, cut after the end of a line if there is one; the pieces join to the whole file |
| `.jsonl` | the `text_column` of a line |
| `.json` | the `text_column` of a record; the file is a list, or records one after another, on lines or not |
| `.parquet` | the `text_column` of a row |

Endings count in upper and lower case. Text and JSON may be compressed: `.gz` or `.zst` follows the ending. A folder
stands for all such files in it except hidden ones (Spark and dask write a `corpus.parquet` of many parts). Text is
UTF-8 and stays as it is: no newline is translated, nothing normalised, no byte-order mark of a `.txt` dropped. Before
JSON such a mark is no part of any text, and is passed over.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from modeling_eem.data.file_streams import BrokenJsonError, ZstandardFile, json_values
from modeling_eem.files import asset

_KINDS = ("txt", "jsonl", "json", "parquet")
_PACKED = (".gz", ".zst")  # endings of compressed text and JSON
# A folder with one of these is or will be a data set: of `save_to_disk`, and of rows that are not finished.
ROW_FOLDER_FILES = ("dataset_dict.json", "state.json", "fingerprint.json", "entropies.json")
_TEXT_BLOCK = 1 << 20  # bytes
_PARQUET_BATCH = 64  # rows


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from.

    Attributes:
        text: what the file holds, unchanged; may be empty.
        path: the file.
        index: the document's number, counted from 0 over all the files.
    """

    text: str
    path: Path
    index: int


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file that can be read by itself.

    Attributes:
        path: a local path or a URL that fsspec opens (`hf://datasets/…`).
        start: the first row of `.parquet`, else the first byte of the uncompressed file; a document begins there.
        stop: the row or byte after the last one; None for the file's end.
        first_line: the number of the line that begins at `start`, for messages.
    """

    path: str
    start: int = 0
    stop: int | None = None
    first_line: int = 1


def read_documents(paths: Iterable[str | Path], text_column: str = "text") -> Iterator[Document]:
    """Read documents file by file; memory is bounded by the longest document, not by the files.

    Raises:
        ValueError: at once for no file, a missing file, another kind of file, or a folder without text; while reading,
            for a file that is broken or not UTF-8 (with the byte's offset in the uncompressed file), a missing column,
            or a value that is not text.
    """
    files = [file for path in paths for file in document_files(Path(asset(str(path))))]
    if not files:
        raise ValueError("no file to read: name at least one .txt, .jsonl or .parquet file.")
    texts = ((text, path) for path in files for text in read_span(Span(str(path)), text_column))
    return (Document(_or_raise(text), path, index) for index, (text, path) in enumerate(texts))


def document_files(path: Path) -> list[Path]:
    """The file, or the files of a folder; ValueError if the path is neither, or the folder holds no text."""
    if path.is_file():
        file_kind(str(path))
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file.")
    if not (found := text_files(path, files_below(path))):
        raise ValueError(f"{path}: the folder holds no {list_of_endings()} file.")
    return [Path(file) for file in found]


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[str]:
    """All files, in linked folders too, as often as they are linked; a link back to a folder above is not followed.

    Folders of rows inside are passed by: a command's output often lies beside its text.
    """
    inside = (*above, folder.resolve())
    for path in folder.iterdir():
        if path.is_dir():
            if path.resolve() not in inside and not is_row_folder(path):
                yield from files_below(path, inside)
        elif path.is_file():
            yield str(path)


def is_row_folder(path: Path) -> bool:
    """Whether a folder is or will be a data set, not a folder of text files."""
    return any((path / name).exists() for name in ROW_FOLDER_FILES)


def text_files(folder: str | Path, paths: Iterable[str]) -> list[str]:
    """The sorted text files of a folder, without files or folders whose names begin with "." or "_"; ValueError for a
    folder of rows, whose JSON files are not text."""
    depth = len(Path(folder).parts)
    paths = list(paths)
    if any(Path(path).name in ROW_FOLDER_FILES and len(Path(path).parts) == depth + 1 for path in paths):
        raise ValueError(f"{folder}: the folder holds a saved data set, not text: name the text that it was made of.")
    shown = [path for path in paths if not any(part.startswith((".", "_")) for part in Path(path).parts[depth:])]
    return sorted(path for path in shown if _kind(path) is not None)


def read_span(span: Span, text_column: str = "text") -> Iterator[str | ValueError]:
    """The texts of a part of a file. In place of a text that cannot be read comes the error, with where and why.

    Raises:
        ValueError: for a file that is broken as a whole, or lacks the column.
    """
    return _READERS[file_kind(span.path)](span, text_column)


def file_kind(path: str) -> str:
    """ "txt", "jsonl", "json" or "parquet", by the name's ending; ValueError for another ending."""
    if (kind := _kind(path)) is None:
        raise ValueError(f"{path}: unknown kind of file: its name must end in {list_of_endings()}.")
    return kind


def is_packed(path: str) -> bool:
    """Whether the file is compressed: reading must then begin at its start."""
    return path.lower().endswith(_PACKED)


def list_of_endings() -> str:
    """The endings, for messages."""
    return ", ".join([*(f".{kind}" for kind in _KINDS), *(f".jsonl{packed}" for packed in _PACKED)])


def _kind(path: str) -> str | None:
    name = path.lower()
    inside = name.removesuffix(".gz").removesuffix(".zst") if is_packed(name) else name
    kind = inside.rpartition(".")[2]
    return kind if kind in _KINDS and (inside == name or kind != "parquet") else None


def check_encodable(text: str, name: str) -> None:
    """ValueError if `text` (called `name` there) holds a lone surrogate, which UTF-8 cannot express."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds the lone surrogate {text[error.start]!a} at character {error.start}, which is not Unicode "
            'text: replace it, for instance by text.encode("utf-8", "replace").decode().'
        ) from error


@contextmanager
def open_binary(path: str) -> Iterator[BinaryIO]:
    """A local file or a URL, uncompressed as it is read; ValueError for a damaged `.gz` or `.zst`."""
    with ExitStack() as stack:
        if "://" in path:
            # fsspec's files read no lines of at most so many bytes.
            file = stack.enter_context(io.BufferedReader(cast(Any, stack.enter_context(_open_url(path))), _TEXT_BLOCK))
        else:
            file = stack.enter_context(Path(path).open("rb"))
        if path.lower().endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif path.lower().endswith(".zst"):
            file = stack.enter_context(io.BufferedReader(ZstandardFile(file), _TEXT_BLOCK))
        try:
            yield cast(BinaryIO, file)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            kind = "zstandard" if path.lower().endswith(".zst") else "gzip"
            raise ValueError(f"{path}: not a whole {kind} file.") from error


@contextmanager
def _open_url(url: str) -> Iterator[BinaryIO]:
    try:
        with fsspec.open(url, "rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, ValueError, pa.ArrowException, zlib.error):
        raise
    except Exception as error:  # each library that fsspec reads URLs with has its own errors
        raise ValueError(f"{url}: {type(error).__name__}: {error}") from error


def read_records(file: BinaryIO, kind: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the lines of "jsonl" or the blocks of "txt"; joined, they are the bytes from start to stop.

    Each begins where the one before it ended. Reading from any record's offset gives the same later records.
    """
    if start:
        file.seek(start)
    offset = start
    while (stop is None or offset < stop) and (record := _next_record(file, kind)):
        yield offset, record
        offset += len(record)


def _next_record(file: BinaryIO, kind: str) -> bytes:
    return file.readline() if kind == "jsonl" else file.read(_TEXT_BLOCK) + file.readline(_TEXT_BLOCK)


def _read_txt(span: Span, text_column: str) -> Iterator[str | ValueError]:
    decoder = codecs.getincrementaldecoder("utf-8")()  # carries over a character that a cut splits
    end = span.start
    with open_binary(span.path) as file:
        for offset, block in read_records(file, "txt", span.start, span.stop):
            carried, end = len(decoder.getstate()[0]), offset + len(block)
            try:
                yield decoder.decode(block)
            except UnicodeDecodeError as error:
                decoder.reset()
                yield _not_utf8(span.path, offset - carried + error.start)
    if cut := len(decoder.getstate()[0]):
        yield _not_utf8(span.path, end - cut)


def _read_jsonl(span: Span, text_column: str) -> Iterator[str | ValueError]:
    with open_binary(span.path) as file:
        lines = read_records(file, "jsonl", span.start, span.stop)
        for number, (offset, line) in enumerate(lines, start=span.first_line):
            if not offset and line.startswith(codecs.BOM_UTF8):
                line, offset = line.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
            if line.strip():
                yield _line_text(line, f"{span.path}: line {number}", span.path, offset, text_column)


def _line_text(line: bytes, name: str, path: str, offset: int, text_column: str) -> str | ValueError:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(path, offset + error.start)
    except (ValueError, RecursionError) as error:  # not JSON; or more brackets or digits than Python reads
        return ValueError(f"{name} is not JSON: {error}.")
    return _record_text(record, name, text_column)


def _record_text(record: Any, name: str, text_column: str) -> str | ValueError:
    if not isinstance(record, dict) or text_column not in record:
        return ValueError(f"{name} has no column {text_column!r}.")
    text = record[text_column]
    if not isinstance(text, str):
        return ValueError(f"{name}, column {text_column!r}: text expected, not {text!r}.")
    try:
        check_encodable(text, name)  # JSON can write a lone surrogate as \ud800
    except ValueError as error:
        return error
    return text


def _read_json(span: Span, text_column: str) -> Iterator[str | ValueError]:
    with open_binary(span.path) as file:
        try:
            for number, record in enumerate(json_values(file), start=1):
                yield _record_text(record, f"{span.path}: record {number}", text_column)
        except UnicodeDecodeError as error:
            raise ValueError(f"{span.path}: not UTF-8: convert the file to UTF-8.") from error
        except BrokenJsonError as error:
            raise ValueError(f"{span.path}: {error}") from error


def _not_utf8(path: str, offset: int) -> ValueError:
    return ValueError(f"{path}: not UTF-8 at byte {offset}: convert the file to UTF-8.")


@contextmanager
def open_parquet(path: str, text_column: str) -> Iterator[pq.ParquetFile]:
    """A parquet file with a column of text; ValueError for a damaged file, or one without the column."""
    try:
        with ExitStack() as stack:
            source = stack.enter_context(_open_url(path)) if "://" in path else path
            # Page by page: a row group may be the whole file.
            file = stack.enter_context(pq.ParquetFile(source, pre_buffer=False, buffer_size=_TEXT_BLOCK))
            schema = file.schema_arrow
            if text_column not in schema.names:
                raise ValueError(f"{path}: no column {text_column!r}, only {', '.join(schema.names)}.")
            if (count := schema.names.count(text_column)) > 1:
                raise ValueError(f"{path}: {count} columns are called {text_column!r}: rename all but one.")
            if not _is_text(kind := schema.field(text_column).type):
                raise ValueError(f"{path}: column {text_column!r} holds {kind}, not text.")
            yield file
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file.") from error


def _read_parquet(span: Span, text_column: str) -> Iterator[str | ValueError]:
    with open_parquet(span.path, text_column) as file:
        stop = file.metadata.num_rows if span.stop is None else span.stop
        groups, number, row = [], 0, 0  # the row groups that overlap the span, and the first one's first row
        for group in range(file.num_row_groups):
            behind = row + file.metadata.row_group(group).num_rows
            if row < stop and behind > span.start:
                number = number if groups else row
                groups.append(group)
            row = behind
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH, row_groups=groups, columns=[text_column]):
            for index in range(max(0, span.start - number), min(len(batch), stop - number)):
                yield _cell_text(batch.column(0)[index], f"{span.path}: row {number + index}", text_column)
            number += len(batch)


def _cell_text(cell: pa.Scalar, name: str, text_column: str) -> str | ValueError:
    try:
        text = cell.as_py()
    except UnicodeDecodeError as error:
        return ValueError(f"{name} is not UTF-8 at its byte {error.start}.")
    return ValueError(f"{name}, column {text_column!r}: text expected, not null.") if text is None else text


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _or_raise(text: str | ValueError) -> str:
    if isinstance(text, ValueError):
        raise text
    return text


_READERS = {"txt": _read_txt, "jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet}
