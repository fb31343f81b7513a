"""Compares estimates of the same rows: folders of `eem entropy` in; regressions, curves and words out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
            yield from Segments.of(table).values(table, TOKEN_ENTROPIES)

    def points(self, step: int) -> np.ndarray:
        """The values of all tokens in every `step`-th row; some are NaN."""
        tables = self._tables(range(0, len(self.rows), step), 1)
        return np.concatenate([row for table in tables for row in Segments.of(table).values(table, TOKEN_ENTROPIES)])

    def words(self) -> SplitWords:
        """First and later pieces of words, in at most `WORD_ROWS` rows spread evenly over the data."""
        return split_words(self._entropies())

    def _entropies(self) -> Iterator[TokenEntropies]:
        """Some rows' values, without those of a word that began in the row before."""
        tokenizer = load_tokenizer(self.path / TOKENIZER_FOLDER)
        for table in self._tables(range(-1, len(self.rows) - 1, -(-len(self.rows) // WORD_ROWS)), 2):
            segments = Segments.of(table)
            own = [number for number, row in enumerate(segments.rows) if row == len(table) - 1]
            rows = rows_of_ids([segments.ids[number] for number in own], tokenizer)
            values = [torch.from_numpy(row.copy()) for row in segments.values(table, TOKEN_ENTROPIES)]
            goes_on = _goes_on(segments, table)
            for place, number in enumerate(own):
                if goes_on[number]:
                    values[number][: _first_word(rows, place)] = torch.nan
            yield TokenEntropies.of_rows(rows, [values[number] for number in own], self.method, self.unit)

    def _tables(self, starts: range, count: int) -> Iterator[pa.Table]:
        rows = self.rows.with_format("arrow")
        for start in starts:
            yield rows[max(start, 0) : start + count]


def _goes_on(segments: Segments, table: pa.Table) -> list[bool]:
    """Whether each segment begins with the document that the one before it ends with; rows may not know it."""
    if "document_ids" not in table.column_names:
        return [False] * len(segments.ids)
    documents = segments.values(table, "document_ids")
    return [number > 0 and ids_T[0] == documents[number - 1][-1] for number, ids_T in enumerate(documents)]


def _first_word(rows: TextRows, row: int) -> int:
    """The place of the first token that begins with whitespace; the number of tokens if there is none."""
    text, spans = rows.texts[row], rows.offsets[row].tolist()
    begins = (place for place, (start, end) in enumerate(spans) if end > start and text[start : start + 1].isspace())
    return next(begins, len(spans))


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


def scatter_points(x: EntropyFolder, y: EntropyFolder) -> tuple[np.ndarray, np.ndarray]:
    """Both estimates' values at some tokens that both score: about `POINTS`, in rows spread evenly over the data."""
    tokens = max(1, len(next(x.values())))  # of the first row; padding does not count, and may differ between x and y
    step = max(1, len(x.rows) * tokens // POINTS)
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
