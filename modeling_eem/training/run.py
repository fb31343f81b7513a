"""A training run, from its run file to a trained model: config, tokenizer, rows, Trainer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from modeling_eem.configuration_eem import EncoderDecoderConfig
from modeling_eem.data.collator import CausalCollator
from modeling_eem.data.documents import read_documents
from modeling_eem.data.rows import ROW_MODES, Row, RowFormat
from modeling_eem.data.tokenizer import encode_text
from modeling_eem.training.run_file import build_model, read_run_file
from modeling_eem.training.trainer import TokenWeightedTrainer, TokenWeightedTrainingArguments


@dataclass
class DataArguments:
    """What a run trains on.

    Args:
        tokenizer: a folder or Hub name.
        train_files, validation_files: .txt, .jsonl or .parquet, also .gz; text in the column `text`.
        rows: how training documents become rows: windows, pad, stream or pack; held-out ones are always windows.
        padding_side: where a batch's short rows are padded.
    """

    tokenizer: str = "tokenizer"
    train_files: list[str] = field(default_factory=list)
    validation_files: list[str] = field(default_factory=list)
    rows: str = "windows"
    padding_side: str = "right"

    def __post_init__(self) -> None:
        for name in ("train_files", "validation_files"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name at least one file.")
        if self.rows not in ROW_MODES:
            raise ValueError(f"rows must be one of {', '.join(ROW_MODES)}; got {self.rows!r}.")


@dataclass
class Run:
    """Everything that a run file settles, ready to train."""

    data: DataArguments
    config: PreTrainedConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    collator: CausalCollator
    train_rows: Sequence[Row]
    held_out_rows: Sequence[Row]
    arguments: TokenWeightedTrainingArguments

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step, if all rows are full."""
        return self.arguments.train_batch_size * self.arguments.gradient_accumulation_steps * self.collator.max_length

    def trainer(self, callbacks: Sequence[TrainerCallback] = ()) -> TokenWeightedTrainer:
        dataset = datasets.Dataset.from_list(
            [{name: column for name, column in row.items() if name != "num_bytes"} for row in self.train_rows]
        )
        trainer = TokenWeightedTrainer(
            model=self.model,
            args=self.arguments,
            data_collator=self.collator,
            train_dataset=dataset,
            processing_class=self.tokenizer,
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)  # a progress bar shows what it would print
        return trainer


def prepare_run(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a run file, build its model from `seed`, and cut its documents into rows.

    Raises:
        ValueError: anything wrong in the file, or a tokenizer that does not fit the model.
    """
    config, (data, arguments) = read_run_file(path, (DataArguments, TokenWeightedTrainingArguments), overrides)
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer)
    if len(tokenizer) != config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}: set vocab_size to "
            "match."
        )
    if data.rows == "pack" and isinstance(config, EncoderDecoderConfig):
        raise ValueError(
            f"{path}: rows: pack is for causal models; a code is for one text, so choose windows or stream."
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    row_format = RowFormat.from_tokenizer(tokenizer, config.max_position_embeddings)

    def rows(files: Sequence[str], mode: str) -> list[Row]:
        documents = (encode_text(tokenizer, document.text) for document in read_documents(files))
        return list(ROW_MODES[mode](enumerate(documents), row_format))

    set_seed(arguments.seed)
    collator = CausalCollator(
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=config.vocab_size,
        max_length=config.max_position_embeddings,
        padding_side=data.padding_side,
        random_prefix_probability=_prefix_probability(config),
    )
    return Run(
        data=data,
        config=config,
        model=build_model(config),
        tokenizer=tokenizer,
        collator=collator,
        train_rows=rows(data.train_files, data.rows),
        held_out_rows=rows(data.validation_files, "windows"),  # the ones that lose nothing, whose bits count
        arguments=arguments,
    )


def _prefix_probability(config: PreTrainedConfig) -> float:
    """Only entropy estimation models record what lengths they met."""
    values: dict[str, Any] = config.to_dict()
    return float(values.get("random_prefix_probability", 0.0))
