"""Callbacks: random streams of processes, evaluation at checkpoints."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LEFT_OUT = "tokens_without_entropy"  # how the log names labelled tokens that the loss leaves out


class SeedDevicesCallback(TrainerCallback):
    """Gives every process a random stream of its own; seeded alike, as transformers does, all would draw one noise.

    Checkpoints keep each process's state, and a run resumed from one goes on with it.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:
            torch.manual_seed(args.seed + args.process_index)


class MeasureCheckpointsCallback(TrainerCallback):
    """Evaluates and logs at every checkpoint, and at the end: its card holds its own numbers, and a run that goes on
    from it begins a mean of losses where the uninterrupted run did."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save or state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save:
            control.should_evaluate = control.should_log = True
