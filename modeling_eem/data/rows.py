"""Tokenized documents → rows of at most n tokens: `windows`, `pad`, `stream` and `pack`.

A document is `(index, ids)`, its ids without special tokens: `enumerate(documents)` will do. The functions are
generators: they hold one document and a few open rows, never the corpus. Rows hold no padding; the collator adds it,
on the side that you choose.

| mode | a row is | loses |
|---|---|---|
| `windows` | BOS and the next n - 1 tokens of one document; a document's last row is short | nothing |
| `pad` | BOS and the first n - 1 tokens of one document | the rest of the document |
| `stream` | BOS and the next n - 1 tokens of all documents, BOS between them; the last row is short | nothing |
| `pack` | several windows, each at positions from 0, its BOS without a label: for causal models only | nothing |

Source: Badger & Neligeorge 2025, data preparation ("padded" and "packed" rows). The bits of `windows` can be compared
with a compressor's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from modeling_eem.data.tokenizer import bos_and_eos, token_byte_lengths
from modeling_eem.models.loss_eem import IGNORE_INDEX

TOKEN_ENTROPIES = "token_entropies"  # the column of a row's entropies, nats, one a token
_OPEN_ROWS = 64  # rows that `pack` fills at the same time

Documents: TypeAlias = Iterable[tuple[int, Sequence[int] | NDArray]]


def stage_columns(stages: int) -> list[str]:
    """Columns of the entropies that several models measured, in the models' order: `token_entropies_1`, …; the last
    model's, or an only model's, is `token_entropies`."""
    return [*(f"{TOKEN_ENTROPIES}_{stage}" for stage in range(1, stages)), TOKEN_ENTROPIES]


class Row(TypedDict):
    """One row of t ≤ n tokens, all of them real.

    `document_ids` says which document each token belongs to (BOS: the document that it begins). `num_bytes` says how
    many UTF-8 bytes the row's tokens hold.
    """

    input_ids: list[int]
    document_ids: list[int]
    num_bytes: int


class PackedRow(Row):
    """Several windows in one row: their positions, and `labels` that differ from `input_ids`; models shift these."""

    position_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, eq=False)
class RowFormat:
    """What all row modes need to know.

    Attributes:
        max_length: n, the most tokens in a row, BOS included; at least 2.
        bos_token_id: begins every row.
        byte_lengths: UTF-8 bytes of each token, `[vocab_size]`; 0 marks special tokens, which documents cannot hold.
        eos_token_id: ends every document; None leaves it out.

    Raises:
        ValueError: for a `max_length` below 2 or a special token outside the vocabulary.
    """

    max_length: int
    bos_token_id: int
    byte_lengths: torch.Tensor
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 (BOS and a token), not {self.max_length}.")
        for token in (self.bos_token_id, self.eos_token_id):
            if token is not None and not 0 <= token < len(self.byte_lengths):
                raise ValueError(f"special token id {token} lies outside the vocabulary of {len(self.byte_lengths)}.")

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, max_length: int, add_eos: bool = False) -> "RowFormat":
        """The format for a byte-level tokenizer's ids; ValueError if it lacks a special token that is needed."""
        bos, eos = bos_and_eos(tokenizer)
        if bos is None or (add_eos and eos is None):
            raise ValueError("the tokenizer has no BOS or EOS token: set tokenizer.bos_token and tokenizer.eos_token.")
        return cls(max_length, bos, token_byte_lengths(tokenizer), eos if add_eos else None)

    def check(self, documents: Documents) -> Iterator[tuple[int, NDArray, NDArray]]:
        """The documents that hold tokens, with EOS if the format has one; and the bytes of each token before EOS.

        Raises:
            ValueError: for an id outside the vocabulary, a special token in a document, or no token at all.
        """
        empty = True
        byte_lengths_V = self.byte_lengths.numpy().astype(
            np.int32
        )  # on rows this short, dispatch takes half of torch's time
        for index, ids in documents:
            if len(ids) == 0:
                continue
            empty = False
            ids_T = np.asarray(ids)
            if ids_T.dtype.kind not in "iu" or ids_T.ndim != 1:
                raise ValueError(f"document {index} holds no ids: a document is (number, list of ids).")
            if int(ids_T.min()) < 0 or int(ids_T.max()) >= len(byte_lengths_V):
                raise ValueError(
                    f"document {index} holds ids from {int(ids_T.min())} to {int(ids_T.max())}, outside the "
                    f"vocabulary of {len(byte_lengths_V)}: encode it with the tokenizer that this format is for."
                )
            byte_lengths_T = byte_lengths_V[ids_T]
            if byte_lengths_T.min() == 0:
                raise ValueError(
                    f"document {index} holds a special token: encode it with add_special_tokens=False and "
                    "split_special_tokens=True."
                )
            yield index, ids_T if self.eos_token_id is None else np.append(ids_T, self.eos_token_id), byte_lengths_T
        if empty:
            raise ValueError("the corpus holds no tokens: give at least one document that is not empty.")


def windows(documents: Documents, row_format: RowFormat) -> Iterator[Row]:
    """Cut every document into rows of BOS and at most n - 1 tokens; each text token is in exactly one row."""
    step = row_format.max_length - 1
    for index, ids_T, byte_lengths_T in row_format.check(documents):
        for start in range(0, len(ids_T), step):
            part = slice(start, start + step)
            yield _row(row_format, index, ids_T[part], byte_lengths_T[part])


def pad(documents: Documents, row_format: RowFormat) -> Iterator[Row]:
    """One row a document: BOS and its first n - 1 tokens. EOS stands only where the document really ends."""
    part = slice(row_format.max_length - 1)
    for index, ids_T, byte_lengths_T in row_format.check(documents):
        yield _row(row_format, index, ids_T[part], byte_lengths_T[part])


def stream(documents: Documents, row_format: RowFormat) -> Iterator[Row]:
    """Cut the concatenation of all documents into rows of exactly n tokens, the last one shorter.

    Every row begins with BOS. A BOS between two documents is a token like any other, predicted from the document
    before it. Where a row begins between two documents, the row's own BOS takes its place.
    """
    max_length, bos = row_format.max_length, row_format.bos_token_id
    row = Row(input_ids=[], document_ids=[], num_bytes=0)
    for index, ids_T, byte_lengths_T in row_format.check(documents):
        start = 0
        row["input_ids"].append(bos)
        while start < len(ids_T):
            part = slice(start, start + max_length - len(row["input_ids"]))  # empty if BOS fills the row
            row["input_ids"] += ids_T[part].tolist()
            row["document_ids"] += [index] * (len(row["input_ids"]) - len(row["document_ids"]))
            row["num_bytes"] += int(byte_lengths_T[part].sum())
            start = part.stop
            if len(row["input_ids"]) == max_length:
                yield row
                row = Row(input_ids=[bos] if start < len(ids_T) else [], document_ids=[], num_bytes=0)
    if row["input_ids"]:
        yield row


def pack(documents: Documents, row_format: RowFormat) -> Iterator[PackedRow]:
    """Put several windows into a row of at most n tokens: each into the row where it leaves the least room (best fit).

    Positions restart at every window, and its BOS has the label -100. A causal model that gets the positions and no
    attention mask then computes what it would for each window alone.
    """
    positions = list(range(row_format.max_length))
    open_rows: list[PackedRow] = []
    lengths: list[int] = []  # of the open rows
    for window in windows(documents, row_format):
        ids = window["input_ids"]
        room = row_format.max_length - len(ids)
        fits = [place for place, length in enumerate(lengths) if length <= room]
        place = max(fits, key=lengths.__getitem__, default=len(lengths))
        if not fits:
            open_rows.append(PackedRow(input_ids=[], document_ids=[], num_bytes=0, position_ids=[], labels=[]))
            lengths.append(0)
        row = open_rows[place]
        row["input_ids"] += ids
        row["document_ids"] += window["document_ids"]
        row["num_bytes"] += window["num_bytes"]
        row["position_ids"] += positions[: len(ids)]
        row["labels"] += [IGNORE_INDEX, *ids[1:]]
        lengths[place] += len(ids)
        if lengths[place] == row_format.max_length or len(open_rows) > _OPEN_ROWS:
            fullest = lengths.index(max(lengths))
            del lengths[fullest]
            yield open_rows.pop(fullest)
    yield from open_rows


def _row(row_format: RowFormat, index: int, ids_T: NDArray, byte_lengths_T: NDArray) -> Row:
    """BOS and a part of one document."""
    return Row(
        input_ids=[row_format.bos_token_id, *ids_T.tolist()],
        document_ids=[index] * (1 + len(ids_T)),
        num_bytes=int(byte_lengths_T.sum()),
    )


ROW_MODES: dict[str, Callable[[Documents, RowFormat], Iterator[Row]]] = {
    "windows": windows,
    "pad": pad,
    "stream": stream,
    "pack": pack,
}
