"""Compares estimates of the same rows: folders of `eem entropy` in; regressions, curves and words out."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets

from modeling_eem.data.arrow_files import DATASET_FILE, TOKENIZER_FOLDER
from modeling_eem.data.row_checksums import open_rows
from modeling_eem.data.rows import TOKEN_ENTROPIES
from modeling_eem.data.segments import Segments
from modeling_eem.entropy.corpus_run import ENTROPIES_FILE
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.statistics import (
    Estimate,
    IndexCurve,
    Regression,
    SplitWords,
    index_curve,
    regression,
    split_words,
)
from modeling_eem.entropy.texts import TextRows, rows_of_ids
from modeling_eem.evaluation.intervals import Interval
from modeling_eem.files import read_record, short_names
from modeling_eem.loading import load_tokenizer
from modeling_eem.report import Table

POINTS = 100_000
WORD_ROWS = 2000
_ROWS_A_BATCH = 256
_DOCUMENTS = "document_ids"

_Place: TypeAlias = tuple[int, int]
"""A row's number, and that of a window in it."""


@dataclass(frozen=True, eq=False)
class EntropyFolder:
    """A folder of `eem entropy`, read row by row from disk; a row of several packed windows counts as several rows.

    Attributes:
        path: the folder.
        name: the estimate's name, for tables and plots.
        method, unit: how, and in which unit, the values were measured.
        rows: the rows of all splits.
        rows_sha256: the hash of all rows' ids.
    """

    path: Path
    name: str
    method: str
    unit: str
    rows: Dataset
    rows_sha256: str

    @classmethod
    def open(cls, path: Path, name: str) -> "EntropyFolder":
        """Open a folder; ValueError if `eem entropy` did not make it, or did not finish it."""
        if not all((path / name).is_file() for name in (ENTROPIES_FILE, DATASET_FILE)):
            raise ValueError(f"{path} holds no finished entropies: make it with `eem entropy`.")
        made = read_record(path / ENTROPIES_FILE, {"method": str, "unit": str, "rows_sha256": str})
        splits = open_rows(path)
        rows = concatenate_datasets(list(splits.values()))
        return cls(path, name, made["method"], made["unit"], rows, made["rows_sha256"])

    @property
    def has_tokenizer(self) -> bool:
        """Whether the words are known."""
        return (self.path / TOKENIZER_FOLDER).exists()

    @property
    def label(self) -> str:
        """The label of a plot's axis."""
        return f"{self.name}, {self.unit}"

    def values(self) -> Iterator[np.ndarray]:
        """The values of each row's real tokens."""
        for table in self._tables(range(0, len(self.rows), _ROWS_A_BATCH), _ROWS_A_BATCH):
            yield from Segments.from_table(table).values(table, TOKEN_ENTROPIES)

    def points(self, step: int) -> np.ndarray:
        """The values of all tokens in every `step`-th row; some are NaN."""
        tables = self._tables(range(0, len(self.rows), step), 1)
        return np.concatenate(
            [row for table in tables for row in Segments.from_table(table).values(table, TOKEN_ENTROPIES)]
        )

    def words(self) -> SplitWords:
        """First and later pieces of words, in at most `WORD_ROWS` rows spread evenly over the data."""
        return split_words(self._entropies())

    def _entropies(self) -> Iterator[TokenEntropies]:
        """Some rows' values, without those of words that a row's or a packed window's ends may have cut."""
        tokenizer = load_tokenizer(self.path / TOKENIZER_FOLDER)
        begins, ends = self._document_places()
        step = -(-len(self.rows) // WORD_ROWS)
        starts = range(0, len(self.rows), step)
        for start, table in zip(starts, self._tables(starts, 1)):
            segments = Segments.from_table(table)
            rows = rows_of_ids(segments.ids, tokenizer)
            values = [torch.from_numpy(row.copy()) for row in segments.values(table, TOKEN_ENTROPIES)]
            documents = segments.values(table, _DOCUMENTS) if begins else []
            for number, ids_T in enumerate(documents):
                if begins[int(ids_T[0])] != (start, number):
                    values[number][: _first_word(rows, number)] = torch.nan
                if ends[int(ids_T[-1])] != (start, number):
                    values[number][_last_word(rows, number) :] = torch.nan
            yield TokenEntropies.of_rows(rows, values, self.method, self.unit)

    def _document_places(self) -> tuple[dict[int, _Place], dict[int, _Place]]:
        """Where each document occurs first, and where last. Rows may not know their documents: both are empty then."""
        first: dict[int, _Place] = {}
        last: dict[int, _Place] = {}
        starts = range(0, len(self.rows), _ROWS_A_BATCH)
        for start, table in zip(starts, self._tables(starts, _ROWS_A_BATCH)):
            if _DOCUMENTS not in table.column_names:
                break
            segments = Segments.from_table(table)
            for number, ids_T in enumerate(segments.values(table, _DOCUMENTS)):
                row = segments.rows[number]
                place = start + row, number - bisect_left(segments.rows, row)
                for document in (int(ids_T[0]), int(ids_T[-1])):
                    first.setdefault(document, place)
                    last[document] = place
        return first, last

    def _tables(self, starts: range, count: int) -> Iterator[pa.Table]:
        rows = self.rows.with_format("arrow")
        for start in starts:
            yield rows[start : start + count]


def _first_word(rows: TextRows, row: int) -> int:
    """The place of the first token that begins with whitespace; the number of tokens if there is none."""
    return next(iter(_after_whitespace(rows, row)), len(rows.offsets[row]))


def _last_word(rows: TextRows, row: int) -> int:
    """The place of the last token that begins with whitespace; 0 if there is none."""
    return next(reversed(_after_whitespace(rows, row)), 0)


def _after_whitespace(rows: TextRows, row: int) -> list[int]:
    """The places of the tokens that begin with whitespace."""
    text, spans = rows.texts[row], rows.offsets[row].tolist()
    return [place for place, (start, end) in enumerate(spans) if end > start and text[start : start + 1].isspace()]


def open_folders(paths: list[Path]) -> list[EntropyFolder]:
    """Open estimates of the same rows.

    Raises:
        ValueError: for fewer than two folders, the same folder twice, or estimates of different rows.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise ValueError("--entropies needs at least two different folders of `eem entropy`.")
    folders = [EntropyFolder.open(path, name) for path, name in zip(paths, short_names(paths))]
    for folder in folders[1:]:
        if folder.rows_sha256 != folders[0].rows_sha256:
            raise ValueError(
                f"{folder.path} and {folders[0].path} hold different token ids: measure the same rows with both."
            )
    return folders


def regress_folders(x: EntropyFolder, y: EntropyFolder) -> Regression:
    """Regress y's values on x's over all rows."""
    return regression(zip(x.values(), y.values()))


def scatter_points(x: EntropyFolder, y: EntropyFolder, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Both estimates' values at some tokens that both score: about `POINTS`, in rows spread evenly over the data.

    Args:
        tokens: how many tokens both score (`Regression.tokens`).
    """
    step = max(1, tokens // POINTS)
    points = np.stack([x.points(step), y.points(step)])
    return tuple(points[:, ~np.isnan(points).any(0)])


def folder_curve(folder: EntropyFolder) -> IndexCurve:
    """The folder's mean normalised entropy at each index."""
    return index_curve(folder.values())


def regressions_table(regressions: dict[tuple[str, str], Regression], units: dict[str, str]) -> Table:
    """One table row a pair of estimates; slopes and intercepts are in the units of both."""
    rows = []
    for (x, y), fit in regressions.items():
        values = fit.slope, fit.intercept, fit.r_squared, fit.pearson
        named = (f"{name}, {units[name]}" for name in (x, y))
        rows.append((*named, *(cell for value in values for cell in (value.value, _interval(value))), fit.tokens))
    names = [cell for name in ("m", "b", "R²", "Pearson") for cell in (name, f"{name}, 95 %")]
    return Table(
        columns=("x", "y", *names, "tokens"),
        rows=rows,
        title="y = m x + b between per-token entropies",
        notes=["Intervals: 1,000 times as many rows drawn with replacement. Tokens that either leaves out are out."],
    )


def words_table(words: dict[str, SplitWords], units: dict[str, str]) -> Table:
    """One table row an estimate, in its own unit."""
    return Table(
        columns=("estimate", "words", "first piece", "later pieces", "difference", "difference, 95 %"),
        rows=[
            (
                f"{name}, {units[name]}",
                split.words,
                split.first.value,
                split.later.value,
                split.difference.value,
                _interval(split.difference),
            )
            for name, split in words.items()
        ],
        title="Words of several tokens",
        notes=[f"Words are delimited by whitespace; at most {WORD_ROWS:,} rows, spread evenly over the data."],
    )


def _interval(estimate: Estimate) -> str:
    return Interval(estimate.low, estimate.high).text()
