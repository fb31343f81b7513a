"""A training run, from its run file to what a trainer needs: model, tokenizer, rows, collator, metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from modeling_eem.data.collator import CausalCollator
from modeling_eem.data.fingerprint import tokenizer_sha256
from modeling_eem.data.rows import RowFormat
from modeling_eem.data.saved_tokenizer import fit_to_context
from modeling_eem.entropy.result import NATS
from modeling_eem.files import asset, command_without_secrets, sha256
from modeling_eem.loading import load_tokenizer, padding_id
from modeling_eem.models.configuration_eem import is_autoencoder
from modeling_eem.training.checkpoints import (
    NEWEST,
    check_same_run,
    checkpoint_to_resume,
    is_finished,
    newest_whole,
    run_record,
)
from modeling_eem.training.run_arguments import RunArguments
from modeling_eem.training.run_file import build_model, read_run_file
from modeling_eem.training.token_losses import TOKEN_LOSSES
from modeling_eem.training.token_metrics import EntropyMetrics, TokenMetrics, code_bits_a_row
from modeling_eem.training.training_forward import regression_alignment
from modeling_eem.training.training_text import DataArguments, run_rows


@dataclass
class Run:
    """Everything that a run file settles, ready to train.

    Attributes:
        name: the run file's name, without its ending.
        record: everything that the run's steps depend on, kept beside its checkpoints.
        checkpoint: what training resumes from; None to begin.
        is_finished: whether `output_dir` holds this very run, trained to its end.
    """

    name: str
    data: DataArguments
    config: PreTrainedConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    collator: CausalCollator
    train_rows: Dataset
    held_out_rows: Dataset
    arguments: RunArguments
    row_format: RowFormat
    record: dict[str, Any]
    checkpoint: Path | None
    is_finished: bool = False

    @property
    def begins(self) -> str:
        """What training will do first, in words."""
        if self.is_finished:
            return f"{self.arguments.output_dir} holds this run, finished: nothing is left to train"
        return "begins" if self.checkpoint is None else f"going on from {self.checkpoint}"

    @property
    def is_regression(self) -> bool:
        """Whether the model is fitted to `token_entropies`."""
        return is_regression(self.config)

    @property
    def is_autoencoder(self) -> bool:
        return is_autoencoder(self.config)

    @property
    def code_bits(self) -> float | None:
        """Bits of a row's code; None if its format is not settled."""
        return code_bits_a_row(self.config)

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, over devices and accumulation steps."""
        arguments = self.arguments
        return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size

    @cached_property
    def metrics(self) -> TokenMetrics | EntropyMetrics:
        """The metrics that measure the model."""
        if self.is_regression:
            return EntropyMetrics(is_shifted=self.arguments.regression_alignment == "prefix")
        return TokenMetrics(
            self.row_format.byte_lengths, self.collator.max_length, self.code_bits, is_shifted=not self.is_autoencoder
        )


def is_regression(config: PreTrainedConfig) -> bool:
    """Whether a config's model is a token classifier with one number a token."""
    return config.num_labels == 1 and not is_autoencoder(config)


def prepare_run(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a run file, find what it resumes from, build its model from `seed`, and load its rows.

    Raises:
        ValueError: for anything wrong in the file, data that do not fit the model, or a checkpoint of another run.
    """
    config, (data, arguments) = read_run_file(path, (DataArguments, RunArguments), overrides)
    try:
        return _checked_run(Path(path).stem, config, data, arguments)
    except ValueError as error:
        given = " ".join(command_without_secrets(overrides))
        raise ValueError(f"{path}{f' with {given}' if given else ''}: {error}") from error


def _checked_run(name: str, config: PreTrainedConfig, data: DataArguments, arguments: RunArguments) -> Run:
    rows = run_rows(data)
    missing = [column for column in arguments.entropy_columns if column not in rows.columns]
    metric = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    has_no_bits = metric == "bits_per_byte" and code_bits_a_row(config) is None
    if has_no_bits or metric != "loss" and is_regression(config) != (metric == "mean_squared_error"):
        raise ValueError(f"metric_for_best_model: {metric!r} is not measured of this kind of model; loss always is.")
    if is_regression(config) or TOKEN_LOSSES[arguments.token_loss].needs_entropies:
        what = "num_labels: 1" if is_regression(config) else f"token_loss: {arguments.token_loss}"
        if missing:
            raise ValueError(
                f"{what} needs train_rows with a column {', '.join(missing)}; make it with `eem entropy`."
            )
        if rows.unit != NATS and what != "token_loss: complement":  # it reads only how a text's scores compare
            raise ValueError(
                f"{what} needs entropies in nats, and those in {data.train_rows} are {rows.unit}: make them with "
                "another --method of `eem entropy`, such as exact or causal."
            )
    if is_regression(config) and data.validation_files:
        raise ValueError(
            "a regression is measured on the rows' held-out split: prepare unpacked rows with --held-out and leave "
            "validation_files out."
        )
    tokenizer = _tokenizer(data.tokenizer or config.name_or_path or "asset:tokenizer")
    _fit_vocabulary(config, tokenizer)
    rows.check(config, tokenizer)
    row_format = RowFormat.from_tokenizer(tokenizer, rows.max_length(config))
    fit_to_context(tokenizer, config)
    made_of = rows.identity() | {"tokenizer_sha256": tokenizer_sha256(tokenizer)}
    if config.name_or_path and (folder := Path(config.name_or_path)).is_dir():
        weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
        made_of["base_model"] = [[file.name, sha256(file)] for file in weights]
    arguments.regression_alignment = regression_alignment(config, arguments.regression_alignment)
    record = run_record(config, data, made_of, arguments)
    finished = is_finished(arguments, record)
    if (checkpoint := None if finished else checkpoint_to_resume(arguments)) is not None:
        check_same_run(checkpoint, record)
        # One that is named may lie elsewhere, but training deletes old ones in output_dir.
        is_named = arguments.resume_from_checkpoint not in NEWEST
        if is_named and (beside := newest_whole(arguments.output_folder)) is not None:
            check_same_run(beside, record)

    train_rows, held_out_rows = rows.load(row_format, tokenizer)
    if data.max_held_out_rows is not None:
        held_out_rows = held_out_rows.take(min(data.max_held_out_rows, len(held_out_rows)))
    rows_at_once = arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and len(train_rows) < rows_at_once:
        raise ValueError(
            f"dataloader_drop_last: true leaves none of the {len(train_rows):,} rows, because {rows_at_once:,} are "
            "read at once: set per_device_train_batch_size lower."
        )
    set_seed(arguments.seed)
    return Run(
        name=name,
        data=data,
        config=config,
        model=build_model(config),
        tokenizer=tokenizer,
        collator=CausalCollator(
            pad_token_id=padding_id(tokenizer),
            vocab_size=config.vocab_size,
            max_length=row_format.max_length,
            padding_side="left" if data.padding_side == "left" else "right",
            random_prefix_probability=_prefix_probability(config),
        ),
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        arguments=arguments,
        row_format=row_format,
        record=record,
        checkpoint=checkpoint,
        is_finished=finished,
    )


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(asset(name))
    except OSError as error:
        raise ValueError(f"tokenizer: no tokenizer in {name!r}.") from error


def _fit_vocabulary(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a new model the tokenizer's special tokens; ValueError if the numbers of tokens differ."""
    is_new = not config.name_or_path
    if len(tokenizer) > config.vocab_size or (is_new and len(tokenizer) < config.vocab_size):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}: set vocab_size to match."
        )
    if is_new:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, getattr(tokenizer, name))


def _prefix_probability(config: PreTrainedConfig) -> float:
    """0 for all but entropy estimation models: only they record which lengths they have met."""
    values: dict[str, Any] = config.to_dict()
    return float(values.get("random_prefix_probability", 0.0))
