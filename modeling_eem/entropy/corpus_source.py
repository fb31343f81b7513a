"""What `eem entropy` measures: a folder of rows, or text of which rows are made beside the output first."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from modeling_eem.data.arrow_files import TOKENIZER_FOLDER
from modeling_eem.data.fingerprint import check_fingerprint
from modeling_eem.data.prepare import prepare_rows
from modeling_eem.data.row_options import Errors, RowOptions
from modeling_eem.data.segments import RowFolder, Scan, is_row_folder
from modeling_eem.data.shards import corpus_files, plan_shards
from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.entropy.registry import estimator_class
from modeling_eem.loading import load_tokenizer, own_tokenizer


@dataclass(frozen=True)
class TextOptions:
    """How text becomes rows; None: as its default says.

    Attributes:
        max_length: tokens of a row; by default the model's context.
        text_column: of `.jsonl` and `.parquet`; by default `text`.
        errors: "stop" at a document that cannot be read (the default), or "skip" it.
    """

    max_length: int | None = None
    text_column: str | None = None
    errors: Errors | None = None


@dataclass(frozen=True)
class Source:
    """Rows to measure.

    Attributes:
        data: what the user named.
        folder: of the rows.
        is_text: whether the rows are made of text, and removed again.
        text_options: for text.
    """

    data: Sequence[str]
    folder: Path
    is_text: bool
    text_options: TextOptions

    @classmethod
    def of(cls, data: Sequence[str], output: Path, text_options: TextOptions) -> "Source":
        """Raises a ValueError for options of text beside a folder of rows."""
        if not (len(data) == 1 and is_row_folder(Path(data[0]))):
            return cls(data, output.parent / f".{output.name}.rows", True, text_options)
        given: dict[str, Any] = vars(text_options)
        if foreign := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
            raise ValueError(f"{data[0]} holds rows, which {', '.join(foreign)} cannot change: leave that out.")
        return cls(data, Path(data[0]), False, text_options)

    def tokenizer(self, given: str | None, method: str, model: str) -> PreTrainedTokenizerBase | None:
        """That of the rows, if it is known: as given; or beside the model, which must be the rows', or the rows."""
        if given is not None:
            return load_tokenizer(given)
        if estimator_class(method).reads_own_tokens:
            return own_tokenizer(model)
        saved = self.folder / TOKENIZER_FOLDER
        return load_tokenizer(saved) if saved.exists() else None

    def prepare(self, estimator: EntropyEstimator, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Make the rows of text, or go on with those that a killed start began; nothing for a folder of rows.

        Raises:
            ValueError: no tokenizer, no length, or text that cannot be read; nothing is left behind.
        """
        if not self.is_text:
            return
        if tokenizer is None:
            raise ValueError("text needs a tokenizer: pass --tokenizer.")
        max_length = self.text_options.max_length or estimator.context
        if max_length is None:
            raise ValueError("no context of the model is counted in tokens of the rows: pass --max-length for text.")
        options = RowOptions(
            max_length=max_length,
            text_column=self.text_options.text_column or "text",
            errors=self.text_options.errors or "stop",
            held_out=0,
            may_be_short=True,
        )
        shards = plan_shards(corpus_files(self.data), options.text_column, options.shard_bytes)
        if self.folder.exists():
            with suppress(ValueError):  # rows of text that was changed since, or of other options
                prepare_rows(shards, tokenizer, self.folder, options)
                return
            self.remove()
        try:
            prepare_rows(shards, tokenizer, self.folder, options)
        except ValueError:
            self.remove()  # else the mended text would be refused
            raise

    def scan(self, estimator: EntropyEstimator, tokenizer: PreTrainedTokenizerBase | None) -> Scan:
        """Read all rows once, and refuse those that the estimator would stop at."""
        rows = RowFolder.open(self.folder)
        if rows.has_fingerprint and tokenizer is not None:
            check_fingerprint(self.folder, tokenizer)
        return rows.scan(estimator.check_row)

    def remove(self) -> None:
        """Remove the rows that were made of text."""
        if self.is_text:
            shutil.rmtree(self.folder, ignore_errors=True)
