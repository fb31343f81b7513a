"""What `eem entropy` measures: a folder of rows, or text that is first made into rows beside the output."""

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_eem.data.arrow_files import LOGS_FOLDER, RESULTS_FILE, TOKENIZER_FOLDER
from modeling_eem.data.documents import is_row_folder
from modeling_eem.data.fingerprint import check_fingerprint
from modeling_eem.data.prepare import prepare_rows
from modeling_eem.data.row_options import Errors, RowOptions
from modeling_eem.data.segments import RowFolder, Scan
from modeling_eem.data.shards import corpus_files, plan_shards
from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.entropy.registry import estimator_class
from modeling_eem.files import read_record, write_atomically
from modeling_eem.loading import load_tokenizer, own_tokenizer

LEFT_OUT_FILE = "left_out.txt"
_LEFT_OUT = re.compile(r"document \d+ is left out: .*")


@dataclass(frozen=True)
class TextOptions:
    """How text becomes rows; None means the default.

    Attributes:
        max_length: tokens of a row; by default the model's context.
        text_column: the column of `.jsonl` and `.parquet`; by default `text`.
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
        folder: the rows' folder.
        is_text: whether the rows are made from text, and removed at the end.
        text_options: how text becomes rows.
    """

    data: Sequence[str]
    folder: Path
    is_text: bool
    text_options: TextOptions

    @classmethod
    def from_data(cls, data: Sequence[str], output: Path, text_options: TextOptions) -> "Source":
        """The source for `data`; ValueError for other data or options of text beside a folder of rows."""
        if len(data) > 1 and (folders := [name for name in data if is_row_folder(Path(name))]):
            raise ValueError(f"{folders[0]} holds rows, and is not the only name of --data: name one folder of rows.")
        if not is_row_folder(Path(data[0])):
            return cls(data, output.parent / f".{output.name}.rows", True, text_options)
        given: dict[str, Any] = vars(text_options)
        if foreign := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
            raise ValueError(f"{data[0]} holds rows, and {', '.join(foreign)} cannot change them: leave that out.")
        return cls(data, Path(data[0]), False, text_options)

    def tokenizer(self, given: str | None, method: str, model: str) -> PreTrainedTokenizerBase | None:
        """The rows' tokenizer, if known: the given one; else the model's, if it reads the rows; else the rows' own."""
        if given is not None:
            return load_tokenizer(given)
        if estimator_class(method).reads_own_tokens:
            return own_tokenizer(model)
        saved = self.folder / TOKENIZER_FOLDER
        return load_tokenizer(saved) if saved.exists() else None

    def prepare(
        self, estimators: Iterable[EntropyEstimator], tokenizer: PreTrainedTokenizerBase | None, is_begun: bool = False
    ) -> None:
        """Make rows from text, or finish those that a killed start began. A folder of rows needs no preparation.

        Args:
            is_begun: whether entropies of these rows were begun: then rows of other text or options are refused, not
                replaced.

        Raises:
            ValueError: for no tokenizer, no length, or text that cannot be read; nothing is left behind.
        """
        if not self.is_text:
            return
        if tokenizer is None:
            raise ValueError("text needs a tokenizer: pass --tokenizer.")
        options = RowOptions(
            max_length=_row_length(list(estimators), self.text_options.max_length),
            text_column="text" if self.text_options.text_column is None else self.text_options.text_column,
            errors=self.text_options.errors or "stop",
            held_out=0,
            may_be_short=True,
        )
        shards = plan_shards(corpus_files(self.data), options.text_column, options.shard_bytes)
        if self.folder.exists():
            try:
                prepare_rows(shards, tokenizer, self.folder, options)
                return
            except ValueError as error:  # rows of other options, or of text that was changed since
                if is_begun:
                    raise ValueError(
                        f"the entropies were begun with other text or options ({error}): name the same, or choose "
                        "another --output."
                    ) from error
            self.remove()
        try:
            prepare_rows(shards, tokenizer, self.folder, options)
        except ValueError:
            self.remove()  # or the corrected text would be refused
            raise

    def counts(self) -> dict[str, int]:
        """How many documents of the text became rows and how many were left out; nothing for a folder of rows."""
        if not self.is_text:
            return {}
        made = read_record(self.folder / RESULTS_FILE, {"documents": int, "skipped": int})
        return {name: made[name] for name in ("documents", "skipped")}

    def keep_left_out(self, output: Path) -> None:
        """Write a line for each document that was left out, with its number and the reason, beside the rows."""
        logs = sorted((self.folder / LOGS_FOLDER / "logs").glob("*.log")) if self.is_text else []
        found = (_LEFT_OUT.search(line) for log in logs for line in log.read_text().splitlines())
        # A shard that a killed start had begun told its documents twice.
        if lines := dict.fromkeys(match[0] for match in found if match):
            write_atomically(output / LEFT_OUT_FILE, "\n".join([*lines, ""]))

    def scan(self, estimators: Iterable[EntropyEstimator], tokenizer: PreTrainedTokenizerBase | None) -> Scan:
        """Read all rows once, and refuse rows that an estimator would refuse."""
        estimators = list(estimators)

        def check(ids_T: Tensor, row: int) -> None:
            for estimator in estimators:
                estimator.check_row(ids_T, row)

        rows = RowFolder.open(self.folder)
        if rows.has_fingerprint:
            check_fingerprint(self.folder, load_tokenizer(rows.tokenizer_folder))  # the output gets a copy of it
            if tokenizer is not None:
                check_fingerprint(self.folder, tokenizer)
        return rows.scan(check)

    def remove(self) -> None:
        """Remove the rows that were made from text."""
        if self.is_text:
            shutil.rmtree(self.folder, ignore_errors=True)


def _row_length(estimators: Sequence[EntropyEstimator], given: int | None) -> int:
    """The most tokens of a text's rows; ValueError for rows too long for the estimators, or too short to slide in."""
    contexts = [estimator.context for estimator in estimators if estimator.context is not None]
    limits = [estimator.max_length for estimator in estimators if estimator.max_length is not None]
    slide = any(estimator.max_length is None and estimator.context is not None for estimator in estimators)
    if slide and (given is None or given <= min(contexts)):
        raise ValueError(
            f"a method that slides needs rows longer than the model's {min(contexts)} tokens: pass --max-length for "
            "text, as long as the documents that you want to keep whole."
        )
    length = min([*contexts, *limits], default=None) if given is None else given
    if length is None:
        raise ValueError("the model sets no limit in tokens of the rows: pass --max-length for text.")
    if length > min(limits, default=length):
        raise ValueError(
            f"--max-length {length} is more than the model's {min(limits)} tokens: lower it, or use a method that "
            "slides (sliding, causal with a stride)."
        )
    return length
