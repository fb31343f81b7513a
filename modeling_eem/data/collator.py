"""Rows → a padded batch, every value checked on the way in."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from modeling_eem.models.loss_eem import IGNORE_INDEX


@dataclass
class CausalCollator:
    """Pads rows for causal models, EEMs and autoencoders; the `data_collator` of a Trainer.

    `labels` are those in the row, else the `input_ids` with -100 at padding and at the first token, the BOS, which is
    never charged (Badger & Neligeorge 2025, code lengths). Models shift them. Every other column with one number a
    token is kept too:

    | column | padded with |
    |---|---|
    | `input_ids`, `attention_mask`, `labels`, `position_ids` | `pad_token_id`, 0, -100, 0 |
    | floats, such as `token_entropies` | NaN: nothing was scored there |
    | other integers, such as `document_ids` | -1 |

    Columns that hold a single number or text (`num_bytes`) are left out. A row's own padding, marked by its
    `attention_mask`, is dropped first. Packed rows, those with `position_ids`, get no `attention_mask`: with one,
    transformers would let their segments see each other.

    Random prefixes (Badger & Neligeorge 2025, variable length): with probability `random_prefix_probability` a row
    keeps only its first m tokens, m uniform on 2 … t. A torch generator seeded with the batch's ids draws them. The
    global generator would not do: a data loader reads ahead, so the state in a checkpoint belongs to a later batch,
    and a resumed run would cut the same rows elsewhere. The same batch is always cut the same way; shuffling makes
    new batches in every epoch. For evaluation use `dataclasses.replace(collator, random_prefix_probability=0.0)`.

    Attributes:
        pad_token_id: fills `input_ids`; an id of the vocabulary.
        vocab_size: ids are 0 … vocab_size - 1.
        max_length: n, the most tokens that the model takes.
        padding_side: "right" or "left".
        padding: to the "longest" row of the batch, or to "max_length".
        pad_to_multiple_of: rounds the longest row up, never above `max_length`.
        random_prefix_probability: 0 leaves rows whole.

    Raises:
        ValueError: for an attribute out of its range. When called: for no rows, rows with different columns, an empty
            or all-padding row, a row longer than `max_length`, a mask with holes, a column of another length, and ids
            or labels outside the vocabulary, each with the row's number in the batch.
    """

    pad_token_id: int
    vocab_size: int
    max_length: int
    padding_side: Literal["left", "right"] = "right"
    padding: Literal["longest", "max_length"] = "longest"
    pad_to_multiple_of: int | None = None
    random_prefix_probability: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must lie in 0 … {self.vocab_size - 1}, not be {self.pad_token_id}.")
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {self.max_length}.")
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', not {self.padding_side!r}.")
        if self.padding not in ("longest", "max_length"):
            raise ValueError(f"padding must be 'longest' or 'max_length', not {self.padding!r}.")
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of must be at least 1 or None, not {self.pad_to_multiple_of}.")
        if not 0 <= self.random_prefix_probability <= 1:
            raise ValueError(
                f"random_prefix_probability must lie between 0 and 1, not be {self.random_prefix_probability}."
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Turn b rows of at most t tokens into columns, each `[b, t]`."""
        if not rows:
            raise ValueError("the batch has no rows: give at least one.")
        batch = [self._columns(row, number) for number, row in enumerate(rows)]
        if any(columns.keys() != batch[0].keys() for columns in batch):
            raise ValueError(f"rows of a batch need the same columns, not {[sorted(columns) for columns in batch]}.")
        if self.random_prefix_probability > 0:
            batch = self._cut(batch)
        width = self._width(max(len(columns["input_ids"]) for columns in batch))
        return {name: self._pad(name, [columns[name] for columns in batch], width) for name in batch[0]}

    def _columns(self, row: Mapping[str, Any], number: int) -> dict[str, torch.Tensor]:
        """The row's real tokens, column by column, `[t]` each."""
        columns = {
            name: _numbers(name, values, number)
            for name, values in row.items()
            if isinstance(values, (list, tuple, np.ndarray, torch.Tensor))
        }
        if "input_ids" not in columns:
            raise ValueError(f"row {number} has no input_ids, only {sorted(row)}.")
        length = len(columns["input_ids"])
        for name, values_T in columns.items():
            if len(values_T) != length:
                raise ValueError(f"row {number}: {name} has {len(values_T)} values for {length} input_ids.")
        if length == 0:
            raise ValueError(f"row {number} is empty: leave it out.")

        given_T = columns.pop("attention_mask", None)
        mask_T = torch.ones(length, dtype=torch.bool) if given_T is None else given_T.bool()
        columns = {name: values_T[mask_T] for name, values_T in columns.items()}
        ids_T = columns["input_ids"]
        # With a mask only the mask marks padding: a row [BOS, EOS] is text if BOS, EOS and pad are one id.
        if len(ids_T) == 0 or (given_T is None and bool((ids_T == self.pad_token_id).all())):
            raise ValueError(f"row {number} is all padding: leave it out.")
        real = mask_T.nonzero()
        if int(real[-1] - real[0]) >= len(real):
            raise ValueError(f"row {number}: its attention_mask has a hole; mask only the tokens at either end.")
        if len(ids_T) > self.max_length:
            raise ValueError(
                f"row {number} has {len(ids_T)} tokens, more than max_length = {self.max_length}: cut documents into "
                "windows of at most max_length tokens."
            )
        self._check_ids(ids_T, "input_ids", number)
        # Nothing predicts a row's first token: in a left-padded row the output before it stands on padding.
        labels_T = columns.setdefault("labels", F.pad(ids_T[1:], (1, 0), value=IGNORE_INDEX))
        self._check_ids(labels_T[labels_T != IGNORE_INDEX], "labels", number)
        if "position_ids" not in columns:
            columns["attention_mask"] = torch.ones_like(ids_T)
        return columns

    def _check_ids(self, ids_T: torch.Tensor, name: str, number: int) -> None:
        if ids_T.is_floating_point():
            raise ValueError(f"row {number}: {name} must be integers, not {ids_T.dtype}.")
        outside_T = ids_T[(ids_T < 0) | (ids_T >= self.vocab_size)]
        if len(outside_T):
            raise ValueError(
                f"row {number}: {name} holds {int(outside_T[0])}, outside the vocabulary of {self.vocab_size}: use "
                "the tokenizer that the model was made for."
            )

    def _cut(self, batch: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        digest = hashlib.blake2b(digest_size=8)
        for columns in batch:
            digest.update(columns["input_ids"].numpy().tobytes())
        generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little"))
        # float64, because a float32 below 1 times a length may round up to the length
        is_cut_B, where_B = torch.rand(2, len(batch), generator=generator, dtype=torch.float64)
        lengths_B = torch.tensor([len(columns["input_ids"]) for columns in batch])
        prefixes_B = 2 + (where_B * (lengths_B - 1)).long()
        kept_B = torch.where(is_cut_B < self.random_prefix_probability, prefixes_B, lengths_B)
        return [
            {name: values_T[:kept] for name, values_T in columns.items()}
            for columns, kept in zip(batch, kept_B.tolist(), strict=True)
        ]

    def _width(self, longest: int) -> int:
        if self.padding == "max_length":
            return self.max_length
        multiple = self.pad_to_multiple_of or 1
        return min(-(-longest // multiple) * multiple, self.max_length)

    def _pad(self, name: str, rows: list[torch.Tensor], width: int) -> torch.Tensor:
        """One column of all rows, `[b, width]`; floats if any row holds floats."""
        dtype = functools.reduce(torch.promote_types, (values_T.dtype for values_T in rows))
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX, "position_ids": 0}
        fill = fills.get(name, float("nan") if dtype.is_floating_point else -1)
        padded_BT = torch.full((len(rows), width), fill, dtype=dtype)
        for padded_T, values_T in zip(padded_BT, rows, strict=True):
            start = width - len(values_T) if self.padding_side == "left" else 0
            padded_T[start : start + len(values_T)] = values_T
        return padded_BT


def _numbers(name: str, values: Any, number: int) -> torch.Tensor:
    try:
        values_T = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"row {number}: {name} must hold numbers, one a token: remove the column.") from error
    if values_T.ndim != 1:
        raise ValueError(f"row {number}: {name} must hold one number a token, not shape {tuple(values_T.shape)}.")
    return values_T if values_T.is_floating_point() else values_T.long()
