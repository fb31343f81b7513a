"""The training arguments of run files: other defaults, and errors for all that would lose a run or its numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.integrations.integration_utils import get_available_reporting_integrations, is_tensorboard_available
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, SaveStrategy, SchedulerType
from transformers.utils.import_utils import is_torch_xla_available

from modeling_eem.training.token_loss_arguments import TokenWeightedTrainingArguments

_MOST = 2**31 - 1  # rows, steps of accumulation, workers
_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
_AT_LEAST_ONE += ("save_total_limit", "eval_accumulation_steps", "torch_empty_cache_steps", "early_stopping_patience")

# Arguments that are refused if the test holds, and why.
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "logging_nan_inf_filter": (bool, "would hide losses that are not finite; leave it out"),
    "hub_strategy": (
        lambda value: value not in (HubStrategy.END, HubStrategy.EVERY_SAVE),
        "must be end or every_save: optimizer states are not pushed",
    ),
    # Input of the metrics
    "prediction_loss_only": (bool, "keeps from the metrics what they measure; leave it out"),
    "batch_eval_metrics": (bool, "gives metrics one batch at a time, but they need all rows; leave it out"),
    "eval_do_concat_batches": (lambda value: not value, "false gives metrics batches, but they need all rows"),
    "bf16_full_eval": (bool, "leaves the model in bfloat16 for good (transformers 5.23); use bf16"),
    "fp16_full_eval": (bool, "leaves the model in float16 for good (transformers 5.23); use fp16"),
    "eval_use_gather_object": (bool, "gathers objects, but metrics read tensors; leave it out"),
    "include_for_metrics": (bool, "gathers what no metric reads; leave it out"),
    "label_names": (bool, "follows from what is measured; leave it out"),
    "remove_unused_columns": (lambda value: not value, "false hands the model columns that it does not take"),
    "include_num_input_tokens_seen": (lambda value: value not in ("no", False), "is counted anyway; leave it out"),
    "label_smoothing_factor": (bool, "takes the labels from the token loss; leave it out"),
    "average_tokens_across_devices": (lambda value: not value, "false contradicts the token loss's mean"),
    # Contents of a checkpoint, and of a step
    "lr_scheduler_type": (
        lambda value: value in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY),
        "must not depend on measurements: how often you measure and save would change the steps",
    ),
    "save_only_model": (bool, "leaves out what a resume needs; the trained model is in output_dir anyway"),
    "enable_jit_checkpoint": (bool, "writes checkpoints that are not known to be whole; use save_steps"),
    "ignore_data_skip": (bool, "would show a resumed run the same rows again; leave it out"),
    "restore_callback_states_from_checkpoint": (bool, "does nothing here: no callback keeps a state; leave it out"),
    "auto_find_batch_size": (bool, "changes the rows of a step during the run; set per_device_train_batch_size"),
    "train_sampling_strategy": (
        lambda value: value not in ("random", "sequential"),
        "must be random or sequential: the others draw other rows in each process, and after a resume",
    ),
    "save_on_each_node": (bool, "is not for run files: give all nodes one output_dir"),
}


@dataclass
class RunArguments(TokenWeightedTrainingArguments):
    """`TokenWeightedTrainingArguments` with other defaults.

    Held-out rows are measured six times on the way and with every checkpoint; TensorBoard gets the logs if it is
    installed; our own progress bar shows the steps; the Hub gets the trained model only.

    Attributes:
        early_stopping_patience: the run ends after so many measurements in a row that are no better than the best one
            before them. It implies `load_best_model_at_end`.
        load_best_model_at_end: `output_dir` gets the weights of the best measurement by `metric_for_best_model` (by
            default "loss"), not the last step's. Each measurement is then a checkpoint too.

    Raises:
        ValueError: for what runs do not do, see `_REFUSED`; a tracker that is not installed; a number out of range.
    """

    eval_strategy: str = "steps"
    eval_steps: float | None = 1 / 6
    report_to: None | str | list[str] = None
    disable_tqdm: bool | None = True
    hub_strategy: str = "end"
    logging_nan_inf_filter: bool = False
    early_stopping_patience: int | None = None

    def __post_init__(self) -> None:
        keeps_best = self.load_best_model_at_end or self.early_stopping_patience is not None
        if keeps_best and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        _check_numbers(self)
        _check_refused(self)
        has_device = torch.accelerator.is_available() or is_torch_xla_available()
        if self.bf16 and not has_device and not self.deepspeed:
            self.use_cpu = True  # transformers refuses bf16 on a CPU unless it is told that a CPU is meant
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            # transformers takes more for better, unless the name ends in "loss"
            self.greater_is_better = self.metric_for_best_model.removeprefix("eval_") == "token_accuracy"
        # transformers wants save_steps to be a multiple of eval_steps. Here each measurement is saved.
        self.load_best_model_at_end = False
        super().__post_init__()
        self.load_best_model_at_end = keeps_best
        if keeps_best and "no" in (self.eval_strategy, self.save_strategy):
            raise ValueError(
                "load_best_model_at_end and early_stopping_patience need measurements and checkpoints: leave "
                "eval_strategy: no and save_strategy: no out."
            )
        for name in self.report_to:
            if name not in (known := get_available_reporting_integrations()):
                choice = f"choose from {', '.join(known)}" if known else "pip install it, or leave report_to out"
                raise ValueError(f"report_to: {name} is not installed; {choice}.")
        metric = self.metric_for_best_model
        if metric is None and self.save_strategy == SaveStrategy.BEST:
            raise ValueError(f"save_strategy: best needs metric_for_best_model, one of {', '.join(_METRICS)}.")
        if metric is not None and metric.removeprefix("eval_") not in _METRICS:
            raise ValueError(f"metric_for_best_model must be one of {', '.join(_METRICS)}; got {metric!r}.")
        batches = self.accelerator_config
        assert isinstance(batches, AcceleratorConfig)  # `super` made it one
        if batches.split_batches or batches.dispatch_batches or not batches.even_batches:
            raise ValueError("accelerator_config must not set split_batches, dispatch_batches or even_batches: false.")
        if not batches.use_seedable_sampler:  # its other sampler draws other rows after a resume
            raise ValueError("accelerator_config must not set use_seedable_sampler: false.")
        if self.fsdp and self.device.type == "cpu":
            raise ValueError("fsdp: accelerate ignores it on a CPU; leave it out, or train on GPUs.")
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # no device needs pinned memory, and torch would warn


_METRICS = ("loss", "bits_per_byte", "cross_entropy", "token_accuracy", "mean_squared_error")


def _check_refused(arguments: RunArguments) -> None:
    for name, (is_refused, why) in _REFUSED.items():
        if is_refused(getattr(arguments, name)):
            raise ValueError(f"{name} {why}.")


def _check_numbers(arguments: RunArguments) -> None:
    """Check that numbers are finite, and counts are counts; transformers checks only a few."""
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be a finite number; got {value}.")
        if field.name in _AT_LEAST_ONE and value is not None and not 1 <= value <= _MOST:
            raise ValueError(f"{field.name} must be from 1 to {_MOST}; got {value}.")
    for name in ("seed", "data_seed"):
        if (value := getattr(arguments, name)) is not None and not 0 <= value < 2**32:
            raise ValueError(f"{name} must be from 0 to {2**32 - 1}; got {value}.")
    for name in ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "num_train_epochs"):
        if getattr(arguments, name) < 0:
            raise ValueError(f"{name} must be at least 0; got {getattr(arguments, name)}.")
    if not 0 <= arguments.dataloader_num_workers <= 1024:
        raise ValueError(f"dataloader_num_workers must be from 0 to 1024; got {arguments.dataloader_num_workers}.")
    if not -1 <= arguments.max_steps <= 10**9 or arguments.max_steps == 0:
        raise ValueError(f"max_steps must be from 1 to {10**9}, or left out; got {arguments.max_steps}.")
    if arguments.num_train_epochs == 0 and arguments.max_steps == -1:
        raise ValueError("num_train_epochs: 0 trains no step: set it above 0, or set max_steps.")
    if arguments.num_train_epochs > 10**6:
        raise ValueError(f"num_train_epochs must be at most {10**6}; got {arguments.num_train_epochs}.")
    for name in ("logging_steps", "eval_steps", "save_steps"):
        if (value := getattr(arguments, name)) is not None and not 0 < value <= 10**12:
            raise ValueError(f"{name} must be above 0, a number of steps or a share below 1; got {value}.")
