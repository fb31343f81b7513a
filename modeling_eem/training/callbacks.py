"""Callbacks: a progress bar, random streams of processes, evaluation at checkpoints."""

from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_eem.training.token_loss_arguments import TokenLossArguments
from modeling_eem.training.training_forward import without_adapters

LEFT_OUT = "tokens_without_entropy"  # how the log names labelled tokens that the loss leaves out


class ProgressBarCallback(TrainerCallback):
    """One line: name, bar, steps, time left, last training loss."""

    def __init__(self, name: str):
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self.name = name

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.progress.start()
            self.task = self.progress.add_task(self.name, total=state.max_steps, completed=state.global_step, loss="")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and "loss" in logs:
            left_out = f", {logs[LEFT_OUT]} tokens without an entropy left out" if LEFT_OUT in logs else ""
            self.progress.update(self.task, loss=f"{loss_text(float(logs['loss']), args, kwargs['model'])}{left_out}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.progress.stop()


def loss_text(loss: float, args: TrainingArguments, model: Any) -> str:
    """A training loss with its unit: nats a token are cross-entropy's alone."""
    if without_adapters(model).config.num_labels == 1:
        return f"{loss:.3f} nats² a token"
    name = args.token_loss if isinstance(args, TokenLossArguments) else "cross_entropy"
    return f"{loss:.3f} nats a token" if name == "cross_entropy" else f"{name} {loss:.3f}"


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
