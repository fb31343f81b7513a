"""The held-out rows that a model is scored on, from text files or from a folder of prepared rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from modeling_eem.data.arrow_files import HELD_OUT
from modeling_eem.data.documents import Document, document_files, read_documents
from modeling_eem.data.fingerprint import FINGERPRINT_FILE, check_fingerprint, read_fingerprint
from modeling_eem.data.row_checksums import CONTENTS_FILE, open_rows, verify_rows
from modeling_eem.data.rows import Row, RowFormat, pad, stream, windows
from modeling_eem.data.text_encoding import encoded_documents, vocabulary_bytes
from modeling_eem.data.tokenizer import token_byte_lengths
from modeling_eem.files import asset

# The rows to score; `full` are the rows of `pad` that fill the context (the published "full-context rows").
RowChoice = Literal["windows", "pad", "full", "stream"]
_ROWS = {"windows": windows, "pad": pad, "full": pad, "stream": stream}


def held_out_rows(
    data: Sequence[Path], tokenizer: Tokenizer, config: PreTrainedConfig, choice: RowChoice, max_length: int
) -> list[Row]:
    """Rows of at most `max_length` tokens, from text files or from one folder of `eem data prepare`.

    From a folder, the split `held_out` is read.

    Raises:
        ValueError: for a file without text, or text that the tokenizer does not keep byte by byte; a folder beside
            other data, without a held-out split, or of rows made with another tokenizer, another length or in another
            mode; no row to score.
    """
    folders = [path for path in data if path.is_dir() and (path / FINGERPRINT_FILE).exists()]
    if folders and len(data) > 1:
        raise ValueError("--data takes text files or one folder of prepared rows, not both: name only one kind.")
    if folders:
        rows = _prepared(folders[0], tokenizer, config, choice, max_length)
    else:
        row_format = RowFormat.from_tokenizer(tokenizer, max_length)
        rows = list(_ROWS[choice](encoded_documents(_documents(data), tokenizer), row_format))
    if choice == "full":
        rows = [row for row in rows if len(row["input_ids"]) == max_length]
        if not rows:
            raise ValueError(f"no document fills a row of {max_length:,} tokens: use other rows or longer documents.")
    return rows


def row_bytes(rows: Sequence[Row], tokenizer: Tokenizer) -> list[bytes]:
    """The text of each row without special tokens: the bytes for a compressor to compress."""
    lengths_V, held = token_byte_lengths(tokenizer).tolist(), vocabulary_bytes(tokenizer)
    return [b"".join([held[index] for index in row["input_ids"] if lengths_V[index]]) for row in rows]


def _documents(data: Sequence[Path]) -> Iterator[Document]:
    """The documents of all files and folders; after the last one, ValueError if a file had no text."""
    files = [file for path in data for file in document_files(Path(asset(str(path))))]
    if len({file.resolve() for file in files}) < len(files):
        twice = next(file for number, file in enumerate(files) if file.resolve() in map(Path.resolve, files[:number]))
        raise ValueError(f"{twice} is named twice, and would be counted twice: leave one out.")
    empty = dict.fromkeys(files)
    for document in read_documents(files):
        if document.text:
            empty.pop(document.path, None)
        yield document
    for path in empty:
        raise ValueError(f"{path} holds no text: leave it out.")


def _prepared(
    folder: Path, tokenizer: Tokenizer, config: PreTrainedConfig, choice: RowChoice, max_length: int
) -> list[Row]:
    check_fingerprint(folder, tokenizer)
    check_fingerprint(folder, config)
    made = read_fingerprint(folder)
    if made["max_length"] != max_length:
        raise ValueError(
            f"the rows in {folder} hold up to {made['max_length']:,} tokens and the model is scored on "
            f"{max_length:,}: prepare the text again with that --max-length."
        )
    wanted = "pad" if choice == "full" else choice
    if made["rows"] != wanted:
        raise ValueError(
            f"the rows in {folder} are {made['rows']!r}, and this needs {wanted!r}: prepare the text again with "
            f"--rows {wanted}, or name text."
        )
    splits = open_rows(folder)
    if HELD_OUT not in splits:
        raise ValueError(f"{folder} has no held-out rows: prepare the text again with --held-out.")
    if (folder / CONTENTS_FILE).exists():
        verify_rows(folder, [HELD_OUT])
    byte_lengths_V = token_byte_lengths(tokenizer).numpy()
    return [_checked(row, number, folder, tokenizer, byte_lengths_V) for number, row in enumerate(splits[HELD_OUT])]


def _checked(row: Any, number: int, folder: Path, tokenizer: Tokenizer, byte_lengths_V: NDArray) -> Row:
    """A row without its padding; ValueError if `eem data prepare` cannot have made it with this tokenizer."""
    mask = np.asarray(row["attention_mask"])
    real = np.flatnonzero(mask)
    name = f"{folder}: held-out row {number}"
    if len(real) < 2 or real[-1] - real[0] >= len(real):
        raise ValueError(f"{name} has an attention_mask with a hole, or under two tokens: prepare it again.")
    part = slice(real[0], real[-1] + 1)
    ids, document_ids = row["input_ids"][part], row["document_ids"][part]
    if ids[0] != tokenizer.bos_token_id or not 0 <= min(ids) <= max(ids) < len(byte_lengths_V):
        raise ValueError(f"{name} does not begin with BOS, or holds ids of no token: prepare the text again.")
    if row["num_bytes"] != (num_bytes := int(byte_lengths_V[ids].sum())):
        raise ValueError(f"{name} claims {row['num_bytes']} bytes and holds {num_bytes}: prepare it again.")
    return Row(input_ids=ids, document_ids=document_ids, num_bytes=num_bytes)
