"""Held-out text as the rows that a model is scored on, from text files or from a folder of prepared rows."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from datasets import load_from_disk
from transformers import PreTrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from modeling_eem.data.arrow_files import HELD_OUT
from modeling_eem.data.documents import Document, read_documents
from modeling_eem.data.fingerprint import FINGERPRINT_FILE, check_fingerprint, read_fingerprint
from modeling_eem.data.rows import Row, RowFormat, pad, stream, windows
from modeling_eem.data.tokenizer import encode_text, token_byte_lengths, token_bytes

# What is scored: `full` are the rows of `pad` that fill the context (the published "full-context rows").
RowChoice = Literal["windows", "pad", "full", "stream"]
_ROWS = {"windows": windows, "pad": pad, "full": pad, "stream": stream}


def held_out_rows(
    data: Sequence[Path], tokenizer: Tokenizer, config: PreTrainedConfig, choice: RowChoice, max_length: int
) -> list[Row]:
    """Rows of at most `max_length` tokens, from text files or from one folder that `eem-data prepare` made.

    Of a folder, the split `held_out` is read.

    Raises:
        ValueError: a file without text, or text that the tokenizer does not keep byte by byte; a folder beside other
            data, without a held-out split, or of rows made with another tokenizer, another length or in another mode;
            no row to score.
    """
    folders = [path for path in data if path.is_dir()]
    if folders and len(data) > 1:
        raise ValueError("a folder of prepared rows stands alone: name it, or text files, for --data.")
    if folders:
        rows = _prepared(folders[0], tokenizer, config, choice, max_length)
    else:
        row_format = RowFormat.from_tokenizer(tokenizer, max_length)
        rows = list(_ROWS[choice](_encoded(_documents(data), tokenizer, row_format), row_format))
    if choice == "full":
        rows = [row for row in rows if len(row["input_ids"]) == max_length]
        if not rows:
            raise ValueError(f"no document fills a row of {max_length:,} tokens: use other rows or longer documents.")
    return rows


def row_bytes(rows: Sequence[Row], tokenizer: Tokenizer) -> list[bytes]:
    """The text of each row, special tokens left out: what a compressor must tell to tell the same."""
    byte_lengths_V = token_byte_lengths(tokenizer)
    return [
        b"".join(token_bytes(tokenizer, (index for index in row["input_ids"] if byte_lengths_V[index])))
        for row in rows
    ]


def _documents(files: Sequence[Path]) -> Iterator[Document]:
    """Of all files; ValueError, after the last one, for a file without text."""
    empty = dict.fromkeys(files)
    for document in read_documents(files):
        if document.text:
            empty.pop(document.path, None)
        yield document
    for path in empty:
        raise ValueError(f"{path} holds no text: leave it out.")


def _encoded(
    documents: Iterable[Document], tokenizer: Tokenizer, row_format: RowFormat
) -> Iterator[tuple[int, list[int]]]:
    for document in documents:
        ids = encode_text(tokenizer, document.text)
        kept, needed = int(row_format.byte_lengths[ids].sum()), len(document.text.encode())
        if kept != needed:
            raise ValueError(
                f"{document.path}: the tokenizer keeps {kept:,} of the {needed:,} bytes of document {document.index}: "
                "bits count only where nothing of the text is changed, so use another tokenizer."
            )
        yield document.index, ids


def _prepared(
    folder: Path, tokenizer: Tokenizer, config: PreTrainedConfig, choice: RowChoice, max_length: int
) -> list[Row]:
    if not (folder / FINGERPRINT_FILE).is_file():
        raise ValueError(f"{folder} holds no prepared rows: make it with `eem-data prepare`, or name text files.")
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
        raise ValueError(f"the rows in {folder} are {made['rows']!r}: --rows {choice} needs {wanted!r}.")
    splits = load_from_disk(str(folder))
    if HELD_OUT not in splits:
        raise ValueError(f"{folder} holds out nothing: prepare the text again with --held-out.")
    return [_unpadded(row) for row in splits[HELD_OUT]]


def _unpadded(row: dict) -> Row:
    def real(name: str) -> list[int]:
        return [value for value, is_real in zip(row[name], row["attention_mask"]) if is_real]

    return Row(input_ids=real("input_ids"), document_ids=real("document_ids"), num_bytes=row["num_bytes"])
