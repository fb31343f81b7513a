"""Cuts a corpus into shards: parts of files, of about one size, that know their documents' numbers.

The shards depend on the input and `shard_bytes` alone, never on the machine, so any number of workers makes the same
rows. A `.json`, `.gz` or `.zst` must be read from its start: it is one shard.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec
from huggingface_hub import snapshot_download

from modeling_eem.data.documents import (
    Span,
    file_kind,
    files_below,
    is_packed,
    list_of_endings,
    open_binary,
    open_parquet,
    read_records,
    read_span,
    text_files,
)
from modeling_eem.files import asset

HUB_CORPORA = {
    "fineweb-edu": "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT",
    "finemath-4plus": "hf://datasets/HuggingFaceTB/finemath/finemath-4plus",
}


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a file, and the documents in it.

    Attributes:
        span: where it is.
        first_document: the number of its first document, counted from 0 over the corpus, as in `read_documents`.
        num_documents: documents that begin in it, including unreadable ones.
        num_bytes: its size, in bytes of the uncompressed file or of the text column of `.parquet`.
    """

    span: Span
    first_document: int
    num_documents: int
    num_bytes: int


def corpus_files(data: Sequence[str], streaming: bool = False) -> list[str]:
    """The files that names stand for, in the order of the names; the files of a folder are sorted.

    Args:
        data: files, folders, URLs of either that fsspec opens (such as `hf://datasets/ORG/NAME/FOLDER`), or the short
            names of `HUB_CORPORA`.
        streaming: read files of the Hub over the network each time, instead of downloading them to its cache first.

    Raises:
        ValueError: for no name, a name of nothing, or a folder without text.
    """
    if not data:
        raise ValueError("no text: name files, folders or a Hub data set.")
    return [file for name in data for file in _files(HUB_CORPORA.get(name, name), streaming)]


def plan_shards(files: Sequence[str], text_column: str, shard_bytes: int) -> list[Shard]:
    """Cut files into shards of about `shard_bytes`. It reads the footers of `.parquet`, and all of other files once.

    Raises:
        ValueError: for a broken file, a missing column, or no document at all.
    """
    shards: list[Shard] = []
    documents = 0
    for path in files:
        for span, num_documents, num_bytes in _CUTTERS[file_kind(path)](path, text_column, shard_bytes):
            shards.append(Shard(span, documents, num_documents, num_bytes))
            documents += num_documents
    if documents == 0:
        raise ValueError(f"the corpus holds no document: {', '.join(files)} is empty.")
    return shards


def _files(name: str, streaming: bool) -> list[str]:
    name = asset(name)
    if name.startswith("hf://") and not streaming:
        name = _download(name)
    try:
        fs, path = fsspec.url_to_fs(name)
        is_file, is_folder = fs.isfile(path), fs.isdir(path)
    except Exception as error:  # each library that fsspec reads URLs with has its own errors
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from error
    if is_file:
        file_kind(name)
        return [name]
    if not is_folder:
        raise ValueError(f"{name}: not found; name a file, a folder or one of {', '.join(HUB_CORPORA)}.")
    if not (found := text_files(path, fs.find(path) if "://" in name else files_below(Path(path)))):
        raise ValueError(f"{name}: the folder holds no {list_of_endings()} file.")
    return [fs.unstrip_protocol(file) if "://" in name else file for file in found]


def _download(url: str) -> str:
    """The local folder or file that a Hub URL is downloaded to; files in the Hub's cache are not fetched again."""
    kind, *parts = url.removeprefix("hf://").split("/")
    if kind != "datasets" or len(parts) < 2:
        raise ValueError(f"{url}: a data set on the Hub is hf://datasets/ORG/NAME/FOLDER.")
    name, _, revision = parts[1].partition("@")
    inside = "/".join(parts[2:])
    folder = snapshot_download(
        f"{parts[0]}/{name}",
        repo_type="dataset",
        revision=revision or None,
        allow_patterns=[inside, f"{inside}/*"] if inside else None,
    )
    return f"{folder}/{inside}" if inside else folder


def _record_shards(path: str, text_column: str, shard_bytes: int) -> Iterator[tuple[Span, int, int]]:
    kind = file_kind(path)
    start, first_line, lines, documents, end = 0, 1, 0, 0, 0
    with open_binary(path) as file:
        for offset, record in read_records(file, kind):
            end = offset + len(record)
            lines += 1
            documents += kind == "txt" or not record.isspace()
            # A block of text that ends inside a line may end inside a character.
            if end - start >= shard_bytes and record.endswith(b"\n") and not is_packed(path):
                yield Span(path, start, end, first_line), documents, end - start
                start, first_line, lines, documents = end, first_line + lines, 0, 0
    if documents:
        yield Span(path, start, end, first_line), documents, end - start


def _json_shards(path: str, text_column: str, shard_bytes: int) -> Iterator[tuple[Span, int, int]]:
    """The file as one shard: only reading from its start shows where a record begins."""
    documents = sum(1 for _ in read_span(Span(path), text_column))
    with open_binary(path) as file:
        num_bytes = sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))
    if documents:
        yield Span(path), documents, num_bytes


def _parquet_shards(path: str, text_column: str, shard_bytes: int) -> Iterator[tuple[Span, int, int]]:
    with open_parquet(path, text_column) as file:
        rows, groups = file.metadata.num_rows, [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    columns = (group.column(i) for group in groups for i in range(group.num_columns))
    num_bytes = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == text_column)
    pieces = min(rows, max(1, round(num_bytes / shard_bytes)))
    cuts = [rows * i // pieces for i in range(pieces + 1)] if rows else []
    for start, stop in itertools.pairwise(cuts):
        yield Span(path, start, stop), stop - start, num_bytes * (stop - start) // rows


_CUTTERS = {"txt": _record_shards, "jsonl": _record_shards, "json": _json_shards, "parquet": _parquet_shards}
