"""Rows of ids on disk, and the segments of them that an estimator measures.

Shapes: B rows, N values of a column in all rows, one row after another.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from torch import Tensor

from modeling_eem.data.arrow_files import DATASET_FILE, TOKENIZER_FOLDER, TRAIN
from modeling_eem.data.fingerprint import FINGERPRINT_FILE
from modeling_eem.data.row_checksums import CONTENTS_FILE, open_rows
from modeling_eem.data.rows import TOKEN_ENTROPIES
from modeling_eem.files import read_record

_ROWS_A_BATCH = 1000
_PLAIN_NAME = re.compile(r"\w+([.-]\w+)*")


@dataclass(frozen=True, eq=False)
class Segments:
    """The parts of some rows that are measured: a row's real tokens, or each window of a packed row.

    Attributes:
        ids: each segment's ids, `[t]`.
        rows: each segment's row, counted from the first of these rows.
        offsets: where each row begins among the values of a column, and where the last row ends.
        places_N: the places among those values that the segments fill.
    """

    ids: list[Tensor]
    rows: list[int]
    offsets: pa.Array
    places_N: np.ndarray

    @classmethod
    def from_table(cls, table: pa.Table, first: int = 0) -> "Segments":
        """The segments of rows with `input_ids`, and with `attention_mask` and `position_ids` if they have them.

        Args:
            first: the number of the first of these rows, for errors.

        Raises:
            ValueError: for a row that is null, columns of different lengths, or a mask with a hole.
        """
        lengths_B = _lengths(table, "input_ids", first)
        for name in {"attention_mask", "position_ids"} & set(table.column_names):
            if (differs_B := _lengths(table, name, first) != lengths_B).any():
                raise ValueError(f"row {first + differs_B.argmax()} has not as many {name} as input_ids.")
        flat_N = _flat(table, "input_ids")
        rows_N = np.repeat(np.arange(len(lengths_B)), lengths_B)
        places = np.arange(len(flat_N))
        if "attention_mask" in table.column_names:
            places = places[_flat(table, "attention_mask") != 0]
        is_first = np.diff(rows_N[places], prepend=-1) != 0
        has_hole = (np.diff(places, prepend=-1) > 1) & ~is_first
        if has_hole.any():
            row = first + rows_N[places][has_hole.argmax()]
            raise ValueError(f"row {row} has an attention_mask with a hole: only padding at its ends may be masked.")
        if "position_ids" in table.column_names:
            is_first |= _flat(table, "position_ids")[places] == 0
        starts = np.flatnonzero(is_first)
        ids = [torch.from_numpy(part.astype(np.int64)) for part in np.split(flat_N[places], starts[1:])]
        offsets = pa.array(np.append(0, lengths_B.cumsum()), pa.int32())
        return cls(ids if len(starts) else [], rows_N[places][starts].tolist(), offsets, places)

    def values(self, table: pa.Table, name: str) -> list[np.ndarray]:
        """Another column of the same rows, cut into the segments."""
        ends = np.cumsum([len(ids_T) for ids_T in self.ids])
        return np.split(_flat(table, name)[self.places_N], ends[:-1]) if self.ids else []

    def column(self, values: Sequence[Tensor]) -> pa.Array:
        """Values of the segments' tokens as a column of the rows; NaN in padding."""
        flat_N = np.full(self.offsets[-1].as_py(), np.nan, np.float32)
        if len(values):
            flat_N[self.places_N] = torch.cat(list(values)).float().numpy()
        return pa.ListArray.from_arrays(self.offsets, pa.array(flat_N))


@dataclass(frozen=True)
class Scan:
    """Counts over rows; `sha256` is the hash of all their ids in order."""

    num_rows: int
    num_tokens: int
    sha256: str


@dataclass(frozen=True, eq=False)
class RowFolder:
    """A data set on disk with `input_ids`; a folder without splits counts as one split, `train`."""

    path: Path
    splits: dict[str, Dataset]

    @classmethod
    def open(cls, path: Path) -> "RowFolder":
        """Open what `datasets.load_from_disk` reads; nothing is loaded into memory.

        Raises:
            ValueError: for another kind of folder, a damaged one, a split whose name is a path, rows without
                `input_ids`, or rows that have `token_entropies` already.
        """
        if (path / DATASET_FILE).exists():
            _check_split_names(path)
        loaded = open_rows(path) if (path / CONTENTS_FILE).exists() else _load(path)
        splits = dict(loaded) if isinstance(loaded, DatasetDict) else {TRAIN: loaded}
        splits = {str(name): rows for name, rows in splits.items() if len(rows)}
        for name, rows in splits.items():
            if "input_ids" not in rows.column_names:
                raise ValueError(f"{path}: the split {name} has no column input_ids, only {rows.column_names}.")
            if TOKEN_ENTROPIES in rows.column_names:
                raise ValueError(f"{path} has {TOKEN_ENTROPIES} already: name the rows that they were made from.")
            for column in {"input_ids", "attention_mask", "position_ids"} & set(rows.column_names):
                _check_integers(f"{path}: the split {name}", column, rows.data.schema.field(column).type)
            if rows.features != next(iter(splits.values())).features:
                raise ValueError(f"{path}: the split {name} has other columns than the one before it.")
        return cls(path, splits)

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.splits.values()))

    @property
    def has_fingerprint(self) -> bool:
        """Whether `eem data prepare` made the rows; their tokenizer is then known."""
        return (self.path / FINGERPRINT_FILE).exists()

    @property
    def tokenizer_folder(self) -> Path:
        return self.path / TOKENIZER_FOLDER

    def table(self, split: str, rows: range) -> pa.Table:
        """Some rows of a split, all columns."""
        return self.splits[split].with_format("arrow")[rows]

    def scan(self, check: Callable[[Tensor, int], None]) -> Scan:
        """Read all rows once.

        Args:
            check: gets each segment and the number of its row in its split; raises a ValueError to refuse it.
        """
        digest, num_tokens = hashlib.sha256(), 0
        for split, rows in self.splits.items():
            digest.update(split.encode())
            for start in range(0, len(rows), _ROWS_A_BATCH):
                with naming(f"{self.path}, split {split}"):
                    batch = range(start, min(start + _ROWS_A_BATCH, len(rows)))
                    segments = Segments.from_table(self.table(split, batch), start)
                    for ids_T, row in zip(segments.ids, segments.rows):
                        check(ids_T, start + row)
                        digest.update(ids_T.numpy().tobytes())
                num_tokens += len(segments.places_N)
        if not num_tokens:
            raise ValueError(f"{self.path} holds no tokens: its rows are empty.")
        return Scan(self.num_rows, num_tokens, digest.hexdigest())

    def _name(self, index: int) -> str:
        """How errors name a row, counted over all splits one after another."""
        for split, rows in self.splits.items():
            if index < len(rows):
                return f"{index} of {split}"
            index -= len(rows)
        raise IndexError(index)

    def draw(self) -> Iterator[list[tuple[str, Tensor]]]:
        """The segments of rows drawn at random, without end and always the same, each with a name.

        Rows without tokens are passed by; one row at least must have some, as `scan` makes sure.
        """
        draws = random.Random(0)
        rows = concatenate_datasets(list(self.splits.values())).with_format("arrow")
        while True:
            index = draws.randrange(len(rows))
            if drawn := Segments.from_table(rows[index : index + 1]).ids:
                yield [(self._name(index), ids_T) for ids_T in drawn]


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Add to a ValueError where its row is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_split_names(path: Path) -> None:
    """A split's name becomes the name of folders: ValueError unless it is a plain name."""
    for name in read_record(path / DATASET_FILE, {"splits": list})["splits"]:
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{path}: the split {name!r} has no plain name: use only letters, digits and -._")


def _load(path: Path) -> Dataset | DatasetDict:
    try:
        return load_from_disk(str(path))
    except Exception as error:  # datasets and pyarrow raise many kinds of error on damaged files
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"{path} is not a finished data set of rows ({said}): name text files, or a folder of `eem data prepare`."
        ) from error


def _check_integers(where: str, column: str, kind: pa.DataType) -> None:
    is_list = any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
    if not is_list or not (pa.types.is_integer(kind.value_type) or pa.types.is_boolean(kind.value_type)):
        raise ValueError(f"{where} holds {kind} in {column}: it must be lists of integers.")


def _lengths(table: pa.Table, name: str, first: int) -> np.ndarray:
    """The number of values in each row of a column; ValueError for a row that is null or holds one."""
    column = table[name].combine_chunks()
    if column.null_count:
        row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise ValueError(f"row {row} has no {name}: leave it out.")
    if column.flatten().null_count:
        raise ValueError(f"{name} holds null in one of the rows {first} to {first + len(column) - 1}: leave it out.")
    return pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)


def _flat(table: pa.Table, name: str) -> np.ndarray:
    return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
