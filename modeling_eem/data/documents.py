"""Text files as a stream of documents, one in memory at a time.

| name | a document is |
|---|---|
| `.txt` | about a mebibyte, cut behind a line's end where there is one; the pieces join to the whole file |
| `.jsonl` | the `text_column` of a line |
| `.parquet` | the `text_column` of a row |

`.txt.gz` and `.jsonl.gz` are read as what they hold. Text is UTF-8 and stays as it is: no newline is translated, no
byte-order mark dropped, nothing normalised.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

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


def read_documents(paths: Iterable[str | Path], text_column: str = "text") -> Iterator[Document]:
    """Read documents file by file; memory is bounded by the longest document, not by the files.

    Raises:
        ValueError: at once for no file, a missing one or a name of another kind; while reading for a file that is
            broken or not UTF-8 (with the byte's offset in the uncompressed file), a missing column, or a value that
            is not text.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise ValueError("no file to read: name at least one .txt, .jsonl or .parquet file.")
    readers = [_reader(path) for path in files]
    texts = ((text, path) for path, reader in zip(files, readers, strict=True) for text in reader(path, text_column))
    return (Document(text, path, index) for index, (text, path) in enumerate(texts))


def check_encodable(text: str, name: str) -> None:
    """ValueError if `text` (called `name` there) holds a lone surrogate, which no UTF-8 can express."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds the lone surrogate {text[error.start]!a} at character {error.start}, which is not Unicode "
            'text: replace it, for instance by text.encode("utf-8", "replace").decode().'
        ) from error


def _reader(path: Path) -> Callable[[Path, str], Iterator[str]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    for ending, reader in _READERS.items():
        if path.name.endswith(ending):
            return reader
    raise ValueError(f"{path}: unknown kind of file: its name must end in {', '.join(_READERS)}.")


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            offset = file.tell() - len(error.object) + error.start
            raise ValueError(f"{path}: not UTF-8 at byte {offset}: convert the file to UTF-8.") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file.") from error


def _read_txt(path: Path, text_column: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()  # carries a character over that a cut splits
    with _open(path) as file:
        while block := file.read(_TEXT_BLOCK) + file.readline(_TEXT_BLOCK):
            yield decoder.decode(block)
        decoder.decode(b"", final=True)


def _read_jsonl(path: Path, text_column: str) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                record = json.loads(line.decode())
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}.") from error
            if not isinstance(record, dict) or text_column not in record:
                raise ValueError(f"{path}: line {number} has no column {text_column!r}.")
            text = record[text_column]
            if not isinstance(text, str):
                raise ValueError(f"{path}: line {number}, column {text_column!r}: text expected, not {text!r}.")
            check_encodable(text, f"{path}: line {number}")  # JSON can write one as \ud800
            yield text


def _read_parquet(path: Path, text_column: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_column not in schema.names:
                raise ValueError(f"{path}: no column {text_column!r}, only {', '.join(schema.names)}.")
            if not _is_text(kind := schema.field(text_column).type):
                raise ValueError(f"{path}: column {text_column!r} holds {kind}, not text.")
            batches = file.iter_batches(batch_size=_PARQUET_BATCH, columns=[text_column])
            for number, value in enumerate(value for batch in batches for value in batch.column(0)):
                text = value.as_py()
                if text is None:
                    raise ValueError(f"{path}: row {number}, column {text_column!r}: text expected, not null.")
                yield text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: row {number} is not UTF-8 at its byte {error.start}.") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file.") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


_READERS = {
    ".txt": _read_txt,
    ".txt.gz": _read_txt,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".parquet": _read_parquet,
}
