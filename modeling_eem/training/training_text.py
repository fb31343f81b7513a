"""The rows that a run trains on: cut from text here, or made by `eem data prepare`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from modeling_eem.data.arrow_files import HELD_OUT, TRAIN
from modeling_eem.data.documents import document_files, read_documents
from modeling_eem.data.fingerprint import check_fingerprint, read_fingerprint
from modeling_eem.data.row_checksums import CONTENTS_FILE, open_rows
from modeling_eem.data.rows import ROW_MODES, RowFormat
from modeling_eem.data.text_encoding import encoded_documents
from modeling_eem.entropy.corpus_run import ENTROPIES_FILE
from modeling_eem.entropy.result import NATS
from modeling_eem.files import asset, read_record, sha256
from modeling_eem.loading import context_length
from modeling_eem.models.configuration_eem import has_code

Identity: TypeAlias = dict[str, Any]
CARD_FIELDS = ("licence", "language")  # fields of `DataArguments` that no step depends on


@dataclass
class DataArguments:
    """The text that a run trains on, and the text that it is measured on.

    Args:
        tokenizer: a folder or Hub name; None: that of `model_name_or_path`, or else the one that ships.
        train_files, validation_files: .txt, .jsonl, .json or .parquet, also .gz and .zst, or folders of them; text in
            the column `text`.
        train_rows: a folder of `eem data prepare`, in place of `train_files`. Without `validation_files`, the model is
            measured on its split `held_out`. The token losses get its column `token_entropies` (nats, one a token).
        rows: how `train_files` become rows: windows, pad, stream or pack; `validation_files` are always windows.
        max_length: n, tokens of a row of text, BOS included; None: all that the model takes.
        padding_side: where a batch's short rows are padded.
        max_held_out_rows: measure on at most this many of the first held-out rows; None: on all.
        licence, language: those of the trained model, by the Hub's names ("apache-2.0", "en"), for its card.

    Raises:
        ValueError: for values that are missing, out of range or contradict each other.
    """

    tokenizer: str | None = None
    train_files: list[str] = field(default_factory=list)
    validation_files: list[str] = field(default_factory=list)
    train_rows: str | None = None
    rows: str = "windows"
    max_length: int | None = None
    padding_side: str = "right"
    max_held_out_rows: int | None = None
    licence: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if self.train_rows is None:
            for name in ("train_files", "validation_files"):
                if not getattr(self, name):
                    raise ValueError(f"{name} is empty: name at least one file, or a folder of rows as train_rows.")
        elif self.train_files:
            raise ValueError("train_files and train_rows both say what to train on: leave one out.")
        elif self.max_length is not None:
            raise ValueError("max_length is for train_files: the rows in train_rows are already cut.")
        if self.rows not in ROW_MODES:
            raise ValueError(f"rows must be one of {', '.join(ROW_MODES)}; got {self.rows!r}.")
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be left or right; got {self.padding_side!r}.")
        for name, least in (("max_length", 2), ("max_held_out_rows", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}.")


@dataclass
class TextRows:
    """Rows cut from text files, held in memory."""

    data: DataArguments
    columns = ("input_ids", "document_ids", "num_bytes")
    unit = NATS

    def check(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """ValueError for packed rows and a model with a code, or rows longer than the model takes."""
        if self.data.rows == "pack" and has_code(config):
            raise ValueError("rows: pack is for causal models; a code describes one text: choose windows or stream.")
        context = context_length(config)
        if context is None and self.data.max_length is None:
            raise ValueError(f"a {config.model_type} model takes rows of any length: set max_length.")
        if context is not None and (self.data.max_length or 0) > context:
            raise ValueError(f"max_length is {self.data.max_length}, and the model takes {context} tokens.")

    def max_length(self, config: PreTrainedConfig) -> int:
        """n, of a full row."""
        return self.data.max_length or context_length(config) or 0

    def identity(self) -> Identity:
        """Everything that determines these rows: it shows whether a run is resumed with other text."""
        data = self.data
        return {"files": _contents(data.train_files), "validation_files": _contents(data.validation_files)}

    def load(self, row_format: RowFormat, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset]:
        """Training rows and held-out rows."""
        train = _cut(self.data.train_files, self.data.rows, row_format, tokenizer)
        return train, _cut(self.data.validation_files, "windows", row_format, tokenizer)


class PreparedRows:
    """Rows that `eem data prepare` made, read from disk as they are needed.

    Raises:
        ValueError: for a folder that it did not make or finish, or that does not fit the rest of the run.
    """

    def __init__(self, data: DataArguments):
        self.data = data
        self.folder = Path(data.train_rows or "")
        self.made = read_fingerprint(self.folder)
        self.splits = open_rows(self.folder)
        if TRAIN not in self.splits:
            raise ValueError(f"{self.folder} has no split {TRAIN!r}: make it with `eem data prepare`.")
        if data.rows not in ("windows", self.made["rows"]):
            raise ValueError(f"the rows in {self.folder} are {self.made['rows']}, not {data.rows}: leave rows out.")
        if not data.validation_files and (HELD_OUT not in self.splits or self.made["rows"] == "pack"):
            raise ValueError(
                f"{self.folder} has no held-out rows of one text each, to measure on: name validation_files, or for a "
                "regression prepare unpacked rows with --held-out."
            )

    @property
    def columns(self) -> Sequence[str]:
        return self.splits[TRAIN].column_names

    @property
    def unit(self) -> str:
        """Of the entropies, as `eem entropy` recorded it; nats without its record."""
        path = self.folder / ENTROPIES_FILE
        return read_record(path, {"method": str}).get("unit", NATS) if path.is_file() else NATS

    def check(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """ValueError for rows of another tokenizer, or rows that the model does not take."""
        check_fingerprint(self.folder, tokenizer)
        check_fingerprint(self.folder, config)
        context = context_length(config)
        if context is not None and self.made["max_length"] > context:
            raise ValueError(
                f"the rows in {self.folder} have up to {self.made['max_length']} tokens, and the model takes "
                f"{context}: set max_position_embeddings, or prepare shorter rows."
            )

    def max_length(self, config: PreTrainedConfig) -> int:
        """n, of a full row."""
        return self.made["max_length"]

    def identity(self) -> Identity:
        """Everything that determines these rows: it shows whether a run is resumed with other rows."""
        train = self.splits[TRAIN]
        contents = self.folder / CONTENTS_FILE
        return {
            **self.made,
            "columns": train.column_names,
            "train_rows": len(train),
            "rows_sha256": sha256(contents) if contents.exists() else None,  # folders of version 0.1 have none
            "validation_files": _contents(self.data.validation_files),
        }

    def load(self, row_format: RowFormat, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset]:
        """Training rows and held-out rows."""
        if not self.data.validation_files:
            return self.splits[TRAIN], self.splits[HELD_OUT]
        return self.splits[TRAIN], _cut(self.data.validation_files, "windows", row_format, tokenizer)


def run_rows(data: DataArguments) -> TextRows | PreparedRows:
    """The rows that the arguments name; only their kind is read yet."""
    return TextRows(data) if data.train_rows is None else PreparedRows(data)


def _contents(names: Sequence[str]) -> list[list[str]]:
    """[name, SHA-256] of each file, folders file by file; ValueError for a URL or a file that is not there."""
    for name in names:
        if "://" in name:
            raise ValueError(f"{name}: text is trained on from local files: `eem data prepare` takes URLs.")
    return [[file.name, sha256(file)] for name in names for file in document_files(Path(asset(name)))]


def _cut(files: Sequence[str], mode: str, row_format: RowFormat, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    documents = encoded_documents(read_documents(files), tokenizer)
    return Dataset.from_list([dict(row) for row in ROW_MODES[mode](documents, row_format)])
